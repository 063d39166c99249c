"""The rules of leases and attempts: what a report, or silence, does to a job. Pure, no I/O.

As in ``lifecycle``, every function takes the current job and the database's time, and returns the
``Change``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..errors import AlreadyBegun, JobNotRunning, LeaseLost, LeaseRequired
from .causes import error_columns
from .events import EventKind
from .jobs import Attempt, Job, JobColumns, JobStatus, Outcome, ReportFields
from .lifecycle import (
    EDIT_VERBS,
    NO_LEASE,
    TRANSITIONS,
    WORK_FIELDS,
    Change,
    allows,
    end,
    progress_event,
    work_values,
)

LEASE_EXPIRED = "lease expired"
TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Backoff:
    """How long to wait before an automatic retry: exponential backoff with jitter."""

    first_seconds: float
    max_seconds: float

    def delay(self, retry: int, chance: float) -> timedelta:
        """The wait before retry ``retry`` (from 1); ``chance``, from 0 to 1, gives the jitter."""
        # 2**40 seconds are more than any limit.
        longest = min(self.max_seconds, self.first_seconds * 2 ** min(retry - 1, 40))
        return timedelta(seconds=longest * (0.5 + chance / 2))


def report(
    job: Job,
    lease_token: str,
    said: ReportFields,
    *,
    backoff: Backoff,
    chance: float,
    now: datetime,
) -> Change:
    """Apply what the holder of a lease reports about its job.

    No status, or ``running``, renews the lease for ``lease_seconds`` from now;
    ``pending`` releases the job; ``success`` and ``failed`` end the attempt,
    and ``failed`` is retried if ``max_retries`` and ``retryable`` allow it.
    A prefetched job's attempt begins with ``begun``, with any of ``WORK_FIELDS``,
    with logs or with its end. Raises ``LeaseLost`` if the token is not that of the
    lease, ``AlreadyBegun`` if another ``run_id`` has begun the attempt.
    """
    target = JobStatus(said.get("status", JobStatus.RUNNING))
    if job.lease_token != lease_token or not allows("begin", job.status):
        raise LeaseLost(_why_lost(job))
    run_id = said.get("run_id")
    if run_id is not None and job.run_id not in (None, run_id):
        raise AlreadyBegun(
            f"The run {job.run_id!r} has already begun this attempt; stop the run {run_id!r}."
        )
    values = work_values(job, said, target)
    if target is JobStatus.RUNNING:
        return _renew(job, said, values, now)
    if target is JobStatus.PENDING:
        change = _put_back("release", now)
    elif target is JobStatus.FAILED and said.get("retryable", True):
        retry_after = said.get("retry_after")
        delay = None if retry_after is None else timedelta(seconds=retry_after)
        change = _fail_attempt(job, backoff, chance, now, delay)
    else:
        change = end(job, EDIT_VERBS[target], now)
    if target is JobStatus.SUCCESS:
        values["succeeded_by"] = lease_token
    return change._replace(values=values | change.values)


def check_log(job: Job, lease_token: str | None) -> None:
    """Check that a caller may append to the log of a job, outside a report.

    Raises ``JobNotRunning``; ``LeaseRequired`` without the token of the lease that the job is
    under. Whether a token is the right one is for ``report`` to say.
    """
    if job.status != JobStatus.RUNNING:
        raise JobNotRunning(
            f"The job is {JobStatus(job.status).label}; only a running job takes log entries."
        )
    if lease_token is None and job.lease_token is not None:
        raise LeaseRequired(
            "A worker has leased the job; only with its Lease-Token can log entries be added."
        )


def _renew(job: Job, said: ReportFields, values: JobColumns, now: datetime) -> Change:
    begun = said.get("begun") or False
    works = any(name in said for name in WORK_FIELDS) or bool(said.get("logs"))
    if job.prefetched and (begun or works):
        begun = True
        values |= {"prefetched": False, "started_at": now, "has_begun": True}
        if job.timeout_seconds is not None and job.reap_at is not None:
            # The timeout runs from here.
            values["reap_at"] = min(job.reap_at, now + timedelta(seconds=job.timeout_seconds))
    is_renewal = not values
    if begun and said.get("run_id") is not None:
        values["run_id"] = said["run_id"]
    # `reap_at` stays as it is, so that a heartbeat changes no index. The reaper postpones it
    # when it finds that the lease was renewed.
    values["lease_expires_at"] = now + timedelta(seconds=job.lease_seconds or 0)
    return Change(values, progress_event(job, said), is_renewal=is_renewal)


def expire(job: Job, *, backoff: Backoff, chance: float, now: datetime) -> Change:
    """End the attempt of a job whose lease or ``timeout_seconds`` has run out.

    If the lease was renewed, the change only postpones ``reap_at``. If there is nothing to do yet,
    the change has no values. A job with a lease is retried like after a failure; one without a
    lease fails, because no worker would retry it. An attempt that has not begun costs no retry: its
    job goes back to pending as a suspect, because it may have killed its worker.
    """
    if not allows("reschedule", job.status) or job.reap_at is None or job.reap_at > now:
        return Change({})
    times_out_at = _times_out_at(job)
    timed_out = times_out_at is not None and times_out_at <= now
    if job.lease_expires_at is not None and job.lease_expires_at > now and not timed_out:
        return Change({"reap_at": _reap_at(job, job.lease_expires_at)}, is_renewal=True)
    if job.prefetched:
        change = _put_back("release", now)
        change.values["suspect"] = True
    elif job.lease_token is None:
        change = end(job, "fail", now)
    else:
        change = _fail_attempt(job, backoff, chance, now, None)
    values = change.values
    values |= error_columns(TIMED_OUT if timed_out else LEASE_EXPIRED)
    return change._replace(
        event=EventKind.TIMED_OUT if timed_out else EventKind.LEASE_EXPIRED,
        outcome=Outcome.TIMED_OUT if timed_out else Outcome.EXPIRED,
    )


def _put_back(verb: str, now: datetime) -> Change:
    _, status, event, outcome = TRANSITIONS[verb]
    values: JobColumns = {
        "status": status,
        "started_at": None,
        "progress_percent": None,
        "progress_message": None,
        **NO_LEASE,
    }
    return Change(values, event, outcome)


def _fail_attempt(
    job: Job, backoff: Backoff, chance: float, now: datetime, delay: timedelta | None
) -> Change:
    if job.retry_count >= job.max_retries:
        return end(job, "fail", now)
    count = job.retry_count + 1
    delay = backoff.delay(count, chance) if delay is None else delay
    change = _put_back("reschedule", now)
    values = change.values
    values |= {"retry_count": count, "queued_at": now, "due_at": now + delay}
    if delay:
        # It takes part in turns again when it is due.
        values["ripe"] = False
    return change


def ended_attempt(job: Job, change: Change, now: datetime) -> Attempt | None:
    """The attempt that a change of a job ends; None if it ends none, or ends it with success.

    A successful attempt stays in the job's own row, which does not change any more.
    """
    outcome = change.outcome
    if outcome is None or outcome is Outcome.SUCCESS:
        return None
    attempt = change.values.get("attempt", job.attempt)
    ends_at_once = job.prefetched and outcome is Outcome.FAILED
    return Attempt(
        job=job.id,
        attempt=attempt,
        outcome=outcome,
        worker=job.worker if attempt == job.attempt else None,
        lease_token=job.lease_token,
        error=change.values.get("error"),
        started_at=now if ends_at_once else job.started_at or now,
        ended_at=now,
    )


def _reap_at(job: Job, lease_expires_at: datetime) -> datetime:
    times_out_at = _times_out_at(job)
    return lease_expires_at if times_out_at is None else min(lease_expires_at, times_out_at)


def _times_out_at(job: Job) -> datetime | None:
    """When its attempt will have run for too long; None: never, or it has not begun."""
    if job.timeout_seconds is None or job.prefetched or job.started_at is None:
        return None
    return job.started_at + timedelta(seconds=job.timeout_seconds)


def _why_lost(job: Job) -> str:
    status = JobStatus(job.status)
    if status is JobStatus.CANCELLED:
        return "The job was cancelled; stop working on it."
    if status is JobStatus.RUNNING:
        return "Another lease holds the job now, or none; stop working on it."
    return f"The lease has ended and the job is {status.label}; stop working on it."
