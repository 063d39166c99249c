"""Why a job waits, and when it is likely to start."""

from __future__ import annotations

from marshmallow import fields

from ..rules.jobs import JobStatus
from .fields import Choice, Time, doc
from .rendering import Response


class ExplanationReason(Response):
    """A reason for the state of a job; numbers and times only where they apply."""

    code = fields.String(
        required=True,
        metadata=doc("What it is, for programs. Others may be added.", example="at-capacity"),
    )
    detail = fields.String(
        required=True,
        metadata=doc(
            "The same for people.",
            example="20 jobs of its type may run at the same time (max_running), and as many do.",
        ),
    )
    until = Time(metadata=doc("How long it is expected to last."))
    at = Time(metadata=doc("When it happened."))
    limit = fields.Integer(metadata=doc("The limit that is reached.", example=20))
    ahead = fields.Integer(metadata=doc("How many jobs come first, up to 10,000."))
    seconds = fields.Integer(metadata=doc("How long the attempt has run."))
    worker = fields.String(allow_none=True, metadata=doc("Name of the worker."))
    attempt = fields.Integer(metadata=doc("Number of the attempt."))
    actor = fields.String(
        allow_none=True, metadata=doc("Who did it; null: the service itself.", example="user:1")
    )
    reason = fields.String(allow_none=True, metadata=doc("The error, or the given reason."))


class Explanation(Response):
    """The state of a job, and estimates."""

    job_id = fields.String(required=True)
    status = Choice(JobStatus, required=True)
    reasons = fields.List(fields.Nested(ExplanationReason), required=True)
    ahead = fields.Integer(
        required=True,
        allow_none=True,
        metadata=doc("How many jobs of its type come first; null unless the job is pending."),
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
            "What the estimates were made of, or why there are none.",
            example="The median duration of the last 100 jobs of this type.",
        ),
    )
