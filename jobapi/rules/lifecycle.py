"""The life of a job: its states, and what each verb changes. Pure, no I/O.

Every function takes the current job and the database's time, and returns the ``Change``.
``docs/lifecycle.md`` shows the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import orjson

from ..errors import (
    Conflict,
    JobNotCancellable,
    JobNotEditable,
    JobNotRetryable,
    JobNotRunning,
    LeaseRequired,
    TransitionNotAllowed,
    ValidationFailed,
)
from .causes import error_columns
from .documents import merge_patch
from .events import EventKind
from .jobs import (
    FIELDS,
    STATUS_ORDER,
    Job,
    JobColumns,
    JobEdit,
    JobStatus,
    Outcome,
    SetBy,
    WorkFields,
    fields_set_by,
)

CANCELLED_REASON = "Cancelled via API"
EXPIRED_REASON = "Not started before it expired"
RETRY_REASON = "Retried via API"


class Change(NamedTuple):
    """The decision of a rule: what changes in a job, and what the change means."""

    values: JobColumns
    """New values of the columns that change; empty if nothing changes."""
    event: EventKind | None = None
    """The event that the change writes, or None."""
    outcome: Outcome | None = None
    """How the change ends the attempt; None if it does not."""
    edited: tuple[str, ...] = ()
    """The names of the fields that an edit of a pending job changed."""
    is_renewal: bool = False
    """Whether only the lease changes, which makes no new version of the job."""


class Transition(NamedTuple):
    """What a verb does to a job's status."""

    allowed: frozenset[JobStatus]
    """The statuses in which the verb is allowed."""
    target: JobStatus
    """The status that follows."""
    event: EventKind | None = None
    """The event, if the status changes."""
    outcome: Outcome | None = None
    """How it ends the job's attempt."""


_PENDING = frozenset({JobStatus.PENDING})
_RUNNING = frozenset({JobStatus.RUNNING})
_ALIVE = _PENDING | _RUNNING
_RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})

TRANSITIONS: Mapping[str, Transition] = {
    "start": Transition(_ALIVE, JobStatus.RUNNING, EventKind.STARTED),
    "succeed": Transition(_ALIVE, JobStatus.SUCCESS, EventKind.SUCCEEDED, Outcome.SUCCESS),
    "fail": Transition(_ALIVE, JobStatus.FAILED, EventKind.FAILED, Outcome.FAILED),
    "cancel": Transition(_ALIVE, JobStatus.CANCELLED, EventKind.CANCELLED, Outcome.CANCELLED),
    "retry": Transition(_RETRYABLE, JobStatus.PENDING, EventKind.RETRIED),
    "claim": Transition(_PENDING, JobStatus.RUNNING, EventKind.CLAIMED),
    "begin": Transition(_RUNNING, JobStatus.RUNNING),
    "release": Transition(_RUNNING, JobStatus.PENDING, EventKind.RELEASED, Outcome.RELEASED),
    "reschedule": Transition(_RUNNING, JobStatus.PENDING, EventKind.RETRIED, Outcome.FAILED),
}


# The verb that an edit of `status` means. No edit leads to pending: that takes a retry,
# which is counted.
EDIT_VERBS = {
    JobStatus.RUNNING: "start",
    JobStatus.SUCCESS: "succeed",
    JobStatus.FAILED: "fail",
    JobStatus.CANCELLED: "cancel",
}

# The fields that may be edited while the job is pending, each with the value that null stands for.
PENDING_FIELDS: Mapping[str, Any] = {
    name: FIELDS[name].default for name in fields_set_by(SetBy.EDIT)
}
# The fields that only the holder of a lease can set.
LEASE_FIELDS = ("begun", "run_id")
# The fields that a create with `on_conflict: replace` changes in the live job.
REPLACED = ("priority", "metadata", "scheduled_at")
WORK_FIELDS = fields_set_by(SetBy.WORK)


def allows(verb: str, status: int) -> bool:
    """Whether a verb is allowed for a job in this status."""
    return status in TRANSITIONS[verb].allowed


def allowed_from(verb: str) -> str:
    """The statuses in which a verb is allowed, for a sentence: ``failed or cancelled``."""
    return " or ".join(s.label for s in STATUS_ORDER if allows(verb, s))


def due_at(queued_at: datetime, scheduled_at: datetime | None) -> datetime:
    """When a job may start: a schedule in the past means at once."""
    return queued_at if scheduled_at is None else max(queued_at, scheduled_at)


def actual_duration(due: datetime, end: datetime) -> int | None:
    """Whole seconds from when the job was due to its end; None if it ended before it was due."""
    return None if end < due else int((end - due).total_seconds())


def cancel(job: Job, *, reason: str | None, now: datetime) -> Change:
    """End a job that is no longer wanted; its partial result stays.

    Raises ``JobNotCancellable`` if it has ended.
    """
    _check("cancel", "cancelled", job, JobNotCancellable)
    change = end(job, "cancel", now)
    change.values["result"] = {**(job.result or {}), "cancelled_reason": reason or CANCELLED_REASON}
    return change


