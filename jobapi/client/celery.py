"""Celery behind jobapi: a team's own Celery application runs the jobs.

The application imports this module, and changes nothing else. A ``Dispatcher`` claims jobs and
sends a message for each to a task of the application: the job's metadata are the task's keyword
arguments. In the Celery worker, the run of such a message begins the attempt, renews the lease,
and reports how the task ended. Other messages run as before.

The Celery worker needs ``JOBAPI_URL`` and ``JOBAPI_TOKEN`` in its environment; the token is in no
message. A message that is delivered twice, or after its lease has expired, is ignored.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any
from weakref import WeakSet

import celery
from billiard.process import current_process
from celery import signals
from celery.exceptions import Ignore, Retry
from kombu.exceptions import OperationalError

from .capture import capturing
from .client import Client
from .leased_jobs import RELEASE, with_end
from .models import ClaimedJob
from .options import End, Engine
from .retries import backoff
from .runs import Run, hand_over
from .slots import error_text, failure, success
from .tasks import Report, Task, current_task, running
from .tracing import is_recording, span
from .worker import Worker

HEADER = "jobapi"
"""The header of a message that has the workspace, the job and its lease."""

MAX_RETRY_AFTER = 86_400
"""The longest ``retry_after`` of a report, in seconds."""

logger = logging.getLogger("jobapi.worker")


def current_job() -> Task | None:
    """The job that the current Celery task runs, to report progress; None outside of a job."""
    return current_task()


class Dispatcher(Worker):
    """Claims jobs and hands them to a Celery application; run it like a ``Worker``.

    ``tasks`` maps job types to names of Celery tasks. ``app.conf`` decides on queues and routes.
    With ``capture_logs``, what the tasks log with Python's ``logging`` goes into their jobs' logs.
    ``concurrency`` is how many messages may wait for a Celery worker at a time: jobs are claimed
    by priority, but a broker delivers in its own order. A message that no Celery worker has taken
    for ``requeue_seconds`` is revoked, and its job released: it may have been lost.
    """

    def __init__(
        self,
        app: celery.Celery,
        tasks: Mapping[str, str],
        client: Client | None = None,
        workspace_id: int | None = None,
        *,
        name: str | None = None,
        concurrency: int = 100,
        lease_seconds: int = 60,
        grace_seconds: float = 20.0,
        requeue_seconds: float = 300.0,
        capture_logs: bool = False,
    ) -> None:
        super().__init__(
            client,
            workspace_id,
            name=name,
            concurrency=concurrency,
            lease_seconds=lease_seconds,
            grace_seconds=grace_seconds,
            capture_logs=capture_logs,
        )
        self.app = app
        self.requeue_seconds = requeue_seconds
        self.celery_tasks = dict(tasks)
        for job_type in tasks:
            self.task(job_type)(_elsewhere)

    @property
    def hands_over(self) -> bool:
        """True: Celery runs the jobs."""
        return True

    @contextmanager
    def _engine(self, client: Client, workspace_id: int) -> Iterator[Engine]:
        yield _CeleryEngine(self, workspace_id)


def _elsewhere(task: Task) -> None:
    raise AssertionError("A dispatcher runs no task itself.")


class _CeleryEngine:
    def __init__(self, dispatcher: Dispatcher, workspace_id: int) -> None:
        self.dispatcher = dispatcher
        self.app = dispatcher.app
        self.workspace_id = workspace_id
        self.waiting: dict[Task, End] = {}
        self.lock = threading.Lock()
        self.available = True

    def start(self, task: Task, end: End) -> None:
        hand_over(task)
        with self.lock:
            self.waiting[task] = end
        task.on_taken = lambda: self._end(task, [])
        task.on_lost = lambda: self._end(task, [], revoke=True)
        tries = 0
        try:
            while task in self.waiting:
                try:
                    self._send(task)
                    return
                except OperationalError as error:
                    self.available = False
                    tries += 1
                    logger.warning("cannot send job %s to Celery: %s", task.job_id, error)
                    self._pause(task, backoff(tries))
                except Exception as error:
                    # Such as metadata that Celery's serializer refuses.
                    self._end(task, [{"status": "failed", "error": error_text(error)}])
        finally:
            # Even if this job is lost or released, so that the next one tries the broker again.
            self.available = True

    def _send(self, task: Task) -> None:
        job = task.job.to_json()
        kwargs = job.pop("metadata") or {}
        # These may be large, and the run needs none of them.
        for name in ("result", "error"):
            job.pop(name)
        lease = {
            "workspace_id": self.workspace_id,
            "lease_seconds": self.dispatcher.lease_seconds,
            "capture_logs": self.dispatcher.capture_logs,
            "job": job,
        }
        self.app.send_task(
            self.dispatcher.celery_tasks[task.job_type],
            kwargs=kwargs,
            task_id=_message_id(task),
            headers={HEADER: lease},
        )

    def _pause(self, task: Task, seconds: float) -> None:
        end = time.monotonic() + seconds
        while task in self.waiting and time.monotonic() < end:
            time.sleep(0.1)

    def _end(self, task: Task, reports: list[Report], *, revoke: bool = False) -> None:
        with self.lock:
            end = self.waiting.pop(task, None)
        if end is None:
            return
        end(task, reports)
        if revoke:
            # In a thread, because a broker that does not answer must not delay heartbeats.
            threading.Thread(
                target=_revoke, args=(self.app, _message_id(task)), daemon=True
            ).start()

    def check(self) -> None:
        """Release jobs whose messages have waited for too long."""
        now = time.monotonic()
        for task in self._waiting():
            if now - (task.handed_over_at or now) > self.dispatcher.requeue_seconds:
                logger.warning("no Celery worker has taken job %s; releasing it", task.job_id)
                self._end(task, [RELEASE], revoke=True)

    def close(self) -> None:
        """Release all jobs whose runs have not begun."""
        for task in self._waiting():
            self._end(task, [RELEASE], revoke=True)

    def _waiting(self) -> list[Task]:
        with self.lock:
            return list(self.waiting)


def _message_id(task: Task) -> str:
    return f"{task.job_id}-{task.attempt}"


def _revoke(app: celery.Celery, message_id: str, *, terminate: bool = False) -> None:
    # If this fails, a run that has not begun is still refused.
    try:
        app.control.revoke(message_id, terminate=terminate)
    except Exception:
        logger.warning("cannot revoke the message %s", message_id, exc_info=True)


# In the Celery worker


def _prepare(sender: Any = None, **_: Any) -> None:
    """Let the tasks of a Celery worker's application take the messages of dispatchers."""
    if not (os.environ.get("JOBAPI_URL") and os.environ.get("JOBAPI_TOKEN")):
        logger.warning("JOBAPI_URL or JOBAPI_TOKEN is not set: jobs of jobapi cannot run here")
    for task in sender.app.tasks.values():
        kind = type(task)
        if kind.__call__ is celery.Task.__call__:
            if task.run not in _taking:
                task.run = _taking_jobs(task.run, task)
        elif kind.__call__ not in _taking:
            # A base class of the application's own, whose `__call__` is part of the task.
            kind.__call__ = _taking_jobs(kind.__call__)


