"""What the client sends and gets: jobs, operations, events, job types, workers, webhooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, ClassVar, Required, Self, TypedDict

ENDED = frozenset({"success", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class _FromJson:
    """A dataclass that can be read from the service's JSON.

    A field has a default if the service may leave it out: because it is null in a dry run,
    or because an older version of the service does not know it.
    """

    _times: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = [name for name, kind in cls.__annotations__.items() if kind.startswith("datetime")]
        cls._times = (*cls._times, *own)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make an object from the service's JSON; it may have fields of a newer version."""
        values = dict(data)
        for name in cls._times:
            if (text := values.get(name)) is not None:
                values[name] = datetime.fromisoformat(text)
        made = cls.__new__(cls)
        # Not through the constructor: a frozen one takes 12 µs for a claimed job, this 2 µs.
        object.__setattr__(made, "__dict__", values)
        return made

    def to_json(self) -> dict[str, Any]:
        """The fields as the service sends them: times are texts."""
        values = vars(self)
        # ``stream_id`` is the only field that is not compared, and not of the JSON.
        names = [each.name for each in fields(self) if each.compare]
        return {name: _plain(values[name]) for name in names if name in values}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.to_json() if isinstance(value, _FromJson) else value


@dataclass(frozen=True, kw_only=True)
class Job(_FromJson):
    """A job at the time it was read. Durations are in seconds.

    A list with ``light=True`` has no ``metadata`` and ``result``: they are None. Only such a list
    has ``error_cause``, ``error_group``, ``worker`` (while the job is running),
    ``progress_percent`` and ``progress_message``.

    A job of a schedule has its ``schedule_id``, and ``scheduled_for``, the nominal time of the run;
    None if a caller ran the schedule.

    ``existing`` is True only in the answer to a create: the job is not new, it is the live job
    that has the ``unique_key``.
    """

    job_id: str
    job_type: str
    status: str
    priority: str
    workspace_id: int
    created_by: int
    metadata: dict[str, Any] | None = field(default=None, hash=False)
    result: dict[str, Any] | None = field(default=None, hash=False)
    error: str | None = None
    error_cause: str | None = None
    error_group: str | None = None
    worker: str | None = None
    progress_percent: int | None = None
    progress_message: str | None = None
    estimated_duration: int | None = None
    actual_duration: int | None = None
    timeout_seconds: int | None = None
    retry_count: int
    max_retries: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    scheduled_at: datetime | None = None
    due_at: datetime
    concurrency_key: str | None = None
    unique_key: str | None = None
    expires_at: datetime | None = None
    schedule_id: str | None = None
    scheduled_for: datetime | None = None
    existing: bool = False

    @property
    def ended(self) -> bool:
        """Whether the job is ``success``, ``failed`` or ``cancelled``."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class ErrorGroup(_FromJson):
    """Failed jobs of one type with the same cause, up to numbers, ids and the like.

    ``cause`` and ``job_ids`` are those of the jobs that failed last.
    """

    job_type: str
    error_group: str
    cause: str
    count: int
    count_is_capped: bool
    first_failed_at: datetime
    last_failed_at: datetime
    job_ids: list[str] = field(hash=False)


class NewJob(TypedDict, total=False):
    """What a job may be created with, besides its type; None is the same as leaving it out.

    Durations are in seconds; times need an offset. Jobs of a type with the same
    ``concurrency_key`` share its limit ``max_running_per_key`` and take turns with the jobs of
    other keys. At most one live job (pending or running) of a type has a ``unique_key``. If there
    is one, ``on_conflict`` decides: ``keep``, the default, returns it unchanged; ``replace`` gives
    a pending job the new ``metadata``, ``priority`` and ``scheduled_at``; ``refuse`` raises
    ``JobExists``. A job that has not started by ``expires_at`` is cancelled.
    """

    priority: str | None
    metadata: Mapping[str, Any] | None
    estimated_duration: int | None
    scheduled_at: datetime | None
    max_retries: int | None
    timeout_seconds: int | None
    concurrency_key: str | None
    unique_key: str | None
    on_conflict: str | None
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class ClaimedJob(Job):
    """A job with its lease.

    ``begun`` is False if the attempt begins with a later report, see ``Client.claim``.
    ``traceparent`` is the trace context of the job's creator (W3C Trace Context).
    """

    lease_token: str
    lease_expires_at: datetime
    attempt: int
    begun: bool = True
    traceparent: str | None = None


class ClaimedJobs(list[ClaimedJob]):
    """The jobs of a claim, a list.

    ``retry_after`` is how many seconds the service asks to wait before the next claim, or None.
    """

    def __init__(
        self, jobs: Iterable[ClaimedJob] = (), *, retry_after: float | None = None
    ) -> None:
        super().__init__(jobs)
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class Progress(_FromJson):
    """The status and progress of a job."""

    job_id: str
    status: str
    progress_percent: int
    progress_message: str | None = None
    updated_at: datetime

    @property
    def ended(self) -> bool:
        """Whether the job is ``success``, ``failed`` or ``cancelled``."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class Operation(_FromJson):
    """A bulk operation on jobs: ``action`` is ``cancel``, ``retry`` or ``delete``.

    ``matched`` is the number of jobs that matched the filter. A dry run has no
    ``operation_id``, ``status`` and times: they are None.
    """

    operation_id: int | None = None
    workspace_id: int
    action: str
    filter: dict[str, Any] = field(hash=False)
    reason: str | None = None
    status: str | None = None
    matched: int
    matched_is_capped: bool
    changed: int
    skipped: int
    created_by: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the operation is ``finished`` or ``stopped``."""
        return self.status in ("finished", "stopped")


@dataclass(frozen=True, kw_only=True)
class Webhook(_FromJson):
    """A webhook of a workspace. ``WebhookSettings`` documents the settings.

    Only a new webhook, or one with a new secret, has a ``secret``. ``disabled_reason`` is ``gone``
    or ``failing`` if the service has disabled it.
    """

    webhook_id: str
    workspace_id: int
    url: str
    events: list[str] | None = field(default=None, hash=False)
    job_types: list[str] | None = field(default=None, hash=False)
    include: list[str] = field(hash=False)
    description: str | None = None
    enabled: bool
    disabled_reason: str | None = None
    failing_since: datetime | None = None
    previous_secret_expires_at: datetime | None = None
    created_by: int
    created_at: datetime
    updated_at: datetime
    secret: str | None = field(default=None, repr=False)


class WebhookSettings(TypedDict, total=False):
    """Settings of a webhook. None returns ``events``, ``job_types`` and the like to the default.

    ``events`` are kinds of events; by default every event whose ``to_status`` is an end.
    ``job_types`` limits it to events about these types, ``include`` (``metadata``, ``result``)
    adds fields of the job to messages, and ``description`` is for people.
    """

    events: Sequence[str] | None
    job_types: Sequence[str] | None
    include: Sequence[str] | None
    description: str | None
    enabled: bool


@dataclass(frozen=True, kw_only=True)
class Delivery(_FromJson):
    """The delivery of a message to a webhook, with the result of its last attempt.

    ``delivery_id`` is the header ``webhook-id``. ``status`` is ``pending``, ``success``,
    ``failed`` or ``cancelled``. ``response_body`` is the begin of the response, and ``error`` says
    why there was no complete one.
    """

    delivery_id: str
    webhook_id: str
    workspace_id: int
    type: str
    event_id: str | None = None
    job_id: str | None = None
    status: str
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None = None
    last_attempt_at: datetime | None = None
    response_status: int | None = None
    response_body: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event(_FromJson):
    """Something that happened to a job or in a workspace; ``kind`` says what.

    ``user_id`` or ``key_id`` is the actor; if both are None, it was the service itself.
    ``stream_id`` is the position of an event that ``Client.follow`` received; pass it as
    ``after`` to resume. It is None for an event from ``Client.events``.
    """

    event_id: str
    at: datetime
    kind: str
    workspace_id: int
    job_id: str | None = None
    job_type: str | None = None
    from_status: str | None = None
    to_status: str | None = None
    attempt: int | None = None
    user_id: int | None = None
    key_id: int | None = None
    worker: str | None = None
    data: dict[str, Any] | None = field(default=None, hash=False)
    stream_id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Attempt(_FromJson):
    """One attempt at a job; ``outcome`` is None while it is running."""

    attempt: int
    worker: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class LogEntry(_FromJson):
    """An entry of a job's log.

    ``number`` counts from 1 without gaps, ``seq`` is the number that its writer gave it.
    """

    number: int
    attempt: int
    at: datetime
    level: str
    message: str
    seq: int | None = None


class LogFilter(TypedDict, total=False):
    """Filters of the entries of a log. None means no filter."""

    level: str | None
    """The lowest level: ``debug``, ``info``, ``warning`` or ``error``."""
    attempt: int | None


class NewLogEntry(TypedDict, total=False):
    """An entry to append to a job's log."""

    message: Required[str]
    level: str
    """``debug``, ``info``, ``warning`` or ``error``; by default ``info``."""
    at: datetime
    """By default the time at which the service gets it."""
    seq: int
    """Ascends within an attempt. An entry that is not above the last stored one is dropped."""


