"""A worker in processes: the parent starts them, replaces those that die, and stops them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from .. import errors
from ..signals import StopSignals
from .retries import Unreachable
from .runner import ThreadsLost

MAX_DELAY_SECONDS = 30.0
"""The longest pause before a process that keeps dying is replaced."""

HEALTHY_SECONDS = 10.0
"""A process that lived for this long is replaced at once."""

KILL_SECONDS = 5.0
"""Processes that are left this long after ``grace_seconds`` are killed."""

_STOP = "stop"

logger = logging.getLogger("jobapi.worker")


class Stoppable(Protocol):
    """The part of the worker that its processes need."""

    concurrency: int
    grace_seconds: float
    _signals: StopSignals

    def stop(self) -> None:
        """Stop the worker."""

    @property
    def stopping(self) -> bool:
        """Whether the worker must stop."""


class _Slot:
    """One of the processes to keep alive, and its deaths so far."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: BaseProcess | None = None
        # To the process: stop. From it: an error that every process would have.
        self.pipe: connection.Connection | None = None
        self.started_at = 0.0
        self.start_at = time.monotonic()
        self.deaths = 0
        self.done = False


class Processes:
    """The processes of a worker: as many as its concurrency, each with one thread for tasks.

    A process whose parent has died finds its pipe closed, and stops. An error that every
    process would have, such as a revoked key, is sent through the pipe and ends all of them.
    """

    def __init__(
        self, worker: Stoppable, name: str, work: Callable[[str, int], None], until_idle: bool
    ) -> None:
        self.worker = worker
        self.name = name
        self.work = work
        self.until_idle = until_idle
        self.slots = [_Slot(number) for number in range(worker.concurrency)]
        self.error: Exception | None = None
        # Forked, so that tasks need not be importable.
        self.context = get_context("fork")

    def run(self) -> None:
        """Keep the processes alive until stopped, or until none has anything left to do."""
        try:
            while self._alive() or not (self._closing() or all(p.done for p in self.slots)):
                if self._closing():
                    self._stop()
                    break
                for slot in self.slots:
                    self._start(slot)
                self._wait(0.2)
        finally:
            self._kill()
        if self.error is not None:
            raise self.error

    def _closing(self) -> bool:
        return self.worker.stopping or self.error is not None

    def _alive(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot.process is not None]

    def _start(self, slot: _Slot) -> None:
        if slot.process is not None or slot.done or time.monotonic() < slot.start_at:
            return
        slot.pipe, pipe = self.context.Pipe()
        others = [other.pipe for other in self.slots if other.pipe is not None]
        slot.process = self.context.Process(target=self._child, args=(slot.number, pipe, others))
        slot.process.start()
        pipe.close()
        slot.started_at = time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Wait for a process to end, at most this long, and note how it ended."""
        sentinels = [slot.process.sentinel for slot in self.slots if slot.process is not None]
        if sentinels:
            connection.wait(sentinels, seconds)
        else:
            time.sleep(min(seconds, 0.1))
        for slot in self._alive():
            # Check all of them: a forked child of a task may keep the sentinel of a dead one open.
            if slot.process is not None and slot.process.exitcode is not None:
                self._reap(slot)

    def _reap(self, slot: _Slot) -> None:
        process, pipe = slot.process, slot.pipe
        slot.process = slot.pipe = None
        if process is None or pipe is None:
            return
        process.join()
        error = _load(pipe)
        pipe.close()
        if error is not None:
            self.error = self.error or error
            slot.done = True
        elif self._closing() or (process.exitcode == 0 and self.until_idle):
            slot.done = True
            if process.exitcode != 0:
                logger.warning("process %s", _describe(process))
        else:
            self._replace(slot, process)

    def _replace(self, slot: _Slot, process: BaseProcess) -> None:
        now = time.monotonic()
        short = 0 <= now - slot.started_at < HEALTHY_SECONDS
        slot.deaths = slot.deaths + 1 if short else 1
        delay = min(MAX_DELAY_SECONDS, 0.25 * 2.0 ** min(slot.deaths, 10))
        slot.start_at = now + delay
        logger.warning("process %s; another one starts in %.1f s", _describe(process), delay)

    def _stop(self) -> None:
        """Ask all to stop, and wait until they have."""
        for slot in self._alive():
            if slot.pipe is not None:
                try:
                    slot.pipe.send(_STOP)
                except OSError:
                    logger.debug("process %d has ended already", slot.number)
        end = time.monotonic() + self.worker.grace_seconds + KILL_SECONDS
        while self._alive() and time.monotonic() < end:
            self._wait(0.2)

    def _kill(self) -> None:
        for slot in self._alive():
            if slot.process is not None:
                logger.warning("process %d does not end; killing it", slot.process.pid)
                slot.process.kill()
                self._reap(slot)

    # In the child process

    def _child(
        self, number: int, pipe: connection.Connection, others: list[connection.Connection]
    ) -> None:
        # Close the parent's ends of all pipes. Otherwise a pipe stays open when the parent dies.
        for other in others:
            other.close()
        threading.Thread(target=self._listen, args=(pipe,), daemon=True).start()
        with StopSignals() as self.worker._signals:
            try:
                self.work(f"{self.name}/{number}", 1)
            except (errors.JobApiError, Unreachable) as error:
                pipe.send(_dump(error))
                sys.exit(1)
            except ThreadsLost as error:
                # The parent replaces this process, with new threads.
                logger.error("%s", error)
                sys.exit(1)

    def _listen(self, pipe: connection.Connection) -> None:
        """Stop when the parent asks for it or has died; at once if both happen."""
        try:
            pipe.recv()
            self.worker.stop()
            pipe.recv()
        except (EOFError, OSError):
            if self.worker.stopping:
                os._exit(128 + signal.SIGTERM)
            logger.warning("the parent process has died; stopping")
            self.worker.stop()


def _describe(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"{process.pid} was killed by {name}"
    return f"{process.pid} ended with exit code {code}"


def _dump(error: errors.JobApiError | Unreachable) -> Any:
    if isinstance(error, Unreachable):
        return str(error)
    return error.problem() | {"status": error.status}


def _load(pipe: connection.Connection) -> Exception | None:
    try:
        dumped = pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):
        return None
    if dumped is None:
        return None
    return Unreachable(dumped) if isinstance(dumped, str) else errors.from_problem(dumped, {})
