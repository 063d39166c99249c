"""Runs of jobs outside the worker's own threads: in an executor's process, or in an engine.

A run reports to the service by itself: it begins the attempt with its own ``run_id`` before the
work starts, renews the lease, sends progress, and reports the end. The service accepts the first
run of a lease and refuses any other, so that a message that an engine delivers twice runs once.
The worker that handed the job over renews the lease only until then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
)
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum, auto
from multiprocessing import active_children
from pickle import PicklingError, dumps
from typing import Any
from uuid import uuid4

from ..errors import JobApiError
from .capture import capturing
from .client import Client
from .leased_jobs import RELEASE, LeasedJobs
from .models import ClaimedJob
from .options import End, Options, Timing
from .reporting import Reporter
from .retries import Unreachable
from .slots import error_text, last_reports
from .tasks import Report, Task
from .tracing import is_recording

END_SECONDS = 300.0
"""How long a run tries to report its end while the service does not answer."""

logger = logging.getLogger("jobapi.worker")


class Refusal(Enum):
    """Why a run did not begin. Its work has not been done."""

    ALREADY_BEGUN = auto()
    """Another run has begun the attempt."""
    LEASE_LOST = auto()
    """The job was cancelled, or its lease has expired."""


class Run:
    """One run of a leased job, in this process. ``on_lost`` is called if it loses the lease."""

    def __init__(
        self,
        client: Client,
        workspace_id: int,
        job: ClaimedJob,
        *,
        lease_seconds: int,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self.task = Task(job)
        self.task.begun = False
        self.task.identify(uuid4().hex)
        self._on_lost = on_lost
        timing = Timing()
        options = Options(
            client,
            workspace_id,
            {},
            name="",
            concurrency=1,
            lease_seconds=lease_seconds,
            grace_seconds=0.0,
            until_idle=False,
            stopping=lambda: False,
            timing=timing,
        )
        self.jobs = LeasedJobs(1, mean_seconds=timing.prefetch)
        self.reporter = Reporter(options, self.jobs)

    def begin(self) -> Refusal | None:
        """Begin the attempt; returns the refusal if this run must not do the work.

        Raises ``Unreachable`` if the service does not answer, and its errors that do not pass by
        themselves, such as a revoked key. Then the work must not be done, either.
        """
        task = self.task
        self.reporter.begin(task)
        if task.cancelled:
            return Refusal.ALREADY_BEGUN if task.taken else Refusal.LEASE_LOST
        if not task.begun:
            raise Unreachable(f"The service did not answer; job {task.job_id} was not begun.")
        # Only now, because a refused run must not stop the one that has begun.
        task.on_lost = self._on_lost
        self.jobs.held.add(task)
        task.started_at = time.monotonic()
        self.jobs.running[0] = task
        threading.Thread(target=self.reporter.run, daemon=True).start()
        return None

    def end(self, reports: Sequence[Report]) -> None:
        """Report the end, and wait until the service has it.

        Raises what ``begin`` raises. If the end could not be reported, the lease expires.
        """
        jobs = self.jobs
        jobs.end(self.task, reports)
        deadline = time.monotonic() + END_SECONDS
        with jobs.lock:
            while jobs.held and jobs.error is None and time.monotonic() < deadline:
                jobs.freed.wait(0.2)
        self.reporter.finish()
        if jobs.error is not None:
            raise jobs.error
        if jobs.held:
            raise Unreachable(f"The end of job {self.task.job_id} could not be reported.")


@dataclass(frozen=True)
class HandedOver:
    """What an executor gets: a job, its lease and its task. It can be pickled."""

    client: Client
    workspace_id: int
    job: ClaimedJob
    lease_seconds: int
    run: Callable[[Task], Any]
    capture_logs: bool = False


def run_job(given: HandedOver) -> Refusal | None:
    """Run a job that was handed to an executor. Returns the refusal if it was not run."""
    run = Run(given.client, given.workspace_id, given.job, lease_seconds=given.lease_seconds)
    refusal = run.begin()
    if refusal is None:
        with capturing(given.capture_logs):
            reports = last_reports(run.task, given.run, recording=is_recording())
        run.end(reports)
    return refusal


class ExecutorClosed(RuntimeError):
    """The executor of a worker takes no more jobs: it was shut down."""


@dataclass
class ExecutorEngine:
    """Hands jobs to a ``concurrent.futures.Executor``."""

    executor: Executor
    tasks: Mapping[str, Callable[[Task], Any]]
    client: Client
    workspace_id: int
    _: KW_ONLY
    lease_seconds: int
    capture_logs: bool = False
    available: bool = True
    broken: BaseException | None = None
    _futures: dict[Task, Future[Refusal | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ``TypeError`` if another process cannot get the client."""
        if isinstance(self.executor, ThreadPoolExecutor):
            return
        try:
            dumps(self.client)
        except Exception as error:
            raise TypeError(
                "The client cannot be pickled, and an executor other than ThreadPoolExecutor sends "
                f"it to other processes: {error}. Make it without a transport."
            ) from error

    def start(self, task: Task, end: End) -> None:
        """Submit a job."""
        run = self.tasks[task.job_type]
        hand_over(task)
        try:
            future = self.executor.submit(
                run_job,
                HandedOver(
                    self.client,
                    self.workspace_id,
                    task.job,
                    self.lease_seconds,
                    run,
                    self.capture_logs,
                ),
            )
        except (TypeError, AttributeError, PicklingError) as error:
            # A task that cannot be pickled; some executors find out only later.
            end(task, [_lost(error)])
            return
        except Exception as error:
            self.broken = error
            if not isinstance(error, BrokenExecutor):
                self.broken = ExecutorClosed(f"The executor takes no more jobs: {error}")
            end(task, [RELEASE])
            return

        def returned(done: Future[Refusal | None]) -> None:
            self._futures.pop(task, None)
            end(task, self._reports(task, done))

        self._futures[task] = future
        task.on_lost = future.cancel
        future.add_done_callback(returned)

    def check(self) -> None:
        """Raise the error that has broken the executor."""
        if self.broken is not None:
            raise self.broken

    def clean_up(self) -> None:
        """End the processes that a broken pool has left behind.

        A process that was started just as the pool broke would wait for work without end, and
        Python would wait for the process when it exits.
        """
        if isinstance(self.broken, BrokenExecutor):
            for process in active_children():
                process.terminate()

    def close(self) -> None:
        """Cancel the jobs that have not begun."""
        for task, future in list(self._futures.items()):
            if not task.taken:
                future.cancel()

    def _reports(self, task: Task, done: Future[Refusal | None]) -> list[Report]:
        """What is left to report of a job that the executor has returned."""
        try:
            refusal = done.result()
        except CancelledError:
            return [RELEASE]
        except (BrokenExecutor, Unreachable, JobApiError) as error:
            if isinstance(error, BrokenExecutor):
                self.broken = error
            logger.warning("job %s came back from the executor: %s", task.job_id, error)
            # If its run had begun, the run is lost, or could not report its end.
            lost = _lost(error)
            if task.taken:
                return [lost]
            task.if_taken = lost
            return [RELEASE]
        except BaseException as error:
            # Such as a task that cannot be pickled.
            return [_lost(error)]
        if refusal is Refusal.ALREADY_BEGUN:
            # The executor ran it again, because it had lost the run that began.
            return [_lost(RuntimeError("The executor has lost the run that began this attempt."))]
        return []


def hand_over(task: Task) -> None:
    """Mark a job as handed to an engine, with a ``run_id`` that tells this process from the run."""
    task.handed_over_at = time.monotonic()
    task.identify(uuid4().hex)


def _lost(error: BaseException) -> Report:
    """The report that ends an attempt, whichever run has begun it: without a ``run_id``."""
    return {"status": "failed", "error": error_text(error), "run_id": None}
