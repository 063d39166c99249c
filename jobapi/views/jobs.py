"""The jobs of a workspace: ``/workspace/{workspace_id}/jobs``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, cast

from flask import Response, request
from sqlalchemy import Connection

from ..errors import (
    BadRequest,
    BodyTooLarge,
    JobNotEditable,
    JobNotEnded,
    PreconditionFailed,
    RoleTooLow,
    UnsupportedMediaType,
    ValidationFailed,
)
from ..rules.jobs import Job, JobEdit, JobStatus, Report
from ..rules.lifecycle import PENDING_FIELDS
from ..rules.roles import Role
from ..schemas import jobs as schemas
from ..services import jobs, queue
from . import examples
from .access import Caller, guard, lease_token
from .base import View, json_response, location, state
from .blueprints import Blueprint
from .bodies import MERGE_PATCH
from .conditions import (
    ETAG,
    IF_MATCH,
    IF_NONE_MATCH,
    NOT_MODIFIED,
    etag,
    tagged,
    tagged_unless_known,
    version_wanted,
)
from .openapi import header, header_parameter
from .replay import IDEMPOTENCY_KEY, REPLAYED_HEADER, replayable

blp = Blueprint(
    "jobs", "Jobs", "Create jobs in a workspace; watch, filter, change, cancel and retry them."
)

JOBS = "/workspace/<workspace_id>/jobs"
JOB = f"{JOBS}/<job_id>"

_TRACEPARENT = header_parameter(
    "traceparent", "The creator's W3C trace context; a claim of the job returns it."
)
_LEASE_TOKEN = header_parameter(
    "Lease-Token", "The `lease_token` of a claim: this is a report of its holder."
)


@blp.operation(
    JOBS,
    "POST",
    summary="Create job in workspace",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY, _TRACEPARENT],
)
@guard(Role.MEMBER)
@blp.arguments(schemas.JobCreate, example=examples.CREATE)
@blp.response(
    201,
    schemas.Job,
    example=examples.PENDING,
    headers={**ETAG, **REPLAYED_HEADER, **header("Location", "The new job's URL.")},
)
def create_job(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Create a job that is due now, or at `scheduled_at`.

    With an `Idempotency-Key` the request is safe to repeat.
    """
    _check_target(body.pop("workspace_id"), workspace_id, "workspace_id")
    caller.check_job_type(body["job_type"])

    def create(connection: Connection) -> dict[str, Any]:
        row = jobs.create(
            connection,
            workspace_id,
            created_by=caller.user_id,
            now=caller.now,
            actor=caller.name,
            traceparent=request.headers.get("traceparent"),
            **body,
        )
        return schemas.Job.render(row)

    answer, headers = replayable(caller, workspace_id, "create_job", body, create)
    state().waiters.announce(caller.connection, workspace_id)
    url = location("jobapi-jobs.get_job", workspace_id=workspace_id, job_id=answer["job_id"])
    return json_response(answer, 201, {**etag(1), **url, **headers})


def _check_target(given: int, workspace_id: int, name: str) -> None:
    if given != workspace_id:
        raise ValidationFailed({name: [f"Must match the workspace in the URL, {workspace_id}."]})


