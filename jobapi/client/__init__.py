"""The Python client: ``Client`` for whoever wants work done, ``Worker`` for whoever does it.

It speaks plain HTTP and knows nothing of Flask. The exceptions are those of
``jobapi.errors``; where no answer comes at all it is ``Unreachable``.
"""

from .client import Client
from .models import (
    Attempt,
    ClaimedJob,
    ClaimedJobs,
    Event,
    EventFilter,
    Job,
    JobFilter,
    Operation,
    Progress,
)
from .retries import Unreachable
from .shift import ThreadsLost
from .tasks import Permanent, Task
from .worker import Worker

__all__ = [
    "Attempt",
    "ClaimedJob",
    "ClaimedJobs",
    "Client",
    "Event",
    "EventFilter",
    "Job",
    "JobFilter",
    "Operation",
    "Permanent",
    "Progress",
    "Task",
    "ThreadsLost",
    "Unreachable",
    "Worker",
]
