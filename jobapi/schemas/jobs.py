"""Jobs: queries, bodies and answers."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields

from ..rules.causes import cause
from ..rules.jobs import DEFAULT_MAX_RETRIES, MAX_RETRIES_LIMIT, JobStatus, OnConflict, Priority
from .base import (
    MAX_CHOICES,
    MAX_ID,
    MAX_REPEATS,
    MAX_TEXT,
    Pagination,
    PagingQuery,
    between,
    error_groups,
    error_text,
    job_ids,
    job_keys,
    job_type_text,
    key_text,
    length,
    percent,
    schedule_ids,
    seconds,
    sort_order,
)
from .fields import Choice, Document, Flag, QueryInteger, StatusInput, Text, Time, Whole, Word, doc
from .loading import Base
from .rendering import Response


class JobListQuery(PagingQuery):
    """Filters, order and page of a list of jobs."""

    PATHS = "metadata"

    light = fields.Boolean(load_default=False, metadata=doc("Leave out `metadata` and `result`."))
    created_after = Time(metadata=doc("Only jobs created at this time or later."))
    created_before = Time(metadata=doc("Only jobs created before this time."))
    updated_after = Time(metadata=doc("Only jobs changed at this time or later."))
    created_by = QueryInteger(validate=between(1, MAX_ID), metadata=doc("Only this user's jobs."))
    job_id = job_ids()
    error = error_text()
    error_group = error_groups()
    concurrency_key = job_keys("Only jobs with one of these keys; may be repeated.")
    unique_key = job_keys("Only jobs with one of these keys; may be repeated.")
    schedule_id = schedule_ids()
    expires_after = Time(metadata=doc("Only jobs that expire at this time or later."))
    expires_before = Time(metadata=doc("Only jobs that expire before this time."))
    status = fields.List(
        StatusInput(),
        validate=length(1, MAX_CHOICES),
        metadata=doc("Only these statuses; may be repeated."),
    )
    job_type = fields.List(
        job_type_text(),
        validate=length(1, MAX_REPEATS),
        metadata=doc("Only these types; may be repeated."),
    )
    priority = fields.List(
        Choice(Priority),
        validate=length(1, MAX_CHOICES),
        metadata=doc("Only these priorities; may be repeated."),
    )
    sort = Word(
        "JobSort",
        ["created_at", "updated_at", "started_at", "priority", "status"],
        load_default="created_at",
        metadata=doc(
            "Field to sort by; jobs with equal values are sorted by creation. `started_at` only "
            "together with `status=running`."
        ),
    )
    order = sort_order("desc", "Sort order.")

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Refuse to sort by start unless all jobs of the list are running."""
        if data["sort"] == "started_at" and set(data.get("status", ())) != {JobStatus.RUNNING}:
            raise ValidationError(
                "Sorting by started_at requires status=running. Add it, or sort by another field.",
                "sort",
            )
        return super().complete(data)


class LegacyJobListQuery(JobListQuery):
    """Filters, order and page of a list of the jobs of all workspaces, or one."""

    workspace_id = QueryInteger(validate=between(1, MAX_ID), metadata=doc("Only this workspace."))


class JobPagination(Pagination):
    """The position of a page in its list of jobs, and the cursor of the next page."""

    total = fields.Integer(
        required=True,
        metadata=doc(
            "Number of matching jobs. Exact with filters by `status`, `job_type` and "
            "`priority`. With other filters, it counts up to 10,000 matches among the jobs that "
            "are read for a page, at most 100,000."
        ),
    )
    total_is_capped = fields.Boolean(
        required=True, metadata=doc("Whether there may be more than `total`.")
    )


