"""Cron expressions: the moments that they mean in a time zone.

cronsim reads the expression. The moments are found here, because the rule for changes of the clock
is our own. An expression without ``*`` and ``/`` in minute and hour names fixed times: one that
occurs twice counts at its first occurrence, and one that is skipped at the next valid minute. Other
expressions mean every minute whose local time matches: an hour that occurs twice counts twice, and
skipped minutes do not count.

On most days the clock does not change, so a time of day is at a fixed distance from UTC. Days near
a change of the clock are looked at more closely, and together, because a later minute of one day
may come before an earlier minute of the day before.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from ..errors import ValidationFailed

MAX_LENGTH = 200
"""How long an expression may be, in characters."""

PATTERN = r"\s*([0-9A-Za-z*,/#\-]+\s+){4}[0-9A-Za-z*,/#\-]+\s*"
"""Five fields. What they may be, cronsim says."""

MAX_YEARS = 50
"""How far the next moment may be away. 29 February on a Sunday recurs within 40 years."""

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
_LAST_DAY = date(9999, 11, 30)


class Cron:
    """A cron expression of five fields. Raises ``ValidationFailed`` if it never matches."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_LENGTH or not re.fullmatch(PATTERN, expression, re.ASCII):
            raise _wrong(
                "Use five fields: minute, hour, day of month, month, day of week, such as "
                "30 2 * * *."
            )
        fields = expression.split()
        self.text = " ".join(fields)
        try:
            self._spec = CronSim(self.text, datetime(2000, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise _wrong(f"Not a valid cron expression: {error}.") from None
        self._hours = [timedelta(hours=hour) for hour in sorted(self._spec.hours)]
        self._minutes = [timedelta(minutes=minute) for minute in sorted(self._spec.minutes)]
        self._is_fixed = not any(sign in field for field in fields[:2] for sign in "*/")
        if next(self.moments(ZoneInfo("UTC"), datetime(2000, 1, 1, tzinfo=UTC)), None) is None:
            raise _wrong("This never matches: no month has such a day.")

    def moments(self, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
        """The moments later than ``after``, in order, in UTC.

        Ends if there is none within ``MAX_YEARS``, or before the end of the calendar.
        """
        last = after
        # A time of yesterday may come later than one of today, where the clock is set back.
        day = min(after.date(), _LAST_DAY) - 2 * _DAY
        until = _horizon(day)
        while day <= until:
            if day.month not in self._spec.months:
                day = date(day.year + day.month // 12, day.month % 12 + 1, 1)
                continue
            if not self._spec.match_day(day):
                day += _DAY
                continue
            offset = _offset(zone, day)
            if offset is not None:
                found = self._on_quiet_day(day, offset, last)
                day += _DAY
            else:
                near: set[datetime] = set()
                while day <= _LAST_DAY and _offset(zone, day) is None:
                    near.update(_near_change(self, zone, day))
                    day += _DAY
                found = iter(sorted(near))
            for moment in found:
                if moment > last:
                    last = moment
                    until = _horizon(day)
                    yield moment

    def _on_quiet_day(self, day: date, offset: timedelta, last: datetime) -> Iterator[datetime]:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC) - offset
        if last < midnight + _DAY:
            for hour in self._hours:
                if last < midnight + hour + _HOUR:
                    for minute in self._minutes:
                        yield midnight + hour + minute

    def near_change(self, zone: ZoneInfo, day: date) -> Iterator[datetime]:
        """The moments of a day near a change of the clock, in any order."""
        if not self._spec.match_day(day):
            return
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
        for hour in self._hours:
            begin = midnight + hour
            ends = [each.replace(fold=n) for each in (begin, begin + _HOUR) for n in (0, 1)]
            if len({end.utcoffset() for end in ends}) == 1:
                start = begin.astimezone(UTC)
                for minute in self._minutes:
                    yield start + minute
            else:
                yield from self._in_changed_hour(zone, begin)

    def _in_changed_hour(self, zone: ZoneInfo, begin: datetime) -> Iterator[datetime]:
        for minute in self._minutes:
            local = begin + minute
            # Before and after the change, if the time occurs twice. If it is skipped: the other
            # way round, and none of them shows it.
            first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
            if first > second:
                if self._is_fixed:
                    yield _change(zone, second, first)
                continue
            yield first
            if second != first and not self._is_fixed:
                yield second


# Each tick of such a day looks for the next one.
@lru_cache(maxsize=64)
def _near_change(cron: Cron, zone: ZoneInfo, day: date) -> tuple[datetime, ...]:
    return tuple(cron.near_change(zone, day))


@lru_cache(maxsize=200)
def parse(expression: str) -> Cron:
    """The same as ``Cron``, kept: a schedule's next moment is looked for again and again."""
    return Cron(expression)


def _wrong(message: str) -> ValidationFailed:
    return ValidationFailed({"cron": [message]})


def _horizon(day: date) -> date:
    return min(date(min(day.year + MAX_YEARS, date.max.year), 12, 31), _LAST_DAY)


@lru_cache(maxsize=10_000)
def _offset(zone: ZoneInfo, day: date) -> timedelta | None:
    """The distance from UTC on a day; None if the clock changes on it or on a neighbour."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    offsets = {(midnight + n * _DAY).astimezone(zone).utcoffset() for n in (-1, 0, 1, 2)}
    return offsets.pop() if len(offsets) == 1 else None


def _change(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The first minute, up to ``after``, with the distance from UTC that ``after`` has."""
    offset = after.astimezone(zone).utcoffset()
    low, high = 0, (after - before) // _MINUTE
    while low < high:
        middle = (low + high) // 2
        if (before + middle * _MINUTE).astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle + 1
    return before + low * _MINUTE


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """The time zones that there are, by their IANA names."""
    return frozenset(available_timezones() - {"Factory", "localtime"})


def check_zone(name: str) -> None:
    """Raise ``ValidationFailed`` for a name that is no time zone's."""
    if name not in zone_names():
        raise ValidationFailed({"timezone": ["Use the IANA name of a time zone: Europe/Paris."]})


def last_of(moments: Iterator[datetime], until: datetime, most: int) -> deque[datetime]:
    """The last ``most`` of the moments that are not later than ``until``."""
    found: deque[datetime] = deque(maxlen=most)
    with suppress(StopIteration):
        while (moment := next(moments)) <= until:
            found.append(moment)
    return found
