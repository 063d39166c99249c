"""The failed jobs of a workspace by their causes: see ``rules.causes``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Select, func, literal, select, true

from ..rules.causes import cause
from ..rules.jobs import JobStatus
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.tables import jobs
from ..store.transactions import IN_ORDER, plan_without
from . import counts
from .job_filters import HAS_FAILED

MAX_COUNTED = 10_000
"""Up to how many jobs of a group are counted."""

MAX_GROUPS = 200
"""Among how many groups those with the most jobs are chosen."""

SAMPLES = 3
"""How many jobs of a group are named."""

_GROUP = ("job_type", "error_group")


@dataclass(frozen=True)
class ErrorGroup:
    """Jobs of one type that have failed with the same cause."""

    job_type: str
    error_group: str
    cause: str
    """The cause of the job that failed last."""
    count: int
    """Up to ``MAX_COUNTED``."""
    count_is_capped: bool
    first_failed_at: datetime
    last_failed_at: datetime
    job_ids: list[str]
    """The jobs that failed last, up to ``SAMPLES``."""


class ErrorGroups(NamedTuple):
    """The groups with the most jobs, and whether there may be others."""

    groups: list[ErrorGroup]
    is_capped: bool


def groups(
    session: Executor,
    workspace_id: int,
    *,
    job_types: Sequence[str] = (),
    only_job_types: Sequence[str] | None = None,
    limit: int = 50,
    most_groups: int = MAX_GROUPS,
    most_jobs: int = MAX_COUNTED,
) -> ErrorGroups:
    """The ``limit`` groups with the most jobs, the largest first; ``job_types`` () means all.

    The cost depends on the number of groups, not of jobs: of each group up to ``most_jobs``
    entries of an index are read, and of no more than ``most_groups`` groups. (SQLite reads the
    entries of all failed jobs.) Call it in a ``snapshot``.
    """
    types = _failed_types(session, workspace_id, job_types, only_job_types)
    if not types:
        return ErrorGroups([], False)
    plan_without(session, IN_ORDER)
    counted = _counted(session, workspace_id, types, most_groups, most_jobs)
    largest = sorted(counted[:most_groups], key=lambda row: (-row.n, row.job_type, row.error_group))
    largest = largest[:limit]
    found = _samples(session, workspace_id, largest)
    shown = []
    for row in largest:
        newest = found.get((row.job_type, row.error_group))
        if newest:
            n = min(row.n, most_jobs)
            shown.append(
                ErrorGroup(
                    row.job_type,
                    row.error_group,
                    cause(newest[0].error or ""),
                    n,
                    row.n > n,
                    newest[0].first_at,
                    newest[0].completed_at,
                    [each.job_id for each in newest],
                )
            )
    return ErrorGroups(shown, len(counted) > min(limit, most_groups))


def _failed_types(
    session: Executor,
    workspace_id: int,
    job_types: Sequence[str],
    only_job_types: Sequence[str] | None,
) -> list[str]:
    def failed(c: Any) -> list[Any]:
        wanted = [types for types in (job_types or None, only_job_types) if types is not None]
        of_type = [c.job_type.in_(types) for types in wanted]
        return [c.workspace_id == workspace_id, c.status == JobStatus.FAILED, *of_type]

    return sorted({kind.job_type for kind in counts.kinds(session, failed)})


def _counted(
    session: Executor, workspace_id: int, types: Sequence[str], most_groups: int, most_jobs: int
) -> Sequence[AnyRow]:
    """The groups of these types, each with ``n``, one more than ``most_groups`` at most."""
    c = jobs.c
    mine = (HAS_FAILED, c.workspace_id == workspace_id, c.error_group.is_not(None))
    if dialect_name(session) == "sqlite":
        query = (
            select(c.job_type, c.error_group, func.count().label("n"))
            .where(*mine, c.job_type.in_(types))
            .group_by(c.job_type, c.error_group)
            .limit(most_groups + 1)
        )
        return session.execute(query).all()
    # From one group to the next by the index, without reading the entries in between.
    given = record_source("postgresql", {"job_type": c.job_type.type})

    def first(*conditions: Any) -> Any:
        of_type = select(c.error_group).where(*mine, *conditions)
        return of_type.order_by(c.error_group).limit(1).lateral()

    head = first(c.job_type == given.c.job_type)
    group = (
        select(given.c.job_type, head.c.error_group)
        .select_from(given.join(head, true()))
        .cte("error_groups", recursive=True)
    )
    following = first(c.job_type == group.c.job_type, c.error_group > group.c.error_group)
    group = group.union_all(
        select(group.c.job_type, following.c.error_group).select_from(group.join(following, true()))
    )
    some = select(group).limit(most_groups + 1).subquery()
    same = [c[name] == some.c[name] for name in _GROUP]
    entries = select(literal(1)).where(*mine, *same).limit(most_jobs + 1).correlate(some)
    n = select(func.count()).select_from(entries.subquery()).scalar_subquery()
    query = select(some.c.job_type, some.c.error_group, n.label("n"))
    rows = [{"job_type": job_type} for job_type in types]
    return session.execute(query, records(session, rows)).all()


def _samples(
    session: Executor, workspace_id: int, largest: Sequence[AnyRow]
) -> Mapping[tuple[str, str], list[AnyRow]]:
    """The jobs of each group that failed last, the newest first, with ``first_at`` of the group."""
    c = jobs.c
    mine = (HAS_FAILED, c.workspace_id == workspace_id)
    columns = (c.job_type, c.error_group, c.job_id, c.error, c.completed_at)

    def last(same: Sequence[Any]) -> Select[Any]:
        of_group = select(c.completed_at).where(*mine, *same)
        first = of_group.order_by(c.completed_at, c.id).limit(1).scalar_subquery()
        query = select(*columns, first.label("first_at")).where(*mine, *same)
        return query.order_by(c.completed_at.desc(), c.id.desc()).limit(SAMPLES)

    rows: list[AnyRow] = []
    if dialect_name(session) == "sqlite":
        for each in largest:
            rows += session.execute(last([c[name] == getattr(each, name) for name in _GROUP])).all()
    else:
        given = record_source("postgresql", {name: c[name].type for name in _GROUP})
        newest = last([c[name] == given.c[name] for name in _GROUP]).lateral()
        query = select(*newest.c).select_from(given.join(newest, true()))
        values = [{name: getattr(each, name) for name in _GROUP} for each in largest]
        rows += session.execute(query, records(session, values)).all()
    found: dict[tuple[str, str], list[AnyRow]] = {}
    for row in rows:
        found.setdefault((row.job_type, row.error_group), []).append(row)
    for sample in found.values():
        sample.sort(key=lambda row: row.completed_at, reverse=True)
    return found
