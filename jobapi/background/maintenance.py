"""Runs periodic tasks in the background, most of them in one process at a time.

Any number of processes run a ``Maintenance``. The one that holds the leader lock runs
the tasks; the others ask for the lock every two seconds. Tasks that must not wait for the
next leader when one has died run in every process. ``periodic_tasks`` lists the tasks.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Protocol

from sqlalchemy import Connection, Engine

from ..store.faults import FaultLog, judge
from . import leader_lock

POLL_SECONDS = 2.0
"""How often a process asks for the leader lock, or renews it, when there is nothing to do."""

ROUND_SECONDS = 1.0
"""How long a round may take while there is more to do. Well below the lease of the leader lock."""

PAUSE_SECONDS = 0.05
"""The shortest pause between two rounds, in which others can use the connection."""

logger = logging.getLogger("jobapi")


@dataclass(frozen=True)
class PeriodicTask:
    """Background work that is done periodically.

    ``step`` does one bounded unit of it, in a transaction of its own, and returns whether
    there is more (None means no). It gets a connection in autocommit mode. A step may be
    repeated after a crash, and may run in two processes at once, because a slow leader may
    lose its lock in the middle of a step.
    """

    name: str
    """What it works on, for logs."""

    every_seconds: float
    """The time from the start of one run to the next, if there is nothing more to do."""

    step: Callable[[Connection], bool | None]

    everywhere: bool = False
    """Whether each process runs it, not only the leader."""


class RoundRobin:
    """Runs the steps of tasks in turns.

    The task that has been due the longest comes first. A task that has more to do is due
    again at once, behind the others. For example, tasks A and B run every two seconds,
    and A has three steps to do: the order is A B A A. B is due again two seconds after
    the round began, and then runs next even if A still has more to do. So no task,
    however much it has to do, delays another by more than one step of each.
    """

    def __init__(
        self, tasks: Sequence[PeriodicTask], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._due_at = {task.name: clock() for task in tasks}
        self._logs = {task.name: FaultLog(f"maintenance ({task.name})") for task in tasks}

    def run(self, connection: Connection, seconds: float) -> float:
        """Run due tasks for about ``seconds``; returns the seconds until the next one is due.

        A fault of one task is logged and does not stop the others. It is raised only if the
        connection cannot be used any more.
        """
        began = self._clock()
        while True:
            task = min(self._tasks, key=lambda task: self._due_at[task.name])
            now = self._clock()
            if self._due_at[task.name] > now:
                return max(PAUSE_SECONDS, self._due_at[task.name] - now)
            if now - began >= seconds:
                return PAUSE_SECONDS
            # Counted from the start of the round, so that tasks with one interval stay together.
            self._due_at[task.name] = began + task.every_seconds
            if self._step(task, connection):
                self._due_at[task.name] = self._clock()

    def _step(self, task: PeriodicTask, connection: Connection) -> bool:
        try:
            more = task.step(connection)
            self._logs[task.name].worked()
            return bool(more)
        except Exception as error:
            fault = judge(error)
            if fault is not None and fault.reconnect:
                raise
            self._logs[task.name].failed(error)
            return False


class Companion(Protocol):
    """Work with a thread of its own that the leader does besides the tasks."""

    def lead(self, until: float) -> None:
        """Work until this time on ``time.monotonic``'s clock, unless it is called again."""

    def stop(self) -> None:
        """Stop the work."""


class Maintenance:
    """One process's share in the maintenance: in its own thread (``start``), or here (``run``).

    ``companion`` works as long as this process has the leader lock.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        tasks: Sequence[PeriodicTask],
        *,
        companion: Companion | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._engine = engine
        self._companion = companion
        self._as_leader = RoundRobin(tasks)
        everywhere = [task for task in tasks if task.everywhere]
        self._as_other = RoundRobin(everywhere) if everywhere else None
        self._poll_seconds = poll_seconds
        self._leads = False
        self._leads_until = 0.0
        self._ask_at = 0.0
        self._holder = secrets.token_hex(16)
        self._stop = Event()
        self._lock = Lock()
        self._process: int | None = None
        self._thread: Thread | None = None
        self._log = FaultLog("maintenance")

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
        """End the thread, or ``run``, and release the leader lock."""
        self._stop.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(POLL_SECONDS + 10)

    def run(self) -> None:
        """Work until ``stop``. A fault is logged, and the work continues."""
        pause = self._poll_seconds
        while not self._stop.wait(pause):
            pause = self._poll_seconds
            try:
                with self._engine().connect() as connection:
                    leads = self._lead(connection)
                    if leads and self._companion is not None:
                        self._companion.lead(self._leads_until)
                    runner = self._as_leader if leads else self._as_other
                    if runner is not None:
                        pause = min(pause, runner.run(connection, ROUND_SECONDS))
                self._log.worked()
            except Exception as error:
                self._leads = False
                self._log.failed(error)
        if self._companion is not None:
            self._companion.stop()
        try:
            with self._engine().connect() as connection:
                leader_lock.release(connection, self._holder)
        except Exception:
            logger.debug("the leader lock expires by itself", exc_info=True)

    def _lead(self, connection: Connection) -> bool:
        """Ask for the leader lock, or renew it, if it is time to."""
        if time.monotonic() >= self._ask_at:
            now = time.monotonic()
            self._ask_at = now + self._poll_seconds
            self._leads_until = now + leader_lock.LEASE_SECONDS
            self._leads = leader_lock.acquire(connection, self._holder)
        return self._leads
