"""One run of a worker in one process: a thread that claims, threads for tasks, one that reports."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from ..errors import BadRequest, BodyTooLarge, JobApiError, ValidationFailed
from .http import Client
from .retries import (
    MAX_RETRY_AFTER,
    Bounds,
    Unreachable,
    backoff,
    bounded,
    jittered,
    may_pass,
    retry_after,
)
from .tasks import Permanent, Report, Task
from .tracing import span

WAIT_SECONDS = 5
"""How long a claim waits for a job; a stop may take as long."""

AHEAD_SECONDS = 0.3
"""How much work is fetched ahead. A task that runs for longer blocks its thread: none is for it."""

REPORT_SECONDS = 0.25
"""Progress is sent at most so often. A task that runs for longer is reported as begun."""

MAX_LOOKS = 3
"""A job that the reporter sees wait so often, each ``REPORT_SECONDS``, is handed back."""

CANCEL_SECONDS = 4.0
"""A task that reports nothing has a heartbeat so often: its answer tells of a cancellation."""

GATHER_SECONDS = 0.005
"""How long a job that has ended may wait for the next ones, to be reported with them."""

MAX_PAUSE_SECONDS = 2.0
"""The longest pause between claims that get nothing, where the service asks for none."""

AWAY_SECONDS = 30.0
"""How long the service may be away before a worker that runs until idle gives up."""

HAND_BACK_SECONDS = 2.0
"""How much of the time for a stop is kept for handing back, a quarter of it at most."""

LOST_SECONDS = 5.0
"""How long a task may take to return after its lease was lost, before that is logged."""

LEAST_STOP_SECONDS = 1.0
"""How long a stop may take though less is allowed: reports need a moment."""

MAX_ERROR = 65_536
MAX_AT_ONCE = 100

SUCCESS: Report = {"status": "success"}
HANDED_BACK: Report = {"status": "pending"}
BEGUN: Report = {"begun": True}
BEAT: Report = {}

Run = Callable[[Task], Mapping[str, Any] | None]

logger = logging.getLogger("jobapi.worker")


class ThreadsLost(RuntimeError):
    """All threads of a worker are busy with tasks that lost their lease and do not return."""


class Shift:
    """One run of a worker in one process.

    Jobs that take no time are claimed and handed over many at once, for a request,
    or waking a thread, costs more than such a job. Such a job begins when a thread
    takes it, and not before; what waits for too long goes back to the service.
    Whoever takes a task out of ``waiting`` says how it ended, no other thread does.
    """

    def __init__(
        self,
        client: Client,
        workspace_id: int,
        tasks: Mapping[str, Run],
        *,
        name: str,
        concurrency: int,
        lease_seconds: int,
        grace_seconds: float,
        until_idle: bool,
        stopping: Callable[[], bool],
    ) -> None:
        self.client = client
        self.workspace_id = workspace_id
        self.tasks = tasks
        self.job_types = sorted(tasks)
        self.name = name
        self.concurrency = concurrency
        self.lease_seconds = lease_seconds
        self.grace_seconds = grace_seconds
        self.until_idle = until_idle
        self.stopping = stopping
        # The tasks whose leases are held: waiting, running or not reported yet.
        self.held: set[Task] = set()
        self.waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        # What each thread runs; a thread writes its own place alone.
        self.running: list[Task | None] = [None] * concurrency
        # What is to be reported. A last report has a status; news of a task have none.
        self.reports: deque[tuple[Task, Report]] = deque()
        # Guards held, reports and how a task ended.
        self.lock = threading.Lock()
        self.freed = threading.Condition(self.lock)
        self.to_report = threading.Condition(self.lock)
        # No more claims; what waits is handed back.
        self.closing = False
        # No more reports will come.
        self.over = False
        self.deadline = math.inf
        self.error: BaseException | None = None
        # Seconds that a job takes, the mean of the last few: how many to claim at once.
        self.pace = 1.0
        self.few = 1
        # How many claims in turn got nothing, and got it early.
        self.empty = 0
        self.answered_at = time.monotonic()
        self.failures = 0
        self.all_lost_at: float | None = None
        self.lost: set[Task] = set()

    def work(self) -> None:
        """Work until stopped or idle. Raises what a claim or a report failed with for good."""
        threads = [
            threading.Thread(target=self._run_tasks, args=(place,), daemon=True)
            for place in range(self.concurrency)
        ]
        claimer = threading.Thread(target=self._claim_all, daemon=True)
        reporter = threading.Thread(target=self._report_all, daemon=True)
        for thread in [*threads, reporter, claimer]:
            thread.start()
        try:
            # The main thread waits for nothing but time, so that it always sees a stop.
            while claimer.is_alive() and not (self.stopping() or self.error):
                claimer.join(0.1)
                self._look_after_lost()
        finally:
            self._finish(claimer, reporter)
            for _ in threads:
                self.waiting.put(None)
        if self.error is not None:
            raise self.error

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error

    # Claiming

    def _claim_all(self) -> None:
        try:
            while not self._must_close() and self._claim():
                pass
        except BaseException as error:
            self._fail(error)

    def _must_close(self) -> bool:
        return self.closing or self.stopping()

    def _room(self) -> tuple[int, int]:
        """How many jobs to fetch, and how many of them would begin at once.

        Each thread has one, and ``AHEAD_SECONDS`` of work is fetched ahead for those
        that are not blocked by a task that takes longer.
        """
        running = [task for task in self.running if task is not None]
        now = time.monotonic()
        blocked = [task for task in running if _is_over(task.seconds_running(now), AHEAD_SECONDS)]
        threads = self.concurrency - len(blocked)
        wanted = max(threads, int(threads * AHEAD_SECONDS / max(self.pace, 0.001)))
        wanted = min(wanted, 2 * MAX_AT_ONCE)
        held = len(self.held) - sum(task in self.held for task in blocked)
        room = wanted - held
        if held > threads and room < wanted / 2:
            # Few large claims, not many small ones.
            room = 0
        lost = sum(task not in self.held for task in running)
        free = self.concurrency - lost - sum(not task.ended for task in self.held)
        return room, free

    def _claim(self) -> bool:
        """Claim once there is room; False when there is nothing more to do."""
        with self.lock:
            room, free = self._room()
            if room <= 0:
                self.freed.wait(0.2)
                return True
            # A task that lost its job has a moment to return.
            idle = not self.held and all(t is None or t in self.lost for t in self.running)
        wait_seconds = 0 if self.until_idle else WAIT_SECONDS
        asked_at = time.monotonic()
        try:
            with bounded(self._claim_bounds()):
                jobs = self.client.claim(
                    self.workspace_id,
                    job_types=self.job_types,
                    limit=min(room, MAX_AT_ONCE),
                    lease_seconds=self.lease_seconds,
                    worker=self.name,
                    wait_seconds=wait_seconds,
                    begin=room <= free,
                )
        except (Unreachable, JobApiError) as error:
            if not may_pass(error):
                raise
            self._bear(error)
            return True
        self.answered_at = time.monotonic()
        if jobs:
            self.empty = 0
            self._take([Task(job) for job in jobs])
        elif self.until_idle and idle:
            return False
        else:
            self._pause_after_nothing(time.monotonic() - asked_at, wait_seconds, jobs.retry_after)
        return True

    def _claim_bounds(self) -> Bounds:
        deadline = self.answered_at + AWAY_SECONDS if self.until_idle else math.inf
        return Bounds(deadline, self._request_seconds() + WAIT_SECONDS, self._must_close)

    def _request_seconds(self) -> float:
        # A request that hangs must not cost the leases.
        return max(2.0, self.lease_seconds / 3)

    def _bear(self, error: Unreachable | JobApiError) -> None:
        """Pause after a claim that may go well later."""
        if self._must_close():
            return
        away = time.monotonic() - self.answered_at
        if self.until_idle and _is_over(away, AWAY_SECONDS - 1):
            raise error
        logger.warning("cannot claim: %s", error)
        asked = None if isinstance(error, Unreachable) else retry_after(error.headers)
        self._rest(jittered(max(1.0, min(asked or 0.0, MAX_RETRY_AFTER))))

    def _pause_after_nothing(self, took: float, wait_seconds: float, asked: float | None) -> None:
        early = took < wait_seconds - 0.5 or not wait_seconds
        if not early and asked is None:
            self.empty = 0
            return
        self.empty += 1
        if asked is None:
            asked = min(MAX_PAUSE_SECONDS, 0.05 * 2.0 ** min(self.empty, 10))
        self._rest(jittered(min(asked, MAX_RETRY_AFTER)))

    def _take(self, tasks: Sequence[Task]) -> None:
        with self.lock:
            self.held.update(tasks)
        for task in tasks:
            self.waiting.put(task)

    def _rest(self, seconds: float) -> None:
        """Pause between claims; when it runs until idle, only while jobs are held."""
        end = time.monotonic() + seconds
        had = bool(self.held)
        while not self._must_close() and 0 < (left := end - time.monotonic()) <= seconds:
            if self.until_idle and had and not self.held:
                return
            time.sleep(min(left, 0.1))

    # Running

    def _run_tasks(self, place: int) -> None:
        while (task := self.waiting.get()) is not None:
            try:
                self._run(task, place)
            except BaseException as error:
                # Not what a task raised: that is in its reports.
                logger.exception("job %s: its end could not be noted", task.job_id)
                self._end(task, [{"status": "failed", "error": _text(error)}])
            finally:
                self.running[place] = None

    def _run(self, task: Task, place: int) -> None:
        if self._must_close() or task.cancelled or self._is_stale(task):
            self._end(task, [HANDED_BACK])
            return
        began = task.began_at = time.monotonic()
        self.running[place] = task
        reports = self._outcome(task)
        took = time.monotonic() - began
        # A clock that went back says nothing.
        if took >= 0:
            self.few = min(self.few + 1, 8)
            self.pace += (took - self.pace) / self.few
        self._end(task, reports)

    def _is_stale(self, task: Task) -> bool:
        """Whether this process stood still, so that the lease may be lost. Both clocks say so."""
        waited = min(time.monotonic() - task.fetched_at, time.time() - task.fetched_wall)
        return waited > self.lease_seconds / 2

    def _outcome(self, task: Task) -> list[Report]:
        try:
            with span(task.job):
                return _success(task, self.tasks[task.job_type](task))
        except Permanent as error:
            logger.warning("job %s failed for good: %s", task.job_id, error)
            report = {"status": "failed", "error": _text(error), "retryable": False}
        except BaseException as error:
            logger.warning("job %s failed: %r", task.job_id, error)
            report = {"status": "failed", "error": _text(error)}
        return _last(task.take_news(), report)

    def _end(self, task: Task, reports: Sequence[Report]) -> None:
        """Let a task have ended with its last reports; what it says later does not count."""
        with self.lock:
            if task.ended:
                return
            task.ended = True
            if task.cancelled:
                self.held.discard(task)
                self.freed.notify()
                return
            before = len(self.reports)
            self.reports.extend((task, report) for report in reports)
            if before == 0 or before < MAX_AT_ONCE <= len(self.reports) or self.waiting.empty():
                self.to_report.notify()

    # Reporting

    def _report_all(self) -> None:
        """Send what has ended, progress, and heartbeats, until the shift is over."""
        looked_at = time.monotonic()
        while True:
            try:
                with self.lock:
                    self._gather()
                    count = min(len(self.reports), MAX_AT_ONCE)
                    reports = [self.reports.popleft() for _ in range(count)]
                    if self.over and (self.failures or not reports):
                        return
                now = time.monotonic()
                if _is_over(now - looked_at, REPORT_SECONDS):
                    looked_at = now
                    self._hand_back_what_waits()
                    reports += self._news(now)
                for start in range(0, len(reports), MAX_AT_ONCE):
                    self._send(reports[start : start + MAX_AT_ONCE])
            except (Unreachable, JobApiError) as error:
                # Such as a key that was revoked: nothing more can be reported.
                self._fail(error)
                return
            except Exception:
                logger.exception("reporting failed; it goes on in a moment")
                time.sleep(REPORT_SECONDS)

    def _gather(self) -> None:
        if not self.reports and not self.over:
            self.to_report.wait(REPORT_SECONDS)
        if 0 < len(self.reports) < MAX_AT_ONCE and not (self.waiting.empty() or self.over):
            self.to_report.wait(GATHER_SECONDS)

    def _hand_back_what_waits(self) -> None:
        """Hand back the jobs that no thread could take soon: another worker may do them."""
        late = False
        with self.lock:
            for task in self.held:
                if task.began_at is None and not task.ended:
                    task.looks += 1
                    late = late or task.looks >= MAX_LOOKS
        if not late:
            return
        kept: list[Task | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                waits = self.waiting.get_nowait()
                if waits is None or waits.looks < MAX_LOOKS:
                    kept.append(waits)
                else:
                    self._end(waits, [HANDED_BACK])
        for waits in kept:
            self.waiting.put(waits)

    def _news(self, now: float) -> list[tuple[Task, Report]]:
        """What the running tasks report, and heartbeats.

        A heartbeat is a report of its own, so that it counts though the other one is refused.
        """
        running = [t for t in self.running if t is not None and not (t.ended or t.cancelled)]
        # Some are early, so that many tasks share a request.
        every = min(self.lease_seconds / 3, CANCEL_SECONDS)
        due = any(_is_over(now - task.heard_at, every) for task in running)
        reports: list[tuple[Task, Report]] = []
        for task in running:
            if not task.begun and _is_over(task.seconds_running(now), REPORT_SECONDS):
                reports.append((task, BEGUN))
            elif due and _is_over(now - task.heard_at, every / 2):
                reports.append((task, BEAT))
            reports += [(task, news) for news in task.take_news()]
        return reports

    def _send(self, reports: list[tuple[Task, Report]]) -> None:
        """Send up to 100 reports. Raises what no repetition would change."""
        given = [
            {"job_id": task.job_id, "lease_token": task.job.lease_token, **report}
            for task, report in reports
        ]
        sent_at = time.monotonic()
        try:
            with bounded(self._report_bounds()):
                answers = self.client.report(self.workspace_id, orjson.dumps(given))
            refused = self._settle(reports, answers, sent_at)
        except (BadRequest, BodyTooLarge) as error:
            # One that cannot be sent must not hold the others back.
            self._send_smaller(reports, error)
            return
        except (Unreachable, JobApiError) as error:
            if not may_pass(error):
                raise
            logger.warning("cannot report: %s", error)
            self._keep(reports, None if isinstance(error, Unreachable) else error)
            return
        except Exception:
            self._keep(reports, None)
            raise
        self.failures = 0
        for task, report, problem in refused:
            logger.warning("report of job %s refused: %s", task.job_id, problem["detail"])
            if problem["status"] == ValidationFailed.status and "status" in report:
                # It would be refused again, by whichever worker the job was done.
                self._fail_for_good(task, problem["detail"])

    def _settle(
        self, reports: list[tuple[Task, Report]], answers: list[dict[str, Any]], sent_at: float
    ) -> list[tuple[Task, Report, dict[str, Any]]]:
        """Note what became of reports; returns those that were refused, with the problem."""
        judged = [(answer["accepted"], answer["problem"]) for answer in answers]
        refused = []
        with self.lock:
            for (task, report), (accepted, problem) in zip(reports, judged, strict=True):
                if accepted:
                    task.heard_at = sent_at
                    task.begun = task.begun or bool(report)
                    if "status" in report:
                        self.held.discard(task)
                elif problem["status"] == ValidationFailed.status:
                    refused.append((task, report, problem))
                elif not task.cancelled:
                    refused.append((task, report, problem))
                    task.lose()
                    self.held.discard(task)
            self.freed.notify()
        return refused

    def _send_smaller(self, reports: list[tuple[Task, Report]], error: JobApiError) -> None:
        if len(reports) > 1:
            half = len(reports) // 2
            self._send(reports[:half])
            self._send(reports[half:])
            return
        ((task, report),) = reports
        logger.warning("report of job %s cannot be sent: %s", task.job_id, error)
        if "status" in report:
            self._fail_for_good(task, str(error))

    def _fail_for_good(self, task: Task, why: str) -> None:
        error = f"The result was refused: {why}"
        with self.lock:
            self.reports.append((task, {"status": "failed", "error": error, "retryable": False}))

    def _keep(self, reports: list[tuple[Task, Report]], error: JobApiError | None) -> None:
        """Keep what could not be sent, and pause. Heartbeats are made again when they are due."""
        with self.lock:
            self.reports.extendleft(
                entry
                for entry in reversed(reports)
                if entry[1] is not BEAT and entry[1] is not BEGUN
            )
        self.failures += 1
        asked = None if error is None else retry_after(error.headers)
        longest = 0.5 if self.closing else self.lease_seconds / 6
        seconds = min(max(backoff(self.failures), asked or 0.0), longest)
        closing, end = self.closing, time.monotonic() + seconds
        while closing == self.closing and 0 < (left := end - time.monotonic()) <= seconds:
            if self.over:
                return
            time.sleep(min(left, 0.1))

    def _report_bounds(self) -> Bounds:
        # A stop interrupts the pauses of before, and not those in its own time.
        closing = self.closing
        return Bounds(self.deadline, self._request_seconds(), lambda: self.closing != closing)

    # Threads that are lost

    def _look_after_lost(self) -> None:
        """Log the threads that do not come back from a job whose lease is lost.

        They are not counted on any more. When none is left the shift fails, so that
        what supervises the process starts it anew.
        """
        now = time.monotonic()
        lost = {task for task in self.running if task is not None and task.lost_at is not None}
        for task in lost - self.lost:
            if _is_over(now - (task.lost_at or now), LOST_SECONDS):
                self.lost.add(task)
                logger.warning(
                    "job %s is lost, and its task still runs %d s later; %d of %d threads are left",
                    task.job_id,
                    LOST_SECONDS,
                    self.concurrency - len(lost),
                    self.concurrency,
                )
        for task in self.lost - lost:
            self.lost.remove(task)
            logger.info("the task of job %s has returned; its thread is free", task.job_id)
        if len(lost) < self.concurrency:
            self.all_lost_at = None
        elif self.all_lost_at is None:
            self.all_lost_at = now
        elif _is_over(now - self.all_lost_at, max(self.grace_seconds, LOST_SECONDS)):
            self._fail(
                ThreadsLost(
                    f"No thread is left: all {self.concurrency} run tasks that lost their jobs and "
                    "do not return. The worker ends, so that it can be started again."
                )
            )

    # The end

    def _finish(self, claimer: threading.Thread, reporter: threading.Thread) -> None:
        """Hand back what has not begun, wait for what runs, and hand the rest back in time."""
        began = time.monotonic()
        grace = self.grace_seconds
        self.deadline = began + max(grace, LEAST_STOP_SECONDS)
        self.closing = True
        with contextlib.suppress(queue.Empty):
            while task := self.waiting.get_nowait():
                self._end(task, [HANDED_BACK])
        self._wait(began + grace - min(HAND_BACK_SECONDS, grace / 4), reporter, self._unended)
        for task in self._unended():
            self._end(task, _last(task.take_news(), HANDED_BACK))
        self._wait(self.deadline, reporter, lambda: claimer.is_alive() or self.held)
        with self.lock:
            self.over = True
            self.to_report.notify()
        reporter.join(max(0.0, self.deadline - time.monotonic()))
        if self.held:
            logger.warning("%d jobs could not be reported or handed back", len(self.held))

    def _unended(self) -> list[Task]:
        with self.lock:
            return [task for task in self.held if not task.ended]

    def _wait(self, until: float, reporter: threading.Thread, busy: Callable[[], Any]) -> None:
        while busy() and reporter.is_alive() and time.monotonic() < until:
            time.sleep(0.02)


def _is_over(passed: float, seconds: float) -> bool:
    # A clock that goes back must not keep a lease from being renewed.
    return not 0 <= passed < seconds


def _last(news: list[Report], report: Report) -> list[Report]:
    """Reports of which the last one ends the attempt."""
    return [*news[:-1], {**news[-1], **report}] if news else [report]


def _success(task: Task, result: Any) -> list[Report]:
    if result is not None and not isinstance(result, Mapping):
        raise Permanent(f"A task returns a dict or None, not {type(result).__name__}.")
    try:
        return _last(task.take_news(result), SUCCESS)
    except (TypeError, ValueError) as error:
        raise Permanent(f"The result cannot be written as JSON: {error}") from error


def _text(error: BaseException) -> str:
    # The end says the most.
    text = "".join(traceback.format_exception(error)).replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode()[-MAX_ERROR:]
