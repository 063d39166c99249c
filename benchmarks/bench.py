"""Speed compared with a floor, and with a twin: ``make bench``.

The service and a bare Flask view (``floor.py``) run on the same gunicorn and
the same Postgres, and get the same requests in turns: read a job, its status, a
page of 50, create one. The twin (``twin.py``) does the same with FastAPI and
async SQLAlchemy, on uvicorn with as many processes. A ratio is the service's requests
per second divided by the other's in the same round: other load on the machine slows
both. The medians over the rounds are printed.

``BENCH_DATABASE_URL`` is the Postgres to use; its jobapi tables are overwritten.
Without it a server is started, like in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flask_migrate
import psycopg

from jobapi import accounts, create_app, jobs, workspaces
from jobapi.schemas.jobs import Job
from jobapi.store import tables
from jobapi.store.transactions import transaction

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = Path(sys.executable).parent
SECRET = "only-for-benchmarks-" + "x" * 32
JOBS = 1000
GOALS = {"read": 0.7, "status": 0.75, "page of 50": 0.4, "create": 0.6}
PEERS = HERE / ".venv"

COPIES = """
DROP TABLE IF EXISTS floor_jobs, twin_jobs;
CREATE TABLE floor_jobs AS SELECT {columns} FROM jobapi_jobs;
CREATE TABLE twin_jobs AS SELECT * FROM floor_jobs;
ALTER TABLE floor_jobs ADD PRIMARY KEY (workspace_id, job_id);
ALTER TABLE twin_jobs ADD PRIMARY KEY (workspace_id, job_id);
CREATE INDEX ON twin_jobs (workspace_id, created_at, job_id);
CREATE INDEX ON twin_jobs (workspace_id, updated_at, job_id);
CREATE INDEX ON twin_jobs (workspace_id, status, job_type, created_at);
CREATE INDEX ON twin_jobs (priority, due_at) WHERE status = 0;
VACUUM ANALYZE floor_jobs, twin_jobs
"""
"""The tables of the floor and of the twin: the jobs, with the fields that the API shows."""


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    given = os.environ.get("BENCH_DATABASE_URL")
    if given:
        yield given
        return
    sys.path.insert(0, str(ROOT))
    from tests.postgres import Postgres

    server = Postgres()
    try:
        yield server.url("postgres")
    finally:
        server.stop()


def prepare(url: str) -> tuple[str, int, str]:
    """A token, a workspace and one of its jobs."""
    app = create_app({"JOBAPI_DATABASE_URL": url, "JOBAPI_SECRET_KEY": SECRET})
    state = app.extensions["jobapi"]
    with state.migrating():
        flask_migrate.upgrade()
    with state.engine.connect() as connection, transaction(connection) as tx:
        user = accounts.create_user(tx, f"bench-{time.time_ns()}", password=None)
        workspace_id = int(workspaces.create(tx, "Bench", owner_id=user.id).id)
        for number in range(JOBS):
            job = jobs.create(tx, workspace_id, created_by=user.id, **new_job(number))
        login = accounts.open_session(tx, user.id, state.tokens.refresh_lifetime)
    with state.engine.connect() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    state.engine.dispose()
    return state.tokens.issue(login)["access_token"], workspace_id, job.job_id


def new_job(number: int) -> dict[str, Any]:
    return {
        "job_type": "data_processing",
        "metadata": {"source_file": f"dataset-{number}.csv", "output_format": "parquet"},
    }


def copy_jobs(url: str) -> None:
    """Create the tables of the floor and the twin."""
    shown = {field.attribute or name for name, field in Job().fields.items()}
    shown |= {"progress_percent", "progress_message"}
    columns = [column.name for column in tables.jobs.c if column.name in shown]
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in COPIES.format(columns=", ".join(columns)).split(";"):
            connection.execute(statement.encode())


def clear(connection: psycopg.Connection[Any]) -> None:
    """Delete all jobs and events, while the service runs."""
    while True:
        # The maintenance compacts the counts, which are emptied, too.
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            connection.execute("TRUNCATE jobapi_jobs, jobapi_events CASCADE")
            return


def peers_python() -> Path:
    """The interpreter of ``benchmarks/.venv``, which has what the service is compared with."""
    python = PEERS / "bin" / "python"
    wanted = HERE / "peers.txt"
    done = PEERS / "peers.txt"
    if not done.exists() or done.read_text() != wanted.read_text():
        print("making benchmarks/.venv …", file=sys.stderr)
        venv.create(PEERS, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        shutil.copy(wanted, done)
    return python


def gunicorn(app: str, workers: int, threads: int) -> list[Any]:
    return [
        *(sys.executable, "-m", "gunicorn", app, "--workers", str(workers)),
        *("--threads", str(threads), "--worker-class", "gthread", "--no-control-socket"),
        *("--pythonpath", f"{ROOT},{HERE}"),
    ]


def uvicorn(app: str, workers: int) -> list[Any]:
    return [
        *(peers_python(), "-m", "uvicorn", app, "--workers", str(workers), "--app-dir", HERE),
        *("--no-access-log", "--log-level", "warning"),
    ]


class Server(NamedTuple):
    """A web server on this machine."""

    port: int
    process_id: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running(command: Sequence[Any], url: str, log_file: Path, **more: str) -> Iterator[Server]:
    """A web server that ``command`` starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    at = ["--bind", f"127.0.0.1:{port}"] if "gunicorn" in command else ["--port", str(port)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, *at],
            env=os.environ | {"JOBAPI_DATABASE_URL": url, "JOBAPI_SECRET_KEY": SECRET} | more,
            stdout=log,
            stderr=log,
            cwd=log_file.parent,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait(40)


