"""Ticks of schedules: when they are, and which of these make jobs after an outage. Pure, no I/O.

A tick is a nominal time, and its job is made up to ``jitter_seconds`` later. The same tick always
has the same delay, so that each node knows it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple
from zoneinfo import ZoneInfo

from ..errors import ValidationFailed
from . import cron
from .schedules import CatchUp

GRACE = timedelta(seconds=5)
"""A tick that is later than this was missed: there was an outage, and ``catch_up`` decides."""

MAX_CAUGHT_UP = 100
"""How many missed ticks ``all`` makes up for at most: the last ones."""

UPCOMING = 5
"""How many of the next ticks a schedule shows."""


@dataclass(frozen=True)
class Timing:
    """When a schedule has its ticks."""

    cron: str | None
    every_seconds: int | None
    timezone: str
    starts_at: datetime | None
    """The first tick is not earlier. With ``every_seconds`` it is the first tick."""
    ends_at: datetime | None
    """The last tick is not later."""
    created_at: datetime
    """``every_seconds`` counts from here, in whole seconds, if there is no ``starts_at``."""

    def check(self) -> None:
        """Raise ``ValidationFailed`` if these cannot be together, or there is no such zone."""
        if (self.cron is None) == (self.every_seconds is None):
            raise ValidationFailed({"cron": ["Give either cron or every_seconds."]})
        cron.check_zone(self.timezone)
        begin, end = self.starts_at, self.ends_at
        if begin is not None and end is not None and end < begin:
            raise ValidationFailed({"ends_at": ["Must not be earlier than starts_at."]})

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The ticks later than a moment, in order."""
        if self.starts_at is not None and moment < self.starts_at:
            # A moment before, because a tick at the start counts.
            moment = self.starts_at - timedelta(microseconds=1)
        for tick in self._after(moment):
            if self.ends_at is not None and tick > self.ends_at:
                return
            yield tick

    def _after(self, moment: datetime) -> Iterator[datetime]:
        if self.cron is not None:
            yield from cron.parse(self.cron).moments(ZoneInfo(self.timezone), moment)
            return
        every = timedelta(seconds=self.every_seconds or 1)
        begin = self.starts_at or self.created_at.replace(microsecond=0)
        number = max((moment - begin) // every + 1, 0 if self.starts_at is not None else 1)
        while True:
            try:
                yield begin + number * every
            except OverflowError:
                return
            number += 1

    def first(self, after: datetime) -> datetime | None:
        """The first tick after a moment; None: there is none."""
        return next(self.after(after), None)

    def upcoming(self, tick: datetime | None) -> Sequence[datetime]:
        """A tick, if there is one, and those that follow it."""
        return () if tick is None else _upcoming(self, tick)

    def last(self, since: datetime, until: datetime, most: int) -> Sequence[datetime]:
        """The last ``most`` ticks after ``since`` that are not later than ``until``."""
        # The number of ticks in a span is not known. They are looked for in ever longer spans, so
        # that no more than a few times as many as wanted are read.
        span = timedelta(hours=1)
        while True:
            start = max(since, until - span)
            found: deque[datetime] = cron.last_of(self.after(start), until, most)
            if len(found) == most or start == since:
                return found
            span *= 8


# Those of a rare date lie decades ahead, and a list may show a hundred schedules.
@lru_cache(maxsize=1000)
def _upcoming(timing: Timing, tick: datetime) -> Sequence[datetime]:
    return tuple(islice(chain([tick], timing.after(tick)), UPCOMING))


class Due(NamedTuple):
    """What is to be done about ticks that are due."""

    tick: datetime | None
    """The tick that makes a job now; None: none does."""
    missed: tuple[datetime, datetime] | None
    """The first and the last of the ticks that make none, because there was an outage."""
    after: datetime
    """The next tick is the first after this."""


def decide(
    timing: Timing,
    catch_up: int,
    jitter_seconds: int,
    tick: datetime,
    due_at: datetime,
    now: datetime,
) -> Due:
    """What to do about ``tick``, which was due at ``due_at``, and about those that followed.

    For example, a schedule has a tick every hour, and no node has run since 10:30. At 13:20 three
    ticks were missed: ``last`` makes one job, for 13:00, and ``all`` makes three, one at a time.
    """
    if now - due_at <= GRACE:
        return Due(tick, None, tick)
    wanted = {CatchUp.ALL: MAX_CAUGHT_UP}.get(CatchUp(catch_up), 1)
    # What may be delayed for longer by its jitter is not late yet.
    later = timing.last(tick, max(tick, now - timedelta(seconds=jitter_seconds)), wanted)
    last = later[-1] if later else tick
    if catch_up == CatchUp.NONE:
        return Due(None, (tick, last), last)
    first = later[0] if len(later) == wanted else tick
    if first == tick:
        return Due(tick, None, tick)
    dropped = timing.last(tick, first - timedelta(microseconds=1), 1)
    return Due(first, (tick, dropped[-1] if dropped else tick), first)


def due_at(schedule_id: str, tick: datetime, jitter_seconds: int) -> datetime:
    """When a tick makes its job: up to ``jitter_seconds`` later, always the same for a tick."""
    name = f"{schedule_id} {tick.timestamp()}".encode()
    number = int.from_bytes(hashlib.sha256(name).digest()[:8])
    return tick + timedelta(milliseconds=number % (jitter_seconds * 1000 + 1))
