"""Prefetching: jobs that are leased although their attempts have not begun, and runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from jobapi import jobs as services
from jobapi import queue
from jobapi.store.tables import jobs
from jobapi.store.transactions import transaction

from ..factories import Desk

BEGINS: list[dict[str, Any]] = [
    {"begun": True},
    {"begun": True, "run_id": "r1"},
    {"status": "running", "progress_percent": 0},
    {"progress_message": "half"},
    {"result": {"rows": 1}},
    {"result": {"progress_percent": 5}},
    {"error": "so far"},
]
KEEPS_WAITING: list[dict[str, Any]] = [
    {},
    {"status": "running"},
    {"begun": False},
    {"begun": None, "run_id": None},
    {"run_id": "r1"},
    {"retry_after": 5, "retryable": False},
]
ENDS: list[tuple[dict[str, Any], str]] = [
    ({"status": "success"}, "success"),
    ({"status": "completed", "begun": True}, "success"),
    ({"status": "success", "run_id": "r1"}, "success"),
    ({"status": "success", "progress_percent": 9}, "success"),
    ({"status": "failed", "error": "e", "retryable": False}, "failed"),
    ({"status": "failed", "error": "e"}, "pending"),
]


def prefetched(desk: Desk, **job: Any) -> dict[str, Any]:
    """A job that was leased ten seconds ago and has not begun."""
    desk.create(**job)
    (claimed,) = desk.claim(worker="w1", begin=False, lease_seconds=60)
    desk.shift(claimed, 10)
    return claimed


def shown(desk: Desk, job: Any) -> dict[str, Any]:
    return dict(desk.get(f"/{job['job_id']}").json)


def row(desk: Desk, job: Any) -> Any:
    with desk.world.transaction() as tx:
        return tx.execute(select(jobs).where(jobs.c.job_id == job["job_id"])).one()


def age(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def kind(answer: Any) -> str:
    assert not answer["accepted"]
    return str(answer["problem"]["type"].rsplit(":", 1)[1])


def expire(desk: Desk, job: Any) -> None:
    """Let the lease of a job expire, as if its worker had died, and reap it."""
    desk.shift(job, 4000)
    assert desk.reap() == 1


@pytest.mark.parametrize("body", [{}, {"begin": None}, {"begin": True}])
def test_claim_begins_the_attempts_by_default(desk: Desk, body: Any) -> None:
    desk.create(timeout_seconds=5)
    (job,) = desk.claim(**body)
    assert job["begun"] is True
    desk.shift(job, 10)
    assert desk.reap() == 1
    assert shown(desk, job)["error"] == "timed out"


@pytest.mark.parametrize("begin", [1, "false", []])
def test_claim_with_begin_not_boolean_is_422(desk: Desk, begin: Any) -> None:
    response = desk.post("/claim", json={"begin": begin})
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["begin"]


def test_claim_that_prefetches_leases_jobs_that_have_not_begun(desk: Desk) -> None:
    for _ in range(3):
        desk.create()
    claimed = desk.claim(begin=False, limit=3)
    assert [job["begun"] for job in claimed] == [False] * 3
    for job in claimed:
        now = shown(desk, job)
        assert (now["status"], now["started_at"]) == ("running", job["started_at"])
        assert now["started_at"] is not None


@pytest.mark.parametrize("body", BEGINS)
@pytest.mark.parametrize("way", ["report", "patch"])
def test_report_with_any_content_begins_the_attempt(desk: Desk, way: str, body: Any) -> None:
    job = prefetched(desk, timeout_seconds=3600)
    assert age(shown(desk, job)["started_at"]) >= 10
    version = row(desk, job).version
    if way == "report":
        assert desk.report(job, **body)["accepted"]
    else:
        headers = {"Lease-Token": job["lease_token"]}
        assert desk.patch(job["job_id"], body, headers=headers).status_code == 200
    now = row(desk, job)
    assert not now.prefetched
    assert age(shown(desk, job)["started_at"]) < 9
    assert now.version == version + 1
    assert now.run_id == body.get("run_id")


@pytest.mark.parametrize("body", KEEPS_WAITING)
@pytest.mark.parametrize("way", ["report", "patch"])
def test_heartbeat_renews_the_lease_and_begins_nothing(desk: Desk, way: str, body: Any) -> None:
    job = prefetched(desk)
    before = row(desk, job)
    if way == "report":
        assert desk.report(job, **body)["accepted"]
    else:
        body = {name: body[name] for name in body if not name.startswith("retry")}
        headers = {"Lease-Token": job["lease_token"]}
        assert desk.patch(job["job_id"], body, headers=headers).status_code == 200
    after = row(desk, job)
    assert after.lease_expires_at - before.lease_expires_at >= timedelta(seconds=10)
    assert {**after._mapping, "lease_expires_at": 0} == {**before._mapping, "lease_expires_at": 0}


@pytest.mark.parametrize(("body", "status"), ENDS)
def test_report_final_before_the_begin_begins_and_ends_the_attempt(
    desk: Desk, body: Any, status: str
) -> None:
    job = prefetched(desk)
    answer = desk.report(job, **body)
    assert (answer["accepted"], answer["status"]) == (True, status)
    now = row(desk, job)
    assert (now.prefetched, now.run_id, now.lease_token) == (False, None, None)
    (attempt,) = desk.attempts(job)
    assert attempt["outcome"] == ("success" if status == "success" else "failed")
    assert age(attempt["started_at"]) < 9
    assert shown(desk, job)["retry_count"] == (status == "pending")
    assert desk.report(job, **body) == answer


def test_hand_back_before_it_began_leaves_the_job_as_it_was(desk: Desk) -> None:
    made = desk.create()
    (job,) = desk.claim(begin=False)
    assert desk.report(job, status="pending")["accepted"]
    now = shown(desk, made)
    assert {**now, "updated_at": 0} == {**made, "updated_at": 0}
    assert [attempt["outcome"] for attempt in desk.attempts(job)] == ["released"]
    desk.create()
    # It is not suspect: another comes with it.
    assert [job["begun"] for job in desk.claim(begin=False, limit=9)] == [False, False]


def test_timeout_does_not_run_before_the_attempt_begins(desk: Desk) -> None:
    job = prefetched(desk, timeout_seconds=5, max_retries=0)
    assert desk.reap() == 0
    desk.shift(job, 60)
    desk.report(job)
    assert desk.reap() == 0
    assert desk.report(job, begun=True)["accepted"]
    desk.shift(job, 4)
    assert desk.reap() == 0
    desk.shift(job, 4)
    assert desk.reap() == 1
    now = shown(desk, job)
    assert (now["status"], now["error"]) == ("failed", "timed out")


def test_timeout_longer_than_the_lease_runs_from_the_begin(desk: Desk) -> None:
    job = prefetched(desk, timeout_seconds=100)
    desk.shift(job, 40)
    desk.report(job, begun=True)
    for _ in range(2):
        desk.shift(job, 45)
        desk.report(job)
        assert desk.reap() == 0
    desk.shift(job, 15)
    assert desk.reap() == 1
    assert shown(desk, job)["error"] == "timed out"


@pytest.mark.parametrize("max_retries", [0, 3])
def test_lease_that_expires_before_the_attempt_began_costs_no_retry(
    desk: Desk, max_retries: int
) -> None:
    job = prefetched(desk, max_retries=max_retries, timeout_seconds=5)
    due_at = row(desk, job).due_at
    desk.shift(job, 30)
    assert desk.reap() == 0
    desk.shift(job, 30)
    assert desk.reap() == 1
    now = shown(desk, job)
    assert (now["status"], now["retry_count"], now["started_at"]) == ("pending", 0, None)
    assert now["error"] == "lease expired"
    # It keeps its turn, and waits for nothing.
    assert row(desk, job).due_at == due_at - timedelta(seconds=60)
    (attempt,) = desk.attempts(job)
    assert (attempt["outcome"], attempt["error"]) == ("expired", "lease expired")
    history = desk.get(f"/{job['job_id']}/events").json["data"]
    assert [event["kind"] for event in history] == ["created", "claimed", "lease_expired"]
    assert (history[-1]["from_status"], history[-1]["to_status"]) == ("running", "pending")
    assert kind(desk.report(job, begun=True)) == "lease-lost"


def test_suspect_job_comes_alone_and_begins_at_once(desk: Desk) -> None:
    for _ in range(4):
        desk.create(max_retries=0)
    first, *others = desk.claim(begin=False, limit=3)
    for job in (first, *others):
        desk.shift(job, 100)
    assert desk.reap() == 3
    for _ in range(3):
        (suspect,) = desk.claim(begin=False, limit=9)
        assert suspect["begun"] is True
        # It uses up its own retries.
        desk.shift(suspect, 100)
        assert desk.reap() == 1
        assert shown(desk, suspect)["status"] == "failed"
    (last,) = desk.claim(begin=False, limit=9)
    assert last["begun"] is False


def test_suspect_job_behind_others_is_left_for_a_later_claim(desk: Desk) -> None:
    job = prefetched(desk, priority="low", job_type="a")
    expire(desk, job)
    made = [desk.create(job_type=job_type) for job_type in "ab"]
    claimed = desk.claim(begin=False, limit=9)
    assert [job["job_id"] for job in claimed] == [job["job_id"] for job in made]
    (suspect,) = desk.claim(begin=False, limit=9, job_types=["a", "b"])
    assert (suspect["job_id"], suspect["begun"]) == (job["job_id"], True)


def test_suspect_job_is_suspect_no_more_when_its_attempt_has_begun(desk: Desk) -> None:
    job = prefetched(desk)
    expire(desk, job)
    (again,) = desk.claim(begin=False)
    assert again["begun"] is True
    desk.report(again, status="pending")
    desk.create()
    assert [job["begun"] for job in desk.claim(begin=False, limit=9)] == [False, False]


def test_suspect_job_begins_its_time_with_the_claim(desk: Desk) -> None:
    job = prefetched(desk, timeout_seconds=5, max_retries=0)
    expire(desk, job)
    desk.claim(begin=False)
    desk.shift(job, 10)
    assert desk.reap() == 1
    assert shown(desk, job)["error"] == "timed out"


def test_claims_at_the_same_moment_get_each_job_once_and_suspects_alone(desk: Desk) -> None:
    desk.post("/batch", json={"jobs": [{"job_type": "a"}] * 40})
    for job in desk.claim(begin=False, limit=12):
        desk.shift(job, 100)
    assert desk.reap() == 12
    gate = threading.Barrier(4)

    def work(_: int) -> list[list[tuple[str, bool]]]:
        client = desk.world.app.test_client()
        headers = {"Authorization": f"Bearer {desk.token}"}
        gate.wait(20)
        got: list[list[tuple[str, bool]]] = []
        while True:
            body = {"limit": 5, "begin": False}
            claimed = client.post(f"{desk.jobs_path}/claim", json=body, headers=headers).json
            if not claimed["data"]:
                return got
            got.append([(job["job_id"], job["begun"]) for job in claimed["data"]])

    with ThreadPoolExecutor(4) as pool:
        claims = [claim for got in pool.map(work, range(4)) for claim in got]
    # Some may have been locked by another claim, which then left them.
    claims += [[(job["job_id"], job["begun"])] for job in iter(lambda: one(desk), None)]
    assert len({job_id for claim in claims for job_id, _ in claim}) == 40
    assert sum(len(claim) for claim in claims) == 40
    begun = [claim for claim in claims if any(begun for _, begun in claim)]
    assert [len(claim) for claim in begun] == [1] * 12


def one(desk: Desk) -> dict[str, Any] | None:
    return next(iter(desk.claim(begin=False)), None)


@pytest.mark.parametrize("way", ["cancel", "start", "edit"])
def test_suspect_job_that_a_person_changes(desk: Desk, way: str) -> None:
    job = prefetched(desk)
    expire(desk, job)
    other = desk.create()
    if way == "cancel":
        assert desk.post(f"/{job['job_id']}/cancel").status_code == 200
        assert desk.post(f"/{job['job_id']}/retry").status_code == 200
    elif way == "start":
        assert desk.patch(job["job_id"], {"status": "running"}).status_code == 200
        assert not row(desk, job).suspect
        return
    else:
        assert desk.patch(job["job_id"], {"priority": "high"}).status_code == 200
    claimed = {job["job_id"] for job in desk.claim(limit=9)}
    assert claimed == {job["job_id"]} | ({other["job_id"]} if way == "cancel" else set())


def test_cancel_of_a_job_that_has_not_begun_tells_its_worker(desk: Desk) -> None:
    job = prefetched(desk)
    assert desk.post(f"/{job['job_id']}/cancel").status_code == 200
    assert kind(desk.report(job, begun=True)) == "lease-lost"
    assert [attempt["outcome"] for attempt in desk.attempts(job)] == ["cancelled"]


def test_claim_repeated_with_a_key_says_what_has_begun_meanwhile(desk: Desk) -> None:
    for _ in range(2):
        desk.create()
    headers = {"Idempotency-Key": "k"}
    body = {"begin": False, "limit": 2}
    first, second = desk.post("/claim", json=body, headers=headers).json["data"]
    desk.report(second, begun=True)
    again = desk.post("/claim", json=body, headers=headers).json["data"]
    assert [(job["job_id"], job["begun"]) for job in again] == [
        (first["job_id"], False),
        (second["job_id"], True),
    ]
    other = desk.post("/claim", json={**body, "begin": True}, headers=headers)
    assert other.json["type"].endswith(":idempotency-key-reused")


# Runs


def test_begin_of_another_run_is_refused_and_changes_nothing(desk: Desk) -> None:
    job = prefetched(desk)
    assert desk.report(job, begun=True, run_id="r1")["accepted"]
    desk.shift(job, 20)
    before = row(desk, job)
    for body in (
        {"begun": True, "run_id": "r2"},
        {"begun": True, "run_id": "r2", "progress_percent": 50},
        {"run_id": "r2", "status": "success"},
        {"run_id": "r2", "status": "pending"},
        {"run_id": "r2"},
    ):
        answer = desk.report(job, **body)
        assert kind(answer) == "already-begun"
        assert (answer["problem"]["status"], answer["status"]) == (409, "running")
        assert answer["lease_expires_at"] is None
    headers = {"Lease-Token": job["lease_token"]}
    response = desk.patch(job["job_id"], {"begun": True, "run_id": "r2"}, headers=headers)
    assert response.status_code == 409
    assert response.json["type"].endswith(":already-begun")
    # Not even its heartbeat counts.
    assert row(desk, job) == before


def test_begin_of_the_same_run_again_is_accepted_and_changes_nothing(desk: Desk) -> None:
    job = prefetched(desk)
    desk.report(job, begun=True, run_id="r1")
    before = row(desk, job)
    for body in ({"begun": True, "run_id": "r1"}, {"begun": True}, {"run_id": "r1"}):
        assert desk.report(job, **body)["accepted"]
    after = row(desk, job)
    assert (after.version, after.started_at) == (before.version, before.started_at)
    assert desk.report(job, run_id="r1", status="success")["status"] == "success"


@pytest.mark.parametrize("how", ["claim", "suspect", "report"])
def test_attempt_that_began_without_a_run_takes_the_first_one(desk: Desk, how: str) -> None:
    desk.create()
    if how == "suspect":
        expire(desk, desk.claim(begin=False)[0])
    (job,) = desk.claim(begin=how == "claim")
    if how == "report":
        desk.report(job, begun=True)
    before = row(desk, job)
    assert desk.report(job, progress_message=None, run_id="r0")["accepted"]
    assert desk.report(job, begun=True, run_id="r1")["accepted"]
    after = row(desk, job)
    assert (after.run_id, after.version) == ("r1", before.version)
    assert kind(desk.report(job, begun=True, run_id="r2")) == "already-begun"


def test_next_attempt_takes_another_run(desk: Desk) -> None:
    job = prefetched(desk)
    desk.report(job, begun=True, run_id="r1")
    desk.report(job, status="failed", run_id="r1", retry_after=0)
    (again,) = desk.claim(begin=False)
    assert desk.report(again, begun=True, run_id="r2")["accepted"]


def test_two_runs_in_one_batch_are_judged_in_their_order(desk: Desk) -> None:
    job = prefetched(desk)
    ids = {name: job[name] for name in ("job_id", "lease_token")}
    given = [{**ids, "begun": True, "run_id": run} for run in ("r1", "r2", "r1")]
    answers = desk.post("/report", json={"reports": given}).json["data"]
    assert [answer["accepted"] for answer in answers] == [True, False, True]
    assert row(desk, job).run_id == "r1"


def test_two_runs_that_begin_at_the_same_moment_are_one(desk: Desk) -> None:
    for begin in (True, False):
        desk.create()
        (job,) = desk.claim(begin=begin)
        gate = threading.Barrier(4)

        def go(number: int, job: Any = job, gate: Any = gate) -> bool:
            report = {
                **{name: job[name] for name in ("job_id", "lease_token")},
                "begun": True,
                "run_id": f"r{number}",
            }
            headers = {"Authorization": f"Bearer {desk.token}"}
            gate.wait(20)
            response = desk.world.app.test_client().post(
                f"{desk.jobs_path}/report", json={"reports": [report]}, headers=headers
            )
            return bool(response.json["data"][0]["accepted"])

        with ThreadPoolExecutor(4) as pool:
            accepted = list(pool.map(go, range(4)))
        assert accepted.count(True) == 1
        assert row(desk, job).run_id == f"r{accepted.index(True)}"


@pytest.mark.parametrize("run_id", ["", "x" * 65, 5, "\x00"])
def test_report_with_a_wrong_run_id_is_refused(desk: Desk, run_id: Any) -> None:
    job = prefetched(desk)
    headers = {"Lease-Token": job["lease_token"]}
    response = desk.patch(job["job_id"], {"begun": True, "run_id": run_id}, headers=headers)
    assert response.status_code in (400, 422)
    assert row(desk, job).prefetched


def test_begin_without_the_token_is_refused(desk: Desk) -> None:
    job = prefetched(desk)
    for body in ({"begun": True}, {"run_id": "r1"}):
        response = desk.patch(job["job_id"], body)
        assert response.json["type"].endswith(":lease-required")
        response = desk.patch(desk.job_in("running")["job_id"], body)
        assert (response.status_code, list(response.json["errors"])) == (422, list(body))
    assert desk.patch(job["job_id"], {"begun": False}).status_code == 200
    assert row(desk, job).prefetched


# The rules in Python, and those that are written as statements


@pytest.mark.parametrize(
    "impossible", [{"prefetched": True}, {"run_id": "r1"}, {"prefetched": None}]
)
def test_database_refuses_a_begin_without_a_lease(desk: Desk, impossible: Any) -> None:
    desk.create()
    with pytest.raises(IntegrityError), desk.world.transaction() as tx:
        tx.execute(update(jobs).values(**impossible))


def test_claim_of_a_host_prefetches(desk: Desk) -> None:
    desk.create()
    with desk.world.state.engine.connect() as connection, transaction(connection) as tx:
        (job,) = queue.claim(tx, desk.workspace_id, lease_token="a" * 32, begin=False)
        assert job.prefetched
        assert services.get(tx, desk.workspace_id, job.job_id).prefetched