def retry(job: Job, *, reason: str | None, now: datetime) -> Change:
    """Put a failed or cancelled job back to pending, due now.

    A caller's retry may exceed ``max_retries``, which is then raised. Raises ``JobNotRetryable``.
    """
    _check("retry", "retried", job, JobNotRetryable)
    verb = TRANSITIONS["retry"]
    count = job.retry_count + 1
    values: JobColumns = {
        "status": verb.target,
        "retry_count": count,
        "max_retries": max(job.max_retries, count),
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "completed_at": None,
        "actual_duration": None,
        **error_columns(None),
        "progress_percent": None,
        "progress_message": None,
        "result": {"retry_reason": reason or RETRY_REASON, "previous_attempts": count},
        "expires_at": None,
        "ripe": job.concurrency_key is not None,
    }
    return Change(values, verb.event)


def expire(job: Job, now: datetime) -> Change:
    """Cancel a pending job that has expired. The change has no values if it has not."""
    if job.status != JobStatus.PENDING or not has_expired(job, now):
        return Change({})
    return cancel(job, reason=EXPIRED_REASON, now=now)


def has_expired(job: Job, now: datetime) -> bool:
    """Whether a pending job must not be started any more."""
    return job.expires_at is not None and job.expires_at <= now and not job.has_begun


def check_expiry(
    expires_at: datetime | None, scheduled_at: datetime | None, now: datetime, field: str
) -> None:
    """Raise ``ValidationFailed`` for ``field`` if a job would expire before it may start."""
    if expires_at is None or expires_at > due_at(now, scheduled_at):
        return
    if field == "expires_at":
        raise ValidationFailed({field: ["Must be later than now and scheduled_at."]})
    raise ValidationFailed({field: ["Must be earlier than expires_at."]})


def replace(job: Job, given: Mapping[str, Any], now: datetime) -> Change:
    """Update a pending job from a create with its ``unique_key`` and ``on_conflict: replace``.

    ``metadata``, ``priority`` and ``scheduled_at`` are replaced; all else stays.
    """
    values = cast(JobColumns, {name: given[name] for name in REPLACED})
    edited = tuple(name for name in REPLACED if _differs(job, values, name))
    if not edited:
        return Change({})
    if "scheduled_at" in edited:
        _reschedule(job, values, now)
    return Change(values, EventKind.EDITED, edited=edited)


def _check(verb: str, participle: str, job: Job, refusal: type[Conflict]) -> None:
    if not allows(verb, job.status):
        raise refusal(
            f"The job is {JobStatus(job.status).label}; "
            f"only a {allowed_from(verb)} job can be {participle}."
        )


def edit(job: Job, changes: JobEdit, now: datetime) -> Change:
    """Apply an edit of any of the fields that callers may change.

    ``result`` and ``metadata`` are merge patches; None clears a field. Raises
    ``JobNotEditable``, ``TransitionNotAllowed``, ``JobNotRunning`` or ``LeaseRequired`` if the
    job's state forbids it, ``ValidationFailed`` if two of the changes contradict each other.
    """
    status = JobStatus(job.status)
    values = _edit_pending(job, changes, status, now)
    edited = tuple(
        name for name in PENDING_FIELDS if name in values and _differs(job, values, name)
    )
    target = None
    verb = ""
    if "status" in changes:
        target = JobStatus(changes["status"])
        verb = EDIT_VERBS.get(target, "")
        if not verb or not allows(verb, status):
            raise TransitionNotAllowed(_why_not(status, target))
    _check_work(job, changes, target)

    change = Change({})
    if target is JobStatus.RUNNING:
        change = _start(job, values.get("timeout_seconds", job.timeout_seconds), now)
    elif target is not None:
        change = end(job, verb, now)
    values |= change.values
    values |= work_values(job, changes, target)
    if target is JobStatus.CANCELLED:
        given = changes.get("result") or {}
        values["result"] = {
            **(values.get("result", job.result) or {}),
            "cancelled_reason": given.get("cancelled_reason") or CANCELLED_REASON,
        }
    event = change.event
    if event is None and edited:
        event = EventKind.EDITED
    elif event is None and status is JobStatus.RUNNING:
        event = progress_event(job, changes)
    return change._replace(values=values, event=event, edited=edited)


def _edit_pending(job: Job, changes: JobEdit, status: JobStatus, now: datetime) -> JobColumns:
    given: Mapping[str, Any] = changes
    names = [name for name in PENDING_FIELDS if name in given]
    if not names:
        return {}
    if status is not JobStatus.PENDING:
        raise JobNotEditable(
            f"The job is {status.label}; {', '.join(names)} can be changed only "
            "while it is pending."
        )
    # The names are columns, and the schemas have checked the values.
    values = cast(
        JobColumns,
        {name: PENDING_FIELDS[name] if given[name] is None else given[name] for name in names},
    )
    if "metadata" in values:
        values["metadata"] = merge_patch(job.metadata, values["metadata"])
    if "expires_at" in values:
        check_expiry(
            values["expires_at"], values.get("scheduled_at", job.scheduled_at), now, "expires_at"
        )
    if "scheduled_at" in values:
        _reschedule(job, values, now)
    if "concurrency_key" in values:
        due = values.get("due_at", job.due_at)
        values["ripe"] = values["concurrency_key"] is not None and due <= now
    if values.get("max_retries", job.retry_count) < job.retry_count:
        raise JobNotEditable(
            f"The job was already retried {job.retry_count} times; max_retries cannot be less."
        )
    return values


