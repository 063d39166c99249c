"""Claims: which jobs they lease, in which order, and that each job is leased once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from jobapi import queue
from jobapi.rules.jobs import JobStatus
from jobapi.rules.roles import Role
from jobapi.store.paging import MAX_BYTES
from jobapi.store.tables import jobs
from jobapi.store.transactions import IN_ORDER, transaction

from ..factories import Desk, World


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_claim_gives_the_whole_job_and_its_lease(desk: Desk) -> None:
    made = desk.create(metadata={"file": "a.csv"})
    (job,) = desk.claim(worker="w1", lease_seconds=30)
    names = ("lease_token", "lease_expires_at", "attempt", "begun", "traceparent")
    lease = {name: job.pop(name) for name in names}
    assert job == desk.get(f"/{made['job_id']}").json
    assert job["status"] == "running"
    assert job["metadata"] == {"file": "a.csv"}
    assert lease["attempt"] == 1
    assert len(lease["lease_token"]) == 32
    expires = datetime.fromisoformat(lease["lease_expires_at"])
    assert timedelta(25) < expires - datetime.now(UTC) + timedelta(25) < timedelta(25, 31)


def test_claim_without_jobs_is_empty(desk: Desk) -> None:
    assert desk.claim() == []
    desk.create(scheduled_at=soon(60))
    assert desk.claim(limit=100) == []


@pytest.mark.parametrize("kw", [{}, {"data": b""}, {"content_type": "text/plain"}, {"json": {}}])
def test_claim_needs_no_body(desk: Desk, kw: Any) -> None:
    desk.create()
    assert len(desk.post("/claim", **kw).json["data"]) == 1


def test_claim_goes_by_priority_then_due_then_creation(desk: Desk) -> None:
    wanted = []
    for priority in ("low", "urgent", "normal", "high"):
        for scheduled_at in (None, "2020-01-02T00:00:00Z", None, soon(100)):
            job = desk.create(priority=priority, scheduled_at=scheduled_at)
            wanted.append((["urgent", "high", "normal", "low"].index(priority), job["job_id"]))
    future = {
        job["job_id"] for job in desk.get("?limit=100").json["data"] if job["due_at"] > soon(9)
    }
    order = [job_id for _, job_id in sorted(wanted, key=lambda w: w[0]) if job_id not in future]
    first = desk.claim(limit=5)
    rest = desk.claim(limit=100)
    assert [job["job_id"] for job in [*first, *rest]] == order


def test_claim_takes_only_the_requested_types(desk: Desk) -> None:
    for job_type in ("a", "b", "c", "a"):
        desk.create(job_type=job_type)
    claimed = desk.claim(job_types=["a", "c"], limit=100)
    assert [job["job_type"] for job in claimed] == ["a", "c", "a"]
    assert [job["job_type"] for job in desk.claim(limit=100, job_types=None)] == ["b"]


def test_claim_leaves_other_workspaces_alone(world: World) -> None:
    one, other = Desk(world), Desk(world)
    other.create()
    assert one.claim() == []
    assert len(other.claim()) == 1


@pytest.mark.parametrize("status", list(JobStatus))
def test_only_pending_jobs_are_claimed(desk: Desk, status: JobStatus) -> None:
    desk.job_in(status.label)
    assert len(desk.claim()) == (status is JobStatus.PENDING)


def test_key_bound_to_types_claims_those_alone(world: World, desk: Desk) -> None:
    key = world.key(desk.workspace_id, desk.user, Role.WORKER, job_types=["a"])
    for job_type in ("a", "b"):
        desk.create(job_type=job_type)
    path = f"{desk.jobs_path}/claim"
    refused = world.call("POST", path, key, json={"job_types": ["a", "b"]})
    assert refused.status_code == 403
    claimed = world.call("POST", path, key, json={"limit": 100}).json["data"]
    assert [job["job_type"] for job in claimed] == ["a"]
    (other,) = desk.claim()
    report = {"job_id": other["job_id"], "lease_token": other["lease_token"]}
    answer = world.call("POST", f"{desk.jobs_path}/report", key, json={"reports": [report]})
    assert answer.json["data"][0]["problem"]["type"].endswith(":job-not-found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"lease_seconds": 4}, "lease_seconds"),
        ({"lease_seconds": 3601}, "lease_seconds"),
        ({"job_types": []}, "job_types"),
        ({"job_types": ["a b"]}, "job_types.0"),
        ({"worker": ""}, "worker"),
        ({"wait": 1}, "wait"),
    ],
)
def test_claim_with_a_wrong_value_is_422(desk: Desk, body: Any, field: str) -> None:
    response = desk.post("/claim", json=body)
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]


def statements(world: World, act: Any) -> int:
    seen: list[str] = []
    engine = world.state.engine

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        # How often claims are announced depends on the time, not on their number.
        if "pg_notify" not in statement:
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(seen)


def test_number_of_statements_does_not_depend_on_the_number_of_jobs(desk: Desk) -> None:
    # The first job of a type has the types looked up.
    desk.create(job_type="a", scheduled_at="2100-01-01T00:00:00Z")
    # A worker's first claim notes its presence.
    desk.claim()
    counts = set()
    for number in (1, 7, 100):
        body = {"jobs": [{"job_type": "a"}] * number}
        claimed: list[Any] = []

        def report(claimed: Any = claimed, status: str = "success") -> None:
            reports = [
                {"job_id": j["job_id"], "lease_token": j["lease_token"], "status": status}
                for j in claimed
            ]
            answers = desk.post("/report", json={"reports": reports}).json["data"]
            assert all(answer["accepted"] for answer in answers)

        counts.add(
            (
                statements(desk.world, lambda body=body: desk.post("/batch", json=body)),
                statements(desk.world, lambda n=number, c=claimed: c.extend(desk.claim(limit=n))),
                statements(desk.world, lambda r=report: r(status="running")),
                statements(desk.world, report),
            )
        )
        assert len(claimed) == number
    assert len(counts) == 1


def test_claims_at_the_same_moment_get_each_job_once(desk: Desk) -> None:
    for _ in range(3):
        desk.post("/batch", json={"jobs": [{"job_type": "a"}] * 40})
        got: list[str] = []
        start = threading.Barrier(4)

        def work(got: list[str] = got, start: Any = start) -> None:
            client = desk.world.app.test_client()
            headers = {"Authorization": f"Bearer {desk.token}"}
            start.wait()
            while True:
                response = client.post(
                    f"{desk.jobs_path}/claim", json={"limit": 3}, headers=headers
                )
                claimed = response.json["data"]
                got.extend(job["job_id"] for job in claimed)
                if not claimed:
                    return

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == len(set(got)) == 40


def test_wrong_clock_of_a_job_is_the_database_s(desk: Desk) -> None:
    """The due time is compared with the database's clock, whatever the caller's says."""
    desk.create()
    with desk.world.transaction() as tx:
        future = datetime.now(UTC) + timedelta(hours=1)
        tx.execute(update(jobs).values(due_at=future))
    assert desk.claim() == []
    with desk.world.transaction() as tx:
        assert tx.execute(select(jobs.c.status)).scalar_one() == JobStatus.PENDING


def test_claim_with_a_key_repeated_gives_the_same_leases_while_they_live(desk: Desk) -> None:
    for _ in range(3):
        desk.create()
    headers = {"Idempotency-Key": "k1"}
    first = desk.post("/claim", json={"limit": 2}, headers=headers)
    again = desk.post("/claim", json={"limit": 2}, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert again.json == first.json
    assert len(first.json["data"]) == 2
    one, _ = first.json["data"]
    assert desk.report(one, status="success")["accepted"]
    third = desk.post("/claim", json={"limit": 2}, headers=headers)
    assert third.json["data"] == first.json["data"][1:]
    assert "Retry-After" not in third.headers
    other = desk.post("/claim", json={"limit": 1}, headers=headers)
    assert other.status_code == 422
    assert other.json["type"].endswith(":idempotency-key-reused")


def test_claim_repeated_when_its_leases_have_ended_says_when_to_come_again(desk: Desk) -> None:
    desk.create()
    claim = {"json": {"wait_seconds": 20}, "headers": {"Idempotency-Key": "k1"}}
    (job,) = desk.post("/claim", **claim).json["data"]
    desk.report(job, status="success")
    desk.create()
    again = desk.post("/claim", **claim)
    assert again.json["data"] == []
    assert again.headers["Retry-After"] == "1"


def test_claim_with_the_key_of_an_empty_claim_claims_again(desk: Desk) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert desk.post("/claim", headers=headers).json["data"] == []
    desk.create()
    response = desk.post("/claim", headers=headers)
    assert len(response.json["data"]) == 1
    assert "Idempotency-Replayed" not in response.headers


def test_claim_of_several_types_gets_them_in_one_order(desk: Desk) -> None:
    made = [desk.create(job_type=job_type) for job_type in "cabcab"]
    urgent = desk.create(job_type="b", priority="urgent")
    wanted = [urgent, *(job for job in made if job["job_type"] != "c")]
    claimed = desk.claim(job_types=["b", "a", "b"], limit=4)
    assert [job["job_id"] for job in claimed] == [job["job_id"] for job in wanted[:4]]
    assert [job["job_id"] for job in desk.claim(job_types=["a", "b"], limit=9)] == [
        wanted[4]["job_id"]
    ]
    assert len(desk.claim(job_types=["c"], limit=9)) == 2


def test_claim_by_type_walks_past_no_other_jobs(desk: Desk) -> None:
    """What Postgres reads for it does not depend on what else waits."""
    for job_type, number in (("other", 3000), ("mine", 1)):
        for _ in range(number // 1000 or 1):
            items = [{"job_type": job_type}] * min(number, 1000)
            desk.post("/batch", json={"jobs": items})
    with desk.world.transaction() as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(text("ANALYZE jobapi_jobs"))
    with desk.world.transaction() as tx:
        read = text("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = :name")
        name = {"name": "jobapi_jobs"}
        is_postgres = tx.dialect.name == "postgresql"
        before = tx.execute(read, name).scalar_one() if is_postgres else 0
        (job,) = queue.claim(
            tx, desk.workspace_id, lease_token="a" * 32, job_types=["mine"], limit=10
        )
        assert job.job_type == "mine"
        if is_postgres:
            assert tx.execute(read, name).scalar_one() - before < 20


LARGE = {"text": "x" * 1_000_000}


def test_claim_ends_at_eight_mebibytes_and_leases_no_more_than_it_answers(desk: Desk) -> None:
    for _ in range(10):
        desk.world.job(desk.workspace_id, desk.user, metadata=LARGE)
    headers = {"Idempotency-Key": "one"}
    first = desk.post("/claim", json={"limit": 100}, headers=headers)
    assert len(first.data) <= MAX_BYTES
    assert len(first.json["data"]) == 8
    assert desk.get("?status=running&limit=1").json["pagination"]["total"] == 8
    again = desk.post("/claim", json={"limit": 100}, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json == first.json
    assert len(desk.claim(limit=100, job_types=["data_analysis"])) == 2


def test_claim_counts_what_was_left_by_earlier_attempts(desk: Desk) -> None:
    jobs = [desk.create(max_retries=1) for _ in range(10)]
    for job in desk.claim(limit=100):
        # Each character of the error takes six bytes in the answer.
        left = {"result": {"text": "x" * 500_000}, "error": "\x01" * 65_536}
        assert desk.report(job, status="failed", retry_after=0, **left)["accepted"]
    answer = desk.post("/claim", json={"limit": len(jobs)})
    assert 1 < len(answer.json["data"]) < len(jobs)
    assert len(answer.data) <= MAX_BYTES


def test_repeated_claim_ends_at_eight_mebibytes_too(desk: Desk) -> None:
    for _ in range(10):
        desk.create()
    headers = {"Idempotency-Key": "one"}
    claimed = desk.post("/claim", json={"limit": 10}, headers=headers).json["data"]
    for job in claimed:
        assert desk.report(job, result=LARGE)["accepted"]
    again = desk.post("/claim", json={"limit": 10}, headers=headers)
    assert len(again.data) <= MAX_BYTES
    kept = [job["job_id"] for job in again.json["data"]]
    assert kept == [job["job_id"] for job in claimed][: len(kept)]
    assert len(kept) == 8


def test_claims_at_once_leave_no_job_to_each_other(desk: Desk) -> None:
    for _ in range(2):
        desk.create()
    engine = desk.world.state.engine
    if engine.dialect.name == "sqlite":
        # One transaction writes at a time.
        assert [len(desk.claim(limit=1)) for _ in range(2)] == [1, 1]
        return
    with (
        engine.connect() as one,
        engine.connect() as other,
        transaction(one, planner=IN_ORDER) as first,
        transaction(other, planner=IN_ORDER) as second,
    ):
        for tx in (first, second):
            token = queue.new_lease_token()
            assert len(queue.claim(tx, desk.workspace_id, lease_token=token)) == 1


def test_claim_takes_a_thousand_job_types(desk: Desk) -> None:
    desk.create(job_type="t999")
    types = [f"t{number}" for number in range(1000)]
    assert [job["job_type"] for job in desk.claim(job_types=types)] == ["t999"]
    assert desk.post("/claim", json={"job_types": [*types, "t1000"]}).status_code == 422
