"""Events: their kinds and their fields."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from .documents import Document
from .labels import Labelled


class EventKind(Labelled):
    """What can happen to a job, or to a workspace. The database stores the numbers."""

    CREATED = 0
    STARTED = 1
    CLAIMED = 2
    PROGRESSED = 3
    SUCCEEDED = 4
    FAILED = 5
    RETRIED = 6
    LEASE_EXPIRED = 7
    CANCELLED = 8
    EDITED = 9
    RELEASED = 10
    DELETED = 11
    TIMED_OUT = 12
    MEMBER_ADDED = 20
    MEMBER_CHANGED = 21
    MEMBER_REMOVED = 22
    KEY_CREATED = 23
    KEY_REVOKED = 24
    WORKSPACE_CHANGED = 25
    WORKSPACE_PAUSED = 26
    WORKSPACE_RESUMED = 27
    JOB_TYPE_CHANGED = 28
    JOB_TYPE_PAUSED = 29
    JOB_TYPE_RESUMED = 30
    SCHEDULE_CREATED = 40
    SCHEDULE_CHANGED = 41
    SCHEDULE_DELETED = 42
    SCHEDULE_PAUSED = 43
    SCHEDULE_RESUMED = 44
    SCHEDULE_SUSPENDED = 45
    SCHEDULE_SKIPPED = 46
    WEBHOOK_CREATED = 50
    WEBHOOK_CHANGED = 51
    WEBHOOK_DELETED = 52
    WEBHOOK_DISABLED = 53
    WEBHOOK_SECRET_ROTATED = 54


WORKSPACE_EVENTS = frozenset(
    {
        EventKind.MEMBER_ADDED,
        EventKind.MEMBER_CHANGED,
        EventKind.MEMBER_REMOVED,
        EventKind.KEY_CREATED,
        EventKind.KEY_REVOKED,
        EventKind.WORKSPACE_CHANGED,
        EventKind.WORKSPACE_PAUSED,
        EventKind.WORKSPACE_RESUMED,
        EventKind.JOB_TYPE_CHANGED,
        EventKind.JOB_TYPE_PAUSED,
        EventKind.JOB_TYPE_RESUMED,
        EventKind.SCHEDULE_CREATED,
        EventKind.SCHEDULE_CHANGED,
        EventKind.SCHEDULE_DELETED,
        EventKind.SCHEDULE_PAUSED,
        EventKind.SCHEDULE_RESUMED,
        EventKind.SCHEDULE_SUSPENDED,
        EventKind.SCHEDULE_SKIPPED,
        EventKind.WEBHOOK_CREATED,
        EventKind.WEBHOOK_CHANGED,
        EventKind.WEBHOOK_DELETED,
        EventKind.WEBHOOK_DISABLED,
        EventKind.WEBHOOK_SECRET_ROTATED,
    }
)
"""What happens to a workspace, its members, keys, job types, schedules and webhooks.

Only owners see it.
"""

JOB_EVENTS = frozenset(EventKind) - WORKSPACE_EVENTS
"""What happens to a job."""


def name_of(xid: int, number: int) -> str:
    """The public id of an event, made of its transaction's number and its own."""
    return f"{xid}-{number}"


class Event(Protocol):
    """A row of the events table: what happened, when, and who did it."""

    id: int
    """Number in the order of writing."""
    workspace_id: int
    xid: int
    """Number of the transaction, by which events are ordered; 0 on SQLite."""
    at: datetime
    kind: int
    """An ``EventKind``, or a number that only a newer version knows."""
    job_id: str | None
    """None: it happened to the workspace."""
    job_type: str | None
    from_status: int | None
    """The job's ``JobStatus`` before. None: it was created."""
    to_status: int | None
    """The job's ``JobStatus`` after. None: it was deleted."""
    attempt: int | None
    """Number of the attempt that the event is about."""
    actor: str | None
    """Who did it: ``user:1``, ``key:1``, or None for the service itself."""
    worker: str | None
    """Name of the worker, if the job ran before or runs after."""
    data: Document | None
    """More data, by kind: see ``docs/events.md``."""
