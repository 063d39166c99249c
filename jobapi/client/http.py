"""The client of programs that want work done."""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, TypeVar, Unpack, cast

import httpx2
import orjson

from .. import errors
from .connection import JSON_BODY, Connection, read, written
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
from .retries import Bounds, Unreachable, asked_pause, bounded, may_pass, pause, retry_after
from .tracing import trace_headers

HELD_SECONDS = 5.0
"""How long a stream holds that did not fail."""

BATCH = 1000
"""How many jobs the service creates in one request."""

BATCH_BYTES = 1_000_000
"""How large a request with many jobs is; the service takes 1 MiB unless it is set up otherwise."""

OUTAGE_SECONDS = 300.0
"""For how long ``wait`` and ``wait_for_operation`` bear a service that does not answer well."""

T = TypeVar("T")


class Client(Connection):
    """Talks to one service as one caller; threads and forked processes may share it.

    With a ``token`` (an API key, ``jk_…``, or an access token), or with
    ``username`` and ``password``, with which it logs in when first needed and
    again when its log-in has ended. ``timeout`` is in seconds, for each answer.

    Connection errors and the answers 429, 502, 503 and 504 are tried again up to
    ``retries`` times, with growing pauses of 10 seconds at most. A ``Retry-After``
    of up to a minute is waited for; after a longer one the error is raised. What
    may have been carried out is only repeated where that does no harm: reads,
    reports, and creates, claims and operations, which carry an
    ``Idempotency-Key``. ``transport`` is httpx2's, for tests.
    """

    # Jobs

    def create(
        self,
        workspace_id: int,
        job_type: str,
        *,
        priority: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        estimated_duration: int | None = None,
        scheduled_at: datetime | None = None,
        max_retries: int | None = None,
        timeout_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Create a job. Durations are in seconds, ``scheduled_at`` needs an offset."""
        body = {
            "job_type": job_type,
            "workspace_id": workspace_id,
            "priority": priority,
            "metadata": metadata,
            "estimated_duration": estimated_duration,
            "scheduled_at": None if scheduled_at is None else scheduled_at.isoformat(),
            "max_retries": max_retries,
            "timeout_seconds": timeout_seconds,
        }
        body = {name: value for name, value in body.items() if value is not None}
        key = idempotency_key or _key()
        made = self._post(_jobs(workspace_id), body, key=key, headers=trace_headers())
        return Job.from_json(made)

    def create_many(
        self,
        workspace_id: int,
        items: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
    ) -> list[Job]:
        """Create any number of jobs; the answer has their order.

        ``items`` are as the service takes them. They are sent in parts of up to
        1,000 jobs and 1 MB, smaller ones where the service takes less; each part is
        created as a whole or not at all. With an ``idempotency_key`` (1 to 255
        characters) the call may be repeated with the same items within 24 hours:
        what was created stays, and the rest is added.

        Raises what ``request`` does. Its attribute ``created`` then has the jobs of
        the parts before, those of the first items.
        """
        key = idempotency_key or _key()
        texts = [written(item) for item in items]
        created: list[Job] = []
        start, most = 0, BATCH_BYTES
        while start < len(texts):
            end, size = _part(texts, start, most)
            try:
                created += self._create_part(workspace_id, texts, start, end, key)
            except (errors.JobApiError, Unreachable) as error:
                too_large = isinstance(error, errors.BodyTooLarge)
                if too_large and end - start > 1:
                    most = size // 2
                    continue
                error.created = list(created)
                raise
            start = end
        return created

    def _create_part(
        self, workspace_id: int, texts: Sequence[bytes], start: int, end: int, key: str
    ) -> Iterator[Job]:
        if (start, end) != (0, len(texts)):
            # Of the same length, however long the caller's is.
            key = hashlib.sha256(f"{key}:{start}-{end}".encode()).hexdigest()
        body = b'{"jobs":[%b]}' % b",".join(texts[start:end])
        path = f"{_jobs(workspace_id)}/batch"
        answer = self._post(path, body, key=key, headers=trace_headers())
        return map(Job.from_json, answer["data"])

    def get(self, workspace_id: int, job_id: str) -> Job:
        """Read a job."""
        return Job.from_json(self.request("GET", _job(workspace_id, job_id)))

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
        """All jobs that match every filter, read page by page, the oldest first.

        What is added meanwhile neither hides a job nor shows one twice.
        ``light`` leaves out ``metadata`` and ``result``.
        """
        params = _given(filters)
        for path, value in params.pop("metadata", {}).items():
            params[f"metadata.{path}"] = (
                value if isinstance(value, str) else written(value).decode()
            )
        params |= {"sort": sort, "order": order, "limit": page_size}
        if light:
            params["light"] = "true"
        return map(Job.from_json, self._pages(_jobs(workspace_id), params))

    def status(self, workspace_id: int, job_id: str) -> Progress:
        """How far a job is."""
        return Progress.from_json(self.request("GET", f"{_job(workspace_id, job_id)}/status"))

    def result(self, workspace_id: int, job_id: str) -> dict[str, Any] | None:
        """What a job left that has ended. Raises ``JobNotEnded``."""
        answer = self.request("GET", f"{_job(workspace_id, job_id)}/result")
        result: dict[str, Any] | None = answer["result"]
        return result

    def edit(self, workspace_id: int, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Change a job, as ``PATCH`` does."""
        return Job.from_json(self.request("PATCH", _job(workspace_id, job_id), json=changes))

    def cancel(self, workspace_id: int, job_id: str, *, reason: str | None = None) -> Job:
        """Cancel a job. Raises ``JobNotCancellable``."""
        body = None if reason is None else {"reason": reason}
        return Job.from_json(self._post(f"{_job(workspace_id, job_id)}/cancel", body))

    def retry(self, workspace_id: int, job_id: str, *, reason: str | None = None) -> Job:
        """Put a failed or cancelled job back. Raises ``JobNotRetryable``."""
        body = None if reason is None else {"reason": reason}
        return Job.from_json(self._post(f"{_job(workspace_id, job_id)}/retry", body))

    def delete(self, workspace_id: int, job_id: str) -> None:
        """Delete a job that has ended. Raises ``JobNotEnded``."""
        self.request("DELETE", _job(workspace_id, job_id), safe=False)

    def attempts(self, workspace_id: int, job_id: str) -> list[Attempt]:
        """Every attempt at a job."""
        answer = self.request("GET", f"{_job(workspace_id, job_id)}/attempts")
        return [Attempt.from_json(attempt) for attempt in answer["data"]]

    def wait(
        self,
        job: Job,
        *,
        timeout: float | None = None,
        progress: bool = False,
        poll_seconds: float = 0.5,
    ) -> Job:
        """Wait until a job has ended, and return it as it is then.

        It asks each ``poll_seconds``, and bears an outage of five minutes.
        ``progress`` draws a bar. Raises ``TimeoutError`` after ``timeout`` seconds.
        """
        if progress:
            from .progress import bar

            with bar(job) as show:
                return self._wait(job, timeout, poll_seconds, show)
        return self._wait(job, timeout, poll_seconds, lambda status: None)

    def _wait(
        self,
        job: Job,
        timeout: float | None,
        poll_seconds: float,
        show: Callable[[Progress], None],
    ) -> Job:
        def read() -> tuple[str, Job | None]:
            status = self.status(job.workspace_id, job.job_id)
            show(status)
            ended = self.get(job.workspace_id, job.job_id) if status.ended else None
            return f"The job is still {status.status}.", ended

        return _poll(read, timeout, poll_seconds)

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

        Few are done with when it returns; of more than 500 the rest follows, see
        ``wait_for_operation``. ``dry_run`` only says how many match.
        """
        wanted = _given(filters)
        for name in ("status", "job_type", "priority"):
            if isinstance(wanted.get(name), str):
                wanted[name] = [wanted[name]]
        body = {"action": action, "filter": wanted, "reason": reason, "dry_run": dry_run}
        answer = self._post(_operations(workspace_id), body, key=_key())
        return Operation.from_json(answer)

    def operation(self, workspace_id: int, operation_id: int) -> Operation:
        """How far an operation is."""
        return Operation.from_json(
            self.request("GET", f"{_operations(workspace_id)}/{operation_id}")
        )

    def operations(self, workspace_id: int) -> Iterator[Operation]:
        """A workspace's operations, the newest first."""
        return map(Operation.from_json, self._pages(_operations(workspace_id), {"limit": 100}))

    def stop_operation(self, workspace_id: int, operation_id: int) -> Operation:
        """Stop an operation where it is. Raises ``OperationEnded``."""
        path = f"{_operations(workspace_id)}/{operation_id}/stop"
        return Operation.from_json(self._post(path))

    def wait_for_operation(
        self,
        operation: Operation,
        *,
        timeout: float | None = None,
        poll_seconds: float = 0.5,
        show: Callable[[Operation], None] = lambda operation: None,
    ) -> Operation:
        """Wait until an operation has ended, and return it as it is then.

        ``show`` is called with it as it goes on. It asks each ``poll_seconds``, and
        bears an outage of five minutes. Raises ``TimeoutError`` after ``timeout`` seconds.
        """

        def state(now: Operation) -> tuple[str, Operation | None]:
            show(now)
            ended = now.ended or now.operation_id is None
            return f"The operation is still {now.status}.", now if ended else None

        def read() -> tuple[str, Operation | None]:
            return state(self.operation(operation.workspace_id, operation.operation_id or 0))

        return _poll(read, timeout, poll_seconds, first=state(operation))

    def stats(self, workspace_id: int, *, job_type: Sequence[str] = ()) -> dict[str, Any]:
        """How a workspace is doing: totals, due jobs, rates, durations, as the service says it.

        With ``job_type`` all numbers are those of these types, 0 where they have no jobs.
        """
        query = {"job_type": list(job_type)} if job_type else None
        path = f"/workspace/{workspace_id}/stats"
        answer: dict[str, Any] = self.request("GET", path, params=query)
        return answer

    # Events

    def events(
        self,
        workspace_id: int,
        *,
        order: str = "desc",
        page_size: int = 100,
        **filters: Unpack[EventFilter],
    ) -> Iterator[Event]:
        """What has happened and matches every filter, read page by page, the newest first."""
        params = {**_given(filters), "order": order, "limit": page_size}
        return map(Event.from_json, self._pages(_events(workspace_id), params))

    def follow(
        self, workspace_id: int, *, after: str | None = None, **filters: Unpack[EventFilter]
    ) -> Generator[Event]:
        """What happens from now on and matches every filter, as soon as it does; without an end.

        ``after`` is the ``stream_id`` of the last event that a stream has told. Once it
        has begun, it outlives the connection and the service's stops, and goes on
        where it was. Raises what ``request`` does, later on only what does not
        pass by itself, such as the end of the access. Closed with ``close()``.
        """
        following = self._follow(f"{_events(workspace_id)}/stream", _given(filters), after)
        # Now, and not when the first is asked for.
        next(following)
        return cast("Generator[Event]", following)

    def _follow(
        self, path: str, params: dict[str, Any], place: str | None
    ) -> Generator[Event | None]:
        """``follow``, but for a first None as soon as it has begun."""
        begun, tries = False, 0
        while True:
            asked = None
            try:
                stream = self._stream(path, params, place)
            except (Unreachable, errors.JobApiError) as error:
                if not begun or not may_pass(error):
                    raise
                asked = asked_pause(error)
            else:
                with closing(stream):
                    place = place or stream.headers.get("Last-Event-ID")
                    if not begun:
                        begun = True
                        yield None
                    since = time.monotonic()
                    for reached, event in _told(stream):
                        place, tries = reached, 0
                        if event is not None:
                            yield event
                    # One that held for a while did not fail.
                    if time.monotonic() - since > HELD_SECONDS:
                        tries = 0
            pause(tries, asked)
            tries = min(tries + 1, 6)

    def _stream(self, path: str, params: dict[str, Any], place: str | None) -> httpx2.Response:
        headers = {} if place is None else {"Last-Event-ID": place}
        stream = self._answer("GET", path, params=params, headers=headers, safe=True, lasting=True)
        if not stream.is_success:
            read(stream)
        if not stream.headers.get("Content-Type", "").startswith("text/event-stream"):
            # Something in front answers instead of the service.
            stream.close()
            raise Unreachable(f"{stream.request.url}: the answer is no stream of events")
        return stream

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
    ) -> ClaimedJobs:
        """Lease due jobs; empty where there are none within ``wait_seconds``.

        With ``begin=False`` the attempts begin with the first report that says
        ``begun``, or has progress, a result or an error: for workers that prefetch.
        ``retry_after`` of an empty answer says how many seconds to wait before the
        next claim, where the service asks for that.
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
        response = self._answer(
            "POST",
            f"{_jobs(workspace_id)}/claim",
            written(body),
            params=None,
            headers={**JSON_BODY, "Idempotency-Key": _key()},
            safe=True,
        )
        jobs = map(ClaimedJob.from_json, read(response)["data"])
        return ClaimedJobs(jobs, retry_after=retry_after(response.headers))

    def report(
        self, workspace_id: int, reports: Sequence[Mapping[str, Any]] | bytes
    ) -> list[dict[str, Any]]:
        """Report on leased jobs, 100 at most; the answers in the same order.

        ``reports`` may be bytes: a list that is written as JSON already.
        """
        body = b'{"reports":%b}' % (reports if isinstance(reports, bytes) else written([*reports]))
        # A report may be repeated: what it did once, it does not do again.
        answer = self._post(f"{_jobs(workspace_id)}/report", body, safe=True)
        answers: list[dict[str, Any]] = answer["data"]
        return answers


def _part(texts: Sequence[bytes], start: int, most: int) -> tuple[int, int]:
    """Where the next part of a batch ends, and how large it is; it has one item at least."""
    end, size = start + 1, len(texts[start])
    while end < min(start + BATCH, len(texts)) and size + len(texts[end]) + 1 <= most:
        size += len(texts[end]) + 1
        end += 1
    return end, size


def _poll(
    read: Callable[[], tuple[str, T | None]],
    timeout: float | None,
    poll_seconds: float,
    *,
    first: tuple[str, T | None] | None = None,
) -> T:
    """Read each ``poll_seconds`` until there is an answer.

    ``read`` returns it, or None, and what to say where there is no more time;
    ``first`` is what was read before. Raises ``TimeoutError``.
    """
    answered = time.monotonic()
    deadline = math.inf if timeout is None else answered + timeout
    limits = Bounds(deadline=deadline)
    state, found = first or ("", None)
    while found is None:
        if state:
            if time.monotonic() + poll_seconds > deadline:
                raise TimeoutError(state)
            time.sleep(poll_seconds)
        try:
            with bounded(limits):
                state, found = read()
            answered = time.monotonic()
        except (Unreachable, errors.JobApiError) as error:
            if not may_pass(error) or time.monotonic() - answered > OUTAGE_SECONDS:
                raise
            state = f"The service does not answer: {error}"
    return found


def _told(stream: httpx2.Response) -> Iterator[tuple[str, Event | None]]:
    """What a stream says, until it ends or breaks: where it is, with the event or without one."""
    # Not by lines as texts have them: a message may hold U+2028.
    rest = b""
    place = None
    try:
        for part in stream.iter_bytes():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"id: "):
                    # Not there before what it belongs to has come.
                    place = line[4:].decode()
                elif line.startswith(b"data: ") and place is not None:
                    event = Event.from_json({**orjson.loads(line[6:]), "stream_id": place})
                    yield place, event
                elif line.startswith(b":") and place is not None:
                    yield place, None
                    place = None
                elif not line:
                    place = None
    except (httpx2.TransportError, ValueError):
        # It is made again.
        return


def _key() -> str:
    return uuid.uuid4().hex


def _jobs(workspace_id: int) -> str:
    return f"/workspace/{workspace_id}/jobs"


def _events(workspace_id: int) -> str:
    return f"/workspace/{workspace_id}/events"


def _operations(workspace_id: int) -> str:
    return f"/workspace/{workspace_id}/operations"


def _given(filters: JobFilter | EventFilter) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in filters.items()
        if value is not None and value != ()
    }


def _job(workspace_id: int, job_id: str) -> str:
    return f"{_jobs(workspace_id)}/{job_id}"
