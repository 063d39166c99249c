"""Flow control over HTTP: limits, keys that take turns, rates, pauses, unique keys, expiry."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from jobapi.client import Client
from jobapi.errors import JobTypeNotFound
from jobapi.rules.roles import Role
from jobapi.services import flow, job_types
from jobapi.store import tables

from ..factories import Desk


def settings(desk: Desk, job_type: str = "data_analysis", **changes: Any) -> dict[str, Any]:
    """Change a job type's settings."""
    path = f"/workspace/{desk.workspace_id}/job-types/{job_type}"
    response = desk.call("PATCH", path, json=changes)
    assert response.status_code == 200, response.text
    return dict(response.json)


def claimed(desk: Desk, limit: int = 100, **body: Any) -> list[dict[str, Any]]:
    response = desk.post("/claim", json={"limit": limit, **body})
    assert response.status_code == 200, response.text
    return list(response.json["data"])


def done(desk: Desk, *jobs: Any, **said: Any) -> None:
    reports = [
        {"job_id": j["job_id"], "lease_token": j["lease_token"], "status": "success", **said}
        for j in jobs
    ]
    answers = desk.post("/report", json={"reports": reports}).json["data"]
    assert all(answer["accepted"] for answer in answers), answers


@pytest.mark.parametrize("typed", [True, False])
def test_claim_starts_no_more_than_may_run(desk: Desk, typed: bool) -> None:
    settings(desk, max_running=2)
    for _ in range(5):
        desk.create()
    body = {"job_types": ["data_analysis"]} if typed else {}
    first = claimed(desk, **body)
    assert len(first) == 2
    assert claimed(desk, **body) == []
    done(desk, first[0])
    assert len(claimed(desk, **body)) == 1
    assert claimed(desk, **body) == []


def test_keys_take_turns(desk: Desk) -> None:
    for _ in range(6):
        desk.create(concurrency_key="flood")
    for key in ("a", "b"):
        desk.create(concurrency_key=key)
    got = [claimed(desk, 1)[0]["concurrency_key"] for _ in range(4)]
    assert set(got[:3]) == {"a", "b", "flood"}
    assert got[3] == "flood"


def test_key_runs_one_at_a_time_in_order(desk: Desk) -> None:
    settings(desk, max_running_per_key=1)
    jobs = [desk.create(concurrency_key="k") for _ in range(3)]
    urgent = desk.create(concurrency_key="k", priority="urgent")
    other = desk.create(concurrency_key="l")
    order = []
    first = claimed(desk)
    assert {j["job_id"] for j in first} == {urgent["job_id"], other["job_id"]}
    for _job in (urgent, *jobs):
        running = [j for j in first if j["concurrency_key"] == "k"]
        order += [j["job_id"] for j in running]
        done(desk, *running)
        first = claimed(desk)
    assert order == [urgent["job_id"], *(j["job_id"] for j in jobs)]


def test_rate(desk: Desk) -> None:
    settings(desk, rate_limit={"starts": 3, "seconds": 3600})
    for _ in range(5):
        desk.create()
    assert len(claimed(desk, 2)) == 2
    assert len(claimed(desk)) == 1
    assert claimed(desk) == []


def test_pause(desk: Desk) -> None:
    desk.create()
    desk.create(job_type="other")
    path = f"/workspace/{desk.workspace_id}/job-types/data_analysis"
    answer = desk.call("POST", path + "/pause", json={"reason": "deploy"})
    assert (answer.json["paused"], answer.json["paused_reason"]) == (True, "deploy")
    assert [j["job_type"] for j in claimed(desk)] == ["other"]
    assert not desk.call("POST", path + "/resume").json["paused"]
    assert [j["job_type"] for j in claimed(desk)] == ["data_analysis"]


def test_pause_workspace(desk: Desk) -> None:
    desk.create()
    path = f"/workspace/{desk.workspace_id}"
    assert desk.call("POST", path + "/pause", json={"reason": "x"}).json["paused"]
    assert claimed(desk) == []
    assert not desk.call("POST", path + "/resume").json["paused"]
    assert len(claimed(desk)) == 1