@dataclass(frozen=True, kw_only=True)
class RateLimit(_FromJson):
    """At most ``starts`` jobs start in ``seconds``: a token bucket."""

    starts: int
    seconds: int


@dataclass(frozen=True, kw_only=True)
class JobType(_FromJson):
    """A job type: its settings, and the state of its queue.

    ``JobTypeSettings`` documents the settings; None is the default. ``oldest_due_seconds`` is
    how long the oldest due job has been due, None if no job is due. ``live_workers`` counts the
    live workers that claim this type.
    """

    job_type: str
    paused: bool
    paused_reason: str | None = None
    max_running: int | None = None
    max_running_per_key: int | None = None
    rate_limit: RateLimit | None = None
    max_pending: int | None = None
    start_within_seconds: int | None = None
    priority: str | None = None
    max_retries: int | None = None
    timeout_seconds: int | None = None
    retry_backoff_seconds: int | None = None
    retry_backoff_max_seconds: int | None = None
    pending: int
    running: int
    oldest_due_seconds: int | None = None
    live_workers: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make an object from the service's JSON."""
        rate = data.get("rate_limit")
        return super().from_json(
            {**data, "rate_limit": None if rate is None else RateLimit.from_json(rate)}
        )


class JobTypeSettings(TypedDict, total=False):
    """Settings of a job type. None returns a setting to its default.

    While a type is ``paused``, claims return none of its jobs. ``max_running`` limits the jobs
    that run at the same time, ``max_running_per_key`` those with the same ``concurrency_key``,
    ``rate_limit`` the starts, ``max_pending`` the pending jobs: a create beyond it raises
    ``QueueFull``. ``start_within_seconds`` sets the ``expires_at`` of new jobs, counted from
    ``due_at``. ``priority``, ``max_retries`` and ``timeout_seconds`` are the defaults of new
    jobs. The backoff of automatic retries begins with ``retry_backoff_seconds`` and grows to
    ``retry_backoff_max_seconds``.
    """

    paused: bool | None
    paused_reason: str | None
    max_running: int | None
    max_running_per_key: int | None
    rate_limit: RateLimit | Mapping[str, int] | None
    max_pending: int | None
    start_within_seconds: int | None
    priority: str | None
    max_retries: int | None
    timeout_seconds: int | None
    retry_backoff_seconds: int | None
    retry_backoff_max_seconds: int | None


