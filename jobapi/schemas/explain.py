"""Why a job waits, and when it is likely to start."""

from __future__ import annotations

from marshmallow import fields

from ..rules.jobs import JobStatus
from .fields import Choice, Time, doc
from .rendering import Response


class ExplanationReason(Response):
    """A reason for the status of a job. Numbers and times are present only where they apply."""

    code = fields.String(
        required=True,
        metadata=doc(
            "Code of the reason, for programs. Later versions may add others.",
            example="at-capacity",
        ),
    )
    detail = fields.String(
        required=True,
        metadata=doc(
            "The reason as a sentence, for people.",
            example="At most 20 jobs of its type may run at the same time (max_running); the limit "
            "is reached.",
        ),
    )
    until = Time(metadata=doc("When the reason is expected to end."))
    at = Time(metadata=doc("When it happened."))
    limit = fields.Integer(metadata=doc("The limit that is reached.", example=20))
    ahead = fields.Integer(
        metadata=doc("Number of jobs that are likely to start first, up to 10,000.")
    )
    seconds = fields.Integer(metadata=doc("How long the attempt has run."))
    worker = fields.String(allow_none=True, metadata=doc("Name of the worker."))
    attempt = fields.Integer(metadata=doc("Number of the attempt."))
    actor = fields.String(
        allow_none=True,
        metadata=doc("Who made the change; `null` for the service itself.", example="user:1"),
    )
    reason = fields.String(
        allow_none=True, metadata=doc("The error, or the reason that was given.")
    )


class Explanation(Response):
    """Why a job has its status, and estimates."""

    job_id = fields.String(required=True)
    status = Choice(JobStatus, required=True)
    reasons = fields.List(fields.Nested(ExplanationReason), required=True)
    ahead = fields.Integer(
        required=True,
        allow_none=True,
        metadata=doc(
            "Number of jobs of its type that are likely to start first; `null` unless the job "
            "is pending."
        ),
    )
    ahead_is_capped = fields.Boolean(
        required=True, metadata=doc("Whether there are more than `ahead`.")
    )
    live_workers = fields.Integer(
        required=True, metadata=doc("Number of live workers that claim its type.")
    )
    estimated_start_at = Time(
        required=True, allow_none=True, metadata=doc("null if unknown: see `estimate_basis`.")
    )
    estimated_completion_at = Time(
        required=True, allow_none=True, metadata=doc("null if unknown: see `estimate_basis`.")
    )
    estimate_basis = fields.String(
        required=True,
        metadata=doc(
            "What the estimates are based on, or why there are none.",
            example="The median duration of the last 100 jobs of this type.",
        ),
    )
