"""Speed compared with a floor, a bare Flask view: ``make bench``.

The service and a bare Flask view (``floor.py``) run on the same gunicorn and
the same Postgres, and get the same requests in turns: read a job, its status, a
page of 50, create one. A ratio is the service's requests per second divided by
the floor's in the same round: other load on the machine slows both. The medians
over the rounds are printed.

``BENCH_DATABASE_URL`` is the Postgres to use; its jobapi tables are overwritten.
Without it a server is started, like in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask_migrate

from jobapi import accounts, create_app, jobs, workspaces
from jobapi.store.transactions import transaction

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECRET = "only-for-benchmarks-" + "x" * 32
JOBS = 1000
GOALS = {"read": 0.6, "status": 0.6, "page of 50": 0.3, "create": 0.5}


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
    with state.private.app_context():
        flask_migrate.upgrade()
    with state.engine.connect() as connection, transaction(connection) as tx:
        user = accounts.create_user(tx, f"bench-{time.time_ns()}", password=None)
        workspace_id = int(workspaces.create(tx, "Bench", owner_id=user.id).id)
        for number in range(JOBS):
            job = jobs.create(tx, workspace_id, created_by=user.id, **new_job(number))
        login = accounts.open_session(tx, user.id, state.tokens.refresh_lifetime)
    with state.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
    state.engine.dispose()
    return state.tokens.issue(login)["access_token"], workspace_id, job.job_id


def new_job(number: int) -> dict[str, Any]:
    return {
        "job_type": "data_processing",
        "metadata": {"source_file": f"dataset-{number}.csv", "output_format": "parquet"},
    }


@contextlib.contextmanager
def served(app: str, url: str, folder: Path, workers: int, threads: int) -> Iterator[int]:
    """An app behind gunicorn; the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / f"{app.split(':')[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", app, "--bind", f"127.0.0.1:{port}"),
                *("--workers", str(workers), "--threads", str(threads)),
                *("--worker-class", "gthread", "--no-control-socket"),
                *("--pythonpath", f"{ROOT},{HERE}"),
            ],
            env=os.environ | {"JOBAPI_DATABASE_URL": url, "JOBAPI_SECRET_KEY": SECRET},
            stdout=log,
            stderr=log,
            cwd=folder,
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
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(40)


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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="per round, app and operation")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["JOBAPI_INSTANCE_PATH"] = str(folder)
        url = stack.enter_context(postgres())
        token, workspace_id, job_id = prepare(url)
        size = (options.workers, options.threads)
        ours = stack.enter_context(served("wsgi:app", url, folder, *size))
        floor = stack.enter_context(served("floor:app", url, folder, *size))
        path = f"/workspace/{workspace_id}/jobs"
        create = {**new_job(0), "workspace_id": workspace_id}
        operations = {
            "read": (request_bytes("GET", f"{path}/{job_id}", token), b" 200 "),
            "status": (request_bytes("GET", f"{path}/{job_id}/status", token), b" 200 "),
            "page of 50": (request_bytes("GET", path, token), b" 200 "),
            "create": (request_bytes("POST", path, token, create), b" 201 "),
        }
        print(f"{'':12}{'floor/s':>9}{'ours/s':>9}{'ratio':>7}{'goal':>6}")
        for name, (request, status) in operations.items():
            pairs = []
            for round_number in range(options.rounds + 1):
                pair = [
                    rate(port, request, status, options.seconds, options.connections)
                    for port in (floor, ours)
                ]
                # The first round warms up both.
                if round_number:
                    pairs.append(pair)
            floors, own = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            ratio = statistics.median(p[1] / p[0] for p in pairs)
            print(f"{name:12}{floors:9.0f}{own:9.0f}{ratio:7.2f}{GOALS[name]:6.1f}", flush=True)


if __name__ == "__main__":
    main()
