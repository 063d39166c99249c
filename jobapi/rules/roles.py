"""Roles, and the rules for names and passwords."""

from __future__ import annotations

import re
import unicodedata

from ..errors import ValidationFailed
from .labels import Labelled

USERNAME_PATTERN = r"[A-Za-z0-9_.@+\-]{1,100}"
USERNAME_RULE = "Use 1 to 100 letters, digits and the characters _ . @ + -"
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128
"""The lengths of passwords are counted in characters in NFC."""

# A character has at most four code points when it is decomposed.
_MAX_TYPED_LENGTH = 4 * MAX_PASSWORD_LENGTH

MAX_NAME_LENGTH = 200
MAX_KEY_JOB_TYPES = 100
# At least one visible character. Spaces and control characters are listed, because regular
# expression engines of clients disagree on what a space is.
NAME_PATTERN = r"[\s\S]*[^\s\ufeff\x00-\x1f\x7f-\x9f][\s\S]*"
NAME_RULE = f"Use 1 to {MAX_NAME_LENGTH} characters, at least one of them visible."


def check_name(name: str) -> None:
    """Check the name of a workspace or an API key. Raises ``ValidationFailed``."""
    if len(name) > MAX_NAME_LENGTH or "\x00" in name or not re.fullmatch(NAME_PATTERN, name):
        raise ValidationFailed({"name": [NAME_RULE]})


def normal_password(password: str) -> str:
    """A password in NFC, the form in which passwords are hashed and their length is checked.

    Systems differ in how they encode the same characters. A text that is too long for a
    password is returned unchanged.
    """
    if len(password) > _MAX_TYPED_LENGTH:
        return password
    return unicodedata.normalize("NFC", password)


class Role(Labelled):
    """The role of a member or an API key in a workspace. Each includes the lower ones."""

    VIEWER = 0
    WORKER = 1
    MEMBER = 2
    OWNER = 3
