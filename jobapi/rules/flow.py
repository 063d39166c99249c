"""Flow control: the settings of a job type, and which jobs a claim may start. Pure, no I/O.

``docs/flow-control.md`` describes the settings. A *slot* is a number from 1 to ``max_running``: a
job of a limited type holds one while it runs, and the database refuses a second job with the same
number. A job's key holds numbers up to ``max_running_per_key`` in the same way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from .jobs import Priority
from .leases import Backoff

NO_KEY = ""
"""In turns, all jobs of a type that have no ``concurrency_key`` together count as this key."""


@dataclass(frozen=True, kw_only=True)
class TypeSettings:
    """The settings of a job type; None: no limit, or the service's own default."""

    paused: bool = False
    paused_reason: str | None = None
    max_running: int | None = None
    max_running_per_key: int | None = None
    rate_starts: int | None = None
    """How many jobs may start in ``rate_seconds``."""
    rate_seconds: int | None = None
    max_pending: int | None = None
    start_within_seconds: int | None = None
    priority: Priority | None = None
    max_retries: int | None = None
    timeout_seconds: int | None = None
    retry_backoff_seconds: int | None = None
    retry_backoff_max_seconds: int | None = None
    keyed: bool = False
    """Whether the type has had jobs with a ``concurrency_key``. Not a setting."""

    @property
    def is_governed(self) -> bool:
        """Whether claims of the type need more than the next due jobs."""
        return self.paused or self.keyed or self.is_limited

    @property
    def is_limited(self) -> bool:
        """Whether a leased job takes a slot or a token that another worker could use."""
        return (
            self.max_running is not None
            or self.max_running_per_key is not None
            or self.rate_starts is not None
        )

    def backoff(self, default: Backoff) -> Backoff:
        """How long automatic retries of the type wait."""
        return Backoff(
            default.first_seconds
            if self.retry_backoff_seconds is None
            else self.retry_backoff_seconds,
            default.max_seconds
            if self.retry_backoff_max_seconds is None
            else self.retry_backoff_max_seconds,
        )


PLAIN = TypeSettings()
"""The settings of a type that has none."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The flow control of a workspace."""

    paused: bool = False
    paused_reason: str | None = None
    ageing_seconds: int | None = None
    """How many seconds of waiting make up for one level of priority; None: no time does."""
    types: Mapping[str, TypeSettings] = field(default_factory=dict)
    """The types that have settings, by name."""

    def of(self, job_type: str) -> TypeSettings:
        """The settings of a type."""
        return self.types.get(job_type, PLAIN)

    @cached_property
    def governed(self) -> frozenset[str]:
        """The types whose claims need more than the next due jobs."""
        return frozenset(name for name, of in self.types.items() if of.is_governed)

    def governs(self, job_types: Collection[str] | None) -> bool:
        """Whether a claim of these types, or of all, needs more than the next due jobs."""
        if job_types is None:
            return bool(self.governed)
        return not self.governed.isdisjoint(job_types)


UNGOVERNED = Flow()
"""The flow control of a workspace that has never set any."""


class Bucket(NamedTuple):
    """A token bucket: each start takes a token, and ``starts`` tokens are added in ``seconds``.

    It holds at most ``starts`` tokens.
    """

    starts: int
    seconds: int
    tokens: float
    """How many there were at ``at``."""
    at: datetime

    def left(self, now: datetime) -> float:
        """How many tokens there are now; a clock that went back adds none."""
        passed = max(0.0, (now - self.at).total_seconds())
        return min(float(self.starts), self.tokens + passed * self.starts / self.seconds)

    def take(self, n: int, now: datetime) -> Bucket:
        """The bucket after ``n`` starts; it must have had that many tokens."""
        return self._replace(tokens=max(0.0, self.left(now) - n), at=max(self.at, now))

    def next_at(self, now: datetime) -> datetime:
        """When the next job may start: as soon as there is a whole token."""
        missing = 1 - self.left(now)
        if missing <= 0:
            return now
        return now + timedelta(
            seconds=math.ceil(missing * self.seconds / self.starts * 1000) / 1000
        )


def free_numbers(most: int, running: Sequence[int | None]) -> list[int]:
    """The numbers from 1 to ``most`` with which more jobs may start.

    ``running`` has the number of each running job: None if it started before there was a limit, and
    numbers above ``most`` from before the limit was lowered. These count, too. For example, with a
    limit of 5, a running job without a number and one with number 4, the free numbers are 1, 2 and
    3. Concurrent claims may see different states. Together they still stay within the limit,
    because a number can be used only once.
    """
    used = set(running)
    free = (number for number in range(1, most + 1) if number not in used)
    return [number for number, _ in zip(free, range(most - len(running)), strict=False)]


