"""One run of a worker in one process: a thread that claims, slots for tasks, one that reports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from .claiming import Claimer
from .leased_jobs import RELEASE, LeasedJobs, is_over, with_end
from .options import Options
from .reporting import Reporter
from .slots import MixedSlots, Slots, ThreadSlots, is_async

RELEASE_SECONDS = 2.0
"""How much of the time for a stop is reserved for releasing jobs; at most a quarter of it."""

MIN_STOP_SECONDS = 1.0
"""The shortest time for a stop, because the last reports have to be sent."""

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
        mixed = options.engine is not None or any(map(is_async, options.tasks.values()))
        kind: type[Slots] = MixedSlots if mixed else ThreadSlots
        self.slots = kind(options, self.jobs, self.claimer.must_stop)
        self.all_lost_at: float | None = None

    def run(self) -> None:
        """Work until stopped or idle. Raises the permanent error of a claim or a report."""
        claims = threading.Thread(target=self.claimer.run, daemon=True)
        reports = threading.Thread(target=self.reporter.run, daemon=True)
        self.slots.start()
        reports.start()
        claims.start()
        try:
            # The main thread only sleeps, so that it always notices a stop.
            while claims.is_alive() and not (self.options.stopping() or self.jobs.error):
                claims.join(0.1)
                self._check_lost()
                self.slots.check()
        finally:
            self._stop(claims, reports)
            self.slots.end()
        if self.jobs.error is not None:
            raise self.jobs.error

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
        self.slots.close()
        self._wait(now + grace - min(RELEASE_SECONDS, grace / 4), reports, self.jobs.unfinished)
        for task in self.jobs.unfinished():
            # A job that an engine runs continues there, and its run reports the end.
            self.jobs.end(task, [] if task.taken else with_end(task.take_reports(), RELEASE))
            if task.on_lost is not None:
                task.on_lost()
        self._wait(deadline, reports, lambda: claims.is_alive() or self.jobs.held)
        self.reporter.finish()
        reports.join(max(0.0, deadline - time.monotonic()))
        if self.jobs.held:
            logger.warning("%d jobs could not be reported or released", len(self.jobs.held))

    def _wait(self, until: float, reports: threading.Thread, busy: Callable[[], Any]) -> None:
        while busy() and reports.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
