"""Operations: one call that cancels, retries or deletes many jobs."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from jobapi.rules.operations import Action
from jobapi.rules.roles import Role
from jobapi.services import operations
from jobapi.services.job_filters import Filters
from jobapi.store.tables import attempts, jobs
from jobapi.store.tables import operations as table

from ..factories import Desk

STATUSES = ["pending", "running", "success", "failed", "cancelled"]


def path(desk: Desk) -> str:
    return f"/workspace/{desk.workspace_id}/operations"


def operate(desk: Desk, action: str, filters: Any = None, **body: Any) -> Any:
    body = {"action": action, "filter": filters or {}, **body}
    response = desk.call("POST", path(desk), json=body)
    assert response.status_code == (200 if body.get("dry_run") else 201), response.text
    return response.json


def read(desk: Desk, operation: Any) -> Any:
    return desk.call("GET", f"{path(desk)}/{operation['operation_id']}").json


def go_on(desk: Desk) -> None:
    desk.world.maintain("operations")


def statuses(desk: Desk, query: str = "") -> dict[str, int]:
    return dict(Counter(job["status"] for job in desk.get(f"?limit=100{query}").json["data"]))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limit a step to a few jobs, so that an operation needs several steps."""
    monkeypatch.setattr(operations, "AT_ONCE", 3)
    return 3


@pytest.mark.parametrize(
    ("action", "after"),
    [
        ("cancel", {"cancelled": 6, "success": 2, "failed": 2}),
        ("retry", {"pending": 6, "running": 2, "success": 2}),
        ("delete", {"pending": 2, "running": 2}),
    ],
)
def test_operation_does_to_all_jobs_what_one_call_does_to_one(
    desk: Desk, action: str, after: dict[str, int]
) -> None:
    for status in STATUSES * 2:
        desk.job_in(status)
    dry = operate(desk, action, dry_run=True)
    done = operate(desk, action)
    touched = 6 if action == "delete" else 4
    assert done["status"] == "finished"
    assert (done["matched"], done["changed"], done["skipped"]) == (touched, touched, 0)
    assert done["matched_is_capped"] is False
    assert done["ended_at"] is not None
    assert statuses(desk) == after
    assert (dry["matched"], dry["changed"], dry["operation_id"]) == (touched, 0, None)
    assert (dry["status"], dry["created_at"]) == (None, None)
    assert read(desk, done) == done


def test_dry_run_changes_nothing_and_leaves_no_operation(desk: Desk) -> None:
    job = desk.create()
    assert operate(desk, "cancel", dry_run=True)["matched"] == 1
    assert desk.get(f"/{job['job_id']}").json == job
    assert desk.call("GET", path(desk)).json["data"] == []


def test_jobs_end_as_if_each_had_been_cancelled_by_itself(desk: Desk) -> None:
    one, many = desk.create(), desk.create()
    leased = [desk.claim()[0] for _ in range(2)]
    for job in leased:
        desk.report(job, progress_percent=40, result={"rows": 7})
    alone = desk.post(f"/{one['job_id']}/cancel", json={"reason": "why"}).json
    assert operate(desk, "cancel", reason="why")["changed"] == 1
    whole = desk.get(f"/{many['job_id']}").json
    times = {"created_at", "updated_at", "started_at", "completed_at", "due_at"}
    kept = [{k: v for k, v in job.items() if k not in {"job_id", *times}} for job in (alone, whole)]
    assert kept[0] == kept[1]
    assert whole["result"] == {"rows": 7, "cancelled_reason": "why"}
    assert [a["outcome"] for a in desk.attempts(many)] == ["cancelled"]
    answer = desk.report(leased[1], status="success")
    assert answer["problem"]["type"].endswith(":lease-lost")
    assert "cancelled" in answer["problem"]["detail"]


def test_jobs_are_put_back_as_if_each_had_been_retried_by_itself(desk: Desk) -> None:
    job = desk.job_in("failed", max_retries=0)
    operate(desk, "retry")
    back = desk.get(f"/{job['job_id']}").json
    assert (back["status"], back["retry_count"], back["max_retries"]) == ("pending", 1, 1)
    assert back["result"] == {"retry_reason": "Retried via API", "previous_attempts": 1}
    assert back["completed_at"] is back["started_at"] is back["error"] is None
    assert [claimed["job_id"] for claimed in desk.claim()] == [job["job_id"]]


