"""Start single jobs outside a claim, by an edit. They take slots and tokens as claims do."""

from __future__ import annotations

import time

from sqlalchemy import update

from ..errors import AtCapacity, RateLimited, TypePaused, WorkspacePaused
from ..rules.flow import Bucket, Flow
from ..rules.jobs import CurrentJob
from ..store.connections import Executor
from ..store.tables import job_types
from .flow_slots import free_key_slots, free_slots, lock
from .flow_turns import stand

TRIES = 20
"""How often a start is tried while other requests hold locks that it needs. More often than a claim
is, because a worker repeats its claims anyway."""

TRY_AGAIN_SECONDS = 0.003

_LATER = "Start the job later, or leave it to a claim."


class Admission:
    """Permission to start a job outside a claim, and the slots that it gets."""

    def __init__(
        self, job: CurrentJob, slot: int | None, key_slot: int | None, bucket: Bucket | None
    ) -> None:
        self._job = job
        self.slot = slot
        self.key_slot = key_slot
        self._bucket = bucket

    def take_token(self, session: Executor) -> None:
        """Take the token of the start. ``admit`` has locked the bucket."""
        if self._bucket is None:
            return
        bucket = self._bucket.take(1, self._job.now)
        session.execute(
            update(job_types)
            .where(
                job_types.c.workspace_id == self._job.workspace_id,
                job_types.c.job_type == self._job.job_type,
            )
            .values(tokens=bucket.tokens, tokens_at=bucket.at)
        )


def admit(session: Executor, flow: Flow, job: CurrentJob, key: str | None) -> Admission:
    """Find and lock the slots and the token for the start of one job.

    ``key`` is its concurrency key.

    Call it in a transaction. Raises ``WorkspacePaused``, ``TypePaused``, ``AtCapacity`` or
    ``RateLimited``.
    """
    if flow.paused:
        raise WorkspacePaused(_paused("The workspace", flow.paused_reason))
    if flow.of(job.job_type).paused:
        reason = flow.of(job.job_type).paused_reason
        raise TypePaused(_paused(f"The job type {job.job_type}", reason))
    for _ in range(TRIES):
        admission = _admit(session, flow, job, key)
        if admission is not None:
            return admission
        time.sleep(TRY_AGAIN_SECONDS)
    raise AtCapacity(
        f"Other requests are starting jobs of the type {job.job_type} at this moment. Try again."
    )


def _paused(what: str, reason: str | None) -> str:
    return f"{what} is paused" + ("." if reason is None else f": {reason}")


def _admit(session: Executor, flow: Flow, job: CurrentJob, key: str | None) -> Admission | None:
    """Try once; None if another request holds a lock that this start needs."""
    name, settings, ws = job.job_type, flow.of(job.job_type), job.workspace_id
    rated = [name] if settings.rate_starts is not None else []
    buckets = stand(session, ws, [], rated, job.now).buckets
    if rated and not buckets:
        return None
    if rated and buckets[name].left(job.now) < 1:
        raise RateLimited(
            f"The job type {name} has reached its rate_limit: {settings.rate_starts:,} starts in "
            f"{settings.rate_seconds:,} seconds. {_LATER}"
        )
    slots = free_slots(session, ws, {name: settings.max_running}, 1)
    if slots.get(name) == []:
        raise _full(f"The job type {name}", settings.max_running, "max_running")
    limited = key is not None and settings.max_running_per_key is not None
    keys = [(name, key)] if limited and key is not None else []
    mine, _ = lock(session, ws, slots, keys, 1)
    key_slots = free_key_slots(session, flow, ws, mine.keys)
    if any(not numbers for numbers in key_slots.values()):
        raise _full(
            f"The concurrency key {key}", settings.max_running_per_key, "max_running_per_key"
        )
    free = mine.slots.get(name)
    if free == [] or len(mine.keys) < len(keys):
        return None
    if free is not None:
        # The slot was free before it was locked. It may have been taken since.
        current = free_slots(session, ws, {name: settings.max_running}, 1)[name]
        if free[0] not in current:
            return None
    return Admission(
        job,
        free[0] if free else None,
        next(iter(key_slots.values()))[0] if key_slots else None,
        buckets.get(name),
    )


def _full(what: str, limit: int | None, setting: str) -> AtCapacity:
    return AtCapacity(f"{what} has reached its {setting}: {limit:,}. {_LATER}")
