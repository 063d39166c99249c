"""What workers call: claim jobs, report on them, and see what was attempted."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Sequence
from functools import wraps
from typing import Any

from flask import Response, g, request
from marshmallow import ValidationError

from ..background.long_polling import wish
from ..errors import ValidationFailed
from ..rules.roles import Role
from ..schemas import worker as schemas
from ..services import claims, queue
from ..store.connections import AnyRow
from . import examples
from .access import Caller, guard
from .base import View, json_response, state, to_json
from .blueprints import Blueprint
from .bodies import Unkept, refusal
from .jobs import JOB, JOBS
from .replay import IDEMPOTENCY_KEY, REPLAYED, REPLAYED_HEADER, idempotency_key

blp = Blueprint(
    "worker", "Workers", "Fetch jobs over plain HTTP, and report their progress and results."
)

RETRY_SECONDS = 2
"""The longest ``Retry-After`` of a claim that could not wait."""

_CHANCE = random.SystemRandom()
_RETRY_AFTER = {
    "Retry-After": {
        "schema": {"type": "integer", "minimum": 1},
        "description": "Seconds to wait before the next claim. Only in an empty answer that "
        "came before `wait_seconds` had passed.",
    }
}

MAX_PROBLEM_BYTES = 16 * 1024
"""How large all the problems of malformed reports in one request may be."""

MAX_JOB_ID = 40

_REPORT = schemas.Report()
_LEASE = schemas.Lease()


def waits(view: View) -> View:
    """Long-poll an empty claim: repeat it, access check included, when a job may be available."""

    @wraps(view)
    def waiting(**url: Any) -> Any:
        deadline = time.monotonic()
        g.jobapi_wait = None
        response = view(**url)
        if g.jobapi_wait is None:
            return response
        seconds, wanted = g.jobapi_wait
        deadline += seconds
        room = state().room
        seat = None
        if seconds and request.environ.get("wsgi.multithread"):
            seat = room.enter(wanted)
        if seat is not None:
            metrics = state().metrics
            try:
                if metrics is not None:
                    metrics.waiting.inc()
                while room.wait(seat, deadline, caller_is_gone):
                    g.jobapi_wait = None
                    found = True
                    try:
                        response = view(**url)
                        found = g.jobapi_wait is None
                    finally:
                        if found:
                            room.call(wanted)
                    if found:
                        return response
            finally:
                room.leave(seat)
                if metrics is not None:
                    metrics.waiting.dec()
        if time.monotonic() < deadline:
            # Random, so that claims refused together do not all come back together.
            response.headers["Retry-After"] = str(_CHANCE.randint(1, RETRY_SECONDS))
        return response

    return waiting


def caller_is_gone() -> bool:
    """Whether the sender of this request has closed the connection."""
    environ = request.environ
    connection: Any = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if connection is None:
        return False
    try:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        # Where there is nothing to read a socket may wait in spite of MSG_DONTWAIT: gevent's does.
        if not poll.poll(0):
            return False
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        # A TLS socket takes no flags, so its state is unknown; a closed one has no number.
        return not isinstance(error, ValueError) or connection.fileno() < 0


@blp.operation(
    f"{JOBS}/claim",
    "POST",
    summary="Claim jobs",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY],
)
@waits
@guard(Role.WORKER)
@blp.arguments(schemas.Claim, location="optional_json", required=False, example=examples.CLAIM)
@blp.response(
    200,
    schemas.ClaimedJobs,
    example={"data": [examples.CLAIMED]},
    headers={**REPLAYED_HEADER, **_RETRY_AFTER},
)
def claim_jobs(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Lease due jobs, the most urgent first; `data` is empty where there are none.

    A leased job is `running`, and until the lease runs out only its holder
    can report on it. With an `Idempotency-Key` a claim whose answer was lost
    can be repeated: it answers with the same leases while they live. An answer
    has at most 8 MiB; jobs that do not fit are left for a later claim. With
    `wait_seconds` the claim waits for a first job; if too many claims wait already,
    it is answered at once, with `Retry-After`.
    """
    claim = {name: value for name, value in body.items() if value is not None}
    for job_type in claim.get("job_types", ()):
        caller.check_job_type(job_type)
    if caller.job_types is not None:
        claim.setdefault("job_types", caller.job_types)
    wait_seconds = claim.pop("wait_seconds", 0)
    key = idempotency_key()
    who: dict[str, Any] = {"now": caller.now, "by": caller.name}
    rows: Sequence[AnyRow]
    if key is None:
        token = queue.new_lease_token()
        rows = queue.claim(caller.connection, workspace_id, lease_token=token, **who, **claim)
    else:
        rows, replayed = claims.claim(
            caller.connection, workspace_id, key=key, body=body, **who, **claim
        )
        if replayed:
            # To wait would change nothing: these leases have ended.
            early = {"Retry-After": "1"} if wait_seconds and not rows else {}
            return _claimed(rows, {**REPLAYED, **early})
    metrics = state().metrics
    if rows and metrics is not None:
        metrics.claimed(workspace_id, rows)
    if not rows:
        if wait_seconds:
            state().end_host_reads()
        g.jobapi_wait = (wait_seconds, wish(workspace_id, claim.get("job_types")))
    return _claimed(rows, {})