@dataclass(frozen=True, kw_only=True)
class ScheduleRun(_FromJson):
    """What has become of the last tick of a schedule, or of a run by hand.

    ``outcome`` is ``created``, ``existing`` (a live job had the ``unique_key``), or without a job:
    ``overlap``, ``queue_full`` or ``missed``.
    """

    scheduled_for: datetime | None = None
    ran_at: datetime
    outcome: str
    job_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule(_FromJson):
    """A schedule, which creates jobs at times of a time zone or at regular intervals.

    ``ScheduleFields`` documents the fields. ``next_run_at`` and ``upcoming`` are the next ticks;
    there are none while it is ``paused`` or was suspended (``suspended_reason``), and once it has
    ended. The jobs run as the user or key ``runs_as``.
    """

    schedule_id: str
    workspace_id: int
    name: str
    cron: str | None = None
    every_seconds: int | None = None
    timezone: str
    job: dict[str, Any]
    overlap: str
    catch_up: str
    jitter_seconds: int
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    paused: bool
    paused_reason: str | None = None
    suspended_reason: str | None = None
    next_run_at: datetime | None = None
    upcoming: list[datetime]
    last_run: ScheduleRun | None = None
    runs_as: str
    created_by: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make an object from the service's JSON."""
        last = data.get("last_run")
        return super().from_json(
            {
                **data,
                "upcoming": [datetime.fromisoformat(each) for each in data["upcoming"]],
                "last_run": None if last is None else ScheduleRun.from_json(last),
            }
        )


