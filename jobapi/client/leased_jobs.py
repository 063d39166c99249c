"""The jobs that a worker has leased, as its threads share them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .tasks import Report, Task

MAX_BATCH = 100
"""How many jobs a claim returns at most, and how many reports a request can have."""

RELEASE: Report = {"status": "pending"}
"""The report that releases a job: another worker may do it, and no retry is counted."""


@dataclass(eq=False)
class LeasedJobs:
    """The leased jobs of one process: queued for a thread, running, or to be reported.

    Only the thread that takes a task out of ``queued`` reports how it ended.
    """

    concurrency: int
    # Seconds that a job takes, the mean of the last few. It decides how many to claim at once.
    mean_seconds: float
    # The tasks whose leases are held: queued, running, or ended and not reported yet.
    held: set[Task] = field(default_factory=set)
    # None ends a thread.
    queued: queue.SimpleQueue[Task | None] = field(default_factory=queue.SimpleQueue)
    # The task of each thread; a thread writes only its own entry.
    running: list[Task | None] = field(init=False)
    # Tasks that still run a while after their lease was lost.
    stuck: set[Task] = field(default_factory=set)
    # What is to be reported. The last report of an attempt has a status, earlier ones have none.
    reports: deque[tuple[Task, Report]] = field(default_factory=deque)
    # Guards held, reports and the end of a task.
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Set once: no more claims, and queued jobs are released.
    closing: bool = False
    # The first error that does not pass by itself.
    error: BaseException | None = None
    measured: int = 1

    def __post_init__(self) -> None:
        self.running = [None] * self.concurrency
        self.freed = threading.Condition(self.lock)
        self.reports_added = threading.Condition(self.lock)

    def fail(self, error: BaseException) -> None:
        """End all threads with this error, unless there is one already."""
        if self.error is None:
            self.error = error

    def add(self, tasks: Sequence[Task]) -> None:
        """Queue claimed jobs for the threads."""
        with self.lock:
            self.held.update(tasks)
        for task in tasks:
            self.queued.put(task)

    def end(self, task: Task, reports: Sequence[Report]) -> None:
        """Mark a task as ended, with its last reports. A second end of the same task is ignored.

        Without reports, a run in an engine has reported the end, or will.
        """
        with self.lock:
            if task.ended:
                return
            task.ended = True
            if task.cancelled or not reports:
                self.held.discard(task)
                self.freed.notify()
                return
            # An engine's job is not held while its run has the lease.
            self.held.add(task)
            before = len(self.reports)
            for report in reports:
                self.reports.append((task, report))
            if before == 0 or before < MAX_BATCH <= len(self.reports) or self.queued.empty():
                self.reports_added.notify()

    def release_queued(self, rounds: int = 0) -> None:
        """Release the jobs that have been queued for this many rounds of the reporter."""
        kept: list[Task | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                task = self.queued.get_nowait()
                if task is None or task.rounds_queued < rounds:
                    kept.append(task)
                else:
                    self.end(task, [RELEASE])
        for task in kept:
            self.queued.put(task)

    def running_tasks(self) -> list[Task]:
        """The tasks that the threads run, including those whose lease is lost."""
        return [task for task in self.running if task is not None]

    def unfinished(self) -> list[Task]:
        """The jobs that have not ended: those that are held, and those that an engine runs."""
        with self.lock:
            tasks = self.held.union(task for task in self.running_tasks() if task.taken)
            return [task for task in tasks if not task.ended]

    def measure(self, seconds: float) -> None:
        """Include the duration of a job in ``mean_seconds``."""
        # Negative if the clock was set back.
        if seconds >= 0:
            self.measured = min(self.measured + 1, 8)
            self.mean_seconds += (seconds - self.mean_seconds) / self.measured


def is_over(elapsed: float, seconds: float) -> bool:
    """Whether ``seconds`` have passed, by a clock that may jump."""
    # If it was set back, act at once: a lease must not expire meanwhile.
    return not 0 <= elapsed < seconds


def with_end(reports: list[Report], end: Report) -> list[Report]:
    """The reports of an attempt, the last of them merged with its end."""
    return [*reports[:-1], {**reports[-1], **end}] if reports else [end]
