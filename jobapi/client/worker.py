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

from ..errors import BadRequest, BodyTooLarge, JobApiError, ValidationFailed
from .http import Client, Unreachable
from .models import ClaimedJob

WAIT_SECONDS = 5
"""How long a claim waits for a job; a stop may take as long."""

REPORT_SECONDS = 0.25
"""Progress is sent at most so often."""

MAX_ERROR = 65_536
MAX_AT_ONCE = 100

Run = Callable[["Task"], Mapping[str, Any] | None]

logger = logging.getLogger("jobapi.worker")


class Permanent(Exception):
    """Raised by a task: the job has failed, and trying again would not help."""


class Task:
    """A job that is being done; what a task's function gets."""

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        self._cancelled = threading.Event()
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
        return self._cancelled.is_set()

    def progress(
        self, percent: int, message: str | None = None, *, result: Mapping[str, Any] | None = None
    ) -> None:
        """Tell how far it is, 0 to 100; sent in the background. ``result`` is merged."""
        with self._lock:
            self._news["progress_percent"] = percent
            if message is not None:
                self._news["progress_message"] = message
            if result is not None:
                self._news["result"] = {**self._news.get("result", {}), **result}

    def take_news(self) -> dict[str, Any]:
        """What was told since it was last asked."""
        with self._lock:
            news, self._news = self._news, {}
        return news

    def lose(self) -> None:
        """Note that the lease is lost."""
        self._cancelled.set()


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
    """One run of a worker in one process: claims here, tasks and reports in threads."""

    def __init__(self, worker: Worker, client: Client, workspace_id: int, name: str) -> None:
        self.worker = worker
        self.client = client
        self.workspace_id = workspace_id
        self.name = name
        self.held: dict[str, Task] = {}
        self.waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.finished: deque[tuple[Task, dict[str, Any]]] = deque()
        self.running: set[str] = set()
        self.changed = threading.Condition()
        self.ended = False
        # Seconds that a job takes, as far as is known: how many to claim at once.
        self.pace = 1.0

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
            with self.changed:
                self.ended = True
                self.changed.notify_all()
            reporter.join()

    def _room(self) -> int:
        """How many jobs to hold: a second's worth, and one for each thread at least."""
        concurrency = self.worker.concurrency
        wanted = max(concurrency, int(concurrency / max(self.pace, 0.001)))
        return min(wanted, 2 * MAX_AT_ONCE)

    def _claim(self, until_idle: bool) -> bool:
        """Claim once there is room; False when there is nothing more to do."""
        with self.changed:
            room = self._room() - len(self.held)
            # Few large claims, not many small ones.
            if room <= 0 or (len(self.held) > self.worker.concurrency and room < self._room() / 2):
                self.changed.wait(0.2)
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
            if isinstance(error, JobApiError) and error.status < 500 and error.status != 429:
                raise
            logger.warning("cannot claim: %s", error)
            self.worker.pause(1)
            return True
        with self.changed:
            for job in jobs:
                task = Task(job)
                self.held[job.job_id] = task
                self.waiting.put(task)
        if not jobs:
            if until_idle and idle:
                return False
            self.worker.pause(0.05)
        return True

    def _run_tasks(self) -> None:
        while (task := self.waiting.get()) is not None:
            with self.changed:
                if task.job_id not in self.held or self.worker.stopping or task.cancelled:
                    continue
                self.running.add(task.job_id)
            began = time.monotonic()
            report = self._outcome(task)
            with self.changed:
                self.pace += (time.monotonic() - began - self.pace) / 8
                self.running.discard(task.job_id)
                self.finished.append((task, report))
                self.changed.notify_all()

    def _outcome(self, task: Task) -> dict[str, Any]:
        try:
            result = self.worker.tasks[task.job_type](task)
            report = _success(result)
        except Permanent as error:
            logger.warning("job %s failed for good: %s", task.job_id, error)
            return {"status": "failed", "error": _text(error), "retryable": False}
        except BaseException as error:
            logger.warning("job %s failed: %r", task.job_id, error)
            return {"status": "failed", "error": _text(error)}
        return report

    def _report(self) -> None:
        """Send what has ended, progress, and heartbeats, until the shift has ended."""
        beat = self.worker.lease_seconds / 3
        last_beat = time.monotonic()
        while True:
            with self.changed:
                if not self.finished and not self.ended:
                    self.changed.wait(REPORT_SECONDS)
                ended = [self.finished.popleft() for _ in range(min(len(self.finished), 100))]
                if self.ended and not ended:
                    return
                others = [] if self.ended else list(self.held.values())
            done = {task.job_id for task, _ in ended}
            reports = [(task, _merged(task.take_news(), report)) for task, report in ended]
            beats = time.monotonic() - last_beat >= beat
            if beats:
                last_beat = time.monotonic()
            for task in others:
                if task.job_id not in done and not task.cancelled:
                    news = task.take_news()
                    if news or beats:
                        reports.append((task, news))
            for start in range(0, len(reports), MAX_AT_ONCE):
                self._send(reports[start : start + MAX_AT_ONCE], done)

    def _send(self, reports: list[tuple[Task, dict[str, Any]]], done: set[str]) -> None:
        given = [
            {"job_id": task.job_id, "lease_token": task.job.lease_token, **report}
            for task, report in reports
        ]
        try:
            answers = self.client.report(self.workspace_id, given)
        except (BadRequest, BodyTooLarge) as error:
            # One that cannot be sent must not hold the others back.
            self._send_smaller(reports, done, error)
            return
        except (Unreachable, JobApiError) as error:
            logger.warning("cannot report: %s", error)
            if self.ended:
                return
            # Kept; until it arrives the lease says how long there is.
            self.worker.pause(0.5)
            with self.changed:
                self.finished.extend(entry for entry in reports if entry[0].job_id in done)
            return
        with self.changed:
            for (task, _), answer in zip(reports, answers, strict=True):
                if not answer["accepted"]:
                    problem = answer["problem"]
                    logger.warning("report of job %s refused: %s", task.job_id, problem["detail"])
                    if problem["status"] == ValidationFailed.status:
                        if task.job_id in done:
                            # It would be refused again, whoever did the job.
                            self._fail(task, f"The result was refused: {problem['detail']}")
                        continue
                    task.lose()
                if task.job_id in done or task.cancelled:
                    self.held.pop(task.job_id, None)
            self.changed.notify_all()

    def _send_smaller(
        self, reports: list[tuple[Task, dict[str, Any]]], done: set[str], error: JobApiError
    ) -> None:
        if len(reports) > 1:
            half = len(reports) // 2
            self._send(reports[:half], done)
            self._send(reports[half:], done)
            return
        ((task, _),) = reports
        logger.warning("report of job %s cannot be sent: %s", task.job_id, error)
        if task.job_id in done:
            with self.changed:
                self._fail(task, f"The result was refused: {error}")

    def _fail(self, task: Task, error: str) -> None:
        self.finished.append((task, {"status": "failed", "error": error, "retryable": False}))

    def _finish(self) -> None:
        """Hand back what has not begun; wait for what runs, and hand the rest back, too."""
        with self.changed:
            self._hand_back([t for i, t in self.held.items() if i not in self._begun()])
        deadline = time.monotonic() + self.worker.grace_seconds
        with self.changed:
            while self.running and time.monotonic() < deadline:
                self.changed.wait(0.2)
            self._hand_back([self.held[i] for i in self.running if i in self.held])
            while self.held and time.monotonic() < deadline + 10:
                self.changed.wait(0.2)

    def _begun(self) -> set[str]:
        return self.running | {task.job_id for task, _ in self.finished}

    def _hand_back(self, tasks: list[Task]) -> None:
        self.finished.extend((task, {"status": "pending"}) for task in tasks)
        self.changed.notify_all()


def _success(result: Any) -> dict[str, Any]:
    if result is None:
        return {"status": "success"}
    if not isinstance(result, Mapping):
        raise Permanent(f"A task returns a dict or None, not {type(result).__name__}.")
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Permanent(f"The result cannot be written as JSON: {error}") from error
    return {"status": "success", "result": dict(result)}


def _merged(news: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    result = {**news.get("result", {}), **report.get("result", {})}
    return {**news, **report, **({"result": result} if result else {})}


def _text(error: BaseException) -> str:
    # The end says the most.
    text = "".join(traceback.format_exception(error)).replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode()[-MAX_ERROR:]
