"""The worker's routes: claim jobs, report on them, and list attempts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from flask import Response, request
from marshmallow import ValidationError

from ..background.long_polling import topic
from ..background.server_socket import caller_is_gone
from ..errors import ValidationFailed
from ..rules.jobs import Job, Report
from ..rules.roles import Role
from ..schemas import worker as schemas
from ..services import claims, queue
from . import examples
from .access import Caller, guard, with_access
from .base import json_response, state, to_json
from .blueprints import Blueprint
from .bodies import Unkept, refusal
from .jobs import JOB, JOBS
from .openapi import header
from .replay import IDEMPOTENCY_KEY, REPLAYED, REPLAYED_HEADER, idempotency_key

blp = Blueprint(
    "worker", "Workers", "Fetch jobs over plain HTTP, and report their progress and results."
)

RETRY_SECONDS = 2
"""The longest ``Retry-After`` of a claim that could not wait."""

_CHANCE = random.SystemRandom()
_RETRY_AFTER = header(
    "Retry-After",
    "Seconds to wait before the next claim. Only in an empty response that came before "
    "`wait_seconds` had passed.",
    type="integer",
    minimum=1,
)

MAX_PROBLEM_BYTES = 16 * 1024
"""How large all the problems of malformed reports in one request may be."""

MAX_JOB_ID = 40

_REPORT = schemas.Report()
_LEASE = schemas.Lease()


@blp.operation(
    f"{JOBS}/claim", "POST", summary="Claim jobs", errors=(404, 409), parameters=[IDEMPOTENCY_KEY]
)
@guard(Role.WORKER)
@blp.arguments(schemas.Claim, location="optional_json", required=False, example=examples.CLAIM)
@blp.response(
    200,
    schemas.ClaimedJobs,
    example={"data": [examples.CLAIMED]},
    headers={**REPLAYED_HEADER, **_RETRY_AFTER},
)
def claim_jobs(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Lease due jobs, the most urgent first; `data` is empty if no job is due.

    A leased job is `running`, and only the holder of the lease can report on it until the lease
    expires. With an `Idempotency-Key`, a claim whose response was lost can be repeated: it
    returns the same leases while they last. A response has at most 8 MiB; jobs that do not fit
    are left for a later claim. With `wait_seconds`, the claim waits for a first job; if too many
    claims are already waiting, it returns at once, with `Retry-After`.
    """
    wait_seconds = body.get("wait_seconds") or 0
    deadline = time.monotonic() + wait_seconds
    claim = partial(_claim, body=body, workspace_id=workspace_id)
    response = claim(caller)
    if response is None and wait_seconds and request.environ.get("wsgi.multithread"):
        # A waiting claim holds no connection.
        caller.connection.close()
        response = state().waiters.retry(
            topic(workspace_id, _job_types(caller, body)),
            deadline,
            lambda: caller_is_gone(request.environ),
            lambda: with_access(Role.WORKER, workspace_id, claim),
        )
    if response is not None:
        return response
    # At random, so that claims that were refused together do not all come back together.
    early = {"Retry-After": str(_CHANCE.randint(1, RETRY_SECONDS))}
    return _claimed([], early if time.monotonic() < deadline else {})


