"""Schedules: ``/workspace/{workspace_id}/schedules``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response
from sqlalchemy import Connection

from ..rules.roles import Role
from ..schemas import schedules as schemas
from ..schemas.base import PagingQuery, Reason
from ..schemas.jobs import ExistingJob, Job
from ..services import schedules
from ..store.transactions import snapshot
from . import examples
from .access import Caller, guard
from .base import json_response, location, paginated, sent, state
from .blueprints import Blueprint
from .bodies import MERGE_PATCH
from .conditions import ETAG, IF_MATCH, etag, version_wanted
from .jobs import TRACEPARENT, check_target, with_existing
from .openapi import alternative, header
from .replay import IDEMPOTENCY_KEY, REPLAYED_HEADER, replayable

blp = Blueprint(
    "schedules", "Schedules", "Create jobs at times of a time zone, or at regular intervals."
)

SCHEDULES = "/workspace/<workspace_id>/schedules"
SCHEDULE = f"{SCHEDULES}/<schedule_id>"

_PAUSED = {"paused": True, "paused_reason": "maintenance", "next_run_at": None, "upcoming": []}
_UPDATE = {"cron": "0 3 * * *", "job": {"metadata": {"kind": "weekly"}}}


def _shown(row: Any) -> dict[str, Any]:
    """Return what the schema renders."""
    last = {
        "scheduled_for": row.last_scheduled_for,
        "ran_at": row.last_ran_at,
        "outcome": row.last_outcome,
        "job_id": row.last_job_id,
    }
    return {
        **row._asdict(),
        "job": schedules.request_of(row.job),
        "upcoming": schedules.upcoming(row),
        "last_run": None if row.last_ran_at is None else last,
    }


def _tagged(row: Any) -> Any:
    return _shown(row), etag(row.version)


def _own(caller: Caller, schedule_id: str) -> dict[str, Any]:
    """Return which schedule the services look for: one of the types of the caller's key."""
    # The database may refuse a malformed id, such as one with U+0000.
    return {
        "schedule_id": schedule_id if schedule_id.isascii() and schedule_id.isprintable() else "",
        "only_job_types": caller.job_types,
    }


def _check_job(body: Mapping[str, Any], workspace_id: int) -> None:
    job = body.get("job") or {}
    check_target(job.pop("workspace_id", None) or workspace_id, workspace_id, "job.workspace_id")


