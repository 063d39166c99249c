"""How a workspace is doing: ``/workspace/{workspace_id}/stats``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flask import Response

from .. import stats as service
from ..database import snapshot
from ..identity import Role
from ..lifecycle import JobStatus
from ..schemas import stats as schemas
from . import examples
from .access import Caller, guard
from .base import Blueprint, json_response

blp = Blueprint("stats", "Stats", "How a workspace is doing.")


@blp.operation("/workspace/<workspace_id>/stats", summary="Get stats", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.Stats, example=examples.STATS)
def get_stats(caller: Caller, workspace_id: int) -> Response:
    """Jobs by status and type, how long the oldest waits, rates, and durations by type.

    Cheap enough to be asked every few seconds, by a page or by what scales
    workers. A key that is bound to job types sees these alone.
    """
    with snapshot(caller.connection) as connection:
        found = service.stats(connection, workspace_id, only_job_types=caller.job_types)
    return json_response(
        {
            "workspace_id": workspace_id,
            "at": found.at,
            "total": sum(found.by_status.values()),
            "by_status": _totals(found.by_status),
            "by_type": {name: _totals(found.by_type[name]) for name in sorted(found.by_type)},
            "oldest_pending_seconds": found.oldest_pending_seconds,
            "rates": found.rates,
            "durations": {name: asdict(each) for name, each in found.durations.items()},
        }
    )


def _totals(by_status: Mapping[Any, int]) -> dict[str, int]:
    return {status.label: by_status.get(status, 0) for status in JobStatus}


@blp.operation(
    "/workspace/<workspace_id>/stats/history", summary="Get history of stats", errors=(404,)
)
@guard(Role.VIEWER)
@blp.arguments(schemas.HistoryQuery, location="query")
@blp.response(200, schemas.History, example=examples.HISTORY)
def get_stats_history(caller: Caller, query: dict[str, str], workspace_id: int) -> Response:
    """What happened in the last hour, day or month, the oldest span first.

    The last span is the one under way.
    """
    window = query["window"]
    with snapshot(caller.connection) as connection:
        points = service.history(connection, workspace_id, window, only_job_types=caller.job_types)
    return json_response(
        {
            "workspace_id": workspace_id,
            "window": window,
            "span_seconds": service.HISTORIES[window][1],
            "data": [_point(point) for point in points],
        }
    )


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
