"""The shapes of requests and responses. No rules, no queries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, cast

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, post_load, validate

from .fields import (
    Choice,
    Document,
    Flag,
    Many,
    Paths,
    Pattern,
    QueryInteger,
    StatusInput,
    Text,
    Time,
    Unjudged,
    Whole,
)
from .identity import (
    MAX_NAME_LENGTH,
    MAX_PASSWORD_LENGTH,
    MIN_PASSWORD_LENGTH,
    NAME_PATTERN,
    NAME_RULE,
    USERNAME_PATTERN,
    USERNAME_RULE,
    Role,
)
from .lifecycle import (
    DEFAULT_MAX_RETRIES,
    JOB_TYPE_PATTERN,
    JOB_TYPE_RULE,
    MAX_RETRIES_LIMIT,
    Action,
    EventKind,
    JobStatus,
    OperationStatus,
    Outcome,
    Priority,
)

MAX_SECONDS = 10 * 365 * 24 * 3600
MAX_PAGE = 10**9
MAX_TEXT = 65_536


def _text(least: int, most: int) -> validate.Length:
    return validate.Length(min=least, max=most)


def _range(least: int, most: int) -> validate.Range:
    return validate.Range(min=least, max=most)


def _job_type(**kw: Any) -> Text:
    return Text(
        validate=Pattern(f"^{JOB_TYPE_PATTERN}$", error=JOB_TYPE_RULE),
        **kw,
    )


def _seconds(least: int, doc: str) -> Whole:
    return Whole(
        allow_none=True,
        validate=_range(least, MAX_SECONDS),
        metadata={"description": doc},
    )


class Base(Schema):
    """A request body, or a response: a field that is not known is refused."""

    class Meta:
        unknown = RAISE

    # What JSON Schema can say of a schema and marshmallow cannot.
    DOCUMENTED: ClassVar[Mapping[str, Any]] = {}

    PATHS: ClassVar[str] = ""
    """The name whose paths may be query parameters, too: see ``query_paths``."""

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """What is to be done after the fields have been loaded."""
        return data

    @post_load
    def _complete(self, data: dict[str, Any], **kw: Any) -> dict[str, Any]:
        return self.complete(data)

    def load_one(self, data: Any) -> dict[str, Any]:
        """``load`` of one of many: the same, at a fraction of the cost where nothing is wrong.

        For schemas whose fields have no defaults and keep their names.
        """
        take = self._take
        try:
            loaded = {name: take[name](value) for name, value in data.items() if value is not None}
            # Whether a null is in its place is left to ``load``.
            if loaded.keys() >= self._required and len(loaded) == len(data):
                return self.complete(loaded)
        except (AttributeError, KeyError, ValidationError):
            pass
        return cast(dict[str, Any], self.load(data))

    @cached_property
    def _take(self) -> dict[str, Any]:
        return {
            name: getattr(field, "take", field.deserialize) for name, field in self.fields.items()
        }

    @cached_property
    def _required(self) -> set[str]:
        return {name for name, field in self.fields.items() if field.required}


class PagingQuery(Base):
    """Which page of a list."""

    page = QueryInteger(
        validate=_range(1, MAX_PAGE), metadata={"description": "Page number.", "default": 1}
    )
    limit = QueryInteger(
        load_default=50, validate=_range(1, 100), metadata={"description": "Items per page."}
    )
    cursor = Text(
        validate=_text(1, 500),
        metadata={"description": "The `next_cursor` of a page, instead of `page`."},
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page is led to in one way."""
        if "cursor" not in data:
            return {"page": 1, **data}
        if "page" in data:
            raise ValidationError("Give either cursor or page.", "cursor")
        return data


