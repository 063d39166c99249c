"""Webhooks: which events they want, how deliveries are signed and retried, where they may go.

Deliveries follow Standard Webhooks 1.0, https://www.standardwebhooks.com.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b32hexencode, b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from ..errors import ValidationFailed
from .events import WORKSPACE_EVENTS, Event, EventKind
from .jobs import ENDED, JobStatus
from .labels import Labelled

MAX_URL_LENGTH = 2_000
MAX_WEBHOOK_JOB_TYPES = 100
INCLUDABLE = ("metadata", "result")
"""The fields of a job that a delivery has only if the webhook includes them."""

TEST_TYPE = "webhook.test"
SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32
BOTH_SECRETS = timedelta(hours=24)
"""How long the previous secret stays valid after a rotation."""

RETRY_SECONDS = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600)
"""The delays before the retries of a delivery."""

MAX_RETRY_AFTER = timedelta(hours=24)
DISABLED_AFTER = timedelta(days=5)
"""For how long all deliveries of a webhook must have failed before it is disabled."""

FAILURES_WITHIN = timedelta(hours=24)
"""Failures that are further apart do not count as one series."""

GONE = 410


class DeliveryStatus(Labelled):
    """The states of a delivery. The database stores the numbers."""

    PENDING = 0
    SUCCESS = 1
    FAILED = 2
    CANCELLED = 3


class Disabled(Labelled):
    """Why the service has disabled a webhook. The database stores the numbers."""

    GONE = 0
    FAILING = 1


def type_of(event: Event) -> str:
    """The ``type`` of the message about an event.

    ``job.succeeded``, ``job.failed`` or ``job.cancelled`` for the end of a job, otherwise
    ``job.`` or ``workspace.`` and the kind.
    """
    if event.to_status in _ENDS:
        return f"job.{_ENDS[JobStatus(event.to_status)]}"
    of = "workspace" if event.kind in WORKSPACE_EVENTS else "job"
    return f"{of}.{EventKind(event.kind).label}"


_ENDS = {
    JobStatus.SUCCESS: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
_KINDS = frozenset(EventKind)

MESSAGE_TYPES = (
    *(f"job.{name}" for name in _ENDS.values()),
    *(
        f"{'workspace' if kind in WORKSPACE_EVENTS else 'job'}.{kind.label}"
        for kind in EventKind
        if kind.label not in _ENDS.values()
    ),
    TEST_TYPE,
)
"""Every ``type`` that a message may have."""


def wants(event: Event, kinds: Sequence[str] | None, job_types: Sequence[str] | None) -> bool:
    """Whether a webhook wants an event.

    ``kinds`` are labels of ``EventKind``; None: the ends of jobs. ``job_types`` None: all.
    """
    if job_types is not None and event.job_type not in job_types:
        return False
    if kinds is None:
        return event.to_status in ENDED
    return event.kind in _KINDS and EventKind(event.kind).label in kinds


# Messages


def message_id(webhook_id: str, event: Event) -> str:
    """The ``webhook-id`` of the message about an event: the same for each attempt.

    The time tells apart the events of two databases that use the same numbers.
    """
    whole = hashlib.sha256(f"{webhook_id} {event.id} {event.at.isoformat()}".encode()).digest()
    return f"msg_{b32hexencode(whole[:20]).decode().lower()}"


def secret_of(random: bytes) -> str:
    """A secret as its owner sees it, made of ``SECRET_BYTES`` random bytes."""
    return SECRET_PREFIX + b64encode(random).decode()


def signatures(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: one signature for each secret that is valid."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return " ".join(
        f"v1,{b64encode(hmac.digest(_key(secret), signed, 'sha256')).decode()}"
        for secret in secrets
    )


def _key(secret: str) -> bytes:
    return b64decode(secret.removeprefix(SECRET_PREFIX))


# Retries


class Answer(NamedTuple):
    """The result of an attempt to deliver a message."""

    status: int | None = None
    """The HTTP status; None: there was no complete response, and ``error`` says why."""

    error: str | None = None
    body: str | None = None
    """The begin of the response's body."""

    retry_after: timedelta | None = None
    """What the response asks for in ``Retry-After``."""

    @property
    def accepted(self) -> bool:
        """Whether the receiver has accepted the message."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


class Verdict(NamedTuple):
    """What follows from an attempt, for the delivery and for its webhook."""

    status: DeliveryStatus
    retry_at: datetime | None = None
    """When the next attempt is due; None: there is none."""

    failing_since: datetime | None = None
    """The first failure after the last success; None: this is a success."""

    disabled: Disabled | None = None


def verdict(
    answer: Answer,
    *,
    attempts: int,
    failing_since: datetime | None,
    failed_at: datetime | None,
    now: datetime,
    chance: float,
) -> Verdict:
    """Decide what follows from an attempt.

    ``attempts`` includes this one. ``failing_since`` and ``failed_at`` are the first and the
    last failure of the webhook before it. ``chance`` is from 0 to 1, for the jitter.
    """
    if answer.accepted:
        return Verdict(DeliveryStatus.SUCCESS)
    since = failing_since
    if since is None or failed_at is None or now - failed_at > FAILURES_WITHIN:
        since = now
    if answer.status == GONE and answer.error is None:
        return Verdict(DeliveryStatus.FAILED, None, since, Disabled.GONE)
    disabled = Disabled.FAILING if now - since >= DISABLED_AFTER else None
    if disabled is not None or attempts > len(RETRY_SECONDS):
        return Verdict(DeliveryStatus.FAILED, None, since, disabled)
    delay = timedelta(seconds=RETRY_SECONDS[attempts - 1] * (0.9 + 0.2 * chance))
    wanted = min(answer.retry_after or timedelta(), MAX_RETRY_AFTER)
    return Verdict(DeliveryStatus.PENDING, now + max(delay, wanted), since)


# Where deliveries may go


# RFC 3986 without user information: no character needs to be escaped or changed.
_URL = re.compile(
    r"(?i:https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
    r"([/?][A-Za-z0-9._~%!$&'()*+,;=:@/?-]*)?"
)
_NAME = re.compile(r"(?=.{1,253}\.?$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?")
_LAST_NUMBER = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)\.?")


class Target(NamedTuple):
    """Where a URL leads."""

    secure: bool
    host: str
    """A name or an address in lower case, without brackets."""

    port: int
    path: str
    """The path with the query."""

    @property
    def authority(self) -> str:
        """The value of the header ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def target_of(url: str, *, allow_http: bool = False, allow_private: bool = False) -> Target:
    """Take a URL apart. Raises ``ValidationFailed`` for one that is not allowed.

    A name is judged by its addresses, when it is connected to.
    """
    parts = _split(url)
    if parts is None:
        raise _refused(
            "Use an absolute URL such as https://example.com/hooks: in ASCII, with international "
            "names in Punycode and other characters percent-encoded, without user information "
            "and fragment."
        )
    if parts.scheme != "https" and not allow_http:
        raise _refused("Only https is allowed.")
    host = parts.hostname or ""
    port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
    if _LAST_NUMBER.fullmatch(host) or ":" in host:
        try:
            address = ip_address(host)
        except ValueError:
            raise _refused("Write the address in its usual form, such as 198.51.100.7.") from None
        if not allow_private and not is_public(address):
            raise _refused("The address is not globally routable.")
    elif not _NAME.fullmatch(host):
        raise _refused("The host name is not valid.")
    query = f"?{parts.query}" if parts.query else ""
    return Target(parts.scheme == "https", host, port, (parts.path or "/") + query)


def _split(url: str) -> SplitResult | None:
    if len(url) > MAX_URL_LENGTH or not _URL.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _refused(message: str) -> ValidationFailed:
    return ValidationFailed({"url": [message]})


# https://www.iana.org/assignments/iana-ipv4-special-registry and …ipv6-special-registry: all that
# is not globally reachable, multicast, and deprecated relays. Not ``is_global``, which differs
# between versions of Python.
_NOT_PUBLIC_4 = [
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
]
_GLOBAL_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = [
    IPv6Network(network)
    # Of 2000::/3: protocol assignments with Teredo, and documentation.
    for network in ("2001::/23", "2001:db8::/32", "3fff::/20")
]
_6TO4 = IPv6Network("2002::/16")
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is globally routable, also the IPv4 address that it may contain."""
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is None:
            return address in _GLOBAL_6 and not any(address in each for each in _NOT_PUBLIC_6)
        address = inner
    return not any(address in network for network in _NOT_PUBLIC_4)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _6TO4:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
