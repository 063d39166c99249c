"""Job types and workers: ``/workspace/{workspace_id}/job-types`` and ``/workers``."""

from __future__ import annotations

from typing import Any

from ..rules.roles import Role
from ..schemas import job_types as schemas
from ..schemas import workers as worker_schemas
from ..schemas.base import PagingQuery, Reason
from ..services import job_types, workers
from ..store.transactions import snapshot
from .access import Caller, guard
from .base import paginated, state
from .blueprints import Blueprint

blp = Blueprint(
    "job_types",
    "Job types",
    "Limits, pauses and defaults of job types, and the workers that claim them.",
)

JOB_TYPES = "/workspace/<workspace_id>/job-types"
JOB_TYPE = f"{JOB_TYPES}/<job_type>"
WORKERS = "/workspace/<workspace_id>/workers"


@blp.operation(JOB_TYPES, summary="List job types", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(PagingQuery, location="query")
@blp.response(200, schemas.JobTypeList)
def list_job_types(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the types that have jobs or settings, by name."""
    with snapshot(caller.connection) as connection:
        found = job_types.page(connection, workspace_id, only_job_types=caller.job_types, **query)
    return paginated(found, query, [_shown(row) for row in found.rows])


def _shown(row: job_types.JobType) -> dict[str, Any]:
    settings = row.settings
    rate = {"starts": settings.rate_starts, "seconds": settings.rate_seconds}
    return {
        **{name: getattr(settings, name) for name in job_types.SETTINGS},
        **row._asdict(),
        "rate_limit": None if settings.rate_starts is None else rate,
    }


@blp.operation(JOB_TYPE, summary="Get job type", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.JobType)
def get_job_type(caller: Caller, workspace_id: int, job_type: str) -> Any:
    """Return the settings of a job type, and its numbers of jobs and live workers."""
    return _get(caller, workspace_id, job_type)


def _get(caller: Caller, workspace_id: int, job_type: str) -> Any:
    _check(caller, job_type)
    with snapshot(caller.connection) as connection:
        return _shown(job_types.get(connection, workspace_id, job_type))


def _check(caller: Caller, job_type: str) -> None:
    """Hide the types to which the caller's key is not limited."""
    if caller.job_types is not None and job_type not in caller.job_types:
        raise job_types.not_found(job_type)


@blp.operation(JOB_TYPE, "PATCH", summary="Update job type", errors=(404,))
@guard(Role.OWNER)
@blp.arguments(schemas.JobTypeUpdate, location="patch_json")
@blp.response(200, schemas.JobType)
def update_job_type(caller: Caller, body: dict[str, Any], workspace_id: int, job_type: str) -> Any:
    """Change the settings of a job type, even before its first job.

    Absent settings stay as they are; `null` restores a default.
    """
    job_types.change(caller.connection, workspace_id, job_type, body, actor=caller.name)
    # A limit may have been raised.
    state().waiters.announce(caller.connection, workspace_id)
    return _settings_after(caller, workspace_id, job_type)


def _settings_after(caller: Caller, workspace_id: int, job_type: str) -> Any:
    """The type after a change, even if it has no more settings and no jobs."""
    with snapshot(caller.connection) as connection:
        return _shown(job_types.current(connection, workspace_id, job_type))


@blp.operation(f"{JOB_TYPE}/pause", "POST", summary="Pause job type", errors=(404,))
@guard(Role.MEMBER)
@blp.arguments(Reason, location="optional_json", required=False)
@blp.response(200, schemas.JobType)
def pause_job_type(caller: Caller, body: dict[str, Any], workspace_id: int, job_type: str) -> Any:
    """Stop handing out jobs of this type. Running jobs continue, and jobs can be created.

    A claim that began before the pause may still return jobs.
    """
    _check(caller, job_type)
    job_types.pause(
        caller.connection, workspace_id, job_type, body.get("reason"), actor=caller.name
    )
    return _settings_after(caller, workspace_id, job_type)


@blp.operation(f"{JOB_TYPE}/resume", "POST", summary="Resume job type", errors=(404,))
@guard(Role.MEMBER)
@blp.response(200, schemas.JobType)
def resume_job_type(caller: Caller, workspace_id: int, job_type: str) -> Any:
    """Hand out jobs of this type again."""
    _check(caller, job_type)
    job_types.resume(caller.connection, workspace_id, job_type, actor=caller.name)
    state().waiters.announce(caller.connection, workspace_id)
    return _settings_after(caller, workspace_id, job_type)


@blp.operation(WORKERS, summary="List workers", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(worker_schemas.WorkerListQuery, location="query")
@blp.response(200, worker_schemas.WorkerList)
def list_workers(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the workers that have claimed jobs within the last day, by name.

    A worker is identified by its name and the key or user that it claims as. `running` counts
    among at most 10,000 running jobs.
    """
    with snapshot(caller.connection) as connection:
        found = workers.page(connection, workspace_id, only_job_types=caller.job_types, **query)
    return paginated(found, query)
