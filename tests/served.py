"""The service as it is run: ``jobapi serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2

from jobapi.commands.main import main

from .factories import until

BIN = Path(sys.executable).parent
NULL = Path(os.devnull)


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with our settings and no others of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JOBAPI_", "FLASK_"))}
    return {**kept, **settings}


def jobapi(
    *arguments: str, env: dict[str, str], input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for it."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        said[0].write_text(input or "")
        command = Command(*arguments, env=env, stdin=said[0], stdout=said[1], stderr=said[2])
        try:
            code = command.wait(60)
        finally:
            command.kill()
        return subprocess.CompletedProcess(
            arguments, code, said[1].read_text(), said[2].read_text()
        )


# A command spends most of its time on imports, which processes can share.
_forks = multiprocessing.get_context("forkserver")
_PRELOADED = ("accounts", "database", "gunicorn_server", "serve")
_forks.set_forkserver_preload(
    [
        *("tests.served", "jobapi.extension", "jobapi.client.commands.jobs"),
        *(f"jobapi.commands.{name}" for name in _PRELOADED),
    ]
)


class Process:
    """A function in a process of its own, forked from one that has our modules.

    ``wait``, ``poll`` and ``send_signal`` are as those of ``subprocess.Popen``.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._process = _forks.Process(target=target, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("jobapi", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # It may have ended since the line above.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it wherever it is."""
        self.send_signal(signal.SIGKILL)
        self.wait(20)


class Command(Process):
    """The command ``jobapi``, which leads a process group of its own."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str],
        stdin: Path = NULL,
        stdout: Path = NULL,
        stderr: Path = NULL,
    ) -> None:
        super().__init__(_run, arguments, env, (stdin, stdout, stderr))
        # Before it leads its group, a signal to the group would not reach it.
        with contextlib.suppress(ProcessLookupError):
            until(lambda: os.getsid(self.pid) == self.pid, 20)


_READ, _APPEND = os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _run(arguments: Sequence[str], env: dict[str, str], files: Sequence[Path]) -> None:
    os.setsid()
    os.chdir("/")
    os.environ.clear()
    os.environ.update(env)
    for number, (file, flags) in enumerate(zip(files, (_READ, _APPEND, _APPEND), strict=True)):
        opened = os.open(file, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = [str(BIN / "jobapi"), *arguments]
    main()


class Service:
    """One running service; its address is ``url``, what it logs is in ``log``."""

    def __init__(self, folder: Path, env: dict[str, str], *arguments: str) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        self.env = env
        self._clients: list[httpx2.Client] = []
        self.log.touch()
        self.process = Command(
            *("serve", "--port", "0", *arguments), env=env, stdout=self.log, stderr=self.log
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            # In a line of gunicorn's, or in the greeting of development.
            found = re.search(r"(http://[^ /]+:[0-9]+)", self.log.read_text())
            if found:
                self.url = found[1]
                with contextlib.suppress(httpx2.TransportError):
                    if self.get("/health/live").status_code == 200:
                        return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"The service did not start:\n{self.log.read_text()}")

    def client(self, username: str, password: str) -> httpx2.Client:
        """A client that has logged in; closed together with this."""
        client = httpx2.Client(base_url=self.url, timeout=40)
        self._clients.append(client)
        body = {"username": username, "password": password}
        token = client.post("/auth/login", json=body).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        return client

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """Ask on a new connection, which any of the processes may get."""
        with httpx2.Client(base_url=self.url, timeout=40) as client:
            return client.get(path, headers=headers)

    def metrics(self) -> httpx2.Response:
        """What Prometheus gets."""
        token = self.env["JOBAPI_METRICS_TOKEN"]
        return self.get("/metrics", authorization=f"Bearer {token}")

    def has_waiting(self, number: int) -> bool:
        """Whether this many claims wait for jobs."""
        return f"\njobapi_waiting_claims {number:.1f}\n" in self.metrics().text

    def lines(self) -> list[dict[str, Any]]:
        """What was logged so far, one object a line."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> int:
        """End it as a supervisor does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        """End it and its workers as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        for client in self._clients:
            client.close()
