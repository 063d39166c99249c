"""Explanations: a test for each code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobapi.services import workers

from ..factories import Desk


def explain(desk: Desk, job: Any) -> dict[str, Any]:
    response = desk.get(f"/{job['job_id']}/explain")
    assert response.status_code == 200, response.text
    assert response.json["job_id"] == job["job_id"]
    return dict(response.json)


def codes(desk: Desk, job: Any) -> list[str]:
    return [reason["code"] for reason in explain(desk, job)["reasons"]]


@pytest.fixture(autouse=True)
def worker(desk: Desk) -> None:
    """A live worker for all types."""
    desk.post("/claim", json={"worker": "w"})


def job_type(desk: Desk, **settings: Any) -> None:
    path = f"/workspace/{desk.workspace_id}/job-types/data_analysis"
    assert desk.call("PATCH", path, json=settings).status_code == 200


def test_scheduled(desk: Desk) -> None:
    job = desk.create(scheduled_at="2100-01-01T00:00:00Z")
    found = explain(desk, job)
    assert [reason["code"] for reason in found["reasons"]] == ["scheduled"]
    assert found["reasons"][0]["until"] == "2100-01-01T00:00:00Z"
    assert found["estimated_start_at"] == "2100-01-01T00:00:00Z"
    assert found["live_workers"] == 1


def test_retry_backoff(desk: Desk) -> None:
    desk.create()
    (job,) = desk.claim()
    desk.report(job, status="failed", error="boom", retry_after=600)
    assert codes(desk, job) == ["retry-backoff"]


def test_workspace_paused(desk: Desk) -> None:
    job = desk.create()
    desk.call("POST", f"/workspace/{desk.workspace_id}/pause", json={"reason": "upgrade"})
    found = explain(desk, job)
    assert [reason["code"] for reason in found["reasons"]] == ["workspace-paused"]
    assert found["reasons"][0]["detail"] == "The workspace is paused: upgrade"
    assert found["estimated_start_at"] is None


def test_type_paused(desk: Desk) -> None:
    job = desk.create()
    job_type(desk, paused=True)
    assert codes(desk, job) == ["type-paused"]


def test_at_capacity(desk: Desk) -> None:
    job_type(desk, max_running=1)
    first, second = desk.create(), desk.create()
    desk.claim()
    assert codes(desk, second) == ["at-capacity"]
    assert codes(desk, first) == ["running"]


def test_key_at_capacity(desk: Desk) -> None:
    job_type(desk, max_running_per_key=1)
    desk.create(concurrency_key="a")
    second = desk.create(concurrency_key="a")
    other = desk.create(concurrency_key="b")
    desk.claim()
    # The other key has its turn.
    assert codes(desk, other) == ["ready"]
    desk.claim()
    assert codes(desk, second) == ["key-at-capacity"]


def test_rate_limited(desk: Desk) -> None:
    job_type(desk, rate_limit={"starts": 1, "seconds": 3600})
    desk.create()
    second = desk.create()
    desk.claim()
    found = explain(desk, second)
    assert [reason["code"] for reason in found["reasons"]] == ["rate-limited"]
    assert found["reasons"][0]["until"] is not None


def test_no_live_worker(desk: Desk) -> None:
    desk.post("/claim", json={"worker": "v", "job_types": ["other"]})
    job = desk.create()
    with desk.world.transaction() as tx:
        tx.exec_driver_sql("DELETE FROM jobapi_workers WHERE name = 'w'")
    assert codes(desk, job) == ["no-live-worker"]
    assert explain(desk, job)["live_workers"] == 0


def test_behind_others(desk: Desk) -> None:
    desk.create(job_type="other")
    desk.create(priority="high")
    desk.create()
    desk.create(priority="low")
    job = desk.create()
    found = explain(desk, job)
    assert [reason["code"] for reason in found["reasons"]] == ["behind-others"]
    assert (found["ahead"], found["ahead_is_capped"]) == (2, False)


def test_ahead_counts_turns_of_keys(desk: Desk) -> None:
    for _ in range(9):
        desk.create(concurrency_key="flood")
    for key in ("a", "b"):
        desk.create(concurrency_key=key)
    job = desk.create(concurrency_key="c")
    assert explain(desk, job)["ahead"] == 3


def test_ahead_is_capped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobapi.services import explain as service

    monkeypatch.setattr(service, "MAX_AHEAD", 2)
    *_, job = [desk.create() for _ in range(5)]
    found = explain(desk, job)
    assert (found["ahead"], found["ahead_is_capped"]) == (2, True)
    assert found["estimated_start_at"] is None


def test_ready(desk: Desk) -> None:
    job = desk.create()
    found = explain(desk, job)
    assert [reason["code"] for reason in found["reasons"]] == ["ready"]
    assert found["ahead"] == 0
    assert found["estimated_start_at"] is not None
    assert found["estimated_completion_at"] is None
    assert found["estimate_basis"] == "Too little history: no job of this type has succeeded."


def test_running_and_late(desk: Desk) -> None:
    desk.create(estimated_duration=5)
    (job,) = desk.claim(lease_seconds=60, worker="w")
    found = explain(desk, job)
    assert [reason["code"] for reason in found["reasons"]] == ["running"]
    assert found["reasons"][0]["worker"] == "w"
    desk.shift(job, 50)
    assert codes(desk, job) == ["running", "overdue", "lease-late"]


def test_estimate_of_a_running_job(desk: Desk) -> None:
    for _ in range(3):
        desk.create()
        (job,) = desk.claim()
        desk.shift(job, 10)
        desk.report(job, status="success")
    desk.create()
    (job,) = desk.claim()
    found = explain(desk, job)
    assert found["estimated_completion_at"] > found["estimated_start_at"]
    waiting = explain(desk, desk.create())
    assert waiting["estimated_completion_at"] is not None


ENDS: dict[str, Callable[[Desk, Any], Any]] = {
    "success": lambda desk, job: desk.report(job, status="success"),
    "failed": lambda desk, job: desk.report(job, status="failed", error="boom", retryable=False),
    "cancelled": lambda desk, job: desk.post(f"/{job['job_id']}/cancel", json={"reason": "boom"}),
}


@pytest.mark.parametrize("code", ENDS)
def test_ended(desk: Desk, code: str) -> None:
    desk.create()
    (job,) = desk.claim(worker="w")
    ENDS[code](desk, job)
    found = explain(desk, job)
    (reason,) = found["reasons"]
    assert reason["code"] == code
    assert reason["actor"] == f"user:{desk.user.id}"
    assert reason["reason"] == (None if code == "success" else "boom")
    assert found["ahead"] is None


def test_ended_by_expiry_of_the_lease(desk: Desk) -> None:
    desk.create(max_retries=0)
    (job,) = desk.claim()
    desk.shift(job, 100)
    desk.reap()
    (reason,) = explain(desk, job)["reasons"]
    assert (reason["code"], reason["actor"]) == ("lease-expired", None)


def test_ended_by_timeout(desk: Desk) -> None:
    desk.create(max_retries=0, timeout_seconds=10)
    (job,) = desk.claim()
    desk.shift(job, 30)
    desk.reap()
    (reason,) = explain(desk, job)["reasons"]
    assert (reason["code"], reason["actor"]) == ("timed-out", None)


def test_key_sees_only_jobs_of_its_types(desk: Desk) -> None:
    job = desk.create()
    from jobapi.rules.roles import Role

    key = desk.world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["other"])
    path = f"{desk.jobs_path}/{job['job_id']}/explain"
    assert desk.world.call("GET", path, key).status_code == 404
    assert workers.LIVE
