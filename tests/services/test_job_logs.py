"""What logs cost does not depend on how long they are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text

from jobapi.rules.job_logs import KEPT_ENTRIES
from jobapi.services import job_logs
from jobapi.services.job_logs import Addition
from jobapi.store.tables import job_log_heads
from jobapi.store.transactions import BY_KEY, snapshot, transaction

from ..factories import Desk
from .test_tenants import blocks_read


@pytest.fixture
def database() -> str:
    """Only Postgres says what it reads."""
    return "postgresql"


def start_afresh(desk: Desk) -> None:
    """Let no block be free that a vacuum has emptied: entries could be in any of those."""
    with desk.world.transaction() as tx:
        tx.execute(text("ALTER TABLE jobapi_job_logs SET (autovacuum_enabled = off)"))
        tx.execute(text("TRUNCATE jobapi_job_logs"))


def full_log(desk: Desk) -> int:
    """The ``id`` of a job whose log is full, and has been for a while."""
    start_afresh(desk)
    desk.create()
    (job,) = desk.claim()
    desk.report(job, logs=[{"message": "first"}])
    with desk.world.transaction() as tx:
        found: int = tx.execute(select(job_log_heads.c.job)).scalar_one()
    for n in range(3):
        entries: Any = [{"message": f"{n} {m} {'x' * 80}"} for m in range(KEPT_ENTRIES)]
        append(desk, found, entries)
    return found


def append(desk: Desk, job: int, entries: Any) -> int:
    """The number of blocks that an append reads."""
    with blocks_read(desk) as (connection, read), transaction(connection, planner=BY_KEY) as tx:
        job_logs.append(tx, desk.workspace_id, [Addition(job, 1, entries, datetime.now(UTC))])
    return read.n


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("cursor", [None, KEPT_ENTRIES * 5 // 2])
def test_page_of_a_full_log_reads_its_own_entries(
    desk: Desk, order: str, cursor: int | None
) -> None:
    job = full_log(desk)
    given = {} if cursor is None else {"cursor": job_logs.write_cursor([cursor])}
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        found = job_logs.page(tx, desk.workspace_id, job, limit=100, order=order, **given)
    assert len(found.rows) == 100
    assert read.n < 40


def test_append_to_a_full_log_reads_what_it_replaces(desk: Desk) -> None:
    job = full_log(desk)
    assert append(desk, job, [{"message": "x"}] * 50) < 60


def test_page_of_a_log_among_others_reads_a_block_per_entry(desk: Desk) -> None:
    start_afresh(desk)
    for _ in range(20):
        desk.create()
    running = desk.claim(limit=20)
    for n in range(30):
        for job in running:
            logs = [{"message": f"{n} {m} {'x' * 900}"} for m in range(10)]
            desk.report(job, logs=logs)
    with desk.world.transaction() as tx:
        job = (
            tx.execute(select(job_log_heads.c.job).order_by(job_log_heads.c.job)).scalars().first()
        )
    assert job is not None
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        found = job_logs.page(tx, desk.workspace_id, job, limit=100)
    assert len(found.rows) == 100
    assert read.n < 140
