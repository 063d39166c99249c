"""The jobs of a workspace: ``/workspace/{workspace_id}/jobs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, cast

from flask import Response
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
from ..schemas.base import Reason
from ..schemas.explain import Explanation
from ..services import creating, explain, jobs, queue
from ..services.changing import changed_since
from ..store.transactions import snapshot
from . import examples
from .access import Caller, guard, lease_token
from .base import View, json_response, location, sent, state
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
from .openapi import alternative, header, header_parameter
from .replay import IDEMPOTENCY_KEY, REPLAYED_HEADER, replayable

blp = Blueprint(
    "jobs", "Jobs", "Create jobs in a workspace; watch, filter, change, cancel and retry them."
)

JOBS = "/workspace/<workspace_id>/jobs"
JOB = f"{JOBS}/<job_id>"

TRACEPARENT = header_parameter(
    "traceparent", "The creator's W3C trace context; a claim of the job returns it."
)
LEASE_TOKEN = header_parameter(
    "Lease-Token", "The `lease_token` from the claim: makes this request a report from the worker."
)


@blp.operation(
    JOBS,
    "POST",
    summary="Create job in workspace",
    errors=(404, 409, 429),
    parameters=[IDEMPOTENCY_KEY, TRACEPARENT],
    responses=alternative(
        200, "A live job has the `unique_key`.", schemas.ExistingJob, REPLAYED_HEADER
    ),
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

    If a live job has the same `unique_key`, `on_conflict` decides what happens; a response with
    that job is 200 and has `existing`. If the type has reached its `max_pending`, the response is
    429 `queue-full`.

    With an `Idempotency-Key` the request is safe to repeat.
    """
    check_target(body.pop("workspace_id"), workspace_id, "workspace_id")
    caller.check_job_type(body["job_type"])

    def create(connection: Connection) -> dict[str, Any]:
        made = creating.submit(connection, workspace_id, **_creation(caller), **body)
        return with_existing(made) if made.existing else schemas.Job.render(made.job)

    answer, headers = replayable(caller, workspace_id, "create_job", body, create)
    if answer.get("existing"):
        return json_response(answer, 200, headers)
    state().waiters.announce(caller.connection, workspace_id)
    url = location("jobapi-jobs.get_job", workspace_id=workspace_id, job_id=answer["job_id"])
    return json_response(answer, 201, {**etag(1), **url, **headers})


def _creation(caller: Caller) -> creating.Creation:
    return {
        "created_by": caller.user_id,
        "now": caller.now,
        "actor": caller.name,
        "traceparent": sent("traceparent"),
        "flow_version": caller.flow_version,
    }


def with_existing(made: creating.Created) -> dict[str, Any]:
    """Return a job, and whether it was there already."""
    return {**schemas.Job.render(made.job), "existing": made.existing}


def check_target(given: int, workspace_id: int, name: str) -> None:
    """Raise ``ValidationFailed`` for another workspace than that of the URL."""
    if given != workspace_id:
        raise ValidationFailed({name: [f"Must match the workspace in the URL, {workspace_id}."]})


