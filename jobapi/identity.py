"""Who somebody is and may be: roles, and what names and passwords look like."""

from __future__ import annotations

import re
from enum import IntEnum

from .errors import ValidationFailed

USERNAME_PATTERN = r"[A-Za-z0-9_.@+\-]{1,100}"
USERNAME_RULE = "Use 1 to 100 letters, digits and the characters _ . @ + -"
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128
MAX_NAME_LENGTH = 200
MAX_KEY_JOB_TYPES = 100
# At least one character that can be seen. Written out, because languages do not
# agree on what a space is.
NAME_PATTERN = r"[\s\S]*[^\s\ufeff\x00-\x1f\x7f-\x9f][\s\S]*"
NAME_RULE = f"Use 1 to {MAX_NAME_LENGTH} characters, and not only spaces."


def check_name(name: str) -> None:
    """Refuse a workspace's or a key's name that nobody could read (``ValidationFailed``)."""
    if len(name) > MAX_NAME_LENGTH or "\x00" in name or not re.fullmatch(NAME_PATTERN, name):
        raise ValidationFailed({"name": [NAME_RULE]})


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