def test_deleted_jobs_take_their_attempts_with_them(desk: Desk) -> None:
    desk.create(max_retries=0)
    desk.report(desk.claim()[0], status="failed")
    assert operate(desk, "delete")["changed"] == 1
    with desk.world.transaction() as tx:
        assert tx.execute(select(attempts)).all() == []


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 1, 2, 3]),
    ({"status": ["pending"]}, [0, 1, 2, 3]),
    ({"job_type": ["a"]}, [0, 1]),
    ({"job_type": ["a", "b"], "priority": ["high"]}, [1, 2]),
    ({"metadata": {"batch_id": 3}}, [0, 2]),
    ({"metadata": {"batch_id": "3"}}, [0, 2]),
    ({"metadata": {"file.name": "x", "batch_id": 3}}, [2]),
    ({"metadata": {"flag": True}}, [3]),
    ({"metadata": {"flag": None}}, []),
    ({"created_after": "2000-01-01T00:00:00Z"}, [0, 1, 2, 3]),
    ({"created_before": "2000-01-01T00:00:00Z"}, []),
    ({"updated_after": "2100-01-01T00:00:00Z"}, []),
    ({"created_by": 2**31 - 1}, []),
]


@pytest.mark.parametrize(("filters", "wanted"), FILTERS)
def test_filter_decides_as_it_does_in_lists(
    desk: Desk, filters: dict[str, Any], wanted: list[int]
) -> None:
    other = Desk(desk.world)
    other.create(job_type="a")
    made = [
        desk.create(job_type="a", metadata={"batch_id": 3}),
        desk.create(job_type="a", priority="high"),
        desk.create(job_type="b", priority="high", metadata={"batch_id": 3, "file": {"name": "x"}}),
        desk.create(job_type="c", metadata={"flag": True}),
    ]
    assert operate(desk, "cancel", filters, dry_run=True)["matched"] == len(wanted)
    done = operate(desk, "cancel", filters)
    assert done["changed"] == len(wanted)
    cancelled = {job["job_id"] for job in desk.get("?status=cancelled").json["data"]}
    assert cancelled == {made[number]["job_id"] for number in wanted}
    assert statuses(other) == {"pending": 1}


def test_created_by_and_times_filter(desk: Desk) -> None:
    member = desk.world.member(desk.workspace_id, Role.MEMBER)
    theirs = desk.world.job(desk.workspace_id, member)
    old = desk.create()
    desk.shift(old, 3600)
    before = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    assert operate(desk, "cancel", {"created_by": member.id})["changed"] == 1
    assert operate(desk, "cancel", {"created_before": before})["changed"] == 1
    ids = [job["job_id"] for job in desk.get("?status=cancelled").json["data"]]
    assert ids == [theirs, old["job_id"]]


def test_filter_is_given_back_as_it_is_understood(desk: Desk) -> None:
    filters = {
        "status": ["pending"],
        "job_type": ["a"],
        "priority": ["low", "urgent"],
        "created_after": "2024-01-01T00:00:00Z",
        "created_before": "2100-01-01T00:00:00Z",
        "updated_after": "2024-01-01T00:00:00Z",
        "created_by": 7,
        "metadata": {"batch_id": "3"},
    }
    done = operate(desk, "cancel", filters, reason="why")
    assert read(desk, done)["filter"] == filters
    assert done["reason"] == "why"
    assert operate(desk, "cancel")["filter"] == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"filter": {}}, "action"),
        ({"action": "cancel"}, "filter"),
        ({"action": "explode", "filter": {}}, "action"),
        ({"action": "cancel", "filter": {"colour": "red"}}, "filter.colour"),
        ({"action": "cancel", "filter": {"status": ["success"]}}, "filter.status"),
        ({"action": "retry", "filter": {"status": ["pending"]}}, "filter.status"),
        ({"action": "delete", "filter": {"status": ["pending", "running"]}}, "filter.status"),
        ({"action": "delete", "filter": {"status": "failed"}}, "filter.status"),
        ({"action": "cancel", "filter": {"status": []}}, "filter.status"),
        ({"action": "cancel", "filter": {"metadata": {"a b": 1}}}, "filter.metadata.a b"),
        ({"action": "cancel", "filter": {"metadata": {"a": [1]}}}, "filter.metadata.a"),
        ({"action": "cancel", "filter": {"metadata": {"a": "x" * 201}}}, "filter.metadata.a"),
        (
            {"action": "cancel", "filter": {"metadata": dict.fromkeys("abcdef", 1)}},
            "filter.metadata",
        ),
        ({"action": "cancel", "filter": {"created_after": "2024-01-01"}}, "filter.created_after"),
        ({"action": "cancel", "filter": {}, "reason": ""}, "reason"),
        ({"action": "cancel", "filter": {}, "dry_run": "yes"}, "dry_run"),
        ({"action": "cancel", "filter": None}, "filter"),
    ],
)
def test_what_is_wrong_is_422_and_named(desk: Desk, body: Any, field: str) -> None:
    desk.create()
    response = desk.call("POST", path(desk), json=body)
    assert response.status_code == 422
    assert response.json["errors"].keys() == {field}
    assert statuses(desk) == {"pending": 1}