def test_patch_takes_slot(desk: Desk) -> None:
    settings(desk, max_running=1)
    one, two = desk.create(), desk.create()
    assert desk.patch(one["job_id"], {"status": "running"}).status_code == 200
    refused = desk.patch(two["job_id"], {"status": "running"})
    assert refused.status_code == 409
    assert refused.json["type"].endswith("at-capacity")
    assert claimed(desk) == []
    assert desk.patch(one["job_id"], {"status": "success"}).status_code == 200
    assert len(claimed(desk)) == 1


def test_unique_key(desk: Desk) -> None:
    one = desk.create(unique_key="u")
    body = {"job_type": "data_analysis", "workspace_id": desk.workspace_id, "unique_key": "u"}
    again = desk.post(json=body)
    assert again.status_code == 200, again.text
    assert again.json == {**one, "existing": True}
    refused = desk.post(json={**body, "on_conflict": "refuse"})
    assert refused.status_code == 409
    assert refused.json["job_id"] == one["job_id"]
    replaced = desk.post(json={**body, "on_conflict": "replace", "metadata": {"a": 1}})
    assert replaced.status_code == 200
    assert replaced.json["metadata"] == {"a": 1}
    many = desk.post(
        "/batch",
        json={
            "jobs": [
                {"job_type": "data_analysis", "unique_key": "u"},
                {"job_type": "data_analysis", "unique_key": "v"},
                {"job_type": "data_analysis", "unique_key": "v"},
                {"job_type": "data_analysis"},
            ]
        },
    )
    assert many.status_code == 201, many.text
    assert [j["existing"] for j in many.json["data"]] == [True, False, True, False]
    (job,) = [j for j in claimed(desk) if j["unique_key"] == "u"]
    assert desk.post(json={**body, "on_conflict": "replace"}).status_code == 409
    done(desk, job, status="failed", retryable=False)
    two = desk.create(unique_key="u")
    retry = desk.post(f"/{one['job_id']}/retry")
    assert (retry.status_code, retry.json["job_id"]) == (409, two["job_id"])


