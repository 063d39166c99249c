"""Job types: their settings, and their numbers of jobs and workers."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from ..rules.jobs import MAX_RETRIES_LIMIT, Priority
from .base import Pagination, between, length, seconds
from .fields import Choice, Flag, Text, Whole, doc
from .loading import Base
from .rendering import Response


def _number(least: int, most: int, description: str) -> Whole:
    return Whole(allow_none=True, validate=between(least, most), metadata=doc(description))


_DEFAULT = " `null`: the service's default."


class RateLimitUpdate(Base):
    """Changes to the rate limit; a new one needs both fields."""

    starts = Whole(
        validate=between(1, 100_000), metadata=doc("How many jobs may start in `seconds`.")
    )
    seconds = Whole(validate=between(1, 86_400), metadata=doc("Length of the period, in seconds."))


class JobTypeUpdate(Base):
    """Changes to the settings of a job type. Absent settings stay; `null` restores a default."""

    paused = Flag(allow_none=True, metadata=doc("If `true`, claims return no jobs of this type."))
    paused_reason = Text(
        allow_none=True, validate=length(1, 1000), metadata=doc("Only while the type is paused.")
    )
    max_running = _number(1, 1000, "The most jobs of the type that run at the same time.")
    max_running_per_key = _number(
        1,
        1000,
        "The same for jobs with the same `concurrency_key`. With 1, they run one after the other.",
    )
    rate_limit = fields.Nested(RateLimitUpdate, allow_none=True)
    max_pending = _number(
        1, 10_000_000, "The most pending jobs; a create beyond it returns 429 `queue-full`."
    )
    start_within_seconds = _number(
        1, 31_536_000, "Default for `expires_at`, counted from `due_at`."
    )
    priority = Choice(Priority, allow_none=True, metadata=doc("Default priority of new jobs."))
    max_retries = _number(
        0, MAX_RETRIES_LIMIT, "Default limit of automatic retries of new jobs." + _DEFAULT
    )
    timeout_seconds = seconds(1, "Default time limit of an attempt, in seconds.")
    retry_backoff_seconds = _number(
        1, 86_400, "Longest delay before the first automatic retry, in seconds." + _DEFAULT
    )
    retry_backoff_max_seconds = _number(
        1, 86_400, "Longest delay before any automatic retry, in seconds." + _DEFAULT
    )


class RateLimit(Response):
    """A token bucket on starts."""

    starts = fields.Integer(required=True, metadata={"example": 100})
    seconds = fields.Integer(required=True, metadata={"example": 60})


def _setting(**metadata: Any) -> fields.Integer:
    return fields.Integer(required=True, allow_none=True, metadata=metadata)


class JobType(Response):
    """A job type: its settings (`null`: the default), and its numbers of jobs and workers."""

    job_type = fields.String(required=True, metadata={"example": "data_processing"})
    paused = fields.Boolean(required=True)
    paused_reason = fields.String(required=True, allow_none=True)
    max_running = _setting(example=20)
    max_running_per_key = _setting(example=1)
    rate_limit = fields.Nested(RateLimit, required=True, allow_none=True)
    max_pending = _setting()
    start_within_seconds = _setting()
    priority = Choice(Priority, required=True, allow_none=True)
    max_retries = _setting()
    timeout_seconds = _setting()
    retry_backoff_seconds = _setting()
    retry_backoff_max_seconds = _setting()
    pending = fields.Integer(required=True, metadata=doc("Number of pending jobs.", example=12))
    running = fields.Integer(required=True, metadata=doc("Number of running jobs.", example=20))
    oldest_due_seconds = fields.Integer(
        required=True,
        allow_none=True,
        metadata=doc("How long the oldest due job has been due; `null` if none is due.", example=4),
    )
    live_workers = fields.Integer(
        required=True, metadata=doc("Number of live workers that claim this type.", example=3)
    )


class JobTypeList(Response):
    """A page of job types, by name."""

    data = fields.List(fields.Nested(JobType), required=True)
    pagination = fields.Nested(Pagination, required=True)
