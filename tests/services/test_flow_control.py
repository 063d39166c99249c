"""Limits are exact at every commit, with many processes; turns are fair, and cost the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from jobapi import jobs, queue
from jobapi.rules.events import EventKind
from jobapi.services import job_types
from jobapi.store import tables
from jobapi.store.transactions import transaction

from ..conftest import app_on
from ..factories import Desk, World, until
from .claimers import BACKOFF

ROOT = Path(__file__).parents[2]
KEYS = 12
PROCESSES = {"postgresql": 8, "sqlite": 4}
COMMITS = 150
"""How many entries of the ledger are enough."""

# What runs at each commit. On Postgres the trigger waits for other commits, and counts what is
# committed, once in each transaction; on SQLite there is one writer at a time.
LEDGER = {
    "postgresql": """
CREATE TABLE ledger (id serial, n integer, per_key integer, tx bigint UNIQUE);
CREATE FUNCTION ledger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM ledger WHERE tx = txid_current()) THEN RETURN NULL; END IF;
  PERFORM pg_advisory_xact_lock(4242);
  INSERT INTO ledger (n, per_key, tx) SELECT
    (SELECT count(*) FROM jobapi_jobs WHERE status = 1),
    (SELECT max(n) FROM (SELECT count(*) AS n FROM jobapi_jobs
      WHERE status = 1 AND concurrency_key IS NOT NULL GROUP BY concurrency_key) AS keys),
    txid_current();
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER ledger AFTER UPDATE ON jobapi_jobs
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger();
""",
    "sqlite": """
CREATE TABLE ledger (id integer PRIMARY KEY, n integer, per_key integer);
CREATE TRIGGER ledger AFTER UPDATE ON jobapi_jobs WHEN new.status = 1 AND old.status <> 1 BEGIN
  INSERT INTO ledger (n, per_key) SELECT
    (SELECT count(*) FROM jobapi_jobs WHERE status = 1),
    (SELECT max(n) FROM (SELECT count(*) AS n FROM jobapi_jobs
      WHERE status = 1 AND concurrency_key IS NOT NULL GROUP BY concurrency_key));
END;
""",
}
WITHOUT_INDEXES = """
DROP INDEX uq_jobapi_jobs_slot;
DROP INDEX uq_jobapi_jobs_key_slot;
CREATE INDEX running_of_keys ON jobapi_jobs (workspace_id, job_type, concurrency_key)
  WHERE status = 1 AND concurrency_key IS NOT NULL
