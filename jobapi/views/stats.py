"""Statistics of a workspace: ``/workspace/{workspace_id}/stats``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rules.jobs import JobStatus
from ..rules.roles import Role
from ..schemas import stats as schemas
from ..services import stats as service
from ..store.transactions import snapshot
from . import examples
from .access import Caller, guard
from .blueprints import Blueprint

blp = Blueprint("stats", "Stats", "Statistics of a workspace.")


@blp.operation("/workspace/<workspace_id>/stats", summary="Get stats", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(schemas.StatsQuery, location="query")
@blp.response(200, schemas.Stats, example=examples.STATS)
def get_stats(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """Return jobs by status and type, due jobs, the oldest wait, rates, and run times by type.

    Cheap enough to poll every few seconds, for a page or an autoscaler. With `job_type`, all
    numbers cover only these types; types without jobs have zeros. A key that is limited to job
    types sees only these; asking for another type returns 403.
    """
    wanted = query.get("job_type")
    for job_type in wanted or ():
        caller.check_job_type(job_type)
    with snapshot(caller.connection) as connection:
        found = service.stats(
            connection, workspace_id, only_job_types=caller.job_types, wanted=wanted
        )
    oldest = max(found.oldest_due.values(), default=None)
    return {
        "workspace_id": workspace_id,
        "at": found.at,
        "total": sum(found.by_status.values()),
        "by_status": _totals(found.by_status),
        "by_type": {name: _of_type(found, name) for name in sorted(found.by_type)},
        "due": sum(each.jobs for each in found.due.values()),
        "due_is_capped": any(each.is_capped for each in found.due.values()),
        "oldest_due_seconds": oldest or 0,
        "oldest_pending_seconds": oldest,
        "rates": found.rates,
        "durations": found.durations,
    }


def _of_type(found: service.Stats, name: str) -> dict[str, Any]:
    due = found.due.get(name, service.Due())
    return {
        **_totals(found.by_type[name]),
        "due": due.jobs,
        "due_is_capped": due.is_capped,
        "oldest_due_seconds": found.oldest_due.get(name, 0),
    }


def _totals(by_status: Mapping[Any, int]) -> dict[str, int]:
    return {status.label: by_status.get(status, 0) for status in JobStatus}


@blp.operation(
    "/workspace/<workspace_id>/stats/history", summary="Get history of stats", errors=(404,)
)
@guard(Role.VIEWER)
@blp.arguments(schemas.HistoryQuery, location="query")
@blp.response(200, schemas.History, example=examples.HISTORY)
def get_stats_history(caller: Caller, query: dict[str, str], workspace_id: int) -> Any:
    """Return the changes within the last hour, day or month, the oldest interval first.

    The last interval is not complete yet.
    """
    window = query["window"]
    with snapshot(caller.connection) as connection:
        points = service.history(connection, workspace_id, window, only_job_types=caller.job_types)
    return {
        "workspace_id": workspace_id,
        "window": window,
        "span_seconds": service.HISTORIES[window][1],
        "data": [_point(point) for point in points],
    }


def _point(point: service.Point) -> dict[str, Any]:
    def mean(*statuses: JobStatus) -> float | None:
        n = sum(point.came[status] for status in statuses)
        return round(sum(point.seconds[status] for status in statuses) / n, 3) if n else None

    return {
        "at": point.at,
        **{rate: point.came[status] for rate, status in service.RATES.items()},
        "wait_seconds": mean(JobStatus.RUNNING),
        "run_seconds": mean(JobStatus.SUCCESS, JobStatus.FAILED),
        "by_status": _totals(point.by_status),
    }