class JobListQuery(PagingQuery):
    """Filters, order and page of a list of jobs."""

    PATHS = "metadata"

    light = fields.Boolean(
        load_default=False, metadata={"description": "Whether metadata and result are left out."}
    )
    created_after = Time(metadata={"description": "Only jobs created at this time or later."})
    created_before = Time(metadata={"description": "Only jobs created before this time."})
    updated_after = Time(metadata={"description": "Only jobs changed at this time or later."})
    created_by = QueryInteger(
        validate=_range(1, 2**31 - 1), metadata={"description": "Only this user's jobs."}
    )
    status = fields.List(
        StatusInput(), metadata={"description": "Only these statuses; may be repeated."}
    )
    job_type = fields.List(
        _job_type(), metadata={"description": "Only these types; may be repeated."}
    )
    priority = fields.List(
        Choice(Priority), metadata={"description": "Only these priorities; may be repeated."}
    )
    sort = fields.String(
        load_default="created_at",
        validate=validate.OneOf(["created_at", "updated_at", "priority", "status"]),
        metadata={"description": "Field to sort by; equal values stay in the order of creation."},
    )
    order = fields.String(
        load_default="desc",
        validate=validate.OneOf(["asc", "desc"]),
        metadata={"description": "Sort order."},
    )


class LegacyJobListQuery(JobListQuery):
    """The same over all workspaces, or one."""

    workspace_id = QueryInteger(
        validate=_range(1, 2**31 - 1), metadata={"description": "Only this workspace."}
    )


class Pagination(Base):
    """Where in a list a page lies, and where it goes on."""

    page = fields.Integer(
        required=True, allow_none=True, metadata={"description": "null where a cursor led here."}
    )
    limit = fields.Integer(required=True)
    total = fields.Integer(required=True, metadata={"description": "How many items there are."})
    total_pages = fields.Integer(required=True)
    next_cursor = fields.String(
        required=True, allow_none=True, metadata={"description": "null on the last page."}
    )


class JobPagination(Pagination):
    """Where in a list of jobs a page lies, and where it goes on."""

    total = fields.Integer(
        required=True,
        metadata={
            "description": "How many jobs match: exact, but for filters other than status, "
            "job_type and priority, with which it ends at 10,000."
        },
    )
    total_is_capped = fields.Boolean(
        required=True, metadata={"description": "Whether there are more than `total`."}
    )


class JobCreate(Base):
    """A new job."""

    job_type = _job_type(required=True, metadata={"description": "Type of job to create."})
    workspace_id = Whole(
        required=True,
        metadata={"description": "Target workspace; must match the URL."},
    )
    priority = Choice(Priority, allow_none=True, metadata={"default": "normal"})
    metadata = Document(
        keys=fields.String(),
        allow_none=True,
        metadata={"description": "What the job needs to know; given back as it is."},
    )
    estimated_duration = _seconds(0, "Expected duration in seconds.")
    scheduled_at = Time(
        allow_none=True,
        metadata={"description": "Not to be started before; a time in the past means now."},
    )
    max_retries = Whole(
        allow_none=True,
        validate=_range(0, MAX_RETRIES_LIMIT),
        metadata={
            "description": "How often a failed attempt is retried by itself.",
            "default": DEFAULT_MAX_RETRIES,
        },
    )
    timeout_seconds = _seconds(1, "How long an attempt may run, in seconds.")

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """A null is the same as absence."""
        return {name: value for name, value in data.items() if value is not None}


def _percent() -> Whole:
    return Whole(allow_none=True, validate=_range(0, 100))


