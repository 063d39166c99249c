"""The presence of workers: which have claimed jobs within the last day, and which are live now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, String, bindparam, delete, func, literal_column, select, tuple_

from ..rules.jobs import JobStatus
from ..rules.workers import WorkerState
from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.for_each import ForEach
from ..store.moving import not_moving
from ..store.paging import slice_by_name
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import api_keys, jobs, users, workers

SEEN_EVERY = timedelta(seconds=10)
"""How often the presence of a worker is written at most."""

LIVE = timedelta(seconds=45)
"""How long a worker is live after its last claim: the longest wait of a claim, ``SEEN_EVERY``, and
some time for the network."""

KEPT = timedelta(days=1)
MAX_WORKERS = 10_000
"""How many workers of a workspace are kept at most, the last seen ones."""

MAX_RUNNING = 10_000
"""How many running jobs are read at most: of a workspace to count them by their workers, of a job
type to find its live workers."""

MAX_COUNTED = 100_000
"""How many recently seen workers are read at most to count live workers."""

FORGET_AT_ONCE = 1_000

Name = tuple[str, str]
"""The name of a worker, and the actor as which it claims."""

OfType = tuple[int, str]
"""A workspace and one of its job types."""


class Worker(NamedTuple):
    """A worker, identified by its name and the actor as which it claims."""

    name: str
    actor: str
    state: WorkerState
    job_types: Sequence[str] | None
    """The types that it claims; None: all."""
    running: int
    first_seen_at: datetime
    last_seen_at: datetime


class WorkerPage(NamedTuple):
    """A page of workers, by their names."""

    rows: Sequence[Worker]
    total: int
    next_cursor: str | None


def seen(
    session: Executor,
    workspace_id: int,
    name: str | None,
    actor: str,
    job_types: Sequence[str] | None,
) -> None:
    """Record that a worker claims jobs, unless that was recorded within ``SEEN_EVERY``.

    A worker without a name gets the name of its key or user.
    """
    now = session.execute(select(DbNow())).scalar_one()
    row = insert_or_ignore(dialect_name(session), workers).values(
        workspace_id=workspace_id,
        name=name or _names(session, [actor]).get(actor, actor),
        actor=actor,
        job_types=None if job_types is None else sorted(set(job_types)),
        first_seen_at=now,
        last_seen_at=now,
    )
    session.execute(
        row.on_conflict_do_update(
            index_elements=["workspace_id", "name", "actor"],
            set_={"job_types": row.excluded.job_types, "last_seen_at": now},
            where=workers.c.last_seen_at <= now - SEEN_EVERY,
        )
    )


def _names(session: Executor, actors: Iterable[str]) -> dict[str, str]:
    """The names of keys and users, as far as they still exist, by actor."""
    ids: dict[str, list[int]] = {"key": [], "user": []}
    for actor in actors:
        kind, _, number = actor.partition(":")
        ids[kind].append(int(number))
    found: dict[str, str] = {}
    for kind, column in (("key", api_keys.c.name), ("user", users.c.username)):
        if not ids[kind]:
            continue
        table = column.table
        rows = session.execute(select(table.c.id, column).where(table.c.id.in_(ids[kind])))
        # A worker's name has 200 characters at most, a user's may have more.
        found |= {f"{kind}:{id_}": name[:200] for id_, name in rows}
    return found


def page(
    session: Executor,
    workspace_id: int,
    *,
    state: WorkerState | None = None,
    only_job_types: Sequence[str] | None = None,
    limit: int,
    page: int | None = None,
    cursor: str | None = None,
) -> WorkerPage:
    """A page of the workers seen within a day, with ``state`` if given. Call it in a ``snapshot``.

    ``only_job_types`` limits it to workers that claim one of these types, or all types, and counts
    only their jobs of these types. Raises ``ValidationFailed`` for an invalid cursor.
    """
    now = session.execute(select(DbNow())).scalar_one()
    running, fresh = _running(session, workspace_id, now, only_job_types)

    def state_of(row: AnyRow) -> WorkerState:
        is_live = row.last_seen_at > now - LIVE or (row.name, row.actor) in fresh
        return WorkerState.LIVE if is_live else WorkerState.GONE

    rows = [
        row
        for row in _since(session, workspace_id, now - KEPT)
        if (only_job_types is None or _asks_for(row, only_job_types))
        and state in (None, state_of(row))
    ]
    shown = slice_by_name(rows, _name_and_actor, limit=limit, page=page, cursor=cursor)
    found = [
        Worker(
            name=row.name,
            actor=row.actor,
            state=state_of(row),
            job_types=row.job_types
            if only_job_types is None or row.job_types is None
            else [name for name in row.job_types if name in only_job_types],
            running=running[row.name, row.actor],
            first_seen_at=row.first_seen_at,
            last_seen_at=row.last_seen_at,
        )
        for row in shown.rows
    ]
    return WorkerPage(found, len(rows), shown.next_cursor)


def _since(session: Executor, workspace_id: int, since: datetime) -> Sequence[AnyRow]:
    recent = (
        select(workers)
        .where(workers.c.workspace_id == workspace_id, workers.c.last_seen_at > since)
        .order_by(workers.c.last_seen_at.desc())
        .limit(MAX_WORKERS)
    )
    # Sorted by Python, which also compares the cursors.
    return sorted(session.execute(recent).all(), key=_name_and_actor)


def _name_and_actor(row: AnyRow) -> Name:
    return row.name, row.actor


def _asks_for(row: AnyRow, job_types: Iterable[str]) -> bool:
    return row.job_types is None or not set(row.job_types).isdisjoint(job_types)


def _running(
    session: Executor, workspace_id: int, now: datetime, only_job_types: Sequence[str] | None
) -> tuple[Counter[Name], set[Name]]:
    """How many leased jobs each worker runs, and the workers that hold a fresh lease."""
    leased = select(jobs.c.worker, jobs.c.changed_by, jobs.c.lease_expires_at).where(
        jobs.c.workspace_id == workspace_id,
        jobs.c.status == JobStatus.RUNNING,
        jobs.c.lease_token.is_not(None),
    )
    if only_job_types is not None:
        leased = leased.where(jobs.c.job_type.in_(only_job_types))
    some = leased.limit(MAX_RUNNING).subquery()
    rows = session.execute(
        select(
            some.c.worker,
            # The actor that claimed it, because only the holder of the lease changes a running job.
            some.c.changed_by.label("actor"),
            func.count().label("n"),
            func.max(some.c.lease_expires_at).label("until"),
        ).group_by(some.c.worker, some.c.changed_by)
    ).all()
    names = _names(session, {row.actor for row in rows if row.worker is None and row.actor})
    running: Counter[Name] = Counter()
    fresh = set()
    for row in rows:
        name = (row.worker or names.get(row.actor, row.actor or ""), row.actor or "")
        running[name] += row.n
        if row.until > now:
            fresh.add(name)
    return running, fresh


def count_live(session: Executor, wanted: Collection[OfType]) -> dict[OfType, int]:
    """How many live workers claim each of these types of a workspace.

    These have claimed the type within ``LIVE``, or hold a lease of a job of the type.
    """
    now = session.execute(select(DbNow())).scalar_one()
    types: defaultdict[int, list[str]] = defaultdict(list)
    for workspace_id, job_type in wanted:
        types[workspace_id].append(job_type)
    dialect, given = dialect_name(session), records(session, [{"workspace_id": w} for w in types])
    live: dict[OfType, set[Name]] = {of: set() for of in wanted}
    for row in _seen(dialect).all(session, {**given, "since": now - LIVE}):
        asked = types[row.workspace_id]
        for name in asked if row.job_types is None else set(asked).intersection(row.job_types):
            live[row.workspace_id, name].add((row.name, row.actor))
    pairs = [{"workspace_id": workspace_id, "job_type": name} for workspace_id, name in live]
    holders = _HOLDERS.all(session, pairs, {"now": now})
    names = _names(session, {row.actor for row in holders if row.worker is None and row.actor})
    for row in holders:
        name = row.worker or names.get(row.actor, row.actor or "")
        live[row.workspace_id, row.job_type].add((name, row.actor or ""))
    return {of: len(found) for of, found in live.items()}


@cache
def _seen(dialect: str) -> Statement[AnyRow]:
    of = record_source(dialect, {"workspace_id": workers.c.workspace_id.type}).c
    c = workers.c
    return Statement(
        select(c.workspace_id, c.name, c.actor, c.job_types)
        .where(
            c.workspace_id == of.workspace_id,
            c.last_seen_at > bindparam("since", type_=c.last_seen_at.type),
        )
        .limit(MAX_COUNTED)
    )


def _holders_of_type(of: Any) -> Select[Any]:
    c = jobs.c
    leased = (
        select(c.workspace_id, c.job_type, c.worker, c.changed_by.label("actor"))
        .where(
            c.workspace_id == of.workspace_id,
            c.status == literal_column("1"),
            c.job_type == of.job_type,
            c.lease_expires_at > bindparam("now", type_=c.lease_expires_at.type),
        )
        .limit(MAX_RUNNING)
        # ``of`` belongs to the outermost query, which SQLAlchemy does not correlate by itself.
        .correlate_except(jobs)
        .subquery()
    )
    return select(leased).distinct()


_HOLDERS = ForEach(
    {"workspace_id": jobs.c.workspace_id.type, "job_type": String()}, _holders_of_type
)


def forget(session: Executor) -> bool:
    """Delete workers that were not seen for a day, and the oldest of a workspace with too many.

    Returns whether there may be more.
    """
    now = session.execute(select(DbNow())).scalar_one()
    place = func.row_number().over(
        partition_by=workers.c.workspace_id, order_by=workers.c.last_seen_at.desc()
    )
    key = (workers.c.workspace_id, workers.c.name, workers.c.actor)
    ranked = select(*key, workers.c.last_seen_at, place.label("place")).subquery()
    old = (
        select(ranked.c.workspace_id, ranked.c.name, ranked.c.actor)
        .where(
            (ranked.c.last_seen_at <= now - KEPT) | (ranked.c.place > MAX_WORKERS),
            not_moving(ranked.c.workspace_id),
        )
        .limit(FORGET_AT_ONCE)
    )
    rows = session.execute(old).all()
    if rows:
        session.execute(delete(workers).where(tuple_(*key).in_([tuple(row) for row in rows])))
    return len(rows) == FORGET_AT_ONCE
