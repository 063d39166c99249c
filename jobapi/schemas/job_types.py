"""Job types: their settings, and how they are doing."""

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


_DEFAULT = " null: the service's default."


class RateLimitUpdate(Base):
    """Changes of a token bucket on starts; a new one needs both."""

    starts = Whole(validate=between(1, 100_000), metadata=doc("So many jobs start at most …"))
    seconds = Whole(validate=between(1, 86_400), metadata=doc("… in so many seconds."))


class JobTypeUpdate(Base):
    """Changes of the settings of a job type; absent ones stay, null returns to the default."""

    paused = Flag(allow_none=True, metadata=doc("Whether claims hand out none of its jobs."))
    paused_reason = Text(
        allow_none=True, validate=length(1, 1000), metadata=doc("Only while it is paused.")
    )
    max_running = _number(1, 1000, "At most so many of its jobs run at the same time.")
    max_running_per_key = _number(
        1, 1000, "The same for the jobs with one `concurrency_key`; 1: one after the other."
    )
    rate_limit = fields.Nested(RateLimitUpdate, allow_none=True)
    max_pending = _number(
        1, 10_000_000, "A create beyond so many pending jobs is 429 `queue-full`."
    )
    start_within_seconds = _number(
        1, 31_536_000, "Default for `expires_at`, counted from `due_at`."
    )
    priority = Choice(Priority, allow_none=True, metadata=doc("Default priority of new jobs."))
    max_retries = _number(0, MAX_RETRIES_LIMIT, "Default of new jobs." + _DEFAULT)
    timeout_seconds = seconds(1, "Default of new jobs.")
    retry_backoff_seconds = _number(
        1, 86_400, "How long the first automatic retry waits." + _DEFAULT
    )
    retry_backoff_max_seconds = _number(
        1, 86_400, "How long an automatic retry waits at most." + _DEFAULT
    )


class RateLimit(Response):
    """A token bucket on starts."""

    starts = fields.Integer(required=True, metadata={"example": 100})
    seconds = fields.Integer(required=True, metadata={"example": 60})


def _setting(**metadata: Any) -> fields.Integer:
    return fields.Integer(required=True, allow_none=True, metadata=metadata)


class JobType(Response):
    """A job type: its settings, null for the default, and how it is doing."""

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
        metadata=doc("For how long the oldest due job has been due; null if none is.", example=4),
    )
    live_workers = fields.Integer(
        required=True, metadata=doc("Number of live workers that claim this type.", example=3)
    )


class JobTypeList(Response):
    """A page of job types, by name."""

    data = fields.List(fields.Nested(JobType), required=True)
    pagination = fields.Nested(Pagination, required=True)
