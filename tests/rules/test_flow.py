"""Which jobs a claim starts: slots, tokens, turns of keys, and the order among types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobapi.rules.flow import (
    NO_KEY,
    Bucket,
    Candidate,
    Room,
    TypeSettings,
    choose,
    free_numbers,
    turns_after,
)
from jobapi.rules.jobs import Priority
from jobapi.rules.leases import Backoff

NOW = datetime(2024, 1, 15, 10, tzinfo=UTC)


def job(id_: int, key: str = NO_KEY, *, due: int | None = None, **more: Any) -> Candidate:
    values: dict[str, Any] = {
        "job_type": "t",
        "priority": Priority.NORMAL,
        "place": ord(key) if key else 0,
        "suspect": False,
        "bytes": 10,
        **more,
    }
    moment = NOW + timedelta(seconds=id_ if due is None else due)
    return Candidate(id=id_, version=1, key=key, due_at=moment, **values)


def chosen(candidates: list[Candidate], limit: int = 100, **room: Any) -> list[int]:
    ageing = room.pop("ageing_seconds", None)
    given = Room(limit, room.pop("max_bytes", 1000), most_limited=limit, **room)
    return [start.job.id for start in choose(candidates, given, ageing_seconds=ageing)]


@pytest.mark.parametrize(
    ("most", "running", "free"),
    [
        (3, [], [1, 2, 3]),
        (3, [2], [1, 3]),
        (3, [1, 2, 3], []),
        # Jobs from before there was a limit, or from before it was lowered, count.
        (5, [None, 4], [1, 2, 3]),
        (3, [5, 7], [1]),
        (2, [None, None, None], []),
        (5, [5, None], [1, 2, 3]),
    ],
)
def test_free_numbers_leave_room_for_what_runs(
    most: int, running: list[int | None], free: list[int]
) -> None:
    assert free_numbers(most, running) == free


def test_numbers_that_are_free_in_different_states_stay_within_the_limit() -> None:
    # One claim has read the state before a job without a number ended, another one after it.
    before, after = free_numbers(5, [None, None]), free_numbers(5, [None])
    assert len(set(before) | set(after)) + 1 == 5


def test_keys_take_turns() -> None:
    flood = [job(n, "a") for n in range(5)]
    assert chosen([*flood, job(8, "b"), job(9, "c")]) == [0, 8, 9, 1, 2, 3, 4]


def test_keys_are_served_from_the_given_place_on() -> None:
    found = [job(1, "a", place=1), job(2, "b", place=0)]
    starts = choose(found, Room(1, 1000, most_limited=1), ageing_seconds=None)
    assert [start.job.key for start in starts] == ["b"]
    assert turns_after(starts) == {("t", Priority.NORMAL): "b"}


def test_turns_of_one_type_do_not_lose_to_due_times_of_another() -> None:
    flood = [job(n, "a", due=n) for n in range(4)]
    others = [job(20 + n, job_type="u", due=n) for n in range(4)]
    found = chosen([*flood, job(10, "b", due=50), *others], limit=4)
    assert 10 in found
    assert len([n for n in found if n >= 20]) == 2


def test_priority_comes_first() -> None:
    assert chosen([job(1), job(2, priority=Priority.URGENT), job(3, priority=Priority.LOW)]) == [
        *(2, 1, 3)
    ]


def test_ageing_lets_a_low_job_come_first_that_has_waited_long_enough() -> None:
    low = job(1, due=-100, priority=Priority.LOW)
    high = job(2, due=0, priority=Priority.HIGH)
    assert chosen([low, high], ageing_seconds=51) == [2, 1]
    assert chosen([low, high], ageing_seconds=49) == [1, 2]


def test_slots_tokens_and_keys_limit_what_starts() -> None:
    jobs = [job(n, "a") for n in range(4)]
    assert chosen(jobs, slots={"t": [3, 4]}) == [0, 1]
    assert chosen(jobs, tokens={"t": 1}) == [0]
    assert chosen([*jobs, job(9, "b")], key_slots={("t", "a"): [2]}) == [0, 9]
    room = Room(5, 1000, slots={"t": [3, 4]}, key_slots={("t", "a"): [7]}, most_limited=5)
    (start,) = choose(jobs, room, ageing_seconds=None)
    assert (start.slot, start.key_slot) == (3, 7)


def test_suspect_job_starts_alone() -> None:
    assert chosen([job(1, suspect=True), job(2)]) == [1]
    assert chosen([job(1), job(2, suspect=True), job(3)]) == [1, 3]


def test_jobs_fit_into_a_response_except_the_first_one() -> None:
    assert chosen([job(1, bytes=2000), job(2)]) == [1]
    assert chosen([job(1, bytes=600), job(2, bytes=600)]) == [1]


def test_what_cannot_begin_yet_is_of_no_type_with_a_limit() -> None:
    jobs = [job(1), job(2), job(3, job_type="free")]
    room = Room(3, 1000, limited={"t"}, most_limited=1)
    assert [start.job.id for start in choose(jobs, room, ageing_seconds=None)] == [1, 3]


def test_bucket_fills_with_time_and_no_further() -> None:
    bucket = Bucket(10, 5, 0.0, NOW)
    assert bucket.left(NOW + timedelta(seconds=1)) == 2
    assert bucket.left(NOW + timedelta(hours=1)) == 10
    # A clock that went back adds nothing, and takes nothing.
    assert bucket.left(NOW - timedelta(hours=1)) == 0
    after = bucket.take(1, NOW + timedelta(seconds=1))
    assert after.tokens == 1
    assert Bucket(10, 5, 0.5, NOW).next_at(NOW) == NOW + timedelta(seconds=0.25)
    assert Bucket(10, 5, 3.0, NOW).next_at(NOW) == NOW


def test_backoff_of_a_type_wins_over_that_of_the_service() -> None:
    default = Backoff(1, 60)
    assert TypeSettings().backoff(default) == default
    assert TypeSettings(retry_backoff_seconds=5).backoff(default) == Backoff(5, 60)
    assert TypeSettings(retry_backoff_max_seconds=9).backoff(default) == Backoff(1, 9)
