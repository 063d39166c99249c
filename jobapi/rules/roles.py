"""Who somebody is and may be: roles, and what names and passwords look like."""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from ..errors import ValidationFailed
from .labels import Labelled

USERNAME_PATTERN = r"[A-Za-z0-9_.@+\-]{1,100}"
USERNAME_RULE = "Use 1 to 100 letters, digits and the characters _ . @ + -"
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 128
"""Both in characters of the form NFC."""

# No character becomes more than four when it is taken apart.
_MAX_TYPED_LENGTH = 4 * MAX_PASSWORD_LENGTH
MAX_ADDRESS_LENGTH = 64
_NAT64 = IPv6Network("64:ff9b::/96")
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::[0-9]*)?|([0-9.]+):[0-9]*")

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


def normal_password(password: str) -> str:
    """A password in NFC, the form in which passwords are hashed and counted.

    Keyboards and systems differ in how they send the same characters. A text that
    is too long to be a password is returned unchanged.
    """
    if len(password) > _MAX_TYPED_LENGTH:
        return password
    return unicodedata.normalize("NFC", password)


def client_address(text: str | None) -> str:
    """A caller's address without its port and zone; IPv4 in IPv6 as IPv4.

    Proxies write ``203.0.113.9:50000`` or ``[2001:db8::1]:443``. What cannot be
    read is returned as it is, 64 characters of it at most.
    """
    text = (text or "").strip()
    return str(_parsed(text) or text[:MAX_ADDRESS_LENGTH])


def address_bucket(text: str | None) -> str:
    """The addresses that count as one caller: an IPv4 address, or a /64 of IPv6.

    A household or a machine usually gets a whole /64.
    """
    address = _parsed((text or "").strip())
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return client_address(text)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    if len(text) > MAX_ADDRESS_LENGTH:
        return None
    found = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((found[1] or found[2] or "" if found else text).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


class Role(Labelled):
    """What a member of a workspace, or an API key, may do there.

    Each role includes those below it.
    """

    VIEWER = 0
    WORKER = 1
    MEMBER = 2
    OWNER = 3
