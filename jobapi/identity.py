"""Who somebody is and may be: roles, and what names and passwords look like."""

from __future__ import annotations

from enum import IntEnum

from .errors import ValidationFailed

USERNAME_PATTERN = r"[A-Za-z0-9_.@+\-]{1,100}"
USERNAME_RULE = "Use 1 to 100 letters, digits and the characters _ . @ + -"
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128
MAX_NAME_LENGTH = 200


def check_name(name: str) -> None:
    """Refuse a workspace's or a key's name that nobody could read (``ValidationFailed``)."""
    if not name.strip() or len(name) > MAX_NAME_LENGTH or "\x00" in name:
        raise ValidationFailed(
            {"name": [f"Use 1 to {MAX_NAME_LENGTH} characters, and not only spaces."]}
        )


class Role(IntEnum):
    """What a member of a workspace, or an API key, may do there.

    Each role includes those below it.
    """

    VIEWER = 0
    WORKER = 1
    MEMBER = 2
    OWNER = 3

    @property
    def label(self) -> str:
        """The role's name as the API writes it."""
        return self.name.lower()
