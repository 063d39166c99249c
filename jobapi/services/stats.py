"""Statistics of a workspace, at a cost that does not grow with the number of its jobs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, literal, select, union_all

from ..rules.jobs import JobStatus, Priority
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.tables import jobs
from ..store.transactions import IN_ORDER, set_planner
from . import counts, deliveries, job_lists, throughput, ticks, workers
from .job_filters import Filters
from .job_rows import in_workspace

SAMPLE = 1_000
"""How many jobs the durations are taken from: an equal share for each type and priority."""

LEAST_SAMPLE = 10
"""The smallest share, however many types and priorities there are."""

MAX_DUE = 10_000
"""How many due jobs of a type and priority are counted, if as many others are not due yet."""

LEAST_DUE = 10
DUE_AT_ONCE = 40_000
"""How many due jobs a request counts in all, but at least ``LEAST_DUE`` per type and priority."""

TYPES_PER_WORKSPACE = 100
"""How many job types of one workspace the metrics show at most."""

TYPES_AT_ONCE = 1_000
"""How many job types the metrics show at most, in all workspaces together."""

OfType = tuple[int, str | None]
"""A workspace and one of its job types."""

WINDOWS = {"minute": (10, 60), "hour": (60, 3600), "day": (600, 24 * 3600)}
"""The windows of the rates: the length of a span and of the window, in seconds."""

RATES = {
    "queued": JobStatus.PENDING,
    "started": JobStatus.RUNNING,
    "succeeded": JobStatus.SUCCESS,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
}
"""The rates: each counts the jobs that entered this status."""


@dataclass(frozen=True)
class Durations:
    """How long the newest successful jobs ran; ``jobs`` is how many of them were read."""

    jobs: int
    median_seconds: float
    p95_seconds: float


class Due(NamedTuple):
    """How many jobs are due; a lower bound if it is capped."""

    jobs: int = 0
    is_capped: bool = False


@dataclass(frozen=True)
class Stats:
    """The statistics of a workspace at one moment.

    ``by_type`` has the types that have jobs, or were requested. ``due`` and ``oldest_due``
    (seconds) have only types with due jobs.
    """

    at: datetime
    by_status: Mapping[JobStatus, int]
    by_type: Mapping[str, Mapping[JobStatus, int]]
    due: Mapping[str, Due]
    oldest_due: Mapping[str, int]
    rates: Mapping[str, Mapping[str, int]]
    durations: Mapping[str, Durations]


def stats(
    session: Executor,
    workspace_id: int,
    *,
    only_job_types: Sequence[str] | None = None,
    wanted: Sequence[str] | None = None,
) -> Stats:
    """The statistics of a workspace. Call it in a ``snapshot``.

    ``wanted`` are the job types that were requested, all of which the caller may see.
    They are in the answer even if they have no jobs.

    The totals are exact. The window of a rate may be up to one span too short. The
    durations are those of the newest jobs of each type and priority.
    """
    only_job_types = only_job_types if wanted is None else wanted
    set_planner(session, IN_ORDER)
    now = session.execute(select(DbNow())).scalar_one()
    filters = Filters(only_job_types=only_job_types)
    scope = in_workspace(workspace_id)
    kinds = counts.kinds(session, scope, filters)
    by_status: Counter[JobStatus] = Counter()
    by_type: dict[str, Counter[JobStatus]] = defaultdict(Counter)
    by_type |= {job_type: Counter() for job_type in wanted or ()}
    for kind in kinds:
        by_status[JobStatus(kind.status)] += kind.n
        by_type[kind.job_type][JobStatus(kind.status)] += kind.n
    pending: dict[OfType, int] = {
        (workspace_id, job_type): by_type[job_type][JobStatus.PENDING]
        for job_type in by_type
        if by_type[job_type][JobStatus.PENDING]
    }
    return Stats(
        at=now,
        by_status=by_status,
        by_type=by_type,
        due={str(of[1]): each for of, each in due(session, pending, now).items()},
        oldest_due={
            str(of[1]): int(each) for of, each in oldest_due(session, pending, now).items()
        },
        rates=_rates(session, workspace_id, only_job_types, now),
        durations=_durations(session, [k for k in kinds if k.status == JobStatus.SUCCESS]),
    )


HISTORIES = {"hour": (60, 60, 60), "day": (600, 600, 144), "month": (600, 4 * 3600, 180)}
"""The windows of the history: the span of the throughput that is read and the length of a point,
both in seconds, and the number of points."""


@dataclass
class Point:
    """How many jobs entered each status in an interval that begins ``at``.

    ``seconds`` is, by status, how long in total the started ones had waited, and the ended ones had
    run. ``by_status`` is how many jobs there were at the end of the interval.
    """

    at: datetime
    came: Counter[int]
    seconds: defaultdict[int, float]
    by_status: Mapping[int, int]


def history(
    session: Executor,
    workspace_id: int,
    window: str,
    *,
    only_job_types: Sequence[str] | None = None,
) -> list[Point]:
    """The history of the statistics, the oldest first. Call it in a ``snapshot``.

    The last point is the current interval, which is not over.
    """
    span, length, number = HISTORIES[window]
    now = session.execute(select(DbNow())).scalar_one()
    last = throughput.begin_of(now, length)
    begins = [last - timedelta(seconds=length * back) for back in range(number)]
    points = {at: Point(at, Counter(), defaultdict(float), {}) for at in begins}
    net: dict[datetime, Counter[int]] = defaultdict(Counter)
    for each in throughput.read(
        session, workspace_id, span, begins[-1], only_job_types=only_job_types
    ):
        # Times ahead of the database's clock count as now.
        at = min(throughput.begin_of(each.at, length), last)
        points[at].came[each.status] += each.n
        points[at].seconds[each.status] += each.seconds
        net[at][each.status] += each.net
    scope, filters = in_workspace(workspace_id), Filters(only_job_types=only_job_types)
    there: Counter[int] = Counter()
    for kind in counts.kinds(session, scope, filters):
        there[kind.status] += kind.n
    # Backwards from now: the number before a span is the number after it minus what the span added.
    for at in begins:
        points[at].by_status = dict(there)
        there.subtract(net[at])
    return [points[at] for at in reversed(begins)]


def due(session: Executor, pending: Mapping[OfType, int], now: datetime) -> dict[OfType, Due]:
    """How many of the pending jobs are due, by workspace and type. Call it in a ``snapshot``.

    ``pending`` has the number of pending jobs in the same snapshot. Usually nearly all of them are
    due, or nearly none. So the jobs that are not due yet are counted first, up to a bound, and
    subtracted. Only if a type has more of these, its due jobs are counted, again up to a bound.
    """
    some = {of: n for of, n in pending.items() if n}
    kinds = max(1, len(some) * len(Priority))
    most = min(MAX_DUE, max(LEAST_DUE, DUE_AT_ONCE // kinds))
    found = {}
    later = _count(session, some, jobs.c.due_at > bindparam("now"), now, most)
    for of, counted in later.items():
        if max(counted) < most:
            found[of] = Due(max(0, some[of] - sum(counted)))
    rest = _count(session, some.keys() - found.keys(), jobs.c.due_at <= bindparam("now"), now, most)
    for of, counted in rest.items():
        found[of] = Due(sum(counted), max(counted) >= most)
    return found


def _count(
    session: Executor, some: Collection[OfType], when: Any, now: datetime, most: int
) -> dict[OfType, list[int]]:
    """How many jobs of each priority are pending and ``when``, up to ``most``."""

    def head(priority: Priority, of: Any) -> Any:
        parts = [
            pending.where(when).limit(bindparam("limit")).subquery().select()
            for pending in _pending(select(literal(1).label("n")), priority, of)
        ]
        n = func.coalesce(func.sum(union_all(*parts).subquery().c.n), 0)
        return select(n).scalar_subquery()

    return _ask(session, some, head, {"now": now, "limit": most})


def oldest_due(session: Executor, some: Collection[OfType], now: datetime) -> dict[OfType, float]:
    """For how many seconds the oldest due job has been due, by workspace and type.

    Workspaces and types without due jobs are left out. A type of None means all
    types. Call it in a ``snapshot``.
    """

    def head(priority: Priority, of: Any) -> Any:
        # The heads of the indexes of claims.
        firsts = [
            pending.where(jobs.c.due_at <= bindparam("now"))
            .order_by(jobs.c.due_at, jobs.c.id)
            .limit(1)
            .subquery()
            .select()
            for pending in _pending(select(jobs.c.due_at), priority, of)
        ]
        return select(func.min(union_all(*firsts).subquery().c.due_at)).scalar_subquery()

    found = {}
    for of, moments in _ask(session, some, head, {"now": now}).items():
        first = min((moment for moment in moments if moment is not None), default=None)
        if first is not None:
            found[of] = (now - first).total_seconds()
    return found


def _pending(query: Any, priority: Priority, of: Any) -> list[Any]:
    """A query of pending jobs, in parts that each read one range of an index."""
    same = [jobs.c[column.name] == column for column in of.c]
    pending = query.where(
        *same, jobs.c.status == JobStatus.PENDING, jobs.c.priority == priority
    ).correlate(of)
    if "job_type" not in of.c:
        return [pending]
    key = jobs.c.concurrency_key
    return [pending.where(key.is_(None)), pending.where(key.is_not(None))]


def _ask(
    session: Executor,
    some: Collection[OfType],
    head: Callable[[Priority, Any], Any],
    parameters: Mapping[str, Any],
) -> dict[OfType, list[Any]]:
    """The value of ``head`` for each priority, for all workspaces and types in one statement."""
    if not some:
        return {}
    names = ["workspace_id", "job_type"] if next(iter(some))[1] is not None else ["workspace_id"]
    of = record_source(dialect_name(session), {name: jobs.c[name].type for name in names})
    rows = session.execute(
        select(*(of.c[name] for name in names), *(head(priority, of) for priority in Priority)),
        {**records(session, [dict(zip(names, each, strict=False)) for each in some]), **parameters},
    )
    size = len(names)
    return {(row[0], row[1] if size == 2 else None): list(row[size:]) for row in rows}


class Backlog(NamedTuple):
    """The load of all workspaces, for metrics: ``jobs`` by workspace and status.

    ``oldest`` is for how many seconds the oldest due job of a workspace has been due. ``due`` and
    ``running`` are numbers of jobs, and ``live_workers`` of workers that claim them, by workspace
    and type. ``omitted`` is how many types these three leave out. ``undelivered`` is for how many
    seconds the oldest event has not been delivered to a webhook of a workspace.
    """

    jobs: Mapping[int, Mapping[JobStatus, int]]
    oldest: Mapping[int, float]
    due: Mapping[OfType, int]
    running: Mapping[OfType, int]
    live_workers: Mapping[tuple[int, str], int]
    omitted: int
    undelivered: Mapping[int, float]
    overdue: float
    """For how many seconds the most overdue tick of a schedule has been due."""


def backlog(session: Executor) -> Backlog:
    """Due and running jobs in all workspaces. Call it in a ``snapshot``."""
    totals: defaultdict[int, dict[JobStatus, int]] = defaultdict(dict)
    for row in counts.totals(session):
        by_status = totals[row.workspace_id]
        if row.status is not None:
            by_status[row.status] = row.n
    types, omitted = counts.busiest_types(
        session, per_workspace=TYPES_PER_WORKSPACE, most=TYPES_AT_ONCE
    )
    set_planner(session, IN_ORDER)
    now = session.execute(select(DbNow())).scalar_one()
    pending: dict[OfType, int] = {
        (each.workspace_id, each.job_type): each.pending for each in types
    }
    found = due(session, pending, now)
    waiting = [(each, None) for each in totals if totals[each].get(JobStatus.PENDING)]
    return Backlog(
        jobs=totals,
        oldest={of[0]: seconds for of, seconds in oldest_due(session, waiting, now).items()},
        due={of: found.get(of, Due()).jobs for of in pending},
        running={(each.workspace_id, each.job_type): each.running for each in types},
        live_workers=workers.count_live(session, [(ws, str(name)) for ws, name in pending]),
        omitted=omitted,
        overdue=ticks.most_overdue(session, now),
        undelivered=deliveries.oldest_undelivered(session, now),
    )


def _rates(
    session: Executor, workspace_id: int, only_job_types: Sequence[str] | None, now: datetime
) -> dict[str, dict[str, int]]:
    rates = {}
    for name, (span, seconds) in WINDOWS.items():
        since = throughput.begin_of(now - timedelta(seconds=seconds), span) + timedelta(
            seconds=span
        )
        came: Counter[int] = Counter()
        for each in throughput.read(
            session, workspace_id, span, since, only_job_types=only_job_types
        ):
            came[each.status] += each.n
        rates[name] = {rate: came[status] for rate, status in RATES.items()}
    return rates


def _durations(session: Executor, kinds: Sequence[AnyRow]) -> dict[str, Durations]:
    most = max(LEAST_SAMPLE, SAMPLE // max(1, len(kinds)))
    took: dict[str, list[float]] = defaultdict(list)
    for row in job_lists.newest(session, kinds, most):
        took[row.job_type].append((row.completed_at - row.started_at).total_seconds())
    return {job_type: _summary(sorted(seconds)) for job_type, seconds in sorted(took.items())}


def _summary(seconds: Sequence[float]) -> Durations:
    def rank(share: float) -> float:
        # The nearest rank, so that it is the duration of an actual job.
        return round(seconds[math.ceil(share * len(seconds)) - 1], 3)

    return Durations(len(seconds), rank(0.5), rank(0.95))
