"""The cost of a workspace's requests is bounded, and depends only on its own jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from jobapi import queue
from jobapi.rules.causes import group
from jobapi.rules.jobs import JobStatus, Priority
from jobapi.rules.operations import Action
from jobapi.services import job_errors, job_lists, operations
from jobapi.services.job_filters import Filters
from jobapi.services.job_rows import in_workspace, readable_by
from jobapi.store.transactions import IN_ORDER, snapshot, transaction

from ..conftest import app_on
from ..factories import Desk, World

OTHERS = 30_000
COPY = """
INSERT INTO jobapi_jobs (job_id, workspace_id, created_by, job_type, status, priority, version,
  metadata, retry_count, max_retries, created_at, updated_at, queued_at, due_at, started_at,
  completed_at, attempt, error, error_group)
SELECT 'job_' || lpad(to_hex(n), 32, '0'), workspace_id, created_by, job_type, status, priority,
  version, metadata, retry_count, max_retries, created_at, updated_at, queued_at, due_at,
  started_at, completed_at, attempt, error, error_group
FROM jobapi_jobs, generate_series(1, :n) AS n WHERE job_id = :job_id
"""
BOOM = group("boom")
METADATA = {"common": "yes", "batch_id": 3, "deep": {"a": 1}}


@pytest.fixture(scope="module")
def crowded(new_database: Any, tmp_path_factory: Any) -> Any:
    """A database in which another workspace has many jobs, all alike."""
    app = app_on(new_database("postgresql"), tmp_path_factory.mktemp("instance"))
    other = Desk(World(app))
    job = fail(other, metadata=METADATA)
    with other.world.state.engine.connect() as connection:
        connection.execute(text(COPY), {"n": OTHERS, "job_id": job["job_id"]})
        connection.exec_driver_sql("VACUUM ANALYZE jobapi_jobs")
    yield app, other
    other.world.state.engine.dispose()


@pytest.fixture
def desk(crowded: Any) -> Desk:
    """A small workspace beside it."""
    desk = Desk(World(crowded[0]))
    for status in JobStatus:
        desk.job_in(status.label, metadata={"batch_id": 3})
    fail(desk)
    return desk


def fail(desk: Desk, **body: Any) -> dict[str, Any]:
    """A job that has failed with the error boom."""
    job_id = desk.create(**body)["job_id"]
    failed: dict[str, Any] = desk.patch(job_id, {"status": "failed", "error": "boom"}).json
    return failed


class Blocks:
    """How many blocks of the database's statements have been looked at."""

    n = 0


@contextmanager
def blocks_read(desk: Desk) -> Iterator[tuple[Any, Blocks]]:
    """A connection of which each SELECT is explained before it is run, and what they read."""
    read = Blocks()
    engine = desk.world.state.engine

    def explain(_: Any, cursor: Any, sql: str, parameters: Any, *__: Any) -> None:
        if sql.startswith(("SELECT", "WITH")) and "jobapi_" in sql:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT TEXT) {sql}", parameters)
            plan = "\n".join(line for (line,) in cursor.fetchall())
            # The whole statement's are on its first node; what planning reads comes after.
            found = re.search(r"Buffers: shared((?: \w+=\d+)+)", plan.partition("Planning:")[0])
            if found is not None:
                counts = dict(re.findall(r"(\w+)=(\d+)", found.group(1)))
                read.n += int(counts.get("hit", 0)) + int(counts.get("read", 0))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        with engine.connect() as connection:
            yield connection, read
    finally:
        event.remove(engine, "before_cursor_execute", explain)


FILTERS: list[dict[str, Any]] = [
    {},
    {"metadata": {"common": "yes"}},
    {"metadata": {"batch_id": "3"}},
    {"metadata": {"deep.a": "1"}},
    {"metadata": {"common": "nobody has it"}},
    {"metadata": {"common": "yes", "batch_id": "3"}},
    {"created_by": 1},
    {"created_by": 1, "metadata": {"batch_id": "3"}},
    {"status": [JobStatus.FAILED], "metadata": {"common": "yes"}},
    {"job_type": ["data_analysis"]},
    {"only_job_types": ["data_analysis"]},
    {"priority": [Priority.NORMAL]},
    {"error_group": [BOOM]},
    {"error_group": [BOOM, group("other")], "job_type": ["data_analysis"]},
    {"error": "boom"},
    {"job_id": ["job_" + "0" * 31 + "1"]},
]
FEW_BLOCKS = 150
"""What lists of some five jobs need, in a table of more than a thousand blocks."""


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("sort", ["created_at", "updated_at", "priority", "status"])
def test_list_beside_a_large_workspace_reads_its_own_jobs(
    desk: Desk, sort: str, filters: dict[str, Any]
) -> None:
    scope = in_workspace(desk.workspace_id)
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        page = job_lists.page(tx, scope, Filters(**filters), sort=sort)
        assert not page.total_is_capped
        job_lists.count(tx, scope, Filters(**filters))
    assert read.n < FEW_BLOCKS


