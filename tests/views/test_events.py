"""Events: what is recorded for each change, and lists of events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from jobapi import jobs as verbs
from jobapi.background import periodic_tasks
from jobapi.rules.jobs import JobEdit, JobStatus
from jobapi.rules.roles import Role
from jobapi.services import events
from jobapi.store.tables import events as table
from jobapi.store.tables import jobs

from ..factories import Desk


def listed(desk: Desk, query: str = "", token: str | None = None) -> list[dict[str, Any]]:
    path = f"/workspace/{desk.workspace_id}/events?limit=100&{query}"
    response = desk.world.call("GET", path, token or desk.token)
    assert response.status_code == 200, response.text
    return list(response.json["data"])


def history(desk: Desk, job: Any) -> list[dict[str, Any]]:
    return list(desk.get(f"/{job['job_id']}/events").json["data"])


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in found]


def test_history_of_a_job_by_its_worker(desk: Desk) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.WORKER)
    job = desk.create(job_type="a", max_retries=1)
    path = f"{desk.jobs_path}/claim"
    (claimed,) = desk.world.call("POST", path, key, json={"worker": "w1"}).json["data"]
    desk.report(claimed, progress_percent=5)
    desk.report(claimed, progress_percent=15, progress_message="on")
    desk.report(claimed)
    desk.report(claimed, status="failed", error="broken", retry_after=0)
    (again,) = desk.claim(worker="w2")
    desk.report(again, status="success", result={"n": 1})
    found = history(desk, job)
    assert kinds(found) == ["created", "claimed", "progressed", "retried", "claimed", "succeeded"]
    assert [(e["from_status"], e["to_status"]) for e in found] == [
        (None, "pending"),
        ("pending", "running"),
        ("running", "running"),
        ("running", "pending"),
        ("pending", "running"),
        ("running", "success"),
    ]
    assert [e["attempt"] for e in found] == [None, 1, 1, 1, 2, 2]
    assert [e["worker"] for e in found] == [None, "w1", "w1", "w1", "w2", "w2"]
    assert [e["user_id"] for e in found] == [desk.user.id, None] + [desk.user.id] * 4
    assert [e["key_id"] for e in found] == [None, 1] + [None] * 4
    assert found[2]["data"] == {"progress_percent": 15, "progress_message": "on"}
    assert found[3]["data"] == {"error": "broken"}
    assert {e["job_id"] for e in found} == {job["job_id"]}
    assert {e["job_type"] for e in found} == {"a"}
    assert found == [event for event in listed(desk, "order=asc") if event["job_id"]]


def test_history_of_a_job_by_hand(desk: Desk) -> None:
    job = desk.create()
    job_id = job["job_id"]
    desk.patch(job_id, {"priority": "high", "metadata": {"x": 1}})
    desk.patch(job_id, {"priority": "high"})
    desk.patch(job_id, {"status": "running"})
    desk.patch(job_id, {"progress_percent": 50})
    desk.post(f"/{job_id}/cancel", json={"reason": "no"})
    desk.post(f"/{job_id}/retry", json={"reason": "yes"})
    desk.patch(job_id, {"status": "failed", "error": "x" * 3000})
    assert desk.call("DELETE", f"{desk.jobs_path}/{job_id}").status_code == 204
    assert desk.get(f"/{job_id}/events").status_code == 404
    found = listed(desk, f"job_id={job_id}&order=asc")
    assert kinds(found) == [
        *("created", "edited", "started", "progressed"),
        *("cancelled", "retried", "failed", "deleted"),
    ]
    assert found[1]["data"] == {"fields": "priority metadata"}
    assert found[2]["data"] is None
    assert found[3]["data"] == {"progress_percent": 50, "progress_message": None}
    assert found[4]["data"] == {"reason": "no"}
    assert found[5]["data"] == {"reason": "yes"}
    assert found[6]["data"] == {"error": "x" * 1000}
    assert (found[7]["from_status"], found[7]["to_status"]) == ("failed", None)


@pytest.mark.parametrize(
    ("change", "kind", "data"),
    [
        ({"status": "running"}, "started", {}),
        ({"status": "success"}, "succeeded", {}),
        ({"status": "failed", "error": "e"}, "failed", {"error": "e"}),
        ({"status": "cancelled"}, "cancelled", {"reason": "Cancelled via API"}),
    ],
)
def test_edit_that_also_changes_the_status_is_noted_with_it(
    desk: Desk, change: Any, kind: str, data: Any
) -> None:
    job = desk.create()
    desk.patch(job["job_id"], {"priority": "high", "max_retries": 9, **change})
    found = history(desk, job)
    assert kinds(found) == ["created", kind]
    assert found[1]["data"] == {**data, "fields": "priority max_retries"}


@pytest.mark.parametrize("reason", ["x" * 3000, 5, True, {"a": 1}, "\u2028'\"\\"])
def test_reason_of_a_cancel_by_edit_is_a_text_and_not_too_long(desk: Desk, reason: Any) -> None:
    job = desk.create()
    body = {"status": "cancelled", "result": {"cancelled_reason": reason}}
    assert desk.patch(job["job_id"], body).status_code == 200
    wanted = reason[:1000] if isinstance(reason, str) else None
    assert history(desk, job)[1]["data"] == {"reason": wanted}


def test_change_by_the_service_has_no_actor(desk: Desk) -> None:
    job = desk.create(max_retries=1, timeout_seconds=5)
    (claimed,) = desk.claim()
    desk.shift(claimed, 3600)
    assert desk.reap() == 1
    desk.shift(job, 3600)
    (claimed,) = desk.claim()
    desk.report(claimed, status="pending")
    (claimed,) = desk.claim(lease_seconds=3600)
    desk.shift(claimed, 10)
    assert desk.reap() == 1
    found = history(desk, job)
    assert kinds(found) == [
        *("created", "claimed", "timed_out", "claimed", "released", "claimed", "timed_out")
    ]
    for event in (found[2], found[6]):
        assert (event["user_id"], event["key_id"]) == (None, None)
        assert event["data"] == {"error": "timed out"}
    assert (found[2]["to_status"], found[6]["to_status"]) == ("pending", "failed")


def test_error_that_reads_lease_expired_is_a_failure(desk: Desk) -> None:
    job = desk.create(max_retries=2)
    (claimed,) = desk.claim()
    desk.report(claimed, status="failed", error="lease expired", retry_after=0)
    (claimed,) = desk.claim()
    desk.shift(claimed, 100)
    desk.reap()
    assert kinds(history(desk, job))[2:] == ["retried", "claimed", "lease_expired"]


@pytest.mark.parametrize("error", ["lease expired", "timed out"])
def test_edit_to_failed_with_the_text_of_an_expiry_is_a_failure(desk: Desk, error: str) -> None:
    job = desk.create()
    with desk.world.transaction() as tx:
        verbs.edit(tx, desk.workspace_id, job["job_id"], {"status": JobStatus.RUNNING})
        failed: JobEdit = {"status": JobStatus.FAILED, "error": error}
        verbs.edit(tx, desk.workspace_id, job["job_id"], failed)
    found = history(desk, job)
    assert kinds(found) == ["created", "started", "failed"]
    assert found[2]["data"] == {"error": error}
    assert [attempt["outcome"] for attempt in desk.attempts(job)] == ["failed"]


END = datetime(2024, 1, 15, tzinfo=UTC)
OLD_CHANGES: list[tuple[str, dict[str, Any], str | None, dict[str, Any] | None]] = [
    ("pending", {"priority": 3, "retry_count": 1}, "edited", {"fields": "priority"}),
    ("pending", {"priority": 1}, None, None),
    ("running", {"progress_percent": 25}, "progressed", {"progress_percent": 25}),
    ("running", {"progress_percent": 5}, None, None),
    ("running", {"status": 2, "completed_at": END}, "succeeded", None),
    ("running", {"status": 3, "completed_at": END, "error": "e"}, "failed", {"error": "e"}),
    (
        "running",
        {"status": 0, "started_at": None, "error": "lease expired", "changed_by": None},
        "lease_expired",
        {"error": "lease expired"},
    ),
    ("failed", {"status": 0, "started_at": None, "completed_at": None}, "released", None),
]


@pytest.mark.parametrize(("status", "values", "kind", "data"), OLD_CHANGES)
def test_change_by_the_release_before_is_noted_by_its_columns(
    desk: Desk, status: str, values: Any, kind: str | None, data: Any
) -> None:
    """It writes none of the columns that say which event a change is."""
    job = desk.job_in(status, priority="low" if values.get("priority") == 3 else "normal")
    before = len(history(desk, job))
    with desk.world.transaction() as tx:
        changed = {"actual_duration": None, **values, "version": jobs.c.version + 1}
        tx.execute(update(jobs).where(jobs.c.job_id == job["job_id"]).values(changed))
    noted = history(desk, job)[before:]
    assert kinds(noted) == [kind] * (kind is not None)
    for event in noted:
        assert (event["data"] or {}).items() >= (data or {}).items()


def test_operation_changes_jobs_as_its_creator(desk: Desk) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.MEMBER)
    path = f"/workspace/{desk.workspace_id}/operations"
    desk.create()
    for action in ("cancel", "retry"):
        desk.world.call("POST", path, key, json={"action": action, "filter": {}})
    found = listed(desk, "order=asc")
    assert kinds(found) == ["key_created", "created", "cancelled", "retried"]
    assert {(event["user_id"], event["key_id"]) for event in found[2:]} == {(None, 1)}


def test_batches_and_operations_note_each_job(desk: Desk) -> None:
    desk.post("/batch", json={"jobs": [{"job_type": "a"}] * 3})
    path = f"/workspace/{desk.workspace_id}/operations"
    for action in ("cancel", "delete"):
        desk.call("POST", path, json={"action": action, "filter": {}})
    found = listed(desk, "order=asc")
    assert kinds(found) == ["created"] * 3 + ["cancelled"] * 3 + ["deleted"] * 3
    assert {event["user_id"] for event in found} == {desk.user.id}


def test_rolled_back_changes_never_happened(desk: Desk) -> None:
    body = {"jobs": [{"job_type": "a"}, {"job_type": ""}]}
    assert desk.post("/batch", json=body).status_code == 422
    assert listed(desk) == []


def test_members_keys_and_settings_are_noted_for_owners(desk: Desk) -> None:
    base = f"/workspace/{desk.workspace_id}"
    anna = desk.world.user("anna")
    desk.call("POST", f"{base}/members", json={"username": "anna", "role": "viewer"})
    desk.call("PATCH", f"{base}/members/{anna.id}", json={"role": "member"})
    key = desk.call("POST", f"{base}/keys", json={"name": "ci", "role": "worker"}).json
    desk.call("DELETE", f"{base}/keys/{key['key_id']}")
    desk.call("PATCH", base, json={"name": "New", "retention": {"events": 5}})
    # A change to the same value writes no event.
    desk.call("PATCH", f"{base}/members/{anna.id}", json={"role": "member"})
    desk.call("PATCH", base, json={"name": "New", "retention": {"events": 5, "failed": None}})
    viewer = desk.world.token(anna)
    assert listed(desk, token=viewer) == []
    desk.call("DELETE", f"{base}/members/{anna.id}")
    found = listed(desk, "order=asc")
    assert kinds(found) == [
        *("member_added", "member_changed", "key_created", "key_revoked", "workspace_changed"),
        "member_removed",
    ]
    assert found[0]["data"] == {"user_id": anna.id, "username": "anna", "role": "viewer"}
    assert found[1]["data"]["role"] == "member"
    assert found[2]["data"] == {"key_id": key["key_id"], "name": "ci", "role": "worker"}
    assert found[4]["data"] == {"name": "New", "retention": {"events": 5}}
    assert {event["job_id"] for event in found} == {None}
    assert "jk_" not in str(found)
    assert key["key"] not in str(found)


def test_list_events_filters_and_pages(desk: Desk) -> None:
    Desk(desk.world).create()
    for job_type in "abab":
        desk.job_in("cancelled", job_type=job_type)
    assert len(listed(desk)) == 8
    assert kinds(listed(desk, "kind=created&job_type=a")) == ["created"] * 2
    assert len(listed(desk, "kind=created&kind=cancelled&job_type=a&job_type=b")) == 8
    path = f"/workspace/{desk.workspace_id}/events?limit=3&order="
    for order in ("asc", "desc"):
        seen: list[Any] = []
        cursor = ""
        while True:
            page = desk.call("GET", f"{path}{order}{cursor}").json
            assert page["pagination"]["total"] == 8
            assert page["pagination"]["total_is_capped"] is False
            seen += page["data"]
            if page["pagination"]["next_cursor"] is None:
                break
            cursor = f"&cursor={page['pagination']['next_cursor']}"
        assert seen == listed(desk, f"order={order}")
    job_id = seen[0]["job_id"]
    first = desk.call("GET", f"{path}asc&job_id={job_id}&limit=1".replace("limit=3&", "")).json
    cursor = first["pagination"]["next_cursor"]
    rest = desk.get(f"/{job_id}/events?cursor={cursor}").json["data"]
    assert kinds(first["data"] + rest) == ["created", "cancelled"]


def test_page_of_events_with_few_matches_stops_with_a_cursor(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOKED_AT", 4)
    first = desk.job_in("cancelled")  # two events, and then eight of others
    for _ in range(8):
        desk.create()
    path = f"/workspace/{desk.workspace_id}/events?kind=cancelled"
    pages, cursor = [], ""
    while cursor is not None:
        page = desk.call("GET", path + (f"&cursor={cursor}" if cursor else "")).json
        cursor = page["pagination"]["next_cursor"]
        pages.append([event["job_id"] for event in page["data"]])
        assert (page["pagination"]["total"], page["pagination"]["total_is_capped"]) == (0, True)
    assert pages == [[], [], [first["job_id"]]]
    oldest = desk.call("GET", f"{path}&order=asc").json
    assert [event["job_id"] for event in oldest["data"]] == [first["job_id"]]
    assert oldest["pagination"]["total"] == 1
    history = desk.get(f"/{first['job_id']}/events").json
    assert history["pagination"] == {
        **{"limit": 100, "total": 2, "total_is_capped": False, "next_cursor": None}
    }
    assert len(listed(desk)) == 4


@pytest.mark.parametrize("query", ["kind=x", "cursor=x", "limit=0", "order=up", "page=1"])
def test_list_events_with_a_wrong_query_is_422(desk: Desk, query: str) -> None:
    path = f"/workspace/{desk.workspace_id}/events?{query}"
    assert desk.call("GET", path).status_code == 422


def test_key_bound_to_job_types_sees_their_events_alone(desk: Desk) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["a"])
    jobs = [desk.create(job_type=job_type) for job_type in "ab"]
    assert [event["job_type"] for event in listed(desk, token=key)] == ["a"]
    url = f"{desk.jobs_path}/{jobs[1]['job_id']}/events"
    assert desk.world.call("GET", url, key).status_code == 404


def test_events_are_kept_as_long_as_the_workspace_says(desk: Desk) -> None:
    other = Desk(desk.world)
    for each in (desk, other):
        for _ in range(5):
            each.create()
    other.call("PATCH", f"/workspace/{other.workspace_id}", json={"retention": {"events": None}})
    with desk.world.transaction() as tx:
        old = select(table.c.id).order_by(table.c.id).limit(4)
        long_ago = datetime.now(UTC) - timedelta(days=31)
        tx.execute(update(table).where(table.c.id.in_(old)).values(at=long_ago))
        tx.execute(
            update(table).where(table.c.workspace_id == other.workspace_id).values(at=long_ago)
        )
    with desk.world.state.engine.connect() as connection:
        for more in (True, True, False):
            step = periodic_tasks.delete_old_events(connection, desk.workspace_id, limit=2)
            assert step is more
        assert not periodic_tasks.delete_old_events(connection, other.workspace_id)
    assert len(listed(desk)) == 1
    assert len(listed(other)) == 6


def test_event_with_a_time_in_the_future_does_not_block_deletion(desk: Desk) -> None:
    for _ in range(5):
        desk.create()
    with desk.world.transaction() as tx:
        now = datetime.now(UTC)
        tx.execute(update(table).values(at=now - timedelta(days=31)))
        first = select(table.c.id).order_by(table.c.id).limit(1).scalar_subquery()
        tx.execute(update(table).where(table.c.id == first).values(at=now + timedelta(days=900)))
    desk.world.maintain("old events")
    assert len(listed(desk)) == 1


def test_after_a_restore_events_keep_their_order_among_themselves(desk: Desk) -> None:
    if desk.world.state.engine.dialect.name == "sqlite":
        return  # all of its events have the number 0
    for job_type in "abcd":
        desk.create(job_type=job_type)
    with desk.world.transaction() as tx:
        for job_type, xid in (("a", 1), ("b", 2), ("c", 2**60), ("d", 2**60 + 1)):
            tx.execute(update(table).where(table.c.job_type == job_type).values(xid=xid))
        events.put_restored_first(tx)
    desk.create(job_type="e")
    assert [event["job_type"] for event in listed(desk, "order=asc")] == list("abcde")


@pytest.mark.parametrize(
    ("actor", "wanted"),
    [("user:7", (7, None)), ("key:7", (None, 7)), ("user:bob", (None, None)), ("x", (None, None))],
)
def test_list_event_of_any_actor_of_a_host_succeeds(desk: Desk, actor: str, wanted: Any) -> None:
    desk.create()
    with desk.world.transaction() as tx:
        tx.execute(update(table).values(actor=actor))
    (event,) = listed(desk)
    assert (event["user_id"], event["key_id"]) == wanted


def test_after_a_restore_into_another_server_old_events_come_first(desk: Desk) -> None:
    desk.create()
    with desk.world.transaction() as tx:
        tx.execute(update(table).values(xid=2**60))
    desk.create(job_type="newer")
    with desk.world.transaction() as tx:
        events.put_restored_first(tx)
        if tx.dialect.name == "sqlite":
            tx.execute(update(table).values(xid=0))
    assert [event["job_type"] for event in listed(desk)] == ["newer", "data_analysis"]
