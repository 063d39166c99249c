"""The log entries of a task that are not sent yet."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from ..rules.job_logs import (
    KEPT_BYTES,
    KEPT_ENTRIES,
    MAX_ENTRIES,
    LogLevel,
    shorten,
)

MAX_CHUNK_BYTES = 128 * 1024
"""How many bytes of entries, as JSON, a report has; one entry more may be begun."""

LEVELS = frozenset(level.label for level in LogLevel)


# A week within the times that the service accepts.
_EARLIEST = datetime(1, 1, 10, tzinfo=UTC)
_LATEST = datetime(9999, 12, 22, tzinfo=UTC)


class _Entry(NamedTuple):
    message: str
    size: int
    level: str
    at: datetime


class LogBuffer:
    """A buffer for the threads of a task and the reporter.

    It takes no more than the service keeps of a job's log: if entries cannot be sent in time, the
    oldest are dropped, and an entry says how many.
    """

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._dropped = 0
        self._seq = 0
        self._lock = threading.Lock()

    def add(self, message: str, level: str, at: float | None = None) -> None:
        """Add an entry.

        Raises ``TypeError`` or ``ValueError`` for what is no message, level or time.
        """
        if not isinstance(message, str):
            raise TypeError(f"The message is a str, not {type(message).__name__}.")
        if level not in LEVELS:
            labels = ", ".join(each.label for each in LogLevel)
            raise ValueError(f"The level is one of {labels}, not {level!r}.")
        text, size = shorten(message)
        entry = _Entry(text, size, level, _moment(time.time() if at is None else at))
        with self._lock:
            self._entries.append(entry)
            self._bytes += size
            while len(self._entries) > KEPT_ENTRIES or self._bytes > KEPT_BYTES:
                self._bytes -= self._entries.popleft().size
                self._dropped += 1

    def take(self) -> list[dict[str, Any]]:
        """Take all entries, as reports with ``logs``; numbered, so that they can be repeated."""
        if not self._entries:
            return []
        with self._lock:
            entries, self._entries = self._entries, deque()
            dropped, self._dropped = self._dropped, 0
            self._bytes = 0
            if dropped:
                text = f"{dropped:,} log entries were dropped here: they could not be sent in time."
                entries.appendleft(_Entry(text, len(text), "warning", entries[0].at))
            first = self._seq + 1
            self._seq += len(entries)
        chunks: list[list[bytes]] = []
        size = MAX_CHUNK_BYTES
        for seq, entry in enumerate(entries, first):
            text_ = _json(entry, seq)
            if size >= MAX_CHUNK_BYTES or len(chunks[-1]) == MAX_ENTRIES:
                chunks.append([])
                size = 0
            chunks[-1].append(text_)
            size += len(text_)
        return [{"logs": orjson.Fragment(b"[%b]" % b",".join(chunk))} for chunk in chunks]


def _moment(seconds: float) -> datetime:
    with suppress(ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(seconds, UTC)
        if _EARLIEST <= moment <= _LATEST:
            return moment
    raise ValueError(f"The time, in seconds since 1970, is in the years 1 to 9999, not {seconds}.")


def _json(entry: _Entry, seq: int) -> bytes:
    at = entry.at.isoformat()
    return orjson.dumps({"message": entry.message, "level": entry.level, "at": at, "seq": seq})