@blp.operation(SCHEDULES, summary="List schedules", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(PagingQuery, location="query")
@blp.response(200, schemas.ScheduleList)
def list_schedules(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the schedules of a workspace, the oldest first.

    A key that is limited to job types sees those whose jobs are of these types.
    """
    with snapshot(caller.connection) as connection:
        found = schedules.page(connection, workspace_id, only_job_types=caller.job_types, **query)
    return paginated(found, query, [_shown(row) for row in found.rows])


@blp.operation(
    SCHEDULES,
    "POST",
    summary="Create schedule",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY],
)
@guard(Role.MEMBER)
@blp.arguments(schemas.ScheduleCreate, example=examples.SCHEDULE_CREATE)
@blp.response(
    201,
    schemas.Schedule,
    example=examples.SCHEDULE,
    headers={**ETAG, **REPLAYED_HEADER, **header("Location", "The new schedule's URL.")},
)
def create_schedule(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Create a schedule: at each tick it creates a job, as the caller.

    `cron` is read in `timezone`. When clocks are set back, fixed times run once, at the first
    occurrence; expressions with `*` or `/` in minute or hour run in both hours. When clocks are
    set forward, skipped fixed times run at the next valid minute.

    With an `Idempotency-Key` the request is safe to repeat.
    """
    _check_job(body, workspace_id)
    caller.check_job_type(body["job"]["job_type"])

    def create(connection: Connection) -> dict[str, Any]:
        row = schedules.create(
            connection,
            workspace_id,
            created_by=caller.user_id,
            actor=caller.name,
            most=state().settings.max_schedules,
            **body,
        )
        return schemas.Schedule.render(_shown(row))

    answer, headers = replayable(caller, workspace_id, "create_schedule", body, create)
    url = location(
        "jobapi-schedules.get_schedule",
        workspace_id=workspace_id,
        schedule_id=answer["schedule_id"],
    )
    return json_response(answer, 201, {**etag(1), **url, **headers})


@blp.operation(SCHEDULE, summary="Get schedule", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.Schedule, example=examples.SCHEDULE, headers=ETAG)
def get_schedule(caller: Caller, workspace_id: int, schedule_id: str) -> Any:
    """Return a schedule, its next five ticks and its last run.

    The `ETag` changes with each edit, not with the ticks.
    """
    return _tagged(schedules.get(caller.connection, workspace_id, **_own(caller, schedule_id)))


@blp.operation(
    SCHEDULE,
    "PATCH",
    summary="Update schedule",
    errors=(404, 409, 412),
    parameters=[IF_MATCH],
    requestBody={
        "content": {
            MERGE_PATCH: {
                "schema": {"$ref": "#/components/schemas/ScheduleUpdate"},
                "example": _UPDATE,
            }
        }
    },
)
@guard(Role.MEMBER)
@blp.arguments(schemas.ScheduleUpdate, location="patch_json", example=_UPDATE)
@blp.response(200, schemas.Schedule, example=examples.SCHEDULE, headers=ETAG)
def update_schedule(
    caller: Caller, body: dict[str, Any], workspace_id: int, schedule_id: str
) -> Any:
    """Change a schedule. Absent fields stay as they are, and null returns one to its default.

    `job` is merged (RFC 7396); from then on its jobs run as the caller, and a suspended schedule
    continues. After a change of its times a schedule continues from now.
    """
    _check_job(body, workspace_id)
    row = schedules.change(
        caller.connection,
        workspace_id,
        changes=body,
        check_job_type=caller.check_job_type,
        actor=caller.name,
        if_match=version_wanted(),
        **_own(caller, schedule_id),
    )
    return _tagged(row)


@blp.operation(SCHEDULE, "DELETE", summary="Delete schedule", errors=(404,))
@guard(Role.MEMBER)
@blp.response(204)
def delete_schedule(caller: Caller, workspace_id: int, schedule_id: str) -> None:
    """Delete a schedule. Its jobs stay."""
    schedules.remove(
        caller.connection, workspace_id, actor=caller.name, **_own(caller, schedule_id)
    )


@blp.operation(
    f"{SCHEDULE}/run",
    "POST",
    summary="Run schedule now",
    errors=(404, 409, 422, 429),
    parameters=[IDEMPOTENCY_KEY, TRACEPARENT],
    responses=alternative(200, "A live job has the `unique_key`.", ExistingJob, REPLAYED_HEADER),
)
@guard(Role.MEMBER)
@blp.response(
    201,
    Job,
    example=examples.PENDING,
    headers={**ETAG, **REPLAYED_HEADER, **header("Location", "The new job's URL.")},
)
def run_schedule(caller: Caller, workspace_id: int, schedule_id: str) -> Response:
    """Create the schedule's job now, as the caller. The ticks stay as they are.

    A paused or suspended schedule can be run, too, and `overlap` does not matter.
    """

    def run(connection: Connection) -> dict[str, Any]:
        made = schedules.run(
            connection,
            workspace_id,
            created_by=caller.user_id,
            actor=caller.name,
            traceparent=sent("traceparent"),
            **_own(caller, schedule_id),
        )
        return with_existing(made) if made.existing else Job.render(made.job)

    asked = {"schedule_id": schedule_id}
    answer, headers = replayable(caller, workspace_id, "run_schedule", asked, run)
    if answer.get("existing"):
        return json_response(answer, 200, headers)
    state().waiters.announce(caller.connection, workspace_id)
    url = location("jobapi-jobs.get_job", workspace_id=workspace_id, job_id=answer["job_id"])
    return json_response(answer, 201, {**etag(1), **url, **headers})


@blp.operation(f"{SCHEDULE}/pause", "POST", summary="Pause schedule", errors=(404,))
@guard(Role.MEMBER)
@blp.arguments(Reason, location="optional_json", required=False)
@blp.response(200, schemas.Schedule, example={**examples.SCHEDULE, **_PAUSED}, headers=ETAG)
def pause_schedule(
    caller: Caller, body: dict[str, Any], workspace_id: int, schedule_id: str
) -> Any:
    """Let a schedule have no ticks. The jobs that it has created go on."""
    row = schedules.pause(
        caller.connection,
        workspace_id,
        reason=body.get("reason"),
        actor=caller.name,
        **_own(caller, schedule_id),
    )
    return _tagged(row)


@blp.operation(f"{SCHEDULE}/resume", "POST", summary="Resume schedule", errors=(404,))
@guard(Role.MEMBER)
@blp.response(200, schemas.Schedule, example=examples.SCHEDULE, headers=ETAG)
def resume_schedule(caller: Caller, workspace_id: int, schedule_id: str) -> Any:
    """Let a paused or suspended schedule continue from now. It does not catch up."""
    row = schedules.resume(
        caller.connection, workspace_id, actor=caller.name, **_own(caller, schedule_id)
    )
    return _tagged(row)