class Candidate(NamedTuple):
    """A due job that a claim may start."""

    id: int
    version: int
    job_type: str
    priority: int
    key: str
    """Its ``concurrency_key``, or ``NO_KEY``."""
    place: int
    """The place of its key in the turns of its type and priority."""
    due_at: datetime
    suspect: bool
    bytes: int
    """An upper bound of the size of its JSON."""


class Start(NamedTuple):
    """A job that a claim starts, and the numbers that it holds while it runs."""

    job: Candidate
    slot: int | None
    key_slot: int | None


Lane = tuple[str, int]
"""A job type and a priority, within which keys take turns."""

KeyOf = tuple[str, str]
"""A job type and a key."""


@dataclass
class Room:
    """How many jobs a claim may start, and with which numbers."""

    limit: int
    max_bytes: int
    slots: dict[str, list[int]] = field(default_factory=dict)
    """Free slots of the types that have a limit."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of the types that have a rate limit."""
    key_slots: dict[KeyOf, list[int]] = field(default_factory=dict)
    """Free numbers of keys that have a limit."""
    limited: Collection[str] = ()
    """The types that have limits."""
    most_limited: int = 0
    """Once the claim has this many jobs, it starts no more of these types: they would only be
    prefetched, and another worker may begin them sooner."""

    def take(self, job: Candidate) -> Start | None:
        """Start a job if there is room for it."""
        slots, key_slots = self.slots.get(job.job_type), None
        if job.key != NO_KEY:
            key_slots = self.key_slots.get((job.job_type, job.key))
        if slots == [] or key_slots == [] or self.tokens.get(job.job_type) == 0:
            return None
        if job.job_type in self.tokens:
            self.tokens[job.job_type] -= 1
        return Start(job, slots.pop(0) if slots else None, key_slots.pop(0) if key_slots else None)


def choose(
    candidates: Iterable[Candidate], room: Room, *, ageing_seconds: int | None
) -> list[Start]:
    """The jobs that a claim starts, in their order.

    Within a type and priority, keys take turns: the first jobs of all keys come first, in the order
    of the keys' places, then their second ones. Types are merged by due time. So that turns do not
    lose to due times, the n-th job of a type and priority counts as due when the n-th oldest of
    them is. For example, the key a has jobs due at 1 and 2, the key b has one due at 3: they start
    in the order a, b, a, and compete with other types as if they were due at 1, 2 and 3.

    A suspect job is started alone. The jobs fit into ``room.max_bytes`` together, unless the first
    one alone is larger.
    """
    in_order = sorted(
        _in_turns(candidates), key=lambda of: urgency(of[1].priority, of[0], ageing_seconds)
    )
    starts: list[Start] = []
    size = 0
    for _, job in in_order:
        if len(starts) >= room.limit or (starts and size + job.bytes > room.max_bytes):
            break
        if starts and job.suspect:
            continue
        if len(starts) >= room.most_limited and job.job_type in room.limited:
            continue
        start = room.take(job)
        if start is None:
            continue
        starts.append(start)
        size += job.bytes
        if job.suspect:
            break
    return starts


def _in_turns(candidates: Iterable[Candidate]) -> Iterable[tuple[datetime, Candidate]]:
    """The candidates in turns, each with the due time by which it competes with other types."""
    lanes: defaultdict[Lane, list[Candidate]] = defaultdict(list)
    for job in candidates:
        lanes[job.job_type, job.priority].append(job)
    for lane in lanes.values():
        rounds: defaultdict[str, int] = defaultdict(int)
        turns = []
        lane.sort(key=lambda job: (job.due_at, job.id))
        for job in lane:
            turns.append((rounds[job.key], job.place, job))
            rounds[job.key] += 1
        turns.sort(key=lambda turn: turn[:2])
        for oldest, (_, _, job) in zip(lane, turns, strict=True):
            yield oldest.due_at, job


def urgency(
    priority: int, due_at: datetime, ageing_seconds: int | None
) -> tuple[float, datetime | int]:
    """A sort key for the order of claims, the first job first. The caller breaks ties."""
    if ageing_seconds is None:
        return -priority, due_at
    return due_at.timestamp() - priority * ageing_seconds, -priority


def turns_after(starts: Iterable[Start]) -> dict[Lane, str]:
    """The key that was served last in each type and priority."""
    last: dict[Lane, str] = {}
    for start in starts:
        last[start.job.job_type, start.job.priority] = start.job.key
    return last
