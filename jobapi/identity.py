"""Who somebody is and may be: roles, and the forms of names and passwords."""

from __future__ import annotations

from enum import IntEnum

USERNAME_PATTERN = r"[A-Za-z0-9_.@+\-]{1,100}"
USERNAME_RULE = "Use 1 to 100 letters, digits and the characters _ . @ + -"
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128


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
