"""The life of a job: its states, and what each verb changes. Pure, no I/O.

Every function takes the job as it is, a row of the jobs table, and the time as
the database tells it, and returns the columns to change. ``docs/lifecycle.md``
draws the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ..errors import (
    JobNotCancellable,
    JobNotEditable,
    JobNotRetryable,
    JobNotRunning,
    LeaseRequired,
    TransitionNotAllowed,
    ValidationFailed,
)
from .documents import merge_patch
from .jobs import DEFAULT_MAX_RETRIES, STATUS_ORDER, JobStatus, Priority

CANCELLED_REASON = "Cancelled via API"
RETRY_REASON = "Retried via API"


TRANSITIONS: Mapping[str, tuple[frozenset[JobStatus], JobStatus]] = {
    "start": (frozenset({JobStatus.PENDING, JobStatus.RUNNING}), JobStatus.RUNNING),
    "succeed": (frozenset({JobStatus.PENDING, JobStatus.RUNNING}), JobStatus.SUCCESS),
    "fail": (frozenset({JobStatus.PENDING, JobStatus.RUNNING}), JobStatus.FAILED),
    "cancel": (frozenset({JobStatus.PENDING, JobStatus.RUNNING}), JobStatus.CANCELLED),
    "retry": (frozenset({JobStatus.FAILED, JobStatus.CANCELLED}), JobStatus.PENDING),
    "claim": (frozenset({JobStatus.PENDING}), JobStatus.RUNNING),
    "begin": (frozenset({JobStatus.RUNNING}), JobStatus.RUNNING),
    "release": (frozenset({JobStatus.RUNNING}), JobStatus.PENDING),
    "reschedule": (frozenset({JobStatus.RUNNING}), JobStatus.PENDING),
}


# The verb that an edit of `status` means. None leads to pending: going back is
# a retry, which counts, and not an edit.
EDIT_VERBS = {
    JobStatus.RUNNING: "start",
    JobStatus.SUCCESS: "succeed",
    JobStatus.FAILED: "fail",
    JobStatus.CANCELLED: "cancel",
}

# What may be edited while nobody works on the job, with what null means there.
PENDING_FIELDS: Mapping[str, Any] = {
    "priority": Priority.NORMAL,
    "scheduled_at": None,
    "estimated_duration": None,
    "max_retries": DEFAULT_MAX_RETRIES,
    "timeout_seconds": None,
    "metadata": None,
}
# What only the holder of a lease can say of an attempt.
LEASE_FIELDS = ("begun", "run_id")
WORK_FIELDS = ("progress_percent", "progress_message", "result", "error")


def allows(verb: str, status: int) -> bool:
    """Whether a job in this status takes this verb."""
    return status in TRANSITIONS[verb][0]


def allowed_from(verb: str) -> str:
    """The statuses that take this verb, for a sentence: ``failed or cancelled``."""
    return " or ".join(s.label for s in STATUS_ORDER if allows(verb, s))


def due_at(queued_at: datetime, scheduled_at: datetime | None) -> datetime:
    """When a job may start: a schedule in the past means at once."""
    return queued_at if scheduled_at is None else max(queued_at, scheduled_at)


def actual_duration(due: datetime, end: datetime) -> int | None:
    """Whole seconds from when the job was due to its end; None if never due."""
    return None if end < due else int((end - due).total_seconds())


def cancel(job: Any, *, reason: str | None, now: datetime) -> dict[str, Any]:
    """End a job that nobody wants any more; what it had done stays.

    Raises ``JobNotCancellable`` where it has ended.
    """
    if not allows("cancel", job.status):
        raise JobNotCancellable(
            f"The job is {JobStatus(job.status).label}; "
            f"only a {allowed_from('cancel')} job can be cancelled."
        )
    result = {**(job.result or {}), "cancelled_reason": reason or CANCELLED_REASON}
    return {**end(job, JobStatus.CANCELLED, now), "result": result}


def retry(job: Any, *, reason: str | None, now: datetime) -> dict[str, Any]:
    """Put an ended job back to the start, due now.

    A person's retry is never refused for its count. Raises
    ``JobNotRetryable`` where the job is alive or has succeeded.
    """
    if not allows("retry", job.status):
        raise JobNotRetryable(
            f"The job is {JobStatus(job.status).label}; "
            f"only a {allowed_from('retry')} job can be retried."
        )
    count = job.retry_count + 1
    return {
        "status": JobStatus.PENDING,
        "retry_count": count,
        "max_retries": max(job.max_retries, count),
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "completed_at": None,
        "actual_duration": None,
        "error": None,
        "progress_percent": None,
        "progress_message": None,
        "result": {"retry_reason": reason or RETRY_REASON, "previous_attempts": count},
    }


def edit(job: Any, changes: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Apply an edit of any of the fields that callers may change.

    ``result`` and ``metadata`` are merge patches; None clears a field.
    Raises ``JobNotEditable``, ``TransitionNotAllowed`` or ``JobNotRunning``
    where the job's status is in the way, ``ValidationFailed`` where two of the
    changes contradict each other.
    """
    status = JobStatus(job.status)
    values = _edit_pending(job, changes, status)
    target = None
    if "status" in changes:
        target = JobStatus(changes["status"])
        verb = EDIT_VERBS.get(target)
        if verb is None or not allows(verb, status):
            raise TransitionNotAllowed(_why_not(status, target))
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
        raise LeaseRequired(
            "A worker has leased the job; only with its Lease-Token can this be changed. "
            "It can be cancelled."
        )
    if of_lease:
        raise ValidationFailed(
            {
                name: ["Only the holder of the lease may send this: add its Lease-Token."]
                for name in of_lease
            }
        )
    if target is JobStatus.SUCCESS and changes.get("error") is not None:
        raise ValidationFailed({"error": ["A job that succeeds has no error."]})

    if target is JobStatus.RUNNING:
        values |= {"status": target, "started_at": job.started_at or now}
        if status is JobStatus.PENDING:
            timeout = values.get("timeout_seconds", job.timeout_seconds)
            values |= {
                "attempt": job.attempt + 1,
                "worker": None,
                "suspect": False,
                "reap_at": None if timeout is None else now + timedelta(seconds=timeout),
            }
    elif target is not None:
        values |= end(job, target, now)
    values |= work_values(job, changes, target)
    if target is JobStatus.CANCELLED:
        given = changes.get("result") or {}
        values["result"] = {
            **(values.get("result", job.result) or {}),
            "cancelled_reason": given.get("cancelled_reason") or CANCELLED_REASON,
        }
    return values


