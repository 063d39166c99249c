"""The Python client: ``Client`` creates and controls jobs, ``Worker`` runs them.

It uses plain HTTP and needs neither Flask nor the database. It raises the exceptions of
``jobapi.errors``, and ``Unreachable`` if the service does not answer.
"""

from .client import Client
from .models import (
    Attempt,
    ClaimedJob,
    ClaimedJobs,
    Delivery,
    ErrorGroup,
    Event,
    EventFilter,
    Explanation,
    Job,
    JobFilter,
    JobType,
    JobTypeSettings,
    LogEntry,
    LogFilter,
    NewJob,
    NewLogEntry,
    Operation,
    Progress,
    RateLimit,
    Reason,
    Schedule,
    ScheduleChanges,
    ScheduleFields,
    ScheduleRun,
    Webhook,
    WebhookSettings,
    WorkerInfo,
    Workspace,
)
from .retries import Unreachable
from .runner import ThreadsLost
from .tasks import Permanent, Task
from .worker import Worker

__all__ = [
    "Attempt",
    "ClaimedJob",
    "ClaimedJobs",
    "Client",
    "Delivery",
    "ErrorGroup",
    "Event",
    "EventFilter",
    "Explanation",
    "Job",
    "JobFilter",
    "JobType",
    "JobTypeSettings",
    "LogEntry",
    "LogFilter",
    "NewJob",
    "NewLogEntry",
    "Operation",
    "Permanent",
    "Progress",
    "RateLimit",
    "Reason",
    "Schedule",
    "ScheduleChanges",
    "ScheduleFields",
    "ScheduleRun",
    "Task",
    "ThreadsLost",
    "Unreachable",
    "Webhook",
    "WebhookSettings",
    "Worker",
    "WorkerInfo",
    "Workspace",
]
