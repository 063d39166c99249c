"""Long polling: claims that found nothing wait, with one watcher in each process.

A waiting claim holds a thread of the server and no connection. One of the waiters is the
watcher: it listens to the announcements of other processes (Postgres), and every
``POLL_SECONDS`` it asks for jobs that have become due. When the watcher leaves, another
waiter takes over.

Waiters for the same jobs share a topic. When a topic may have a job, it is ready, and one
waiter may claim. If that waiter gets a job, it makes the topic ready again, so the next one
tries. Example: four waiters for workspace 1, and one job is created. One of them claims it;
the next one claims nothing; the other two keep waiting.

A process announces a workspace at most once in ``ANNOUNCE_SECONDS``, because each NOTIFY
delays commits. No job is missed: a job that was not announced was created within that time
after an announcement, so each listener asks for due jobs once more when the time is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, Text, bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError

from ..services import queue
from ..services.queue import Topic
from ..store.faults import FaultLog
from ..store.statement import Statement

T = TypeVar("T")

CHANNEL = "jobapi_jobs"
POLL_SECONDS = 0.75
ANNOUNCE_SECONDS = 0.02
"""A process announces a workspace at most once in this time."""

ASK_AGAIN_SECONDS = ANNOUNCE_SECONDS + 0.003
"""How long after an announcement a listener asks once more."""

LISTEN_AGAIN_SECONDS = 30
"""How long after a failure the next attempt to listen follows."""

KEEP_SECONDS = 2.0
"""How long a waiter may wait at least before it ends in favor of a workspace without waiters."""

MAX_WORKSPACES = 10_000
"""How many workspaces a process remembers the last announcements of."""

logger = logging.getLogger("jobapi")


_NOTIFY = Statement[Any](
    select(func.pg_notify(CHANNEL, bindparam("payload", type_=Text)).label("notified")),
    prepare=True,
)


def topic(workspace_id: int, job_types: Sequence[str] | None) -> Topic:
    """What a claim waits for: jobs of a workspace, of these types or of all."""
    return workspace_id, None if job_types is None else tuple(sorted(set(job_types)))


@dataclass(eq=False)
class Waiter:
    """One waiting claim."""

    topic: Topic

    since: float
    """When it began to wait, on the waiters' clock."""

    ended: bool = False
    """Whether a waiter of another workspace has taken its place."""

    @property
    def workspace_id(self) -> int:
        """The workspace of the claim."""
        return self.topic[0]


