"""One run of a worker in one process: a thread that claims, threads for tasks, one that reports."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from .claiming import Claimer
from .leased_jobs import RELEASE, LeasedJobs, is_over, with_end
from .options import Options
from .reporting import Reporter
from .tasks import Permanent, Report, Task
from .tracing import is_recording, span

RELEASE_SECONDS = 2.0
"""The part of the time for a stop that is reserved for releasing jobs; at most a quarter."""

MIN_STOP_SECONDS = 1.0
"""The least time that a stop may take: reports need a moment."""

MAX_ERROR = 65_536

SUCCESS: Report = {"status": "success"}

logger = logging.getLogger("jobapi.worker")


class ThreadsLost(RuntimeError):
    """All threads of a worker are busy with tasks that lost their lease and do not return."""


class Runner:
    """One run of a worker in one process."""

    def __init__(self, options: Options) -> None:
        self.options = options
        # Before the first job has ended, nothing is prefetched.
        self.jobs = LeasedJobs(options.concurrency, mean_seconds=options.timing.prefetch)
        self.claimer = Claimer(options, self.jobs)
        self.reporter = Reporter(options, self.jobs)
        self.all_lost_at: float | None = None
        self.recording = is_recording()

    def run(self) -> None:
        """Work until stopped or idle. Raises the permanent error of a claim or a report."""
        threads = [
            threading.Thread(target=self._run_tasks, args=(number,), daemon=True)
            for number in range(self.options.concurrency)
        ]
        claims = threading.Thread(target=self.claimer.run, daemon=True)
        reports = threading.Thread(target=self.reporter.run, daemon=True)
        for thread in [*threads, reports, claims]:
            thread.start()
        try:
            # The main thread only sleeps, so that it always notices a stop.
            while claims.is_alive() and not (self.options.stopping() or self.jobs.error):
                claims.join(0.1)
                self._check_lost()
        finally:
            self._stop(claims, reports)
            for _ in threads:
                self.jobs.queued.put(None)
        if self.jobs.error is not None:
            raise self.jobs.error

    def _run_tasks(self, number: int) -> None:
        while (task := self.jobs.queued.get()) is not None:
            try:
                self._run_task(task, number)
            except BaseException as error:
                # Not an error of the task, which would be in its reports.
                logger.exception("job %s: cannot record how it ended", task.job_id)
                self.jobs.end(task, [{"status": "failed", "error": _text(error)}])
            finally:
                self.jobs.running[number] = None

    def _run_task(self, task: Task, number: int) -> None:
        now = time.monotonic()
        if self.claimer.must_stop() or task.cancelled or self._is_stale(task, now):
            self.jobs.end(task, [RELEASE])
            return
        task.started_at = now
        self.jobs.running[number] = task
        reports = self._last_reports(task)
        self.jobs.measure(time.monotonic() - now)
        self.jobs.end(task, reports)

    def _is_stale(self, task: Task, now: float) -> bool:
        """Whether both clocks say that this process was paused and may have lost the lease."""
        longest = self.options.lease_seconds / 2
        return now - task.claimed_at > longest and time.time() - task.claimed_at_wall > longest

    def _last_reports(self, task: Task) -> list[Report]:
        """Run a task, and return its reports that are not sent yet, with its end."""
        try:
            with span(task.job, recording=self.recording):
                return _success(task, self.options.tasks[task.job_type](task))
        except Permanent as error:
            logger.warning("job %s failed permanently: %s", task.job_id, error)
            end = {"status": "failed", "error": _text(error), "retryable": False}
        except BaseException as error:
            logger.warning("job %s failed: %r", task.job_id, error)
            end = {"status": "failed", "error": _text(error)}
        return with_end(task.take_reports(), end)

    def _check_lost(self) -> None:
        """Log the threads whose tasks do not return although their lease is lost.

        No jobs are claimed for them. If no other thread is left for long, the run fails, so
        that the supervisor restarts the process.
        """
        now = time.monotonic()
        concurrency, timing = self.options.concurrency, self.options.timing
        lost = {task for task in self.jobs.running_tasks() if task.lost_at is not None}
        for task in lost - self.jobs.stuck:
            if is_over(now - (task.lost_at or now), timing.lost):
                self.jobs.stuck.add(task)
                logger.warning(
                    "the lease of job %s is lost, but its task still runs %d s later; "
                    "%d of %d threads are left",
                    task.job_id,
                    timing.lost,
                    concurrency - len(lost),
                    concurrency,
                )
        for task in self.jobs.stuck - lost:
            self.jobs.stuck.remove(task)
            logger.info("the task of job %s has returned; its thread is free", task.job_id)
        if len(lost) < concurrency:
            self.all_lost_at = None
        elif self.all_lost_at is None:
            self.all_lost_at = now
        elif is_over(now - self.all_lost_at, timing.all_lost):
            self.jobs.fail(
                ThreadsLost(
                    f"No thread is left: all {concurrency} run tasks that lost their leases and do "
                    "not return. The worker ends; restart it."
                )
            )

    def _stop(self, claims: threading.Thread, reports: threading.Thread) -> None:
        """Release queued jobs, wait for the running ones, and then release these, too."""
        now = time.monotonic()
        grace = self.options.grace_seconds
        deadline = self.reporter.deadline = now + max(grace, MIN_STOP_SECONDS)
        self.jobs.closing = True
        self.jobs.release_queued()
        self._wait(now + grace - min(RELEASE_SECONDS, grace / 4), reports, self.jobs.unfinished)
        for task in self.jobs.unfinished():
            self.jobs.end(task, with_end(task.take_reports(), RELEASE))
        self._wait(deadline, reports, lambda: claims.is_alive() or self.jobs.held)
        self.reporter.finish()
        reports.join(max(0.0, deadline - time.monotonic()))
        if self.jobs.held:
            logger.warning("%d jobs could not be reported or released", len(self.jobs.held))

    def _wait(self, until: float, reports: threading.Thread, busy: Callable[[], Any]) -> None:
        while busy() and reports.is_alive() and time.monotonic() < until:
            time.sleep(0.02)


def _success(task: Task, result: Any) -> list[Report]:
    if result is not None and not isinstance(result, Mapping):
        raise Permanent(f"A task returns a dict or None, not {type(result).__name__}.")
    try:
        return with_end(task.take_reports(result), SUCCESS)
    except (TypeError, ValueError) as error:
        raise Permanent(f"The result cannot be written as JSON: {error}") from error


def _text(error: BaseException) -> str:
    # Keep the end of the traceback, its most useful part.
    text = "".join(traceback.format_exception(error)).replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode()[-MAX_ERROR:]
