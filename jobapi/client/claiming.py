"""The thread that claims: how many jobs to fetch, and how long to pause."""

from __future__ import annotations

import logging
import math
import time

from ..errors import JobApiError
from .leased_jobs import MAX_BATCH, LeasedJobs, is_over
from .options import Options
from .retries import (
    MAX_RETRY_AFTER,
    Bounds,
    Unreachable,
    asked_pause,
    bounded,
    is_transient,
    jittered,
)
from .tasks import Task

logger = logging.getLogger("jobapi.worker")


class Claimer:
    """Claims jobs while there is capacity for them.

    Quick jobs are claimed many at once, because a request costs more than such a job. Jobs
    that are prefetched begin only when a thread takes them.
    """

    def __init__(self, options: Options, jobs: LeasedJobs) -> None:
        self.options = options
        self.timing = options.timing
        self.jobs = jobs
        self.job_types = sorted(options.tasks)
        # How many claims in a row were answered early without a job.
        self.empty_claims = 0
        # Whether the last claim got a suspect job, which begins at once and must not be queued.
        self.got_suspect = False
        self.answered_at = time.monotonic()

    def run(self) -> None:
        """Claim until the worker must stop, or is idle."""
        try:
            while not self.must_stop() and self._claim():
                pass
        except BaseException as error:
            self.jobs.fail(error)

    def must_stop(self) -> bool:
        """Whether the worker must make no more claims."""
        return self.jobs.closing or self.options.stopping()

    def _capacity(self) -> tuple[int, int]:
        """How many jobs to fetch, and how many of them could begin at once.

        Each thread that is not blocked by a long task gets ``prefetch`` seconds of work, but at
        least one job. For example, four threads of which one is blocked, and jobs of 10 ms: 3 *
        0.3 s / 10 ms = 90 jobs, minus those that are held. After a suspect job nothing is
        prefetched, because more suspect jobs may follow.
        """
        running = self.jobs.running_tasks()
        now = time.monotonic()
        prefetch = self.timing.prefetch
        blocked = [
            task
            for task in running
            if task.cancelled or is_over(task.seconds_running(now), prefetch)
        ]
        threads = self.options.concurrency - len(blocked)
        ahead = int(threads * prefetch / max(self.jobs.mean_seconds, 0.001))
        wanted = max(threads, min(ahead, 2 * MAX_BATCH))
        held = len(self.jobs.held) - sum(task in self.jobs.held for task in blocked)
        capacity = wanted - held
        if held > threads and capacity < wanted / 2:
            # Wait until there is capacity for a large claim, instead of making many small ones.
            capacity = 0
        lost = sum(task not in self.jobs.held for task in running)
        free = self.options.concurrency - lost - sum(not task.ended for task in self.jobs.held)
        return min(capacity, free) if self.got_suspect else capacity, free

    def _claim(self) -> bool:
        """Claim once if there is capacity; False when there is nothing more to do."""
        engine = self.options.engine
        with self.jobs.lock:
            capacity, free = self._capacity()
            if capacity <= 0 or (engine is not None and not engine.available):
                self.jobs.freed.wait(0.2)
                return True
            # Do not wait for stuck tasks. Other tasks that lost their lease may return soon.
            idle = not self.jobs.held and self.jobs.stuck.issuperset(self.jobs.running_tasks())
        # In an engine, the run begins the attempt.
        begin = capacity <= free and not self.got_suspect and engine is None
        limit = min(capacity, MAX_BATCH)
        prefetch = 0 if begin or engine is not None else limit - min(limit, max(0, free))
        wait_seconds = 0 if self.options.until_idle else self.timing.claim_wait
        asked_at = time.monotonic()
        try:
            with bounded(self._claim_bounds()):
                jobs = self.options.client.claim(
                    self.options.workspace_id,
                    job_types=self.job_types,
                    limit=limit,
                    lease_seconds=self.options.lease_seconds,
                    worker=self.options.name,
                    wait_seconds=wait_seconds,
                    begin=begin,
                    prefetch=prefetch,
                )
        except (Unreachable, JobApiError) as error:
            if not is_transient(error):
                raise
            self._back_off(error)
            return True
        self.answered_at = time.monotonic()
        self.got_suspect = not begin and any(job.begun for job in jobs)
        if jobs:
            self.empty_claims = 0
            self.jobs.add([Task(job) for job in jobs])
        elif self.options.until_idle and idle:
            return False
        else:
            took = time.monotonic() - asked_at
            self._pause_after_empty_claim(took, wait_seconds, jobs.retry_after)
        return True

    def _claim_bounds(self) -> Bounds:
        deadline = self.answered_at + self.timing.outage if self.options.until_idle else math.inf
        seconds = self.options.request_seconds + self.timing.claim_wait
        return Bounds(deadline, seconds, self.must_stop)

    def _back_off(self, error: Unreachable | JobApiError) -> None:
        """Pause after a failed claim that may succeed later."""
        if self.must_stop():
            return
        outage = time.monotonic() - self.answered_at
        if self.options.until_idle and is_over(outage, self.timing.outage - 1):
            raise error
        logger.warning("cannot claim: %s", error)
        self._sleep(jittered(max(1.0, asked_pause(error))))

    def _pause_after_empty_claim(
        self, took: float, wait_seconds: float, asked: float | None
    ) -> None:
        early = took < wait_seconds - 0.5 or not wait_seconds
        if not early and asked is None:
            self.empty_claims = 0
            return
        self.empty_claims += 1
        if asked is None:
            asked = min(self.timing.max_pause, 0.05 * 2.0 ** min(self.empty_claims, 10))
        self._sleep(jittered(min(asked, MAX_RETRY_AFTER)))

    def _sleep(self, seconds: float) -> None:
        """Sleep until a stop; with ``until_idle`` at most until the last held job has ended."""
        end = time.monotonic() + seconds
        held = bool(self.jobs.held)
        while not self.must_stop() and 0 < (left := end - time.monotonic()) <= seconds:
            if self.options.until_idle and held and not self.jobs.held:
                return
            time.sleep(min(left, 0.1))