def _reschedule(job: Job, values: JobColumns, now: datetime) -> None:
    scheduled_at = values["scheduled_at"]
    if scheduled_at is not None and not job.has_begun:
        check_expiry(values.get("expires_at", job.expires_at), scheduled_at, now, "scheduled_at")
    due = values["due_at"] = due_at(job.queued_at, scheduled_at)
    if job.concurrency_key is not None:
        values["ripe"] = due <= now


def _differs(job: Job, values: Mapping[str, Any], name: str) -> bool:
    before, after = getattr(job, name), values[name]
    if isinstance(after, dict | list):
        # In Python, 1 == 1.0 == True. As JSON they differ.
        return before is None or orjson.dumps(before) != orjson.dumps(after)
    return bool(before != after)


def _check_work(job: Job, changes: JobEdit, target: JobStatus | None) -> None:
    """Refuse changes that the job's state forbids, or that only the lease's holder may make."""
    status = JobStatus(job.status)
    work = [name for name in WORK_FIELDS if name in changes]
    if work and target is None and status is not JobStatus.RUNNING:
        raise JobNotRunning(
            f"The job is {status.label}; {', '.join(work)} can be set only while it is "
            "running, or together with a change of status."
        )
    of_lease = [name for name in LEASE_FIELDS if changes.get(name)]
    if job.lease_token is not None and (
        work or of_lease or target not in (None, JobStatus.CANCELLED)
    ):
        raise LeaseRequired("A worker has leased the job. Send its Lease-Token, or cancel the job.")
    if of_lease:
        raise ValidationFailed(
            {
                name: ["Only the holder of the lease may send this: add its Lease-Token."]
                for name in of_lease
            }
        )
    if target is JobStatus.SUCCESS and changes.get("error") is not None:
        raise ValidationFailed(
            {"error": ["A job that succeeds has no error. Leave error out, or report failed."]}
        )


def work_values(job: Job, changes: WorkFields, target: JobStatus | None) -> JobColumns:
    """The columns that report on the work: progress, error, and the merged result."""
    values: JobColumns = {}
    if "progress_percent" in changes:
        values["progress_percent"] = changes["progress_percent"]
    if "progress_message" in changes:
        values["progress_message"] = changes["progress_message"]
    if "error" in changes:
        values |= error_columns(changes["error"])
    if target is JobStatus.SUCCESS:
        values |= error_columns(None)
    if "result" in changes:
        values["result"] = merge_patch(job.result, changes["result"])
    return values


def progress_event(job: Job, changes: WorkFields) -> EventKind | None:
    """The event of progress, if progress crosses a multiple of 10 percent.

    Otherwise there is none, so that a worker that reports often does not fill the table.
    """
    if "progress_percent" not in changes:
        return None
    before, after = job.progress_percent or 0, changes["progress_percent"] or 0
    return EventKind.PROGRESSED if before // 10 != after // 10 else None


NO_LEASE: JobColumns = {
    "lease_token": None,
    "lease_seconds": None,
    "lease_expires_at": None,
    "reap_at": None,
    "prefetched": False,
    "suspect": False,
    "run_id": None,
}


def _start(job: Job, timeout_seconds: int | None, now: datetime) -> Change:
    verb = TRANSITIONS["start"]
    values: JobColumns = {"status": verb.target, "started_at": job.started_at or now}
    if job.status == JobStatus.RUNNING:
        return Change(values)
    values |= {
        "attempt": job.attempt + 1,
        "worker": None,
        "suspect": False,
        "has_begun": True,
        "reap_at": None if timeout_seconds is None else now + timedelta(seconds=timeout_seconds),
    }
    return Change(values, verb.event)


def end(job: Job, verb: str, now: datetime) -> Change:
    """End a job by a verb: ``succeed``, ``fail`` or ``cancel``."""
    _, status, event, outcome = TRANSITIONS[verb]
    started_at = job.started_at
    if started_at is None or (job.prefetched and status is not JobStatus.CANCELLED):
        # If the first report is the end, the attempt begins with it.
        started_at = now
    values: JobColumns = {
        "status": status,
        "started_at": started_at,
        "completed_at": now,
        "actual_duration": actual_duration(job.due_at, now),
        **NO_LEASE,
    }
    if job.status == JobStatus.PENDING:
        if status is JobStatus.CANCELLED:
            return Change(values, event)
        # The caller did the work without starting the job first: that counts as an attempt.
        values |= {"attempt": job.attempt + 1, "worker": None}
    return Change(values, event, outcome)


def _why_not(status: JobStatus, target: JobStatus) -> str:
    remedy = ""
    if target is JobStatus.PENDING and allows("retry", status):
        remedy = " Retry it with POST …/retry."
    elif status.ended and allows("retry", status):
        remedy = " Retry it first."
    return f"A {status.label} job cannot become {target.label} by an edit.{remedy}"
