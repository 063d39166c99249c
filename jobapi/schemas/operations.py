"""Operations on all jobs that match a filter."""

from __future__ import annotations

from marshmallow import fields

from ..rules.jobs import JobStatus, Priority
from ..rules.operations import Action, OperationStatus
from .base import (
    MAX_ID,
    Pagination,
    between,
    error_groups,
    error_text,
    job_ids,
    job_keys,
    job_type_text,
    length,
    schedule_ids,
)
from .fields import Choice, Flag, Paths, StatusInput, Text, Time, Whole, doc
from .loading import Base
from .rendering import Response


class JobFilter(Base):
    """Conditions on jobs. A job must meet all of them."""

    status = fields.List(StatusInput(), validate=length(1, 5))
    job_type = fields.List(job_type_text(), validate=length(1, 1000))
    priority = fields.List(Choice(Priority), validate=length(1, 4))
    created_after = Time()
    created_before = Time()
    updated_after = Time()
    created_by = Whole(validate=between(1, MAX_ID))
    job_id = job_ids()
    error = error_text()
    error_group = error_groups()
    concurrency_key = job_keys("Only jobs with one of these keys.")
    unique_key = job_keys("Only jobs with one of these keys.")
    schedule_id = schedule_ids()
    expires_after = Time()
    expires_before = Time()
    metadata = Paths(metadata=doc('Paths with values: `{"batch_id": 3, "file.name": "a.csv"}`.'))


class OperationCreate(Base):
    """An action, and the filter of the jobs that it applies to."""

    action = Choice(Action, required=True)
    filter = fields.Nested(JobFilter, required=True, metadata=doc("`{}` means all jobs."))
    reason = Text(
        validate=length(1, 1000),
        allow_none=True,
        metadata=doc("For cancel and retry: stored in the `result` of each job."),
    )
    dry_run = Flag(load_default=False, metadata=doc("Only count the matching jobs."))


class OperationFilter(JobFilter):
    """The filter of the operation, as sent."""

    class Meta(Response.Meta):
        pass

    status = fields.List(Choice(JobStatus))


class Operation(Response):
    """An operation, or the result of a dry run."""

    operation_id = fields.Integer(
        attribute="id", required=True, allow_none=True, metadata=doc("null for a dry run.")
    )
    workspace_id = fields.Integer(required=True)
    action = Choice(Action, required=True, grows=True)
    filter = fields.Nested(OperationFilter, required=True)
    reason = fields.String(required=True, allow_none=True)
    status = Choice(
        OperationStatus,
        required=True,
        allow_none=True,
        grows=True,
        metadata=doc("null for a dry run."),
    )
    matched = fields.Integer(
        required=True, metadata=doc("Number of jobs that matched when the operation started.")
    )
    matched_is_capped = fields.Boolean(
        required=True, metadata=doc("Whether there were more than `matched`.")
    )
    changed = fields.Integer(required=True, metadata=doc("Number of jobs changed so far."))
    skipped = fields.Integer(
        required=True,
        metadata=doc(
            "Number of jobs left as they are: their result would be too large, or a live job has "
            "their `unique_key`."
        ),
    )
    created_by = fields.Integer(required=True, allow_none=True)
    created_at = Time(required=True, allow_none=True)
    updated_at = Time(required=True, allow_none=True)
    ended_at = Time(required=True, allow_none=True)


class OperationList(Response):
    """A page of operations."""

    data = fields.List(fields.Nested(Operation), required=True)
    pagination = fields.Nested(Pagination, required=True)