def test_expiry(desk: Desk) -> None:
    job = desk.create(expires_at="2100-01-01T00:00:00Z")
    with desk.world.transaction() as tx:
        tx.execute(update(tables.jobs).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert claimed(desk) == []
    desk.world.maintain("expired jobs")
    ended = desk.get(f"/{job['job_id']}").json
    assert ended["status"] == "cancelled"
    assert ended["result"] == {"cancelled_reason": "Not started before it expired"}


def test_workers(desk: Desk) -> None:
    desk.create()
    claimed(desk, 1, worker="w1", job_types=["data_analysis"])
    claimed(desk, 1)
    answer = desk.call("GET", f"/workspace/{desk.workspace_id}/workers").json
    names = {w["name"]: w for w in answer["data"]}
    assert names["w1"]["running"] == 1
    assert names["w1"]["state"] == "live"
    assert len(names) == 2


def test_workers_are_filtered_by_state(desk: Desk) -> None:
    for name in ("there", "gone"):
        claimed(desk, 1, worker=name)
    c = tables.workers.c
    with desk.world.transaction() as tx:
        past = datetime.now(UTC) - timedelta(minutes=5)
        tx.execute(update(tables.workers).where(c.name == "gone").values(last_seen_at=past))
    path = f"/workspace/{desk.workspace_id}/workers"
    for state, name in (("live", "there"), ("gone", "gone")):
        answer = desk.call("GET", f"{path}?state={state}").json
        assert [each["name"] for each in answer["data"]] == [name]
        assert answer["pagination"]["total"] == 1
    assert desk.call("GET", f"{path}?state=here").status_code == 422


# Waiting claims


FREES: dict[str, Any] = {
    "report": lambda desk, job: done(desk, job),
    "failure": lambda desk, job: done(desk, job, status="failed", retryable=False),
    "release": lambda desk, job: done(desk, job, status="pending"),
    "cancel": lambda desk, job: desk.post(f"/{job['job_id']}/cancel"),
    "cancel by PATCH": lambda desk, job: desk.patch(job["job_id"], {"status": "cancelled"}),
    "operation": lambda desk, job: desk.call(
        "POST",
        f"/workspace/{desk.workspace_id}/operations",
        json={"action": "cancel", "filter": {"status": ["running"]}},
    ),
    "higher limit": lambda desk, job: settings(desk, max_running=2),
    "no limit": lambda desk, job: settings(desk, max_running=None),
    "resume": lambda desk, job: desk.call(
        "POST", f"/workspace/{desk.workspace_id}/job-types/data_analysis/resume"
    ),
    "resume of the workspace": lambda desk, job: desk.call(
        "POST", f"/workspace/{desk.workspace_id}/resume"
    ),
}


@pytest.mark.parametrize("how", FREES)
def test_free_slot_is_announced(desk: Desk, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    settings(desk, max_running=1)
    desk.create()
    desk.create()
    (job,) = claimed(desk)
    announced: list[int] = []
    waiters = desk.world.state.waiters
    monkeypatch.setattr(waiters, "announce", lambda connection, ws: announced.append(ws))
    FREES[how](desk, job)
    assert announced == [desk.workspace_id]


def test_slot_freed_by_expiry_is_announced(desk: Desk) -> None:
    settings(desk, max_running=1)
    desk.create(max_retries=0)
    (job,) = claimed(desk)
    desk.shift(job, 100)
    announced: list[int] = []
    desk.world.maintain("expired leases", announce=lambda _, ws: announced.append(ws))
    assert announced == [desk.workspace_id]


# Job types


def test_settings_are_merged_and_return_to_their_defaults(desk: Desk) -> None:
    path = f"/workspace/{desk.workspace_id}/job-types"
    assert desk.call("GET", f"{path}/etl").status_code == 404
    settings(desk, "etl", max_running=5, rate_limit={"starts": 10, "seconds": 60}, priority="high")
    found = settings(desk, "etl", rate_limit={"starts": 20})
    assert found["rate_limit"] == {"starts": 20, "seconds": 60}
    assert (found["max_running"], found["priority"]) == (5, "high")
    assert [each["job_type"] for each in desk.call("GET", path).json["data"]] == ["etl"]
    found = settings(desk, "etl", rate_limit=None, max_running=None, priority=None)
    assert found["rate_limit"] is None
    assert desk.call("GET", f"{path}/etl").status_code == 404
    assert desk.call("GET", path).json["pagination"]["total"] == 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_running": 0}, "max_running"),
    ({"max_running": 1001}, "max_running"),
    ({"max_running_per_key": True}, "max_running_per_key"),
    ({"rate_limit": {"starts": 5}}, "rate_limit.seconds"),
    ({"rate_limit": {"starts": 0, "seconds": 1}}, "rate_limit.starts"),
    ({"max_pending": 10_000_001}, "max_pending"),
    ({"start_within_seconds": 0}, "start_within_seconds"),
    ({"retry_backoff_seconds": 86_401}, "retry_backoff_seconds"),
    ({"paused_reason": "x"}, "paused_reason"),
    ({"pending": 5}, "pending"),
]


@pytest.mark.parametrize(("body", "field"), WRONG)
def test_wrong_settings_are_422(desk: Desk, body: dict[str, Any], field: str) -> None:
    response = desk.call("PATCH", f"/workspace/{desk.workspace_id}/job-types/etl", json=body)
    assert response.status_code == 422
    assert field in response.json["errors"]


def test_type_shows_its_load(desk: Desk) -> None:
    desk.create()
    desk.create(concurrency_key="a")
    desk.create(scheduled_at="2100-01-01T00:00:00Z")
    claimed(desk, 1, worker="w")
    path = f"/workspace/{desk.workspace_id}/job-types/data_analysis"
    found = desk.call("GET", path).json
    assert (found["pending"], found["running"], found["live_workers"]) == (2, 1, 1)
    assert found["oldest_due_seconds"] is not None


def test_changes_of_settings_are_events(desk: Desk) -> None:
    settings(desk, max_running=5)
    settings(desk, max_running=5)
    path = f"/workspace/{desk.workspace_id}/job-types/data_analysis"
    desk.call("POST", path + "/pause", json={"reason": "deploy"})
    desk.call("POST", path + "/resume")
    desk.call("POST", f"/workspace/{desk.workspace_id}/pause")
    desk.call("POST", f"/workspace/{desk.workspace_id}/resume")
    found = desk.call("GET", f"/workspace/{desk.workspace_id}/events?order=asc").json["data"]
    kinds = [(each["kind"], each["job_type"], each["user_id"]) for each in found]
    user = desk.user.id
    assert kinds == [
        ("job_type_changed", "data_analysis", user),
        ("job_type_paused", "data_analysis", user),
        ("job_type_resumed", "data_analysis", user),
        ("workspace_paused", None, user),
        ("workspace_resumed", None, user),
    ]
    assert found[0]["data"] == {"max_running": 5}


def test_pause_by_patch_is_an_event_of_the_same_kind(desk: Desk) -> None:
    settings(desk, paused=True, paused_reason="deploy")
    settings(desk, paused_reason="longer")
    settings(desk, paused=False, max_running=3)
    found = desk.call("GET", f"/workspace/{desk.workspace_id}/events?order=asc").json["data"]
    kinds = [each["kind"] for each in found]
    assert kinds == ["job_type_paused", "job_type_changed", "job_type_resumed"]


def test_key_sees_and_pauses_only_its_types(desk: Desk) -> None:
    desk.create(job_type="mine")
    desk.create(job_type="other")
    key = desk.world.key(desk.workspace_id, desk.user, Role.MEMBER, job_types=["mine"])
    path = f"/workspace/{desk.workspace_id}"
    listed = desk.world.call("GET", f"{path}/job-types", key).json["data"]
    assert [each["job_type"] for each in listed] == ["mine"]
    assert desk.world.call("GET", f"{path}/job-types/other", key).status_code == 404
    assert desk.world.call("POST", f"{path}/job-types/other/pause", key).status_code == 404
    assert desk.world.call("POST", f"{path}/job-types/mine/pause", key).status_code == 200
    assert desk.world.call("POST", f"{path}/pause", key).status_code == 403


def test_defaults_of_a_type_are_copied_by_creates(desk: Desk) -> None:
    settings(desk, priority="high", max_retries=7, timeout_seconds=9, start_within_seconds=60)
    job = desk.create(priority=None)
    assert (job["priority"], job["max_retries"], job["timeout_seconds"]) == ("high", 7, 9)
    assert job["expires_at"] is not None
    given = desk.create(priority="low", max_retries=0, expires_at="2100-01-01T00:00:00Z")
    assert (given["priority"], given["max_retries"]) == ("low", 0)
    assert given["expires_at"] == "2100-01-01T00:00:00Z"
    removed = desk.patch(job["job_id"], {"timeout_seconds": None, "expires_at": None}).json
    assert (removed["timeout_seconds"], removed["expires_at"]) == (None, None)
    body = {"jobs": [{"job_type": "data_analysis"}]}
    headers = {"Idempotency-Key": "k"}
    (made,) = desk.post("/batch", json=body, headers=headers).json["data"]
    assert made["priority"] == "high"
    settings(desk, priority=None)
    assert desk.post("/batch", json=body, headers=headers).json["data"] == [made]


def test_backoff_of_a_type_wins(desk: Desk) -> None:
    settings(desk, retry_backoff_seconds=1000, retry_backoff_max_seconds=1000)
    desk.create()
    (job,) = claimed(desk)
    done(desk, job, status="failed")
    after = desk.get(f"/{job['job_id']}").json
    due = datetime.fromisoformat(after["due_at"]) - datetime.fromisoformat(after["updated_at"])
    assert 499 <= due.total_seconds() <= 1001


def test_queue_that_is_full_refuses_creates(desk: Desk) -> None:
    settings(desk, max_pending=2)
    desk.create(unique_key="u")
    body = {"job_type": "data_analysis", "workspace_id": desk.workspace_id}
    refused = desk.post("/batch", json={"jobs": [body] * 2})
    assert refused.status_code == 429
    assert refused.json["type"].endswith("queue-full")
    assert int(refused.headers["Retry-After"]) >= 1
    desk.create(scheduled_at="2100-01-01T00:00:00Z")
    assert desk.post(json=body).status_code == 429
    # Judged after the unique key.
    assert desk.post(json={**body, "unique_key": "u"}).status_code == 200
    (job,) = claimed(desk)
    desk.create()
    # What comes back is never refused.
    done(desk, job, status="pending")
    assert desk.get(query_string={"status": "pending"}).json["pagination"]["total"] == 3


def test_patch_to_running_says_why_not(desk: Desk) -> None:
    settings(desk, max_running_per_key=1)
    one, two = desk.create(concurrency_key="k"), desk.create(concurrency_key="k")
    assert desk.patch(one["job_id"], {"status": "running"}).status_code == 200

    def refusal(job: Any) -> tuple[int, str]:
        response = desk.patch(job["job_id"], {"status": "running"})
        return response.status_code, response.json["type"].rpartition(":")[2]

    assert refusal(two) == (409, "at-capacity")
    settings(desk, max_running_per_key=None, rate_limit={"starts": 1, "seconds": 3600})
    three = desk.create()
    assert desk.patch(three["job_id"], {"status": "running"}).status_code == 200
    assert refusal(two) == (409, "rate-limited")
    settings(desk, rate_limit=None, paused=True)
    assert refusal(two) == (409, "type-paused")
    desk.call("POST", f"/workspace/{desk.workspace_id}/pause")
    assert refusal(two) == (409, "workspace-paused")
    # What never runs needs no slot.
    assert desk.patch(two["job_id"], {"status": "success"}).status_code == 200


def test_priorities_age(desk: Desk) -> None:
    path = f"/workspace/{desk.workspace_id}"
    assert desk.call("PATCH", path, json={"priority_ageing_seconds": 60}).status_code == 200
    low = desk.create(priority="low")
    desk.shift(low, 200)
    urgent = desk.create(priority="urgent")
    assert [claimed(desk, 1)[0]["job_id"] for _ in range(2)] == [low["job_id"], urgent["job_id"]]
    desk.call("PATCH", path, json={"priority_ageing_seconds": None})
    low = desk.create(priority="low")
    desk.shift(low, 200)
    urgent = desk.create(priority="urgent")
    assert claimed(desk, 1)[0]["job_id"] == urgent["job_id"]


def test_expiry_must_be_later_than_the_schedule(desk: Desk) -> None:
    body = {"job_type": "data_analysis", "workspace_id": desk.workspace_id}
    for given in (
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2100-01-01T00:00:00Z", "scheduled_at": "2100-01-01T00:00:00Z"},
    ):
        response = desk.post(json={**body, **given})
        assert response.status_code == 422
        assert response.json["errors"].keys() == {"expires_at"}
    job = desk.create(expires_at="2100-01-01T00:00:00Z")
    refused = desk.patch(job["job_id"], {"scheduled_at": "2100-01-02T00:00:00Z"})
    assert refused.json["errors"].keys() == {"scheduled_at"}


def test_job_that_has_begun_does_not_expire(desk: Desk) -> None:
    for begin in (True, False):
        desk.create(expires_at="2100-01-01T00:00:00Z", unique_key=str(begin))
        (job,) = desk.claim(begin=begin)
        done(desk, job, status="pending")
    with desk.world.transaction() as tx:
        moment = datetime(2020, 1, 1, tzinfo=UTC)
        tx.execute(update(tables.jobs).values(expires_at=moment))
    desk.world.maintain("expired jobs")
    found = {job["unique_key"]: job["status"] for job in desk.get().json["data"]}
    assert found == {"True": "pending", "False": "cancelled"}


def test_retry_clears_the_expiry(desk: Desk) -> None:
    job = desk.create(expires_at="2100-01-01T00:00:00Z")
    desk.post(f"/{job['job_id']}/cancel")
    assert desk.post(f"/{job['job_id']}/retry").json["expires_at"] is None


def test_jobs_with_a_key_that_become_due_have_their_turn(desk: Desk) -> None:
    job = desk.create(concurrency_key="k", scheduled_at="2100-01-01T00:00:00Z")
    assert claimed(desk) == []
    with desk.world.transaction() as tx:
        moment = datetime.now(UTC) - timedelta(seconds=1)
        values = {"created_at": moment, "queued_at": moment, "due_at": moment}
        tx.execute(update(tables.jobs).values(**values))
    assert [each["job_id"] for each in claimed(desk)] == [job["job_id"]]


def test_operation_retries_one_job_of_each_unique_key(desk: Desk) -> None:
    for _ in range(3):
        desk.create(unique_key="u")
        (job,) = claimed(desk)
        done(desk, job, status="failed", retryable=False)
    other = desk.create(unique_key="v")
    desk.post(f"/{other['job_id']}/cancel")
    desk.create(unique_key="v")
    body = {"action": "retry", "filter": {}}
    path = f"/workspace/{desk.workspace_id}/operations"
    found = desk.call("POST", path, json=body).json
    assert (found["matched"], found["changed"], found["skipped"]) == (4, 1, 3)


def test_creates_with_one_unique_key_at_once_make_one_job(desk: Desk) -> None:
    gate = threading.Barrier(8)

    def create(_: int) -> str:
        gate.wait(20)
        client = desk.world.app.test_client()
        headers = {"Authorization": f"Bearer {desk.token}"}
        body = {"job_type": "t", "workspace_id": desk.workspace_id, "unique_key": "u"}
        response = client.post(desk.jobs_path, json=body, headers=headers)
        assert response.status_code in (200, 201)
        return str(response.get_json()["job_id"])

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(create, range(8)))
        assert len(ids) == 1
        desk.post(f"/{ids.pop()}/cancel")


