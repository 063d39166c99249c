"""What has to be done though nobody asks: the reaping of leases, the forgetting of old answers.

Any number of processes run this; one of them at a time has the duty, a row
that expires, and does the work.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from threading import Event, Lock, Thread
from typing import Any

from sqlalchemy import Connection, Engine, delete, or_, select

from ..rules.jobs import JobStatus
from ..rules.leases import Backoff
from ..rules.operations import Action
from ..services import counts, events, idempotency, jobs, operations, queue, throughput, workspaces
from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import dialect_name
from ..store.faults import FaultLog, judge
from ..store.tables import duties
from ..store.transactions import BY_KEY, IN_ORDER, transaction

ROUND_SECONDS = 2.0
"""How long between two looks."""

DUTY_SECONDS = 7
"""After how long without a sign another process takes over."""

WORK_SECONDS = 1.0
"""For how long one round goes on with what takes long: operations, and again with sweeps."""

PAUSE_SECONDS = 0.05
"""How long between two rounds while there is more of that."""

MAX_ROUNDS = 20
SWEEP_SECONDS = 60.0
"""How long between two looks for jobs that are not to be kept."""

SWEEP_AT_ONCE = 500
FORGET_AT_ONCE = 5_000

_DUTY = "maintenance"

logger = logging.getLogger("jobapi")


def take_duty(connection: Connection, holder: str, seconds: int = DUTY_SECONDS) -> bool:
    """Take, or keep, the duty for so many seconds; False where another has it."""
    now = connection.execute(select(DbNow())).scalar_one()
    mine = insert_or_ignore(dialect_name(connection), duties).values(
        name=_DUTY, holder=holder, expires_at=now + timedelta(seconds=seconds)
    )
    taken = connection.execute(
        mine.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": mine.excluded.holder, "expires_at": mine.excluded.expires_at},
            where=or_(duties.c.holder == holder, duties.c.expires_at <= now),
        ).returning(duties.c.name)
    ).first()
    return taken is not None


def drop_duty(connection: Connection, holder: str) -> None:
    """Let another process take over at once."""
    connection.execute(delete(duties).where(duties.c.name == _DUTY, duties.c.holder == holder))


def _unheard(jobs: Sequence[Any]) -> None:
    """Nobody wants to know."""


def _unannounced(connection: Connection, workspace_id: int) -> None:
    """Those who wait look themselves."""


Announce = Callable[[Connection, int], None]
"""Called after the commit for each workspace in which jobs have become due."""


def work(
    connection: Connection,
    backoff: Backoff,
    tell: Callable[[Sequence[Any]], None] = _unheard,
    announce: Announce = _unannounced,
) -> int:
    """Do what there is to do, in bounded transactions; returns how many jobs it reaped.

    ``tell`` is told of them, some at a time.
    """
    reaped = reap(connection, backoff, tell, announce)
    forget(connection)
    fold(connection)
    return reaped


def reap(
    connection: Connection,
    backoff: Backoff,
    tell: Callable[[Sequence[Any]], None],
    announce: Announce,
) -> int:
    """End the attempts whose leases, or time, have run out; returns how many."""
    reaped = 0
    for _ in range(MAX_ROUNDS):
        with transaction(connection) as tx:
            found = queue.reap(tx, backoff=backoff)
        reaped += len(found.jobs)
        tell(found.jobs)
        for workspace_id in {job.workspace_id for job in found.jobs if queue.is_due(job)}:
            announce(connection, workspace_id)
        for job in found.jobs:
            logger.info("%s of job %s, attempt %s", job.error, job.job_id, job.attempt)
        if not found.more:
            break
    return reaped


def forget(connection: Connection) -> None:
    """Delete answers that are kept for repeated requests, when their time is over."""
    for _ in range(MAX_ROUNDS):
        if idempotency.forget(connection) < idempotency.FORGET_AT_ONCE:
            break


def fold(connection: Connection) -> None:
    """Add changes of the counts up."""
    for _ in range(MAX_ROUNDS):
        with transaction(connection, planner=BY_KEY) as tx:
            folded = counts.fold(tx)
        if folded < counts.FOLD_AT_ONCE:
            break


def go_on(
    connection: Connection,
    seconds: float = WORK_SECONDS,
    announce: Announce = _unannounced,
) -> bool:
    """Go on with what takes long, for so many seconds; whether there is more to do.

    Operations on many jobs, and what is left of deleted workspaces.
    """
    end = time.monotonic() + seconds
    while True:
        advanced = _advance(connection, announce)
        with transaction(connection, planner=BY_KEY) as tx:
            cleared = workspaces.clear(tx)
        if not advanced and not cleared:
            return False
        if time.monotonic() >= end:
            return True


def _advance(connection: Connection, announce: Announce) -> bool:
    operation_id = operations.turn(connection)
    if operation_id is None:
        return False
    try:
        with transaction(connection, planner=BY_KEY) as tx:
            advanced = operations.advance(tx, operation_id)
        if advanced is not None and advanced.action == Action.RETRY:
            announce(connection, advanced.workspace_id)
        return advanced is not None
    except Exception as error:
        fault = judge(error)
        if fault is not None and fault.reconnect:
            raise
        said = None if fault is None else fault.detail
        logger.warning("operation %s is tried again: %s", operation_id, said, exc_info=error)
        operations.put_off(connection, operation_id)
        return False


Step = Callable[[Connection], bool]
"""A part of a sweep, in one transaction; whether there is more of it."""


def steps(connection: Connection) -> deque[Step]:
    """What a sweep has to do: delete what workspaces do not keep any longer, and what is old.

    That is jobs, events, operations and flow.
    """
    found: deque[Step] = deque()
    for workspace_id, status, _ in workspaces.retention(connection):
        found.append(partial(_sweep_jobs, workspace_id=workspace_id, status=status))
    for workspace_id, _ in events.kept(connection):
        found.append(partial(_sweep_events, workspace_id=workspace_id))
    found.append(_forget)
    return found


def sweep(connection: Connection, todo: deque[Step], seconds: float = WORK_SECONDS) -> bool:
    """Go on with a sweep for so many seconds, each step in turn; whether there is more to do."""
    end = time.monotonic() + seconds
    while todo:
        # One that fails is tried again by the next sweep, and keeps nothing else from its turn.
        step = todo.popleft()
        if step(connection):
            todo.append(step)
        if time.monotonic() >= end:
            break
    return bool(todo)


def _sweep_jobs(connection: Connection, *, workspace_id: int, status: JobStatus) -> bool:
    with transaction(connection, planner=IN_ORDER) as tx:
        # Asked anew each time: its owner may have changed it meanwhile.
        for _, kept, days in workspaces.retention(tx, workspace_id):
            if kept is status:
                gone = jobs.delete_old(tx, workspace_id, status, days, limit=SWEEP_AT_ONCE)
                return gone == SWEEP_AT_ONCE
    return False


def _sweep_events(connection: Connection, *, workspace_id: int) -> bool:
    with transaction(connection, planner=IN_ORDER) as tx:
        for _, days in events.kept(tx, workspace_id):
            gone = events.delete_old(tx, workspace_id, days, limit=FORGET_AT_ONCE)
            return gone == FORGET_AT_ONCE
    return False


def _forget(connection: Connection) -> bool:
    operations.forget(connection)
    throughput.forget(connection)
    return False


class Maintenance:
    """One process's part: in a thread of its own (``start``), or in this one (``run``)."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        backoff: Backoff,
        tell: Callable[[Sequence[Any]], None] = _unheard,
        announce: Announce = _unannounced,
    ) -> None:
        self._engine = engine
        self._backoff = backoff
        self._tell = tell
        self._announce = announce
        self._holder = secrets.token_hex(16)
        self._stop = Event()
        self._lock = Lock()
        self._process: int | None = None
        self._thread: Thread | None = None
        self._swept_at = time.monotonic()
        self._todo: deque[Step] = deque()
        self._log = FaultLog("maintenance")
        self._logs: dict[str, FaultLog] = {}

    def start(self) -> None:
        """Start the thread, once in each process."""
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process == os.getpid():
                return
            self._process = os.getpid()
            self._holder = secrets.token_hex(16)
            self._stop = Event()
            self._thread = threading.Thread(target=self.run, name="jobapi-maintenance", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, or ``run``, and hand the duty on."""
        self._stop.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(ROUND_SECONDS + 5)

    def _work(self, connection: Connection) -> bool:
        """Do a part of everything; whether there is more to do."""
        parts: dict[str, Callable[[], Any]] = {
            "reap": lambda: reap(connection, self._backoff, self._tell, self._announce),
            "forget": lambda: forget(connection),
            "fold": lambda: fold(connection),
            "go on": lambda: go_on(connection, announce=self._announce),
            "sweep": lambda: self._sweep(connection),
        }
        more = False
        for name, part in parts.items():
            log = self._logs.setdefault(name, FaultLog(f"maintenance ({name})"))
            # What waits for a lock in vain keeps nothing else from its turn.
            try:
                more = part() is True or more
                log.worked()
            except Exception as error:
                fault = judge(error)
                if fault is not None and fault.reconnect:
                    raise
                log.failed(error)
        return more

    def _sweep(self, connection: Connection) -> bool:
        if not self._todo and time.monotonic() - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            self._todo = steps(connection)
        return sweep(connection, self._todo)

    def run(self) -> None:
        """Work until ``stop``; a fault is logged and the work goes on."""
        pause = ROUND_SECONDS
        while not self._stop.wait(pause):
            pause = ROUND_SECONDS
            try:
                with self._engine().connect() as connection:
                    if take_duty(connection, self._holder) and self._work(connection):
                        pause = PAUSE_SECONDS
                self._log.worked()
            except Exception as error:
                self._log.failed(error)
        try:
            with self._engine().connect() as connection:
                drop_duty(connection, self._holder)
        except Exception:
            logger.debug("the duty of the maintenance ends by itself", exc_info=True)
