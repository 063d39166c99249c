"""Statistics of a workspace."""

from __future__ import annotations

from marshmallow import fields

from .base import job_type_text, length
from .fields import Time, Word, doc
from .loading import Base
from .rendering import Response


class StatsQuery(Base):
    """The job types to which the numbers are limited."""

    job_type = fields.List(
        job_type_text(),
        validate=length(1, 100),
        metadata=doc("Only these types; may be repeated. Types without jobs have zeros."),
    )


class HistoryQuery(Base):
    """The window of a history."""

    window = Word(
        "Window",
        ["hour", "day", "month"],
        load_default="day",
        metadata=doc("`hour` by the minute, `day` by ten minutes, `month` by four hours."),
    )


def _number(description: str) -> fields.Integer:
    return fields.Integer(required=True, metadata=doc(description))


class JobTotals(Response):
    """Number of jobs in each status."""

    pending = fields.Integer(required=True)
    running = fields.Integer(required=True)
    success = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)


_DUE = "Pending jobs that could be claimed now; scheduled jobs and jobs in backoff do not count."
_IS_CAPPED = "Whether there may be more due jobs than `due`."
_OLDEST_DUE = "How long the oldest due job has been due; 0 if none is due."


def _capped() -> fields.Boolean:
    return fields.Boolean(required=True, metadata=doc(_IS_CAPPED))


class JobTypeTotals(JobTotals):
    """Number of jobs of a type in each status, and of due jobs."""

    due = _number(_DUE)
    due_is_capped = _capped()
    oldest_due_seconds = _number(_OLDEST_DUE)


class JobRates(Response):
    """Number of jobs that were queued, started or ended within the window."""

    queued = _number("Created, or returned to the queue.")
    started = _number("Claimed, or started by a `PATCH`.")
    succeeded = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)


class Windows(Response):
    """The last minute (to ten seconds), hour (to a minute) and day (to ten minutes)."""

    minute = fields.Nested(JobRates, required=True)
    hour = fields.Nested(JobRates, required=True)
    day = fields.Nested(JobRates, required=True)


class JobDurations(Response):
    """Run time of the newest successful jobs, from start to end."""

    jobs = _number("Number of jobs measured.")
    median_seconds = fields.Float(required=True)
    p95_seconds = fields.Float(required=True, metadata=doc("The 95th percentile, by nearest rank."))


class Stats(Response):
    """A workspace at one moment."""

    workspace_id = fields.Integer(required=True)
    at = Time(required=True)
    total = fields.Integer(required=True)
    by_status = fields.Nested(JobTotals, required=True)
    by_type = fields.Dict(
        keys=fields.String(),
        values=fields.Nested(JobTypeTotals),
        required=True,
        metadata=doc("The types that have jobs, and those in `job_type`."),
    )
    due = _number(_DUE)
    due_is_capped = _capped()
    oldest_due_seconds = _number(_OLDEST_DUE)
    oldest_pending_seconds = fields.Integer(
        required=True,
        allow_none=True,
        metadata=doc("Like `oldest_due_seconds`, but `null` if none is due."),
    )
    rates = fields.Nested(Windows, required=True)
    durations = fields.Dict(
        keys=fields.String(),
        values=fields.Nested(JobDurations),
        required=True,
        metadata=doc(
            "By type, over the newest successful jobs: 1,000 in all, shared equally "
            "among the types and priorities, but at least 10 for each."
        ),
    )


class HistoryPoint(JobRates):
    """Changes within an interval, and the totals at its end."""

    at = Time(required=True, metadata=doc("Start of the interval."))
    wait_seconds = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc("Average time that jobs started in the interval had waited."),
    )
    run_seconds = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc("Average run time of jobs that succeeded or failed in the interval."),
    )
    by_status = fields.Nested(JobTotals, required=True)


class History(Response):
    """The history of a workspace, in intervals of equal length."""

    workspace_id = fields.Integer(required=True)
    window = fields.String(required=True)
    span_seconds = fields.Integer(required=True)
    data = fields.List(fields.Nested(HistoryPoint), required=True)
