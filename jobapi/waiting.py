"""Waiting for jobs: one watcher in each process for all that wait there.

A caller who waits holds no connection. One of those who wait is the watcher:
it listens for what other processes announce (Postgres), and looks itself every
``POLL_SECONDS`` for jobs that have become due or whose announcement was lost.
When the watcher leaves, another of them takes its place.

Of those who wait for the same, one at a time has the turn to look, and calls
the next one when there was something: a single job wakes one of them, not all.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Condition
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from . import queue

CHANNEL = "jobapi_jobs"
POLL_SECONDS = 0.75
ANNOUNCE_SECONDS = 0.05
"""One process announces a workspace at most once in this time: each NOTIFY makes others wait."""

LISTEN_AGAIN_SECONDS = 30

Wish = tuple[int, tuple[str, ...] | None]
"""What somebody waits for: a workspace, and job types or all."""

logger = logging.getLogger("jobapi")


def wish(workspace_id: int, job_types: Sequence[str] | None) -> Wish:
    """What a claim waits for."""
    return workspace_id, None if job_types is None else tuple(sorted(set(job_types)))


class WaitingRoom:
    """Those who wait in this process, ``limit`` at most."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        limit: int,
        listen: bool,
        listen_engine: Callable[[], Engine] | None = None,
    ) -> None:
        self.limit = limit
        self.closing: Callable[[], bool] = lambda: False
        self._engine = engine
        self._listen = listen
        self._listen_engine = listen_engine or engine
        self._changed = Condition()
        self._wishes: Counter[Wish] = Counter()
        self._turns: set[Wish] = set()
        self._watched = False
        self._announced: dict[int, float] = {}
        self._listener: Any = None
        self._listen_again = 0.0

    def enter(self, wanted: Wish) -> bool:
        """Begin to wait; False where the room is full. Whoever entered leaves."""
        with self._changed:
            if self._wishes.total() >= self.limit:
                return False
            self._wishes[wanted] += 1
            # What came since they looked has called nobody.
            self._turns.add(wanted)
            return True

    def leave(self, wanted: Wish) -> None:
        """Wait no longer."""
        with self._changed:
            self._wishes[wanted] -= 1
            if not self._wishes[wanted]:
                del self._wishes[wanted]
                self._turns.discard(wanted)
            self._changed.notify_all()

    def call(self, wanted: Wish) -> None:
        """Give the turn to another: there was something, so that there may be more."""
        with self._changed:
            if wanted in self._wishes:
                self._turns.add(wanted)
                self._changed.notify_all()

    def wait(self, wanted: Wish, deadline: float, is_gone: Callable[[], bool]) -> bool:
        """Wait for the turn to look; False at the deadline, or when gone.

        ``deadline`` is on ``time.monotonic``'s clock.
        """
        while True:
            if is_gone() or self.closing():
                return False
            with self._changed:
                if wanted in self._turns:
                    self._turns.remove(wanted)
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                pause = min(left, POLL_SECONDS)
                if self._watched:
                    self._changed.wait(pause)
                    continue
                self._watched = True
            try:
                self._watch(pause)
            finally:
                with self._changed:
                    self._watched = False
                    self._changed.notify_all()

    def announce(self, connection: Connection, workspace_id: int) -> None:
        """Say that a workspace has a job to be done; to be called after the commit.

        Never fails: those who wait find out by themselves a little later.
        """
        self._call({workspace_id})
        if not self._listen or connection.dialect.name != "postgresql":
            return
        now = time.monotonic()
        if now - self._announced.get(workspace_id, -1.0) < ANNOUNCE_SECONDS:
            return
        if len(self._announced) > 10_000:
            self._announced.clear()
        self._announced[workspace_id] = now
        with contextlib.suppress(SQLAlchemyError):
            connection.execute(select(func.pg_notify(CHANNEL, str(workspace_id))))

    def _call(self, workspace_ids: set[int]) -> None:
        with self._changed:
            self._turns.update(wanted for wanted in self._wishes if wanted[0] in workspace_ids)
            self._changed.notify_all()

    def _watch(self, seconds: float) -> None:
        """Listen for so long at most, then look."""
        engine = self._engine()
        if self._listen and engine.dialect.driver == "psycopg":
            heard = self._hear(seconds)
            if heard:
                self._call(heard)
                return
        else:
            time.sleep(seconds)
        with self._changed:
            wishes = list(self._wishes)
        try:
            with engine.connect() as connection:
                found = [w for w in wishes if queue.claimable(connection, *w)]
        except SQLAlchemyError:
            logger.warning("cannot look for jobs; those who wait look themselves", exc_info=True)
            found = []
        with self._changed:
            self._turns.update(wanted for wanted in found if wanted in self._wishes)
            self._changed.notify_all()

    def _hear(self, seconds: float) -> set[int]:
        """The workspaces announced within so many seconds."""
        if self._listener is None and time.monotonic() >= self._listen_again:
            self._listener = self._new_listener()
        if self._listener is None:
            time.sleep(seconds)
            return set()
        try:
            heard = self._listener.notifies(timeout=seconds, stop_after=1)
            return {int(notice.payload) for notice in heard if notice.payload.isdigit()}
        except psycopg.Error:
            self._drop_listener()
            return set()

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
        self._listen_again = time.monotonic() + LISTEN_AGAIN_SECONDS
        if self._listener is not None:
            with contextlib.suppress(psycopg.Error):
                self._listener.close()
        self._listener = None
