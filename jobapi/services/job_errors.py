"""The failed jobs of a workspace by their causes: see ``rules.causes``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Text, cast, func, literal, select

from ..rules.causes import cause
from ..rules.jobs import JobStatus
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.tables import jobs
from ..store.transactions import IN_ORDER, set_planner
from . import counts
from .job_filters import HAS_FAILED, Filters
from .job_rows import in_workspace

MAX_COUNTED = 10_000
"""The jobs of a group are counted up to this number."""

LEAST_COUNTED = 100
COUNTED_AT_ONCE = 200_000
"""How many jobs of all larger groups are counted, but at least ``LEAST_COUNTED`` of each."""

MAX_GROUPS = 1_000
"""The groups with the most jobs are chosen from at most this number of groups."""

_SAMPLES = ("job_id", "second", "third")
"""The jobs of a group that are named."""

_GROUP = ("job_type", "error_group")


@dataclass(frozen=True)
class ErrorGroup:
    """Jobs of one type that have failed with the same cause."""

    job_type: str
    error_group: str
    cause: str
    """The cause of the job that failed last."""
    count: int
    """Up to ``MAX_COUNTED``; with many large groups up to their share of ``COUNTED_AT_ONCE``."""
    count_is_capped: bool
    first_failed_at: datetime
    last_failed_at: datetime
    job_ids: list[str]
    """The jobs that failed last, up to three."""


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
    most_at_once: int = COUNTED_AT_ONCE,
) -> ErrorGroups:
    """The ``limit`` groups with the most jobs, the largest first; ``job_types`` () means all.

    Groups of equal size are sorted by their newest failure. The cost is bounded: it finds at most
    ``most_groups`` groups, and counts about ``most_at_once`` of their index entries, up to
    ``most_jobs`` of each. Call it in a ``snapshot``.
    """
    types = _failed_types(session, workspace_id, job_types, only_job_types)
    if not types:
        return ErrorGroups([], False)
    set_planner(session, IN_ORDER)
    found = _found(session, workspace_id, types, most_groups + 1)
    counted = _counted(session, workspace_id, found[:most_groups], most_jobs, most_at_once)
    shown = sorted(counted, key=lambda each: (each.n, each.last_failed_at), reverse=True)[:limit]
    samples = _samples(session, workspace_id, shown)
    return ErrorGroups(
        [
            ErrorGroup(
                each.job_type,
                each.error_group,
                cause(sample.error or ""),
                each.n,
                each.is_capped,
                each.first_failed_at,
                each.last_failed_at,
                [id_ for id_ in (sample.job_id, sample.second, sample.third) if id_ is not None],
            )
            for each, sample in zip(shown, samples, strict=True)
        ],
        len(found) > len(shown),
    )


def _failed_types(
    session: Executor,
    workspace_id: int,
    job_types: Sequence[str],
    only_job_types: Sequence[str] | None,
) -> list[str]:
    failed = Filters(status=[JobStatus.FAILED], job_type=job_types, only_job_types=only_job_types)
    kinds = counts.kinds(session, in_workspace(workspace_id), failed)
    return sorted({kind.job_type for kind in kinds})


def _mine(workspace_id: int) -> list[ColumnElement[bool]]:
    return [HAS_FAILED, jobs.c.workspace_id == workspace_id]


def _found(
    session: Executor, workspace_id: int, types: Sequence[str], most: int
) -> list[dict[str, str]]:
    """Up to ``most`` groups of these types, as records.

    The index is read from one group to the next, without the entries in between.
    """
    c = jobs.c
    given = record_source(dialect_name(session), {"job_type": c.job_type.type})
    start = cast(literal(""), Text).label("error_group")
    group = select(given.c.job_type, start).cte("error_groups", recursive=True)
    following = (
        select(cast(func.min(c.error_group), Text))
        .where(
            *_mine(workspace_id),
            c.job_type == group.c.job_type,
            c.error_group > group.c.error_group,
        )
        .correlate(group)
        .scalar_subquery()
    )
    group = group.union_all(
        select(group.c.job_type, following).where(group.c.error_group.is_not(None))
    )
    query = select(group).where(group.c.error_group > "").limit(most)
    rows = session.execute(query, records(session, [{"job_type": each} for each in types]))
    return [dict(zip(_GROUP, row, strict=True)) for row in rows]


class _Counted(NamedTuple):
    """A group, and how many of its jobs were counted."""

    job_type: str
    error_group: str
    n: int
    is_capped: bool
    first_failed_at: datetime
    last_failed_at: datetime


def _counted(
    session: Executor,
    workspace_id: int,
    found: Sequence[dict[str, str]],
    most_jobs: int,
    most_at_once: int,
) -> list[_Counted]:
    """Count up to ``LEAST_COUNTED`` jobs of each group, and of larger ones up to their share."""
    few = _count(session, workspace_id, found, min(most_jobs, LEAST_COUNTED))
    large = [
        {"job_type": each.job_type, "error_group": each.error_group}
        for each in few
        if each.is_capped
    ]
    share = min(most_jobs, max(LEAST_COUNTED, most_at_once // max(1, len(large))))
    if not large or share <= LEAST_COUNTED:
        return few
    small = [each for each in few if not each.is_capped]
    return small + _count(session, workspace_id, large, share)


def _count(
    session: Executor, workspace_id: int, found: Sequence[dict[str, str]], most: int
) -> list[_Counted]:
    c = jobs.c
    given = record_source(dialect_name(session), {name: c[name].type for name in _GROUP})
    same = [*_mine(workspace_id), *(c[name] == given.c[name] for name in _GROUP)]
    entries = select(literal(1).label("one")).where(*same).order_by(c.completed_at, c.id)
    some = entries.limit(most + 1).correlate(given).subquery()
    n = select(func.count(some.c.one)).scalar_subquery()

    def of_group(column: Any) -> Any:
        return select(column).where(*same).correlate(given).scalar_subquery()

    query = select(
        *(given.c[name] for name in _GROUP),
        n.label("n"),
        of_group(func.min(c.completed_at)).label("first"),
        of_group(func.max(c.completed_at)).label("last"),
    )
    return [
        _Counted(row.job_type, row.error_group, min(row.n, most), row.n > most, row.first, row.last)
        for row in session.execute(query, records(session, found))
    ]


def _samples(session: Executor, workspace_id: int, shown: Sequence[_Counted]) -> Sequence[AnyRow]:
    """The jobs of each group that failed last, and the newest error, in the order of ``shown``."""
    c = jobs.c
    types = {name: c[name].type for name in _GROUP} | {"place": c.id.type}
    given = record_source(dialect_name(session), types)
    newest = [c.completed_at.desc(), c.id.desc()]

    def sample(column: Any, place: int) -> Any:
        of_group = select(column).where(
            *_mine(workspace_id), *(c[name] == given.c[name] for name in _GROUP)
        )
        query = of_group.order_by(*newest).limit(1).offset(place)
        return query.correlate(given).scalar_subquery()

    query = select(
        given.c.place,
        sample(c.error, 0).label("error"),
        *(sample(c.job_id, place).label(name) for place, name in enumerate(_SAMPLES)),
    )
    rows = [
        {"job_type": each.job_type, "error_group": each.error_group, "place": place}
        for place, each in enumerate(shown)
    ]
    found = session.execute(query, records(session, rows)).all()
    return sorted(found, key=lambda row: row.place)
