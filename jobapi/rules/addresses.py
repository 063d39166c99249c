"""Client addresses: their normal form, and which of them count as one caller."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

MAX_ADDRESS_LENGTH = 64
_NAT64 = IPv6Network("64:ff9b::/96")
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::[0-9]*)?|([0-9.]+):[0-9]*")


def client_address(text: str | None) -> str:
    """An address without port and zone; an IPv4 address in IPv6 notation as IPv4.

    Proxies write ``203.0.113.9:50000`` or ``[2001:db8::1]:443``. A text that is not an
    address is returned unchanged, but at most 64 characters of it.
    """
    text = (text or "").strip()
    return text[:MAX_ADDRESS_LENGTH] if len(text) > MAX_ADDRESS_LENGTH else _normal(text)


# The same clients come again and again.
@lru_cache(maxsize=1000)
def _normal(text: str) -> str:
    return str(_parsed(text) or text)


def address_bucket(text: str | None) -> str:
    """The addresses that count as one caller: an IPv4 address, or a /64 of IPv6.

    Providers usually assign a whole /64 to a household or a machine.
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
