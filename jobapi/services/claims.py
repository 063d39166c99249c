"""Claims that are safe to repeat: the same idempotency key returns the same leases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ..rules.jobs import Job
from ..store.connections import Executor
from ..store.tables import SLOTS
from ..store.transactions import IN_ORDER, transactional
from . import idempotency, queue


class Claim(NamedTuple):
    """The jobs that are leased, and whether an earlier claim with the same key leased them."""

    jobs: Sequence[Job]
    replayed: bool = False


@transactional(planner=IN_ORDER, keep_plans=True, repeat_after=SLOTS)
def claim(
    session: Executor,
    workspace_id: int,
    *,
    key: str,
    body: Any,
    now: datetime,
    actor: str,
    **wanted: Any,
) -> Claim:
    """Claim as ``queue.claim`` does, or return the leases that an earlier claim got for ``key``.

    Leases that have ended since are left out. ``body`` is the request that the key was sent with.
    A claim that got no job is not remembered, so repeating it may get one. Raises
    ``RequestInProgress`` and ``IdempotencyKeyReused``.
    """
    mark = idempotency.fingerprint("claim_jobs", body)
    token = idempotency.recall(session, workspace_id, actor, key, mark)
    if token is not None:
        return Claim(queue.leased(session, workspace_id, token), replayed=True)
    token = queue.new_lease_token()
    jobs = queue.claim(session, workspace_id, lease_token=token, now=now, actor=actor, **wanted)
    if jobs:
        idempotency.remember(session, workspace_id, actor, key, mark, token, now)
    return Claim(jobs)
