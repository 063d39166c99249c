"""The rules of leases and attempts: what a report, or silence, does to a job. Pure, no I/O.

Like ``lifecycle``, every function takes the job as it is and the time as the
database tells it, and returns the columns to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..errors import AlreadyBegun, LeaseLost
from .jobs import JobStatus, Outcome
from .lifecycle import NO_LEASE, WORK_FIELDS, end, work_values

LEASE_EXPIRED = "lease expired"
TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Backoff:
    """How long to wait before an automatic retry: longer each time, spread by chance."""

    first_seconds: float
    max_seconds: float

    def delay(self, retry: int, chance: float) -> timedelta:
        """The wait before retry number ``retry`` (from 1); ``chance`` is from 0 up to 1."""
        # 2**40 seconds are more than any limit.
        longest = min(self.max_seconds, self.first_seconds * 2 ** min(retry - 1, 40))
        return timedelta(seconds=longest * (0.5 + chance / 2))


def _begin(job: Any, now: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {"prefetched": False, "started_at": now}
    if job.timeout_seconds is not None:
        # Its time runs from now on. The reaper sees for itself that a lease was renewed.
        values["reap_at"] = min(job.reap_at, now + timedelta(seconds=job.timeout_seconds))
    return values


def _put_back(now: datetime) -> dict[str, Any]:
    return {
        "status": JobStatus.PENDING,
        "started_at": None,
        "progress_percent": None,
        "progress_message": None,
        "updated_at": now,
        **NO_LEASE,
    }


def report(
    job: Any,
    lease_token: str,
    changes: Mapping[str, Any],
    *,
    backoff: Backoff,
    chance: float,
    now: datetime,
) -> dict[str, Any]:
    """Apply what the holder of a lease says of its job.

    No status, or ``running``, renews the lease for its own time from now;
    ``pending`` hands the job back; ``success`` and ``failed`` end the attempt,
    and ``failed`` is retried where ``max_retries`` and ``retryable`` let it.
    A prefetched job's attempt begins with ``begun``, with any of ``WORK_FIELDS``
    or with its end. Raises ``LeaseLost`` where the token is not that of the
    lease, ``AlreadyBegun`` where another ``run_id`` has begun the attempt.
    """
    if job.status != JobStatus.RUNNING or job.lease_token != lease_token:
        raise LeaseLost(_why_lost(job))
    run_id = changes.get("run_id")
    if run_id is not None and job.run_id not in (None, run_id):
        raise AlreadyBegun(
            f"The run {job.run_id!r} has already begun this attempt; stop the run {run_id!r}."
        )
    target = JobStatus(changes.get("status", JobStatus.RUNNING))
    values = work_values(job, changes, target)
    if target is JobStatus.PENDING:
        return values | _put_back(now)
    begun = changes.get("begun", False)
    if target is JobStatus.RUNNING:
        if job.prefetched and (begun or any(name in changes for name in WORK_FIELDS)):
            begun = True
            values |= _begin(job, now)
        if begun and run_id is not None:
            values["run_id"] = run_id
        # When to look at it stays: whoever looks then sees that it was renewed,
        # and a heartbeat changes nothing that is in an index.
        return values | {"lease_expires_at": now + timedelta(seconds=job.lease_seconds)}
    if target is JobStatus.FAILED and changes.get("retryable", True):
        retry_after = changes.get("retry_after")
        delay = None if retry_after is None else timedelta(seconds=retry_after)
        return values | _fail_attempt(job, backoff, chance, now, delay)
    if target is JobStatus.SUCCESS:
        values["succeeded_by"] = lease_token
    return values | end(job, target, now)


def expire(job: Any, *, backoff: Backoff, chance: float, now: datetime) -> dict[str, Any]:
    """End the attempt of a job whose lease, or whose time, has run out.

    Where the lease was renewed it is to be looked at later; nothing where it is
    not time to look. With a lease it is retried like a failure; without one
    no retry would follow, so it fails. An attempt that has not begun
    costs no retry: its job goes back as a suspect, which may have killed its worker.
    """
    if job.status != JobStatus.RUNNING or job.reap_at is None or job.reap_at > now:
        return {}
    if job.lease_token is not None and job.lease_expires_at > now and not _timed_out(job, now):
        return {"reap_at": _reap_at(job, job.lease_expires_at)}
    error = {"error": TIMED_OUT if _timed_out(job, now) else LEASE_EXPIRED}
    if job.prefetched:
        return error | _put_back(now) | {"suspect": True}
    if job.lease_token is None:
        return error | end(job, JobStatus.FAILED, now)
    return error | _fail_attempt(job, backoff, chance, now, None)


def _fail_attempt(
    job: Any, backoff: Backoff, chance: float, now: datetime, delay: timedelta | None
) -> dict[str, Any]:
    if job.retry_count >= job.max_retries:
        return end(job, JobStatus.FAILED, now)
    count = job.retry_count + 1
    delay = backoff.delay(count, chance) if delay is None else delay
    return _put_back(now) | {"retry_count": count, "queued_at": now, "due_at": now + delay}


def ended_attempt(job: Any, values: Mapping[str, Any], now: datetime) -> dict[str, Any] | None:
    """The attempt that a change of a job ends; None where it ends none, or with success.

    What the job's own row says of an attempt that succeeded is never written over.
    """
    status = values.get("status", job.status)
    attempt = values.get("attempt", job.attempt)
    if status in (JobStatus.RUNNING, JobStatus.SUCCESS) or (
        job.status != JobStatus.RUNNING and (attempt == job.attempt or status <= JobStatus.RUNNING)
    ):
        return None
    error = values.get("error")
    if error in (TIMED_OUT, LEASE_EXPIRED) and job.reap_at is not None and job.reap_at <= now:
        outcome = Outcome.TIMED_OUT if error == TIMED_OUT else Outcome.EXPIRED
    elif status == JobStatus.PENDING:
        retried = values.get("retry_count", job.retry_count) > job.retry_count
        outcome = Outcome.FAILED if retried else Outcome.RELEASED
    else:
        outcome = Outcome[JobStatus(status).name]
    ends_at_once = job.prefetched and outcome is Outcome.FAILED
    return {
        "job": job.id,
        "attempt": attempt,
        "outcome": outcome,
        "worker": job.worker if attempt == job.attempt else None,
        "lease_token": job.lease_token,
        "error": error,
        "started_at": now if ends_at_once else job.started_at or now,
        "ended_at": now,
    }


def is_renewal(values: Mapping[str, Any]) -> bool:
    """Whether that is only about the lease: what is shown of the job stays as it is."""
    return values.keys() <= {"lease_expires_at", "reap_at", "run_id"}


def _reap_at(job: Any, lease_expires_at: datetime) -> datetime:
    if job.timeout_seconds is None or job.prefetched:
        return lease_expires_at
    times_out: datetime = job.started_at + timedelta(seconds=job.timeout_seconds)
    return min(lease_expires_at, times_out)


def _timed_out(job: Any, now: datetime) -> bool:
    return (
        job.timeout_seconds is not None
        and not job.prefetched
        and job.started_at + timedelta(seconds=job.timeout_seconds) <= now
    )


def _why_lost(job: Any) -> str:
    status = JobStatus(job.status)
    if status is JobStatus.CANCELLED:
        return "The job was cancelled; stop working on it."
    if status is JobStatus.RUNNING:
        return "Another lease holds the job now, or none; stop working on it."
    return f"The lease has ended and the job is {status.label}; stop working on it."