def test_wrong_idempotency_key_is_422_in_a_dry_run_too(desk: Desk) -> None:
    for extra in ({}, {"dry_run": True}):
        body = {"action": "cancel", "filter": {}, **extra}
        answer = desk.call("POST", path(desk), json=body, headers={"Idempotency-Key": ""})
        assert answer.status_code == 422
        assert answer.json["errors"].keys() == {"Idempotency-Key"}


def test_delete_needs_an_owner(desk: Desk) -> None:
    member = desk.world.token(desk.world.member(desk.workspace_id, Role.MEMBER))
    body = {"action": "delete", "filter": {}}
    for extra in ({}, {"dry_run": True}):
        answer = desk.world.call("POST", path(desk), member, json=body | extra)
        assert answer.status_code == 403
        assert "owner" in answer.json["detail"]


def test_stop_of_a_delete_needs_an_owner(desk: Desk, few: int) -> None:
    member = desk.world.token(desk.world.member(desk.workspace_id, Role.MEMBER))
    for _ in range(few + 1):
        desk.job_in("failed")
    operation = operate(desk, "delete")
    url = f"{path(desk)}/{operation['operation_id']}/stop"
    assert desk.world.call("POST", url, member).status_code == 403
    assert desk.call("POST", url).status_code == 200


def test_key_bound_to_job_types_reaches_no_others(desk: Desk, few: int) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.MEMBER, job_types=["a"])
    for job_type in "ab" * (few + 1):
        desk.create(job_type=job_type)
    body = {"action": "cancel", "filter": {}}
    answer = desk.world.call("POST", path(desk), key, json=body)
    assert answer.status_code == 201
    assert answer.json["matched"] == few + 1
    assert answer.json["filter"] == {}
    go_on(desk)
    assert statuses(desk, "&job_type=a") == {"cancelled": few + 1}
    assert statuses(desk, "&job_type=b") == {"pending": few + 1}


def test_operation_in_the_background_visits_each_job_once(desk: Desk, few: int) -> None:
    ids = [desk.create(job_type="abc"[n % 3])["job_id"] for n in range(10)]
    begun = operate(desk, "cancel")
    assert (begun["status"], begun["changed"], begun["matched"]) == ("running", few, 10)
    assert begun["ended_at"] is None
    assert statuses(desk) == {"cancelled": few, "pending": 7}
    # The oldest first.
    cancelled = desk.get("?status=cancelled&order=asc").json["data"]
    assert [job["job_id"] for job in cancelled] == ids[:few]
    go_on(desk)
    done = read(desk, begun)
    assert (done["status"], done["changed"]) == ("finished", 10)
    with desk.world.transaction() as tx:
        assert set(tx.execute(select(jobs.c.version)).scalars()) == {2}


def test_operation_leaves_alone_what_comes_after_it_began(desk: Desk, few: int) -> None:
    for _ in range(few + 2):
        desk.create()
    begun = operate(desk, "cancel")
    later = desk.create()
    go_on(desk)
    assert read(desk, begun)["changed"] == few + 2
    assert desk.get(f"/{later['job_id']}").json["status"] == "pending"


def test_retried_jobs_that_fail_again_are_not_retried_twice(desk: Desk, few: int) -> None:
    for _ in range(few + 1):
        desk.job_in("failed")
    begun = operate(desk, "retry")
    for job in desk.claim(limit=few):
        desk.report(job, status="failed", retryable=False)
    go_on(desk)
    assert read(desk, begun)["changed"] == few + 1
    assert statuses(desk) == {"failed": few, "pending": 1}


def test_job_that_is_claimed_meanwhile_is_cancelled_all_the_same(desk: Desk, few: int) -> None:
    for _ in range(few + 2):
        desk.create(job_type="a")
    begun = operate(desk, "cancel")
    # Of this kind there was none when it began.
    assert len(desk.claim(limit=9)) == 2
    go_on(desk)
    assert read(desk, begun)["changed"] == few + 2
    assert statuses(desk) == {"cancelled": few + 2}


