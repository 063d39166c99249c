"""The worker: does the jobs of a workspace for which it has tasks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from ..signals import StopSignals
from .client import Client
from .holding import Run, Terms
from .processes import Processes
from .shift import Shift

MAX_TASKS = 1000


class Worker:
    """Does the jobs of a workspace whose types have a task.

    ``concurrency`` is how many jobs run at a time: in threads, or with ``processes``
    in as many processes, which are replaced when they die. While a job runs, its
    lease of ``lease_seconds`` (5 to 3600) is renewed in the background. ``name`` is
    shown with attempts; without one it is made of the host and the process.

    Quick jobs are fetched and reported many at once. A job begins when a thread takes
    it: what waits for most of a second is handed back for other workers to do.

    When the worker must stop (SIGTERM, SIGINT or ``stop``), it claims no more, hands
    back what has not begun, and gives what runs ``grace_seconds`` in all, whatever the
    service does; what runs even longer is handed back. A second signal ends the
    process at once, with 128 + its number as the exit code.

    Tasks may start processes: forked children have the signal handlers that were
    there before the worker's.
    """

    def __init__(
        self,
        client: Client | None = None,
        workspace_id: int | None = None,
        *,
        name: str | None = None,
        concurrency: int = 1,
        processes: bool = False,
        lease_seconds: int = 60,
        grace_seconds: float = 20.0,
    ) -> None:
        self.client = client
        self.workspace_id = workspace_id
        self.name = name
        self.concurrency = concurrency
        self.processes = processes
        self.lease_seconds = lease_seconds
        self.grace_seconds = grace_seconds
        self.tasks: dict[str, Run] = {}
        self._stopped = False
        self._signals = StopSignals()

    def task(self, job_type: str) -> Callable[[Run], Run]:
        """Make a function the task for a job type.

        It gets a ``Task`` and returns the job's result, a dict or None. An
        exception fails the attempt, with its traceback as the job's error;
        ``Permanent`` is not retried.
        """

        def decorator(run: Run) -> Run:
            if job_type in self.tasks:
                raise ValueError(f"There is a task for {job_type!r} already.")
            self.tasks[job_type] = run
            return run

        return decorator

    def stop(self) -> None:
        """Let ``run`` end: no more claims; what runs is finished or handed back."""
        # No lock, so that it may be called by a signal handler, too.
        self._stopped = True

    @property
    def stopping(self) -> bool:
        """Whether it must stop."""
        return self._stopped or self._signals.asked

    def run(self, *, until_idle: bool = False) -> None:
        """Work until stopped; with ``until_idle`` until there is no job that is due.

        Raises one of ``jobapi.errors`` for what does not pass by itself, such as a
        revoked key; with ``until_idle`` also ``Unreachable`` when the service was away
        for half a minute; and ``ThreadsLost`` (a ``RuntimeError``) when all threads are
        busy with tasks that lost their jobs and do not return within five minutes.
        """
        if self.client is None or self.workspace_id is None:
            raise ValueError("A worker needs a client and a workspace.")
        if not self.tasks:
            raise ValueError("The worker has no task; give it some with worker.task.")
        if len(self.tasks) > MAX_TASKS:
            raise ValueError(
                f"The worker has {len(self.tasks)} tasks, and {MAX_TASKS} is the most that a claim "
                "takes; use more than one worker."
            )
        name = self.name or f"{socket.gethostname()}:{os.getpid()}"
        client, workspace_id = self.client, self.workspace_id

        def work(name: str, concurrency: int) -> None:
            terms = Terms(
                client,
                workspace_id,
                self.tasks,
                name=name,
                concurrency=concurrency,
                lease_seconds=self.lease_seconds,
                grace_seconds=self.grace_seconds,
                until_idle=until_idle,
                stopping=lambda: self.stopping,
            )
            Shift(terms).work()

        with StopSignals() as self._signals:
            if self.processes:
                Processes(self, name, work, until_idle).run()
            else:
                work(name, self.concurrency)