@blp.operation(
    f"{JOBS}/batch",
    "POST",
    summary="Create many jobs in workspace",
    errors=(404, 409, 429),
    parameters=[IDEMPOTENCY_KEY, TRACEPARENT],
    responses=alternative(
        200,
        "No job was created: live jobs have the unique keys.",
        schemas.JobBatchCreated,
        REPLAYED_HEADER,
    ),
)
@guard(Role.MEMBER)
@blp.arguments(schemas.JobBatch, example={"jobs": [examples.CREATE]})
@blp.response(
    201,
    schemas.JobBatchCreated,
    example={"data": [examples.PENDING]},
    headers=REPLAYED_HEADER,
)
def create_jobs(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Create up to 1,000 jobs, all or none. The response has them in the same order.

    Items with the same `unique_key` are processed in order. If every item has
    the `unique_key` of a live job, no job is created and the response is 200.

    With an `Idempotency-Key` the request is safe to repeat.
    """
    items = body["jobs"]
    for number, item in enumerate(items):
        check_target(
            item.pop("workspace_id", workspace_id), workspace_id, f"jobs.{number}.workspace_id"
        )
        caller.check_job_type(item["job_type"])
    has_unique_keys = any("unique_key" in item for item in items)

    def create(connection: Connection) -> dict[str, Any]:
        made = creating.submit_many(connection, workspace_id, items, **_creation(caller))
        return render(made)

    def render(made: Sequence[creating.Created]) -> dict[str, Any]:
        if not has_unique_keys:
            return {"data": [schemas.Job.render(each.job) for each in made]}
        return {"data": [with_existing(each) for each in made]}

    def keep(answer: dict[str, Any]) -> Any:
        if caller.flow_version or has_unique_keys:
            return answer
        # The rest can be derived from the request, which is the same.
        return caller.now, [job["job_id"] for job in answer["data"]]

    def again(kept: Any) -> dict[str, Any]:
        if isinstance(kept, dict):
            return kept
        now, ids = kept
        rows = creating.new_rows(
            workspace_id, items, created_by=caller.user_id, now=datetime.fromisoformat(now), ids=ids
        )
        return render([creating.Created(row) for row in rows])

    answer, headers = replayable(
        caller, workspace_id, "create_jobs", body, create, keep=keep, again=again
    )
    if all(job.get("existing") for job in answer["data"]):
        return json_response(answer, 200, headers)
    state().waiters.announce(caller.connection, workspace_id)
    return json_response(answer, 201, headers)


@blp.operation(
    JOB,
    summary="Get job details",
    errors=(404,),
    parameters=[IF_NONE_MATCH],
    responses=NOT_MODIFIED,
)
@guard(Role.VIEWER, job_columns="shown")
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
    """Return the result of a job that has ended; until then, 409."""
    job: Any = caller.job
    status = JobStatus(job.status)
    if not status.ended:
        raise JobNotEnded(f"The job is {status.label}; it has a result only after it has ended.")
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
    parameters=[IF_MATCH, LEASE_TOKEN],
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
    `Lease-Token`, the request is a report from the worker: invalid content is refused, but the
    lease is still renewed.
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
        flow_version=caller.flow_version,
    )
    metrics = state().metrics
    if metrics is not None and body.get("status") is JobStatus.FAILED:
        metrics.failed(workspace_id)
    return _wake_claims_and_answer(caller, row)


def _report(caller: Caller, body: JobEdit, workspace_id: int, job_id: str, token: str) -> Any:
    wanted = version_wanted()
    if wanted is not None and not wanted(caller.job.version if caller.job else 0):
        raise changed_since()
    not_for_workers = sorted(PENDING_FIELDS.keys() & body.keys())
    if not_for_workers:
        raise JobNotEditable(
            f"The job is running; {', '.join(not_for_workers)} can be changed only while it "
            "is pending."
        )
    report = cast(Report, {"job_id": job_id, "lease_token": token, **body})
    answer, row = queue.report_one(
        caller.connection,
        workspace_id,
        report,
        backoff=state().backoff,
        actor=caller.name,
        flow_version=caller.flow_version,
    )
    metrics = state().metrics
    if metrics is not None:
        metrics.reported(workspace_id, [report], [answer])
    if answer.problem is not None:
        raise answer.problem
    return _wake_claims_and_answer(caller, row)


def _wake_claims_and_answer(caller: Caller, row: Job) -> Any:
    """Answer with a changed job. If it is pending or has freed a slot, wake waiting claims."""
    if row.status == JobStatus.PENDING or (
        row.status != JobStatus.RUNNING and queue.holds_slot(row)
    ):
        state().waiters.announce(caller.connection, row.workspace_id)
    return tagged(row)


@blp.operation(
    f"{JOB}/cancel", "POST", summary="Cancel job", errors=(404, 409, 412), parameters=[IF_MATCH]
)
@guard(Role.MEMBER, job_columns="all")
@blp.arguments(Reason, location="optional_json", required=False)
@blp.response(200, schemas.Job, example=examples.CANCELLED, headers=ETAG)
def cancel_job(caller: Caller, body: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """Cancel a pending or running job; its partial result is kept."""
    return _wake_claims_and_answer(
        caller, _with_reason(jobs.cancel, caller, body, workspace_id, job_id)
    )


@blp.operation(
    f"{JOB}/retry", "POST", summary="Retry job", errors=(404, 409, 412), parameters=[IF_MATCH]
)
@guard(Role.MEMBER, job_columns="all")
@blp.arguments(Reason, location="optional_json", required=False)
@blp.response(200, schemas.Job, example=examples.RETRIED, headers=ETAG)
def retry_job(caller: Caller, body: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """Return a failed or cancelled job to the queue, due now."""
    return _wake_claims_and_answer(
        caller, _with_reason(jobs.retry, caller, body, workspace_id, job_id)
    )


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


@blp.operation(f"{JOB}/explain", summary="Explain a job's state", errors=(404,))
@guard(Role.VIEWER, job_columns="all")
@blp.response(200, Explanation)
def explain_job(caller: Caller, workspace_id: int, job_id: str) -> Any:
    """Explain why a job is waiting and when it may start, whether it is on time, or what ended it.

    Codes for a pending job: `scheduled`, `retry-backoff`, `workspace-paused`, `type-paused`,
    `at-capacity`, `key-at-capacity`, `rate-limited`, `no-live-worker`, `behind-others`, `ready`;
    for a running one: `running`, `overdue`, `lease-late`; for an ended one: `success`, `failed`,
    `cancelled`, `lease-expired`, `timed-out`.
    """
    job: Any = caller.job
    with snapshot(caller.connection) as connection:
        found = explain.explain(connection, job, flow_version=caller.flow_version)
    reasons = [{"code": each.code, "detail": each.detail, **each.more} for each in found.reasons]
    return {**vars(found), "job_id": job.job_id, "status": job.status, "reasons": reasons}


@blp.operation(JOB, "DELETE", summary="Delete job", errors=(404, 409))
@guard(Role.OWNER, job_columns="status")
@blp.response(204)
def delete_job(caller: Caller, workspace_id: int, job_id: str) -> None:
    """Delete a job that has ended, with its attempts; until then, 409."""
    jobs.delete(caller.connection, workspace_id, job_id, actor=caller.name)
