"""Flow control: ``make bench-flow``.

Measures the throughput of types with limits, keys and both, and of a plain type, in turns within
one run; how long the job of a small key waits while another key has very many jobs; how soon a
waiting worker gets a job after a slot is freed; and the error of estimates over a day that is
simulated at 1,440 times its speed.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from bench import SECRET, clear, postgres, prepare, served
from cycle import processes
from sqlalchemy import select

from jobapi import create_app, jobs, queue
from jobapi.client import Client, RateLimit
from jobapi.rules.events import EventKind
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.services import explain
from jobapi.store import tables
from jobapi.store.transactions import snapshot

ROUNDS = 3
SECONDS = 4.0
CLAIMERS = 4
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 0),
    "max_running 200": ({"max_running": 200}, 0),
    "50 keys": ({}, 50),
    "50 keys, max_running 200, 4 per key": ({"max_running": 200, "max_running_per_key": 4}, 50),
    "rate_limit 100,000": ({"rate_limit": RateLimit(starts=100_000, seconds=1)}, 0),
}
FLOOD = 30_000
DAY = 60.0
"""Seconds that the simulated day takes."""


def work(url: str, token: str, workspace_id: int, job_type: str, limit: int) -> None:
    client = Client(url, token=token)
    while True:
        claimed = client.claim(workspace_id, job_types=[job_type], limit=limit, wait_seconds=5)
        if claimed:
            client.report(
                workspace_id,
                [
                    {"job_id": job.job_id, "lease_token": job.lease_token, "status": "success"}
                    for job in claimed
                ],
            )


def items(job_type: str, number: int, keys: int) -> list[dict[str, Any]]:
    if not keys:
        return [{"job_type": job_type}] * number
    return [{"job_type": job_type, "concurrency_key": f"k{n % keys}"} for n in range(number)]


def throughput(database: str, url: str, token: str, workspace_id: int) -> None:
    client = Client(url, token=token)
    with psycopg.connect(database, autocommit=True) as connection:
        for limit in (1, 20):
            rates: dict[str, list[float]] = {name: [] for name in KINDS}
            for _ in range(ROUNDS):
                for number, (name, (settings, keys)) in enumerate(KINDS.items()):
                    job_type = f"t{number}"
                    if settings:
                        client.set_job_type(workspace_id, job_type, **settings)
                    clear(connection)
                    client.create_many(workspace_id, items(job_type, 1500 * limit, keys))
                    connection.execute("ANALYZE jobapi_jobs")
                    rates[name].append(rate(connection, url, token, workspace_id, job_type, limit))
            for name, found in rates.items():
                ratios = [a / b for a, b in zip(found, rates["plain"], strict=True)]
                print(
                    f"claims of {limit:>2}  {name:<38} {statistics.median(found):>7.0f} jobs/s"
                    f"  {statistics.median(ratios):.2f}",
                    flush=True,
                )


def rate(
    connection: Any, url: str, token: str, workspace_id: int, job_type: str, limit: int
) -> float:
    ended = "SELECT count(*) FROM jobapi_jobs WHERE status = 2"
    with processes(work, CLAIMERS, url, token, workspace_id, job_type, limit):
        # They have begun meanwhile.
        first, began = connection.execute(ended).fetchone()[0], time.perf_counter()
        left = "SELECT count(*) FROM jobapi_jobs WHERE status = 0"
        while time.perf_counter() - began < SECONDS:
            time.sleep(0.1)
            if not connection.execute(left).fetchone()[0]:
                break
        seconds = time.perf_counter() - began
        return float((connection.execute(ended).fetchone()[0] - first) / seconds)


def flood(database: str, url: str, token: str, workspace_id: int) -> None:
    client = Client(url, token=token)
    with psycopg.connect(database, autocommit=True) as connection:
        for name, keyed in (("plain", False), ("keys in turns", True)):
            clear(connection)
            job_type = f"flood-{keyed}".lower()
            key = {"concurrency_key": "flood"} if keyed else {}
            client.create_many(workspace_id, [{"job_type": job_type, **key}] * FLOOD)
            connection.execute("ANALYZE jobapi_jobs")
            made = []
            with processes(work, CLAIMERS, url, token, workspace_id, job_type, 1):
                end = time.perf_counter() + 2 * SECONDS
                while time.perf_counter() < end:
                    small = {"concurrency_key": f"small{len(made) % 50}"} if keyed else {}
                    made.append(client.create(workspace_id, job_type, **small).job_id)
                    time.sleep(0.05)
                time.sleep(1)
            rows = connection.execute(
                "SELECT extract(epoch FROM started_at - due_at) FROM jobapi_jobs"
                " WHERE job_id = ANY (%s) AND started_at IS NOT NULL",
                (made,),
            ).fetchall()
            waits = sorted(float(row[0]) for row in rows)
            print(f"flood, {name}: {len(waits)} of {len(made)} small jobs started", end="")
            if waits:
                p95 = waits[math.ceil(0.95 * len(waits)) - 1]
                print(f"; waited p50 {statistics.median(waits) * 1000:.0f} ms, p95", end="")
                print(f" {p95 * 1000:.0f} ms, at most {waits[-1] * 1000:.0f} ms", end="")
            print(flush=True)


def wakes(url: str, other: str, token: str, workspace_id: int) -> None:
    """How soon a claim in one process gets a job after a slot is freed through another."""
    client, waiting = Client(url, token=token), Client(other, token=token)
    job_type = "wakes"

    def free_by_report(job: Any) -> None:
        report = {"job_id": job.job_id, "lease_token": job.lease_token, "status": "success"}
        client.report(workspace_id, [report])

    frees: dict[str, Callable[[Any], Any]] = {
        "report": free_by_report,
        "cancel": lambda job: client.cancel(workspace_id, job.job_id),
        "higher limit": lambda job: client.set_job_type(workspace_id, job_type, max_running=2),
        "resume": lambda job: client.resume_job_type(workspace_id, job_type),
    }
    for name, free in frees.items():
        took = []
        for _ in range(10):
            client.set_job_type(workspace_id, job_type, max_running=1, paused=False)
            client.create_many(workspace_id, [{"job_type": job_type}] * 2)
            (job,) = client.claim(workspace_id, job_types=[job_type])
            if name == "resume":
                client.set_job_type(workspace_id, job_type, max_running=2, paused=True)
            got: list[float] = []

            def wait(got: list[float] = got) -> None:
                found = waiting.claim(workspace_id, job_types=[job_type], wait_seconds=10)
                got.append(time.perf_counter())
                assert found

            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.3)
            # Another announcement of the same workspace, a moment before.
            client.create(workspace_id, "another")
            began = time.perf_counter()
            free(job)
            thread.join()
            took.append(got[0] - began)
            end_all(client, workspace_id, job_type)
        print(
            f"freed by {name}: median {statistics.median(took) * 1000:.0f} ms,"
            f" at most {max(took) * 1000:.0f} ms after the request began",
            flush=True,
        )


def wakes_by_expiry(database: str, url: str, other: str, token: str, workspace_id: int) -> None:
    """How long after a lease was found to have expired a claim in another process gets a job."""
    client, waiting = Client(url, token=token), Client(other, token=token)
    job_type = "expires"
    client.set_job_type(workspace_id, job_type, max_running=1)
    took = []
    for _ in range(10):
        client.create_many(workspace_id, [{"job_type": job_type, "max_retries": 0}] * 2)
        (lost,) = client.claim(workspace_id, job_types=[job_type], lease_seconds=5)
        (job,) = waiting.claim(workspace_id, job_types=[job_type], wait_seconds=20)
        with psycopg.connect(database) as connection:
            # Responses have whole seconds.
            row = connection.execute(
                "SELECT extract(epoch FROM j.started_at - e.at) FROM jobapi_jobs j, jobapi_events e"
                " WHERE j.job_id = %s AND e.job_id = %s AND e.kind = %s",
                (job.job_id, lost.job_id, int(EventKind.LEASE_EXPIRED)),
            ).fetchone()
        assert row is not None
        took.append(float(row[0]))
        end_all(client, workspace_id, job_type)
    print(
        f"freed by expiry of a lease: median {statistics.median(took) * 1000:.0f} ms,"
        f" at most {max(took) * 1000:.0f} ms after the end of the attempt",
        flush=True,
    )


def end_all(client: Client, workspace_id: int, job_type: str) -> None:
    for status in ("running", "pending"):
        for left in client.jobs(workspace_id, status=status, job_type=job_type):
            client.cancel(workspace_id, left.job_id)


def estimates(database: str, workspace_id: int, folder: Path) -> None:
    """Compare estimated starts with real ones while the load rises and falls."""
    app = create_app(
        {
            "JOBAPI_DATABASE_URL": database,
            "JOBAPI_SECRET_KEY": SECRET,
            "JOBAPI_INSTANCE_PATH": str(folder),
        }
    )
    engine = app.extensions["jobapi"].engine
    stop = threading.Event()
    chance = random.Random(1)

    def run(seed: int) -> None:
        own = random.Random(seed)
        with engine.connect() as connection:
            while not stop.is_set():
                token = queue.new_lease_token()
                claimed = queue.claim(
                    connection, workspace_id, lease_token=token, job_types=["day"], worker="w"
                )
                for job in claimed:
                    time.sleep(own.uniform(0.05, 0.15))
                    report: Any = {
                        "job_id": job.job_id,
                        "lease_token": token,
                        "status": JobStatus.SUCCESS,
                    }
                    queue.report(connection, workspace_id, [report], backoff=Backoff(1, 1))
                if not claimed:
                    time.sleep(0.02)

    with engine.connect() as connection:
        state = app.extensions["jobapi"]
        state.note_worker(connection, workspace_id, "w", "user:1", ["day"])
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(CLAIMERS)]
        for thread in threads:
            thread.start()
        told = {}
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < DAY:
            # From 10 to 70 jobs a second; four workers do about 38.
            load = 40 - 30 * math.cos(2 * math.pi * passed / DAY * 2)
            row = jobs.create(connection, workspace_id, created_by=1, job_type="day")
            if chance.random() < 0.1:
                with snapshot(connection) as tx:
                    job = jobs.get(tx, workspace_id, row.job_id)
                    found = explain.explain(tx, job)
                if found.estimated_start_at is not None and found.ahead:
                    told[row.job_id] = job.now, found.estimated_start_at
            time.sleep(chance.expovariate(load))
        time.sleep(15)
        stop.set()
        for thread in threads:
            thread.join()
        c = tables.jobs.c
        rows = connection.execute(select(c.job_id, c.started_at).where(c.job_id.in_(told))).all()
    errors = []
    for job_id, started_at in rows:
        at, estimate = told[job_id]
        if started_at is not None:
            wait = max(0.1, (started_at - at).total_seconds())
            errors.append((estimate - started_at).total_seconds() / wait)
    sizes = sorted(map(abs, errors))
    print(
        f"estimates: {len(sizes)} of jobs that waited; error of the wait: median"
        f" {statistics.median(sizes):.0%}, 90% within {sizes[int(0.9 * len(sizes))]:.0%},"
        f" bias {statistics.median(errors):+.0%}",
        flush=True,
    )
    app.extensions["jobapi"].close()


def main() -> None:
    """Measure all of it."""
    only = sys.argv[1:]
    with postgres() as database, tempfile.TemporaryDirectory() as folder:
        token, workspace_id, _ = prepare(database)
        plain = database.replace("postgresql+psycopg", "postgresql")
        with (
            served("wsgi:app", database, Path(folder), 2, 8) as port,
            served("wsgi:app", database, Path(folder), 1, 8) as other,
        ):
            url = f"http://127.0.0.1:{port}"
            if not only or "throughput" in only:
                throughput(plain, url, token, workspace_id)
            if not only or "flood" in only:
                flood(plain, url, token, workspace_id)
            if not only or "wakes" in only:
                wakes(url, f"http://127.0.0.1:{other}", token, workspace_id)
                wakes_by_expiry(plain, url, f"http://127.0.0.1:{other}", token, workspace_id)
        if not only or "estimates" in only:
            estimates(database, workspace_id, Path(folder))


if __name__ == "__main__":
    main()