def test_batches_that_replace_the_same_jobs_in_opposite_order_do_not_deadlock(desk: Desk) -> None:
    gate = threading.Barrier(2)
    keys = [f"k{n:02}" for n in range(60)]

    def replace(order: list[str]) -> None:
        client = desk.world.app.test_client()
        headers = {"Authorization": f"Bearer {desk.token}"}
        for number in range(5):
            given = {"on_conflict": "replace", "metadata": {"from": order[0], "number": number}}
            items = [{"job_type": "t", "unique_key": key, **given} for key in order]
            gate.wait(20)
            response = client.post(desk.jobs_path + "/batch", json={"jobs": items}, headers=headers)
            assert response.status_code in (200, 201), response.text

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(replace, [keys, keys[::-1]]))
    assert desk.get("?status=pending").json["pagination"]["total"] == len(keys)


REMOVED = dict.fromkeys(("rate_starts", "rate_seconds", "tokens", "tokens_at"))


def test_claim_survives_a_rate_limit_that_is_removed_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(desk, rate_limit={"starts": 5, "seconds": 1}, max_running_per_key=1)
    desk.create(concurrency_key="a")
    load = flow.load

    def load_then_remove(*given: Any) -> Any:
        found = load(*given)
        given[0].execute(update(tables.job_types).values(REMOVED))
        return found

    monkeypatch.setattr(flow, "load", load_then_remove)
    assert claimed(desk) == []
    monkeypatch.undo()
    settings(desk, max_running_per_key=None)
    assert len(claimed(desk)) == 1