@pytest.mark.parametrize("name", ["job_id", "error_group"])
def test_lookup_in_a_workspace_that_statistics_do_not_know_reads_what_it_finds(
    crowded: Any, name: str
) -> None:
    desk = Desk(World(crowded[0]))
    job = fail(desk)
    given = {
        "job_id": [job["job_id"]] + [f"job_{n:032x}" for n in range(30)],
        "error_group": [BOOM],
    }
    copies = COPY.replace("to_hex(n)", f"to_hex(n + {desk.workspace_id} * 1000000)")
    copies = copies.replace("error_group\nFROM", "'0123456789abcdef'\nFROM")
    with desk.world.state.engine.connect() as connection:
        connection.execute(text(copies), {"n": 20_000, "job_id": job["job_id"]})
    scope, filters = in_workspace(desk.workspace_id), Filters(**{name: given[name]})
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        assert [row.job_id for row in job_lists.page(tx, scope, filters).rows] == [job["job_id"]]
    assert read.n < FEW_BLOCKS


def test_list_of_several_workspaces_reads_their_jobs_alone(desk: Desk) -> None:
    other = Desk(desk.world)
    other.create(metadata=METADATA)
    scope = readable_by(other.user.id, is_admin=False)
    for filters in FILTERS:
        with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
            job_lists.page(tx, scope, Filters(**filters))
        assert read.n < FEW_BLOCKS, filters


def test_list_by_start_beside_a_large_workspace_reads_its_own_jobs(desk: Desk) -> None:
    filters = Filters(status=[JobStatus.RUNNING])
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        page = job_lists.page(tx, in_workspace(desk.workspace_id), filters, sort="started_at")
        assert page.total == 1
    assert read.n < FEW_BLOCKS


def test_errors_of_many_failed_jobs_are_counted_up_to_a_bound(crowded: Any, desk: Desk) -> None:
    _, other = crowded
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        (mine,) = job_errors.groups(tx, desk.workspace_id).groups
    assert (mine.error_group, mine.count) == (BOOM, 1)
    assert read.n < FEW_BLOCKS
    with blocks_read(other) as (connection, read), snapshot(connection) as tx:
        (theirs,) = job_errors.groups(tx, other.workspace_id, most_jobs=1_000).groups
    assert (theirs.count, theirs.count_is_capped) == (1_000, True)
    # Their table alone has more than a thousand.
    assert read.n < FEW_BLOCKS


@pytest.mark.parametrize("filters", [f for f in FILTERS if "metadata" in f], ids=str)
def test_operation_beside_a_large_workspace_reads_its_own_jobs(
    desk: Desk, filters: dict[str, Any]
) -> None:
    with blocks_read(desk) as (connection, read), transaction(connection) as tx:
        operations.create(
            tx, desk.workspace_id, Action.RETRY, Filters(**filters), created_by=desk.user.id
        )
    assert read.n < 2 * FEW_BLOCKS


def test_metadata_that_imitates_another_workspace_reads_no_more(crowded: Any, desk: Desk) -> None:
    # The index keeps hashes. Whatever they are, no entry of another workspace is followed.
    _, other = crowded
    filters = Filters(metadata={f"{other.workspace_id}.common": "yes"})
    scope = in_workspace(desk.workspace_id)
    with blocks_read(desk) as (connection, read), snapshot(connection) as tx:
        assert job_lists.page(tx, scope, filters).total == 0
    assert read.n < FEW_BLOCKS


def test_repeated_claim_reads_no_other_workspaces_leases(crowded: Any, desk: Desk) -> None:
    _, other = crowded
    with other.world.state.engine.connect() as connection, transaction(connection) as tx:
        job = other.create()
        tx.execute(text(COPY.replace("to_hex(n)", "to_hex(n + 1000000)")), {"n": 500, **job})
    for _ in range(6):
        other.claim(limit=100, lease_seconds=3600)
    token = desk.claim()[0]["lease_token"]
    with blocks_read(desk) as (connection, read), transaction(connection, planner=IN_ORDER) as tx:
        assert len(queue.leased(tx, desk.workspace_id, token)) == 1
    assert read.n < 20


@pytest.mark.parametrize(
    "table",
    [
        *("jobapi_jobs", "jobapi_events", "jobapi_operations", "jobapi_schedules"),
        *("jobapi_job_logs", "jobapi_job_log_heads"),
    ],
)
def test_every_index_of_what_workspaces_have_begins_with_the_workspace(
    desk: Desk, table: str
) -> None:
    unique = {"pk_jobapi_jobs", "uq_jobapi_jobs_job_id", "pk_jobapi_events", "pk_jobapi_operations"}
    # Ids of jobs are random; the others are the maintenance's, which is for all workspaces.
    others = {
        "ix_jobapi_events_job",
        "ix_jobapi_jobs_reap",
        "ix_jobapi_jobs_expires",
        "ix_jobapi_operations_running",
        "ix_jobapi_schedules_due",
    }
    with desk.world.state.engine.connect() as connection:
        query = text("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = :table")
        found = {row.indexname: row.indexdef for row in connection.execute(query, {"table": table})}
    for name in found.keys() - unique - others:
        assert re.search(r"USING \w+ \(+(ARRAY\[)?workspace_id\b", found[name]), name
