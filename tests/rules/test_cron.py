"""Cron expressions in every time zone whose clocks change, against an implementation of the rule.

It goes from minute to minute in UTC and looks at the local clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, available_timezones

import pytest

from jobapi.errors import ValidationFailed
from jobapi.rules.cron import Cron, check_zone

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)
Match = Callable[[datetime], bool]

# Each with what a local time has to be. Fixed times first.
FIXED: dict[str, Match] = {
    "0 0 * * *": lambda t: t.hour == 0 and t.minute == 0,
    "30 0 * * *": lambda t: t.hour == 0 and t.minute == 30,
    "15,45 1-3 * * *": lambda t: t.hour in (1, 2, 3) and t.minute in (15, 45),
    "0 2 13 * 0": lambda t: t.hour == 2 and t.minute == 0 and (t.day == 13 or t.weekday() == 6),
}
WILD: dict[str, Match] = {
    "30 * * * *": lambda t: t.minute == 30,
    "*/20 2 * * *": lambda t: t.hour == 2 and t.minute % 20 == 0,
    "5/25 0-3 * * 0": lambda t: t.hour < 4 and t.minute in (5, 30, 55) and t.weekday() == 6,
}


@cache
def changes(zone: ZoneInfo) -> tuple[datetime, ...]:
    """When the clock changes, to the hour."""
    hours = [BEGIN + n * DAY for n in range((END - BEGIN) // DAY + 1)]
    found = []
    for day in hours:
        if offset(zone, day) != offset(zone, day + DAY):
            found.append(
                next(
                    day + n * HOUR
                    for n in range(24)
                    if offset(zone, day + n * HOUR) != offset(zone, day + (n + 1) * HOUR)
                )
            )
    return tuple(found)


def offset(zone: ZoneInfo, moment: datetime) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()


def zones() -> dict[tuple[object, ...], list[str]]:
    """The zones with changes, by what their clocks do: many do the same."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        found = changes(zone)
        if found:
            rule = tuple((at, offset(zone, at), offset(zone, at + HOUR)) for at in found)
            alike.setdefault(rule, []).append(name)
    return alike


