"""The thread that claims: how much to fetch, and how long to pause."""

from __future__ import annotations

import logging
import math
import time

from ..errors import JobApiError
from .holding import AHEAD_SECONDS, MAX_AT_ONCE, Holding, Terms, is_over
from .retries import MAX_RETRY_AFTER, Bounds, Unreachable, asked_pause, bounded, jittered, may_pass
from .tasks import Task

WAIT_SECONDS = 5
"""How long a claim waits for a job; a stop may take as long."""

MAX_PAUSE_SECONDS = 2.0
"""The longest pause between empty claims if the service sends no ``Retry-After``."""

AWAY_SECONDS = 30.0
"""How long the service may be away before a worker with ``until_idle`` gives up."""

logger = logging.getLogger("jobapi.worker")


class Claimer:
    """Claims jobs while there is room for them.

    Quick jobs are claimed many at once, for a request costs more than such a job. They
    begin when a thread takes them, and not before.
    """

    def __init__(self, terms: Terms, jobs: Holding) -> None:
        self.terms = terms
        self.jobs = jobs
        self.job_types = sorted(terms.tasks)
        # How many claims in a row were answered early with no job.
        self.empty = 0
        # Whether the last claim got a suspect job. It begins at once, so that it must not wait.
        self.suspects = False
        self.answered_at = time.monotonic()

    def run(self) -> None:
        """Claim until the worker must stop, or is idle."""
        try:
            while not self.must_close() and self._claim():
                pass
        except BaseException as error:
            self.jobs.fail(error)

    def must_close(self) -> bool:
        """Whether there must be no more claims."""
        return self.jobs.closing or self.terms.stopping()

    def _room(self) -> tuple[int, int]:
        """How many jobs to fetch, and how many of them would begin at once.

        One for each thread, and ``AHEAD_SECONDS`` of work ahead for the threads that are
        not blocked by a longer task. After a suspect job there may be more of them: then
        nothing is prefetched.
        """
        running = self.jobs.at_work()
        now = time.monotonic()
        blocked = [
            task
            for task in running
            if task.cancelled or is_over(task.seconds_running(now), AHEAD_SECONDS)
        ]
        threads = self.terms.concurrency - len(blocked)
        ahead = int(threads * AHEAD_SECONDS / max(self.jobs.pace, 0.001))
        wanted = max(threads, min(ahead, 2 * MAX_AT_ONCE))
        held = len(self.jobs.held) - sum(task in self.jobs.held for task in blocked)
        room = wanted - held
        if held > threads and room < wanted / 2:
            # Few large claims, not many small ones.
            room = 0
        lost = sum(task not in self.jobs.held for task in running)
        free = self.terms.concurrency - lost - sum(not task.ended for task in self.jobs.held)
        return min(room, free) if self.suspects else room, free

    def _claim(self) -> bool:
        """Claim once there is room; False when there is nothing more to do."""
        with self.jobs.lock:
            room, free = self._room()
            if room <= 0:
                self.jobs.freed.wait(0.2)
                return True
            # A task that lost its job has a moment to return.
            idle = not self.jobs.held and self.jobs.lost.issuperset(self.jobs.at_work())
        begin = room <= free and not self.suspects
        wait_seconds = 0 if self.terms.until_idle else WAIT_SECONDS
        asked_at = time.monotonic()
        try:
            with bounded(self._claim_bounds()):
                jobs = self.terms.client.claim(
                    self.terms.workspace_id,
                    job_types=self.job_types,
                    limit=min(room, MAX_AT_ONCE),
                    lease_seconds=self.terms.lease_seconds,
                    worker=self.terms.name,
                    wait_seconds=wait_seconds,
                    begin=begin,
                )
        except (Unreachable, JobApiError) as error:
            if not may_pass(error):
                raise
            self._bear(error)
            return True
        self.answered_at = time.monotonic()
        self.suspects = not begin and any(job.begun for job in jobs)
        if jobs:
            self.empty = 0
            self.jobs.take([Task(job) for job in jobs])
        elif self.terms.until_idle and idle:
            return False
        else:
            self._pause_after_nothing(time.monotonic() - asked_at, wait_seconds, jobs.retry_after)
        return True

    def _claim_bounds(self) -> Bounds:
        deadline = self.answered_at + AWAY_SECONDS if self.terms.until_idle else math.inf
        return Bounds(deadline, self.terms.request_seconds + WAIT_SECONDS, self.must_close)

    def _bear(self, error: Unreachable | JobApiError) -> None:
        """Pause after a claim that may succeed later."""
        if self.must_close():
            return
        away = time.monotonic() - self.answered_at
        if self.terms.until_idle and is_over(away, AWAY_SECONDS - 1):
            raise error
        logger.warning("cannot claim: %s", error)
        self._rest(jittered(max(1.0, asked_pause(error))))

    def _pause_after_nothing(self, took: float, wait_seconds: float, asked: float | None) -> None:
        early = took < wait_seconds - 0.5 or not wait_seconds
        if not early and asked is None:
            self.empty = 0
            return
        self.empty += 1
        if asked is None:
            asked = min(MAX_PAUSE_SECONDS, 0.05 * 2.0 ** min(self.empty, 10))
        self._rest(jittered(min(asked, MAX_RETRY_AFTER)))

    def _rest(self, seconds: float) -> None:
        """Pause between claims; when it runs until idle, only while jobs are held."""
        end = time.monotonic() + seconds
        had = bool(self.jobs.held)
        while not self.must_close() and 0 < (left := end - time.monotonic()) <= seconds:
            if self.terms.until_idle and had and not self.jobs.held:
                return
            time.sleep(min(left, 0.1))