"""


class Yard:
    """A database of its own with many jobs of one type, and processes that start them."""

    def __init__(self, url: str, folder: Path, number: int = 2000) -> None:
        self.url, self.folder = url, folder
        self.app = app_on(url, folder)
        self.desk = Desk(World(self.app))
        assert self.desk.workspace_id == 1
        self.engine = self.app.extensions["jobapi"].engine
        items: list[Any] = [
            {"job_type": "t", "concurrency_key": f"k{n % KEYS}" if n % (KEYS + 1) else None}
            for n in range(number)
        ]
        with self.engine.connect() as connection:
            for start in range(0, number, 1000):
                part = items[start : start + 1000]
                jobs.create_many(connection, 1, part, created_by=self.desk.user.id)
            driver = connection.connection.dbapi_connection
            script = LEDGER[connection.dialect.name]
            if connection.dialect.name == "sqlite":
                driver.executescript(script)
            else:
                driver.execute(script)

    def limit(self, **settings: Any) -> None:
        with self.engine.connect() as connection:
            job_types.change(connection, 1, "t", settings)

    def start(self, number: int, *, limit: int = 20, mode: str = "") -> None:
        self.claimers = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.services.claimers", self.url),
                *(str(self.folder), str(number), str(limit), mode),
            ],
            cwd=ROOT,
        )

    def finish(self) -> None:
        (self.folder / "stop").touch()
        self.claimers.communicate(timeout=120)
        assert self.claimers.returncode == 0

    def reap(self) -> bool:
        """Take back jobs whose lease has expired; returns whether no job runs."""
        with self.engine.connect() as connection, transaction(connection) as tx:
            queue.reap(tx, backoff=BACKOFF)
        return not self.rows("SELECT 1 FROM jobapi_jobs WHERE status = 1")

    def ended_before(self) -> Callable[[], bool]:
        """A function that returns whether all transactions that run now have ended.

        On SQLite a claim reads the limit in the transaction that starts the jobs, so none can be
        under way.
        """
        if self.engine.dialect.name == "sqlite":
            return lambda: True
        running = (
            "SELECT pid, xact_start FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
        )
        now = {tuple(row) for row in self.rows(running)}
        return lambda: now.isdisjoint(tuple(row) for row in self.rows(running))

    def close(self) -> None:
        if self.claimers.poll() is None:
            # Its children end by the file.
            (self.folder / "stop").touch()
            self.claimers.communicate(timeout=120)
        self.app.extensions["jobapi"].close()

    def rows(self, sql: str, **given: Any) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(text(sql), given).all()


@pytest.fixture
def yard(new_database: Any, database: str, tmp_path: Path) -> Any:
    yard = Yard(new_database(database), tmp_path)
    yield yard
    yard.close()


MODES = {
    "postgresql": ["", "no locks", "no indexes"],
    "sqlite": [""],
}


@pytest.mark.parametrize(
    ("database", "mode"),
    [(name, mode) for name, modes in MODES.items() for mode in modes],
    indirect=["database"],
)
def test_no_more_jobs_run_than_may_run(yard: Yard, database: str, mode: str) -> None:
    if mode == "no indexes":
        with yard.engine.connect() as connection:
            for statement in WITHOUT_INDEXES.split(";"):
                connection.exec_driver_sql(statement)
    yard.limit(max_running=5, max_running_per_key=2)
    yard.start(PROCESSES[database], mode=mode)
    highest = (
        "SELECT coalesce(max(n), 0) AS n, coalesce(max(per_key), 0) AS per_key,"
        " count(*) AS commits FROM ledger"
    )

    def reached() -> bool:
        (row,) = yard.rows(highest)
        # Without locks, each deadlock takes a second.
        enough = COMMITS / 4 if mode == "no locks" else COMMITS
        done = bool(row.n >= 5 and row.per_key >= 2 and row.commits > enough)
        kinds = EventKind.DELETED, EventKind.LEASE_EXPIRED
        seen = "SELECT 1 FROM jobapi_events WHERE kind = :kind LIMIT 1"
        return done and all(yard.rows(seen, kind=int(kind)) for kind in kinds)

    until(reached)
    yard.finish()
    (row,) = yard.rows(highest)
    assert (row.n, row.per_key) == (5, 2)
    # Only jobs that a claimer has lost still run, until their leases expire.
    until(yard.reap)


def test_lowered_limit_holds_once_fewer_jobs_run(yard: Yard, database: str) -> None:
    yard.limit(max_running=2)
    yard.start(PROCESSES[database])
    until(lambda: yard.rows("SELECT 1 FROM ledger WHERE n = 2"))
    yard.limit(max_running=8)
    until(lambda: yard.rows("SELECT 1 FROM ledger WHERE n = 8"))
    yard.limit(max_running=3)
    # Claims that have begun before may still start jobs.
    until(yard.ended_before())
    (lowered,) = yard.rows("SELECT max(id) AS id FROM ledger")
    since = "SELECT n FROM ledger WHERE id > :id ORDER BY id"
    until(lambda: len(yard.rows(since, id=lowered.id)) > COMMITS)
    yard.finish()
    after = [row.n for row in yard.rows(since, id=lowered.id)]
    while after and after[0] > 3:
        del after[0]
    assert len(after) > 10
    assert max(after) == 3
    (row,) = yard.rows("SELECT max(n) AS n FROM ledger")
    assert row.n == 8


def test_serial_keys_run_in_the_order_of_claims(yard: Yard, database: str) -> None:
    yard.limit(max_running=15, max_running_per_key=1)
    yard.start(PROCESSES[database])
    until(lambda: len(yard.rows("SELECT 1 FROM ledger")) > COMMITS)
    yard.finish()
    (row,) = yard.rows("SELECT max(per_key) AS per_key FROM ledger")
    assert row.per_key == 1
    # Edits start any job, so only claims are compared. A retry is due later.
    first = yard.rows(
        "SELECT j.concurrency_key AS key, j.id AS job, min(e.id) AS event FROM jobapi_jobs j"
        " JOIN jobapi_events e ON e.job_id = j.job_id WHERE e.kind IN (1, 2)"
        " AND j.concurrency_key IS NOT NULL GROUP BY j.concurrency_key, j.id ORDER BY 3"
    )
    by_edit = {
        row.job
        for row in yard.rows(
            "SELECT j.id AS job FROM jobapi_jobs j JOIN jobapi_events e ON e.job_id = j.job_id"
            " WHERE e.kind = 1"
        )
    }
    last: dict[str, int] = {}
    compared = 0
    for each in first:
        if each.job not in by_edit:
            assert each.job > last.get(each.key, 0)
            last[each.key] = each.job
            compared += 1
    assert compared > 5


def test_no_more_jobs_start_than_tokens_allow(yard: Yard, database: str) -> None:
    starts, seconds = 20, 1
    yard.limit(rate_limit={"starts": starts, "seconds": seconds})
    yard.start(PROCESSES[database])
    until(lambda: len(yard.rows("SELECT 1 FROM ledger")) > 4 * starts)
    yard.finish()
    with yard.engine.connect() as connection:
        # The starts of all attempts; those that succeeded are in the jobs.
        ended = select(tables.attempts.c.started_at)
        succeeded = select(tables.jobs.c.started_at).where(tables.jobs.c.status == 2)
        found = [*connection.execute(ended).scalars(), *connection.execute(succeeded).scalars()]
        moments = sorted(moment.timestamp() for moment in found)
    assert len(moments) >= starts
    for n, end in enumerate(moments):
        for first in range(n):
            # SQLite's clock has milliseconds.
            passed = end - moments[first] + 0.002
            assert n - first + 1 <= starts + starts * passed / seconds


def test_small_key_starts_within_a_round(desk: Desk) -> None:
    limit, keys = 2, 10
    items: list[Any] = [{"job_type": "t", "concurrency_key": f"k{n % keys}"} for n in range(200)]
    desk.post("/batch", json={"jobs": items})
    for turn in range(5):
        key = f"{chr(ord('a') + turn)}{turn}"
        job = desk.create(job_type="t", concurrency_key=key)
        claims = 0
        while job["job_id"] not in {each["job_id"] for each in desk.claim(limit=limit)}:
            claims += 1
        assert claims <= (keys + 1) / limit + 1


def test_every_key_is_served_as_often_as_any_other(desk: Desk) -> None:
    sizes = {"a": 60, "b": 20, "c": 40, "zz": 20}
    items: list[Any] = [
        {"job_type": "t", "concurrency_key": key} for key, n in sizes.items() for _ in range(n)
    ]
    desk.post("/batch", json={"jobs": items})
    # Urgent jobs of one key do not take the turns of the others.
    urgent = [{"job_type": "t", "concurrency_key": "zz", "priority": "urgent"}] * 10
    desk.post("/batch", json={"jobs": urgent})
    served = Counter(desk.claim()[0]["concurrency_key"] for _ in range(10))
    assert served == {"zz": 10}
    for number in range(1, 41):
        served.update([desk.claim()[0]["concurrency_key"]])
        normal = served - Counter({"zz": 10})
        assert max(normal[key] for key in sizes) - min(normal[key] for key in sizes) <= 1, number
