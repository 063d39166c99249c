"""Plans that Postgres keeps for claims and reports: for any parameters, and for ten seconds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import count, cycle
from typing import Any

import pytest
from sqlalchemy import Connection, text

from jobapi import queue, workspaces
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.services import job_types, settling
from jobapi.store import transactions
from jobapi.store.transactions import BY_KEY, IN_ORDER, atomic, transaction

from ..conftest import app_on
from ..factories import Desk, World

MANY = 30_000
FILL = """
INSERT INTO jobapi_jobs (job_id, workspace_id, created_by, job_type, status, priority, version,
  retry_count, max_retries, created_at, updated_at, queued_at, due_at, attempt, started_at,
  completed_at)
SELECT 'job_' || :job_type || lpad(n::text, 24, '0'), 1, 1, :job_type, :status, 1, 1, 0, 3, now(),
  now(), now(), now(), least(:status, 1), CASE WHEN :status > 0 THEN now() END,
  CASE WHEN :status > 1 THEN now() END
FROM generate_series(1, :n) AS n
"""
READ = text(
    "SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read"
    " FROM pg_statio_user_tables WHERE relname = 'jobapi_jobs'"
)
CLAIMS: list[tuple[Sequence[str] | None, int]] = [
    (None, 1),
    (None, 20),
    (["rare"], 1),
    (["rare"], 20),
    (["none", "other", "rare"], 1),
    (["none"], 20),
]
MOST = 100
"""Blocks for each job, and once more: its row is written twice into the indexes."""


@pytest.fixture
def growing(new_database: Any, tmp_path_factory: Any) -> Any:
    """A workspace of which nothing is known to the planner."""
    app = app_on(new_database("postgresql"), tmp_path_factory.mktemp("instance"))
    desk = Desk(World(app))
    with desk.world.state.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE jobapi_jobs SET (autovacuum_enabled = off)")
    yield desk
    app.extensions["jobapi"].close()


def fill(connection: Connection, job_type: str, status: JobStatus) -> None:
    # Neither claims nor reports read counts and events, so triggers need not write them.
    connection.exec_driver_sql("SET session_replication_role = replica")
    connection.execute(text(FILL), {"job_type": job_type, "n": MANY, "status": status})
    connection.exec_driver_sql("RESET session_replication_role")


def blocks_read(connection: Connection) -> int:
    """How many blocks of the table and its indexes have been read so far."""
    connection.execute(text("SELECT pg_stat_force_next_flush()"))
    return int(connection.scalar(READ) or 0)


def claim_and_report(
    connection: Connection,
    wanted: Sequence[str] | None,
    limit: int,
) -> tuple[int, int]:
    """How many jobs were claimed and reported, and how many blocks this took."""
    before = blocks_read(connection)
    token = queue.new_lease_token()
    jobs = queue.claim(connection, 1, lease_token=token, limit=limit, job_types=wanted)
    statuses = cycle([JobStatus.SUCCESS, JobStatus.FAILED])
    reports: list[Any] = [
        {"job_id": job.job_id, "lease_token": token, "status": status}
        for job, status in zip(jobs, statuses, strict=False)
    ]
    if reports:
        answers = queue.report(connection, 1, reports, backoff=Backoff(1, 1))
        assert [answer.problem for answer in answers] == [None] * len(jobs)
    return len(jobs), blocks_read(connection) - before


def check_claims(desk: Desk, others: int, **fields: Any) -> None:
    """Claim and report beside many jobs: each job may read ``MOST`` blocks, and ``others`` more."""
    numbers = count()
    with desk.world.state.engine.connect() as connection:
        for status in (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.SUCCESS):
            fill(connection, f"other{status:d}", status)
        for wanted, limit in CLAIMS:
            for _ in range(20):
                given = {name: f"{value}{next(numbers)}" for name, value in fields.items()}
                desk.create(job_type="rare", **given)
            claimed, blocks = claim_and_report(connection, wanted, limit)
            assert claimed == (0 if wanted == ["none"] else limit)
            assert blocks < MOST * (others + claimed), (wanted, limit)


@pytest.mark.parametrize("ageing", [None, 3600])
def test_plans_for_any_parameters_read_few_blocks_without_statistics(
    growing: Desk, ageing: int | None
) -> None:
    with growing.world.transaction() as tx:
        workspaces.change(tx, growing.workspace_id, priority_ageing_seconds=ageing)
    check_claims(growing, 1)


def test_plans_for_governed_types_read_few_blocks_without_statistics(growing: Desk) -> None:
    with growing.world.transaction() as tx:
        for name in ("rare", f"other{JobStatus.PENDING:d}"):
            job_types.change(tx, 1, name, {"max_running": 500, "max_running_per_key": 2})
    # A claim also reads a bounded number of slots, keys and heads of queues.
    check_claims(growing, 8, concurrency_key="key")


def test_lock_reads_few_blocks_with_statistics_of_a_small_table(growing: Desk) -> None:
    job = growing.create(job_type="rare")
    with growing.world.state.engine.connect() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE jobapi_jobs")
        fill(connection, "other2", JobStatus.SUCCESS)
        before = blocks_read(connection)
        with atomic(connection, planner=BY_KEY, keep_plans=True):
            assert settling.lock(connection, 1, [job["job_id"]])
        assert blocks_read(connection) - before < MOST


def test_statements_are_prepared_only_where_plans_are_kept(growing: Desk) -> None:
    """A plan made with other planner settings would be used for reports, too."""
    locks = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%FOR UPDATE%'")
    job = growing.create(job_type="rare")
    with growing.world.state.engine.connect() as connection:
        with transaction(connection, planner=BY_KEY):
            assert settling.lock(connection, 1, [job["job_id"]])
        assert connection.scalar(locks) == 0
        with atomic(connection, planner=BY_KEY, keep_plans=True):
            with atomic(connection, planner=IN_ORDER):
                assert settling.lock(connection, 1, [job["job_id"]])
            assert connection.scalar(locks) == 0
            assert settling.lock(connection, 1, [job["job_id"]])
        assert connection.scalar(locks) == 1


def test_plans_are_kept_and_dropped_after_a_while(
    growing: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    command = transactions._command
    monkeypatch.setattr(
        transactions, "_command", lambda on, sql: (said.append(sql), command(on, sql))
    )
    kept = text("SELECT count(*) FROM pg_prepared_statements WHERE generic_plans > 0")
    with growing.world.state.engine.connect() as connection:
        growing.create(job_type="rare")
        claim_and_report(connection, ["rare"], 1)
        with atomic(connection, planner=BY_KEY, keep_plans=True):
            assert connection.scalar(text("SHOW plan_cache_mode")) == "force_generic_plan"
        assert connection.scalar(text("SHOW plan_cache_mode")) == "auto"
        assert connection.scalar(kept) > 0
        assert not [each for each in said if "DISCARD" in each]
        monkeypatch.setattr(transactions, "KEEP_SECONDS", 0)
        for of_caller in (False, True):
            said.clear()
            with transaction(connection) if of_caller else nullcontext():
                claim_and_report(connection, ["rare"], 1)
            # A caller's transaction keeps no plans, and may need its own.
            assert of_caller != any(each.startswith("DISCARD PLANS") for each in said)