def test_filters_by_key(desk: Desk) -> None:
    one = desk.create(concurrency_key="a", expires_at="2100-01-01T00:00:00Z")
    desk.create(concurrency_key="b", unique_key="u")
    for query, number in (
        ("concurrency_key=a", 1),
        ("concurrency_key=a&concurrency_key=b", 2),
        ("unique_key=u", 1),
        ("expires_before=2101-01-01T00:00:00Z", 1),
        ("expires_after=2101-01-01T00:00:00Z", 0),
    ):
        assert desk.get(f"?{query}").json["pagination"]["total"] == number, query
    assert desk.get(f"/{one['job_id']}").json["concurrency_key"] == "a"


@pytest.mark.parametrize("name", [".", ".."])
def test_name_that_clients_resolve_in_a_path_is_no_job_type(desk: Desk, name: str) -> None:
    body = {"job_type": name, "workspace_id": desk.workspace_id}
    assert desk.post(json=body).status_code == 422
    assert desk.post("/batch", json={"jobs": [body]}).status_code == 422
    with pytest.raises(JobTypeNotFound), desk.world.transaction() as tx:
        job_types.pause(tx, desk.workspace_id, name, None)
    with pytest.raises(ValueError, match="not names"):
        Client("http://localhost", token="t").pause_job_type(desk.workspace_id, name)
    assert desk.create(job_type="..a")["job_type"] == "..a"