class Waiters:
    """The waiting claims of this process, at most ``limit()`` at a time.

    ``is_closing`` says whether the process is about to stop; then all waits end. ``on_change``
    is called with 1 or -1 when a claim begins or ends its wait. ``clock`` is in seconds, as
    ``time.monotonic``.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        limit: Callable[[], int],
        listen: bool,
        listen_engine: Callable[[], Engine] | None = None,
        is_closing: Callable[[], bool] = lambda: False,
        on_change: Callable[[int], None] = lambda more: None,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._limit = limit
        self._listen = listen
        self._listen_engine = listen_engine or engine
        self._is_closing = is_closing
        self._on_change = on_change
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._closed = False
        self._changed = Condition()
        self._waiters: dict[Waiter, None] = {}
        """Waiting claims in the order of arrival."""
        self._topics: Counter[Topic] = Counter()
        """How many claims wait for each topic, including those that have just ended."""
        self._ready: set[Topic] = set()
        """The topics that may have a job: one waiter of each may claim."""
        self._wake: socket.socket | None = None
        """A byte sent here wakes the watcher; None while there is no watcher."""
        self._poll_at = 0.0
        self._ask_again_at: dict[int, float] = {}
        """When to ask once more for the jobs of a workspace that was announced."""
        self._announced_at: dict[int, float] = {}
        """When this process last announced a workspace."""
        self._id = secrets.token_hex(4)
        self._listener: Any = None
        self._listen_again_at = 0.0
        self._log = FaultLog("the poll for jobs")

    def __len__(self) -> int:
        return len(self._waiters)

    def retry(
        self,
        topic: Topic,
        deadline: float,
        is_gone: Callable[[], bool],
        claim: Callable[[], T | None],
    ) -> T | None:
        """Wait, and repeat ``claim`` whenever there may be a job, until it does not return None.

        Returns None at the deadline (on the clock), if no more claims may wait, and if ``is_gone``
        says that the caller has closed the connection.
        """
        waiter = self.join(topic)
        if waiter is None:
            return None
        self._on_change(1)
        try:
            while self.wait(waiter, deadline, is_gone):
                got_none = False
                try:
                    claimed = claim()
                    got_none = claimed is None
                finally:
                    # After a job or an error, there may be a job for the next waiter.
                    if not got_none:
                        self._make_ready({topic})
                if claimed is not None:
                    return claimed
            return None
        finally:
            self.leave(waiter)
            self._on_change(-1)

    def join(self, topic: Topic) -> Waiter | None:
        """Add a waiter, to be removed with ``leave``; None if its workspace may have no more.

        Workspaces share the limit fairly. If it is reached, the workspace with the most waiters
        gives one up for a workspace with fewer: its oldest waiter ends.
        """
        with self._changed:
            now = self._clock()
            if len(self._waiters) >= self._limit() and not self._make_room(topic[0], now):
                return None
            if not self._topics:
                # The claim itself has just tried; no other topic is waited for.
                self._poll_at = now + self._poll_seconds
            waiter = Waiter(topic, now)
            self._waiters[waiter] = None
            self._topics[topic] += 1
            # A job created since the claim has woken no waiter.
            self._ready.add(topic)
            return waiter

    def _make_room(self, workspace_id: int, now: float) -> bool:
        held = Counter(waiter.workspace_id for waiter in self._waiters)
        most, mine = max(held.values(), default=0), held[workspace_id]
        if mine == most:
            return False
        oldest = next(each for each in self._waiters if held[each.workspace_id] == most)
        if most == mine + 1 and (mine or now - oldest.since < KEEP_SECONDS):
            # The two workspaces would only swap their numbers of waiters, perhaps again and again.
            return False
        oldest.ended = True
        del self._waiters[oldest]
        self._notify()
        return True

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter."""
        with self._changed:
            self._waiters.pop(waiter, None)
            self._topics[waiter.topic] -= 1
            if not self._topics[waiter.topic]:
                del self._topics[waiter.topic]
                self._ready.discard(waiter.topic)
            self._notify()

    def wait(self, waiter: Waiter, deadline: float, is_gone: Callable[[], bool]) -> bool:
        """Wait until the waiter may claim; False at the deadline, when it has ended or is gone.

        ``deadline`` is on the clock.
        """
        while True:
            if is_gone() or self._closed or self._is_closing():
                return False
            with self._changed:
                if waiter.topic in self._ready:
                    self._ready.remove(waiter.topic)
                    return True
                left = deadline - self._clock()
                if left <= 0 or waiter.ended:
                    return False
                pause = min(left, self._poll_seconds)
                if self._wake is not None:
                    self._changed.wait(pause)
                    continue
                wake, woken = socket.socketpair()
                wake.setblocking(False)
                self._wake = wake
            try:
                self._watch(pause, woken)
            finally:
                with self._changed:
                    self._wake = None
                    self._changed.notify_all()
                wake.close()
                woken.close()

    def announce(self, connection: Connection, workspace_id: int) -> None:
        """Tell the waiters of all processes that a workspace has a due job, after the commit.

        Never fails: without an announcement the waiters find the job a little later.
        """
        with self._changed:
            here = {topic for topic in self._topics if topic[0] == workspace_id}
        if here:
            self._make_ready(here)
        if not self._listen or connection.dialect.name != "postgresql":
            return
        now = self._clock()
        if now - self._announced_at.get(workspace_id, -1.0) < ANNOUNCE_SECONDS:
            return
        if len(self._announced_at) > MAX_WORKSPACES:
            self._announced_at.clear()
        self._announced_at[workspace_id] = now
        try:
            _NOTIFY.all(connection, {"payload": f"{workspace_id} {self._sender()}"})
        except SQLAlchemyError:
            # The next announcement must not be held back for one that was not sent.
            self._announced_at.pop(workspace_id, None)

    def close(self) -> None:
        """End all waits, and close the connection that listens."""
        self._closed = True
        with self._changed:
            self._notify()
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(psycopg.Error):
                listener.close()

    def _sender(self) -> str:
        # Processes that are forked share the id.
        return f"{self._id}-{os.getpid()}"

    def _make_ready(self, topics: Collection[Topic]) -> None:
        with self._changed:
            self._ready.update(topic for topic in topics if topic in self._topics)
            self._notify()

    def _notify(self) -> None:
        """Wake all waiters, the watcher too; call it with the lock held."""
        self._changed.notify_all()
        if self._wake is not None:
            with contextlib.suppress(OSError):
                self._wake.send(b"x")

    def _watch(self, seconds: float, woken: socket.socket) -> None:
        """Listen until woken, for at most ``seconds``; then query due jobs, if it is time."""
        engine = self._engine()
        listens = self._listen and engine.dialect.driver == "psycopg"
        with self._changed:
            until = min([self._poll_at, *self._ask_again_at.values()])
        pause = max(0.0, min(seconds, until - self._clock()))
        announced = self._hear(pause, woken, listens=listens)
        topics = self._to_ask(announced, self._clock())
        if not topics:
            return
        try:
            with engine.connect() as connection:
                found: Collection[Topic] = queue.claimable(connection, topics)
            self._log.worked()
        except SQLAlchemyError as error:
            self._log.failed(error)
            return
        self._make_ready(found)

    def _to_ask(self, announced: Iterable[int], now: float) -> list[Topic]:
        """Make the topics of announced workspaces ready; returns the topics to query now."""
        with self._changed:
            heard = set(announced)
            if heard:
                self._ready.update(topic for topic in self._topics if topic[0] in heard)
                self._notify()
            again = {w for w, at in self._ask_again_at.items() if at <= now} - heard
            for workspace_id in again:
                del self._ask_again_at[workspace_id]
            if len(self._ask_again_at) > MAX_WORKSPACES:
                self._ask_again_at.clear()
            # The sender does not announce what it creates within this time.
            self._ask_again_at.update(dict.fromkeys(heard, now + ASK_AGAIN_SECONDS))
            if now >= self._poll_at:
                self._poll_at = now + self._poll_seconds
                return list(self._topics)
            return [topic for topic in self._topics if topic[0] in again]

    def _hear(self, seconds: float, woken: socket.socket, *, listens: bool) -> set[int]:
        """Wait for ``seconds`` or until woken; returns the workspaces that others announced."""
        listener = self._listener
        if listens and listener is None and self._clock() >= self._listen_again_at:
            self._listener = self._new_listener()
            if self._listener is not None:
                # Earlier announcements went to others only.
                self._poll_at = 0.0
                return set()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(woken, selectors.EVENT_READ)
                if listener is not None:
                    selector.register(listener.fileno(), selectors.EVENT_READ)
                selector.select(seconds)
            if listener is None:
                return set()
            return self._from_others(listener.notifies(timeout=0))
        except psycopg.Error:
            self._drop_listener()
            return set()

    def _from_others(self, notices: Iterable[Any]) -> set[int]:
        announced = set()
        for notice in notices:
            workspace_id, _, sender = notice.payload.partition(" ")
            # The sender has woken its own waiters already.
            if workspace_id.isdigit() and sender != self._sender():
                announced.add(int(workspace_id))
        return announced

    def _new_listener(self) -> Any:
        try:
            listener = self._connect()
            listener.autocommit = True
            listener.execute(f"LISTEN {CHANNEL}")
        except (SQLAlchemyError, psycopg.Error):
            self._drop_listener()
            return None
        return listener

    def _connect(self) -> Any:
        pooled = self._listen_engine().raw_connection()
        listener = pooled.driver_connection
        # Taken out of the pool, because it is kept as long as the process runs.
        pooled.detach()
        return listener

    def _drop_listener(self) -> None:
        logger.warning("cannot listen for jobs; polling for them instead", exc_info=True)
        self._listen_again_at = self._clock() + LISTEN_AGAIN_SECONDS
        if self._listener is not None:
            with contextlib.suppress(psycopg.Error):
                self._listener.close()
        self._listener = None
