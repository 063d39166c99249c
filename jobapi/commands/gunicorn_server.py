"""gunicorn as ``jobapi serve`` runs it."""

from __future__ import annotations

import fcntl
import gc
import glob
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gunicorn.app.base import BaseApplication

from .. import config, logs
from ..state import State
from .gunicorn_worker import OPTIONS, Worker

_FOLDER = "jobapi-metrics-"
_LOCK = "lock"


class Server(BaseApplication):
    """gunicorn with the hooks that start and stop what its processes need.

    ``options`` are gunicorn's. ``announce`` is called with the address of the socket when the
    first process serves.
    """

    def __init__(
        self, state: State, options: dict[str, Any], announce: Callable[[Any], None]
    ) -> None:
        self.state = state
        self.options = options
        self.announce = announce
        # Otherwise the caller chose the folder for metrics, and a new master keeps it.
        self.makes_folder = config.METRICS_FOLDER not in os.environ
        super().__init__()

    def run(self) -> None:
        """Serve until a signal ends it."""
        settings = self.state.settings
        # Each stream and each connection is an open file.
        _raise_limit_of_files(2 * settings.max_streams + 1024)
        # All objects that exist now are permanent. If the garbage collector checked them again and
        # again, that would cost as much as serving a large batch.
        gc.collect()
        gc.freeze()
        # Not before ``__init__``, where gunicorn keeps the environment for a new master.
        with _metrics_folder(settings):
            super().run()

    def load_config(self) -> None:
        """Set gunicorn's settings. It is called again at SIGHUP."""
        settings = self.state.settings

        class ServingWorker(Worker):
            live_path = f"{self.state.url_prefix}/health/live"

        if self.makes_folder:
            # A new master must create its own folder.
            self.cfg.env_orig.pop(config.METRICS_FOLDER, None)
        options = {
            **OPTIONS,
            **self.options,
            "worker_class": ServingWorker,
            "preload_app": True,
            "control_socket_disable": True,
            "post_worker_init": self.begin,
            "worker_exit": self.end,
            "child_exit": self.note_end,
            "logconfig_dict": logs.dict_config(
                settings.log_level,
                settings.log_format,
                # The greeting replaces gunicorn's messages.
                server_level="WARNING" if settings.development else settings.log_level,
            ),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The WSGI application."""
        return self.state.app

    def begin(self, worker: Any) -> None:
        """Start what a process needs besides its threads for requests."""
        state, folder = self.state, os.environ.get(config.METRICS_FOLDER)
        if state.settings.metrics_token is not None and folder is not None:
            # A clean-up of temporary files may have removed it.
            with suppress(OSError):
                os.makedirs(folder, 0o700, exist_ok=True)
        # A process that must end does not wait for claims and streams.
        state.is_stopping = lambda: not worker.alive
        if state.maintain:
            state.maintenance.start()
        if worker.age == 1:
            self.announce(worker.sockets[0].getsockname())

    def end(self, server: Any, worker: Any) -> None:
        """Stop the threads of a process that ends."""
        self.state.streams.stop()
        self.state.maintenance.stop()

    def note_end(self, server: Any, worker: Any) -> None:
        """Remove the gauges of a process that has ended."""
        if self.state.settings.metrics_token is not None:
            from ..metrics import note_end

            note_end(worker.pid)


def _raise_limit_of_files(wanted: int) -> None:
    """Allow this many open files; the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def _metrics_folder(settings: config.Settings) -> Iterator[None]:
    """Create the folder in which processes share their metrics, unless it exists."""
    # prometheus-client reads the variable once, when it is first imported.
    if (
        settings.metrics_token is None
        or config.METRICS_FOLDER in os.environ
        or "prometheus_client" in sys.modules
    ):
        yield
        return
    _remove_old_folders()
    folder = os.environ[config.METRICS_FOLDER] = tempfile.mkdtemp(prefix=_FOLDER)
    process = os.getpid()
    with open(os.path.join(folder, _LOCK), "w") as lock:
        # This process and its forks hold the lock until they end, however they end.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # The forked processes end here, too.
            if os.getpid() == process:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_old_folders() -> None:
    """Remove the folders of services that were killed."""
    for folder in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_FOLDER}*")):
        # An OSError: it is in use, was just created, or belongs to another program.
        with suppress(OSError), open(os.path.join(folder, _LOCK), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
