"""One run of a worker in one process: a thread that claims, threads for tasks, one that reports."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from .claiming import Claimer
from .holding import HANDED_BACK, Holding, Terms, is_over, last
from .reporting import Reporter
from .tasks import Permanent, Report, Task
from .tracing import span

HAND_BACK_SECONDS = 2.0
"""The part of the time for a stop that is reserved for handing back; at most a quarter."""

LOST_SECONDS = 5.0
"""How long a task may take to return after its lease was lost, before that is logged."""

ALL_LOST_SECONDS = 300.0
"""How long all threads may be lost before the worker gives up.

Tasks that only ignore a cancel return by then; one that hangs does not.
"""

LEAST_STOP_SECONDS = 1.0
"""The least time that a stop may take: reports need a moment."""

MAX_ERROR = 65_536

SUCCESS: Report = {"status": "success"}

logger = logging.getLogger("jobapi.worker")


class ThreadsLost(RuntimeError):
    """All threads of a worker are busy with tasks that lost their lease and do not return."""


class Shift:
    """One run of a worker in one process."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.jobs = Holding(terms.concurrency)
        self.claimer = Claimer(terms, self.jobs)
        self.reporter = Reporter(terms, self.jobs)
        self.all_lost_at: float | None = None

    def work(self) -> None:
        """Work until stopped or idle. Raises the permanent error of a claim or a report."""
        threads = [
            threading.Thread(target=self._run_tasks, args=(place,), daemon=True)
            for place in range(self.terms.concurrency)
        ]
        claims = threading.Thread(target=self.claimer.run, daemon=True)
        reports = threading.Thread(target=self.reporter.run, daemon=True)
        for thread in [*threads, reports, claims]:
            thread.start()
        try:
            # The main thread only sleeps, so that it always notices a stop.
            while claims.is_alive() and not (self.terms.stopping() or self.jobs.error):
                claims.join(0.1)
                self._look_after_lost()
        finally:
            self._finish(claims, reports)
            for _ in threads:
                self.jobs.waiting.put(None)
        if self.jobs.error is not None:
            raise self.jobs.error

    def _run_tasks(self, place: int) -> None:
        while (task := self.jobs.waiting.get()) is not None:
            try:
                self._run(task, place)
            except BaseException as error:
                # Not an error of the task: that is in its reports.
                logger.exception("job %s: cannot record how it ended", task.job_id)
                self.jobs.end(task, [{"status": "failed", "error": _text(error)}])
            finally:
                self.jobs.running[place] = None

    def _run(self, task: Task, place: int) -> None:
        began = time.monotonic()
        if self.claimer.must_close() or task.cancelled or self._is_stale(task, began):
            self.jobs.end(task, [HANDED_BACK])
            return
        task.began_at = began
        self.jobs.running[place] = task
        reports = self._outcome(task)
        self.jobs.measure(time.monotonic() - began)
        self.jobs.end(task, reports)

    def _is_stale(self, task: Task, now: float) -> bool:
        """Whether both clocks say that this process was paused and may have lost the lease."""
        longest = self.terms.lease_seconds / 2
        return now - task.fetched_at > longest and time.time() - task.fetched_wall > longest

    def _outcome(self, task: Task) -> list[Report]:
        try:
            with span(task.job):
                return _success(task, self.terms.tasks[task.job_type](task))
        except Permanent as error:
            logger.warning("job %s failed for good: %s", task.job_id, error)
            report = {"status": "failed", "error": _text(error), "retryable": False}
        except BaseException as error:
            logger.warning("job %s failed: %r", task.job_id, error)
            report = {"status": "failed", "error": _text(error)}
        return last(task.take_news(), report)

    def _look_after_lost(self) -> None:
        """Log the threads whose tasks do not return although their lease is lost.

        No jobs are fetched for them. If none is left, the shift fails, so that the
        supervisor restarts the process.
        """
        now = time.monotonic()
        lost = {task for task in self.jobs.at_work() if task.lost_at is not None}
        for task in lost - self.jobs.lost:
            if is_over(now - (task.lost_at or now), LOST_SECONDS):
                self.jobs.lost.add(task)
                logger.warning(
                    "job %s is lost, and its task still runs %d s later; %d of %d threads are left",
                    task.job_id,
                    LOST_SECONDS,
                    self.terms.concurrency - len(lost),
                    self.terms.concurrency,
                )
        for task in self.jobs.lost - lost:
            self.jobs.lost.remove(task)
            logger.info("the task of job %s has returned; its thread is free", task.job_id)
        if len(lost) < self.terms.concurrency:
            self.all_lost_at = None
        elif self.all_lost_at is None:
            self.all_lost_at = now
        elif is_over(now - self.all_lost_at, ALL_LOST_SECONDS):
            self.jobs.fail(
                ThreadsLost(
                    f"No thread is left: all {self.terms.concurrency} run tasks that lost their "
                    "jobs and do not return. The worker ends, so that it can be started again."
                )
            )

    def _finish(self, claims: threading.Thread, reports: threading.Thread) -> None:
        """Hand back jobs that have not begun, wait for running ones, then hand those back, too."""
        began = time.monotonic()
        grace = self.terms.grace_seconds
        deadline = self.reporter.deadline = began + max(grace, LEAST_STOP_SECONDS)
        self.jobs.closing = True
        self.jobs.hand_back()
        self._wait(began + grace - min(HAND_BACK_SECONDS, grace / 4), reports, self.jobs.unended)
        for task in self.jobs.unended():
            self.jobs.end(task, last(task.take_news(), HANDED_BACK))
        self._wait(deadline, reports, lambda: claims.is_alive() or self.jobs.held)
        self.reporter.finish()
        reports.join(max(0.0, deadline - time.monotonic()))
        if self.jobs.held:
            logger.warning("%d jobs could not be reported or handed back", len(self.jobs.held))

    def _wait(self, until: float, reports: threading.Thread, busy: Callable[[], Any]) -> None:
        while busy() and reports.is_alive() and time.monotonic() < until:
            time.sleep(0.02)


def _success(task: Task, result: Any) -> list[Report]:
    if result is not None and not isinstance(result, Mapping):
        raise Permanent(f"A task returns a dict or None, not {type(result).__name__}.")
    try:
        return last(task.take_news(result), SUCCESS)
    except (TypeError, ValueError) as error:
        raise Permanent(f"The result cannot be written as JSON: {error}") from error


def _text(error: BaseException) -> str:
    # Keep the end of the traceback, its most useful part.
    text = "".join(traceback.format_exception(error)).replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode()[-MAX_ERROR:]