@blp.operation(
    f"{JOBS}/batch",
    "POST",
    summary="Create many jobs in workspace",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY, _TRACEPARENT],
)
@guard(Role.MEMBER)
@blp.arguments(schemas.JobBatch, example={"jobs": [examples.CREATE]})
@blp.response(
    201, schemas.JobBatchCreated, example={"data": [examples.PENDING]}, headers=REPLAYED_HEADER
)
def create_jobs(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Create up to 1,000 jobs, all or none. The answer has them in the same order.

    With an `Idempotency-Key` the request is safe to repeat.
    """
    items = body["jobs"]
    for number, item in enumerate(items):
        _check_target(
            item.pop("workspace_id", workspace_id), workspace_id, f"jobs.{number}.workspace_id"
        )
        caller.check_job_type(item["job_type"])

    def create(connection: Connection) -> dict[str, Any]:
        rows = jobs.create_many(
            connection,
            workspace_id,
            items,
            created_by=caller.user_id,
            now=caller.now,
            actor=caller.name,
            traceparent=request.headers.get("traceparent"),
        )
        return schemas.JobBatchCreated.render({"data": rows})

    def keep(answer: dict[str, Any]) -> Any:
        # The rest can be derived from the request, which is the same.
        return caller.now, [job["job_id"] for job in answer["data"]]

    def again(kept: Any) -> dict[str, Any]:
        now, ids = kept
        rows = jobs.new_rows(
            workspace_id, items, created_by=caller.user_id, now=datetime.fromisoformat(now), ids=ids
        )
        return schemas.JobBatchCreated.render({"data": rows})

    answer, headers = replayable(
        caller, workspace_id, "create_jobs", body, create, keep=keep, again=again
    )
    state().waiters.announce(caller.connection, workspace_id)
    return json_response(answer, 201, headers)


@blp.operation(
    JOB,
    summary="Get job details",
    errors=(404,),
    parameters=[IF_NONE_MATCH],
    responses=NOT_MODIFIED,
)
@guard(Role.VIEWER, job_columns="all")
@blp.response(200, schemas.Job, example=examples.SUCCESS, headers=ETAG)
def get_job(caller: Caller, workspace_id: int, job_id: str) -> Any:
    """Return one job."""
    return tagged_unless_known(caller.job)


@blp.operation(
    f"{JOB}/status",
    summary="Get job status",
    errors=(404,),
    parameters=[IF_NONE_MATCH],
    responses=NOT_MODIFIED,
)
@guard(Role.VIEWER, job_columns="status")
@blp.response(200, schemas.JobProgress, example=examples.STATUS, headers=ETAG)
def get_job_status(caller: Caller, workspace_id: int, job_id: str) -> Any:
    """Return the status and progress of a job; cheap enough to poll."""
    return tagged_unless_known(caller.job)


@blp.operation(
    f"{JOB}/result",
    summary="Get job result",
    errors=(404, 409),
    parameters=[IF_NONE_MATCH],
    responses=NOT_MODIFIED,
)
@guard(Role.VIEWER, job_columns="result")
@blp.response(200, schemas.JobResult, example=examples.RESULT, headers=ETAG)
def get_job_result(caller: Caller, workspace_id: int, job_id: str) -> Any:
    """Return the result of a job that has ended; 409 before."""
    job: Any = caller.job
    status = JobStatus(job.status)
    if not status.ended:
        raise JobNotEnded(f"The job is {status.label}; it has a result only when it has ended.")
    return tagged_unless_known(job)


def renews_lease(view: View) -> View:
    """Renew the lease even if the content of the report is refused."""

    @wraps(view)
    def renewing(caller: Caller, workspace_id: int, job_id: str) -> Any:
        try:
            return view(caller, workspace_id=workspace_id, job_id=job_id)
        except (
            BadRequest,
            BodyTooLarge,
            UnsupportedMediaType,
            ValidationFailed,
            JobNotEditable,
            PreconditionFailed,
            RoleTooLow,
        ) as refused:
            token = lease_token()
            if token is not None:
                report: Report = {"job_id": job_id, "lease_token": token, "refused": refused}
                queue.report(caller.connection, workspace_id, [report], backoff=state().backoff)
            raise

    return renewing


@blp.operation(
    JOB,
    "PATCH",
    summary="Update job",
    errors=(404, 409, 412),
    parameters=[IF_MATCH, _LEASE_TOKEN],
    requestBody={
        "content": {
            MERGE_PATCH: {
                "schema": {"$ref": "#/components/schemas/JobUpdate"},
                "example": examples.UPDATE,
            }
        }
    },
)
@guard(Role.MEMBER, job_columns="all", lease_role=Role.WORKER)
@renews_lease
@blp.arguments(schemas.JobUpdate, location="patch_json", example=examples.UPDATE)
@blp.response(200, schemas.Job, example=examples.RUNNING, headers=ETAG)
def update_job(caller: Caller, body: JobEdit, workspace_id: int, job_id: str) -> Any:
    """Change the status, progress or result of a job; while it is pending, also its settings.

    `result` and `metadata` are merged (RFC 7396). Absent fields stay as they are. With a
    `Lease-Token` the request is a report of the worker: invalid content is refused, but the
    lease is renewed.
    """
    token = lease_token()
    if token is not None and body.get("status") is not JobStatus.CANCELLED:
        return _report(caller, body, workspace_id, job_id, token)
    caller.check_role(Role.MEMBER)
    row = jobs.edit(
        caller.connection,
        workspace_id,
        job_id,
        body,
        if_match=version_wanted(),
        job=caller.job,
        actor=caller.name,
    )
    metrics = state().metrics
    if metrics is not None and body.get("status") is JobStatus.FAILED:
        metrics.failed(workspace_id)
    return _put_back(caller, row)


def _report(caller: Caller, body: JobEdit, workspace_id: int, job_id: str, token: str) -> Any:
    wanted = version_wanted()
    if wanted is not None and not wanted(caller.job.version if caller.job else 0):
        raise jobs.changed_since()
    not_for_workers = sorted(PENDING_FIELDS.keys() & body.keys())
    if not_for_workers:
        raise JobNotEditable(
            f"The job is running; {', '.join(not_for_workers)} can be changed only while it "
            "is pending."
        )
    report = cast(Report, {"job_id": job_id, "lease_token": token, **body})
    answer, row = queue.report_one(
        caller.connection, workspace_id, report, backoff=state().backoff, actor=caller.name
    )
    metrics = state().metrics
    if metrics is not None:
        metrics.reported(workspace_id, [report], [answer])
    if answer.problem is not None:
        raise answer.problem
    return _put_back(caller, row)


def _put_back(caller: Caller, row: Job) -> Any:
    if row.status == JobStatus.PENDING:
        state().waiters.announce(caller.connection, row.workspace_id)
    return tagged(row)


@blp.operation(
    f"{JOB}/cancel", "POST", summary="Cancel job", errors=(404, 409, 412), parameters=[IF_MATCH]
)
@guard(Role.MEMBER, job_columns="all")
@blp.arguments(schemas.Reason, location="optional_json", required=False)
@blp.response(200, schemas.Job, example=examples.CANCELLED, headers=ETAG)
def cancel_job(caller: Caller, body: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """Cancel a pending or running job; its partial result is kept."""
    return tagged(_with_reason(jobs.cancel, caller, body, workspace_id, job_id))


@blp.operation(
    f"{JOB}/retry", "POST", summary="Retry job", errors=(404, 409, 412), parameters=[IF_MATCH]
)
@guard(Role.MEMBER, job_columns="all")
@blp.arguments(schemas.Reason, location="optional_json", required=False)
@blp.response(200, schemas.Job, example=examples.RETRIED, headers=ETAG)
def retry_job(caller: Caller, body: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """Return a failed or cancelled job to pending, due now."""
    return _put_back(caller, _with_reason(jobs.retry, caller, body, workspace_id, job_id))


def _with_reason(
    verb: Callable[..., Job], caller: Caller, body: dict[str, Any], workspace_id: int, job_id: str
) -> Job:
    return verb(
        caller.connection,
        workspace_id,
        job_id,
        reason=body.get("reason"),
        if_match=version_wanted(),
        job=caller.job,
        actor=caller.name,
    )


@blp.operation(JOB, "DELETE", summary="Delete job", errors=(404, 409))
@guard(Role.OWNER, job_columns="status")
@blp.response(204)
def delete_job(caller: Caller, workspace_id: int, job_id: str) -> None:
    """Delete a job that has ended, with its attempts; 409 before."""
    jobs.delete(caller.connection, workspace_id, job_id, actor=caller.name)
