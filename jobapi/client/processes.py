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
from .shift import ThreadsLost

MAX_DELAY_SECONDS = 30.0
"""The longest pause before a process that keeps dying is replaced."""

HEALTHY_SECONDS = 10.0
"""A process that lived for this long did not die at its start."""

KILL_SECONDS = 5.0
"""How long after the time for a stop remaining processes are killed."""

_STOP = "stop"

logger = logging.getLogger("jobapi.worker")


class Stoppable(Protocol):
    """What the processes need of their worker."""

    concurrency: int
    grace_seconds: float
    _signals: StopSignals

    def stop(self) -> None:
        """Make it stop."""

    @property
    def stopping(self) -> bool:
        """Whether it must stop."""


class _Place:
    """One of the processes to keep alive, and its history."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: BaseProcess | None = None
        # To the process: to stop. From it: an error with which all processes would fail.
        self.pipe: connection.Connection | None = None
        self.started_at = 0.0
        self.start_at = time.monotonic()
        self.deaths = 0
        self.done = False


class Processes:
    """As many processes as the worker's concurrency, each with one thread for tasks.

    A process whose parent is gone finds its pipe closed, and stops. A failure that
    each would have, such as a revoked key, comes back through the pipe and ends all.
    """

    def __init__(
        self, worker: Stoppable, name: str, work: Callable[[str, int], None], until_idle: bool
    ) -> None:
        self.worker = worker
        self.name = name
        self.work = work
        self.until_idle = until_idle
        self.places = [_Place(number) for number in range(worker.concurrency)]
        self.error: Exception | None = None
        # Forked, so that tasks need no importing.
        self.context = get_context("fork")

    def run(self) -> None:
        """Keep the processes alive until stopped, or until each found nothing to do."""
        try:
            while self._alive() or not (self._closing() or all(p.done for p in self.places)):
                if self._closing():
                    self._stop()
                    break
                for place in self.places:
                    self._start(place)
                self._wait(0.2)
        finally:
            self._kill()
        if self.error is not None:
            raise self.error

    def _closing(self) -> bool:
        return self.worker.stopping or self.error is not None

    def _alive(self) -> list[_Place]:
        return [place for place in self.places if place.process is not None]

    def _start(self, place: _Place) -> None:
        if place.process is not None or place.done or time.monotonic() < place.start_at:
            return
        place.pipe, pipe = self.context.Pipe()
        others = [other.pipe for other in self.places if other.pipe is not None]
        place.process = self.context.Process(target=self._child, args=(place.number, pipe, others))
        place.process.start()
        pipe.close()
        place.started_at = time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Wait for a process to end, at most this long, and note how it ended."""
        sentinels = [place.process.sentinel for place in self.places if place.process is not None]
        if sentinels:
            connection.wait(sentinels, seconds)
        else:
            time.sleep(min(seconds, 0.1))
        for place in self._alive():
            # Processes that a task has forked may keep the sentinel of a dead one.
            if place.process is not None and place.process.exitcode is not None:
                self._bury(place)

    def _bury(self, place: _Place) -> None:
        process, pipe = place.process, place.pipe
        place.process = place.pipe = None
        if process is None or pipe is None:
            return
        process.join()
        said = _received(pipe)
        pipe.close()
        if said is not None:
            self.error = self.error or said
            place.done = True
        elif self._closing() or (process.exitcode == 0 and self.until_idle):
            place.done = True
            if process.exitcode != 0:
                logger.warning("process %s", _how(process))
        else:
            self._replace(place, process)

    def _replace(self, place: _Place, process: BaseProcess) -> None:
        now = time.monotonic()
        short = 0 <= now - place.started_at < HEALTHY_SECONDS
        place.deaths = place.deaths + 1 if short else 1
        delay = min(MAX_DELAY_SECONDS, 0.25 * 2.0 ** min(place.deaths, 10))
        place.start_at = now + delay
        logger.warning("process %s; another one starts in %.1f s", _how(process), delay)

    def _stop(self) -> None:
        """Ask all to stop, and wait until they have."""
        for place in self._alive():
            if place.pipe is not None:
                try:
                    place.pipe.send(_STOP)
                except OSError:
                    logger.debug("process %d has ended already", place.number)
        end = time.monotonic() + self.worker.grace_seconds + KILL_SECONDS
        while self._alive() and time.monotonic() < end:
            self._wait(0.2)

    def _kill(self) -> None:
        for place in self._alive():
            if place.process is not None:
                logger.warning("process %d does not end; killing it", place.process.pid)
                place.process.kill()
                self._bury(place)

    # In the process

    def _child(
        self, number: int, pipe: connection.Connection, others: list[connection.Connection]
    ) -> None:
        # The ends of the parent: without them a pipe is closed when the parent is gone.
        for other in others:
            other.close()
        threading.Thread(target=self._listen, args=(pipe,), daemon=True).start()
        with StopSignals() as self.worker._signals:
            try:
                self.work(f"{self.name}/{number}", 1)
            except (errors.JobApiError, Unreachable) as error:
                pipe.send(_sent(error))
                sys.exit(1)
            except ThreadsLost as error:
                # A new process has new threads.
                logger.error("%s", error)
                sys.exit(1)

    def _listen(self, pipe: connection.Connection) -> None:
        """Stop when the parent asks for it or is gone; at once if both happen."""
        try:
            pipe.recv()
            self.worker.stop()
            pipe.recv()
        except (EOFError, OSError):
            if self.worker.stopping:
                os._exit(128 + signal.SIGTERM)
            logger.warning("the parent process is gone; stopping")
            self.worker.stop()


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"{process.pid} was killed by {name}"
    return f"{process.pid} ended with exit code {code}"


def _sent(error: errors.JobApiError | Unreachable) -> Any:
    return (
        str(error) if isinstance(error, Unreachable) else error.problem() | {"status": error.status}
    )


def _received(pipe: connection.Connection) -> Exception | None:
    try:
        said = pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):
        return None
    if said is None:
        return None
    return Unreachable(said) if isinstance(said, str) else errors.from_problem(said, {})
