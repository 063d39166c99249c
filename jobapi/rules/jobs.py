"""What a job is: its statuses, its fields and who sets them, and its attempts.

``Job`` documents the fields, one by one. ``FIELDS`` is the same as a table, from which creates,
edits and statements take the names of the fields that concern them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Flag, auto
from typing import Annotated, Any, NamedTuple, Protocol, Required, TypedDict, get_type_hints

from ..errors import JobApiError
from .documents import Document
from .job_logs import LogEntry
from .labels import Labelled

# Not "." or "..": clients resolve them in a path, so a pause of the type ".." would arrive as that
# of the workspace.
JOB_TYPE_PATTERN = r"(?!\.{1,2}$)[A-Za-z0-9_.:\-]{1,100}"
JOB_TYPE_RULE = "Use 1 to 100 letters, digits and the characters _ . : - (but not . or .. alone)"
DEFAULT_MAX_RETRIES = 3
MAX_RETRIES_LIMIT = 100


class JobStatus(Labelled):
    """The states of a job. The database stores the numbers."""

    PENDING = 0
    RUNNING = 1
    SUCCESS = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def ended(self) -> bool:
        """Whether the job has reached an end."""
        return self in ENDED


ENDED = frozenset({JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.CANCELLED})
"""The statuses in which a job has reached an end."""

STATUS_ORDER = (
    JobStatus.PENDING,
    JobStatus.RUNNING,
    JobStatus.SUCCESS,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
)
"""The order of ``sort=status``. Lists read an index that sorts by number, so the numbers ascend."""


class Priority(Labelled):
    """How soon a job is wanted; the number is its rank."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class Outcome(Labelled):
    """How an attempt ended."""

    SUCCESS = 0
    FAILED = 1
    CANCELLED = 2
    RELEASED = 3
    EXPIRED = 4
    TIMED_OUT = 5


class OnConflict(Labelled):
    """What a create does if a live job has its ``unique_key``."""

    KEEP = 0
    REPLACE = 1
    REFUSE = 2


class SetBy(Flag):
    """Who may set a field of a job. The service itself may set all of them."""

    SERVICE = 0
    CREATE = auto()
    """The creator, when the job is created."""
    EDIT = auto()
    """A caller, while the job is pending."""
    WORK = auto()
    """A worker's report, or a caller's edit: while the job runs, or with a change of status."""


@dataclass(frozen=True)
class Field:
    """Who sets a field of a job, and its value in a new job (in an edit, the meaning of null)."""

    set_by: SetBy = SetBy.SERVICE
    default: Any = None


_CREATE_AND_EDIT = SetBy.CREATE | SetBy.EDIT


