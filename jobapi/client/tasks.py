"""A job that a worker holds, and what its task can report about it."""

from __future__ import annotations

import json
import operator
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..rules.documents import compose_patches
from .connection import encode
from .models import ClaimedJob

MAX_DEPTH = 64
MAX_MESSAGE = 2000
MAX_RESULT_BYTES = 1024 * 1024

# Only these can have a character, a number or a depth that the service refuses.
_DOUBTFUL = re.compile(rb"\\u|[0-9]{19}")

Report = Mapping[str, Any]


class Permanent(Exception):
    """Raised by a task: the job has failed, and a retry would not help."""


class Task:
    """A job that is being done; what a task's function gets.

    What it says is sent in the background. Processes that the task forks cannot
    report: their memory is a copy.
    """

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        # Whether the service knows that the attempt has begun.
        self.begun: bool = getattr(job, "begun", True)
        # Whether its last report has been made.
        self.ended = False
        # In how many rounds of the reporter it has waited for a thread.
        self.looks = 0
        self.fetched_at = self.heard_at = time.monotonic()
        self.fetched_wall = time.time()
        self.began_at: float | None = None
        self.lost_at: float | None = None
        self._process = os.getpid()
        self._news: list[_News] = []
        # Guards what is new, between the task's thread and the reporter.
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
        """What the job needs to know; empty where nothing was given."""
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
        """Report how far the job is. It is sent within a second, in the background.

        ``percent`` is a whole number from 0 to 100 (40.0 is one, too), ``message`` has
        up to 2,000 characters. ``result`` is partial: it is merged into the job's, where
        None removes a key (JSON Merge Patch, RFC 7396), and must be JSON of up to 1 MiB.

        Raises ``TypeError`` or ``ValueError`` for what the service would refuse, and
        ``RuntimeError`` in a process that the task has forked.
        """
        if os.getpid() != self._process:
            raise RuntimeError("Progress is reported by the worker's own process, not by a child.")
        told: dict[str, Any] = {"progress_percent": _whole_percent(percent)}
        if message is not None:
            told["progress_message"] = _checked_message(message)
        size = 0
        if result is not None:
            text = document(result)
            # A copy, because the task may change the object later.
            told["result"] = json.loads(text)
            size = len(text)
            _check_progress_in(told["result"])
        with self._lock:
            _add(self._news, _News(told, size))

    def take_news(self, result: Mapping[str, Any] | None = None) -> list[Report]:
        """The reports since the last call, in order, and a final ``result``.

        Raises ``TypeError`` or ``ValueError`` for a result that the service would refuse.
        """
        if result is None and not self._news:
            return []
        text = b"" if result is None else document(result)
        with self._lock:
            news, self._news = self._news, []
        if result is not None:
            if not news:
                return [{"result": orjson.Fragment(text)}]
            _add(news, _News({"result": json.loads(text)}, len(text)))
        return [each.report() for each in news]

    def seconds_running(self, now: float) -> float:
        """For how long a thread has run it at ``now`` (``time.monotonic``)."""
        return 0.0 if self.began_at is None else now - self.began_at

    def lose(self) -> None:
        """Note that the lease is lost."""
        if self.lost_at is None:
            self.lost_at = time.monotonic()


class _News:
    """Fields of a report that is not sent yet; ``size`` is that of its result, at most."""

    def __init__(self, fields: dict[str, Any], size: int) -> None:
        self.fields = fields
        self.size = size

    def report(self) -> Report:
        if "result" not in self.fields:
            return self.fields
        return {**self.fields, "result": orjson.Fragment(encode(self.fields["result"]))}


def _add(news: list[_News], latest: _News) -> None:
    """Merge a report into the unsent ones without changing their total effect."""
    news.append(latest)
    while len(news) > 1 and (both := _together(*news[-2:])) is not None:
        news[-2:] = [both]


def _together(before: _News, after: _News) -> _News | None:
    size = before.size + after.size
    if size > MAX_RESULT_BYTES:
        return None
    fields = {**before.fields, **after.fields}
    if "result" in before.fields and "result" in after.fields:
        composed = compose_patches(before.fields["result"], after.fields["result"])
        if composed is None:
            return None
        fields["result"] = composed
    return _News(fields, size)


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
    # A report is three levels around it.
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > MAX_DEPTH - 3 or _DOUBTFUL.search(text):
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
