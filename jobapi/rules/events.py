"""The kinds of events."""

from __future__ import annotations

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


WORKSPACE_EVENTS = frozenset(
    {
        EventKind.MEMBER_ADDED,
        EventKind.MEMBER_CHANGED,
        EventKind.MEMBER_REMOVED,
        EventKind.KEY_CREATED,
        EventKind.KEY_REVOKED,
        EventKind.WORKSPACE_CHANGED,
    }
)
"""What happens to a workspace, its members and its keys: only owners see it."""

JOB_EVENTS = frozenset(EventKind) - WORKSPACE_EVENTS
"""What happens to a job."""


def name_of(xid: int, number: int) -> str:
    """The public id of an event, of the transaction and the number that it has in the log."""
    return f"{xid}-{number}"