class JobCreate(Base):
    """A new job."""

    job_type = job_type_text(
        required=True, metadata=doc("Type of job to create.", example="data_processing")
    )
    workspace_id = Whole(
        required=True, metadata=doc("Target workspace; must match the URL.", example=1)
    )
    priority = Choice(Priority, allow_none=True, metadata={"default": "normal", "example": "high"})
    metadata = Document(
        allow_none=True,
        metadata=doc(
            "Input of the job, stored unchanged.",
            example={
                "source_file": "dataset.csv",
                "output_format": "parquet",
                "filters": {"column": "value"},
            },
        ),
    )
    estimated_duration = seconds(0, "Expected duration in seconds.", example=600)
    scheduled_at = Time(
        allow_none=True,
        metadata=doc(
            "The job does not start before this time. A time in the past means now.",
            example="2024-01-15T15:00:00Z",
        ),
    )
    max_retries = Whole(
        allow_none=True,
        validate=between(0, MAX_RETRIES_LIMIT),
        metadata=doc(
            "How many times a failed attempt is retried automatically.", default=DEFAULT_MAX_RETRIES
        ),
    )
    timeout_seconds = seconds(1, "How long an attempt may run, in seconds.")
    concurrency_key = key_text(
        "Jobs of one type with the same key share the type's `max_running_per_key`, and take turns "
        "with the jobs of other keys."
    )
    unique_key = key_text(
        "At most one pending or running job of a type may have it; see `on_conflict`."
    )
    on_conflict = Choice(
        OnConflict,
        allow_none=True,
        metadata=doc(
            "What to do if a live job has the `unique_key`: return that job (`keep`), give it "
            "the new `metadata`, `priority` and `scheduled_at` while it is pending (`replace`), or "
            "return 409 `job-exists` (`refuse`). Not stored.",
            default="keep",
        ),
    )
    expires_at = Time(
        allow_none=True,
        metadata=doc(
            "The job is cancelled if no attempt has begun by then. Must be later than now and "
            "`scheduled_at`."
        ),
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Treat null as absent."""
        return {name: value for name, value in data.items() if value is not None}


def begun_flag() -> Flag:
    """Whether the attempt at a leased job has begun."""
    return Flag(
        allow_none=True,
        metadata=doc(
            "Only with a lease: `true` begins the attempt at a job that was "
            "claimed with `begin: false`."
        ),
    )


def run_id_text() -> Text:
    """Identifies the run that begins an attempt."""
    return Text(
        allow_none=True,
        validate=length(1, 64),
        metadata=doc(
            "Only with a lease: identifies the run that begins the attempt. "
            "Reports of any other run are refused with `already-begun`."
        ),
    )


class JobUpdate(Base):
    """Changes to a job. Absent fields stay as they are."""

    status = StatusInput(metadata=doc("`completed` means `success`."))
    progress_percent = percent()
    progress_message = Text(allow_none=True, validate=length(0, 2000))
    result = Document(
        allow_none=True, metadata=doc("Merged into the result (RFC 7396): a null removes a key.")
    )
    error = Text(allow_none=True, validate=length(0, MAX_TEXT), metadata=doc("Why the job failed."))
    priority = Choice(Priority, allow_none=True, metadata=doc("Only while the job is pending."))
    scheduled_at = Time(allow_none=True, metadata=doc("Only while the job is pending."))
    estimated_duration = seconds(0, "Seconds; only while the job is pending.")
    max_retries = Whole(
        allow_none=True,
        validate=between(0, MAX_RETRIES_LIMIT),
        metadata=doc("Only while the job is pending."),
    )
    timeout_seconds = seconds(1, "Only while the job is pending.")
    metadata = Document(
        allow_none=True,
        metadata=doc("Merged into the metadata (RFC 7396); only while the job is pending."),
    )
    concurrency_key = key_text("Only while the job is pending.")
    unique_key = key_text("Only while the job is pending.")
    expires_at = Time(allow_none=True, metadata=doc("Only while the job is pending."))

    begun = begun_flag()
    run_id = run_id_text()

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Move progress out of the result."""
        return progress_out_of_result(data)


def progress_out_of_result(data: dict[str, Any]) -> dict[str, Any]:
    """Move ``progress_percent`` and ``progress_message`` out of a sent result."""
    result = data.get("result")
    if not result:
        return data
    inside = {k: result[k] for k in ("progress_percent", "progress_message") if k in result}
    if not inside:
        return data
    try:
        progress = _ProgressInResult().load(inside)
    except ValidationError as error:
        raise ValidationError({"result": error.messages}) from None
    rest = {k: v for k, v in result.items() if k not in inside}
    data = {k: v for k, v in data.items() if k != "result"}
    return {**progress, **data, **({"result": rest} if rest else {})}


class _ProgressInResult(Base):
    progress_percent = percent()
    progress_message = Text(allow_none=True, validate=length(0, 2000))


class Job(Response):
    """A job with all its fields."""

    job_id = fields.String(required=True, metadata={"example": "job_01hm5vq2k8d7t3n6b1r9c4f0ga"})
    job_type = fields.String(required=True)
    status = Choice(JobStatus, required=True, metadata={"example": "pending"})
    priority = Choice(Priority, required=True)
    workspace_id = fields.Integer(required=True)
    created_by = fields.Integer(required=True, metadata=doc("The creator's user id.", example=123))
    metadata = Document(required=True, allow_none=True)
    result = Document(
        required=True,
        allow_none=True,
        metadata=doc("Includes the progress while the job is running."),
    )
    error = fields.String(
        required=True, allow_none=True, metadata=doc("Error of the last attempt.")
    )
    estimated_duration = fields.Integer(required=True, allow_none=True)
    actual_duration = fields.Integer(
        required=True, allow_none=True, metadata=doc("Whole seconds from `due_at` to the end.")
    )
    timeout_seconds = fields.Integer(
        required=True, allow_none=True, metadata=doc("Maximum duration of an attempt.")
    )
    retry_count = fields.Integer(
        required=True, metadata=doc("Retries so far, automatic or by a caller.", example=0)
    )
    max_retries = fields.Integer(
        required=True, metadata=doc("Limit of automatic retries.", example=DEFAULT_MAX_RETRIES)
    )
    created_at = Time(required=True, metadata={"example": "2024-01-15T11:00:00Z"})
    updated_at = Time(required=True, metadata={"example": "2024-01-15T11:00:00Z"})
    started_at = Time(required=True, allow_none=True, metadata=doc("Start of the last attempt."))
    completed_at = Time(required=True, allow_none=True, metadata=doc("End of the job."))
    scheduled_at = Time(required=True, allow_none=True)
    due_at = Time(
        required=True,
        metadata=doc(
            "When the job may start: the later of its creation, or its last retry, "
            "and `scheduled_at`.",
            example="2024-01-15T15:00:00Z",
        ),
    )
    concurrency_key = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("Jobs with the same key share a limit, and take turns with other keys."),
    )
    unique_key = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("No other live job of the type has this key."),
    )
    expires_at = Time(
        required=True,
        allow_none=True,
        metadata=doc("The job is cancelled at this time if no attempt has begun."),
    )

    schedule_id = fields.String(
        required=True, allow_none=True, metadata=doc("The schedule that created the job.")
    )
    scheduled_for = Time(
        required=True,
        allow_none=True,
        metadata=doc("The tick of the schedule; null if a caller ran the schedule."),
    )

    @staticmethod
    def get_result(job: Any) -> Any:
        """Merge progress into the result of a running job."""
        if job.status != JobStatus.RUNNING or (
            job.progress_percent is None and job.progress_message is None
        ):
            return job.result
        return {
            "progress_percent": job.progress_percent or 0,
            "progress_message": job.progress_message,
            **(job.result or {}),
        }


