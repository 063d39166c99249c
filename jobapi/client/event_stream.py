"""The stream of events (Server-Sent Events): it is resumed after every break."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import httpx2
import orjson

from ..errors import JobApiError
from .models import Event
from .retries import Unreachable, asked_pause, is_transient, pause

STABLE_SECONDS = 5.0
"""After a connection that lasted this long, the next one is made without a pause."""


def follow(
    open_stream: Callable[[str | None], httpx2.Response], position: str | None
) -> Generator[Event | None]:
    """Yield events after ``position``, or from now on; first None, once the stream is open.

    ``open_stream`` opens it after a position. Its errors are raised the first time; later
    only those that do not pass by themselves.
    """
    opened, failures = False, 0
    while True:
        asked = None
        try:
            stream = open_stream(position)
        except (Unreachable, JobApiError) as error:
            if not opened or not is_transient(error):
                raise
            asked = asked_pause(error)
        else:
            with closing(stream):
                position = position or stream.headers.get("Last-Event-ID")
                if not opened:
                    opened = True
                    yield None
                opened_at = time.monotonic()
                for reached, event in _read(stream):
                    position, failures = reached, 0
                    if event is not None:
                        yield event
                if time.monotonic() - opened_at > STABLE_SECONDS:
                    failures = 0
        pause(failures, asked)
        failures = min(failures + 1, 6)


def _read(stream: httpx2.Response) -> Iterator[tuple[str, Event | None]]:
    """Yield positions until the stream ends or breaks: with an event, or None for a heartbeat.

    A position (``id:``) counts only when the event or heartbeat after it has arrived, too.
    """
    # Not ``iter_lines``, which also splits at U+2028: an event may contain it.
    rest = b""
    position = None
    try:
        for part in stream.iter_bytes():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"id: "):
                    position = line[4:].decode()
                elif line.startswith(b"data: ") and position is not None:
                    yield (
                        position,
                        Event.from_json({**orjson.loads(line[6:]), "stream_id": position}),
                    )
                elif line.startswith(b":") and position is not None:
                    yield position, None
                    position = None
                elif not line:
                    position = None
    except (httpx2.TransportError, ValueError):
        # A broken connection or message; the caller opens the stream again.
        return
