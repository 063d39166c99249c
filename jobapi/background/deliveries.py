"""Delivers events to webhooks, in the process that leads the maintenance.

One thread makes deliveries of new events, picks due ones and saves results; ``sending`` sends
them. Example of fairness: webhook A has 5,000 due deliveries and a receiver that hangs, webhook B
has one. A may have ``PER_WEBHOOK`` requests under way, and one once it has failed; B's request
starts at once. If A's receiver works again, its first success lets it catch up.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import NamedTuple

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ..errors import Unavailable
from ..rules.webhooks import Answer, DeliveryStatus, Disabled
from ..services import deliveries
from ..services.deliveries import Message as MakeMessage
from ..services.events import Snapshot, current_snapshot
from ..store.connections import AnyRow
from ..store.faults import FaultLog, judge
from ..store.secret_box import CannotDecrypt, SecretBox
from ..store.transactions import snapshot
from .sending import Message, Sender

POLL_SECONDS = 0.3
"""Time between two looks for events and due deliveries while there are enabled webhooks."""

IDLE_SECONDS = 2.0
"""Time between two looks while there are no enabled webhooks."""

PAUSE_SECONDS = 0.02
"""The shortest pause between two looks."""

RETRY_SECONDS = 2.0
"""Time to the next look after a fault of the database."""

STOP_SECONDS = 3.0
"""How long ``stop`` waits for the requests that are under way."""

PER_WEBHOOK = 16
"""How many requests to one webhook are under way at most; one if the last has failed."""

IN_ALL = 300
"""How many requests are under way at most; webhooks that fail have at most half of them."""

BYTES_IN_ALL = 32 * 1024 * 1024
"""With so many bytes under way, no more are picked."""

_CHANCE = random.SystemRandom()

logger = logging.getLogger("jobapi")

OnAttempt = Callable[[int, str], None]
"""Called with the workspace and the outcome of each attempt."""

Key = tuple[int, str]


class _Done(NamedTuple):
    delivery: AnyRow
    answer: Answer


class Deliverer:
    """Delivers to the webhooks of all workspaces, while this process leads.

    ``message`` makes the body of a message, ``sender`` sends it.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        box: SecretBox,
        message: MakeMessage,
        sender: Callable[[], Sender],
        on_attempt: OnAttempt = lambda workspace_id, outcome: None,
    ) -> None:
        self._engine = engine
        self._box = box
        self._message = message
        self._new_sender = sender
        self._on_attempt = on_attempt
        self._lock = Lock()
        self._process: int | None = None
        self._thread: Thread | None = None
        self._leads_until = float("-inf")
        self._log = FaultLog("the delivery to webhooks")
        self._reset()

    def _reset(self) -> None:
        self._sender: Sender | None = None
        self._stop = Event()
        self._wake = Event()
        self._done: SimpleQueue[_Done] = SimpleQueue()
        self._unsaved: list[_Done] = []
        self._under_way: Counter[Key] = Counter()
        self._sending: set[tuple[int, str, str]] = set()
        self._failing: set[Key] = set()
        self._bytes = 0
        self._caught_up: tuple[Snapshot, frozenset[tuple[int, str, str]]] | None = None

    def lead(self, until: float) -> None:
        """Deliver until this time on ``time.monotonic``'s clock, unless it is called again."""
        self._leads_until = until
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process != os.getpid():
                self._process = os.getpid()
                self._reset()
                self._thread = threading.Thread(
                    target=self._run, name="jobapi-deliveries", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Pick no more, wait a moment for the requests that are under way, and end the thread."""
        if self._process != os.getpid() or self._thread is None:
            return
        self._leads_until = float("-inf")
        self._stop.set()
        self._wake.set()
        self._thread.join(STOP_SECONDS + 5)
        self._process = None

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            pause = self.step()
            self._wake.wait(pause)
            if self._wake.is_set():
                # Answers that come together are saved together.
                self._stop.wait(max(0.0, began + PAUSE_SECONDS - time.monotonic()))
            self._wake.clear()
        deadline = time.monotonic() + STOP_SECONDS
        while self._under_way.total() and time.monotonic() < deadline:
            self._wake.wait(0.1)
            self._wake.clear()
            self.step()
        if self._sender is not None:
            self._sender.stop()

    def step(self) -> float:
        """Save results, read new events, and begin what is due; returns the seconds to wait.

        A fault of the database is logged, and the work continues.
        """
        while True:
            try:
                self._unsaved.append(self._done.get_nowait())
            except Empty:
                break
        leads = time.monotonic() < self._leads_until
        if not leads and not self._unsaved:
            return IDLE_SECONDS
        try:
            with self._engine().connect() as connection:
                self._save(connection)
                pause = self._deliver(connection) if leads else IDLE_SECONDS
            self._log.worked()
            return pause
        except Exception as error:
            self._log.failed(error)
            return RETRY_SECONDS

    def _save(self, connection: Connection) -> None:
        while self._unsaved:
            done = self._unsaved[-1]
            key = done.delivery.workspace_id, done.delivery.webhook_id
            try:
                decided = deliveries.save(connection, done.delivery, done.answer, _CHANCE.random())
                if done.answer.accepted and key in self._failing:
                    deliveries.note_success(connection, done.delivery)
            except DBAPIError as error:
                fault = judge(error)
                if fault is not None and fault.reconnect:
                    raise
                # Such as a workspace that is being moved. It is sent again after its lease.
                logger.warning("the result of delivery %s is lost", done.delivery.id, exc_info=True)
                decided = None
            self._unsaved.pop()
            self._under_way[key] -= 1
            self._sending.discard((*key, done.delivery.id))
            self._bytes -= len(done.delivery.body)
            if done.answer.accepted:
                self._failing.discard(key)
            else:
                self._failing.add(key)
            if decided is not None:
                self._on_attempt(key[0], _outcome(decided.status, decided.disabled))

    def _deliver(self, connection: Connection) -> float:
        webhooks = deliveries.survey(connection)
        if not webhooks:
            return IDLE_SECONDS
        self._failing = {
            (each.workspace_id, each.id) for each in webhooks if each.failing_since is not None
        }
        more = self._read(connection, webhooks)
        self._begin(connection, webhooks)
        return 0.0 if more else POLL_SECONDS

    def _read(self, connection: Connection, webhooks: Sequence[AnyRow]) -> bool:
        """Make deliveries of new events; returns whether there may be more of them."""
        ready = [each for each in webhooks if not each.is_full]
        at = frozenset((each.workspace_id, each.id, each.position) for each in ready)
        try:
            with snapshot(connection, planner={}):
                seen = current_snapshot(connection)
                if (seen, at) == self._caught_up:
                    return False
                found = deliveries.read(connection, ready, self._message, seen=seen)
        except Unavailable as error:
            self._log.failed(error)
            return False
        for each in found.read:
            deliveries.store(connection, each)
        # Until any transaction writes on the whole server, there is nothing to read.
        caught_up = seen.numbered and not found.read and not found.more
        self._caught_up = (seen, at) if caught_up else None
        return found.more or any(each.deliveries for each in found.read)

    def _begin(self, connection: Connection, webhooks: Sequence[AnyRow]) -> None:
        """Send due deliveries, as many as each webhook may have under way."""
        due = [each for each in webhooks if each.is_due]
        _CHANCE.shuffle(due)
        # Those that fail come last.
        due.sort(key=lambda each: (each.workspace_id, each.id) in self._failing)
        for webhook in due:
            key = webhook.workspace_id, webhook.id
            limit = self._room(key)
            if limit > 0:
                picked = deliveries.pick(connection, webhook, limit)
                for delivery in picked:
                    # Redelivered while it is being sent: that attempt is the one asked for.
                    if (*key, delivery.id) not in self._sending:
                        self._send(webhook, delivery)

    def _room(self, key: Key) -> int:
        if self._bytes >= BYTES_IN_ALL:
            return 0
        total = self._under_way.total()
        if key not in self._failing:
            return min(PER_WEBHOOK - self._under_way[key], IN_ALL - total)
        failing = sum(n for each, n in self._under_way.items() if each in self._failing)
        return min(1 - self._under_way[key], IN_ALL // 2 - failing, IN_ALL - total)

    def _send(self, webhook: AnyRow, delivery: AnyRow) -> None:
        key = delivery.workspace_id, delivery.webhook_id
        self._under_way[key] += 1
        self._sending.add((*key, delivery.id))
        self._bytes += len(delivery.body)
        try:
            secrets = self._secrets(webhook, delivery.now)
        except CannotDecrypt:
            self._finish(
                delivery,
                Answer(
                    error="The secret of the webhook cannot be decrypted. Rotate it, or set "
                    "JOBAPI_SECRET_KEY_FALLBACKS."
                ),
            )
            return
        if self._sender is None:
            self._sender = self._new_sender()
        sent = self._sender.send(
            Message(
                id=delivery.id,
                url=webhook.url,
                secrets=secrets,
                timestamp=int(delivery.now.timestamp()),
                body=delivery.body.encode(),
            )
        )
        sent.add_done_callback(partial(self._sent, delivery))

    def _sent(self, delivery: AnyRow, future: Future[Answer]) -> None:
        if future.cancelled():
            # The process ends.
            return
        error = future.exception()
        if error is None:
            self._finish(delivery, future.result())
        else:
            logger.error("a message to a webhook could not be sent", exc_info=error)
            self._finish(delivery, Answer(error="Internal error; the log has the details."))

    def _secrets(self, webhook: AnyRow, now: datetime) -> list[str]:
        """The valid secrets, the newest first. Raises ``CannotDecrypt``."""
        found = [self._box.open(webhook.secret)]
        if webhook.previous_secret is not None and webhook.previous_secret_expires_at > now:
            with suppress(CannotDecrypt):
                found.append(self._box.open(webhook.previous_secret))
        return found

    def _finish(self, delivery: AnyRow, answer: Answer) -> None:
        self._done.put(_Done(delivery, answer))
        self._wake.set()


def _outcome(status: DeliveryStatus, disabled: Disabled | None) -> str:
    """``success``, ``retried``, ``failed``, or ``disabled``."""
    if disabled is not None:
        return "disabled"
    return "retried" if status is DeliveryStatus.PENDING else status.label
