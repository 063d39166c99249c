"""Retries: which requests are repeated, and after how long."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import JobApiError

RETRIED = frozenset({429, 502, 503, 504})
"""Statuses after which a request that is safe to repeat is retried."""

NOT_DONE = frozenset({429, 503})
"""Statuses of requests that were not carried out: they may always be retried."""

MAX_RETRY_AFTER = 60.0
"""The longest ``Retry-After`` in seconds that a request waits for; a longer one is an error."""

_SLICE_SECONDS = 0.1
_LEAST_TIMEOUT = 0.5
_RANDOM = random.SystemRandom()


class Unreachable(ConnectionError):
    """The service did not answer, however often the request was tried.

    ``created`` has the jobs that ``Client.create_many`` had created when it raised this.
    """

    created: Sequence[Any] = ()


def is_transient(error: Unreachable | JobApiError) -> bool:
    """Whether the same request may succeed later without any change."""
    return isinstance(error, Unreachable) or error.status >= 500 or error.status == 429


def backoff(tries: int) -> float:
    """Seconds to wait after this many failed tries: exponential backoff with jitter."""
    return min(10.0, 0.2 * 2.0 ** min(tries, 10)) * _RANDOM.uniform(0.5, 1)


def jittered(seconds: float) -> float:
    """Add jitter to a pause, so that many clients do not retry at the same moment."""
    return seconds * _RANDOM.uniform(0.75, 1.25)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that ``Retry-After`` asks for, as a number or a date; None without it."""
    fields = {name.lower(): value.strip() for name, value in headers.items()}
    wanted = fields.get("retry-after", "")
    if re.fullmatch(r"[0-9]+", wanted):
        return float(wanted)
    at = _date(wanted)
    if at is None:
        return None
    # By the sender's clock, because the local one may be wrong.
    now = _date(fields.get("date", "")) or datetime.now(UTC)
    return max(0.0, (at - now).total_seconds())


def asked_pause(error: Unreachable | JobApiError) -> float:
    """The seconds that an error asks to wait, at most a minute; 0 if it asks for none."""
    asked = None if isinstance(error, Unreachable) else retry_after(error.headers)
    return min(asked or 0.0, MAX_RETRY_AFTER)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Bounds:
    """Limits for the requests of a thread, besides those of its client.

    No try begins after ``deadline`` (``time.monotonic``) or once ``stopping``
    says so, and no single request waits longer than ``request_seconds`` for an answer.
    """

    deadline: float = math.inf
    request_seconds: float = math.inf
    stopping: Callable[[], bool] = lambda: False

    def timeout(self, seconds: float) -> float:
        """The time limit of a request whose own limit is ``seconds``."""
        left = max(_LEAST_TIMEOUT, self.deadline - time.monotonic())
        return min(seconds, self.request_seconds, left)

    def pause(self, seconds: float) -> bool:
        """Wait before another try; False if there must be none."""
        end = time.monotonic() + seconds
        if end > self.deadline:
            return False
        while not self.stopping():
            left = end - time.monotonic()
            # The second condition is for a clock that was set back.
            if left <= 0 or left > seconds:
                return True
            time.sleep(min(left, _SLICE_SECONDS))
        return False


_UNBOUNDED = Bounds()
_BOUNDS: ContextVar[Bounds] = ContextVar("jobapi_bounds", default=_UNBOUNDED)


def bounds() -> Bounds:
    """The limits of this thread's requests."""
    return _BOUNDS.get()


@contextmanager
def bounded(limits: Bounds) -> Iterator[None]:
    """Limit the requests of this thread."""
    token = _BOUNDS.set(limits)
    try:
        yield
    finally:
        _BOUNDS.reset(token)


def pause(tries: int, asked: float | None = None) -> bool:
    """Wait after a failed try, at least for ``asked`` seconds; False: do not try again."""
    if asked is not None and asked > MAX_RETRY_AFTER:
        return False
    seconds = max(backoff(tries), asked or 0.0)
    limits = bounds()
    if limits is _UNBOUNDED:
        time.sleep(seconds)
        return True
    return limits.pause(seconds)