def _claimed(rows: Any, headers: dict[str, str]) -> Response:
    return json_response(schemas.ClaimedJobs.render({"data": rows}), headers=headers)


@blp.operation(f"{JOBS}/report", "POST", summary="Report on claimed jobs", errors=(404,))
@guard(Role.WORKER)
@blp.arguments(schemas.Reports, location="reports_json", example=examples.REPORTS)
@blp.response(200, schemas.ReportAnswers, example=examples.REPORT_ANSWERS)
def report_jobs(caller: Caller, body: dict[str, Any], workspace_id: int) -> Any:
    """Heartbeats, progress, results, hand-backs and ends; each is judged alone.

    `running`, or no status, renews the lease for its own time; `pending` hands
    the job back; `success` and `failed` end the attempt. A final report may be
    repeated with the same token. A report with invalid content is refused but still
    renews the lease: see its `lease_expires_at`.
    """
    given = body["reports"]
    answers: list[dict[str, Any]] = []
    reports = []
    judged: list[queue.Answer] = []
    most = MAX_PROBLEM_BYTES
    for raw in given:
        try:
            if isinstance(raw, Unkept):
                raise ValidationError(dict[str, Any](raw.wrong))
            reports.append(_REPORT.load(raw))
            answers.append({})
        except ValidationError as error:
            problem = refusal(error.messages)
            most -= len(to_json(problem.problem()))
            if most < 0:
                problem = ValidationFailed(
                    {"body": ["Not valid; correct the reports above first."]}
                )
            lease = _lease(raw)
            if lease is None:
                answers.append(_answer(_job_id(raw), queue.Answer(problem=problem)))
            else:
                reports.append({**lease, "refused": problem})
                answers.append({})
    if reports:
        judged = queue.report(
            caller.connection,
            workspace_id,
            reports,
            backoff=state().backoff,
            only_job_types=caller.job_types,
            by=caller.name,
        )
        if any(answer.job is not None and queue.is_due(answer.job) for answer in judged):
            state().room.announce(caller.connection, workspace_id)
        results = iter(zip(reports, judged, strict=True))
        for number, answer in enumerate(answers):
            if not answer:
                report, found = next(results)
                answers[number] = _answer(report["job_id"], found)
    metrics = state().metrics
    if metrics is not None:
        metrics.reported(workspace_id, reports, judged, malformed=len(given) - len(reports))
    return {"data": answers}


def _lease(raw: Any) -> dict[str, Any] | None:
    """The lease that an otherwise invalid report is about."""
    if not isinstance(raw, dict):
        return None
    try:
        said = _LEASE.load({name: raw[name] for name in _LEASE.fields.keys() & raw.keys()})
    except ValidationError as error:
        said = error.valid_data
    return said if said.keys() >= {"job_id", "lease_token"} else None


def _job_id(raw: Any) -> str | None:
    job_id = raw.get("job_id") if isinstance(raw, dict) else None
    if not isinstance(job_id, str) or len(job_id) > MAX_JOB_ID:
        return None
    return job_id if job_id.isascii() and job_id.isprintable() else None


def _answer(job_id: str | None, answer: queue.Answer) -> dict[str, Any]:
    job, problem, _, renewed = answer
    accepted = problem is None
    return {
        "job_id": job_id,
        "accepted": accepted,
        "status": None if job is None else job.status,
        "lease_expires_at": job.lease_expires_at if accepted or renewed else None,
        "problem": None if problem is None else problem.problem(),
    }


@blp.operation(f"{JOB}/attempts", summary="List a job's attempts", errors=(404,))
@guard(Role.VIEWER, job="job")
@blp.response(200, schemas.Attempts, example=examples.ATTEMPTS)
def list_attempts(caller: Caller, workspace_id: int, job_id: str) -> Any:
    """Every attempt in its order: who, when, and how it ended."""
    return {"data": queue.list_attempts(caller.connection, caller.job)}
