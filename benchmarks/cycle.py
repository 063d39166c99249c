"""The whole cycle in jobs per second: create no-op jobs, claim and report them.

Compared with the same number of worker processes on the same Postgres: the service over
HTTP with its Python worker, in batches, with events and without; the floor, which does the
same with plain psycopg and no HTTP, on a table with the indexes that lists need and on a bare
one; Procrastinate; and Celery on Redis
(``BENCH_REDIS_URL``). The clock runs from the first create to the last end; the workers
are already waiting. Procrastinate and Celery have their own virtual environment,
``benchmarks/.venv``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg
from bench import clear, jobapi_serve, peers_python

from jobapi.client import Client, Worker

HERE = Path(__file__).resolve().parent
REDIS = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/15")
BATCH = 100
GOALS = {"without events": 0.85, "floor": 0.4, "procrastinate": 15, "celery": 10}

fork = get_context("fork")


@contextlib.contextmanager
def processes(target: Callable[..., None], workers: int, *arguments: Any) -> Iterator[None]:
    """Worker processes that are already waiting."""
    started = [fork.Process(target=target, args=arguments) for _ in range(workers)]
    for process in started:
        process.start()
    time.sleep(1.5)
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join(15)
            process.kill()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError("jobs did not end")
        time.sleep(0.02)


# Ours


def work(url: str, token: str, workspace_id: int) -> None:
    worker = Worker(Client(url, token=token), workspace_id)
    worker.task("noop")(lambda task: None)
    worker.run()


def work_singly(url: str, token: str, workspace_id: int) -> None:
    client = Client(url, token=token)
    while True:
        for job in client.claim(workspace_id, job_types=["noop"], wait_seconds=5):
            report = {"job_id": job.job_id, "lease_token": job.lease_token, "status": "success"}
            client.report(workspace_id, [report])


def ours(
    database: str,
    url: str,
    token: str,
    workspace_id: int,
    workers: int,
    jobs: int,
    singly: bool = False,
    events: bool = True,
) -> float:
    with (
        psycopg.connect(database, autocommit=True) as connection,
        Client(url, token=token) as client,
    ):
        clear(connection)
        for trigger in ("inserted", "updated"):
            switch = "ENABLE" if events else "DISABLE"
            connection.execute(f"ALTER TABLE jobapi_jobs {switch} TRIGGER jobapi_note_{trigger}")
        target = work_singly if singly else work
        with processes(target, workers, url, token, workspace_id):
            began = time.perf_counter()
            if singly:
                for _ in range(jobs):
                    client.create(workspace_id, "noop")
            else:
                client.create_many(workspace_id, [{"job_type": "noop"}] * jobs)
            # From the service's own totals, which is cheap.
            query = (
                "SELECT sum(n) = %s FROM (SELECT n, status FROM jobapi_job_counts UNION ALL "
                "SELECT n, status FROM jobapi_job_count_changes) AS counted WHERE status = 2"
            )
            until(lambda: bool(connection.execute(query, (jobs,)).fetchone()[0]))
            return jobs / (time.perf_counter() - began)


# The floor


def drain(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        while True:
            claimed = connection.execute(
                "UPDATE floor_queue SET status = 1, token = gen_random_uuid(), started_at = now(), "
                "updated_at = now() "
                "WHERE id IN (SELECT id FROM floor_queue WHERE status = 0 ORDER BY priority DESC, "
                "due_at, id LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id, token, metadata",
                (BATCH,),
            ).fetchall()
            if not claimed:
                time.sleep(0.005)
                continue
            connection.execute(
                "UPDATE floor_queue q SET status = 2, token = NULL, ended_at = now(), "
                "updated_at = now() "
                "FROM unnest(%s::bigint[], %s::uuid[]) AS r (id, token) "
                "WHERE q.id = r.id AND q.token = r.token AND q.status = 1",
                ([row[0] for row in claimed], [row[1] for row in claimed]),
            )


LISTED = (
    "workspace_id, created_at, id",
    "workspace_id, status, job_type, priority, created_at, id",
    "workspace_id, status, updated_at, id",
)
"""The indexes that lists by creation, by bucket and by change need."""


def floor(database: str, workers: int, jobs: int, *, listed: bool = True) -> float:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS floor_queue")
        connection.execute(
            "CREATE TABLE floor_queue (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
            "status smallint NOT NULL DEFAULT 0, priority smallint NOT NULL DEFAULT 1, "
            "job_type text NOT NULL, metadata json, due_at timestamptz NOT NULL DEFAULT now(), "
            "token uuid, started_at timestamptz, ended_at timestamptz, workspace_id integer NOT "
            "NULL DEFAULT 1, created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz "
            "NOT NULL DEFAULT now())"
        )
        connection.execute(
            "CREATE INDEX ON floor_queue (priority DESC, due_at, id) WHERE status = 0"
        )
        for columns in LISTED if listed else ():
            connection.execute(f"CREATE INDEX ON floor_queue ({columns})".encode())
        with processes(drain, workers, database):
            began = time.perf_counter()
            for start in range(0, jobs, 1000):
                connection.execute(
                    "INSERT INTO floor_queue (job_type) SELECT 'noop' FROM generate_series(1, %s)",
                    (min(1000, jobs - start),),
                )
            query = "SELECT count(*) = %s FROM floor_queue WHERE status = 2"
            until(lambda: bool(connection.execute(query, (jobs,)).fetchone()[0]))
            return jobs / (time.perf_counter() - began)


# Other queues


def peer(name: str, database: str, workers: int, jobs: int, folder: Path) -> float:
    python = peers_python()
    env = {**os.environ, "BENCH_DATABASE": database, "BENCH_REDIS_URL": REDIS}
    command = [python, HERE / "peers.py", name]
    subprocess.run([*command, "prepare"], env=env, check=True, cwd=folder)
    with (folder / f"{name}.log").open("ab") as log:
        started = [
            subprocess.Popen(
                [*command, "work"],
                env=env,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for _ in range(workers)
        ]
    try:
        time.sleep(4)
        done = subprocess.run(
            [*command, "create", str(jobs)],
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            check=True,
        )
        return jobs / float(done.stdout)
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of jobapi and the floor")
    parser.add_argument("--few", type=int, default=2_000, help="jobs of other rows")
    parser.add_argument("--rows", nargs="*", help="only these, jobapi among them")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database, token, workspace_id, start = stack.enter_context(jobapi_serve())
        service = (database, stack.enter_context(start()).url, token, workspace_id)
        rows: dict[str, Callable[[int], float]] = {
            "jobapi": lambda n: ours(*service, n, options.jobs),
            "without events": lambda n: ours(*service, n, options.jobs, events=False),
            "floor": lambda n: floor(database, n, options.jobs),
            "bare floor": lambda n: floor(database, n, options.jobs, listed=False),
            "procrastinate": lambda n: peer("procrastinate", database, n, options.few, folder),
            "celery": lambda n: peer("celery", database, n, options.few, folder),
            "jobapi singly": lambda n: ours(*service, n, options.few, singly=True),
        }
        rows = {name: rows[name] for name in options.rows or rows}
        print(f"{'workers':>8}{'':16}{'jobs/s':>9}{'ratio':>8}{'goal':>6}")
        for workers in options.workers:
            measured: dict[str, list[float]] = {name: [] for name in rows}
            for number in range(options.rounds):
                # In alternating order, because each row leaves its load on the server.
                for name, measure in list(rows.items())[:: (-1) ** number]:
                    measured[name].append(measure(workers))
            for name, values in measured.items():
                ratio = statistics.median(
                    a / b for a, b in zip(measured["jobapi"], values, strict=True)
                )
                goal = f"{GOALS[name]:6.2f}" if name in GOALS else ""
                rate = statistics.median(values)
                print(f"{workers:8}  {name:14}{rate:9.0f}{ratio:8.2f}{goal}", flush=True)


if __name__ == "__main__":
    main()