class Job(Protocol):
    """A row of the jobs table. A row that was read only for a decision has no ``metadata``."""

    id: int
    """Number in the order of creation. Never shown."""
    job_id: str
    """Public id: ``job_`` and a UUID of version 7."""
    workspace_id: int
    created_by: int
    """``id`` of the user who created it."""
    job_type: Annotated[str, Field(SetBy.CREATE)]
    """Kind of work, by which workers choose: see ``JOB_TYPE_RULE``."""
    status: Annotated[int, Field(default=JobStatus.PENDING)]
    """A ``JobStatus``."""
    priority: Annotated[int, Field(_CREATE_AND_EDIT, Priority.NORMAL)]
    """A ``Priority``."""
    version: Annotated[int, Field(default=1)]
    """Number of changes; a renewal of the lease does not count. The ``ETag`` is made of it."""
    metadata: Annotated[Document | None, Field(_CREATE_AND_EDIT)]
    """Input of the work, as the creator gave it."""
    result: Annotated[Document | None, Field(SetBy.WORK)]
    """Output of the work. Reports and edits are merged into it (RFC 7396)."""
    error: Annotated[str | None, Field(SetBy.WORK)]
    """Why the last attempt failed."""
    error_group: str | None
    """The group of errors that ``error`` belongs to: see ``rules.causes``."""
    progress_percent: Annotated[int | None, Field(SetBy.WORK)]
    """0 to 100; None before any report, and while pending."""
    progress_message: Annotated[str | None, Field(SetBy.WORK)]
    estimated_duration: Annotated[int | None, Field(_CREATE_AND_EDIT)]
    """Seconds that the creator expects."""
    actual_duration: int | None
    """Whole seconds from ``due_at`` to the end; None if it ended before it was due."""
    timeout_seconds: Annotated[int | None, Field(_CREATE_AND_EDIT)]
    """How long an attempt may run, in seconds; None: without a limit."""
    retry_count: Annotated[int, Field(default=0)]
    """How often the job was retried, automatically or by a caller."""
    max_retries: Annotated[int, Field(_CREATE_AND_EDIT, DEFAULT_MAX_RETRIES)]
    """How many automatic retries are allowed. Never less than ``retry_count``."""
    created_at: datetime
    updated_at: datetime
    """Time of the last change that counts in ``version``."""
    queued_at: datetime
    """Time of the creation, or of the last retry."""
    due_at: datetime
    """When it may start: the later of ``queued_at`` and ``scheduled_at``, or after a backoff."""
    scheduled_at: Annotated[datetime | None, Field(_CREATE_AND_EDIT)]
    """Earliest start that the creator asked for."""
    started_at: datetime | None
    """Start of the attempt; of a prefetched job, the claim. None exactly while pending."""
    completed_at: datetime | None
    """Time of the end. None if and only if the job has not ended."""
    attempt: Annotated[int, Field(default=0)]
    """Number of the current or last attempt, from 1; 0 before the first."""
    worker: str | None
    """Name of the worker that claimed it last."""
    lease_token: str | None
    """Token of the lease under which it runs. None: not running, or started by an edit."""
    lease_seconds: int | None
    """How long the lease lasts from each renewal, in seconds."""
    lease_expires_at: datetime | None
    reap_at: datetime | None
    """When the reaper checks it: no later than the end of its lease or timeout."""
    succeeded_by: str | None
    """Token of the lease under which it succeeded, so that the report may be repeated."""
    changed_by: str | None
    """Actor of the last change: ``user:1``, ``key:1``, or None for the service itself."""
    traceparent: str | None
    """W3C trace context of the creator."""
    prefetched: Annotated[bool, Field(default=False)]
    """Whether it is leased but its attempt has not started."""
    suspect: Annotated[bool, Field(default=False)]
    """Whether its last lease expired before the attempt began: it is leased alone next time."""
    run_id: str | None
    """The run that began the attempt, by the id that it chose for itself."""
    concurrency_key: Annotated[str | None, Field(_CREATE_AND_EDIT)]
    """Jobs of one type and key share its limit, and take turns with other keys: ``rules.flow``."""
    unique_key: Annotated[str | None, Field(_CREATE_AND_EDIT)]
    """At most one live job of a type has it."""
    expires_at: Annotated[datetime | None, Field(_CREATE_AND_EDIT)]
    """It is cancelled if no attempt has begun by then."""
    slot: int | None
    """While it runs: its number among the running jobs of a type with ``max_running``."""
    key_slot: int | None
    """While it runs: its number among the running jobs of its key."""
    ripe: Annotated[bool, Field(default=False)]
    """Whether it has a ``concurrency_key`` and takes part in turns: it was due when last seen."""
    has_begun: Annotated[bool, Field(default=False)]
    """Whether an attempt has ever begun."""
    schedule_id: str | None
    """The schedule that made it."""
    scheduled_for: datetime | None
    """The tick of the schedule. None: no schedule made it, or a caller ran the schedule."""
    last_event: int | None
    """The ``EventKind`` of the last change, or None. The trigger copies it."""
    last_edited: str | None
    """The names of the fields that the last change edited, with spaces between."""
    last_event_version: int | None
    """The version that ``last_event`` and ``last_edited`` describe. If it is not ``version``, the
    last change was made without them: by hand, or by an older release."""