def test_job_that_does_not_match_any_more_is_left_alone(desk: Desk, few: int) -> None:
    ids = [desk.create(metadata={"batch": 1})["job_id"] for _ in range(few + 2)]
    begun = operate(desk, "cancel", {"metadata": {"batch": 1}})
    desk.patch(ids[-1], {"metadata": {"batch": 2}})
    go_on(desk)
    done = read(desk, begun)
    assert (done["status"], done["matched"], done["changed"]) == ("finished", few + 2, few + 1)
    assert desk.get(f"/{ids[-1]}").json["status"] == "pending"


def test_stopped_operation_stays_where_it_is(desk: Desk, few: int) -> None:
    for _ in range(few + 3):
        desk.create()
    begun = operate(desk, "cancel")
    url = f"{path(desk)}/{begun['operation_id']}/stop"
    stopped = desk.call("POST", url)
    assert stopped.status_code == 200
    assert (stopped.json["status"], stopped.json["changed"]) == ("stopped", few)
    assert stopped.json["ended_at"] is not None
    go_on(desk)
    assert statuses(desk) == {"cancelled": few, "pending": 3}
    again = desk.call("POST", url)
    assert again.status_code == 409
    assert again.json["type"].endswith(":operation-ended")


def test_operation_that_cannot_be_done_to_a_job_skips_it(desk: Desk) -> None:
    """A result as large as it may be has no room for a reason."""
    full, other = desk.create(), desk.create()
    desk.patch(full["job_id"], {"status": "running"})
    with desk.world.transaction() as tx:
        where = jobs.c.job_id == full["job_id"]
        tx.execute(update(jobs).where(where).values(result={"x": "x" * (1024 * 1024 - 10)}))
    done = operate(desk, "cancel")
    assert (done["status"], done["changed"], done["skipped"]) == ("finished", 1, 1)
    assert desk.get(f"/{other['job_id']}").json["status"] == "cancelled"


def test_unknown_operation_is_404(desk: Desk) -> None:
    other = Desk(desk.world)
    theirs = operate(other, "cancel")["operation_id"]
    for wanted in ("999", "0", "x", str(theirs)):
        for method, tail in (("GET", ""), ("POST", "/stop")):
            response = desk.call(method, f"{path(desk)}/{wanted}{tail}")
            assert response.status_code == 404
            assert response.json["type"].endswith(":operation-not-found")


def test_list_operations_has_the_newest_first(desk: Desk) -> None:
    made = [operate(desk, "cancel")["operation_id"] for _ in range(3)]
    operate(Desk(desk.world), "cancel")
    first = desk.call("GET", f"{path(desk)}?limit=2").json
    assert [o["operation_id"] for o in first["data"]] == made[:0:-1]
    assert first["pagination"]["total"] == 3
    cursor = first["pagination"]["next_cursor"]
    rest = desk.call("GET", f"{path(desk)}?limit=2&cursor={cursor}").json
    assert [o["operation_id"] for o in rest["data"]] == made[:1]
    assert rest["pagination"]["next_cursor"] is None


