"""The worker: claims jobs, runs them, and reports."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from typing import Any

import orjson

from ..errors import BadRequest, BodyTooLarge, JobApiError, ValidationFailed
from .http import Client, written
from .models import ClaimedJob
from .retries import Unreachable, may_pass
from .tracing import span

WAIT_SECONDS = 5
"""How long a claim waits for a job; a stop may take as long."""

REPORT_SECONDS = 0.25
"""Progress is sent at most so often."""

GATHER_SECONDS = 0.005
"""How long a job that has ended may wait for the next ones, to be reported with them."""

MAX_ERROR = 65_536
MAX_AT_ONCE = 100

SUCCESS: Mapping[str, Any] = {"status": "success"}
HANDED_BACK: Mapping[str, Any] = {"status": "pending"}

Run = Callable[["Task"], Mapping[str, Any] | None]

logger = logging.getLogger("jobapi.worker")


class Permanent(Exception):
    """Raised by a task: the job has failed, and trying again would not help."""


class Task:
    """A job that is being done; what a task's function gets."""

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        # Whether its last report has been made.
        self.ended = False
        self._cancelled = False
        self._news: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def job_type(self) -> str:
        """The job's type."""
        return self.job.job_type

    @property
    def metadata(self) -> dict[str, Any]:
        """What the job needs to know; empty where nothing was given."""
        return self.job.metadata or {}

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.job.attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job is not this worker's any more: stop, nobody wants the result."""
        return self._cancelled

    def progress(
        self, percent: int, message: str | None = None, *, result: Mapping[str, Any] | None = None
    ) -> None:
        """Tell how far it is, 0 to 100; sent in the background. ``result`` is merged.

        Raises ``TypeError`` or ``ValueError`` where it cannot be written as JSON.
        """
        told: dict[str, Any] = {"progress_percent": percent}
        if message is not None:
            told["progress_message"] = message
        if result is not None:
            told["result"] = dict(result)
        # A copy: what the task does to its result later, it has not told.
        told = json.loads(written(told))
        with self._lock:
            self._news = _merged(self._news, told)

    def take_news(self, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What was told since it was last asked, and a last ``result``, each written as JSON."""
        if result is None and not self._news:
            return {}
        with self._lock:
            news = self._news if result is None else _merged(self._news, {"result": result})
            taken = {name: orjson.Fragment(written(value)) for name, value in news.items()}
            self._news = {}
        return taken

    def lose(self) -> None:
        """Note that the lease is lost."""
        self._cancelled = True


class Worker:
    """Does the jobs of a workspace whose types have a task.

    ``concurrency`` is how many at a time, in threads, or with ``processes`` in
    as many processes. While a job is held, its lease of ``lease_seconds`` is
    renewed in the background. When it shall stop (SIGTERM, SIGINT, ``stop``),
    what runs is finished within ``grace_seconds``, and the rest handed back.
    Jobs that take no time are claimed and reported many at once.
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
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.concurrency = concurrency
        self.processes = processes
        self.lease_seconds = lease_seconds
        self.grace_seconds = grace_seconds
        self.tasks: dict[str, Run] = {}
        self._stopping = threading.Event()

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
        self._stopping.set()

    def run(self, *, until_idle: bool = False) -> None:
        """Work until stopped; with ``until_idle`` until there is no job that is due."""
        if self.client is None or self.workspace_id is None:
            raise ValueError("A worker needs a client and a workspace.")
        if not self.tasks:
            raise ValueError("The worker has no task; give it some with worker.task.")
        with self._signals():
            if self.processes:
                self._run_processes(until_idle)
            else:
                _Shift(self, self.client, self.workspace_id, self.name).work(until_idle)

    @contextlib.contextmanager
    def _signals(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, lambda *_: self.stop())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run_processes(self, until_idle: bool) -> None:
        # Forked, so that tasks need no importing; there are no threads yet.
        context = get_context("fork")
        started = [
            context.Process(target=self._run_process, args=(number, until_idle))
            for number in range(self.concurrency)
        ]
        for process in started:
            process.start()
        told = False
        while any(process.is_alive() for process in started):
            if self._stopping.is_set() and not told:
                told = True
                for process in started:
                    process.terminate()
            time.sleep(0.1)

    def _run_process(self, number: int, until_idle: bool) -> None:
        client, workspace_id = self.client, self.workspace_id
        if client is None or workspace_id is None:
            return
        client.forked()
        self.concurrency = 1
        with self._signals():
            _Shift(self, client, workspace_id, f"{self.name}/{number}").work(until_idle)

    @property
    def stopping(self) -> bool:
        """Whether it shall stop."""
        return self._stopping.is_set()

    def pause(self, seconds: float) -> None:
        """Sleep, but not when it shall stop."""
        self._stopping.wait(seconds)


class _Shift:
    """One run of a worker in one process: claims here, tasks and reports in threads.

    Jobs that take no time are handed over many at once, for waking a thread
    costs more than such a job. Whoever takes a task out of ``waiting`` says how
    it ended, and nobody else.
    """

    def __init__(self, worker: Worker, client: Client, workspace_id: int, name: str) -> None:
        self.worker = worker
        self.client = client
        self.workspace_id = workspace_id
        self.name = name
        self.held: set[Task] = set()
        self.waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        # What is to be reported. A last report has a status; news of a task have none.
        self.reports: deque[tuple[Task, Mapping[str, Any]]] = deque()
        self.lock = threading.Lock()
        self.freed = threading.Condition(self.lock)
        self.to_report = threading.Condition(self.lock)
        self.over = False
        # Seconds that a job takes, the mean of the last few: how many to claim at once.
        self.pace = 1.0
        self.few = 1

    def work(self, until_idle: bool) -> None:
        threads = [
            threading.Thread(target=self._run_tasks, daemon=True)
            for _ in range(self.worker.concurrency)
        ]
        reporter = threading.Thread(target=self._report, daemon=True)
        for thread in [*threads, reporter]:
            thread.start()
        try:
            while not self.worker.stopping:
                if not self._claim(until_idle):
                    break
        finally:
            self._finish()
            for _ in threads:
                self.waiting.put(None)
            with self.lock:
                self.over = True
                self.to_report.notify()
            reporter.join()

    def _room(self) -> int:
        """How many jobs to hold: a second's worth, and one for each thread at least."""
        concurrency = self.worker.concurrency
        wanted = max(concurrency, int(concurrency / max(self.pace, 0.001)))
        return min(wanted, 2 * MAX_AT_ONCE)

    def _claim(self, until_idle: bool) -> bool:
        """Claim once there is room; False when there is nothing more to do."""
        with self.lock:
            room = self._room() - len(self.held)
            # Few large claims, not many small ones.
            if room <= 0 or (len(self.held) > self.worker.concurrency and room < self._room() / 2):
                self.freed.wait(0.2)
                return True
            idle = not self.held
        try:
            jobs = self.client.claim(
                self.workspace_id,
                job_types=sorted(self.worker.tasks),
                limit=min(room, MAX_AT_ONCE),
                lease_seconds=self.worker.lease_seconds,
                worker=self.name,
                wait_seconds=0 if until_idle else WAIT_SECONDS,
            )
        except (Unreachable, JobApiError) as error:
            if not may_pass(error):
                raise
            logger.warning("cannot claim: %s", error)
            self.worker.pause(1)
            return True
        tasks = [Task(job) for job in jobs]
        with self.lock:
            self.held.update(tasks)
        for task in tasks:
            self.waiting.put(task)
        if not jobs:
            if until_idle and idle:
                return False
            self.worker.pause(0.05)
        return True

    def _run_tasks(self) -> None:
        while (task := self.waiting.get()) is not None:
            if self.worker.stopping or task.cancelled:
                self._end(task, HANDED_BACK)
            else:
                began = time.monotonic()
                report = self._outcome(task)
                self.few = min(self.few + 1, 8)
                self.pace += (time.monotonic() - began - self.pace) / self.few
                self._end(task, report)

    def _outcome(self, task: Task) -> Mapping[str, Any]:
        try:
            with span(task.job):
                return _success(task, self.worker.tasks[task.job_type](task))
        except Permanent as error:
            logger.warning("job %s failed for good: %s", task.job_id, error)
            report = {"status": "failed", "error": _text(error), "retryable": False}
        except BaseException as error:
            logger.warning("job %s failed: %r", task.job_id, error)
            report = {"status": "failed", "error": _text(error)}
        return {**task.take_news(), **report}

    def _end(self, task: Task, report: Mapping[str, Any]) -> None:
        """Let a task have ended with its last report; what is said of it later does not count."""
        with self.lock:
            if task.ended:
                return
            task.ended = True
            if task.cancelled:
                self.held.discard(task)
                self.freed.notify()
                return
            self.reports.append((task, report))
            if len(self.reports) in (1, MAX_AT_ONCE) or self.waiting.empty():
                self.to_report.notify()

    def _report(self) -> None:
        """Send what has ended, progress, and heartbeats, until the shift is over."""
        last_look = last_beat = time.monotonic()
        while True:
            with self.lock:
                if not self.reports and not self.over:
                    self.to_report.wait(REPORT_SECONDS)
                if 0 < len(self.reports) < MAX_AT_ONCE and not (self.waiting.empty() or self.over):
                    self.to_report.wait(GATHER_SECONDS)
                count = min(len(self.reports), MAX_AT_ONCE)
                reports = [self.reports.popleft() for _ in range(count)]
                if self.over and not reports:
                    return
                now = time.monotonic()
                looks = _is_over(now - last_look, REPORT_SECONDS)
                running = [t for t in self.held if not (t.ended or t.cancelled)] if looks else []
            if looks:
                last_look = now
                beats = _is_over(now - last_beat, self.worker.lease_seconds / 3)
                if beats:
                    last_beat = now
                news = [(task, task.take_news()) for task in running]
                reports += [(task, told) for task, told in news if told or beats]
            for start in range(0, len(reports), MAX_AT_ONCE):
                self._send(reports[start : start + MAX_AT_ONCE])

    def _send(self, reports: list[tuple[Task, Mapping[str, Any]]]) -> None:
        given = [
            {"job_id": task.job_id, "lease_token": task.job.lease_token, **report}
            for task, report in reports
        ]
        try:
            answers = self.client.report(self.workspace_id, orjson.dumps(given))
        except (BadRequest, BodyTooLarge) as error:
            # One that cannot be sent must not hold the others back.
            self._send_smaller(reports, error)
            return
        except (Unreachable, JobApiError) as error:
            logger.warning("cannot report: %s", error)
            if self.over:
                return
            # Kept; until it arrives the lease says how long there is.
            self.worker.pause(0.5)
            with self.lock:
                self.reports.extendleft(entry for entry in reversed(reports) if entry[1])
            return
        with self.lock:
            for (task, report), answer in zip(reports, answers, strict=True):
                if not answer["accepted"]:
                    problem = answer["problem"]
                    logger.warning("report of job %s refused: %s", task.job_id, problem["detail"])
                    if problem["status"] == ValidationFailed.status:
                        if "status" in report:
                            # It would be refused again, whoever did the job.
                            self._fail(task, f"The result was refused: {problem['detail']}")
                        continue
                    task.lose()
                if "status" in report:
                    self.held.discard(task)
            self.freed.notify()

    def _send_smaller(
        self, reports: list[tuple[Task, Mapping[str, Any]]], error: JobApiError
    ) -> None:
        if len(reports) > 1:
            half = len(reports) // 2
            self._send(reports[:half])
            self._send(reports[half:])
            return
        ((task, report),) = reports
        logger.warning("report of job %s cannot be sent: %s", task.job_id, error)
        if "status" in report:
            self._fail(task, f"The result was refused: {error}")

    def _fail(self, task: Task, error: str) -> None:
        self.reports.append((task, {"status": "failed", "error": error, "retryable": False}))

    def _finish(self) -> None:
        """Hand back what has not begun; wait for what runs, and hand the rest back, too."""
        with contextlib.suppress(queue.Empty):
            while task := self.waiting.get_nowait():
                self._end(task, HANDED_BACK)
        deadline = time.monotonic() + self.worker.grace_seconds
        with self.lock:
            while not all(task.ended for task in self.held) and time.monotonic() < deadline:
                self.freed.wait(0.2)
            late = [task for task in self.held if not task.ended]
        for task in late:
            self._end(task, {**task.take_news(), **HANDED_BACK})
        with self.lock:
            while self.held and time.monotonic() < deadline + 10:
                self.freed.wait(0.2)


def _is_over(passed: float, seconds: float) -> bool:
    # A clock that goes back must not keep a lease from being renewed.
    return not 0 <= passed < seconds


def _success(task: Task, result: Any) -> Mapping[str, Any]:
    if result is not None and not isinstance(result, Mapping):
        raise Permanent(f"A task returns a dict or None, not {type(result).__name__}.")
    try:
        news = task.take_news(result)
    except (TypeError, ValueError) as error:
        raise Permanent(f"The result cannot be written as JSON: {error}") from error
    return {**news, **SUCCESS} if news else SUCCESS


def _merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    result = {**before.get("result", {}), **after.get("result", {})}
    return {**before, **after, **({"result": result} if result else {})}


def _text(error: BaseException) -> str:
    # The end says the most.
    text = "".join(traceback.format_exception(error)).replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode()[-MAX_ERROR:]
