"""Operations: an action on many jobs, and its status."""

from __future__ import annotations

from .jobs import ENDED, STATUS_ORDER, JobStatus
from .labels import Labelled
from .lifecycle import TRANSITIONS


class Action(Labelled):
    """What is done to the jobs."""

    CANCEL = 0
    RETRY = 1
    DELETE = 2

    @property
    def takes(self) -> list[JobStatus]:
        """The statuses of the jobs to which the action can be applied."""
        takes = ENDED if self is Action.DELETE else TRANSITIONS[self.label][0]
        return [status for status in STATUS_ORDER if status in takes]


class OperationStatus(Labelled):
    """The status of an operation."""

    RUNNING = 0
    FINISHED = 1
    STOPPED = 2
