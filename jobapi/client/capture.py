"""Sends what tasks log with Python's ``logging`` to the logs of their jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .tasks import current_task

NOT_CAPTURED = ("jobapi", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers of this client and its HTTP library, whose messages are not the task's own."""

_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))


class _Handler(logging.Handler):
    """Adds records to the log of the job whose task has made them."""

    def emit(self, record: logging.LogRecord) -> None:
        task = current_task()
        if task is None or record.name.partition(".")[0] in NOT_CAPTURED:
            return
        try:
            level = next((name for least, name in _LEVELS if record.levelno >= least), "debug")
            # A process that the task has forked cannot report.
            with suppress(RuntimeError):
                task.log(self.format(record), level, at=record.created)
        except Exception:
            self.handleError(record)


class _AsBefore(logging.Filter):
    """Keeps from a handler what loggers let pass only because of the root logger's new level."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None and logger.level == logging.NOTSET:
            logger = logger.parent
        return logger is not None and logger is not logging.root


class _Installed:
    """The handler in this process, as long as anything captures."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._handler = _Handler()
        self._loggers: list[logging.Logger] = []
        self._lowered = False
        self._filtered: list[logging.Handler] = []
        self._as_before = _AsBefore()

    def add(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._install()

    def remove(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._uninstall()

    def _install(self) -> None:
        root = logging.root
        if root.level == logging.WARNING:
            # The level of a program that has not set any: its tasks may log from INFO on, but
            # nothing more is printed.
            if not root.handlers and logging.lastResort is not None:
                # What prints warnings as long as there is no handler.
                root.addHandler(logging.lastResort)
            self._filtered = list(root.handlers)
            for handler in self._filtered:
                handler.addFilter(self._as_before)
            root.setLevel(logging.INFO)
            self._lowered = True
        others = [
            each
            for each in list(root.manager.loggerDict.values())
            if isinstance(each, logging.Logger) and not each.propagate
        ]
        self._loggers = [root, *others]
        for logger in self._loggers:
            logger.addHandler(self._handler)

    def _uninstall(self) -> None:
        for logger in self._loggers:
            logger.removeHandler(self._handler)
        for handler in self._filtered:
            handler.removeFilter(self._as_before)
        if self._lowered and logging.root.level == logging.INFO:
            logging.root.setLevel(logging.WARNING)
        if logging.lastResort is not None:
            logging.root.removeHandler(logging.lastResort)
        self._loggers, self._filtered, self._lowered = [], [], False


_installed = _Installed()


@contextmanager
def capturing(wanted: bool = True) -> Iterator[None]:
    """Send what tasks log in this process to the logs of their jobs, if that is ``wanted``."""
    if not wanted:
        yield
        return
    _installed.add()
    try:
        yield
    finally:
        _installed.remove()
