"""What the log of a job keeps: levels, entries, and the limits of both. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Required, TypedDict

from .labels import Labelled

MAX_ENTRIES = 500
"""How many entries a request, or a report in it, may carry."""

MAX_MESSAGE_BYTES = 8 * 1024
"""How long a message is at most, as UTF-8; the end of a longer one is cut off."""

CUT = "… (cut)"
"""The end of a message that was cut."""

KEPT_ENTRIES = 10_000
KEPT_BYTES = 4 * 1024 * 1024
"""How much of a job's log is kept: the last entries, and the last bytes of their messages."""

MAX_SEQ = 2**53 - 1

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class LogLevel(Labelled):
    """How important an entry is. The database stores the numbers."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


class LogEntry(TypedDict, total=False):
    """An entry as a worker sends it."""

    message: Required[str]
    level: LogLevel
    at: datetime
    """The worker's time; by default the database's."""
    seq: int
    """Ascends within an attempt: an entry that is not above the last stored one is dropped."""


class Head(NamedTuple):
    """How far the log of a job is: a row of its table.

    Entries are numbered from 1 without gaps, so ``first - 1`` entries are not kept any more.
    """

    first: int = 1
    """The number of the oldest entry that is kept."""
    last: int = 0
    """The number of the newest entry."""
    bytes: int = 0
    """The size of the messages that are kept."""
    attempt: int = 0
    seq: int | None = None
    """The last ``seq`` of ``attempt``."""


class NewEntry(NamedTuple):
    """An entry as it is stored."""

    number: int
    attempt: int
    seq: int | None
    at: datetime
    level: LogLevel
    size: int
    """Bytes of the message."""
    message: str


def storable(message: str) -> str:
    """The message without U+0000 and lone surrogates, which no database stores."""
    return _UNSTORABLE.sub("\ufffd", message)


def shorten(message: str) -> tuple[str, int]:
    """A storable message of at most ``MAX_MESSAGE_BYTES``, and its size in bytes."""
    message = storable(message)
    text = message.encode()
    if len(text) <= MAX_MESSAGE_BYTES:
        return message, len(text)
    mark = CUT.encode()
    # What is left of a character that is cut through is left out.
    start = text[: MAX_MESSAGE_BYTES - len(mark)].decode(errors="ignore").encode()
    return (start + mark).decode(), len(start) + len(mark)


def extend(
    head: Head, attempt: int, entries: Sequence[LogEntry], now: datetime
) -> tuple[Head, list[NewEntry]]:
    """Add entries of an attempt to a log, without those that are in it already.

    What is kept is not limited yet: see ``excess``.
    """
    seq = head.seq if head.attempt == attempt else None
    number, size_of_all = head.last, head.bytes
    added = []
    for entry in entries:
        own = entry.get("seq")
        if own is not None:
            if seq is not None and own <= seq:
                continue
            seq = own
        message, size = shorten(entry["message"])
        number += 1
        size_of_all += size
        level = entry.get("level", LogLevel.INFO)
        added.append(NewEntry(number, attempt, own, entry.get("at", now), level, size, message))
    return Head(head.first, number, size_of_all, attempt, seq), added


def excess(head: Head) -> tuple[int, int]:
    """What is too much: up to which number, and how many bytes of the oldest messages."""
    return max(head.first - 1, head.last - KEPT_ENTRIES), max(0, head.bytes - KEPT_BYTES)
