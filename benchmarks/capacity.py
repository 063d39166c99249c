"""The capacity of a cell: processor time and disk space per job, and cells per jobs a day.

``make bench-capacity`` runs the whole cycle, in batches and one job at a time, and reads how much
processor time the service, Postgres and the workers have used. Processor time per job is the same
at any rate below saturation, so cores = rate x seconds per job. From this follows how many jobs a
second a cell carries, and how many cells ``CAPACITY_JOBS`` a day take, if they come ``PEAK`` times
as fast at their peak, on machines that are busy to ``USE``.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psycopg
from bench import clear, postgres, prepare, served
from cycle import processes, until, work, work_singly
from soak import count

from jobapi.client import Client
from jobapi.rules.jobs import JobStatus

PER_DAY = int(os.environ.get("CAPACITY_JOBS", 100_000_000))
PEAK = 3.0
USE = 0.5
CORES = 16
"""Cores of the database server of a cell."""

TICK = os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """Processor time in seconds."""

    service: float
    database: float
    workers: float

    def since(self, before: Used, jobs: int) -> Used:
        """The time per job since an earlier measurement."""
        return Used(*((now - then) / jobs for now, then in zip(self, before, strict=True)))


def used(port: int) -> Used:
    """What all processes have used so far, by their command lines."""
    service = database = workers = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Their own time and that of their children that have ended.
        seconds = sum(map(int, fields[11:15])) / TICK
        if f"127.0.0.1:{port}" in command:
            service += seconds
        elif (folder / "comm").read_text().strip() == "postgres":
            database += seconds
        elif "capacity.py" in command and folder.name != str(os.getpid()):
            workers += seconds
    return Used(service, database, workers)


def run(database: str, port: int, token: str, workspace_id: int, jobs: int, singly: bool) -> Used:
    """The time per job of the whole cycle."""
    url = f"http://127.0.0.1:{port}"
    with (
        psycopg.connect(database, autocommit=True) as connection,
        Client(url, token=token) as client,
    ):
        clear(connection)
        target = work_singly if singly else work
        item = {"job_type": "noop", "metadata": {"batch_id": 7, "file": "dataset-0007.csv"}}
        with processes(target, 2, url, token, workspace_id):
            before = used(port)
            if singly:
                for _ in range(jobs):
                    client.create(workspace_id, **item)
            else:
                client.create_many(workspace_id, [item] * jobs)
            until(lambda: count(connection, JobStatus.SUCCESS) == jobs)
            return used(port).since(before, jobs)


def bytes_per_job(database: str, jobs: int) -> tuple[float, float]:
    """The size of a job, and of its events, with their indexes."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("VACUUM FULL jobapi_jobs")
        connection.execute("VACUUM FULL jobapi_events")
        row = connection.execute(
            "SELECT pg_total_relation_size('jobapi_jobs'), pg_total_relation_size('jobapi_events')"
        ).fetchone()
    return (0.0, 0.0) if row is None else (row[0] / jobs, row[1] / jobs)


def main() -> None:
    with postgres() as database, tempfile.TemporaryDirectory() as name:
        token, workspace_id, _ = prepare(database)
        with served("wsgi:app", database, Path(name), 2, 8) as port:
            time.sleep(1)
            run(database, port, token, workspace_id, 5_000, False)
            batches = run(database, port, token, workspace_id, 40_000, False)
            job, events = bytes_per_job(database, 40_000)
            singly = run(database, port, token, workspace_id, 2_000, True)
    print("processor time per job, in milliseconds:")
    print(f"{'':12}{'service':>10}{'database':>10}{'workers':>10}")
    for label, each in (("in batches", batches), ("singly", singly)):
        print(f"{label:12}" + "".join(f"{1000 * seconds:10.3f}" for seconds in each))
    print(f"\ndisk per ended job: {job:.0f} bytes, and {events:.0f} of events")
    print(f"\na database of {CORES} cores that is busy to {USE:.0%} carries, in jobs per second:")
    carried = {}
    for label, each in (("in batches", batches), ("singly", singly)):
        carried[label] = CORES * USE / each.database
        print(f"{label:12}{carried[label]:10,.0f}, with {carried[label] * each.service:.0f} cores")
    average = PER_DAY / 86_400
    peak = PEAK * average
    print(f"\n{PER_DAY:,} jobs a day are {average:,.0f} per second, {peak:,.0f} at the peak:")
    for label, each in (("in batches", batches), ("singly", singly)):
        print(
            f"{label:12}{peak / carried[label]:.1f} cells, "
            f"{peak * each.database / USE:.0f} cores of databases, "
            f"{peak * each.service / USE:.0f} of services"
        )
    print(f"disk: {PER_DAY * (job + events) / 1e9:.0f} GB a day, as long as jobs are kept")


if __name__ == "__main__":
    main()
