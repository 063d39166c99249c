"""Streams of events: one thread in each process for all that are open there.

It looks for new events of the workspaces that somebody listens to every
``POLL_SECONDS``, and at once when this process has changed something; that
works the same on both databases, through a pooler and over any number of
nodes. A stream is a socket here, and no thread of the server's.
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
from ..services import events
from ..services.events import EventFilters, Found, Position, Snapshot
from ..store.faults import FaultLog
from ..store.transactions import snapshot

if sys.platform != "win32":  # where a host may be developed
    import resource

POLL_SECONDS = 0.1
WAKE_SECONDS = 0.02
"""How long after a look the next one is at the earliest, however much happens."""

AGAIN_SECONDS = 2.0
"""How long after a look that failed."""

HEARTBEAT_SECONDS = 15.0
"""How often a stream shows that all is well, and it is asked whether it still may be."""

THREAD_SECONDS = 300.0
"""How long a stream lasts that holds a thread of the server; the listener reopens it.

Where the server does not say that a listener has gone, it holds a thread no longer.
"""

STOP_SECONDS = 1.0

_HEARTBEAT = b":\n"
_CHANCE = random.SystemRandom()
AT_ONCE = 500
"""How many events of a workspace are read at a time; where there are more, at once again."""

LOOK_SECONDS = 0.1
"""How long a look goes on with those who are behind, before what was found is sent."""

MAX_BEHIND = 256 * 1024
"""How many bytes wait for a slow listener, before it gets nothing new until it has read them."""

SEND_SECONDS = 60.0
"""How long a listener may read nothing of what waits, before it is given up."""

logger = logging.getLogger("jobapi")


def position_of(position: Position) -> bytes:
    """A heartbeat with the ``id`` from which to resume."""
    return b"id: %b\n%b" % (position.name.encode(), _HEARTBEAT)


def _next_beat(share: float = 1.0) -> float:
    return time.monotonic() + share * HEARTBEAT_SECONDS


@dataclass(eq=False)
class Stream:
    """One listener: what to send, from where on, and whether the caller still has access.

    ``position`` says which events have been read for it, wanted or not.
    ``chunked`` is the framing of HTTP/1.1. ``ends_at`` is when it ends at the
    latest, on ``time.monotonic``'s clock.
    """

    workspace_id: int
    user_id: int
    filters: EventFilters
    position: Position
    may: Callable[[Connection], bool]
    chunked: bool = False
    ends_at: float = math.inf
    waiting: bytearray = field(default_factory=bytearray)
    read_at: float = field(default_factory=time.monotonic)
    beat_at: float = field(default_factory=lambda: _next_beat(_CHANCE.random()))
    named: tuple[int, int] = field(init=False)
    """The position of the last event that was sent, or up to which none matched."""

    def __post_init__(self) -> None:
        self.named = self.position[:2]

    def say(self, data: bytes) -> None:
        """Queue data to be sent, as one chunk if the response is chunked."""
        self.waiting += b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def takes_a_thread(self) -> None:
        """Let it end after ``THREAD_SECONDS``."""
        self.ends_at = time.monotonic() + THREAD_SECONDS

    def end(self) -> None:
        """Mark the end of the response, so that it does not look cut off."""
        if self.chunked:
            self.waiting += b"0\r\n\r\n"


class Streams:
    """Those that are open in this process, ``limit`` at most.

    That is also at most half of the files that the process may open. A user has
    half of them at most, or two. ``frame`` makes of an event, and the name of the
    position after it, what is sent.
    """

    def __init__(
        self, engine: Callable[[], Engine], frame: Callable[[Any, str], bytes], *, limit: int
    ) -> None:
        self.closing: Callable[[], bool] = lambda: False
        self.count: Callable[[int], None] = lambda more: None
        self._limit = limit
        self._log = FaultLog("looking for events")
        self._engine = engine
        self._frame = frame
        self._lock = threading.Lock()
        self._process: int | None = None
        self._admitted: set[Stream] = set()
        self._open: dict[socket.socket, Stream] = {}
        self._new: list[tuple[socket.socket, Stream]] = []
        self._of_user: Counter[int] = Counter()
        self._number = 0
        self._wake: socket.socket | None = None
        self._seen: Snapshot | None = None
        """What the last look saw, if all streams have been given all of it."""

    @property
    def limit(self) -> int:
        """How many may be open."""
        if sys.platform == "win32":
            return self._limit
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self._limit if files == resource.RLIM_INFINITY else min(self._limit, files // 2)

    def __len__(self) -> int:
        return self._number if self._process == os.getpid() else 0

    def admit(self, stream: Stream, most: int) -> bool:
        """Keep a place for a stream; False where ``most`` are open, or half of them by its user.

        It is to be taken by ``add``, or given back by ``dismiss``.
        """
        with self._lock:
            self._start()
            if len(self) >= most or self._of_user[stream.user_id] >= max(2, most // 2):
                return False
            self._of_user[stream.user_id] += 1
            self._number += 1
            self._admitted.add(stream)
            return True

    def dismiss(self, stream: Stream) -> None:
        """Give back the place of a stream that was admitted and not added; else nothing."""
        with self._lock:
            if stream in self._admitted:
                self._admitted.remove(stream)
                self._leave(stream)

    def add(
        self, sock: socket.socket, stream: Stream, *, head: bytes = b"", first: bytes = _HEARTBEAT
    ) -> None:
        """Serve a stream on a socket from now on; it is closed here.

        It begins with ``head``, which has its own framing, and ``first``.
        """
        sock.setblocking(False)
        # Something to read at once, so that a proxy does not wait for more.
        stream.waiting += head
        stream.say(first)
        with self._lock:
            self._admitted.remove(stream)
            self._new.append((sock, stream))
        self.count(1)
        self.wake()

    def _leave(self, stream: Stream) -> None:
        self._number -= 1
        self._of_user[stream.user_id] -= 1
        if not self._of_user[stream.user_id]:
            del self._of_user[stream.user_id]

    def wake(self) -> None:
        """Look at once: something has been changed here."""
        if len(self) and self._wake is not None:
            with contextlib.suppress(OSError):
                self._wake.send(b"x")

    def stop(self) -> None:
        """End all streams, because the process ends; waits for a moment until they have."""
        self.closing = lambda: True
        self.wake()
        deadline = time.monotonic() + STOP_SECONDS
        while len(self) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _start(self) -> None:
        if self._process == os.getpid():
            return
        # Of a process that was forked: what is open is the other's.
        self._process = os.getpid()
        self._admitted, self._open, self._new = set(), {}, []
        self._of_user.clear()
        self._number = 0
        self._wake, woken = socket.socketpair()
        for end in (self._wake, woken):
            end.setblocking(False)
        threading.Thread(
            target=self._run, args=(woken,), name="jobapi-streams", daemon=True
        ).start()

    def _run(self, woken: socket.socket) -> None:
        while True:
            with selectors.DefaultSelector() as selector:
                selector.register(woken, selectors.EVENT_READ)
                try:
                    self._serve(selector, woken)
                except Exception:
                    # Whoever listens comes back, and goes on where they were.
                    logger.exception("the streams have failed; all of them end")
                    with contextlib.suppress(Exception):
                        self._take_new(selector)
                    for sock in list(self._open):
                        with contextlib.suppress(Exception):
                            self._drop(selector, sock)
            time.sleep(AGAIN_SECONDS)

    def _serve(self, selector: selectors.BaseSelector, woken: socket.socket) -> None:
        look_at = beat_at = looked_at = 0.0
        while True:
            now = time.monotonic()
            pause = max(0.0, min(look_at, beat_at) - now) if len(self) else None
            for key, _ in selector.select(pause):
                if key.fileobj is woken:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                    if look_at <= looked_at + POLL_SECONDS:
                        look_at = min(look_at, looked_at + WAKE_SECONDS)
                elif not self._listens(key.fileobj):
                    self._drop(selector, key.fileobj)
            self._take_new(selector)
            if self.closing():
                self._end(selector, list(self._open))
            now = time.monotonic()
            if now >= look_at:
                looked_at = now
                look_at = now + self._look(selector)
            if now >= beat_at:
                # Those that were opened together do not all have their turn together.
                beat_at = now + HEARTBEAT_SECONDS / 15
                self._beat(selector, now)
            for sock, stream in list(self._open.items()):
                self._send(selector, sock, stream)

    def _take_new(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            new, self._new = self._new, []
            self._open.update(new)
        for sock, stream in new:
            selector.register(sock, selectors.EVENT_READ)
            self._seen = None
            # However long the database takes for the first look.
            self._send(selector, sock, stream)

    def _listens(self, sock: Any) -> bool:
        """Whether whoever is at the other end has not gone; nothing that they send counts."""
        try:
            return bool(sock.recv(4096))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _look(self, selector: selectors.BaseSelector) -> float:
        """Read what is new, once for all who are at the same position; when to look again, in s."""
        listening = [each for each in self._open.values() if len(each.waiting) < MAX_BEHIND]
        if not listening:
            return POLL_SECONDS
        pause, end = POLL_SECONDS, time.monotonic() + LOOK_SECONDS
        at: dict[tuple[int, Position], list[Stream]] = defaultdict(list)
        for stream in listening:
            at[stream.workspace_id, stream.position].append(stream)
        try:
            with self._engine().connect() as connection, snapshot(connection):
                seen = events.current_snapshot(connection)
                if seen == self._seen:
                    return POLL_SECONDS
                self._seen = None
                # Whoever goes on from long ago comes after those who have nearly everything.
                for workspace_id, position in sorted(at, key=lambda key: key[1][:2], reverse=True):
                    if time.monotonic() >= end:
                        return WAKE_SECONDS
                    found = events.after(
                        connection, workspace_id, position, seen=seen, most=AT_ONCE
                    )
                    self._give(found, at[workspace_id, position])
                    if found.more:
                        pause = WAKE_SECONDS
            self._log.worked()
        except (SQLAlchemyError, Unavailable) as error:
            self._log.failed(error)
            return AGAIN_SECONDS
        if seen.numbered and all(len(each.waiting) < MAX_BEHIND for each in self._open.values()):
            # While nothing is written on the whole server, there is nothing to read.
            self._seen = seen if pause == POLL_SECONDS else None
        # A server that has lost what it had committed numbers other transactions alike.
        for sock in [s for s, each in self._open.items() if each.position.xid >= seen.xmax]:
            self._drop(selector, sock)
        return pause

    def _give(self, found: Found, listening: list[Stream]) -> None:
        frames: dict[int, bytes] = {}
        for stream in listening:
            for event, position in found.events:
                stream.position = position
                if stream.filters.matches(event):
                    if event.id not in frames:
                        frames[event.id] = self._frame(event, position.name)
                    stream.say(frames[event.id])
                    stream.named = position[:2]
                    if len(stream.waiting) >= MAX_BEHIND:
                        break
            else:
                stream.position = found.end

    def _beat(self, selector: selectors.BaseSelector, now: float) -> None:
        """Show that all is well, and end the streams of those who may not listen any more."""
        self._end(selector, [sock for sock, each in self._open.items() if each.ends_at <= now])
        due = [(sock, stream) for sock, stream in self._open.items() if stream.beat_at <= now]
        if not due:
            return
        for _, stream in due:
            if not stream.waiting:
                if stream.named != stream.position[:2]:
                    # Whoever wants little goes on from here, and not from long ago.
                    stream.say(position_of(stream.position))
                    stream.named = stream.position[:2]
                else:
                    stream.say(_HEARTBEAT)
            # Soon again, where it cannot be asked.
            stream.beat_at = _next_beat(1 / 15)
        over = []
        try:
            with self._engine().connect() as connection:
                for sock, stream in due:
                    if not stream.may(connection):
                        over.append(sock)
                    stream.beat_at = _next_beat()
        except SQLAlchemyError as error:
            self._log.failed(error)
        # When the connection is back: whoever sees the end may take the database away.
        self._end(selector, over)

    def _end(self, selector: selectors.BaseSelector, socks: Sequence[Any]) -> None:
        """End streams properly, so that their listeners know that nothing was cut off."""
        for sock in socks:
            self._open[sock].end()
            self._send(selector, sock, self._open[sock])
            self._drop(selector, sock)

    def _send(self, selector: selectors.BaseSelector, sock: socket.socket, stream: Stream) -> None:
        now = time.monotonic()
        if not stream.waiting:
            stream.read_at = now
            return
        try:
            sent = sock.send(stream.waiting)
            del stream.waiting[:sent]
            stream.read_at = now
        except BlockingIOError:
            if now - stream.read_at > SEND_SECONDS:
                self._drop(selector, sock)
        except OSError:
            self._drop(selector, sock)

    def _drop(self, selector: selectors.BaseSelector, sock: Any) -> None:
        stream = self._open.pop(sock, None)
        if stream is None:
            return
        with self._lock:
            self._leave(stream)
        with contextlib.suppress(KeyError, ValueError):  # where it was not registered
            selector.unregister(sock)
        # Whoever sees the end can open another.
        sock.close()
        self.count(-1)
