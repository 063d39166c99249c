"""Schedules: bodies and answers."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields

from ..rules import cron
from ..rules.jobs import OnConflict
from ..rules.roles import MAX_NAME_LENGTH, NAME_PATTERN, NAME_RULE
from ..rules.schedules import CatchUp, Overlap, RunOutcome
from .base import MAX_SECONDS, Pagination, between, job_type_text, length
from .fields import Choice, Pattern, Text, Time, Whole, doc
from .jobs import JobBatchItem
from .loading import Base
from .rendering import Response

MAX_JITTER = 86_400
_NOT_IN_JOB = ("scheduled_at", "expires_at")


class ScheduleJob(JobBatchItem):
    """The job of a schedule: what a create takes, without the times."""

    class Meta(JobBatchItem.Meta):
        exclude = _NOT_IN_JOB


class ShownScheduleJob(ScheduleJob):
    """The job of a schedule, as it is stored."""

    class Meta(Response.Meta):
        exclude = (*_NOT_IN_JOB, "workspace_id")

    on_conflict = Choice(OnConflict, grows=True)


class ScheduleJobUpdate(JobBatchItem):
    """Changes of the job of a schedule, merged into it (RFC 7396); null removes a field."""

    class Meta(JobBatchItem.Meta):
        exclude = _NOT_IN_JOB

    job_type = job_type_text(metadata=doc("Type of job to create.", example="data_processing"))

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Leave nulls, which remove fields."""
        return data


def _name(**kw: Any) -> Text:
    form = Pattern(f"^{NAME_PATTERN}$", error=NAME_RULE)
    return Text(
        validate=[length(1, MAX_NAME_LENGTH), form],
        metadata=doc("Unique in the workspace.", example="nightly report"),
        **kw,
    )


class _Timing(Base):
    cron = Text(
        allow_none=True,
        validate=length(1, cron.MAX_LENGTH),
        metadata=doc(
            "Five fields: minute, hour, day of month, month, day of week. Either this or "
            "`every_seconds`.",
            example="30 2 * * *",
        ),
    )
    every_seconds = Whole(
        allow_none=True,
        validate=between(1, MAX_SECONDS),
        metadata=doc("An interval, counted from `starts_at`, or else from the creation."),
    )
    timezone = Text(
        allow_none=True,
        validate=length(1, 64),
        metadata=doc(
            "IANA name of the time zone of `cron`.", default="UTC", example="Europe/Berlin"
        ),
    )
    overlap = Choice(
        Overlap,
        allow_none=True,
        metadata=doc(
            "What a tick does while a job of the schedule is pending or running: create another "
            "one, create none, or cancel that first.",
            default="allow",
        ),
    )
    catch_up = Choice(
        CatchUp,
        allow_none=True,
        metadata=doc(
            "Which ticks that an outage has missed create jobs: none, the last one, or the last "
            "100.",
            default="last",
        ),
    )
    jitter_seconds = Whole(
        allow_none=True,
        validate=between(0, MAX_JITTER),
        metadata=doc("Each job is created up to so many seconds later.", default=0),
    )
    starts_at = Time(allow_none=True, metadata=doc("There are no ticks before this time."))
    ends_at = Time(allow_none=True, metadata=doc("There are no ticks after this time."))


class ScheduleCreate(_Timing):
    """A new schedule."""

    name = _name(required=True)
    job = fields.Nested(ScheduleJob, required=True, metadata=doc("The job to create at each tick."))

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Require exactly one of ``cron`` and ``every_seconds``; null is the same as absent."""
        data = {name: value for name, value in data.items() if value is not None}
        if ("cron" in data) == ("every_seconds" in data):
            raise ValidationError("Give either cron or every_seconds.", "cron")
        return data


class ScheduleUpdate(_Timing):
    """Changes of a schedule; absent fields stay as they are, null returns to the default."""

    name = _name()
    job = fields.Nested(
        ScheduleJobUpdate,
        metadata=doc(
            "Merged into the job (RFC 7396). From then on, the caller is whom the jobs run as."
        ),
    )


class LastRun(Response):
    """What has become of the last tick, or run by hand."""

    scheduled_for = Time(
        required=True,
        allow_none=True,
        metadata=doc("The tick; null for a run by hand.", example="2024-01-15T01:30:00Z"),
    )
    ran_at = Time(required=True, metadata={"example": "2024-01-15T01:30:01Z"})
    outcome = Choice(
        RunOutcome,
        grows=True,
        required=True,
        metadata=doc(
            "`existing`: a live job had the `unique_key`. `overlap`, `queue_full` and `missed`: "
            "there is no job.",
            example="created",
        ),
    )
    job_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"example": "job_01hm5vq2k8d7t3n6b1r9c4f0ga"},
    )


class Schedule(Response):
    """A schedule."""

    schedule_id = fields.String(
        required=True, metadata={"example": "sch_01943a5e9c7b7d0f8a1b2c3d4e5f6071"}
    )
    name = fields.String(required=True, metadata={"example": "nightly report"})
    cron = fields.String(required=True, allow_none=True, metadata={"example": "30 2 * * *"})
    every_seconds = fields.Integer(required=True, allow_none=True)
    timezone = fields.String(required=True, metadata={"example": "Europe/Berlin"})
    job = fields.Nested(ShownScheduleJob, required=True)
    overlap = Choice(Overlap, grows=True, required=True, metadata={"example": "skip"})
    catch_up = Choice(CatchUp, grows=True, required=True, metadata={"example": "last"})
    jitter_seconds = fields.Integer(required=True, metadata={"example": 0})
    starts_at = Time(required=True, allow_none=True)
    ends_at = Time(required=True, allow_none=True)
    paused = fields.Boolean(required=True, metadata={"example": False})
    paused_reason = fields.String(required=True, allow_none=True)
    suspended_reason = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("Why the schedule was suspended: whom it runs as may not create the job."),
    )
    next_run_at = Time(
        required=True,
        allow_none=True,
        metadata=doc(
            "The next tick, without the jitter; null while the schedule is paused or suspended, "
            "and once it has ended.",
            example="2024-01-16T01:30:00Z",
        ),
    )
    upcoming = fields.List(
        Time(),
        required=True,
        metadata=doc("The next five ticks.", example=["2024-01-16T01:30:00Z"]),
    )
    last_run = fields.Nested(LastRun, required=True, allow_none=True)
    runs_as = fields.String(
        required=True,
        metadata=doc("The user or key that has changed `job` last.", example="user:123"),
    )
    created_by = fields.Integer(required=True, metadata={"example": 123})
    workspace_id = fields.Integer(required=True, metadata={"example": 1})
    created_at = Time(required=True, metadata={"example": "2024-01-15T10:00:00Z"})
    updated_at = Time(required=True, metadata={"example": "2024-01-15T10:00:00Z"})


class ScheduleList(Response):
    """A page of schedules, in the order of their creation."""

    data = fields.List(fields.Nested(Schedule), required=True)
    pagination = fields.Nested(Pagination, required=True)