class CurrentJob(Job, Protocol):
    """A job together with the database's time at which it was read."""

    now: datetime


FIELDS: Mapping[str, Field] = {
    name: next(iter(getattr(hint, "__metadata__", ())), Field())
    for name, hint in get_type_hints(Job, include_extras=True).items()
}
"""All fields of a job, which are the columns of its table, in the order of ``Job``."""


def fields_set_by(who: SetBy) -> tuple[str, ...]:
    """The names of the fields that ``who`` may set."""
    return tuple(name for name, field in FIELDS.items() if who in field.set_by)


class PendingFields(TypedDict, total=False):
    """The fields of ``SetBy.EDIT``, as a create or an edit gives them. None means the default."""

    priority: Priority | None
    metadata: Document | None
    estimated_duration: int | None
    timeout_seconds: int | None
    max_retries: int | None
    scheduled_at: datetime | None
    concurrency_key: str | None
    unique_key: str | None
    expires_at: datetime | None


class NewJob(PendingFields):
    """The fields of ``SetBy.CREATE``."""

    job_type: Required[str]


class JobRequest(NewJob, total=False):
    """A create: the fields, and what to do about a live job with the same ``unique_key``."""

    on_conflict: OnConflict | None


class WorkFields(TypedDict, total=False):
    """The fields of ``SetBy.WORK``. ``result`` is merged into the job's (RFC 7396)."""

    progress_percent: int | None
    progress_message: str | None
    result: Document | None
    error: str | None


class JobEdit(PendingFields, WorkFields, total=False):
    """What a caller edits. ``begun`` and ``run_id`` are only for the holder of the lease."""

    status: JobStatus
    begun: bool | None
    run_id: str | None


class ReportFields(WorkFields, total=False):
    """What the holder of a lease reports about its job."""

    status: JobStatus
    """``running`` (the default), ``pending`` (releases it), ``success`` or ``failed``."""
    begun: bool | None
    """Whether the attempt has begun, where it did not begin with the claim."""
    run_id: str | None
    """Id of the run that begins the attempt; another run is refused."""
    retryable: bool
    """Whether a failure may be retried; by default it may."""
    retry_after: int
    """Seconds until that retry, instead of the backoff."""
    logs: Sequence[LogEntry]
    """Entries for the job's log, which are stored if the report is accepted."""


class Report(ReportFields, total=False):
    """A report of a lease holder on one job."""

    job_id: Required[str]
    lease_token: Required[str]
    refused: JobApiError
    """Why the rest of the report could not be read: only its heartbeat counts."""


class SettledColumns(TypedDict, total=False):
    """Columns that a report, an expiry, a cancel or a retry changes."""

    status: JobStatus
    result: Document | None
    error: str | None
    error_group: str | None
    progress_percent: int | None
    progress_message: str | None
    actual_duration: int | None
    retry_count: int
    max_retries: int
    queued_at: datetime
    due_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    lease_token: str | None
    lease_seconds: int | None
    lease_expires_at: datetime | None
    reap_at: datetime | None
    succeeded_by: str | None
    prefetched: bool
    suspect: bool
    run_id: str | None
    expires_at: datetime | None
    ripe: bool
    has_begun: bool


class JobColumns(SettledColumns, total=False):
    """Columns that a rule changes: those above, and those that only an edit changes."""

    priority: Priority
    metadata: Document | None
    estimated_duration: int | None
    timeout_seconds: int | None
    scheduled_at: datetime | None
    attempt: int
    worker: str | None
    concurrency_key: str | None
    unique_key: str | None


class Attempt(NamedTuple):
    """One attempt at a job.

    The table of attempts has those that ended without success. The current one, and one that
    succeeded, are in the job's own row.
    """

    job: int
    """The job's ``id``."""
    attempt: int
    """Its number, from 1."""
    outcome: Outcome | None
    """How it ended; None: not yet."""
    worker: str | None
    lease_token: str | None
    """None: it ran without a lease."""
    error: str | None
    started_at: datetime
    ended_at: datetime | None