@contextlib.contextmanager
def served(app: str, url: str, folder: Path, workers: int, threads: int) -> Iterator[int]:
    """An app behind gunicorn; the port."""
    log_file = folder / f"{app.split(':')[0]}.log"
    with running(gunicorn(app, workers, threads), url, log_file) as server:
        yield server.port


class Served(NamedTuple):
    """A database with a workspace, and how to start ``jobapi serve`` on it."""

    database: str
    token: str
    workspace_id: int
    start: Callable[[], contextlib.AbstractContextManager[Server]]
    """A service with two processes of 16 threads."""


@contextlib.contextmanager
def jobapi_serve(seconds: float = 0) -> Iterator[Served]:
    """Prepare a database for ``jobapi serve``. The token is valid for longer than ``seconds``."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ |= {
            "JOBAPI_INSTANCE_PATH": str(folder),
            "JOBAPI_ACCESS_TOKEN_SECONDS": str(int(seconds) + 3600),
        }
        database = stack.enter_context(postgres())
        token, workspace_id, _ = prepare(database)
        command = [BIN / "jobapi", "serve", "--workers", "2", "--threads", "16"]

        @contextlib.contextmanager
        def start() -> Iterator[Server]:
            with running(command, database, folder / "serve.log") as server:
                urllib.request.urlopen(f"{server.url}/health/live", timeout=30).close()
                yield server

        yield Served(database, token, workspace_id, start)


def request_bytes(method: str, path: str, token: str, body: Any = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
    if data:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


def ask(connection: socket.socket, request: bytes, status: bytes) -> None:
    connection.sendall(request)
    answer = connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    if status not in head[:20]:
        raise RuntimeError(answer.decode())
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(262144)


def rate(port: int, request: bytes, status: bytes, seconds: float, connections: int) -> float:
    """Requests per second over some connections that are kept open."""
    counts: list[int] = []
    end = time.perf_counter() + seconds

    def run() -> None:
        count = 0
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < end:
                ask(connection, request, status)
                count += 1
        counts.append(count)

    started = time.perf_counter()
    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) < connections:
        raise RuntimeError("a connection failed; see above")
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per round, app and operation")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rows", nargs="*", help="only these")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["JOBAPI_INSTANCE_PATH"] = str(folder)
        url = stack.enter_context(postgres())
        token, workspace_id, job_id = prepare(url)
        copy_jobs(url)
        size = (options.workers, options.threads)
        twin = running(
            uvicorn("twin:app", options.workers),
            url,
            folder / "twin.log",
            TWIN_CONNECTIONS=str(options.threads),
        )
        ports = {
            "jobapi": stack.enter_context(served("wsgi:app", url, folder, *size)),
            "floor": stack.enter_context(served("floor:app", url, folder, *size)),
            "twin": stack.enter_context(twin).port,
        }
        path = f"/workspace/{workspace_id}/jobs"
        create = {**new_job(0), "workspace_id": workspace_id}
        operations = {
            "read": (request_bytes("GET", f"{path}/{job_id}", token), b" 200 "),
            "status": (request_bytes("GET", f"{path}/{job_id}/status", token), b" 200 "),
            "page of 50": (request_bytes("GET", path, token), b" 200 "),
            "create": (request_bytes("POST", path, token, create), b" 201 "),
        }
        print(
            f"{'':12}{'jobapi/s':>9}{'floor/s':>9}{'ratio':>7}{'goal':>6}{'twin/s':>9}{'ratio':>7}"
        )
        for name in options.rows or operations:
            request, status = operations[name]
            others = ["floor"] if name == "status" else ["floor", "twin"]
            rates: dict[str, list[float]] = {each: [] for each in ["jobapi", *others]}
            for number in range(options.rounds + 1):
                for each, measured in rates.items():
                    given = (ports[each], request, status, options.seconds, options.connections)
                    measured.append(rate(*given))
                if number == 0:
                    # It warms up all of them.
                    for measured in rates.values():
                        measured.clear()
            line = f"{name:12}{statistics.median(rates['jobapi']):9.0f}"
            for each in others:
                pairs = zip(rates["jobapi"], rates[each], strict=True)
                ratio = statistics.median(ours / other for ours, other in pairs)
                line += f"{statistics.median(rates[each]):9.0f}{ratio:7.2f}"
                line += f"{GOALS[name]:6.2f}" if each == "floor" else ""
            print(line, flush=True)


if __name__ == "__main__":
    main()
