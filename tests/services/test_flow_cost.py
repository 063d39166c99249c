"""What a claim reads does not depend on how many jobs and keys there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from jobapi import queue
from jobapi.services import flow_claims, job_types
from jobapi.store import statement

from ..conftest import app_on
from ..factories import Desk, World

MANY = 30_000
KEYS = 10_000
PAUSED = 100_000
FILL = """
INSERT INTO jobapi_jobs (job_id, workspace_id, created_by, job_type, status, priority, version,
  retry_count, max_retries, created_at, updated_at, queued_at, due_at, concurrency_key, ripe)
SELECT 'job_' || :job_type || lpad(n::text, 24, '0'), 1, 1, :job_type, 0, 1, 1, 0, 3, now(), now(),
  now(), now() + :later * interval '1 second', CASE WHEN :keys > 0 THEN 'k' || (n % :keys) END,
  :keys > 0 AND :later = 0
FROM generate_series(1, :n) AS n
"""


@pytest.fixture(scope="module")
def crowded(new_database: Any, tmp_path_factory: Any) -> Any:
    """Types with many jobs and keys, each with a few jobs that can start."""
    app = app_on(new_database("postgresql"), tmp_path_factory.mktemp("instance"))
    desk = Desk(World(app))
    for name, n, keys, later in (
        ("flood", MANY, 1, 0),
        ("later", KEYS, KEYS, 3600),
        ("keys", KEYS, KEYS, 0),
        ("paused", PAUSED, 0, 0),
    ):
        with desk.world.state.engine.connect() as connection:
            # Claims read neither counts nor events, so triggers need not write them.
            connection.exec_driver_sql("SET session_replication_role = replica")
            given = {"job_type": name, "n": n, "keys": keys, "later": later}
            connection.execute(text(FILL), given)
            connection.exec_driver_sql("RESET session_replication_role")
    for name in ("flood", "later", "keys"):
        desk.create(job_type=name, concurrency_key="small")
    desk.create(job_type="plain")
    with desk.world.state.engine.connect() as connection:
        for name in ("flood", "later", "keys"):
            job_types.change(connection, 1, name, {"max_running": 500, "max_running_per_key": 1})
        job_types.pause(connection, 1, "paused", None)
        connection.exec_driver_sql("VACUUM ANALYZE jobapi_jobs")
    yield desk
    desk.world.state.engine.dispose()


@contextmanager
def blocks_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many blocks each statement reads, explained before it is run."""
    read: list[int] = []
    run = statement.run_on_driver

    def explaining(connection: Any, sql: str, given: Any, *, prepare: bool) -> Any:
        run(connection, "SAVEPOINT explaining", None, prepare=False)
        explained = f"EXPLAIN (ANALYZE, BUFFERS) {sql}"
        plan = "\n".join(row[0] for row in run(connection, explained, given, prepare=False))
        run(connection, "ROLLBACK TO SAVEPOINT explaining", None, prepare=False)
        found = re.search(r"Buffers: shared((?: \w+=\d+)+)", plan.partition("Planning:")[0])
        if found is not None:
            counts = dict(re.findall(r"(hit|read)=(\d+)", found.group(1)))
            read.append(sum(map(int, counts.values())))
        return run(connection, sql, given, prepare=prepare)

    with monkeypatch.context() as patch:
        patch.setattr(statement, "run_on_driver", explaining)
        yield read


CLAIMS: list[tuple[list[str] | None, int, int, int]] = [
    # The flood's key is full after the first claim; the small key has its turn.
    (["flood"], 1, 1, 400),
    (["flood"], 1, 1, 400),
    (["flood"], 1, 0, 400),
    # Only one key has due jobs.
    (["later"], 1, 1, 400),
    (["later"], 1, 0, 400),
    (["keys"], 1, 1, 400),
    (["keys"], 20, 20, 4_000),
    (["paused"], 1, 0, 100),
    # All types, most of which are full or paused.
    (None, 1, 1, 1_500),
]
"""Claims in their order: types, limit, how many jobs they get, and the most blocks they read."""


def test_claims_read_few_blocks(crowded: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = crowded.world.state.engine
    for wanted, limit, found, most in CLAIMS:
        with engine.connect() as connection, blocks_read(monkeypatch) as read:
            token = queue.new_lease_token()
            claimed = queue.claim(connection, 1, lease_token=token, limit=limit, job_types=wanted)
        assert len(claimed) == found, wanted
        assert sum(read) < most, (wanted, read)


def test_claim_of_a_plain_type_does_not_become_another_one(
    crowded: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_claims, "claim", None)
    with crowded.world.state.engine.connect() as connection:
        token = queue.new_lease_token()
        (job,) = queue.claim(connection, 1, lease_token=token, job_types=["plain"])
        assert queue.claim(connection, 1, lease_token=token, job_types=["plain"]) == []
    assert job.job_type == "plain"
