"""The columns that a claim writes into a job."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, bindparam, case, not_, or_, true

from ..rules.lifecycle import TRANSITIONS
from ..store.columns import SecondsAfter
from ..store.tables import jobs


def leased_columns(*, begin: bool) -> dict[str, Any]:
    """The columns that a claim sets, as expressions for an UPDATE of jobs.

    Without ``begin``, only the attempts at suspect jobs begin; other jobs are prefetched.

    Parameters: ``now``, ``given_lease_token``, ``given_lease_seconds``, ``given_lease_expires_at``,
    ``given_worker`` and ``actor``.
    """
    transition = TRANSITIONS["claim"]
    until: Any = bindparam("given_lease_expires_at", type_=jobs.c.lease_expires_at.type)
    moment: Any = bindparam("now", type_=jobs.c.started_at.type)
    seconds: Any = bindparam("given_lease_seconds", type_=jobs.c.lease_seconds.type)
    begins: Any = true() if begin else jobs.c.suspect
    return {
        "status": transition.target,
        "version": jobs.c.version + 1,
        "last_event": transition.event,
        "last_edited": None,
        "last_event_version": jobs.c.version + 1,
        "attempt": jobs.c.attempt + 1,
        "worker": bindparam("given_worker", type_=jobs.c.worker.type),
        "changed_by": bindparam("actor", type_=jobs.c.changed_by.type),
        "started_at": moment,
        "updated_at": moment,
        "lease_token": bindparam("given_lease_token", type_=jobs.c.lease_token.type),
        "lease_seconds": seconds,
        "lease_expires_at": until,
        "prefetched": not_(begins),
        "has_begun": or_(begins, jobs.c.has_begun),
        "suspect": False,
        "reap_at": case(
            (
                and_(begins, jobs.c.timeout_seconds < seconds),
                SecondsAfter(moment, jobs.c.timeout_seconds),
            ),
            else_=until,
        ),
    }
