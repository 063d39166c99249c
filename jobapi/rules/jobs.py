"""What a job is: its statuses, its priorities, and how its attempts end."""

from __future__ import annotations

from .labels import Labelled

JOB_TYPE_PATTERN = r"[A-Za-z0-9_.:\-]{1,100}"
JOB_TYPE_RULE = "Use 1 to 100 letters, digits and the characters _ . : -"
DEFAULT_MAX_RETRIES = 3
MAX_RETRIES_LIMIT = 100


class JobStatus(Labelled):
    """The states of a job. The database stores the numbers."""

    PENDING = 0
    RUNNING = 1
    SUCCESS = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def ended(self) -> bool:
        """Whether the job has reached an end."""
        return self in ENDED


ENDED = frozenset({JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.CANCELLED})
"""The statuses in which a job has reached an end."""

STATUS_ORDER = (
    JobStatus.PENDING,
    JobStatus.RUNNING,
    JobStatus.SUCCESS,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
)
"""The order of ``sort=status``. Lists read an index that sorts by number, so the numbers ascend."""


class Priority(Labelled):
    """How soon a job is wanted; the number is its rank."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class Outcome(Labelled):
    """How an attempt ended."""

    SUCCESS = 0
    FAILED = 1
    CANCELLED = 2
    RELEASED = 3
    EXPIRED = 4
    TIMED_OUT = 5
