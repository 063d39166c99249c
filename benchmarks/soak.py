"""Ten minutes of full load: ``make soak``.

One process creates jobs, others claim and report them as fast as they can, on a
``jobapi serve``. The time is divided into ten windows. The exit code is 1 if the jobs per
second of the last window are less than 0.95 of the first. The sizes of the table and its
indexes and the number of dead rows are printed, too.

``SOAK_SECONDS`` is the duration without the start. ``BENCH_DATABASE_URL`` is as in
``bench.py``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import psycopg
from bench import clear, jobapi_serve
from cycle import processes, work
from scale import sizes

from jobapi.client import Client
from jobapi.client.client import MAX_BATCH
from jobapi.rules.jobs import JobStatus

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
WINDOWS = 10
WARM_UP = 10.0
WORKERS = 2
"""On two cores, the creating process stays ahead of this many."""

BACKLOG = 5_000
"""Jobs are created while fewer than this many are pending."""

GOAL = 0.95
TABLES = (
    "jobapi_jobs",
    "jobapi_events",
    "jobapi_job_counts",
    "jobapi_job_count_changes",
    "jobapi_idempotency_keys",
)


def count(connection: psycopg.Connection[Any], status: JobStatus) -> int:
    """The number of jobs, from the service's own totals, which is cheap."""
    row = connection.execute(
        "SELECT coalesce(sum(n), 0) FROM (SELECT n, status FROM jobapi_job_counts UNION ALL"
        " SELECT n, status FROM jobapi_job_count_changes) AS counted WHERE status = %s",
        (status,),
    ).fetchone()
    return int(row[0]) if row else 0


def create(database: str, url: str, token: str, workspace_id: int) -> None:
    """Keep ``BACKLOG`` jobs pending."""
    with (
        psycopg.connect(database, autocommit=True) as connection,
        Client(url, token=token) as client,
    ):
        number = 0
        while True:
            if count(connection, JobStatus.PENDING) >= BACKLOG:
                time.sleep(0.01)
                continue
            number += 1
            metadata = {"batch_id": number, "file": f"dataset-{number}.csv"}
            item = {"job_type": "noop", "metadata": metadata}
            client.create_many(workspace_id, [item] * MAX_BATCH)


def dead(connection: psycopg.Connection[Any]) -> int:
    """The number of dead rows in the jobs' table."""
    row = connection.execute(
        "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobapi_jobs'"
    ).fetchone()
    return int(row[0]) if row else 0


def soak(connection: psycopg.Connection[Any]) -> float:
    """Print the windows; returns the last one's jobs per second divided by the first one's."""
    names = ("window", "jobs/s", "ended", "pending", "table MiB", "indexes MiB", "dead")
    print("".join(f"{name:>12}" for name in names))
    points = {"start": sizes(connection, *TABLES)}
    rates = []
    began = time.monotonic()
    last, ended = began, count(connection, JobStatus.SUCCESS)
    for window in range(1, WINDOWS + 1):
        time.sleep(max(0.0, began + window * SECONDS / WINDOWS - time.monotonic()))
        now, by_now = time.monotonic(), count(connection, JobStatus.SUCCESS)
        rates.append((by_now - ended) / (now - last))
        last, ended = now, by_now
        table, *indexes = sizes(connection, "jobapi_jobs").values()
        pending = count(connection, JobStatus.PENDING)
        print(
            f"{window:12}{rates[-1]:12.0f}{ended:12}{pending:12}{table / 2**20:12.1f}"
            f"{sum(indexes) / 2**20:12.1f}{dead(connection):12}",
            flush=True,
        )
        if window in (WINDOWS // 2, WINDOWS):
            points["end" if window == WINDOWS else "middle"] = sizes(connection, *TABLES)
    print(f"\n{'MiB':40}" + "".join(f"{point:>10}" for point in points))
    for name in points["start"]:
        shown = "".join(f"{at[name] / 2**20:10.1f}" for at in points.values())
        print(f"{name:40}{shown}")
    return rates[-1] / rates[0]


def main() -> None:
    with contextlib.ExitStack() as stack:
        database, token, workspace_id, start = stack.enter_context(jobapi_serve(SECONDS))
        server = stack.enter_context(start())
        connection = stack.enter_context(psycopg.connect(database, autocommit=True))
        clear(connection)
        caller = (server.url, token, workspace_id)
        stack.enter_context(processes(create, 1, database, *caller))
        stack.enter_context(processes(work, WORKERS, *caller))
        time.sleep(WARM_UP)
        ratio = soak(connection)
        print(f"\nlast window / first: {ratio:.2f}; goal {GOAL}")
    sys.exit(ratio < GOAL)


if __name__ == "__main__":
    main()
