"""The worker protocol."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields

from ..rules.jobs import JobStatus, Outcome
from .base import MAX_SECONDS, MAX_TEXT, between, job_type_text, length, percent
from .fields import Choice, Document, Flag, Text, Time, Unjudged, Whole, doc
from .job_logs import log_entries
from .jobs import Job, begun_flag, progress_out_of_result, run_id_text
from .loading import Base
from .rendering import Response

MAX_REPORTS = 100
"""How many reports a request may carry."""


class Claim(Base):
    """A worker's request for jobs."""

    job_types = fields.List(
        job_type_text(),
        allow_none=True,
        validate=length(1, 1000),
        metadata=doc("Only these types. Default: all that the caller may claim."),
    )
    limit = Whole(
        allow_none=True,
        validate=between(1, 100),
        metadata=doc("Maximum number of jobs.", default=1),
    )
    lease_seconds = Whole(
        allow_none=True,
        validate=between(5, 3600),
        metadata=doc("How long a lease lasts without a report.", default=60),
    )
    worker = Text(allow_none=True, validate=length(1, 200), metadata=doc("The worker's name."))
    wait_seconds = Whole(
        allow_none=True,
        validate=between(0, 20),
        metadata=doc("How long to wait for a first job.", default=0),
    )
    begin = Flag(
        allow_none=True,
        metadata=doc(
            "Whether the attempts begin with the claim, which is the default. "
            "`false` prefetches jobs: an attempt begins with the first report that carries "
            "`begun`, progress, a result, an error or logs, or that ends it. Until then "
            "`timeout_seconds` does not count, and an expired lease costs no retry."
        ),
    )

    prefetch = Whole(
        allow_none=True,
        validate=between(0, 100),
        metadata=doc(
            "How many of the `limit` jobs the worker cannot begin yet. Types with `max_running`, "
            "`max_running_per_key` or `rate_limit` are left out of these.",
            default=0,
        ),
    )


class ClaimedJob(Job):
    """A claimed job with its lease."""

    lease_token = fields.String(
        required=True,
        metadata=doc(
            "Proves the lease; each report needs it.", example="8f14e45fceea167a5a36dedd4bea2543"
        ),
    )
    lease_expires_at = Time(required=True, metadata={"example": "2024-01-15T15:01:01Z"})
    attempt = fields.Integer(
        required=True, metadata=doc("Number of the attempt, from 1.", example=1)
    )
    begun = fields.Boolean(
        required=True,
        metadata=doc(
            "Whether the attempt has begun. A job whose last lease expired before "
            "its attempt began is claimed alone, and its attempt begins with the claim, even if "
            "`begin` is `false`.",
            example=True,
        ),
    )
    traceparent = fields.String(
        required=True,
        allow_none=True,
        metadata=doc(
            "The W3C trace context of the request that created the job.",
            example="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    )

    @staticmethod
    def get_begun(job: Any) -> bool:
        """Whether the attempt has begun."""
        return not job.prefetched


class ClaimedJobs(Response):
    """The claimed jobs."""

    data = fields.List(fields.Nested(ClaimedJob), required=True)


class Lease(Base):
    """Identifies the lease of a job, and the run that works under it."""

    job_id = Text(required=True, validate=length(1, 40))
    lease_token = Text(required=True, validate=length(1, 64))
    run_id = run_id_text()


class Report(Lease):
    """A report from the holder of a lease."""

    status = Choice(
        [JobStatus.RUNNING, JobStatus.PENDING, JobStatus.SUCCESS, JobStatus.FAILED],
        also={"completed": JobStatus.SUCCESS},
        component="ReportedStatus",
        allow_none=True,
        metadata=doc("`pending` releases the job. Default: `running`."),
    )
    progress_percent = percent()
    progress_message = Text(allow_none=True, validate=length(0, 2000))
    result = Document(
        allow_none=True, metadata=doc("Merged into the result (RFC 7396): a null removes a key.")
    )
    error = Text(allow_none=True, validate=length(0, MAX_TEXT))
    retryable = Flag(
        allow_none=True,
        metadata=doc("Whether a failure may be retried automatically.", default=True),
    )
    retry_after = Whole(
        allow_none=True,
        validate=between(0, MAX_SECONDS),
        metadata=doc("Seconds until the retry, instead of the usual backoff."),
    )
    begun = begun_flag()
    logs = log_entries(
        0,
        allow_none=True,
        metadata=doc(
            "Entries for the job's log, stored together with the report. A report that is refused, "
            "or a final one that is repeated, adds none."
        ),
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Treat null as absent, unlike in a PATCH, where it removes a value."""
        data = {name: value for name, value in data.items() if value is not None}
        data = progress_out_of_result(data)
        if data.get("status") is JobStatus.SUCCESS and "error" in data:
            raise ValidationError(
                "A job that succeeds has no error. Leave error out, or report failed.", "error"
            )
        return data


class Reports(Base):
    """Reports. Each is accepted or refused by itself."""

    reports = fields.List(Unjudged(Report), required=True, validate=length(1, MAX_REPORTS))


class ReportAnswer(Response):
    """The outcome of a report."""

    job_id = fields.String(required=True, allow_none=True)
    accepted = fields.Boolean(required=True)
    status = Choice(
        JobStatus, required=True, allow_none=True, metadata=doc("Current status of the job.")
    )
    lease_expires_at = Time(
        required=True,
        allow_none=True,
        metadata=doc(
            "`null` if the lease was not renewed, because the token no longer holds the job or "
            "another run has begun the attempt."
        ),
    )
    problem = fields.Nested("Problem", required=True, allow_none=True)


class ReportAnswers(Response):
    """The outcomes of the reports, in the order of the request."""

    data = fields.List(fields.Nested(ReportAnswer), required=True)


class Attempt(Response):
    """One attempt at a job."""

    attempt = fields.Integer(required=True, metadata=doc("From 1."))
    worker = fields.String(required=True, allow_none=True)
    started_at = Time(required=True)
    ended_at = Time(required=True, allow_none=True)
    outcome = Choice(
        Outcome,
        grows=True,
        required=True,
        allow_none=True,
        metadata=doc("How the attempt ended; `null` while it is running."),
    )
    error = fields.String(required=True, allow_none=True)


class Attempts(Response):
    """A job's attempts, the first one first."""

    data = fields.List(fields.Nested(Attempt), required=True)
