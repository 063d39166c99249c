"""What maintenance does: the list of periodic tasks.

A new feature adds an entry to ``periodic_tasks``: a step that does a bounded part of
its work and says whether there is more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy import Connection

from ..rules.jobs import JobStatus
from ..rules.leases import Backoff
from ..rules.operations import Action
from ..services import (
    counts,
    events,
    idempotency,
    job_logs,
    jobs,
    operations,
    queue,
    throughput,
    ticks,
    webhooks,
    workers,
    workspaces,
)
from ..services.settling import EndedAttempt
from ..store.faults import judge
from ..store.transactions import BY_KEY, IN_ORDER, transaction
from .maintenance import PeriodicTask

JOBS_AT_ONCE = 500
"""How many old jobs one step deletes at most."""

EVENTS_AT_ONCE = 5_000
"""How many old events one step deletes at most."""

TICKS_EVERY = 0.5
"""How often due schedules are looked for, in seconds."""

T = TypeVar("T")

OnReaped = Callable[[Sequence[EndedAttempt]], None]
"""Called after the commit with the attempts whose lease or timeout has expired."""

OnTicked = Callable[[ticks.Ticked], None]
"""Called after the commit with what a tick of a schedule has done."""

Announce = Callable[[Connection, int], None]
"""Called after the commit for each workspace in which jobs have become due."""

logger = logging.getLogger("jobapi")


def periodic_tasks(
    backoff: Backoff, on_reaped: OnReaped, on_ticked: OnTicked, announce: Announce
) -> list[PeriodicTask]:
    """All periodic tasks, new for each call. ``backoff`` is the default for automatic retries."""
    return [
        PeriodicTask(
            "schedules",
            TICKS_EVERY,
            partial(run_schedules, on_ticked=on_ticked, announce=announce),
            everywhere=True,
        ),
        PeriodicTask(
            "expired leases",
            2,
            partial(reap, backoff=backoff, on_reaped=on_reaped, announce=announce),
        ),
        PeriodicTask("expired jobs", 2, queue.expire),
        PeriodicTask("counts", 2, fold_counts),
        PeriodicTask("operations", 2, partial(advance_operation, announce=announce)),
        PeriodicTask("deleted workspaces", 2, workspaces.clear),
        PeriodicTask("logs of deleted jobs", 2, job_logs.delete_of_deleted_jobs),
        PeriodicTask("idempotency keys", 60, delete_old_answers),
        PeriodicTask("old jobs", 60, InTurns(find_job_retention, delete_old_jobs)),
        PeriodicTask("old events", 60, InTurns(find_event_retention, delete_old_events)),
        PeriodicTask("old operations", 60, operations.forget),
        PeriodicTask("old throughput", 60, throughput.forget),
        PeriodicTask("workers that are gone", 60, workers.forget),
        PeriodicTask("old deliveries", 60, InTurns(webhooks.all_ids, delete_old_deliveries)),
    ]


def run_schedules(
    connection: Connection,
    *,
    on_ticked: OnTicked,
    announce: Announce,
    now: datetime | None = None,
) -> bool:
    """Handle a tick of each schedule that has one due.

    A schedule whose tick fails waits for a while, so that it holds up no other.
    """
    handled = False
    for workspace_id, schedule_id in ticks.find_due(connection, now=now):
        try:
            with transaction(connection) as tx:
                ticked = ticks.tick(tx, workspace_id, schedule_id, now=now)
        except Exception as error:
            fault = judge(error)
            if fault is not None and fault.reconnect:
                raise
            detail = None if fault is None else fault.detail
            logger.warning("schedule %s is tried again: %s", schedule_id, detail, exc_info=error)
            ticks.put_off(connection, workspace_id, schedule_id)
            continue
        if ticked is not None:
            handled = True
            on_ticked(ticked)
            if ticked.wakes:
                announce(connection, workspace_id)
    return handled


def reap(
    connection: Connection, *, backoff: Backoff, on_reaped: OnReaped, announce: Announce
) -> bool:
    """End attempts whose lease or timeout has expired."""
    with transaction(connection) as tx:
        found = queue.reap(tx, backoff=backoff)
    on_reaped(found.ended)
    reaped = [job for job, _ in found.ended]
    wakes = [job for job in reaped if queue.is_due(job) or queue.holds_slot(job)]
    for workspace_id in {job.workspace_id for job in wakes}:
        announce(connection, workspace_id)
    for job in reaped:
        logger.info("%s of job %s, attempt %s", job.error, job.job_id, job.attempt)
    return found.more


def fold_counts(connection: Connection) -> bool:
    """Compact the oldest changes of the counts."""
    with transaction(connection, planner=BY_KEY) as tx:
        return counts.fold(tx) == counts.FOLD_AT_ONCE


def advance_operation(connection: Connection, *, announce: Announce) -> bool:
    """Do the next step of the operation that has waited the longest.

    An operation whose step fails moves behind the others.
    """
    operation_id = operations.turn(connection)
    if operation_id is None:
        return False
    try:
        with transaction(connection, planner=BY_KEY) as tx:
            advanced = operations.advance(tx, operation_id)
    except Exception as error:
        fault = judge(error)
        if fault is not None and fault.reconnect:
            raise
        detail = None if fault is None else fault.detail
        logger.warning("operation %s is tried again: %s", operation_id, detail, exc_info=error)
        operations.put_off(connection, operation_id)
        return False
    if advanced is not None and advanced.action != Action.DELETE:
        # Retried jobs are due; cancelled ones may have held slots.
        announce(connection, advanced.workspace_id)
    return advanced is not None


def delete_old_answers(connection: Connection) -> bool:
    """Delete the answers of idempotency keys that have expired."""
    return idempotency.forget(connection) == idempotency.FORGET_AT_ONCE


class InTurns(Generic[T]):
    """A step for a task on many items, which takes one item at a time.

    ``find`` lists the items at the start of a run. ``step`` does a bounded part of one
    item, and returns whether the item has more to do: then it comes again after the others.
    For example, workspaces A and B keep failed jobs for 30 days, and A has 1,200 older
    ones. The steps are A (500 jobs), B, A (500), A (200).

    An item whose step fails is left out until the next run, so that it does not block others.
    """

    def __init__(
        self, find: Callable[[Connection], Iterable[T]], step: Callable[[Connection, T], bool]
    ) -> None:
        self._find = find
        self._step = step
        self._left: deque[T] = deque()

    def __call__(self, connection: Connection) -> bool:
        """Do a part of the next item; returns whether any item is left."""
        if not self._left:
            self._left.extend(self._find(connection))
        if self._left:
            item = self._left.popleft()
            if self._step(connection, item):
                self._left.append(item)
        return bool(self._left)


def find_job_retention(connection: Connection) -> list[tuple[int, JobStatus]]:
    """The workspaces with a retention, and the statuses that it limits."""
    return [(workspace_id, status) for workspace_id, status, _ in workspaces.retention(connection)]


def delete_old_jobs(
    connection: Connection, of: tuple[int, JobStatus], *, limit: int = JOBS_AT_ONCE
) -> bool:
    """Delete the oldest jobs that are beyond a workspace's retention."""
    workspace_id, status = of
    with transaction(connection, planner=IN_ORDER) as tx:
        # Read again: the workspace's owner may have changed it since the run began.
        for _, limited, days in workspaces.retention(tx, workspace_id):
            if limited is status:
                return jobs.delete_old(tx, workspace_id, status, days, limit=limit) == limit
    return False


def find_event_retention(connection: Connection) -> list[int]:
    """The workspaces with a limited retention of events."""
    return [workspace_id for workspace_id, _ in events.kept(connection)]


def delete_old_events(
    connection: Connection, workspace_id: int, *, limit: int = EVENTS_AT_ONCE
) -> bool:
    """Delete the oldest events that are beyond a workspace's retention."""
    with transaction(connection, planner=IN_ORDER) as tx:
        for _, days in events.kept(tx, workspace_id):
            return events.delete_old(tx, workspace_id, days, limit=limit) == limit
    return False


def delete_old_deliveries(connection: Connection, of: tuple[int, str]) -> bool:
    """Delete the oldest deliveries of a webhook that are not kept any longer."""
    gone = webhooks.delete_old_deliveries(connection, *of)
    return gone == webhooks.DELETE_AT_ONCE
