"""The worker: it claims jobs, runs them and reports."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from ..signals import StopSignals
from .capture import capturing
from .client import Client
from .options import Engine, Options, Run, Timing
from .processes import Processes
from .runner import Runner
from .runs import ExecutorEngine

MAX_TASKS = 1000


class Worker:
    """Runs the jobs of a workspace, with a function for each job type.

    ``concurrency`` is how many jobs run at a time. ``async def`` tasks run on one event loop.
    Plain functions run in threads; or with ``processes`` in as many processes, which are replaced
    when they die; or in ``executor``, a ``concurrent.futures.Executor``. ``executor`` may also be
    a function that makes one: the worker calls it when it starts, and shuts the executor down
    when it ends.

    While a job runs, heartbeats renew its lease of ``lease_seconds`` (5 to 3600). ``name`` is
    shown with attempts; by default it is the host's name and the process id.

    Quick jobs are prefetched and reported in batches. An attempt begins when a thread takes its
    job; a job that no thread takes within a second is released for other workers.

    When the worker must stop (SIGTERM, SIGINT or ``stop``), it claims no more jobs, releases
    those that have not begun, and gives the running ones ``grace_seconds``, whatever the service
    does; then it releases them, too. A second signal ends the process at once, with the exit
    code 128 + the signal's number.

    Tasks add entries to the logs of their jobs with ``Task.log``. With ``capture_logs``, what they
    log with Python's ``logging`` goes there, too; see the documentation of workers.

    Tasks may start processes: forked children get the signal handlers that were there before
    the worker's.
    """

    def __init__(
        self,
        client: Client | None = None,
        workspace_id: int | None = None,
        *,
        name: str | None = None,
        concurrency: int = 1,
        processes: bool = False,
        executor: Executor | Callable[[], Executor] | None = None,
        lease_seconds: int = 60,
        grace_seconds: float = 20.0,
        capture_logs: bool = False,
    ) -> None:
        self.client = client
        self.workspace_id = workspace_id
        self.name = name
        self.concurrency = concurrency
        self.processes = processes
        self.executor = executor
        self.lease_seconds = lease_seconds
        self.grace_seconds = grace_seconds
        self.capture_logs = capture_logs
        self.tasks: dict[str, Run] = {}
        self.timing = Timing()
        self._stopped = False
        self._signals = StopSignals()

    def task(self, job_type: str) -> Callable[[Run], Run]:
        """Decorate a function to make it the task of a job type.

        It gets a ``Task`` and returns the job's result, a dict or None. An exception fails the
        attempt, with the traceback as the job's error; after ``Permanent`` it is not retried.
        An ``async def`` function is cancelled when its job is.
        """

        def decorator(run: Run) -> Run:
            if job_type in self.tasks:
                raise ValueError(f"{job_type!r} already has a task.")
            self.tasks[job_type] = run
            return run

        return decorator

    def stop(self) -> None:
        """Let ``run`` end: no more claims; running jobs are finished or released."""
        # Without a lock, so that a signal handler may call it.
        self._stopped = True

    @property
    def stopping(self) -> bool:
        """Whether the worker must stop."""
        return self._stopped or self._signals.asked

    @property
    def hands_over(self) -> bool:
        """Whether jobs run outside this process's threads and event loop."""
        return self.executor is not None

    def run(self, *, until_idle: bool = False) -> None:
        """Work until stopped; with ``until_idle`` until no job is due.

        Raises one of ``jobapi.errors`` for an error that does not pass by itself, such as a
        revoked key; with ``until_idle`` also ``Unreachable`` after an outage of half a minute;
        and ``ThreadsLost`` (a ``RuntimeError``) if for five minutes all threads are busy with
        tasks that lost their leases and do not return. With an executor: ``TypeError`` if it needs
        to pickle the client and cannot, ``BrokenExecutor`` if its processes have died, and
        ``ExecutorClosed`` (a ``RuntimeError``) if it was shut down.
        """
        if self.client is None or self.workspace_id is None:
            raise ValueError("A worker needs a client and a workspace.")
        if not self.tasks:
            raise ValueError("The worker has no task; add one with worker.task.")
        if len(self.tasks) > MAX_TASKS:
            raise ValueError(
                f"The worker has {len(self.tasks)} tasks; a claim takes at most {MAX_TASKS} job "
                "types. Use more than one worker."
            )
        if self.processes and self.hands_over:
            raise ValueError("A worker with an executor or Celery has no processes of its own.")
        name = self.name or f"{socket.gethostname()}:{os.getpid()}"
        client, workspace_id = self.client, self.workspace_id

        def work(name: str, concurrency: int, engine: Engine | None = None) -> None:
            options = Options(
                client,
                workspace_id,
                self.tasks,
                name=name,
                concurrency=concurrency,
                lease_seconds=self.lease_seconds,
                grace_seconds=self.grace_seconds,
                until_idle=until_idle,
                stopping=lambda: self.stopping,
                timing=self.timing,
                engine=engine,
            )
            Runner(options).run()

        with StopSignals() as self._signals, capturing(self.capture_logs):
            if self.processes:
                Processes(self, name, work, until_idle).run()
            else:
                with self._engine(client, workspace_id) as engine:
                    work(name, self.concurrency, engine)

    @contextmanager
    def _engine(self, client: Client, workspace_id: int) -> Iterator[Engine | None]:
        """What the jobs are handed to; None if this process runs them."""
        if self.executor is None:
            yield None
            return
        given = self.executor
        executor = given if isinstance(given, Executor) else given()
        engine = ExecutorEngine(
            executor,
            self.tasks,
            client,
            workspace_id,
            lease_seconds=self.lease_seconds,
            capture_logs=self.capture_logs,
        )
        try:
            yield engine
        finally:
            engine.clean_up()
            if executor is not given:
                executor.shutdown(wait=False)
