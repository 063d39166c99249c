"""Creates that are safe to repeat, one by one and in batches."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from jobapi.rules.roles import Role
from jobapi.services import idempotency
from jobapi.store.tables import idempotency_keys

from ..factories import Desk, World

KEY = {"Idempotency-Key": "order-17"}


def total(desk: Desk) -> int:
    return int(desk.get().json["pagination"]["total"])


@pytest.fixture
def body(desk: Desk) -> dict[str, Any]:
    return {"job_type": "a", "workspace_id": desk.workspace_id, "metadata": {"b": 1, "a": 2}}


def test_repeated_create_gets_the_first_answer(desk: Desk, body: Any) -> None:
    first = desk.post(json=body, headers=KEY)
    desk.patch(first.json["job_id"], {"priority": "low"})
    again = desk.post(json=dict(reversed(body.items())), headers=KEY)
    assert again.status_code == first.status_code == 201
    assert again.json == first.json
    for name in ("Location", "ETag"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert total(desk) == 1


def test_key_for_another_request_is_refused(desk: Desk, body: Any) -> None:
    desk.post(json=body, headers=KEY)
    for path, other in (("", {**body, "priority": "low"}), ("/batch", {"jobs": [body]})):
        response = desk.post(path, json=other, headers=KEY)
        assert response.status_code == 422
        assert response.json["type"].endswith(":idempotency-key-reused")
    assert total(desk) == 1


def test_key_belongs_to_its_caller_and_workspace(world: World, desk: Desk, body: Any) -> None:
    desk.post(json=body, headers=KEY)
    for who in (world.token(world.member(desk.workspace_id, Role.MEMBER)),):
        assert world.call("POST", desk.jobs_path, who, json=body, headers=KEY).status_code == 201
    machine = world.key(desk.workspace_id, desk.user, Role.MEMBER)
    assert world.call("POST", desk.jobs_path, machine, json=body, headers=KEY).status_code == 201
    assert total(desk) == 3


def test_refusals_are_not_kept(desk: Desk, body: Any) -> None:
    assert desk.post(json={**body, "priority": "x"}, headers=KEY).status_code == 422
    assert desk.post(json=body, headers=KEY).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "x\x00"])
def test_key_that_cannot_be_kept_is_422(desk: Desk, body: Any, key: str) -> None:
    response = desk.post(json=body, headers={"Idempotency-Key": key})
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["Idempotency-Key"]


def test_key_is_kept_for_a_day(desk: Desk, body: Any) -> None:
    desk.post(json=body, headers=KEY)
    with desk.world.transaction() as tx:
        assert idempotency.forget(tx) == 0
        made = tx.execute(select(idempotency_keys.c.created_at)).scalar_one()
        tx.execute(update(idempotency_keys).values(created_at=made - timedelta(hours=24)))
    assert desk.post(json=body, headers=KEY).headers.get("Idempotency-Replayed") is None
    assert total(desk) == 2
    with desk.world.transaction() as tx:
        tx.execute(update(idempotency_keys).values(created_at=made - timedelta(hours=24)))
        assert idempotency.forget(tx) == 1
        assert tx.execute(select(idempotency_keys)).all() == []


def test_same_request_many_times_at_once_creates_one_job(desk: Desk, body: Any) -> None:
    answers: list[Any] = []
    start = threading.Barrier(6)

    def work() -> None:
        client = desk.world.app.test_client()
        start.wait()
        answers.append(
            client.post(
                desk.jobs_path,
                json=body,
                headers={**KEY, "Authorization": f"Bearer {desk.token}"},
            )
        )

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({a.json["job_id"] for a in answers if a.status_code == 201}) == 1
    assert total(desk) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json["type"].endswith(":request-in-progress")


def test_batch_is_answered_in_its_order(desk: Desk) -> None:
    items = [
        {"job_type": f"t{n}", "priority": "high", "metadata": {"n": n}, "max_retries": n % 5}
        for n in range(1000)
    ]
    items[3] |= {"workspace_id": desk.workspace_id, "scheduled_at": "2099-01-01T00:00:00Z"}
    items[4] |= {"estimated_duration": 5, "timeout_seconds": 7, "scheduled_at": None}
    items[5] |= {"workspace_id": None, "timeout_seconds": None}
    response = desk.post("/batch", json={"jobs": items}, headers=KEY)
    assert response.status_code == 201
    made = response.json["data"]
    assert [job["metadata"]["n"] for job in made] == list(range(1000))
    for number in (0, 3, 4, 5, 999):
        assert desk.get(f"/{made[number]['job_id']}").json == made[number]
    assert made[3]["due_at"] == made[3]["scheduled_at"] == "2099-01-01T00:00:00Z"
    listed = desk.get("?order=asc&limit=100").json["data"]
    assert listed == made[:100]
    assert desk.post("/batch", json={"jobs": items}, headers=KEY).json == response.json
    assert total(desk) == 1000


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"job_type": "a b"}, "jobs.1.job_type"),
        ({"job_type": "a", "workspace_id": 999}, "jobs.1.workspace_id"),
        ({"job_type": "a", "color": "red"}, "jobs.1.color"),
        ({}, "jobs.1.job_type"),
        (3, "jobs.1"),
    ],
)
def test_batch_with_one_wrong_item_creates_none(desk: Desk, wrong: Any, field: Any) -> None:
    response = desk.post("/batch", json={"jobs": [{"job_type": "a"}, wrong, {"job_type": "a"}]})
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]
    assert total(desk) == 0


@pytest.mark.parametrize("jobs", [[], [{"job_type": "a"}] * 1001, {}, None])
def test_batch_of_none_or_too_many_is_422(desk: Desk, jobs: Any) -> None:
    assert desk.post("/batch", json={"jobs": jobs}).status_code == 422
    assert total(desk) == 0
