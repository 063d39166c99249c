"""A service, and workers that are processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobapi.client import Client

from ..factories import PASSWORD
from ..served import BIN, Service


class Stage:
    """A service, and workers beside it in a folder, which has ``tasks`` as ``tasks.py``."""

    def __init__(self, folder: Path, env: dict[str, str], tasks: str) -> None:
        self.folder = folder
        self.env = {**env, "PYTHONPATH": str(folder)}
        (folder / "tasks.py").write_text(tasks)
        self.service = Service(folder, env)
        self.port = self.service.url.rsplit(":", 1)[1]
        owner = self.service.client("boss", PASSWORD)
        made = owner.post("/workspace/1/keys", json={"name": "w", "role": "member"})
        self.token = str(made.json()["key"])
        self.client = Client(self.service.url, token=self.token, retries=12)
        self.workers: list[subprocess.Popen[bytes]] = []

    def restart_service(self) -> None:
        self.service.close()
        self.service = Service(self.folder, self.env, "--port", self.port)

    def start_worker(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        return self._start([BIN / "jobapi", "worker", "tasks:worker", *arguments], env)

    def start(self, *arguments: str | Path, **env: str) -> subprocess.Popen[bytes]:
        """Start a Python program beside the service."""
        return self._start([sys.executable, *arguments], env)

    def _start(self, command: list[str | Path], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "errors").open("ab") as errors:
            process = subprocess.Popen(
                command,
                env={
                    **self.env,
                    "JOBAPI_URL": self.service.url,
                    "JOBAPI_TOKEN": self.token,
                    **env,
                },
                cwd=self.folder,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        self.workers.append(process)
        return process

    def ran(self) -> list[str]:
        found = self.folder / "ran"
        return found.read_text().splitlines() if found.exists() else []

    def close(self) -> None:
        for process in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.client.close()
        self.service.close()


def wait_for_end(client: Client) -> None:
    deadline = time.monotonic() + 90
    while any(True for _ in client.jobs(1, status=["pending", "running"], light=True)):
        assert time.monotonic() < deadline, "jobs that do not end"
        time.sleep(0.2)
