"""What a worker is to do, and its intervals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .client import Client
from .tasks import Report, Task

Result = Mapping[str, Any] | None
Run = Callable[[Task], Result | Awaitable[Result]]
"""The task of a job type: a plain function, or an ``async def``."""

End = Callable[[Task, Sequence[Report]], None]
"""Ends a task in this process with its last reports; none if a run elsewhere has reported."""


class Engine(Protocol):
    """Runs jobs elsewhere, in runs that begin, renew and end their attempts by themselves."""

    available: bool
    """Whether it takes jobs; if not, none are claimed."""

    def start(self, task: Task, end: End) -> None:
        """Hand a job over, and call ``end`` once this process has nothing more to do with it.

        Raises an exception if the engine is broken for good.
        """

    def check(self) -> None:
        """Check the jobs that were handed over; called several times a second."""

    def close(self) -> None:
        """Cancel the jobs that have not begun, because the worker stops."""


@dataclass(frozen=True)
class Timing:
    """Intervals and time limits of a worker, in seconds."""

    claim_wait: int = 5
    """How long a claim waits for a job. A stop may take as long."""

    max_pause: float = 2.0
    """The longest pause between empty claims if the service sends no ``Retry-After``."""

    outage: float = 30.0
    """How long a worker with ``until_idle`` tolerates a service that does not answer."""

    prefetch: float = 0.3
    """How much work to prefetch. A longer task blocks its thread: nothing is prefetched for it."""

    report: float = 0.25
    """The shortest interval of progress reports. A longer task is reported as begun."""

    gather: float = 0.005
    """How long a job that has ended waits for others, to be reported together with them."""

    heartbeat: float = 4.0
    """The longest interval of heartbeats: their answers tell whether a job was cancelled."""

    lost: float = 5.0
    """How long a task may run on after its lease was lost, before that is logged."""

    all_lost: float = 300.0
    """How long all threads may run such tasks before the worker gives up."""


@dataclass(frozen=True)
class Options:
    """What a worker does in one process."""

    client: Client
    workspace_id: int
    tasks: Mapping[str, Run]
    name: str
    concurrency: int
    lease_seconds: int
    grace_seconds: float
    until_idle: bool
    stopping: Callable[[], bool]
    timing: Timing
    engine: Engine | None = None

    @property
    def request_seconds(self) -> float:
        """The time limit of a request: one that hangs must not cost the leases."""
        return max(2.0, self.lease_seconds / 3)
