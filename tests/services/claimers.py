"""Processes that start and end jobs continuously: ``python -m tests.services.claimers …``."""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, column, select, text

from jobapi import create_app, jobs, queue
from jobapi.errors import JobApiError
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.services import flow_slots
from jobapi.store import tables
from jobapi.store.statement import Statement
from jobapi.store.transactions import transaction

BACKOFF = Backoff(0.01, 0.05)

# Takes what it is asked for, and locks nothing.
LOCKS_NOTHING: Any = Statement(
    text(
        "SELECT of.name, number FROM json_to_recordset(CAST(:records AS json)) AS of"
        " (name text, space integer, numbers integer[]),"
        " LATERAL (SELECT number FROM unnest(of.numbers) AS number LIMIT :limit) AS free"
    )
    .bindparams(bindparam("limit"))
    .columns(column("name"), column("number"))
)


class Claimer:
    """Starts jobs by claims and edits, and ends them in every way, at random."""

    def __init__(self, connection: Any, seed: int, limit: int) -> None:
        self.connection = connection
        self.chance = random.Random(seed)
        self.limit = limit
        self.held: list[tuple[str, str | None]] = []
        self.ended: list[str] = []

    def start(self) -> None:
        """Claim, or start one job by an edit."""
        if self.chance.random() < 0.3:
            c = tables.jobs.c
            some = select(c.job_id).where(c.status == 0).order_by(c.id).limit(20)
            ids = list(self.connection.execute(some).scalars())
            if ids:
                job_id = self.chance.choice(ids)
                jobs.edit(self.connection, 1, job_id, {"status": JobStatus.RUNNING})
                self.held.append((job_id, None))
            return
        token = queue.new_lease_token()
        lost = self.chance.random() < 0.05
        limit = 1 if lost else self.chance.choice([1, 2, self.limit])
        got = queue.claim(
            *(self.connection, 1),
            lease_token=token,
            limit=limit,
            lease_seconds=1 if lost else 60,
            worker="w",
        )
        # A lost job is as if this worker had died: its lease expires.
        if not lost:
            self.held += [(job.job_id, token) for job in got]

    def tidy(self) -> None:
        """Take back jobs whose lease has expired, and delete one that has ended."""
        with transaction(self.connection):
            queue.reap(self.connection, backoff=BACKOFF)
        if self.ended:
            jobs.delete(self.connection, 1, self.ended.pop())

    def end(self) -> None:
        """End one of the jobs, hand it back or let it fail."""
        job_id, token = self.held.pop(self.chance.randrange(len(self.held)))
        if self.chance.random() < 0.15:
            jobs.cancel(self.connection, 1, job_id)
            self.ended.append(job_id)
        elif token is None:
            jobs.edit(self.connection, 1, job_id, {"status": JobStatus.SUCCESS})
        else:
            status = self.chance.choice(
                [JobStatus.SUCCESS, JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.PENDING]
            )
            report: Any = {"job_id": job_id, "lease_token": token, "status": status}
            (answer,) = queue.report(self.connection, 1, [report], backoff=BACKOFF)
            assert answer.problem is None, answer

    def run(self, stop: Path) -> None:
        """Start and end jobs until the file ``stop`` exists or a minute has passed.

        Then end the remaining jobs. The service may refuse what others make impossible.
        """
        end = time.monotonic() + 60
        while self.held or (time.monotonic() < end and not stop.exists()):
            stopping = stop.exists() or time.monotonic() >= end
            ends = bool(self.held) and (stopping or self.chance.random() < 0.5)
            act = self.tidy if self.chance.random() < 0.1 else self.end if ends else self.start
            with suppress(JobApiError):
                act()
            time.sleep(self.chance.random() * 0.02)


def run(seed: int, *, url: str, folder: Path, limit: int) -> None:
    """Run one claimer in this process."""
    app = create_app(
        {
            "JOBAPI_DATABASE_URL": url,
            "JOBAPI_SECRET_KEY": "s" * 40,
            "JOBAPI_INSTANCE_PATH": str(folder),
            "JOBAPI_MAINTENANCE_ENABLED": False,
        }
    )
    with app.extensions["jobapi"].engine.connect() as connection:
        Claimer(connection, seed, limit).run(folder / "stop")


def main(url: str, folder: str, number: str, limit: str, mode: str) -> None:
    """Run claimers in processes of their own."""
    if mode == "no locks":
        flow_slots._LOCKING = LOCKS_NOTHING
    # Forked, so that only one process imports the service.
    with get_context("fork").Pool(int(number)) as pool:
        one = partial(run, url=url, folder=Path(folder), limit=int(limit))
        pool.map(one, range(int(number)), chunksize=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
