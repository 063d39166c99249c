"""The table of the module's docstring, row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from jobapi.rules.jobs import JobStatus, Priority
from jobapi.services import job_list_plans
from jobapi.services.job_filters import Filters
from jobapi.services.job_list_plans import BY_BUCKET, BY_STATUS, BY_WORKSPACE, Listing, Plan, choose
from jobapi.services.job_order import Order
from jobapi.services.job_rows import in_workspace
from jobapi.store.transactions import snapshot

from ..factories import Desk

THEN = datetime(2026, 1, 1, tzinfo=UTC)
STATUS = {"status": [JobStatus.PENDING]}
BUCKET = {**STATUS, "job_type": ["data_analysis"], "priority": [Priority.NORMAL]}
CREATED = {"created_after": THEN, "created_before": THEN}
UPDATED = {"updated_after": THEN}
METADATA = {"metadata": {"a": "1"}}
TABLE: list[tuple[dict[str, Any], str, Plan, Plan]] = [
    ({}, "created_at", Plan.MERGE, Plan.SORT),
    (BUCKET, "created_at", Plan.MERGE, Plan.SORT),
    (BUCKET, "priority", Plan.MERGE, Plan.SORT),
    (BUCKET, "status", Plan.MERGE, Plan.SORT),
    ({**BUCKET, **CREATED}, "created_at", Plan.MERGE, Plan.SCAN),
    (CREATED, "priority", Plan.MERGE, Plan.SCAN),
    ({}, "updated_at", Plan.MERGE, Plan.SORT),
    (UPDATED, "updated_at", Plan.MERGE, Plan.SCAN),
    (STATUS, "updated_at", Plan.SCAN, Plan.SORT),
    (BUCKET, "updated_at", Plan.SCAN, Plan.SORT),
    ({**STATUS, **UPDATED}, "updated_at", Plan.SCAN, Plan.SCAN),
    (METADATA, "created_at", Plan.LOOKUP, Plan.SCAN),
    ({**METADATA, **BUCKET, **CREATED, "created_by": 1}, "status", Plan.LOOKUP, Plan.SCAN),
    ({"created_by": 1}, "created_at", Plan.SCAN, Plan.SCAN),
    (UPDATED, "created_at", Plan.SCAN, Plan.SCAN),
    (CREATED, "updated_at", Plan.SCAN, Plan.SCAN),
]


def listing(desk: Desk, filters: dict[str, Any], sort: str) -> Listing:
    with desk.world.state.engine.connect() as connection, snapshot(connection) as tx:
        scope = in_workspace(desk.workspace_id)
        return Listing(tx, scope, Filters(**filters), Order(sort, "desc"))


@pytest.mark.parametrize(("filters", "sort", "on_postgres", "on_sqlite"), TABLE)
def test_choose_follows_the_table(
    desk: Desk,
    database: str,
    filters: dict[str, Any],
    sort: str,
    on_postgres: Plan,
    on_sqlite: Plan,
) -> None:
    desk.create()
    expected = on_sqlite if database == "sqlite" else on_postgres
    assert choose(listing(desk, filters, sort)) is expected


def test_choose_for_more_jobs_than_are_sorted_reads_by_status(
    desk: Desk, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list_plans, "FEW", 0)
    desk.create()
    by_status = listing(desk, STATUS, "updated_at")
    assert by_status.index is BY_STATUS
    assert choose(by_status) is (Plan.SORT if database == "sqlite" else Plan.MERGE)
    assert listing(desk, BUCKET, "updated_at").index is BY_STATUS
    assert listing(desk, BUCKET, "created_at").index is BY_BUCKET
    assert listing(desk, {}, "created_at").index is BY_WORKSPACE


def test_choose_for_more_buckets_than_are_merged_scans(
    desk: Desk, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list_plans, "MAX_MERGED", 1)
    desk.create(priority="low")
    desk.create(priority="high")
    assert choose(listing(desk, STATUS, "created_at")) is (
        Plan.SORT if database == "sqlite" else Plan.SCAN
    )
    assert choose(listing(desk, {"priority": [Priority.LOW]}, "created_at")) is not Plan.SCAN
