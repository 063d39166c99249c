"""A job that a worker runs, and the progress that its task reports."""

from __future__ import annotations

import json
import operator
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import orjson

from ..rules.documents import compose_patches
from .connection import encode
from .log_buffer import LogBuffer
from .models import ClaimedJob

MAX_DEPTH = 64
MAX_MESSAGE = 2000
MAX_RESULT_BYTES = 1024 * 1024

# Only JSON that matches this can contain a character or a number that the service refuses.
_SUSPICIOUS = re.compile(rb"\\u|[0-9]{19}")

Report = Mapping[str, Any]


_current: ContextVar[Task | None] = ContextVar("jobapi_current", default=None)


def current_task() -> Task | None:
    """The job that the current thread or coroutine runs; None outside of a job."""
    return _current.get()


@contextmanager
def running(task: Task) -> Iterator[None]:
    """Make a task the current one."""
    marker = _current.set(task)
    try:
        yield
    finally:
        _current.reset(marker)


class Permanent(Exception):
    """Raised by a task: the job has failed, and a retry would not help."""


class Task:
    """A job that a worker runs: the argument of a task's function.

    Progress is sent in the background. Processes that the task forks cannot report: they have
    a copy of the worker's memory.
    """

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        # The fields that every report of it has.
        self.identity: Report = {"job_id": job.job_id, "lease_token": job.lease_token}
        # Whether the service knows that the attempt has begun.
        self.begun = job.begun
        # Whether another run has begun the attempt: one in the engine that it was handed to.
        self.taken = False
        # Called when another run has begun the attempt, and when the lease is lost.
        self.on_taken: Callable[[], object] | None = None
        self.on_lost: Callable[[], object] | None = None
        # The report that follows a release which comes too late, because a run has begun.
        self.if_taken: Report | None = None
        # Whether its last report has been made.
        self.ended = False
        # The number of rounds of the reporter for which it has been queued.
        self.rounds_queued = 0
        self.claimed_at = self.renewed_at = time.monotonic()
        self.claimed_at_wall = time.time()
        # When a thread took it, and when its lease was lost.
        self.started_at: float | None = None
        self.lost_at: float | None = None
        # When it was handed to an engine, which runs it and reports its end.
        self.handed_over_at: float | None = None
        self._process = os.getpid()
        self._logs = LogBuffer()
        self._unsent: list[_Unsent] = []
        # Guards ``_unsent``, between the task's thread and the reporter.
        self._lock = threading.Lock()

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def job_type(self) -> str:
        """The job's type."""
        return self.job.job_type

    @property
    def metadata(self) -> dict[str, Any]:
        """The job's metadata; empty if it has none."""
        return self.job.metadata or {}

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.job.attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled or its lease lost: stop, the result will not count.

        It changes within five seconds, even if the task reports nothing.
        """
        return self.lost_at is not None

    def progress(
        self, percent: float, message: str | None = None, *, result: Mapping[str, Any] | None = None
    ) -> None:
        """Report the job's progress. It is sent within a second, in the background.

        ``percent`` is a whole number from 0 to 100 (40.0 is one, too), ``message`` has up to
        2,000 characters. ``result`` is a partial result: it is merged into the job's as a JSON
        Merge Patch (RFC 7396), where None removes a key, and may have 1 MiB as JSON.

        Raises ``TypeError`` or ``ValueError`` for what the service would refuse, and
        ``RuntimeError`` in a process that the task has forked.
        """
        self._check_process("report progress")
        fields: dict[str, Any] = {"progress_percent": _whole_percent(percent)}
        if message is not None:
            fields["progress_message"] = _checked_message(message)
        size = 0
        if result is not None:
            text = document(result)
            # A copy, because the task may change the object later.
            fields["result"] = json.loads(text)
            size = len(text)
            _check_progress_in(fields["result"])
        with self._lock:
            _add(self._unsent, _Unsent(fields, size))

    def log(self, message: str, level: str = "info", *, at: float | None = None) -> None:
        """Add an entry to the job's log. It is sent within a second, in the background.

        ``level`` is ``debug``, ``info``, ``warning`` or ``error``, ``at`` the time in seconds since
        1970, by default now. The message may have several lines and ANSI colors; one of more than
        8 KiB is cut. It never waits: if the service does not answer, up to 10,000 entries and 4 MiB
        are kept, and then the oldest are dropped, which an entry says.

        Raises ``TypeError`` or ``ValueError`` for what is no message, level or time, and
        ``RuntimeError`` in a process that the task has forked.
        """
        self._check_process("log")
        self._logs.add(message, level, at)

    def _check_process(self, what: str) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(f"Only the worker's own process can {what}, not a child.")

    def take_reports(
        self, result: Mapping[str, Any] | None = None, *, logs: bool = True
    ) -> list[Report]:
        """Take the unsent reports, in order, merged with a final ``result``.

        Those of ``logs`` come first. Raises ``TypeError`` or ``ValueError`` for a result that the
        service would refuse.
        """
        text = b"" if result is None else document(result)
        taken: list[Report] = [*self._logs.take()] if logs else []
        if result is None and not self._unsent:
            return taken
        with self._lock:
            unsent, self._unsent = self._unsent, []
        if result is not None:
            if not unsent:
                return [*taken, {"result": orjson.Fragment(text)}]
            _add(unsent, _Unsent({"result": json.loads(text)}, len(text)))
        return [*taken, *(each.report() for each in unsent)]

    def seconds_running(self, now: float) -> float:
        """How long a thread has run it at ``now`` (``time.monotonic``)."""
        return 0.0 if self.started_at is None else now - self.started_at

    def identify(self, run_id: str) -> None:
        """Send this ``run_id`` with every report, so that reports of two runs are told apart."""
        self.identity = {**self.identity, "run_id": run_id}

    def lose_lease(self) -> None:
        """Mark the lease as lost."""
        if self.lost_at is None:
            self.lost_at = time.monotonic()


class _Unsent:
    """A report that is not sent yet; ``size`` is the upper bound of its result in bytes."""

    def __init__(self, fields: dict[str, Any], size: int) -> None:
        self.fields = fields
        self.size = size

    def report(self) -> Report:
        if "result" not in self.fields:
            return self.fields
        return {**self.fields, "result": orjson.Fragment(encode(self.fields["result"]))}


def _add(unsent: list[_Unsent], latest: _Unsent) -> None:
    """Add a report, merged with earlier ones if that has the same effect.

    Not every two merge patches can be merged: ``{"a": null}`` and then ``{"a": {"b": 1}}``
    replaces an object ``a``, while the second patch alone would be merged into it. Reports that
    would be too large together are not merged, either.
    """
    unsent.append(latest)
    while len(unsent) > 1 and (both := _merged(*unsent[-2:])) is not None:
        unsent[-2:] = [both]


def _merged(before: _Unsent, after: _Unsent) -> _Unsent | None:
    size = before.size + after.size
    if size > MAX_RESULT_BYTES:
        return None
    fields = {**before.fields, **after.fields}
    if "result" in before.fields and "result" in after.fields:
        composed = compose_patches(before.fields["result"], after.fields["result"])
        if composed is None:
            return None
        fields["result"] = composed
    return _Unsent(fields, size)


def document(value: Mapping[str, Any]) -> bytes:
    """A result as JSON. Raises ``TypeError`` or ``ValueError`` if the service would refuse it."""
    if not isinstance(value, Mapping):
        raise TypeError(f"A result is a dict, not {type(value).__name__}.")
    try:
        text = encode(value if isinstance(value, dict) else dict(value))
    except RecursionError:
        raise ValueError(f"The result is nested more than {MAX_DEPTH} levels deep.") from None
    if len(text) > MAX_RESULT_BYTES:
        raise ValueError(f"The result is larger than {MAX_RESULT_BYTES} bytes as JSON.")
    # In a report, the result is three levels deep.
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > MAX_DEPTH - 3 or _SUSPICIOUS.search(text):
        _check_values(json.loads(text))
    return text


def _check_values(value: Any) -> None:
    level: Sequence[Any] = [value]
    for _ in range(MAX_DEPTH - 3 + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str) and "\0" in item:
                raise ValueError("The result has a text with the character U+0000.")
            if isinstance(item, int) and abs(item) >= 2**63:
                raise ValueError("The result has an integer that does not fit into 64 bits.")
            if isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
        if not below:
            return
        level = below
    raise ValueError(f"The result is nested more than {MAX_DEPTH - 3} levels deep.")


def _whole_percent(percent: Any) -> int:
    rule = f"The percent is a whole number from 0 to 100, not {percent!r}"
    if isinstance(percent, float):
        if not percent.is_integer():
            raise ValueError(f"{rule}; round it.")
        percent = int(percent)
    try:
        if isinstance(percent, bool):
            raise TypeError
        number = operator.index(percent)
    except TypeError:
        raise TypeError(f"{rule}.") from None
    if not 0 <= number <= 100:
        raise ValueError(f"{rule}.")
    return number


def _checked_message(message: Any) -> str:
    if not isinstance(message, str):
        raise TypeError(f"The message is a str, not {type(message).__name__}.")
    if len(message) > MAX_MESSAGE:
        raise ValueError(f"The message has more than {MAX_MESSAGE} characters; shorten it.")
    if "\0" in message:
        raise ValueError("The message has the character U+0000; leave it out.")
    # Raises a ValueError for half a surrogate pair.
    message.encode()
    return message


def _check_progress_in(result: Mapping[str, Any]) -> None:
    """Check the progress fields that the service also reads from a result."""
    if result.get("progress_percent") is not None:
        _whole_percent(result["progress_percent"])
    if result.get("progress_message") is not None:
        _checked_message(result["progress_message"])