def _claim(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response | None:
    """Claim once; None if there was no job, and a later claim may get one."""
    for job_type in body.get("job_types") or ():
        caller.check_job_type(job_type)
    wanted = {name: value for name, value in body.items() if value is not None}
    job_types = wanted["job_types"] = _job_types(caller, body)
    worker = wanted.get("worker")
    state().note_worker(caller.connection, workspace_id, worker, caller.name, job_types)
    wait_seconds = wanted.pop("wait_seconds", 0)
    key = idempotency_key()
    rows: Sequence[Job]
    if key is None:
        rows = queue.claim(
            caller.connection,
            workspace_id,
            lease_token=queue.new_lease_token(),
            now=caller.now,
            actor=caller.name,
            flow_version=caller.flow_version,
            **wanted,
        )
    else:
        rows, replayed = claims.claim(
            caller.connection,
            workspace_id,
            key=key,
            body=body,
            now=caller.now,
            actor=caller.name,
            flow_version=caller.flow_version,
            **wanted,
        )
        if replayed:
            # The leases of the first claim have ended: waiting would not change that.
            early = {"Retry-After": "1"} if wait_seconds and not rows else {}
            return _claimed(rows, {**REPLAYED, **early})
    metrics = state().metrics
    if rows and metrics is not None:
        metrics.claimed(workspace_id, rows)
    if not rows and wait_seconds:
        state().end_host_reads()
    return _claimed(rows, {}) if rows else None


def _job_types(caller: Caller, body: dict[str, Any]) -> Sequence[str] | None:
    return body.get("job_types") or caller.job_types


def _claimed(rows: Any, headers: dict[str, str]) -> Response:
    return json_response(schemas.ClaimedJobs.render({"data": rows}), headers=headers)


@blp.operation(f"{JOBS}/report", "POST", summary="Report on claimed jobs", errors=(404,))
@guard(Role.WORKER)
@blp.arguments(schemas.Reports, location="reports_json", example=examples.REPORTS)
@blp.response(200, schemas.ReportAnswers, example=examples.REPORT_ANSWERS)
def report_jobs(caller: Caller, body: dict[str, Any], workspace_id: int) -> Any:
    """Report heartbeats, progress, results and ends of attempts; release jobs.

    Each report is accepted or refused by itself. `running`, or no status, renews the lease for its
    `lease_seconds`; `pending` releases the job; `success` and `failed` end the attempt. A final
    report may be repeated with the same token. A report with invalid content is refused but still
    renews the lease: see its `lease_expires_at`. `logs` are added to the
    job's log.
    """
    given = _loaded(body["reports"])
    reports = [each for each in given if not isinstance(each, _Malformed)]
    judged: list[queue.Answer] = []
    if reports:
        judged = queue.report(
            caller.connection,
            workspace_id,
            reports,
            backoff=state().backoff,
            only_job_types=caller.job_types,
            actor=caller.name,
            flow_version=caller.flow_version,
        )
        if any(
            answer.frees_slot or (answer.job is not None and queue.is_due(answer.job))
            for answer in judged
        ):
            state().waiters.announce(caller.connection, workspace_id)
    metrics = state().metrics
    if metrics is not None:
        metrics.reported(workspace_id, reports, judged, malformed=len(given) - len(reports))
        logged = [answer.logged for answer in judged if answer.logged is not None]
        if logged:
            metrics.logged(workspace_id, logged)
    found = iter(judged)
    return {
        "data": [
            _answer(each.job_id, queue.Answer(problem=each.problem))
            if isinstance(each, _Malformed)
            else _answer(each["job_id"], next(found))
            for each in given
        ]
    }


class _Malformed(NamedTuple):
    """An invalid report without a lease that could be renewed."""

    job_id: str | None
    problem: ValidationFailed


def _loaded(given: Sequence[Any]) -> list[Report | _Malformed]:
    """Load each report. An invalid report with a lease is reduced to its lease and the error."""
    loaded: list[Report | _Malformed] = []
    remaining = MAX_PROBLEM_BYTES
    for raw in given:
        try:
            if isinstance(raw, Unkept):
                raise ValidationError(dict[str, Any](raw.wrong))
            loaded.append(cast(Report, _REPORT.load(raw)))
        except ValidationError as error:
            problem = refusal(error.messages)
            remaining -= len(to_json(problem.problem()))
            if remaining < 0:
                problem = ValidationFailed(
                    {"body": ["Not valid; correct the reports above first."]}
                )
            lease = _lease(raw)
            if lease is None:
                loaded.append(_Malformed(_job_id(raw), problem))
            else:
                loaded.append({**lease, "refused": problem})
    return loaded


def _lease(raw: Any) -> Report | None:
    """The lease that an otherwise invalid report is about."""
    if not isinstance(raw, dict):
        return None
    try:
        said = _LEASE.load({name: raw[name] for name in _LEASE.fields.keys() & raw.keys()})
    except ValidationError as error:
        said = error.valid_data
    return cast(Report, said) if said.keys() >= {"job_id", "lease_token"} else None


def _job_id(raw: Any) -> str | None:
    job_id = raw.get("job_id") if isinstance(raw, dict) else None
    if not isinstance(job_id, str) or len(job_id) > MAX_JOB_ID:
        return None
    return job_id if job_id.isascii() and job_id.isprintable() else None


def _answer(job_id: str | None, answer: queue.Answer) -> dict[str, Any]:
    job, problem = answer.job, answer.problem
    holds = problem is None or answer.renewed
    return {
        "job_id": job_id,
        "accepted": problem is None,
        "status": None if job is None else job.status,
        "lease_expires_at": job.lease_expires_at if job is not None and holds else None,
        "problem": None if problem is None else problem.problem(),
    }


@blp.operation(f"{JOB}/attempts", summary="List a job's attempts", errors=(404,))
@guard(Role.VIEWER, job_columns="all")
@blp.response(200, schemas.Attempts, example=examples.ATTEMPTS)
def list_attempts(caller: Caller, workspace_id: int, job_id: str) -> Any:
    """List the attempts in order: which worker ran each, when, and how it ended."""
    job: Any = caller.job
    return {"data": queue.list_attempts(caller.connection, job)}
