"""The service as it is run: ``jobapi serve`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

BIN = Path(sys.executable).parent


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with our settings and no others of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JOBAPI_", "FLASK_"))}
    return {**kept, **settings}


def jobapi(
    *arguments: str, env: dict[str, str], input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for it."""
    return subprocess.run(
        [BIN / "jobapi", *arguments],
        env=env,
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )


class Service:
    """One running service; its address is ``url``, what it logs is in ``log``."""

    def __init__(self, folder: Path, env: dict[str, str], *arguments: str) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        self.env = env
        self._clients: list[httpx2.Client] = []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / "jobapi", "serve", "--port", "0", *arguments],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        self.url = self._wait()

    def _wait(self) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            # In a line of gunicorn's, or in the greeting of development.
            found = re.search(r"(http://[^ /]+:[0-9]+)", self.log.read_text())
            if found:
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(f"{found[1]}/health/live").status_code == 200:
                        return found[1]
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
