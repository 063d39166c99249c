"""The jobs that a worker holds, as its threads share them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .client import Client
from .tasks import Report, Task

MAX_AT_ONCE = 100
"""How many jobs the service gives in one claim, and takes in one report."""

AHEAD_SECONDS = 0.3
"""How much work to prefetch. A longer task blocks its thread, for which none is prefetched."""

HANDED_BACK: Report = {"status": "pending"}

Run = Callable[[Task], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Terms:
    """What a worker does in one process, and for whom."""

    client: Client
    workspace_id: int
    tasks: Mapping[str, Run]
    name: str
    concurrency: int
    lease_seconds: int
    grace_seconds: float
    until_idle: bool
    stopping: Callable[[], bool]

    @property
    def request_seconds(self) -> float:
        """The time limit of a request: one that hangs must not lose the leases."""
        return max(2.0, self.lease_seconds / 3)


@dataclass(eq=False)
class Holding:
    """The jobs under leases of one process: waiting for a thread, running, or to be reported.

    Only the thread that takes a task out of ``waiting`` reports how it ended.
    """

    concurrency: int
    # The tasks whose leases are held: waiting, running or not reported yet.
    held: set[Task] = field(default_factory=set)
    waiting: queue.SimpleQueue[Task | None] = field(default_factory=queue.SimpleQueue)
    # What each thread runs; a thread writes only its own entry.
    running: list[Task | None] = field(init=False)
    # Tasks that lost their job a while ago, and have not returned.
    lost: set[Task] = field(default_factory=set)
    # What is to be reported. A last report has a status; news of a task have none.
    reports: deque[tuple[Task, Report]] = field(default_factory=deque)
    # Guards held, reports and how a task ended.
    lock: threading.Lock = field(default_factory=threading.Lock)
    # No more claims; what waits is handed back.
    closing: bool = False
    # The first permanent failure.
    error: BaseException | None = None
    # Seconds that a job takes, the mean of the last few: how many to claim at once. Before
    # the first job, so long that none is prefetched.
    pace: float = AHEAD_SECONDS
    few: int = 1

    def __post_init__(self) -> None:
        self.running = [None] * self.concurrency
        self.freed = threading.Condition(self.lock)
        self.to_report = threading.Condition(self.lock)

    def fail(self, error: BaseException) -> None:
        """End all threads with this error, unless there is one already."""
        if self.error is None:
            self.error = error

    def take(self, tasks: Sequence[Task]) -> None:
        """Give jobs that were claimed to the threads."""
        with self.lock:
            self.held.update(tasks)
        for task in tasks:
            self.waiting.put(task)

    def end(self, task: Task, reports: Sequence[Report]) -> None:
        """Mark a task as ended, with its last reports; later reports of it do not count."""
        with self.lock:
            if task.ended:
                return
            task.ended = True
            if task.cancelled:
                self.held.discard(task)
                self.freed.notify()
                return
            before = len(self.reports)
            for report in reports:
                self.reports.append((task, report))
            if before == 0 or before < MAX_AT_ONCE <= len(self.reports) or self.waiting.empty():
                self.to_report.notify()

    def hand_back(self, looks: int = 0) -> None:
        """Hand back jobs that the reporter has seen waiting this many times."""
        kept: list[Task | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                task = self.waiting.get_nowait()
                if task is None or task.looks < looks:
                    kept.append(task)
                else:
                    self.end(task, [HANDED_BACK])
        for task in kept:
            self.waiting.put(task)

    def at_work(self) -> list[Task]:
        """What the threads run, also if its lease is lost."""
        return [task for task in self.running if task is not None]

    def unended(self) -> list[Task]:
        """The jobs that are held and have not ended."""
        with self.lock:
            return [task for task in self.held if not task.ended]

    def measure(self, seconds: float) -> None:
        """Note how long a job took."""
        # Ignore a clock that went back.
        if seconds >= 0:
            self.few = min(self.few + 1, 8)
            self.pace += (seconds - self.pace) / self.few


def is_over(passed: float, seconds: float) -> bool:
    """Whether a time is over, by a clock that may jump."""
    # One that goes back must not keep a lease from being renewed.
    return not 0 <= passed < seconds


def last(news: list[Report], report: Report) -> list[Report]:
    """Reports of which the last one ends the attempt."""
    return [*news[:-1], {**news[-1], **report}] if news else [report]
