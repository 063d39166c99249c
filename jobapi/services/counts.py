"""Exact totals of jobs without counting them.

Triggers in the database record what each statement adds to a bucket: a workspace, status, type and
priority. A total is the sum over a few rows, and exact in every snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Select,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    union_all,
)

from ..rules.jobs import JobStatus
from ..store.columns import OneOf, Texts, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import job_count_changes, job_counts, jobs, workspaces
from ..store.transactions import BY_KEY, transactional
from . import throughput
from .job_filters import Filters
from .job_rows import Scope, in_workspace

FOLD_AT_ONCE = 10_000
"""How many changes one transaction compacts at most."""

KIND = ("workspace_id", "status", "job_type", "priority")
"""The columns that identify a bucket."""

_COUNTED = (*KIND, "n")


def _counted_columns(table: Any) -> list[Any]:
    return [table.c[name] for name in _COUNTED]


# A bucket's count is the sum of its rows in both tables: the counts, and the changes that are not
# compacted yet.
_CURRENT = union_all(
    select(*_counted_columns(job_counts)), select(*_counted_columns(job_count_changes))
).subquery("counted")


_ALL = Filters()


def kinds(session: Executor, scope: Scope, filters: Filters = _ALL) -> Sequence[AnyRow]:
    """The buckets with jobs in ``scope`` and the filtered status, type and priority.

    Each has ``n``, the number of its jobs.
    """
    statement = _kinds(
        scope.form,
        tuple(sorted(set(filters.status))),
        tuple(sorted(set(filters.priority))),
        bool(filters.job_type),
        filters.only_job_types is not None,
    )
    given = {"job_types": filters.job_type, "only_job_types": filters.only_job_types}
    return statement.all(session, {**scope.parameters, **given})


@cache
def _kinds(
    scope: Scope, status: tuple[int, ...], priority: tuple[int, ...], typed: bool, limited: bool
) -> Statement[AnyRow]:
    c = _CURRENT.c
    conditions: list[Any] = [scope(c)]
    for column, numbers in ((c.status, status), (c.priority, priority)):
        if numbers:
            conditions.append(column.in_([literal_column(str(int(each))) for each in numbers]))
    for name, is_given in (("job_types", typed), ("only_job_types", limited)):
        if is_given:
            conditions.append(OneOf(c.job_type, bindparam(name, type_=Texts)))
    return Statement(_grouped(*conditions))


def _grouped(*conditions: Any) -> Select[Any]:
    """The matching buckets that have jobs, each with ``n``, their number."""
    kind = [_CURRENT.c[name] for name in KIND]
    n: Any = cast(func.sum(_CURRENT.c.n), BigInteger)
    return select(*kind, n.label("n")).where(*conditions).group_by(*kind).having(n > 0)


def of_workspaces(
    session: Executor, ids: Sequence[int], only_job_types: Sequence[str] | None
) -> dict[int, dict[str, int]]:
    """How many pending, running and failed jobs these workspaces have, by the status's label."""
    statuses = (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.FAILED)

    c = _CURRENT.c
    types = [] if only_job_types is None else [c.job_type.in_(only_job_types)]
    query = _grouped(c.workspace_id.in_(ids), c.status.in_(statuses), *types)
    found = {id_: {status.label: 0 for status in statuses} for id_ in ids}
    for kind in session.execute(query):
        found[kind.workspace_id][JobStatus(kind.status).label] += kind.n
    return found


def totals(session: Executor) -> list[AnyRow]:
    """How many jobs each workspace has in each status: ``workspace_id``, ``status``, ``n``.

    A workspace without jobs has one row, whose status is None.
    """
    n: Any = cast(func.coalesce(func.sum(_CURRENT.c.n), 0), BigInteger)
    query = (
        select(workspaces.c.id.label("workspace_id"), _CURRENT.c.status, n.label("n"))
        .outerjoin_from(workspaces, _CURRENT, _CURRENT.c.workspace_id == workspaces.c.id)
        .where(workspaces.c.deleted_at.is_(None))
        .group_by(workspaces.c.id, _CURRENT.c.status)
        .order_by(workspaces.c.id)
    )
    return list(session.execute(query).all())


