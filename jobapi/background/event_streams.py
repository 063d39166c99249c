"""Streams of events: one thread in each process serves all streams that are open there.

A stream is a socket here and takes no thread of the server. The thread polls the database
every tenth of a second, and at once when this process has changed something. That works the
same on both databases, through a pooler and over any number of nodes.

One poll reads each workspace once for all streams that are at the same position. Example:
ten dashboards listen to workspace 1, and all have been given its events up to position P.
A client that was away resumes workspace 1 from an older position Q. If nothing was written on
the database server since the last poll, the poll ends after one query. Otherwise it reads the
events after P first, for the ten; then a batch of those after Q, for the one. What a stream's
filters match is appended to its ``unsent`` bytes, and its position moves on in any case. If
there is more after Q, the next poll follows at once. A listener that reads too slowly is left
out until it has read what is unsent, so it never costs more memory than ``max_unsent``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import selectors
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ..errors import Unavailable
from ..rules.events import Event
from ..services import events
from ..services.events import EventFilters, Found, Position, Snapshot
from ..store.faults import FaultLog
from ..store.transactions import snapshot

if sys.platform != "win32":  # where a host may be developed
    import resource

STOP_SECONDS = 1.0
"""How long ``Streams.stop`` waits for the streams to end."""

_CHANCE = random.SystemRandom()

logger = logging.getLogger("jobapi")


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How often streams poll and send heartbeats, and how much they read and hold."""

    poll_seconds: float = 0.1
    """Time between two polls, if this process changes nothing meanwhile."""

    wake_seconds: float = 0.02
    """The shortest time between two polls, however much changes."""

    retry_seconds: float = 2.0
    """Time to the next poll after one that failed."""

    heartbeat_seconds: float = 15.0
    """Time between two heartbeats of a stream. With each its access is checked again."""

    thread_seconds: float = 300.0
    """How long a stream lasts that holds a thread of the server; its client reconnects.

    A server that does not notice that a client has gone loses the thread no longer than this.
    """

    send_seconds: float = 60.0
    """How long a client may read nothing while data is unsent, before its connection is closed."""

    batch: int = 500
    """How many events of a workspace are read at a time."""

    batches_seconds: float = 0.1
    """How long one poll reads for streams that are behind, before what it read is sent."""

    max_unsent: int = 256 * 1024
    """A stream with this many unsent bytes gets no new events until they are sent."""


def heartbeat(position: Position | None = None) -> bytes:
    """A comment that shows that the stream is alive; with the ``id`` from which to resume."""
    return b":\n" if position is None else b"id: %b\n:\n" % position.name.encode()


@dataclass(eq=False)
class Stream:
    """One client's stream: its filters, its unsent data and its position."""

    workspace_id: int
    user_id: int

    filters: EventFilters
    """Which events the client asked for and may see."""

    position: Position
    """Which events have been read for it, matching or not."""

    frame: Callable[[Event, str], bytes]
    """Makes the message of an event and the name of the position after it."""

    is_allowed: Callable[[Connection], bool]
    """Whether the client still has the access that it had when the stream began."""

    chunked: bool = False
    """Whether the response has the chunked framing of HTTP/1.1."""

    unsent: bytearray = field(default_factory=bytearray)
    """What the socket has not taken yet."""

    known: tuple[int, int] = field(init=False)
    """The ``xid`` and ``id`` of the position that the client knows: the last that was sent."""

    sent_at: float = 0.0
    """When the socket last took something, or had nothing to take."""

    heartbeat_at: float = 0.0
    """When the next heartbeat is due."""

    ends_at: float = math.inf
    """When the stream ends at the latest."""

    def __post_init__(self) -> None:
        self.known = self.position[:2]

    def append(self, data: bytes) -> None:
        """Append data to be sent, as one chunk if the response is chunked."""
        self.unsent += b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def append_end(self) -> None:
        """Append the end of the response, so that it does not look cut off."""
        if self.chunked:
            self.unsent += b"0\r\n\r\n"


