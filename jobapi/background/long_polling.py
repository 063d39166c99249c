"""Long polling: claims that found nothing wait, with one watcher in each process.

A waiting caller holds a seat and no connection. One of the waiters is the
watcher: it listens to the announcements of other processes (Postgres), and every
``POLL_SECONDS`` it looks for jobs that have become due. When the watcher leaves, another
waiter takes over.

Of the waiters for the same jobs, one at a time may claim. If it gets a job, it
wakes the next one, so a single job does not wake all of them.

A process announces a workspace at most once in ``ANNOUNCE_SECONDS``, because each
NOTIFY makes commits wait. No job is missed: an unannounced change happens within
that time after an announced one, so each listener looks once more when the time
is over.
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
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from ..services import queue
from ..services.queue import Wish
from ..store.faults import FaultLog

CHANNEL = "jobapi_jobs"
POLL_SECONDS = 0.75
ANNOUNCE_SECONDS = 0.05
"""A process announces a workspace at most once in this time."""

AGAIN_SECONDS = ANNOUNCE_SECONDS + 0.003
"""How long after an announcement a listener looks once more."""

LISTEN_AGAIN_SECONDS = 30
SEAT_SECONDS = 2.0
"""How long a waiter at least keeps its seat if another workspace has none."""

MANY_WORKSPACES = 10_000
"""How many workspaces a process remembers the last announcements of."""

logger = logging.getLogger("jobapi")


def wish(workspace_id: int, job_types: Sequence[str] | None) -> Wish:
    """What a claim waits for."""
    return workspace_id, None if job_types is None else tuple(sorted(set(job_types)))


@dataclass(eq=False)
class Seat:
    """The seat of one waiter; ``ended`` if another workspace has taken it."""

    wanted: Wish
    since: float
    ended: bool = False

    @property
    def workspace_id(self) -> int:
        """The workspace that holds it."""
        return self.wanted[0]


class WaitingRoom:
    """The waiters of this process, ``limit`` at most.

    ``clock`` is in seconds, as ``time.monotonic``.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        limit: int,
        listen: bool,
        listen_engine: Callable[[], Engine] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.closing: Callable[[], bool] = lambda: False
        self._engine = engine
        self._listen = listen
        self._listen_engine = listen_engine or engine
        self._clock = clock
        self._changed = Condition()
        # The oldest first, without those that have ended.
        self._seats: dict[Seat, None] = {}
        self._wishes: Counter[Wish] = Counter()
        self._turns: set[Wish] = set()
        self._wake: socket.socket | None = None
        self._poll_at = 0.0
        self._again_at: dict[int, float] = {}
        self._announced: dict[int, float] = {}
        self._id = secrets.token_hex(4)
        self._listener: Any = None
        self._listen_again = 0.0
        self._log = FaultLog("looking for jobs")

    def enter(self, wanted: Wish) -> Seat | None:
        """Take a seat, to be left with ``leave``; None where there is none for the workspace.

        Seats are shared between workspaces: where all are taken, the workspace with
        the most gives one up for a workspace with fewer, that of its waiter who has
        waited longest.
        """
        with self._changed:
            now = self._clock()
            if len(self._seats) >= self.limit and not self._free(wanted[0], now):
                return None
            if not self._wishes:
                # It looks for jobs itself; other wishes have no waiter yet.
                self._poll_at = now + POLL_SECONDS
            seat = Seat(wanted, now)
            self._seats[seat] = None
            self._wishes[wanted] += 1
            # Jobs that came since it looked have woken no waiter.
            self._turns.add(wanted)
            return seat

    def _free(self, workspace_id: int, now: float) -> bool:
        held = Counter(seat.workspace_id for seat in self._seats)
        most, mine = max(held.values(), default=0), held[workspace_id]
        if mine == most:
            return False
        oldest = next(seat for seat in self._seats if held[seat.workspace_id] == most)
        if most == mine + 1 and (mine or now - oldest.since < SEAT_SECONDS):
            # It would only be the other way round then.
            return False
        oldest.ended = True
        del self._seats[oldest]
        self._stir()
        return True

    def leave(self, seat: Seat) -> None:
        """Wait no longer."""
        with self._changed:
            self._seats.pop(seat, None)
            self._wishes[seat.wanted] -= 1
            if not self._wishes[seat.wanted]:
                del self._wishes[seat.wanted]
                self._turns.discard(seat.wanted)
            self._stir()

    def call(self, wanted: Wish) -> None:
        """Give the turn to another: there was something, so that there may be more."""
        self._give_turns({wanted})

    def wait(self, seat: Seat, deadline: float, is_gone: Callable[[], bool]) -> bool:
        """Wait for the turn to claim; False at the deadline, when the seat has ended, or when gone.

        ``deadline`` is on ``clock``.
        """
        while True:
            if is_gone() or self.closing():
                return False
            with self._changed:
                if seat.wanted in self._turns:
                    self._turns.remove(seat.wanted)
                    return True
                left = deadline - self._clock()
                if left <= 0 or seat.ended:
                    return False
                pause = min(left, POLL_SECONDS)
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
        """Say that a workspace has a job to be done; to be called after the commit.

        Never fails: those who wait find out by themselves a little later.
        """
        with self._changed:
            here = {wanted for wanted in self._wishes if wanted[0] == workspace_id}
        if here:
            self._give_turns(here)
        if not self._listen or connection.dialect.name != "postgresql":
            return
        now = self._clock()
        if now - self._announced.get(workspace_id, -1.0) < ANNOUNCE_SECONDS:
            return
        if len(self._announced) > MANY_WORKSPACES:
            self._announced.clear()
        self._announced[workspace_id] = now
        try:
            connection.execute(select(func.pg_notify(CHANNEL, f"{workspace_id} {self._sender()}")))
        except SQLAlchemyError:
            # What was not said must not stand for what comes next.
            self._announced.pop(workspace_id, None)

    def close(self) -> None:
        """End all waits, and close the connection that listens."""
        self.closing = lambda: True
        with self._changed:
            self._stir()
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(psycopg.Error):
                listener.close()

    def _sender(self) -> str:
        # Processes that are forked share the id.
        return f"{self._id}-{os.getpid()}"

    def _give_turns(self, wishes: Collection[Wish]) -> None:
        with self._changed:
            self._turns.update(wanted for wanted in wishes if wanted in self._wishes)
            self._stir()

    def _stir(self) -> None:
        """Wake all who wait, the watcher too; to be called with the lock held."""
        self._changed.notify_all()
        if self._wake is not None:
            with contextlib.suppress(OSError):
                self._wake.send(b"x")

    def _watch(self, seconds: float, woken: socket.socket) -> None:
        """Listen for so long at most, or until woken; then ask for what is due."""
        engine = self._engine()
        listens = self._listen and engine.dialect.driver == "psycopg"
        with self._changed:
            until = min([self._poll_at, *self._again_at.values()])
        pause = max(0.0, min(seconds, until - self._clock()))
        heard = self._hear(pause, woken, listens=listens)
        wishes = self._due(heard, self._clock())
        if not wishes:
            return
        try:
            with engine.connect() as connection:
                found: Collection[Wish] = queue.claimable(connection, wishes)
            self._log.worked()
        except SQLAlchemyError as error:
            self._log.failed(error)
            return
        self._give_turns(found)

    def _due(self, heard: Iterable[int], now: float) -> list[Wish]:
        """Give turns for what was heard of; returns which wishes to ask for now."""
        with self._changed:
            announced = set(heard)
            if announced:
                self._turns.update(wanted for wanted in self._wishes if wanted[0] in announced)
                self._stir()
            again = {w for w, at in self._again_at.items() if at <= now} - announced
            for workspace_id in again:
                del self._again_at[workspace_id]
            if len(self._again_at) > MANY_WORKSPACES:
                self._again_at.clear()
            # What the same process says within the time after that is not announced.
            self._again_at.update(dict.fromkeys(announced, now + AGAIN_SECONDS))
            if now >= self._poll_at:
                self._poll_at = now + POLL_SECONDS
                return list(self._wishes)
            return [wanted for wanted in self._wishes if wanted[0] in again]

    def _hear(self, seconds: float, woken: socket.socket, *, listens: bool) -> set[int]:
        """The workspaces that other processes announce within so many seconds."""
        listener = self._listener
        if listens and listener is None and self._clock() >= self._listen_again:
            self._listener = self._new_listener()
            if self._listener is not None:
                # What came before has been announced to others only.
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
            return self._of_others(listener.notifies(timeout=0))
        except psycopg.Error:
            self._drop_listener()
            return set()

    def _of_others(self, notices: Iterable[Any]) -> set[int]:
        heard = set()
        for notice in notices:
            workspace_id, _, sender = notice.payload.partition(" ")
            # Its own waiters a process calls itself.
            if workspace_id.isdigit() and sender != self._sender():
                heard.add(int(workspace_id))
        return heard

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
        # Out of the pool: it stays as long as the process.
        pooled.detach()
        return listener

    def _drop_listener(self) -> None:
        logger.warning("cannot listen for jobs; looking for them instead", exc_info=True)
        self._listen_again = self._clock() + LISTEN_AGAIN_SECONDS
        if self._listener is not None:
            with contextlib.suppress(psycopg.Error):
                self._listener.close()
        self._listener = None
