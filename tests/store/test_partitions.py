"""A table of jobs that is partitioned by workspace, as ``jobapi db partition`` makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, select, text, update

from jobapi import jobs as verbs
from jobapi import queue
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.rules.operations import Action
from jobapi.services import job_errors, job_lists, operations
from jobapi.services.job_filters import Filters
from jobapi.services.job_rows import in_workspace
from jobapi.store.tables import attempts, job_log_heads, job_logs, jobs
from jobapi.store.transactions import BY_KEY, IN_ORDER, Planner, transaction

from ..conftest import app_on
from ..factories import Desk, World

BACKOFF = Backoff(first_seconds=0, max_seconds=1)


@pytest.fixture(scope="module")
def partitioned(new_database: Any, tmp_path_factory: Any) -> Any:
    """An application with several workspaces, whose table was partitioned when there were jobs."""
    app = app_on(new_database("postgresql"), tmp_path_factory.mktemp("instance"))
    world = World(app)
    for _ in range(3):
        Desk(world).create(metadata={"batch_id": 3})
    runner = app.test_cli_runner()
    command = ["jobapi", "db", "partition", "--by", "workspace", "--partitions", "8"]
    for options, code, said in (
        (["--max-jobs", "2"], 1, "more than 2 jobs"),
        ([], 0, "has 8 partitions"),
        ([], 1, "partitioned already"),
    ):
        done = runner.invoke(args=[*command, *options])
        assert (done.exit_code, said in done.output) == (code, True), done.output
    yield app
    world.state.engine.dispose()


@pytest.fixture
def desk(partitioned: Any) -> Desk:
    """A workspace with a job in each status."""
    desk = Desk(World(partitioned))
    for status in JobStatus:
        desk.job_in(status.label, metadata={"batch_id": 3})
    return desk


@contextmanager
def one_partition(desk: Desk, planner: Planner) -> Iterator[Connection]:
    """A transaction that may look into the partition of the desk's workspace and no other."""
    engine = desk.world.state.engine
    with engine.connect() as connection, transaction(connection, planner=planner) as tx:
        before = scans(tx)
        yield tx
        touched = {name for name, n in scans(tx).items() if n > before.get(name, 0)}
        own = "SELECT tableoid::regclass::text FROM jobapi_jobs WHERE workspace_id = :of"
        assert touched == set(tx.execute(text(own), {"of": desk.workspace_id}).scalars())


def scans(tx: Connection) -> dict[str, int]:
    """How often each partition was looked into by this connection (the last ones are counted)."""
    counted = text(
        "SELECT relname, seq_scan + idx_scan AS n FROM pg_stat_xact_user_tables"
        " WHERE relname ~ '^jobapi_jobs_[0-9]$'"
    )
    return {row.relname: row.n for row in tx.execute(counted)}


def claim(tx: Connection, desk: Desk, **given: Any) -> list[Any]:
    token = queue.new_lease_token()
    return queue.claim(tx, desk.workspace_id, lease_token=token, limit=100, **given)


def report(tx: Connection, desk: Desk, rows: list[Any], **given: Any) -> list[Any]:
    reports = [{"job_id": row.job_id, "lease_token": row.lease_token, **given} for row in rows]
    return queue.report(tx, desk.workspace_id, reports, backoff=BACKOFF)


def test_cycle_on_partitions_touches_one(desk: Desk) -> None:
    for given in ({}, {"job_types": ["data_analysis", "other"]}):
        with one_partition(desk, IN_ORDER) as tx:
            claimed = claim(tx, desk, **given)
        assert claimed
        with one_partition(desk, BY_KEY) as tx:
            assert [a.problem for a in report(tx, desk, claimed)] == [None] * len(claimed)
        with one_partition(desk, BY_KEY) as tx:
            assert queue.leased(tx, desk.workspace_id, claimed[0].lease_token)
        with one_partition(desk, BY_KEY) as tx:
            failed = report(tx, desk, claimed[:1], status=JobStatus.FAILED, error="no")
        assert failed[0].job.status == JobStatus.PENDING
        with one_partition(desk, IN_ORDER) as tx:
            again = claim(tx, desk)
        with one_partition(desk, BY_KEY) as tx:
            done = report(tx, desk, [*claimed[1:], *again], status=JobStatus.SUCCESS)
        assert {a.problem for a in done} == {None}
        desk.create()