def _edit_pending(job: Any, changes: Mapping[str, Any], status: JobStatus) -> dict[str, Any]:
    names = [name for name in PENDING_FIELDS if name in changes]
    if not names:
        return {}
    if status is not JobStatus.PENDING:
        raise JobNotEditable(
            f"The job is {status.label}; {', '.join(names)} can be changed only "
            "while it is pending."
        )
    values = {
        name: PENDING_FIELDS[name] if changes[name] is None else changes[name] for name in names
    }
    if "metadata" in values:
        values["metadata"] = merge_patch(job.metadata, values["metadata"])
    if "scheduled_at" in values:
        values["due_at"] = due_at(job.queued_at, values["scheduled_at"])
    if values.get("max_retries", job.retry_count) < job.retry_count:
        raise JobNotEditable(
            f"The job was already retried {job.retry_count} times; max_retries cannot be less."
        )
    return values


def work_values(job: Any, changes: Mapping[str, Any], target: JobStatus | None) -> dict[str, Any]:
    """What whoever does the job says of it."""
    values = {
        name: changes[name]
        for name in ("progress_percent", "progress_message", "error")
        if name in changes
    }
    if target is JobStatus.SUCCESS:
        values["error"] = None
    if "result" in changes:
        values["result"] = merge_patch(job.result, changes["result"])
    return values


NO_LEASE: Mapping[str, Any] = {
    "lease_token": None,
    "lease_seconds": None,
    "lease_expires_at": None,
    "reap_at": None,
    "prefetched": False,
    "suspect": False,
    "run_id": None,
}


def end(job: Any, status: JobStatus, now: datetime) -> dict[str, Any]:
    """What changes when a job ends in ``status``."""
    started_at = job.started_at
    if started_at is None or (job.prefetched and status is not JobStatus.CANCELLED):
        # What ends without a word before begins there.
        started_at = now
    values = {
        "status": status,
        "started_at": started_at,
        "completed_at": now,
        "actual_duration": actual_duration(job.due_at, now),
        **NO_LEASE,
    }
    if job.status == JobStatus.PENDING and status is not JobStatus.CANCELLED:
        # Whoever ends a job that nobody started, has done it.
        values |= {"attempt": job.attempt + 1, "worker": None}
    return values


def _why_not(status: JobStatus, target: JobStatus) -> str:
    remedy = ""
    if target is JobStatus.PENDING and allows("retry", status):
        remedy = " Retry it with POST …/retry."
    elif status.ended and allows("retry", status):
        remedy = " Retry it first."
    return f"A {status.label} job cannot become {target.label} by an edit.{remedy}"
