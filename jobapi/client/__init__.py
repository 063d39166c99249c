"""The Python client: ``Client`` for whoever wants work done, ``Worker`` for whoever does it.

It speaks plain HTTP and knows nothing of Flask. The exceptions are those of
``jobapi.errors``; where no answer comes at all it is ``Unreachable``.
"""

from .http import Client, Unreachable
from .models import Attempt, ClaimedJob, Event, EventFilter, Job, JobFilter, Operation, Progress
from .worker import Permanent, Task, Worker

__all__ = [
    "Attempt",
    "ClaimedJob",
    "Client",
    "Event",
    "EventFilter",
    "Job",
    "JobFilter",
    "Operation",
    "Permanent",
    "Progress",
    "Task",
    "Unreachable",
    "Worker",
]