def local_minutes(zone: ZoneInfo, begin: datetime, end: datetime) -> list[datetime]:
    """The local time at each minute, without its zone."""
    return [
        (begin + n * MINUTE).astimezone(zone).replace(tzinfo=None)
        for n in range((end - begin) // MINUTE)
    ]


def expected(minutes: Sequence[datetime], match: Match, *, fixed: bool) -> list[int]:
    """The numbers of the minutes that count, by the rule of the documentation."""
    if not fixed:
        return [n for n, local in enumerate(minutes) if match(local)]
    seen: set[datetime] = set()
    found = []
    for n, local in enumerate(minutes):
        skipped = []
        if n and local - minutes[n - 1] > MINUTE:
            first = minutes[n - 1] + MINUTE
            skipped = [first + k * MINUTE for k in range((local - first) // MINUTE)]
        if any(match(each) for each in skipped) or (local not in seen and match(local)):
            found.append(n)
        seen.add(local)
    return found


def between(expression: str, zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The moments from ``begin`` to before ``end``."""
    after = Cron(expression).moments(zone, begin - timedelta(seconds=1))
    return takewhile(lambda moment: moment < end, after)


def test_moments_near_each_change_of_each_clock_are_those_of_the_rule() -> None:
    found = zones()
    # North and south, half an hour (Lord Howe), at midnight, with a Ramadan.
    assert len(found) > 20
    names = {name for alike in found.values() for name in alike}
    assert {"Europe/Berlin", "Australia/Lord_Howe", "Asia/Beirut", "Africa/Casablanca"} <= names
    for alike in found.values():
        zone = ZoneInfo(alike[0])
        for change in changes(zone):
            begin, end = change - 6 * HOUR, change + 6 * HOUR
            minutes = local_minutes(zone, begin, end)
            for fixed, expressions in ((True, FIXED), (False, WILD)):
                for expression, match in expressions.items():
                    wanted = [begin + n * MINUTE for n in expected(minutes, match, fixed=fixed)]
                    got = list(between(expression, zone, begin, end))
                    assert got == wanted, (alike[0], change, expression)


def test_fixed_time_is_once_on_each_day_of_two_years_in_each_zone() -> None:
    for alike in zones().values():
        zone = ZoneInfo(alike[0])
        begin = datetime(2026, 1, 1, tzinfo=zone).astimezone(UTC)
        end = datetime(2028, 1, 1, tzinfo=zone).astimezone(UTC)
        for expression in ("30 2 * * *", "0 0 * * *"):
            days = [each.astimezone(zone).date() for each in between(expression, zone, begin, end)]
            wanted = [date(2026, 1, 1) + n * DAY for n in range(730)]
            assert days == wanted, (alike[0], expression)


@pytest.mark.parametrize(
    ("zone", "expression", "after", "wanted"),
    [
        # Summer time begins: 02:00 becomes 03:00.
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00Z", "2026-03-29T01:00Z"),
        ("Europe/Berlin", "*/30 2 * * *", "2026-03-28T12:00Z", "2026-03-30T00:00Z"),
        # It ends: 03:00 becomes 02:00.
        ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:30Z", "2026-10-26T01:30Z"),
        ("Europe/Berlin", "30 * * * *", "2026-10-25T00:30Z", "2026-10-25T01:30Z"),
        # Half an hour: 02:00 becomes 02:30.
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00Z", "2026-10-03T15:30Z"),
        # At midnight: 00:00 becomes 01:00.
        ("Asia/Beirut", "30 0 * * *", "2026-03-28T12:00Z", "2026-03-28T22:00Z"),
        # A day that does not exist: after 29 December 2011 comes the 31st.
        ("Pacific/Apia", "0 9 30 12 *", "2011-12-29T12:00Z", "2011-12-30T10:00Z"),
        ("UTC", "0 0 29 2 *", "2026-01-01T00:00Z", "2028-02-29T00:00Z"),
        ("UTC", "0 0 29 2 *", "2096-03-01T00:00Z", "2104-02-29T00:00Z"),
        # Either day is enough, unless one of them is any.
        ("UTC", "0 0 13 * FRI", "2026-11-01T00:00Z", "2026-11-06T00:00Z"),
        ("UTC", "0 0 */2 * FRI", "2026-11-01T00:00Z", "2026-11-13T00:00Z"),
        ("UTC", "0 0 L * *", "2026-02-01T00:00Z", "2026-02-28T00:00Z"),
    ],
)
def test_next_moment(zone: str, expression: str, after: str, wanted: str) -> None:
    moments = Cron(expression).moments(ZoneInfo(zone), datetime.fromisoformat(after))
    assert next(moments) == datetime.fromisoformat(wanted)


@pytest.mark.parametrize(
    "expression",
    [
        *("0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 */31 * MON#5", "* * * *", "* * * * * *"),
        *("@daily", "", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8"),
        *("*/0 * * * *", "5-1 * * * *", "a * * * *", "1,,2 * * * *", "- * * * *", "* * * * L"),
        *("\u0661 * * * *", "* * * * *\x00", "1" * 300),
    ],
)
def test_impossible_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        Cron(expression)
    assert refused.value.errors.keys() == {"cron"}


def test_moments_end_with_the_calendar() -> None:
    late = datetime(9999, 10, 30, tzinfo=UTC)
    moments = list(Cron("0 0 * * *").moments(ZoneInfo("Europe/Berlin"), late))
    assert 0 < len(moments) < 62
    assert list(Cron("0 0 1 12 *").moments(ZoneInfo("UTC"), late)) == []


def test_moments_are_found_one_by_one_as_together() -> None:
    zone = ZoneInfo("America/New_York")
    cron = Cron("*/30 * * * *")
    after = datetime(2026, 10, 31, tzinfo=UTC)
    together = list(islice(cron.moments(zone, after), 120))
    for moment in together:
        after = next(cron.moments(zone, after))
        assert after == moment


@pytest.mark.parametrize(
    "name", ["Mars/Base", "../../etc/passwd", "/etc/localtime", "", "localtime"]
)
def test_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(ValidationFailed):
        check_zone(name)