def busiest_types(session: Executor, *, per_workspace: int, most: int) -> tuple[list[AnyRow], int]:
    """The job types with the most pending and running jobs, in all workspaces.

    Each row has ``workspace_id``, ``job_type``, ``pending`` and ``running``. Types that have only
    ended jobs come last; each workspace gets its busiest type before any gets its second. The
    second value is how many types were left out.
    """
    workspace_id, job_type = _CURRENT.c.workspace_id, _CURRENT.c.job_type
    live = [
        cast(
            func.sum(case((_CURRENT.c.status == status, _CURRENT.c.n), else_=0)), BigInteger
        ).label(name)
        for status, name in ((JobStatus.PENDING, "pending"), (JobStatus.RUNNING, "running"))
    ]
    types = (
        select(workspace_id, job_type, *live)
        .join_from(_CURRENT, workspaces, workspaces.c.id == workspace_id)
        .where(workspaces.c.deleted_at.is_(None))
        .group_by(workspace_id, job_type)
        .having(func.sum(_CURRENT.c.n) > 0)
        .subquery()
    )
    busy = types.c.pending + types.c.running
    order = busy.desc(), types.c.job_type
    ranked = select(
        types,
        func.row_number().over(partition_by=types.c.workspace_id, order_by=order).label("place"),
        func.sum(1).over().label("of"),
    ).subquery()
    rows = session.execute(
        select(ranked)
        .where(ranked.c.place <= per_workspace)
        .order_by(ranked.c.place, ranked.c.workspace_id)
        .limit(most)
    ).all()
    return list(rows), rows[0].of - len(rows) if rows else 0


def pending(session: Executor, workspace_id: int, names: Sequence[str]) -> Counter[str]:
    """How many pending jobs these types have, by type."""

    filters = Filters(status=[JobStatus.PENDING], job_type=names)
    found: Counter[str] = Counter()
    for kind in kinds(session, in_workspace(workspace_id), filters):
        found[kind.job_type] += kind.n
    return found


def job_types(session: Executor, workspace_id: int) -> set[str]:
    """The job types of a workspace's jobs."""
    query = (
        select(_CURRENT.c.job_type)
        .where(_CURRENT.c.workspace_id == workspace_id)
        .group_by(_CURRENT.c.job_type)
        .having(func.sum(_CURRENT.c.n) > 0)
    )
    return set(session.execute(query).scalars())


@transactional(planner=BY_KEY)
def fold(session: Executor) -> int:
    """Compact the oldest changes into the counts and the throughput; returns how many.

    These are ``FOLD_AT_ONCE`` at most. One transaction moves them, so that a sum over both tables
    finds each change exactly once.
    """
    oldest = select(job_count_changes.c.id).order_by(job_count_changes.c.id).limit(FOLD_AT_ONCE)
    gone = session.execute(
        delete(job_count_changes)
        .where(job_count_changes.c.id.in_(oldest))
        .returning(
            *_counted_columns(job_count_changes),
            job_count_changes.c.at,
            job_count_changes.c.seconds,
        )
    ).all()
    sums: Counter[tuple[Any, ...]] = Counter()
    for *kind, n, _, _ in gone:
        sums[tuple(kind)] += n
    throughput.add(session, gone)
    # Always in the same order, so that concurrent compactions cannot deadlock.
    rows = [dict(zip(_COUNTED, (*kind, n), strict=True)) for kind, n in sorted(sums.items()) if n]
    if rows:
        session.execute(_add(dialect_name(session)), records(session, rows))
        session.execute(
            delete(job_counts).where(
                job_counts.c.workspace_id.in_({row["workspace_id"] for row in rows}),
                job_counts.c.n == 0,
            )
        )
    return len(gone)


@cache
def _add(dialect: str) -> Any:
    source = record_source(dialect, {name: job_counts.c[name].type for name in _COUNTED})
    added = insert_or_ignore(dialect, job_counts).from_select(
        list(_COUNTED),
        # Without the WHERE, SQLite would read the ON of ON CONFLICT as that of a join.
        select(*_counted_columns(source)).where(literal(1) == 1),
    )
    return added.on_conflict_do_update(
        index_elements=list(KIND), set_={"n": job_counts.c.n + added.excluded.n}
    )


def check(session: Executor, workspace_id: int) -> list[AnyRow]:
    """Count the jobs of a workspace and correct the buckets that are wrong; returns these.

    Each row is a bucket, with ``n``: by how much its count was too low. This is one statement, so
    writers need not be locked out.
    """
    kind = [jobs.c[name] for name in KIND]
    counted = select(*kind, func.count().label("n")).group_by(*kind)
    thought = [
        select(*(table.c[name] for name in KIND), (-table.c.n).label("n"))
        for table in (job_counts, job_count_changes)
    ]
    both = union_all(
        *(
            query.where(query.selected_columns.workspace_id == workspace_id)
            for query in (counted, *thought)
        )
    ).subquery()
    of = [both.c[name] for name in KIND]
    wrong = select(*of, func.sum(both.c.n).label("n")).group_by(*of).having(func.sum(both.c.n) != 0)
    return list(
        session.execute(
            insert(job_count_changes)
            .from_select(list(_COUNTED), wrong)
            .returning(*_counted_columns(job_count_changes))
        ).all()
    )