def test_repeated_request_with_a_key_is_one_operation(desk: Desk) -> None:
    desk.create()
    body = {"action": "cancel", "filter": {}}
    answers = [
        desk.call("POST", path(desk), json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].json == answers[1].json
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert desk.call("GET", path(desk)).json["pagination"]["total"] == 1
    where = answers[0].headers["Location"]
    assert desk.call("GET", where).json == answers[0].json


def test_operations_are_forgotten_long_after_their_end(desk: Desk, few: int) -> None:
    for _ in range(few + 1):
        desk.create()
    running, ended = operate(desk, "cancel"), operate(desk, "retry", {"job_type": ["none"]})
    with desk.world.transaction() as tx:
        long_ago = datetime.now(UTC) - timedelta(days=operations.KEPT_DAYS + 1)
        tx.execute(update(table).values(created_at=long_ago, updated_at=long_ago))
        tx.execute(update(table).where(table.c.ended_at.is_not(None)).values(ended_at=long_ago))
    desk.world.maintain("old operations")
    left = [o["operation_id"] for o in desk.call("GET", path(desk)).json["data"]]
    assert left == [running["operation_id"]] != [ended["operation_id"]]


def test_operation_after_a_failure_resumes_there(
    desk: Desk, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(few * 3):
        desk.create()
    begun = operate(desk, "cancel")

    def fail(*args: Any) -> Any:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(operations.Settling, "settle", fail)
        go_on(desk)
    stays = read(desk, begun)
    assert (stays["status"], stays["changed"]) == ("running", few)
    go_on(desk)
    assert read(desk, begun)["changed"] == few * 3


def test_operation_that_always_fails_keeps_no_other_from_its_turn(
    desk: Desk, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_type in "ab" * few * 2:
        desk.create(job_type=job_type)
    wrong, right = (operate(desk, "cancel", {"job_type": [t]}) for t in "ab")
    advance = operations.advance

    def fail(session: Any, operation_id: int) -> Any:
        if operation_id == wrong["operation_id"]:
            raise RuntimeError("always")
        return advance(session, operation_id)

    monkeypatch.setattr(operations, "advance", fail)
    for _ in range(5):
        go_on(desk)
    assert read(desk, right)["status"] == "finished"
    assert read(desk, wrong)["status"] == "running"


def test_many_runners_share_operations_without_doing_anything_twice(desk: Desk, few: int) -> None:
    desk.post("/batch", json={"jobs": [{"job_type": t} for t in "abcd" * 25]})
    begun = [operate(desk, "cancel", {"job_type": [t]}) for t in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(go_on, desk) for _ in range(4)]:
            future.result()
    go_on(desk)
    done = [read(desk, operation) for operation in begun]
    assert [o["status"] for o in done] == ["finished"] * 4
    assert sum(o["changed"] for o in done) == 100
    with desk.world.transaction() as tx:
        assert set(tx.execute(select(jobs.c.version)).scalars()) == {2}


def test_claims_and_reports_go_on_while_an_operation_runs(desk: Desk, few: int) -> None:
    """Deadlocks would be errors here: all of them lock many jobs at once."""
    desk.post("/batch", json={"jobs": [{"job_type": t} for t in "ab" * 100]})
    operate(desk, "cancel", {"job_type": ["b"]})
    headers = {"Authorization": f"Bearer {desk.token}"}

    def work(_: int) -> int:
        client = desk.world.app.test_client()
        ended = 0
        while True:
            answer = client.post(f"{desk.jobs_path}/claim", json={"limit": 7}, headers=headers)
            assert answer.status_code == 200, answer.text
            held = answer.json["data"]
            if not held:
                return ended
            reports = [
                {k: job[k] for k in ("job_id", "lease_token")} | {"status": "success"}
                for job in reversed(held)
            ]
            answer = client.post(
                f"{desk.jobs_path}/report", json={"reports": reports}, headers=headers
            )
            assert answer.status_code == 200, answer.text
            ended += sum(a["accepted"] for a in answer.json["data"])

    with ThreadPoolExecutor(4) as pool:
        operated = pool.submit(go_on, desk)
        ended = sum(pool.map(work, range(3)))
        operated.result()
    left = {
        status: desk.get(f"?status={status}&limit=1").json["pagination"]["total"]
        for status in STATUSES
    }
    assert left["success"] == ended
    assert left["success"] + left["cancelled"] == 200
    assert left["success"] >= 100


def test_walk_with_more_kinds_than_ranges_finds_all_jobs(
    desk: Desk, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobapi.services.job_list_plans.MAX_MERGED", 1)
    desk.post("/batch", json={"jobs": [{"job_type": t} for t in "abcdefgh"]})
    begun = operate(desk, "cancel")
    go_on(desk)
    assert read(desk, begun)["changed"] == 8


def test_host_can_operate_in_its_own_transaction(desk: Desk) -> None:
    desk.create()
    with desk.world.transaction() as tx:
        row = operations.create(
            tx, desk.workspace_id, Action.CANCEL, Filters(), created_by=desk.user.id
        )
    assert row.changed == 1
    assert statuses(desk) == {"cancelled": 1}


def test_key_for_some_job_types_sees_and_stops_its_own_operations_alone(
    desk: Desk, few: int
) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.MEMBER, job_types=["b"])
    for _ in range(few + 1):
        desk.create(job_type="a")
        desk.create(job_type="b")
    theirs = operate(desk, "cancel", {"job_type": ["a"]})
    url = f"{path(desk)}/{theirs['operation_id']}"
    mine = desk.world.call("POST", path(desk), key, json={"action": "cancel", "filter": {}}).json
    assert mine["matched"] == few + 1
    assert desk.world.call("GET", url, key).status_code == 404
    assert desk.world.call("POST", f"{url}/stop", key).status_code == 404
    seen = desk.world.call("GET", path(desk), key).json
    assert [each["operation_id"] for each in seen["data"]] == [mine["operation_id"]]
    assert seen["pagination"]["total"] == 1
    stop = f"{path(desk)}/{mine['operation_id']}/stop"
    assert desk.world.call("POST", stop, key).json["status"] == "stopped"
    assert desk.call("GET", url).json["status"] == "running"
