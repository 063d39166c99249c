"""What logs cost does not depend on how long they are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select

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


def full_log(desk: Desk) -> int:
    """The ``id`` of a job whose log is full, and has been for a while."""
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
    # A row may be in any block that a vacuum has freed.
    assert read.n < 300


def test_append_to_a_full_log_reads_what_it_replaces(desk: Desk) -> None:
    job = full_log(desk)
    assert append(desk, job, [{"message": "x"}] * 50) < 250
