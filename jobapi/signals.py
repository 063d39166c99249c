"""SIGTERM and SIGINT as a request to stop, safe in programs with threads and forked children."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context manager: the first SIGTERM or SIGINT sets ``asked``.

    A second signal ends the process at once, with the exit code 128 + its number.
    The handler takes no lock, so it cannot deadlock with the code that it interrupts.
    Children that are forked within the context get the previous handlers. Outside the
    main thread, where Python does not allow signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            _entered.append(self)
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self in _entered:
            _entered.remove(self)
            self.restore()

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            # None: a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # Forked by native code, which does not call Python's fork hooks.
            self.restore()
            os.kill(os.getpid(), number)
        elif self.asked:
            os._exit(128 + number)
        else:
            self.asked = True


_entered: list[StopSignals] = []
_masks = threading.local()


def _hold() -> None:
    # Block signals, so that none reaches the child before its handlers are restored.
    if _entered:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def _release() -> None:
    before = getattr(_masks, "before", None)
    if before is not None:
        _masks.before = None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore_in_child() -> None:
    while _entered:
        _entered.pop().restore()
    _release()


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_restore_in_child)