class ExistingJob(Job):
    """The live job that has the `unique_key` of a create."""

    existing = fields.Boolean(required=True, metadata=doc("Always `true`.", example=True))


class ListedJob(Job):
    """A job in a list. Light lists leave out ``metadata`` and ``result``."""

    metadata = Document(allow_none=True)
    result = Document(allow_none=True)


class JobList(Response):
    """A page of jobs."""

    data = fields.List(fields.Nested(ListedJob), required=True)
    pagination = fields.Nested(JobPagination, required=True)


class _Progress(Response):
    progress_percent = fields.Integer(required=True, validate=between(0, 100))
    progress_message = fields.String(required=True, allow_none=True)

    @staticmethod
    def get_progress_percent(job: Any) -> int:
        """100 once the job has succeeded, 0 before any report."""
        return 100 if job.status == JobStatus.SUCCESS else job.progress_percent or 0


class LightJob(_Progress, Job):
    """A job for a table: without the fields that may be large, and with what a row shows."""

    class Meta(Response.Meta):
        exclude = ("metadata", "result")

    error_cause = fields.String(
        required=True,
        allow_none=True,
        metadata=doc(
            "The line of `error` that says why the job failed, such as the last line of a "
            "traceback."
        ),
    )
    error_group = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("Identifies errors whose causes differ only in numbers, ids and the like."),
    )
    worker = fields.String(
        required=True, allow_none=True, metadata=doc("Name of the worker that runs the job.")
    )

    @staticmethod
    def get_error_cause(job: Any) -> str | None:
        """Find the cause in the text of the error."""
        return None if job.error is None else cause(job.error)

    @staticmethod
    def get_worker(job: Any) -> str | None:
        """The worker, only while the job is running: the row keeps the last one."""
        return job.worker if job.status == JobStatus.RUNNING else None