VERBS: dict[str, Callable[[Connection, Desk], Any]] = {
    "edit": lambda tx, desk: verbs.edit(
        tx, desk.workspace_id, first(tx, desk, JobStatus.PENDING), {"priority": 3}
    ),
    "cancel": lambda tx, desk: verbs.cancel(
        tx, desk.workspace_id, first(tx, desk, JobStatus.RUNNING)
    ),
    "retry": lambda tx, desk: verbs.retry(tx, desk.workspace_id, first(tx, desk, JobStatus.FAILED)),
    "get": lambda tx, desk: verbs.get(tx, desk.workspace_id, first(tx, desk, JobStatus.PENDING)),
    "delete": lambda tx, desk: verbs.delete(
        tx, desk.workspace_id, first(tx, desk, JobStatus.FAILED)
    ),
    "retention": lambda tx, desk: verbs.delete_old(
        tx, desk.workspace_id, JobStatus.FAILED, -1, limit=100
    ),
    "operate": lambda tx, desk: operations.create(
        tx, desk.workspace_id, Action.RETRY, Filters(), created_by=desk.user.id
    ),
    "operate by creator": lambda tx, desk: operations.create(
        tx, desk.workspace_id, Action.DELETE, Filters(created_by=desk.user.id), created_by=1
    ),
}


def first(tx: Connection, desk: Desk, status: JobStatus) -> str:
    where = (jobs.c.workspace_id == desk.workspace_id, jobs.c.status == status)
    return str(tx.execute(select(jobs.c.job_id).where(*where).limit(1)).scalar_one())


@pytest.mark.parametrize("verb", VERBS)
def test_verb_on_partitions_touches_one(desk: Desk, verb: str) -> None:
    with one_partition(desk, BY_KEY) as tx:
        assert VERBS[verb](tx, desk) not in (0, [])


@pytest.mark.parametrize("sort", ["created_at", "updated_at", "priority", "status"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"status": [JobStatus.FAILED, JobStatus.PENDING]},
        {"created_by": "me"},
        {"job_id": ["job_" + "0" * 32]},
        {"error_group": ["0" * 16], "status": [JobStatus.FAILED]},
    ],
)
def test_list_on_partitions_touches_one(desk: Desk, sort: str, given: dict[str, Any]) -> None:
    if "created_by" in given:
        given = {"created_by": desk.user.id}
    scope = in_workspace(desk.workspace_id)
    with one_partition(desk, {}) as tx:
        found = job_lists.page(tx, scope, Filters(**given), sort=sort)
        assert len(found.rows) == found.total
        assert job_lists.count(tx, scope, Filters(**given)) == (found.total, False)


def test_errors_on_partitions_touch_one(desk: Desk) -> None:
    job = desk.create()
    desk.patch(job["job_id"], {"status": "failed", "error": "boom"})
    with one_partition(desk, {}) as tx:
        (found,) = job_errors.groups(tx, desk.workspace_id).groups
    assert found.job_ids == [job["job_id"]]


def test_reaper_on_partitions_puts_back_what_it_finds(desk: Desk) -> None:
    claimed = desk.claim(limit=10)
    with desk.world.transaction() as tx:
        mine = jobs.c.lease_token == claimed[0]["lease_token"]
        past = {"reap_at": jobs.c.due_at, "lease_expires_at": jobs.c.due_at}
        tx.execute(update(jobs).where(mine).values(past))
    assert desk.reap() == len(claimed)


def test_deleted_jobs_on_partitions_take_their_attempts_with_them(desk: Desk) -> None:
    job = desk.claim()[0]
    desk.report(job, status="failed", retryable=False)
    assert len(desk.attempts(job)) == 1
    assert desk.call("DELETE", f"{desk.jobs_path}/{job['job_id']}").status_code == 204
    with desk.world.transaction() as tx:
        mine = select(attempts).where(attempts.c.lease_token == job["lease_token"])
        assert tx.execute(mine).all() == []


def test_logs_on_partitions_touch_one_and_go_with_their_jobs(desk: Desk) -> None:
    (job,) = desk.claim()
    with one_partition(desk, BY_KEY) as tx:
        queue.append_logs(
            tx,
            desk.workspace_id,
            job["job_id"],
            [{"message": "x"}],
            lease_token=job["lease_token"],
            backoff=BACKOFF,
        )
    assert len(desk.get(f"/{job['job_id']}/logs").json["data"]) == 1
    desk.report(job, status="success")
    assert desk.call("DELETE", f"{desk.jobs_path}/{job['job_id']}").status_code == 204
    desk.world.maintain("logs of deleted jobs")
    with desk.world.transaction() as tx:
        for table in (job_logs, job_log_heads):
            mine = select(table).where(table.c.workspace_id == desk.workspace_id)
            assert tx.execute(mine).all() == []


def test_metadata_filter_on_partitions_finds_this_workspaces_jobs(desk: Desk) -> None:
    page = desk.get("?metadata.batch_id=3").json
    assert page["pagination"]["total"] == 5
    assert {job["workspace_id"] for job in page["data"]} == {desk.workspace_id}


def test_partition_on_sqlite_is_refused(new_database: Any, make_app: Any) -> None:
    runner = make_app(new_database("sqlite")).test_cli_runner()
    done = runner.invoke(args=["jobapi", "db", "partition", "--by", "workspace"])
    assert (done.exit_code, "Only Postgres" in done.output) == (1, True)