@dataclass
class _Process:
    """The streams of one process; a process that is forked from it begins with none."""

    wake: socket.socket
    """A byte sent here ends the pause of the thread."""

    pid: int = field(default_factory=os.getpid)

    reserved: set[Stream] = field(default_factory=set)
    """Streams that are counted but have no socket yet."""

    new: list[tuple[socket.socket, Stream]] = field(default_factory=list)
    """Streams with a socket that the thread has not taken over yet."""

    by_user: Counter[int] = field(default_factory=Counter)
    """How many streams each user has, those in ``reserved`` and ``new`` included."""

    number: int = 0
    """The number of open streams."""


class Streams:
    """The streams of this process.

    At most ``limit`` of them may be open, and at most half as many as the process may open files;
    a user may have half of them, but at least two. ``is_closing`` says whether the process is
    about to stop. ``on_change`` is called with 1 or -1 when a stream opens or closes.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        limit: int,
        is_closing: Callable[[], bool] = lambda: False,
        on_change: Callable[[int], None] = lambda more: None,
        options: StreamOptions | None = None,
    ) -> None:
        self.options = options or StreamOptions()
        self._engine = engine
        self._limit = limit
        self._is_closing = is_closing
        self._on_change = on_change
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._stopped = False

    @property
    def limit(self) -> int:
        """How many may be open."""
        if sys.platform == "win32":
            return self._limit
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self._limit if files == resource.RLIM_INFINITY else min(self._limit, files // 2)

    def __len__(self) -> int:
        process = self._process
        return process.number if process is not None and process.pid == os.getpid() else 0

    def reserve(self, stream: Stream, limit: int) -> bool:
        """Count a stream as open before it has a socket; False if there are too many.

        That is if ``limit`` are open, or half as many by its user. ``add`` or ``release`` has to
        follow.
        """
        with self._lock:
            process = self._started()
            if process.number >= limit or process.by_user[stream.user_id] >= max(2, limit // 2):
                return False
            process.by_user[stream.user_id] += 1
            process.number += 1
            process.reserved.add(stream)
            return True

    def release(self, stream: Stream) -> None:
        """Undo ``reserve``. Does nothing if the stream has been added."""
        with self._lock:
            process = self._process
            if process is not None and stream in process.reserved:
                process.reserved.remove(stream)
                self._forget(process, stream)

    def add(
        self,
        sock: socket.socket,
        stream: Stream,
        *,
        head: bytes = b"",
        first: bytes = b"",
        holds_thread: bool = False,
    ) -> None:
        """Take over a stream and its socket, and close them at the end.

        The socket is sent ``head``, which has its own framing, and then ``first`` or a
        heartbeat. ``holds_thread`` says that a thread of the server waits for the stream.
        """
        sock.setblocking(False)
        now = time.monotonic()
        stream.sent_at = now
        # At random, so that streams that were opened together are not all checked together.
        stream.heartbeat_at = now + _CHANCE.random() * self.options.heartbeat_seconds
        if holds_thread:
            stream.ends_at = now + self.options.thread_seconds
        stream.unsent += head
        # A proxy may wait for the first bytes of the body before it sends the head on.
        stream.append(first or heartbeat())
        with self._lock:
            process = self._started()
            process.reserved.remove(stream)
            process.new.append((sock, stream))
        self._on_change(1)
        self.wake()

    def wake(self) -> None:
        """Poll at once: this process has changed something."""
        process = self._process
        if len(self) and process is not None:
            with contextlib.suppress(OSError):
                process.wake.send(b"x")

    def stop(self) -> None:
        """End all streams, because the process ends; wait for a moment until they have ended."""
        self._stopped = True
        self.wake()
        deadline = time.monotonic() + STOP_SECONDS
        while len(self) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _started(self) -> _Process:
        """This process's streams, with a thread that serves them; call it with the lock held."""
        process = self._process
        if process is None or process.pid != os.getpid():
            wake, woken = socket.socketpair()
            for end in (wake, woken):
                end.setblocking(False)
            self._process = process = _Process(wake)
            loop = _Loop(self, process, woken)
            threading.Thread(target=loop.run, name="jobapi-streams", daemon=True).start()
        return process

    def _forget(self, process: _Process, stream: Stream) -> None:
        process.number -= 1
        process.by_user[stream.user_id] -= 1
        if not process.by_user[stream.user_id]:
            del process.by_user[stream.user_id]


