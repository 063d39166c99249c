"""How a workspace is doing, at a cost that the number of its jobs does not raise."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from . import counts, flow, lists
from .database import (
    IN_ORDER,
    AnyRow,
    DbNow,
    Executor,
    dialect_name,
    plan_without,
    record_source,
    records,
)
from .jobs import in_workspace
from .lifecycle import JobStatus, Priority
from .models import jobs

SAMPLE = 1_000
"""How many jobs the durations are taken from: an equal share for each type and priority."""

LEAST_SAMPLE = 10
"""The smallest share, however many types and priorities there are."""

WINDOWS = {"minute": (10, 60), "hour": (60, 3600), "day": (600, 24 * 3600)}
"""The windows of the rates, each with the span of which it is made and its length in seconds."""

RATES = {
    "queued": JobStatus.PENDING,
    "started": JobStatus.RUNNING,
    "succeeded": JobStatus.SUCCESS,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
}
"""What is counted: jobs that came into these statuses."""


@dataclass(frozen=True)
class Durations:
    """How long jobs ran, in seconds, over so many of the newest that succeeded."""

    jobs: int
    median_seconds: float
    p95_seconds: float


@dataclass(frozen=True)
class Stats:
    """A workspace at one moment; of jobs by type those types that there are."""

    at: datetime
    by_status: Mapping[JobStatus, int]
    by_type: Mapping[str, Mapping[JobStatus, int]]
    oldest_pending_seconds: int | None
    rates: Mapping[str, Mapping[str, int]]
    durations: Mapping[str, Durations]


def stats(
    session: Executor, workspace_id: int, *, only_job_types: Sequence[str] | None = None
) -> Stats:
    """How a workspace is doing. To be called in a ``snapshot``.

    The totals are exact; the rates are to a tenth of their window at most too
    short; the durations are those of the newest jobs of each type and priority.
    """
    plan_without(session, IN_ORDER)
    now = session.execute(select(DbNow())).scalar_one()
    filters = lists.Filters(only_job_types=only_job_types)
    scope = in_workspace(workspace_id)
    kinds = counts.kinds(session, lambda c: [scope(c), *filters.kind(c)])
    by_status: Counter[JobStatus] = Counter()
    by_type: dict[str, Counter[JobStatus]] = defaultdict(Counter)
    for kind in kinds:
        by_status[JobStatus(kind.status)] += kind.n
        by_type[kind.job_type][JobStatus(kind.status)] += kind.n
    return Stats(
        at=now,
        by_status=by_status,
        by_type=by_type,
        oldest_pending_seconds=_oldest(session, workspace_id, filters, now),
        rates=_rates(session, workspace_id, only_job_types, now),
        durations=_durations(session, [k for k in kinds if k.status == JobStatus.SUCCESS]),
    )


HISTORIES = {
    "hour": (60, 60, 60),
    "day": (600, 600, 144),
    "month": (600, 4 * 3600, 180),
}
"""The windows of the history: the span of the flow, that of a point, in seconds, and how many."""


@dataclass
class Point:
    """What came within a span of time that begins ``at``, and what there was at its end.

    ``seconds`` are those that the started ones had waited, and the others had run.
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
    """How it came to be as it is, the oldest first. To be called in a ``snapshot``.

    The last point is the span that is under way.
    """
    span, length, number = HISTORIES[window]
    now = session.execute(select(DbNow())).scalar_one()
    last = flow.begin_of(now, length)
    begins = [last - timedelta(seconds=length * back) for back in range(number)]
    points = {at: Point(at, Counter(), defaultdict(float), {}) for at in begins}
    net: dict[datetime, Counter[int]] = defaultdict(Counter)
    for each in flow.read(session, workspace_id, span, begins[-1], only_job_types=only_job_types):
        # A clock that runs ahead of the database's counts as now.
        at = min(flow.begin_of(each.at, length), last)
        points[at].came[each.status] += each.n
        points[at].seconds[each.status] += each.seconds
        net[at][each.status] += each.net
    scope, filters = in_workspace(workspace_id), lists.Filters(only_job_types=only_job_types)
    there: Counter[int] = Counter()
    for kind in counts.kinds(session, lambda c: [scope(c), *filters.kind(c)]):
        there[kind.status] += kind.n
    # Back from now: before a span there was what there is after it, without what came.
    for at in begins:
        points[at].by_status = dict(there)
        there.subtract(net[at])
    return [points[at] for at in reversed(begins)]


def _oldest(
    session: Executor, workspace_id: int, filters: lists.Filters, now: datetime
) -> int | None:
    """For how many seconds the job has been due that waits the longest."""
    due = []
    for priority in Priority:
        # The head of the index of claims.
        first = session.execute(
            select(jobs.c.due_at)
            .where(
                jobs.c.workspace_id == workspace_id,
                jobs.c.status == JobStatus.PENDING,
                jobs.c.priority == priority,
                jobs.c.due_at <= now,
                *filters.kind(jobs.c),
            )
            .order_by(jobs.c.due_at, jobs.c.id)
            .limit(1)
        ).scalar()
        due += [] if first is None else [first]
    return int((now - min(due)).total_seconds()) if due else None


def oldest_pending(session: Executor, workspace_ids: Iterable[int]) -> dict[int, float]:
    """For how many seconds the job has been due that waits the longest, in each of these.

    Those that have none are not there. To be called in a ``snapshot``.
    """
    plan_without(session, IN_ORDER)
    now = session.execute(select(DbNow())).scalar_one()
    some = record_source(dialect_name(session), {"workspace_id": jobs.c.workspace_id.type})
    # The heads of the index of claims, as above, of all workspaces at once.
    heads = [
        select(jobs.c.due_at)
        .where(
            jobs.c.workspace_id == some.c.workspace_id,
            jobs.c.status == JobStatus.PENDING,
            jobs.c.priority == priority,
            jobs.c.due_at <= now,
        )
        .order_by(jobs.c.due_at, jobs.c.id)
        .limit(1)
        .scalar_subquery()
        for priority in Priority
    ]
    found = {}
    given = records(session, [{"workspace_id": each} for each in workspace_ids])
    for workspace_id, *due in session.execute(select(some.c.workspace_id, *heads), given):
        first = min((moment for moment in due if moment is not None), default=None)
        if first is not None:
            found[workspace_id] = (now - first).total_seconds()
    return found


def _rates(
    session: Executor, workspace_id: int, only_job_types: Sequence[str] | None, now: datetime
) -> dict[str, dict[str, int]]:
    rates = {}
    for name, (span, seconds) in WINDOWS.items():
        since = flow.begin_of(now - timedelta(seconds=seconds), span) + timedelta(seconds=span)
        came: Counter[int] = Counter()
        for each in flow.read(session, workspace_id, span, since, only_job_types=only_job_types):
            came[each.status] += each.n
        rates[name] = {rate: came[status] for rate, status in RATES.items()}
    return rates


def _durations(session: Executor, kinds: Sequence[AnyRow]) -> dict[str, Durations]:
    most = max(LEAST_SAMPLE, SAMPLE // max(1, len(kinds)))
    took: dict[str, list[float]] = defaultdict(list)
    for row in lists.newest(session, kinds, most):
        took[row.job_type].append((row.completed_at - row.started_at).total_seconds())
    return {job_type: _summary(sorted(seconds)) for job_type, seconds in sorted(took.items())}


def _summary(seconds: Sequence[float]) -> Durations:
    def rank(share: float) -> float:
        # The nearest rank: a duration that a job really had.
        return round(seconds[math.ceil(share * len(seconds)) - 1], 3)

    return Durations(len(seconds), rank(0.5), rank(0.95))
