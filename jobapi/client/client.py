"""The client of programs that create jobs, watch and control them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Unpack, cast
from urllib.parse import quote
from uuid import uuid4

from .. import errors
from ..rules.job_logs import MAX_ENTRIES as MAX_LOG_ENTRIES
from ..rules.job_logs import shorten
from .connection import JSON_BODY, Connection, decode, encode
from .event_stream import follow
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
    Schedule,
    ScheduleChanges,
    ScheduleFields,
    Webhook,
    WebhookSettings,
    WorkerInfo,
    Workspace,
)
from .polling import poll, progress_bar
from .retries import Unreachable, retry_after
from .tracing import trace_headers

MAX_BATCH = 1000
"""How many jobs the service creates in one request."""

MAX_BATCH_BYTES = 1_000_000
"""The size of a batch; the service takes 1 MiB unless ``JOBAPI_MAX_BODY_BYTES`` changes it."""


MAX_LOG_BYTES = 500_000
"""The size of a request with log entries."""


# The filters that an operation takes only as lists.
_LISTS = (
    "status",
    "job_type",
    "priority",
    "job_id",
    "error_group",
    "concurrency_key",
    "unique_key",
    "schedule_id",
)


class Client(Connection):
    """Calls one service as one caller; threads and forked processes may share it.

    Give either a ``token`` (an API key, ``jk_…``, or an access token), or ``username`` and
    ``password``: then it logs in with the first request, and again when its session has ended.
    ``timeout`` is the time limit of each request in seconds.

    Connection errors and the statuses 429, 502, 503 and 504 are retried up to ``retries``
    times, with an exponential backoff of at most 10 seconds. A ``Retry-After`` of up to a
    minute is respected; a longer one raises the error. A request that may have been carried
    out is repeated only if that is safe: reads, reports, and requests with an
    ``Idempotency-Key`` (creates, claims and operations). ``transport`` is a transport of
    httpx2, for tests.
    """

    # Jobs

    def create(
        self,
        workspace_id: int,
        job_type: str,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[NewJob],
    ) -> Job:
        """Create a job. ``NewJob`` documents the fields.

        Returns the live job if there is one with the same ``unique_key``: see ``Job.existing``.
        Raises ``JobExists``, and ``QueueFull`` if the type has ``max_pending`` pending jobs.
        """
        body = {"workspace_id": workspace_id, "job_type": job_type, **_json_values(fields)}
        key = idempotency_key or _new_key()
        made = self._post(_path(workspace_id, "jobs"), body, key=key, headers=trace_headers())
        return Job.from_json(made)

    def create_many(
        self,
        workspace_id: int,
        items: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
    ) -> list[Job]:
        """Create any number of jobs and return them in the same order.

        ``items`` are the bodies of creates; they may leave out ``workspace_id``. They are sent
        in batches of up to 1,000 jobs and 1 MB, or smaller ones if the service takes less. Each
        batch is created as a whole or not at all. With an ``idempotency_key`` (1 to 255
        characters) the call can be repeated with the same items within 24 hours: it creates
        only the jobs that are missing.

        Raises what ``request`` raises. The error's attribute ``created`` has the jobs of the
        batches that were created before.
        """
        key = idempotency_key or _new_key()
        texts = [encode(item) for item in items]
        created: list[Job] = []
        start, max_bytes = 0, MAX_BATCH_BYTES
        while start < len(texts):
            end, size = _batch(texts, start, max_bytes)
            # A key identifies one request, so each of several batches gets a key of its own.
            whole = (start, end) == (0, len(texts))
            part = key if whole else hashlib.sha256(f"{key}:{start}-{end}".encode()).hexdigest()
            try:
                created += self._create_batch(workspace_id, texts[start:end], part)
            except (errors.JobApiError, Unreachable) as error:
                if isinstance(error, errors.BodyTooLarge) and end - start > 1:
                    max_bytes = size // 2
                    continue
                error.created = list(created)
                raise
            start = end
        return created

    def _create_batch(self, workspace_id: int, texts: Sequence[bytes], key: str) -> Iterator[Job]:
        body = b'{"jobs":[%b]}' % b",".join(texts)
        path = _path(workspace_id, "jobs", "batch")
        answer = self._post(path, body, key=key, headers=trace_headers())
        return map(Job.from_json, answer["data"])

    def get(self, workspace_id: int, job_id: str) -> Job:
        """Read a job."""
        return Job.from_json(self.request("GET", _path(workspace_id, "jobs", job_id)))

    def jobs(
        self,
        workspace_id: int,
        *,
        sort: str = "created_at",
        order: str = "asc",
        page_size: int = 100,
        light: bool = False,
        **filters: Unpack[JobFilter],
    ) -> Iterator[Job]:
        """Iterate over all jobs that match every filter, by default the oldest first.

        Pages are read as they are needed. Jobs that are created meanwhile neither hide a job
        nor repeat one. ``light`` leaves out ``metadata`` and ``result``,
        and adds the progress, the worker and the cause of the error.
        """
        params = _json_values(filters)
        for path, value in params.pop("metadata", {}).items():
            params[f"metadata.{path}"] = value if isinstance(value, str) else encode(value).decode()
        params |= {"sort": sort, "order": order, "limit": page_size}
        if light:
            params["light"] = "true"
        return map(Job.from_json, self._pages(_path(workspace_id, "jobs"), params))

    def job_errors(
        self, workspace_id: int, *, job_type: str | Sequence[str] = (), limit: int = 50
    ) -> list[ErrorGroup]:
        """Read the groups of failed jobs by type and cause, the largest first."""
        params = {"job_type": job_type, "limit": limit}
        answer = self.request("GET", _path(workspace_id, "jobs", "errors"), params=params)
        return [ErrorGroup.from_json(group) for group in answer["data"]]

    def status(self, workspace_id: int, job_id: str) -> Progress:
        """Read a job's status and progress."""
        path = _path(workspace_id, "jobs", job_id, "status")
        return Progress.from_json(self.request("GET", path))

    def result(self, workspace_id: int, job_id: str) -> dict[str, Any] | None:
        """Read the result of a job that has ended. Raises ``JobNotEnded``."""
        answer = self.request("GET", _path(workspace_id, "jobs", job_id, "result"))
        result: dict[str, Any] | None = answer["result"]
        return result

    def edit(self, workspace_id: int, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Change a job; ``changes`` is the body of the ``PATCH``."""
        path = _path(workspace_id, "jobs", job_id)
        return Job.from_json(self.request("PATCH", path, json=changes))

    def cancel(self, workspace_id: int, job_id: str, *, reason: str | None = None) -> Job:
        """Cancel a job. Raises ``JobNotCancellable``."""
        path = _path(workspace_id, "jobs", job_id, "cancel")
        return Job.from_json(self._post(path, {"reason": reason}))

    def retry(self, workspace_id: int, job_id: str, *, reason: str | None = None) -> Job:
        """Retry a failed or cancelled job. Raises ``JobNotRetryable``."""
        path = _path(workspace_id, "jobs", job_id, "retry")
        return Job.from_json(self._post(path, {"reason": reason}))

    def delete(self, workspace_id: int, job_id: str) -> None:
        """Delete a job that has ended. Raises ``JobNotEnded``."""
        self.request("DELETE", _path(workspace_id, "jobs", job_id), safe=False)

    def attempts(self, workspace_id: int, job_id: str) -> list[Attempt]:
        """Read all attempts at a job."""
        answer = self.request("GET", _path(workspace_id, "jobs", job_id, "attempts"))
        return [Attempt.from_json(attempt) for attempt in answer["data"]]

    def logs(
        self,
        workspace_id: int,
        job_id: str,
        *,
        order: str = "asc",
        page_size: int = 1000,
        **filters: Unpack[LogFilter],
    ) -> Iterator[LogEntry]:
        """Iterate over the entries of a job's log, by default the oldest first."""
        params = {**_json_values(filters), "order": order, "limit": page_size}
        path = _path(workspace_id, "jobs", job_id, "logs")
        return map(LogEntry.from_json, self._pages(path, params))

    def follow_logs(
        self,
        workspace_id: int,
        job_id: str,
        *,
        poll_seconds: float = 1.0,
        **filters: Unpack[LogFilter],
    ) -> Iterator[LogEntry]:
        """Yield the entries of a job's log, and new ones as they come, until the job has ended.

        Asks every ``poll_seconds`` and tolerates an outage of five minutes. Raises what ``request``
        raises.
        """
        path = _path(workspace_id, "jobs", job_id, "logs")
        params: dict[str, Any] = {**_json_values(filters), "limit": 1000}

        def read() -> tuple[tuple[dict[str, Any], bool], str]:
            # First, so that nothing is logged after the last page is read.
            ended = self.status(workspace_id, job_id).ended
            return (self.request("GET", path, params=params), ended), ""

        while True:
            page, ended = poll(read, timeout=None, poll_seconds=poll_seconds)
            yield from map(LogEntry.from_json, page["data"])
            paging = page["pagination"]
            params["cursor"] = paging["tail_cursor"]
            if paging["next_cursor"] is None:
                if ended:
                    return
                time.sleep(poll_seconds)

    def append_logs(
        self,
        workspace_id: int,
        job_id: str,
        entries: Sequence[NewLogEntry],
        *,
        lease_token: str | None = None,
    ) -> int:
        """Append entries to the log of a running job; returns how many were stored.

        ``entries`` are sent in requests of up to 500 entries and 0.5 MB. A job under a lease needs
        its ``lease_token``. Raises ``JobNotRunning``, ``LeaseRequired``, ``LeaseLost``.
        """
        path = _path(workspace_id, "jobs", job_id, "logs")
        headers = {} if lease_token is None else {"Lease-Token": lease_token}
        texts = [encode({**_json_values(e), "message": shorten(e["message"])[0]}) for e in entries]
        stored = start = 0
        while start < len(texts):
            end, _ = _batch(texts, start, MAX_LOG_BYTES, MAX_LOG_ENTRIES)
            body = b'{"entries":[%b]}' % b",".join(texts[start:end])
            # Entries that are numbered are stored once, however often they are sent.
            safe = all("seq" in entry for entry in entries[start:end])
            answer = self.request("POST", path, json=body, headers=headers, safe=safe)
            stored += answer["stored"]
            start = end
        return stored

    def explain(self, workspace_id: int, job_id: str) -> Explanation:
        """Explain a job's status: what it waits for, or what ended it."""
        path = _path(workspace_id, "jobs", job_id, "explain")
        return Explanation.from_json(self.request("GET", path))

    def wait(
        self,
        job: Job,
        *,
        timeout: float | None = None,
        progress: bool = False,
        poll_seconds: float = 0.5,
    ) -> Job:
        """Wait until a job has ended, and return it.

        Polls every ``poll_seconds`` and tolerates an outage of five minutes. ``progress``
        draws a progress bar on standard error. Raises ``TimeoutError`` after ``timeout``
        seconds.
        """
        with progress_bar(job) if progress else nullcontext(lambda _: None) as show:

            def read() -> tuple[Job | None, str]:
                now = self.status(job.workspace_id, job.job_id)
                show(now)
                ended = self.get(job.workspace_id, job.job_id) if now.ended else None
                return ended, f"The job is still {now.status}."

            return poll(read, timeout=timeout, poll_seconds=poll_seconds)

    # Operations

    def operate(
        self,
        workspace_id: int,
        action: str,
        *,
        reason: str | None = None,
        dry_run: bool = False,
        **filters: Unpack[JobFilter],
    ) -> Operation:
        """``cancel``, ``retry`` or ``delete`` all jobs that match every filter.

        Up to 500 jobs are done when it returns; with more, the service continues, see
        ``wait_for_operation``. ``dry_run`` only counts the jobs that match.
        """
        wanted = _json_values(filters)
        for name in _LISTS:
            if isinstance(wanted.get(name), str):
                wanted[name] = [wanted[name]]
        body = {"action": action, "filter": wanted, "reason": reason, "dry_run": dry_run}
        return Operation.from_json(
            self._post(_path(workspace_id, "operations"), body, key=_new_key())
        )

    def operation(self, workspace_id: int, operation_id: int) -> Operation:
        """Read an operation."""
        path = _path(workspace_id, "operations", operation_id)
        return Operation.from_json(self.request("GET", path))

    def operations(self, workspace_id: int) -> Iterator[Operation]:
        """Iterate over a workspace's operations, the newest first."""
        pages = self._pages(_path(workspace_id, "operations"), {"limit": 100})
        return map(Operation.from_json, pages)

    def stop_operation(self, workspace_id: int, operation_id: int) -> Operation:
        """Stop an operation; the changes it has made stay. Raises ``OperationEnded``."""
        path = _path(workspace_id, "operations", operation_id, "stop")
        return Operation.from_json(self._post(path))

    def wait_for_operation(
        self,
        operation: Operation,
        *,
        timeout: float | None = None,
        poll_seconds: float = 0.5,
        show: Callable[[Operation], None] = lambda operation: None,
    ) -> Operation:
        """Wait until an operation has ended, and return it.

        ``show`` is called with each state that is read. Polls every ``poll_seconds`` and
        tolerates an outage of five minutes. Raises ``TimeoutError`` after ``timeout`` seconds.
        """
        operation_id = operation.operation_id
        if operation.ended or operation_id is None:
            show(operation)
            return operation

        def read() -> tuple[Operation | None, str]:
            now = self.operation(operation.workspace_id, operation_id)
            show(now)
            return now if now.ended else None, f"The operation is still {now.status}."

        return poll(read, timeout=timeout, poll_seconds=poll_seconds)

    def stats(self, workspace_id: int, *, job_type: Sequence[str] = ()) -> dict[str, Any]:
        """Read a workspace's statistics: totals, due jobs, throughput, durations.

        With ``job_type`` they count only jobs of these types.
        """
        params = {"job_type": list(job_type)} if job_type else None
        answer: dict[str, Any] = self.request("GET", _path(workspace_id, "stats"), params=params)
        return answer

    # Schedules

    def create_schedule(
        self,
        workspace_id: int,
        name: str,
        *,
        job: Mapping[str, Any],
        idempotency_key: str | None = None,
        **fields: Unpack[ScheduleFields],
    ) -> Schedule:
        """Create a schedule, whose jobs run as the caller.

        ``job`` is the body of a create, without ``scheduled_at`` and ``expires_at``;
        ``ScheduleFields`` documents the other fields. Raises ``ScheduleNameTaken``,
        ``TooManySchedules``.
        """
        body = {"name": name, "job": job, **_json_values(fields)}
        made = self._post(_schedule(workspace_id), body, key=idempotency_key or _new_key())
        return Schedule.from_json(made)

    def schedules(self, workspace_id: int) -> Iterator[Schedule]:
        """Iterate over a workspace's schedules, the oldest first."""
        pages = self._pages(_schedule(workspace_id), {"limit": 100})
        return map(Schedule.from_json, pages)

    def schedule(self, workspace_id: int, schedule_id: str) -> Schedule:
        """Read a schedule. Raises ``ScheduleNotFound``."""
        return Schedule.from_json(self.request("GET", _schedule(workspace_id, schedule_id)))

    def update_schedule(
        self, workspace_id: int, schedule_id: str, **changes: Unpack[ScheduleChanges]
    ) -> Schedule:
        """Change a schedule; None returns a field to its default.

        Fields that are left out stay as they are. With ``job``, the jobs run as the caller from
        then on, and a suspended schedule continues.
        """
        path = _schedule(workspace_id, schedule_id)
        return Schedule.from_json(self.request("PATCH", path, json=changes))

    def delete_schedule(self, workspace_id: int, schedule_id: str) -> None:
        """Delete a schedule. Its jobs stay."""
        self.request("DELETE", _schedule(workspace_id, schedule_id), safe=False)

    def run_schedule(
        self, workspace_id: int, schedule_id: str, *, idempotency_key: str | None = None
    ) -> Job:
        """Create the schedule's job now, as the caller. ``create`` says what it raises."""
        path = _schedule(workspace_id, schedule_id, "run")
        key = idempotency_key or _new_key()
        return Job.from_json(self._post(path, key=key, headers=trace_headers()))

    def pause_schedule(
        self, workspace_id: int, schedule_id: str, *, reason: str | None = None
    ) -> Schedule:
        """Stop the ticks of a schedule."""
        path = _schedule(workspace_id, schedule_id, "pause")
        return Schedule.from_json(self._post(path, {"reason": reason}))

    def resume_schedule(self, workspace_id: int, schedule_id: str) -> Schedule:
        """Let a paused or suspended schedule continue from now."""
        return Schedule.from_json(self._post(_schedule(workspace_id, schedule_id, "resume")))

    # Job types, workspaces and workers

    def job_types(self, workspace_id: int) -> Iterator[JobType]:
        """Iterate over the job types that have jobs or settings, by name."""
        pages = self._pages(_path(workspace_id, "job-types"), {"limit": 100})
        return map(JobType.from_json, pages)

    def job_type(self, workspace_id: int, name: str) -> JobType:
        """Read a job type. Raises ``JobTypeNotFound`` if it has no jobs and no settings."""
        return JobType.from_json(self.request("GET", _path(workspace_id, "job-types", name)))

    def set_job_type(
        self, workspace_id: int, name: str, **settings: Unpack[JobTypeSettings]
    ) -> JobType:
        """Change settings of a job type; None returns one to its default.

        ``JobTypeSettings`` documents the settings. Those that are left out stay as they are. The
        type need not have jobs.
        """
        changes = {
            key: value.to_json() if isinstance(value, RateLimit) else value
            for key, value in settings.items()
        }
        path = _path(workspace_id, "job-types", name)
        return JobType.from_json(self.request("PATCH", path, json=changes))

    def pause_job_type(self, workspace_id: int, name: str, *, reason: str | None = None) -> JobType:
        """Stop handing out jobs of a type. Running jobs continue."""
        path = _path(workspace_id, "job-types", name, "pause")
        return JobType.from_json(self._post(path, {"reason": reason}))

    def resume_job_type(self, workspace_id: int, name: str) -> JobType:
        """Hand out jobs of a type again."""
        path = _path(workspace_id, "job-types", name, "resume")
        return JobType.from_json(self._post(path))

    def pause_workspace(self, workspace_id: int, *, reason: str | None = None) -> Workspace:
        """Stop handing out jobs of a workspace. Running jobs continue.

        An API key cannot pause or resume a workspace: raises ``KeyNotAllowed``.
        """
        return Workspace.from_json(self._post(_path(workspace_id, "pause"), {"reason": reason}))

    def resume_workspace(self, workspace_id: int) -> Workspace:
        """Hand out jobs of a workspace again."""
        return Workspace.from_json(self._post(_path(workspace_id, "resume")))

    def workers(self, workspace_id: int, *, state: str | None = None) -> Iterator[WorkerInfo]:
        """Iterate over the workers that have claimed jobs within the last day, by name.

        With ``state``, only those that are ``live``, or ``gone``.
        """
        only = {} if state is None else {"state": state}
        pages = self._pages(_path(workspace_id, "workers"), {"limit": 100, **only})
        return map(WorkerInfo.from_json, pages)

    # Webhooks

    def webhooks(self, workspace_id: int) -> Iterator[Webhook]:
        """Iterate over the webhooks of a workspace, the oldest first."""
        pages = self._pages(_path(workspace_id, "webhooks"), {"limit": 100})
        return map(Webhook.from_json, pages)

    def webhook(self, workspace_id: int, webhook_id: str) -> Webhook:
        """Read a webhook. Raises ``WebhookNotFound``."""
        path = _path(workspace_id, "webhooks", webhook_id)
        return Webhook.from_json(self.request("GET", path))

    def create_webhook(
        self, workspace_id: int, url: str, **settings: Unpack[WebhookSettings]
    ) -> Webhook:
        """Create a webhook, which gets the events from now on. Its ``secret`` is shown only now.

        ``WebhookSettings`` documents the settings. Raises ``TooManyWebhooks``.
        """
        body = {"url": url, **settings}
        made = self._post(_path(workspace_id, "webhooks"), body, key=_new_key())
        return Webhook.from_json(made)

    def edit_webhook(
        self,
        workspace_id: int,
        webhook_id: str,
        *,
        url: str | None = None,
        **settings: Unpack[WebhookSettings],
    ) -> Webhook:
        """Change settings of a webhook. Those that are left out stay as they are.

        One that is enabled again gets the events from then on.
        """
        changes = {**settings, **({} if url is None else {"url": url})}
        path = _path(workspace_id, "webhooks", webhook_id)
        return Webhook.from_json(self.request("PATCH", path, json=changes))

    def delete_webhook(self, workspace_id: int, webhook_id: str) -> None:
        """Delete a webhook and its deliveries."""
        self.request("DELETE", _path(workspace_id, "webhooks", webhook_id))

    def rotate_webhook_secret(self, workspace_id: int, webhook_id: str) -> Webhook:
        """Give a webhook a new ``secret``; the previous one stays valid for 24 hours."""
        path = _path(workspace_id, "webhooks", webhook_id, "rotate-secret")
        return Webhook.from_json(self._post(path, key=_new_key()))

    def test_webhook(self, workspace_id: int, webhook_id: str) -> Delivery:
        """Send a message of the type ``webhook.test``; see ``delivery`` for its result.

        Raises ``WebhookDisabled``, and ``TooManyRequests`` after ten in a minute.
        """
        path = _path(workspace_id, "webhooks", webhook_id, "test")
        return Delivery.from_json(self._post(path, key=_new_key()))

    def deliveries(
        self, workspace_id: int, webhook_id: str, *, status: Sequence[str] = ()
    ) -> Iterator[Delivery]:
        """Iterate over the deliveries of a webhook, the newest first."""
        params: dict[str, Any] = {"limit": 100}
        if status:
            params["status"] = list(status)
        path = _path(workspace_id, "webhooks", webhook_id, "deliveries")
        return map(Delivery.from_json, self._pages(path, params))

    def delivery(self, workspace_id: int, webhook_id: str, delivery_id: str) -> Delivery:
        """Read a delivery. Raises ``DeliveryNotFound``."""
        path = _path(workspace_id, "webhooks", webhook_id, "deliveries", delivery_id)
        return Delivery.from_json(self.request("GET", path))

    def redeliver(self, workspace_id: int, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with all retries. Raises ``WebhookDisabled``."""
        path = _path(workspace_id, "webhooks", webhook_id, "deliveries", delivery_id, "redeliver")
        return Delivery.from_json(self._post(path, key=_new_key()))

    # Events

    def events(
        self,
        workspace_id: int,
        *,
        order: str = "desc",
        page_size: int = 100,
        **filters: Unpack[EventFilter],
    ) -> Iterator[Event]:
        """Iterate over past events that match every filter, by default the newest first."""
        params = {**_json_values(filters), "order": order, "limit": page_size}
        return map(Event.from_json, self._pages(_path(workspace_id, "events"), params))

    def follow(
        self, workspace_id: int, *, after: str | None = None, **filters: Unpack[EventFilter]
    ) -> Generator[Event]:
        """Yield new events that match every filter as soon as they happen, without an end.

        ``after`` is the ``stream_id`` of the last event of an earlier stream; without it, the
        stream starts now. It resumes after lost connections and restarts of the service
        without losing events. Raises what ``request`` raises; once it is open, only errors
        that do not pass by themselves, such as lost access. End it with ``close()``.
        """
        path, params = _path(workspace_id, "events", "stream"), _json_values(filters)
        events = follow(lambda position: self._open_stream(path, params, position), after)
        # Open the stream now, not when the first event is asked for.
        next(events)
        return cast("Generator[Event]", events)

    # Work

    def claim(
        self,
        workspace_id: int,
        *,
        job_types: Sequence[str] | None = None,
        limit: int = 1,
        lease_seconds: int = 60,
        worker: str | None = None,
        wait_seconds: int = 0,
        begin: bool = True,
        prefetch: int = 0,
    ) -> ClaimedJobs:
        """Lease up to ``limit`` due jobs; wait up to ``wait_seconds`` for the first one.

        With ``begin=False``, for workers that prefetch, an attempt begins with the first
        report that says ``begun`` or has progress, a result or an error. ``prefetch`` is how many
        of ``limit`` cannot begin yet: none of these is of a type with a limit.
        """
        body = {
            "job_types": None if job_types is None else list(job_types),
            "limit": limit,
            "lease_seconds": lease_seconds,
            "worker": worker,
            "wait_seconds": wait_seconds,
        }
        if not begin:
            body["begin"] = False
        if prefetch:
            body["prefetch"] = prefetch
        headers = {**JSON_BODY, "Idempotency-Key": _new_key()}
        path = _path(workspace_id, "jobs", "claim")
        response = self._send("POST", path, encode(body), headers=headers, safe=True)
        jobs = map(ClaimedJob.from_json, decode(response)["data"])
        return ClaimedJobs(jobs, retry_after=retry_after(response.headers))

    def report(
        self, workspace_id: int, reports: Sequence[Mapping[str, Any]] | bytes
    ) -> list[dict[str, Any]]:
        """Report on up to 100 leased jobs; the answers are in the same order.

        ``reports`` may be bytes: a JSON array.
        """
        body = b'{"reports":%b}' % (reports if isinstance(reports, bytes) else encode([*reports]))
        # Safe: the service applies a repeated report only once.
        path = _path(workspace_id, "jobs", "report")
        answer = self.request("POST", path, json=body, safe=True)
        answers: list[dict[str, Any]] = answer["data"]
        return answers


def _path(workspace_id: int, *parts: str | int) -> str:
    names = [quote(str(part), safe=":") for part in parts]
    if not {".", ".."}.isdisjoint(names):
        # The path would lead to another resource.
        raise ValueError("'.' and '..' are not names.")
    return "/".join(["/workspace", str(workspace_id), *names])


def _schedule(workspace_id: int, *parts: str) -> str:
    return _path(workspace_id, "schedules", *parts)


def _new_key() -> str:
    return uuid4().hex


def _json_values(
    given: JobFilter | EventFilter | LogFilter | NewJob | NewLogEntry | ScheduleFields,
) -> dict[str, Any]:
    """Filters or fields as JSON values, without those that are None or empty."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in given.items()
        if value is not None and value != ()
    }


def _batch(
    texts: Sequence[bytes], start: int, max_bytes: int, most: int = MAX_BATCH
) -> tuple[int, int]:
    """The end and size of the batch that begins at ``start``; it has at least one item."""
    end, size = start + 1, len(texts[start])
    while end < min(start + most, len(texts)) and size + len(texts[end]) + 1 <= max_bytes:
        size += len(texts[end]) + 1
        end += 1
    return end, size