def deliver(found: Found, streams: Sequence[Stream], *, max_unsent: int) -> None:
    """Append the events that were found to streams at the position where the search began.

    A stream that has ``max_unsent`` bytes after one of them gets no more, and stays at that
    event's position.
    """
    frames: dict[tuple[Any, int], bytes] = {}
    for stream in streams:
        for event, position in found.events:
            stream.position = position
            if stream.filters.matches(event):
                key = stream.frame, event.id
                if key not in frames:
                    frames[key] = stream.frame(event, position.name)
                stream.append(frames[key])
                stream.known = position[:2]
                if len(stream.unsent) >= max_unsent:
                    break
        else:
            stream.position = found.end


class _Loop:
    """The thread of one process: wait, poll, deliver, send heartbeats and unsent data."""

    def __init__(self, streams: Streams, process: _Process, woken: socket.socket) -> None:
        self._streams = streams
        self._process = process
        self._woken = woken
        self._options = streams.options
        self._open: dict[Any, Stream] = {}
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._poll_log = FaultLog("the poll for events")
        self._caught_up: Snapshot | None = None
        """What the last poll saw, if all streams have been given all of it."""

    def run(self) -> None:
        """Serve the streams until the process ends; after a fault all of them end."""
        while True:
            with selectors.DefaultSelector() as self._selector:
                self._selector.register(self._woken, selectors.EVENT_READ)
                try:
                    self._serve()
                except Exception:
                    # The clients reconnect, and resume where they were.
                    logger.exception("the streams have failed; all of them end")
                    with contextlib.suppress(Exception):
                        self._take_new()
                    for sock in list(self._open):
                        with contextlib.suppress(Exception):
                            self._close(sock)
            time.sleep(self._options.retry_seconds)

    def _serve(self) -> None:
        options = self._options
        poll_at = heartbeats_at = polled_at = 0.0
        while True:
            pause = max(0.0, min(poll_at, heartbeats_at) - time.monotonic())
            for key, _ in self._selector.select(pause if len(self._streams) else None):
                if key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                    if poll_at <= polled_at + options.poll_seconds:
                        poll_at = min(poll_at, polled_at + options.wake_seconds)
                elif not _is_connected(key.fileobj):
                    self._close(key.fileobj)
            self._take_new()
            if self._streams._stopped or self._streams._is_closing():
                self._end(list(self._open))
            now = time.monotonic()
            if now >= poll_at:
                polled_at = now
                poll_at = now + self._poll()
            if now >= heartbeats_at:
                heartbeats_at = now + options.heartbeat_seconds / 15
                self._send_heartbeats(now)
            for sock, stream in list(self._open.items()):
                self._send(sock, stream)

    def _take_new(self) -> None:
        with self._streams._lock:
            new, self._process.new = self._process.new, []
            self._open.update(new)
        for sock, stream in new:
            self._selector.register(sock, selectors.EVENT_READ)
            self._caught_up = None
            # Now, because the first poll of the database may take long.
            self._send(sock, stream)

    def _poll(self) -> float:
        """Read new events and append them to the streams; returns the seconds to the next poll."""
        options = self._options
        reading = [each for each in self._open.values() if len(each.unsent) < options.max_unsent]
        if not reading:
            return options.poll_seconds
        pause, end = options.poll_seconds, time.monotonic() + options.batches_seconds
        at: dict[tuple[int, Position], list[Stream]] = defaultdict(list)
        for stream in reading:
            at[stream.workspace_id, stream.position].append(stream)
        try:
            with (
                self._streams._engine().connect() as connection,
                snapshot(connection, planner={}),
            ):
                seen = events.current_snapshot(connection)
                if seen == self._caught_up:
                    return options.poll_seconds
                self._caught_up = None
                # Streams that are far behind come last, so that they delay no others.
                for workspace_id, position in sorted(at, key=lambda key: key[1][:2], reverse=True):
                    if time.monotonic() >= end:
                        return options.wake_seconds
                    found = events.after(
                        connection, workspace_id, position, seen=seen, most=options.batch
                    )
                    deliver(found, at[workspace_id, position], max_unsent=options.max_unsent)
                    if found.more:
                        pause = options.wake_seconds
            self._poll_log.worked()
        except (SQLAlchemyError, Unavailable) as error:
            self._poll_log.failed(error)
            return options.retry_seconds
        behind = any(len(each.unsent) >= options.max_unsent for each in self._open.values())
        if seen.numbered and not behind and pause == options.poll_seconds:
            # Until any transaction writes on the whole server, there is nothing to read.
            self._caught_up = seen
        self._end_lost(seen)
        return pause

    def _end_lost(self, seen: Snapshot) -> None:
        """Close the streams that are ahead of the database server.

        A replica that took over, or a server that crashed without durable commits, has lost
        transactions that it had shown, and gives their numbers to new ones. A stream that has
        passed those numbers would silently miss the new events. Its client reconnects, and 422
        tells it to start without a position.
        """
        for sock in [s for s, each in self._open.items() if each.position.xid >= seen.xmax]:
            self._close(sock)

    def _send_heartbeats(self, now: float) -> None:
        """Send the heartbeats that are due, and end the streams whose client lost its access."""
        self._end([sock for sock, each in self._open.items() if each.ends_at <= now])
        due = [(sock, stream) for sock, stream in self._open.items() if stream.heartbeat_at <= now]
        if not due:
            return
        for _, stream in due:
            if not stream.unsent:
                # A client whose filters match little resumes from here, not from long ago.
                moved = stream.known != stream.position[:2]
                stream.append(heartbeat(stream.position if moved else None))
                stream.known = stream.position[:2]
            # If the access cannot be checked, the next heartbeat follows soon.
            stream.heartbeat_at = now + self._options.heartbeat_seconds / 15
        over = []
        try:
            with self._streams._engine().connect() as connection:
                for sock, stream in due:
                    if not stream.is_allowed(connection):
                        over.append(sock)
                    stream.heartbeat_at = now + self._options.heartbeat_seconds
        except SQLAlchemyError as error:
            self._poll_log.failed(error)
        # After the connection is back in its pool: a client that sees the end may be a test
        # that removes the database.
        self._end(over)

    def _end(self, socks: Sequence[Any]) -> None:
        """End streams properly, so that their clients know that nothing was cut off."""
        for sock in socks:
            self._open[sock].append_end()
            self._send(sock, self._open[sock])
            self._close(sock)

    def _send(self, sock: Any, stream: Stream) -> None:
        now = time.monotonic()
        if not stream.unsent:
            stream.sent_at = now
            return
        try:
            sent = sock.send(stream.unsent)
            del stream.unsent[:sent]
            stream.sent_at = now
        except BlockingIOError:
            if now - stream.sent_at > self._options.send_seconds:
                self._close(sock)
        except OSError:
            self._close(sock)

    def _close(self, sock: Any) -> None:
        stream = self._open.pop(sock, None)
        if stream is None:
            return
        with self._streams._lock:
            self._streams._forget(self._process, stream)
        with contextlib.suppress(KeyError, ValueError):  # where it was not registered
            self._selector.unregister(sock)
        # Last, because a client that sees the end may open another stream.
        sock.close()
        self._streams._on_change(-1)


def _is_connected(sock: Any) -> bool:
    """Whether the client has not closed the connection; what it sends is ignored."""
    try:
        return bool(sock.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False