signals.worker_init.connect(_prepare, weak=False)


_taking: WeakSet[Callable[..., Any]] = WeakSet()
"""The functions that ``_taking_jobs`` has made."""


def _taking_jobs(run: Callable[..., Any], task: Any = None) -> Callable[..., Any]:
    """Wrap the function of a task or, without ``task``, the ``__call__`` of a class of tasks."""

    @wraps(run)
    def taking(*args: Any, **kwargs: Any) -> Any:
        this = args[0] if task is None else task
        lease = getattr(this.request, HEADER, None)
        if lease is None or current_job() is not None:
            return run(*args, **kwargs)
        return _run_job(this, lease, kwargs, lambda: run(*args, **kwargs))

    _taking.add(taking)
    return taking


@lru_cache(maxsize=4)
def _client(url: str, token: str) -> Client:
    return Client(url, token=token)


def _run_job(
    task: Any, lease: Mapping[str, Any], metadata: dict[str, Any], call: Callable[[], Any]
) -> Any:
    """Run a task for a job; returns and raises what the task does, for Celery."""
    message_id = task.request.id

    def terminate() -> None:
        # Only a pool of processes can end a task; others go on, and can ask `current_job`.
        _revoke(task.app, message_id, terminate=_in_pool_process())

    run = Run(
        _client(os.environ["JOBAPI_URL"], os.environ["JOBAPI_TOKEN"]),
        lease["workspace_id"],
        ClaimedJob.from_json({**lease["job"], "metadata": metadata, "result": None}),
        lease_seconds=lease["lease_seconds"],
        on_lost=terminate,
    )
    refusal = run.begin()
    if refusal is not None:
        logger.info("message %s is ignored: %s", message_id, refusal.name)
        raise Ignore
    job = run.task
    try:
        with (
            span(job.job, recording=is_recording()),
            running(job),
            capturing(lease.get("capture_logs", False)),
        ):
            value = call()
            reports = success(job, _result(value))
    except Retry as retry:
        # Celery sends another message for it, which will be refused: the job is retried instead.
        end = {"status": "failed", "error": error_text(retry), **_retry_after(retry)}
        run.end(with_end(job.take_reports(), end))
        raise
    except BaseException as error:
        run.end(failure(job, error))
        raise
    run.end(reports)
    return value


def _result(value: Any) -> Mapping[str, Any] | None:
    """A task's return value as the result of a job, which is an object."""
    return value if value is None or isinstance(value, Mapping) else {"result": value}


def _retry_after(retry: Retry) -> dict[str, int]:
    when = retry.when
    if isinstance(when, datetime):
        when = (when - datetime.now(when.tzinfo)).total_seconds()
    return {} if when is None else {"retry_after": max(0, min(math.ceil(when), MAX_RETRY_AFTER))}


def _in_pool_process() -> bool:
    return bool(current_process().name != "MainProcess")