class ScheduleFields(TypedDict, total=False):
    """When a schedule has its ticks, and what they do. None is the default.

    A schedule has either ``cron``, five fields that are read in ``timezone`` (an IANA name, by
    default UTC), or ``every_seconds``, counted from ``starts_at`` or else from its creation. There
    are no ticks before ``starts_at`` and after ``ends_at``. ``overlap`` says what a tick does while
    a job of the schedule is live: ``allow`` (default), ``skip`` or ``replace``. ``catch_up`` says
    which ticks that an outage has missed create jobs: ``none``, ``last`` (default) or ``all``, 100
    at most. Each job is created up to ``jitter_seconds`` later.
    """

    cron: str | None
    every_seconds: int | None
    timezone: str | None
    overlap: str | None
    catch_up: str | None
    jitter_seconds: int | None
    starts_at: datetime | None
    ends_at: datetime | None


class ScheduleChanges(ScheduleFields, total=False):
    """Changes of a schedule. ``job`` is merged into its job (RFC 7396)."""

    name: str
    job: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Workspace(_FromJson):
    """A workspace; ``role`` is the caller's role in it.

    While it is ``paused``, claims return no jobs. ``priority_ageing_seconds`` is how many seconds
    of waiting each level of priority is worth; None: a higher priority always comes first.
    """

    workspace_id: int
    name: str
    role: str
    created_by: int
    created_at: datetime
    updated_at: datetime
    retention: dict[str, int | None] = field(hash=False)
    paused: bool = False
    paused_reason: str | None = None
    priority_ageing_seconds: int | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerInfo(_FromJson):
    """A worker that has claimed jobs within the last day.

    ``state`` is ``live`` or ``gone``. ``actor`` is the key or user that it claims as, such as
    ``key:7``. ``job_types`` are the types that it claims; None: all. ``running`` is the number of
    jobs that it runs. ``last_seen_at`` is accurate to ten seconds.
    """

    name: str
    actor: str
    state: str
    job_types: list[str] | None = field(default=None, hash=False)
    running: int
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, kw_only=True)
class Reason(_FromJson):
    """One reason for a job's status. ``data`` has further fields, which depend on ``code``."""

    code: str
    detail: str
    data: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make an object from the service's JSON."""
        more = {name: value for name, value in data.items() if name not in ("code", "detail")}
        return super().from_json({"code": data["code"], "detail": data["detail"], "data": more})

    def to_json(self) -> dict[str, Any]:
        """The fields as the service sends them."""
        return {"code": self.code, "detail": self.detail, **self.data}


@dataclass(frozen=True, kw_only=True)
class Explanation(_FromJson):
    """Why a job is in its status, and when it may start and end.

    ``ahead`` is the number of jobs that are claimed before it; with ``ahead_is_capped`` there may
    be more. ``live_workers`` counts the live workers that claim its type. ``estimate_basis`` says
    what the estimates are based on, or why there are none.
    """

    job_id: str
    status: str
    reasons: list[Reason] = field(hash=False)
    ahead: int | None = None
    ahead_is_capped: bool = False
    live_workers: int | None = None
    estimated_start_at: datetime | None = None
    estimated_completion_at: datetime | None = None
    estimate_basis: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make an object from the service's JSON."""
        return super().from_json({**data, "reasons": [*map(Reason.from_json, data["reasons"])]})


class EventFilter(TypedDict, total=False):
    """Filters of events; an event must match all that are given."""

    kind: str | Sequence[str]
    job_id: str
    job_type: str | Sequence[str]


class JobFilter(TypedDict, total=False):
    """Filters of jobs; a job must match all that are given.

    The filters that end in ``_after`` include their time, those that end in ``_before`` do not;
    times need an offset. ``error`` is a part of the error's text; ``error_group`` means failed
    jobs. ``metadata`` maps paths of keys, such as ``file.name``, to values.
    """

    status: str | Sequence[str]
    job_type: str | Sequence[str]
    priority: str | Sequence[str]
    created_after: datetime
    created_before: datetime
    updated_after: datetime
    created_by: int
    job_id: str | Sequence[str]
    error: str
    error_group: str | Sequence[str]
    concurrency_key: str | Sequence[str]
    unique_key: str | Sequence[str]
    schedule_id: str | Sequence[str]
    expires_after: datetime
    expires_before: datetime
    metadata: Mapping[str, str | int | float | bool | None]
