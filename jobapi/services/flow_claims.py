"""Claims of job types with flow control: limits, keys that take turns, rates.

A claim that wants only types without such settings is one statement (``queue.claim``). All others
come here. In one transaction a claim

1. reads the turns and tokens of the types, and locks those with a rate limit
   (``flow_turns.stand``);
2. finds free slots, and the keys whose turn it is (``flow_turns.walk``: from the key that was
   served last, one index lookup per step, so the cost does not grow with the number of keys or
   jobs);
3. locks the slots and keys with a limit that it may use (``flow_slots.lock``);
4. reads the first jobs of each key (``_Heads``), now that no other claim can start jobs of a locked
   key;
5. chooses among these (``rules.flow.choose``) and starts them, each with its slot (``_start``);
6. records which keys had a turn, and takes the tokens (``flow_turns.note``).

No step waits for a lock: slots, keys and jobs that another claim has locked are skipped. If nothing
else was found, the claim tries again a moment later, up to ``TRIES`` times.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    update,
)

from ..rules.flow import NO_KEY, Candidate, Flow, KeyOf, Lane, Room, Start, choose, urgency
from ..rules.jobs import Job, Priority
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.for_each import ForEach
from ..store.paging import MAX_BYTES
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import jobs
from .flow_slots import PENDING, WORKSPACE, free_key_slots, free_slots, lock
from .flow_turns import NOW, Standing, first_keys, note, ripen, stand, walk
from .job_rows import COLUMNS, answer_bytes
from .leasing import leased_columns

TRIES = 3
"""How often a claim is tried while all that it finds is locked by others."""

TRY_AGAIN_SECONDS = 0.003

HEADS = 300
"""How many jobs of a type and priority a claim reads at most, shared among the keys. It reads at
least one job of each key."""

SPARE_SLOTS = 100
"""How many free slots more than wanted a claim offers to lock: others may hold some of them."""

HEADS_AT_ONCE = 1_000
LEAST_HEADS = 10
"""How many jobs one query of a claim reads at most. Each key, and each type and priority, may still
have ``LEAST_HEADS`` of them."""


def is_alive(moment: Any) -> ColumnElement[bool]:
    """The condition that a pending job has not expired."""
    return or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > moment, jobs.c.has_begun)


class Wanted(NamedTuple):
    """What a claim asks for."""

    workspace_id: int
    job_types: Sequence[str] | None
    limit: int
    now: datetime
    prefetch: int = 0
    """How many of ``limit`` are prefetched, and so must not be of types with limits."""


class Found(NamedTuple):
    """The jobs that a claim may start, and what it needs to record afterwards."""

    starts: Sequence[Start]
    now: datetime
    """The time after the locks were taken, at which the jobs start."""
    standing: Standing
    busy: bool
    """Whether others had locked something that might have been used."""


def claim(
    session: Executor, flow: Flow, wanted: Wanted, *, begin: bool, given: Mapping[str, Any]
) -> Sequence[Job]:
    """Start the jobs that come first; ``given`` are the parameters of ``leased_columns``."""
    for tries_left in reversed(range(TRIES)):
        found = _find(session, flow, wanted)
        if found.starts:
            seconds = timedelta(seconds=given["given_lease_seconds"])
            moments = {"now": found.now, "given_lease_expires_at": found.now + seconds}
            started = _start(session, found, begin=begin, given={**given, **moments})
            if started:
                return started
        elif not found.busy:
            break
        if tries_left:
            time.sleep(TRY_AGAIN_SECONDS)
    return ()


def _find(session: Executor, flow: Flow, wanted: Wanted) -> Found:
    """Steps 1 to 5 of this module, up to the choice. Each step narrows ``names``, the types."""
    ws, limit, now = wanted.workspace_id, wanted.limit, wanted.now
    names = _names(session, flow, wanted)
    keyed = [name for name in names if flow.of(name).keyed]
    rated = [name for name in names if flow.of(name).rate_starts is not None]
    standing = stand(session, ws, keyed, rated, now)
    keyed = [name for name in keyed if name in standing.rows]
    busy = len(standing.buckets) < len(rated)
    room = Room(
        limit,
        MAX_BYTES,
        most_limited=limit - wanted.prefetch,
        limited={name for name in names if flow.of(name).is_limited},
    )
    room.tokens = {name: int(bucket.left(now)) for name, bucket in standing.buckets.items()}
    names = [name for name in names if name not in rated or room.tokens.get(name)]
    slots = free_slots(session, ws, {n: flow.of(n).max_running for n in names}, limit)
    names = [name for name in names if slots.get(name) != []]
    lanes: dict[Lane, list[str]] = {}
    keyed = [name for name in keyed if name in names]
    if keyed:
        if any(standing.rows[name].has_unripe for name in keyed):
            ripen(session, ws, keyed, now)
        lanes = walk(session, flow, ws, standing.rows, keyed, limit=limit, now=now)
    limited = first_keys(flow, lanes, limit)
    offered = {name: numbers[: limit + SPARE_SLOTS] for name, numbers in slots.items()}
    mine, missed = lock(session, ws, offered, limited, limit)
    busy = busy or missed
    room.slots = {name: mine.slots[name] for name in slots}
    room.key_slots = free_key_slots(session, flow, ws, mine.keys)
    names = [name for name in names if room.slots.get(name) != []]
    heads = _Heads(session, flow, wanted, room)
    candidates = [*heads.without_key(names, lanes), *heads.of_keys(lanes)]
    starts = choose(candidates, room, ageing_seconds=flow.ageing_seconds)
    if starts:
        # Read the time after the locks were taken, or jobs that share a slot would seem to overlap.
        now = session.execute(select(DbNow())).scalar_one()
    return Found(starts, now, standing, busy)


def _names(session: Executor, flow: Flow, wanted: Wanted) -> list[str]:
    """The wanted types that are not paused."""
    names: Iterable[str] = wanted.job_types or ()
    if wanted.job_types is None:
        given = {"given_workspace_id": wanted.workspace_id}
        listed = _pending_types().all(session, given)
        names = {row.job_type for row in listed} | {n for n, of in flow.types.items() if of.keyed}
    return sorted(name for name in set(names) if not flow.of(name).paused)


@cache
def _pending_types() -> Statement[AnyRow]:
    """The types that have pending jobs without a key: one index lookup for each."""
    first = (
        select(jobs.c.job_type)
        .where(jobs.c.workspace_id == WORKSPACE, PENDING, jobs.c.concurrency_key.is_(None))
        .order_by(jobs.c.job_type)
        .limit(1)
    )
    found = select(first.scalar_subquery().label("job_type")).cte("found", recursive=True)
    after = first.where(jobs.c.job_type > found.c.job_type).correlate(found).scalar_subquery()
    found = found.union_all(select(after).where(found.c.job_type.is_not(None)))
    return Statement(select(found.c.job_type).where(found.c.job_type.is_not(None)), keep=True)


class _Heads:
    """Reads the first due jobs of types and keys, and locks them.

    A key whose jobs run one at a time (a *serial* key) must start its first job, even if another
    transaction is changing that one. SKIP LOCKED would return the second job instead, so the first
    jobs of serial keys are read without a lock, and locked when they are started (``_start``).
    """

    def __init__(self, session: Executor, flow: Flow, wanted: Wanted, room: Room) -> None:
        self._session = session
        self._flow = flow
        self._room = room
        self._limit = wanted.limit
        self._given = {"given_workspace_id": wanted.workspace_id, "now": wanted.now}

    def without_key(self, names: Iterable[str], lanes: Mapping[Lane, Sequence[str]]) -> Any:
        """The first jobs without a key. ``lanes`` are the turns of types that also have keys."""
        keyed = {name for name, _ in lanes}
        rows = []
        for name in names:
            for priority in Priority:
                keys = lanes.get((name, priority), ())
                if name in keyed and NO_KEY not in keys:
                    continue
                place = keys.index(NO_KEY) if keys else 0
                rows.append(self._row(name, priority, NO_KEY, place, len(keys) or 1))
        return self._read(_WITHOUT_KEY, rows)

    def of_keys(self, lanes: Mapping[Lane, Sequence[str]]) -> list[Candidate]:
        """The first jobs of the keys whose turn it is."""
        shared, serial = [], {}
        for (name, priority), keys in lanes.items():
            limit = self._flow.of(name).max_running_per_key
            for place, key in enumerate(keys):
                if key == NO_KEY or (
                    limit is not None and not self._room.key_slots.get((name, key))
                ):
                    continue
                if limit != 1:
                    shared.append(self._row(name, priority, key, place, len(keys)))
                    continue
                # Its first job may have another priority than the one at which it was found.
                for each in Priority:
                    there = key in lanes.get((name, each), ())
                    row = self._row(
                        name, each, key, lanes[name, each].index(key) if there else place, HEADS
                    )
                    serial[name, key, each] = row
        found = self._read(_OF_KEY, shared)
        first: dict[KeyOf, Candidate] = {}
        for job in self._read(_OF_SERIAL_KEY, list(serial.values())):
            before = first.get((job.job_type, job.key))
            if before is None or self._comes_before(job, before):
                first[job.job_type, job.key] = job
        return [*found, *first.values()]

    def _comes_before(self, job: Candidate, other: Candidate) -> bool:
        first, second = (
            (urgency(each.priority, each.due_at, self._flow.ageing_seconds), each.id)
            for each in (job, other)
        )
        return first < second

    def _row(self, name: str, priority: int, key: str, place: int, keys: int) -> dict[str, Any]:
        most = min(self._limit, 1 + HEADS // keys)
        return {
            "job_type": name,
            "priority": int(priority),
            "key": key,
            "place": place,
            "most": most,
        }

    def _read(self, heads: ForEach, rows: list[dict[str, Any]]) -> list[Candidate]:
        most = max(LEAST_HEADS, HEADS_AT_ONCE // max(1, len(rows)))
        bounded = [{**row, "most": min(row["most"], most)} for row in rows]
        return [Candidate(*row) for row in heads.all(self._session, bounded, self._given)]


_HEAD = {
    "job_type": String(),
    "priority": Integer(),
    "key": String(),
    "place": Integer(),
    "most": Integer(),
}


def _has_key(of: Any) -> ColumnElement[bool]:
    return and_(jobs.c.ripe, jobs.c.concurrency_key == of.key)


def _head(of: Any, which: ColumnElement[bool], *, locked: bool) -> Select[Any]:
    """The first due jobs of the type and priority in the row ``of`` that meet ``which``."""
    c = jobs.c
    query = (
        select(
            *(c.id, c.version, c.job_type, c.priority),
            func.coalesce(c.concurrency_key, NO_KEY).label("key"),
            of.place.label("place"),
            *(c.due_at, c.suspect),
            answer_bytes().label("bytes"),
        )
        .where(
            c.workspace_id == WORKSPACE,
            PENDING,
            which,
            c.job_type == of.job_type,
            c.priority == of.priority,
            c.due_at <= NOW,
            is_alive(NOW),
        )
        .order_by(c.due_at, c.id)
        .limit(of.most if locked else 1)
    )
    return query.with_for_update(of=jobs, skip_locked=True) if locked else query


_WITHOUT_KEY = ForEach(_HEAD, lambda of: _head(of, jobs.c.concurrency_key.is_(None), locked=True))
_OF_KEY = ForEach(_HEAD, lambda of: _head(of, _has_key(of), locked=True))
_OF_SERIAL_KEY = ForEach(_HEAD, lambda of: _head(of, _has_key(of), locked=False))


def _start(
    session: Executor, found: Found, *, begin: bool, given: Mapping[str, Any]
) -> Sequence[Job]:
    """Start the jobs that were found, except those that another transaction is changing."""
    rows = [
        {
            "id": each.job.id,
            "version": each.job.version,
            "job_type": each.job.job_type,
            "slot": each.slot,
            "key_slot": each.key_slot,
        }
        for each in found.starts
    ]
    statement = _starting(dialect_name(session), begin=begin)
    started = statement.all(session, {**given, **records(session, rows)})
    if started:
        ids = {job.id for job in started}
        starts = [each for each in found.starts if each.job.id in ids]
        note(session, given["given_workspace_id"], found.standing, starts, found.now)
    return started


@cache
def _starting(dialect: str, *, begin: bool) -> Statement[Job]:
    """The UPDATE that starts chosen jobs, each with its slots.

    On Postgres it leaves out jobs that are locked, and slots that have been taken since. On SQLite
    the transaction has the write lock, so neither can happen.
    """
    names = ("id", "version", "job_type", "slot", "key_slot")
    source = record_source(dialect, {name: jobs.c[name].type for name in names})
    row = source.c
    if dialect == "sqlite":
        chosen, workspace = row, WORKSPACE
    else:
        at = jobs.alias("at")
        other = jobs.alias("other")
        lockable = (
            select(at.c.id)
            .where(
                at.c.workspace_id == WORKSPACE,
                at.c.id == row.id,
                at.c.version == row.version,
                at.c.status == literal_column("0"),
            )
            .with_for_update(of=at, skip_locked=True)
            .lateral("lockable")
        )
        # The slot was free before it was locked. It may have been taken since. OFFSET keeps
        # Postgres from making a join of this, which would read all running jobs first.
        holder = (
            select(other.c.id)
            .where(
                other.c.workspace_id == WORKSPACE,
                other.c.job_type == row.job_type,
                other.c.status == literal_column("1"),
                other.c.slot == row.slot,
            )
            .offset(0)
        )
        is_taken = holder.correlate(source).exists()
        picked = (
            # The workspace as a column: see ``is_picked``.
            select(*row, WORKSPACE.label("workspace_id"))
            .select_from(source.join(lockable, true()))
            .where(or_(row.slot.is_(None), not_(is_taken)))
            .offset(0)
            .subquery("picked")
        )
        chosen, workspace = picked.c, picked.c.workspace_id
    claim = (
        update(jobs)
        .where(
            jobs.c.workspace_id == workspace,
            jobs.c.id == chosen.id,
            jobs.c.version == chosen.version,
        )
        .values(**leased_columns(begin=begin), slot=chosen.slot, key_slot=chosen.key_slot)
        .returning(*COLUMNS)
    )
    return Statement(claim, keep=True)