class LightJobList(JobList):
    """A page of jobs without the fields that may be large."""

    data = fields.List(fields.Nested(LightJob), required=True)


class JobProgress(_Progress):
    """A job's status and progress."""

    job_id = fields.String(required=True)
    status = Choice(JobStatus, required=True)
    updated_at = Time(required=True)


class JobResult(Response):
    """The result of a job that has ended."""

    job_id = fields.String(required=True)
    result = Document(required=True, allow_none=True)
    status = Choice(JobStatus, required=True)
    completed_at = Time(required=True)


class JobBatchItem(JobCreate):
    """A new job of a batch."""

    workspace_id = Whole(allow_none=True, metadata=doc("Optional; must match the URL."))


class JobBatch(Base):
    """Jobs to create, all or none."""

    jobs = fields.List(fields.Nested(JobBatchItem), required=True, validate=length(1, 1000))


class BatchJob(Job):
    """A job of a batch."""

    existing = fields.Boolean(
        metadata=doc(
            "Whether this is a live job that already had the `unique_key`. Only if the request "
            "has unique keys."
        )
    )


class JobBatchCreated(Response):
    """The jobs, in the order of the request."""

    data = fields.List(fields.Nested(BatchJob), required=True)


class JobErrorsQuery(Base):
    """The job types, and how many groups."""

    job_type = fields.List(
        job_type_text(),
        validate=length(1, MAX_REPEATS),
        metadata=doc("Only these types; may be repeated."),
    )
    limit = QueryInteger(
        load_default=50, validate=between(1, 100), metadata=doc("Number of groups.")
    )


class FailureGroup(Response):
    """Jobs of one type that have failed with the same cause."""

    job_type = fields.String(required=True, metadata={"example": "data_processing"})
    error_group = fields.String(required=True, metadata={"example": "9f86d081884c7d65"})
    cause = fields.String(
        required=True,
        metadata=doc(
            "The cause of the job that failed last.", example="ValueError: bad row 17 in 'a.csv'"
        ),
    )
    count = fields.Integer(required=True, metadata=doc("Number of failed jobs.", example=36))
    count_is_capped = fields.Boolean(
        required=True, metadata=doc("Whether there are more jobs than `count`.")
    )
    first_failed_at = Time(required=True, metadata={"example": "2024-01-15T10:00:00Z"})
    last_failed_at = Time(required=True, metadata={"example": "2024-01-15T11:00:00Z"})
    job_ids = fields.List(
        fields.String(), required=True, metadata=doc("The jobs that failed last, up to three.")
    )


class JobErrors(Response):
    """Failed jobs by their causes."""

    data = fields.List(fields.Nested(FailureGroup), required=True)
    is_capped = fields.Boolean(required=True, metadata=doc("Whether there are more groups."))