class JobUpdate(Base):
    """What to change of a job; what is left out stays."""

    status = StatusInput(metadata={"description": "`completed` means `success`."})
    progress_percent = _percent()
    progress_message = Text(allow_none=True, validate=_text(0, 2000))
    result = Document(
        keys=fields.String(),
        allow_none=True,
        metadata={"description": "Merged into the result (RFC 7396): a null removes a key."},
    )
    error = Text(
        allow_none=True,
        validate=_text(0, MAX_TEXT),
        metadata={"description": "Why the job failed."},
    )
    priority = Choice(
        Priority, allow_none=True, metadata={"description": "Only while the job is pending."}
    )
    scheduled_at = Time(allow_none=True, metadata={"description": "Only while the job is pending."})
    estimated_duration = _seconds(0, "Seconds; only while the job is pending.")
    max_retries = Whole(
        allow_none=True,
        validate=_range(0, MAX_RETRIES_LIMIT),
        metadata={"description": "Only while the job is pending."},
    )
    timeout_seconds = _seconds(1, "Only while the job is pending.")
    metadata = Document(
        keys=fields.String(),
        allow_none=True,
        metadata={
            "description": "Merged into the metadata (RFC 7396); only while the job is pending."
        },
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Progress is taken out of the result."""
        return progress_out_of_result(data)


def progress_out_of_result(data: dict[str, Any]) -> dict[str, Any]:
    """Progress inside a sent result is progress, and is no part of the result."""
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
    progress_percent = _percent()
    progress_message = Text(allow_none=True, validate=_text(0, 2000))


class Reason(Base):
    """Why a job is cancelled or retried."""

    reason = Text(validate=_text(1, 1000), allow_none=True)


class Job(Base):
    """A job, whole."""

    job_id = fields.String(required=True)
    job_type = fields.String(required=True)
    status = Choice(JobStatus, required=True)
    priority = Choice(Priority, required=True)
    workspace_id = fields.Integer(required=True)
    created_by = fields.Integer(required=True, metadata={"description": "The creator's user id."})
    metadata = Document(keys=fields.String(), required=True, allow_none=True)
    result = Document(
        keys=fields.String(),
        required=True,
        allow_none=True,
        metadata={"description": "While the job runs, with its progress in it."},
    )
    error = fields.String(
        required=True, allow_none=True, metadata={"description": "The last attempt's."}
    )
    estimated_duration = fields.Integer(required=True, allow_none=True)
    actual_duration = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "Whole seconds from `due_at` to the end."},
    )
    timeout_seconds = fields.Integer(required=True, allow_none=True)
    retry_count = fields.Integer(required=True)
    max_retries = fields.Integer(required=True)
    created_at = Time(required=True)
    updated_at = Time(required=True)
    started_at = Time(required=True, allow_none=True)
    completed_at = Time(required=True, allow_none=True)
    scheduled_at = Time(required=True, allow_none=True)
    due_at = Time(
        required=True,
        metadata={"description": "The later of creation, or retry, and `scheduled_at`."},
    )


class ListedJob(Job):
    """A job in a list; a light one has neither `metadata` nor `result`."""

    metadata = Document(keys=fields.String(), allow_none=True)
    result = Document(keys=fields.String(), allow_none=True)


class JobList(Base):
    """A page of jobs."""

    data = fields.List(fields.Nested(ListedJob), required=True)
    pagination = fields.Nested(JobPagination, required=True)


class JobFilter(Base):
    """What jobs have to be like: all of what is given."""

    status = fields.List(StatusInput(), validate=_text(1, 5))
    job_type = fields.List(_job_type(), validate=_text(1, 100))
    priority = fields.List(Choice(Priority), validate=_text(1, 4))
    created_after = Time()
    created_before = Time()
    updated_after = Time()
    created_by = Whole(validate=_range(1, 2**31 - 1))
    metadata = Paths(
        metadata={"description": 'Paths with values: `{"batch_id": 3, "file.name": "a.csv"}`.'},
    )


class OperationCreate(Base):
    """What to do to which jobs."""

    action = Choice(Action, required=True)
    filter = fields.Nested(
        JobFilter, required=True, metadata={"description": "`{}` means all jobs."}
    )
    reason = Text(
        validate=_text(1, 1000),
        allow_none=True,
        metadata={"description": "For cancel and retry: it stands in each job's `result`."},
    )
    dry_run = Flag(
        load_default=False,
        metadata={"description": "Whether nothing is to be done but to say how many match."},
    )


class Operation(Base):
    """What is being done to many jobs; of a dry run, what would be."""

    operation_id = fields.Integer(
        attribute="id", required=True, allow_none=True, metadata={"description": "null: a dry run."}
    )
    workspace_id = fields.Integer(required=True)
    action = Choice(Action, required=True)
    filter = fields.Nested(JobFilter, required=True)
    reason = fields.String(required=True, allow_none=True)
    status = Choice(OperationStatus, required=True, allow_none=True)
    matched = fields.Integer(
        required=True, metadata={"description": "How many jobs matched when it began."}
    )
    matched_is_capped = fields.Boolean(
        required=True, metadata={"description": "Whether there were more than `matched`."}
    )
    changed = fields.Integer(
        required=True, metadata={"description": "To how many it has been done."}
    )
    skipped = fields.Integer(
        required=True,
        metadata={"description": "To how many it cannot be done: their result would be too large."},
    )
    created_by = fields.Integer(required=True, allow_none=True)
    created_at = Time(required=True, allow_none=True)
    updated_at = Time(required=True, allow_none=True)
    ended_at = Time(required=True, allow_none=True)


class OperationList(Base):
    """A page of operations."""

    data = fields.List(fields.Nested(Operation), required=True)
    pagination = fields.Nested(Pagination, required=True)


class HistoryQuery(Base):
    """How far back."""

    window = fields.String(
        load_default="day",
        validate=validate.OneOf(["hour", "day", "month"]),
        metadata={"description": "By the minute, by ten minutes, by four hours."},
    )


def _number(doc: str) -> fields.Integer:
    return fields.Integer(required=True, metadata={"description": doc})


class JobTotals(Base):
    """How many jobs there are in each status."""

    pending = fields.Integer(required=True)
    running = fields.Integer(required=True)
    success = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)


class JobRates(Base):
    """How many jobs did that within the window."""

    queued = _number("Were created, or put back.")
    started = _number("Were claimed, or started by hand.")
    succeeded = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)


class Windows(Base):
    """The last minute (to ten seconds), hour (to a minute) and day (to ten minutes)."""

    minute = fields.Nested(JobRates, required=True)
    hour = fields.Nested(JobRates, required=True)
    day = fields.Nested(JobRates, required=True)


class JobDurations(Base):
    """How long the newest jobs that succeeded ran, from start to end."""

    jobs = _number("Over how many of them.")
    median_seconds = fields.Float(required=True)
    p95_seconds = fields.Float(
        required=True, metadata={"description": "The 95th percentile, by nearest rank."}
    )


class Stats(Base):
    """How a workspace is doing."""

    workspace_id = fields.Integer(required=True)
    at = Time(required=True)
    total = fields.Integer(required=True)
    by_status = fields.Nested(JobTotals, required=True)
    by_type = fields.Dict(
        keys=fields.String(),
        values=fields.Nested(JobTotals),
        required=True,
        metadata={"description": "The types of which there are jobs."},
    )
    oldest_pending_seconds = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "For how long the job has been due that waits the longest."},
    )
    rates = fields.Nested(Windows, required=True)
    durations = fields.Dict(keys=fields.String(), values=fields.Nested(JobDurations), required=True)


_KIND = {"description": "Only these kinds; may be repeated."}
_OF_JOB = {"description": "Only this job's."}
_OF_TYPE = {"description": "Only of jobs of these types; may be repeated."}


class JobEventQuery(Base):
    """Which of a job's events."""

    limit = QueryInteger(
        load_default=100, validate=_range(1, 100), metadata={"description": "Items per page."}
    )
    order = fields.String(
        load_default="asc",
        validate=validate.OneOf(["asc", "desc"]),
        metadata={"description": "The oldest first, or the newest."},
    )
    cursor = Text(
        validate=_text(1, 500), metadata={"description": "The `next_cursor` of the page before."}
    )


class EventQuery(JobEventQuery):
    """Which events."""

    limit = QueryInteger(
        load_default=50, validate=_range(1, 100), metadata={"description": "Items per page."}
    )
    order = fields.String(
        load_default="desc",
        validate=validate.OneOf(["asc", "desc"]),
        metadata={"description": "The oldest first, or the newest."},
    )
    kind = fields.List(Choice(EventKind), metadata=_KIND)
    job_id = Text(validate=_text(1, 40), metadata=_OF_JOB)
    job_type = fields.List(_job_type(), metadata=_OF_TYPE)


class StreamQuery(Base):
    """Which events a stream has."""

    kind = fields.List(Choice(EventKind), metadata=_KIND)
    job_id = Text(validate=_text(1, 40), metadata=_OF_JOB)
    job_type = fields.List(_job_type(), metadata=_OF_TYPE)
    last_event_id = Text(
        validate=_text(1, 50),
        metadata={"description": "For whoever cannot send the header `Last-Event-ID`."},
    )


class Event(Base):
    """Something that happened."""

    event_id = fields.String(required=True)
    at = Time(required=True)
    kind = Choice(EventKind, required=True)
    workspace_id = fields.Integer(required=True)
    job_id = fields.String(required=True, allow_none=True)
    job_type = fields.String(required=True, allow_none=True)
    from_status = Choice(JobStatus, required=True, allow_none=True)
    to_status = Choice(JobStatus, required=True, allow_none=True)
    attempt = fields.Integer(required=True, allow_none=True)
    user_id = fields.Integer(
        required=True, allow_none=True, metadata={"description": "The user who did it."}
    )
    key_id = fields.Integer(
        required=True, allow_none=True, metadata={"description": "Or the API key that did it."}
    )
    worker = fields.String(required=True, allow_none=True)
    data = fields.Dict(
        keys=fields.String(),
        required=True,
        allow_none=True,
        metadata={"description": "More of it: progress, an error, a reason, what was edited."},
    )


class EventPagination(Base):
    """Where in a list of events a page lies."""

    limit = fields.Integer(required=True)
    total = fields.Integer(
        required=True, metadata={"description": "How many there are, up to 10,000."}
    )
    total_is_capped = fields.Boolean(required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class EventList(Base):
    """A page of events."""

    data = fields.List(fields.Nested(Event), required=True)
    pagination = fields.Nested(EventPagination, required=True)


class HistoryPoint(JobRates):
    """What happened within a span of time, and what there was at its end."""

    at = Time(required=True, metadata={"description": "When the span begins."})
    wait_seconds = fields.Float(
        required=True,
        allow_none=True,
        metadata={"description": "How long those that started had waited, on average."},
    )
    run_seconds = fields.Float(
        required=True,
        allow_none=True,
        metadata={"description": "How long those that succeeded or failed had run, on average."},
    )
    by_status = fields.Nested(JobTotals, required=True)


class History(Base):
    """How a workspace came to be as it is."""

    workspace_id = fields.Integer(required=True)
    window = fields.String(required=True)
    span_seconds = fields.Integer(required=True)
    data = fields.List(fields.Nested(HistoryPoint), required=True)


class JobProgress(Base):
    """A job's status and progress."""

    job_id = fields.String(required=True)
    status = Choice(JobStatus, required=True)
    progress_percent = fields.Integer(required=True, validate=_range(0, 100))
    progress_message = fields.String(required=True, allow_none=True)
    updated_at = Time(required=True)


class JobResult(Base):
    """What a job that has ended leaves."""

    job_id = fields.String(required=True)
    result = Document(keys=fields.String(), required=True, allow_none=True)
    status = Choice(JobStatus, required=True)
    completed_at = Time(required=True)


class JobBatchItem(JobCreate):
    """A new job of a batch."""

    workspace_id = Whole(metadata={"description": "May be left out; must match the URL."})


class JobBatch(Base):
    """New jobs, all or none."""

    jobs = Many(JobBatchItem, required=True, validate=_text(1, 1000))


class JobBatchCreated(Base):
    """The new jobs, in the order in which they were given."""

    data = fields.List(fields.Nested(Job), required=True)


class Claim(Base):
    """What a worker wants to do."""

    job_types = fields.List(
        _job_type(),
        allow_none=True,
        validate=_text(1, 100),
        metadata={"description": "Only these types. Default: all that the caller may have."},
    )
    limit = Whole(
        allow_none=True,
        validate=_range(1, 100),
        metadata={"description": "How many at most.", "default": 1},
    )
    lease_seconds = Whole(
        allow_none=True,
        validate=_range(5, 3600),
        metadata={"description": "How long the leases live without a report.", "default": 60},
    )
    worker = Text(
        allow_none=True, validate=_text(1, 200), metadata={"description": "The worker's name."}
    )
    wait_seconds = Whole(
        allow_none=True,
        validate=_range(0, 20),
        metadata={"description": "How long to wait for a first job.", "default": 0},
    )


class ClaimedJob(Job):
    """A job and the lease under which its holder works."""

    lease_token = fields.String(required=True, metadata={"description": "Reports need it."})
    lease_expires_at = Time(required=True)
    attempt = fields.Integer(required=True, metadata={"description": "From 1."})
    traceparent = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The W3C trace context of whoever created the job."},
    )


class ClaimedJobs(Base):
    """What a claim got."""

    data = fields.List(fields.Nested(ClaimedJob), required=True)


class Report(Base):
    """What the holder of a lease says of its job."""

    job_id = Text(required=True, validate=_text(1, 40))
    lease_token = Text(required=True, validate=_text(1, 64))
    status = Choice(
        [JobStatus.RUNNING, JobStatus.PENDING, JobStatus.SUCCESS, JobStatus.FAILED],
        also={"completed": JobStatus.SUCCESS},
        allow_none=True,
        metadata={"description": "`pending` hands the job back. Default: `running`."},
    )
    progress_percent = _percent()
    progress_message = Text(allow_none=True, validate=_text(0, 2000))
    result = Document(
        keys=fields.String(),
        allow_none=True,
        metadata={"description": "Merged into the result (RFC 7396): a null removes a key."},
    )
    error = Text(allow_none=True, validate=_text(0, MAX_TEXT))
    retryable = Flag(
        allow_none=True,
        metadata={"description": "Whether a failure may be retried by itself.", "default": True},
    )
    retry_after = Whole(
        allow_none=True,
        validate=_range(0, MAX_SECONDS),
        metadata={"description": "Seconds until the retry, instead of the usual backoff."},
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Here null is the same as absence; in a PATCH it takes something away."""
        data = {name: value for name, value in data.items() if value is not None}
        data = progress_out_of_result(data)
        if data.get("status") is JobStatus.SUCCESS and "error" in data:
            raise ValidationError("A job that succeeds has no error.", "error")
        return data


class Reports(Base):
    """Reports, each judged alone."""

    reports = fields.List(Unjudged(Report), required=True, validate=_text(1, 100))


class ReportAnswer(Base):
    """What became of a report."""

    job_id = fields.String(required=True, allow_none=True)
    accepted = fields.Boolean(required=True)
    status = Choice(
        JobStatus, required=True, allow_none=True, metadata={"description": "As it is now."}
    )
    lease_expires_at = Time(required=True, allow_none=True)
    problem = fields.Nested("Problem", required=True, allow_none=True)


class ReportAnswers(Base):
    """What became of each report, in their order."""

    data = fields.List(fields.Nested(ReportAnswer), required=True)


class Attempt(Base):
    """One attempt at a job."""

    attempt = fields.Integer(required=True, metadata={"description": "From 1."})
    worker = fields.String(required=True, allow_none=True)
    started_at = Time(required=True)
    ended_at = Time(required=True, allow_none=True)
    outcome = Choice(
        Outcome,
        required=True,
        allow_none=True,
        metadata={"description": "How it ended; null while it is under way."},
    )
    error = fields.String(required=True, allow_none=True)


class Attempts(Base):
    """A job's attempts in their order."""

    data = fields.List(fields.Nested(Attempt), required=True)


class LoginRequest(Base):
    """A user's name and password."""

    username = fields.String(required=True)
    password = fields.String(required=True, metadata={"format": "password"})


class Tokens(Base):
    """What a log-in gives."""

    access_token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    token_type = fields.String(required=True, validate=validate.OneOf(["bearer"]))
    expires_in = fields.Integer(
        required=True, metadata={"description": "Seconds until the access token expires."}
    )


class PasswordChange(Base):
    """One's own password, old and new."""

    current_password = fields.String(required=True, metadata={"format": "password"})
    new_password = fields.String(
        required=True,
        validate=_text(MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH),
        metadata={"format": "password"},
    )


class UserCreate(Base):
    """A new user."""

    username = fields.String(
        required=True,
        validate=Pattern(f"^{USERNAME_PATTERN}$", error=USERNAME_RULE),
    )
    password = fields.String(
        required=True,
        validate=_text(MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH),
        metadata={"format": "password"},
    )
    is_admin = Flag(load_default=False)


class UserUpdate(Base):
    """What to change of a user."""

    password = fields.String(
        validate=_text(MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH), metadata={"format": "password"}
    )
    is_admin = Flag()
    disabled = Flag()


class User(Base):
    """A user."""

    user_id = fields.Integer(attribute="id", required=True)
    username = fields.String(required=True)
    is_admin = fields.Boolean(required=True)
    disabled = fields.Boolean(required=True)
    created_at = Time(required=True)


class UserList(Base):
    """A page of users."""

    data = fields.List(fields.Nested(User), required=True)
    pagination = fields.Nested(Pagination, required=True)


def _name(**kw: Any) -> Text:
    form = Pattern(f"^{NAME_PATTERN}$", error=NAME_RULE)
    return Text(validate=[_text(1, MAX_NAME_LENGTH), form], **kw)


class WorkspaceName(Base):
    """A workspace's name."""

    name = _name(required=True)


def _days() -> Whole:
    return Whole(allow_none=True, validate=_range(1, 36_500))


class Retention(Base):
    """For how many days jobs that ended so, and events, are kept; null: for ever."""

    success = _days()
    failed = _days()
    cancelled = _days()
    events = _days()


class WorkspaceUpdate(Base):
    """What to change of a workspace."""

    name = _name()
    retention = fields.Nested(Retention)


class Workspace(Base):
    """A workspace, and one's role there."""

    workspace_id = fields.Integer(attribute="id", required=True)
    name = fields.String(required=True)
    role = Choice(Role, required=True, metadata={"description": "The caller's role."})
    created_by = fields.Integer(required=True)
    created_at = Time(required=True)
    updated_at = Time(required=True)
    retention = fields.Nested(Retention, required=True)


class WorkspaceList(Base):
    """A page of workspaces."""

    data = fields.List(fields.Nested(Workspace), required=True)
    pagination = fields.Nested(Pagination, required=True)


class MemberAdd(Base):
    """A user, by id or by name, and the role to have."""

    DOCUMENTED = {
        "oneOf": [{"required": ["user_id"]}, {"required": ["username"]}],
    }

    user_id = Whole(validate=_range(1, 2**31 - 1))
    username = Text(validate=_text(1, 255))
    role = Choice(Role, required=True)

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """The user is named in one way."""
        if ("user_id" in data) == ("username" in data):
            raise ValidationError("Give either user_id or username.", "user_id")
        return data


class MemberUpdate(Base):
    """A member's new role."""

    role = Choice(Role, required=True)


class Member(Base):
    """A member of a workspace."""

    user_id = fields.Integer(required=True)
    username = fields.String(required=True)
    role = Choice(Role, required=True)
    created_at = Time(required=True)


class MemberList(Base):
    """A page of members."""

    data = fields.List(fields.Nested(Member), required=True)
    pagination = fields.Nested(Pagination, required=True)


class KeyCreate(Base):
    """A new API key."""

    name = _name(required=True)
    role = Choice([role for role in Role if role is not Role.OWNER], required=True)
    job_types = fields.List(
        _job_type(),
        allow_none=True,
        validate=_text(1, 100),
        metadata={"description": "The only job types that the key has to do with."},
    )
    expires_at = Time(allow_none=True)


class Key(Base):
    """An API key, without the key itself."""

    key_id = fields.Integer(attribute="id", required=True)
    name = fields.String(required=True)
    role = Choice(Role, required=True)
    job_types = fields.List(fields.String(), required=True, allow_none=True)
    workspace_id = fields.Integer(required=True)
    created_by = fields.Integer(
        attribute="user_id", required=True, metadata={"description": "For whom the key acts."}
    )
    created_at = Time(required=True)
    expires_at = Time(required=True, allow_none=True)
    last_used_at = Time(required=True, allow_none=True, metadata={"description": "To the minute."})
    revoked_at = Time(required=True, allow_none=True)


class NewKey(Key):
    """An API key, and the key itself, which is never shown again."""

    key = fields.String(required=True)


class KeyList(Base):
    """A page of API keys."""

    data = fields.List(fields.Nested(Key), required=True)
    pagination = fields.Nested(Pagination, required=True)


class Health(Base):
    """That the service is well."""

    status = fields.String(required=True, validate=validate.OneOf(["ok"]))


class Problem(Base):
    """An error, as RFC 9457 has it."""

    class Meta:
        unknown = EXCLUDE

    type = fields.String(
        required=True,
        metadata={"format": "uri-reference", "description": "The stable name of this kind."},
    )
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True, metadata={"description": "What to do about it."})
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata={"description": "For 422: what is wrong with each field."},
    )
