"""Failed jobs by their causes, and the lists and operations that filter by them."""

from __future__ import annotations

from typing import Any

import pytest

from jobapi.rules.causes import group
from jobapi.rules.roles import Role
from jobapi.services import job_errors

from ..factories import Desk, World


def fail(desk: Desk, *errors: str, **body: Any) -> list[dict[str, Any]]:
    """Jobs that have failed with these errors, in this order."""
    for _ in errors:
        desk.create(**body)
    failed = []
    for error in errors:
        (job,) = desk.claim()
        assert desk.report(job, status="failed", error=error, retryable=False)["accepted"]
        failed.append(desk.get(f"/{job['job_id']}").json)
    return failed


def listed(desk: Desk, query: str) -> Any:
    response = desk.get(f"?{query}")
    assert response.status_code == 200, response.text
    return response.json


def light(desk: Desk, job: Any) -> Any:
    (found,) = listed(desk, f"light=true&job_id={job['job_id']}")["data"]
    return found


def errors(desk: Desk, query: str = "") -> Any:
    response = desk.get(f"/errors?{query}")
    assert response.status_code == 200, response.text
    return response.json


def test_list_errors_groups_failed_jobs_by_type_and_cause(desk: Desk) -> None:
    rows = fail(desk, "bad row 1", "bad row 2", "bad row 3", "bad row 4", job_type="etl")
    fail(desk, "KeyError: 'a'", job_type="etl")
    fail(desk, "bad row 9", job_type="mail")
    desk.job_in("success")
    desk.job_in("cancelled")
    found = errors(desk)
    assert found["is_capped"] is False
    first, *rest = found["data"]
    assert first == {
        "job_type": "etl",
        "error_group": group("bad row 7"),
        "cause": "bad row 4",
        "count": 4,
        "count_is_capped": False,
        "first_failed_at": rows[0]["completed_at"],
        "last_failed_at": rows[3]["completed_at"],
        "job_ids": [job["job_id"] for job in rows[:0:-1]],
    }
    assert {(each["job_type"], each["cause"], each["count"]) for each in rest} == {
        ("etl", "KeyError: 'a'", 1),
        ("mail", "bad row 9", 1),
    }
    assert [each["job_type"] for each in errors(desk, "job_type=mail")["data"]] == ["mail"]
    assert errors(desk, "job_type=none") == {"data": [], "is_capped": False}
    assert errors(desk, "limit=1") == {"data": [first], "is_capped": True}


def test_list_errors_shows_only_jobs_that_are_failed_now(desk: Desk) -> None:
    (job,) = fail(desk, "bad row 1")
    assert len(errors(desk)["data"]) == 1
    desk.post(f"/{job['job_id']}/retry")
    assert errors(desk)["data"] == []
    assert light(desk, job)["error_group"] is None


def test_every_way_to_fail_has_a_group(desk: Desk) -> None:
    edited = desk.create()
    assert desk.patch(edited["job_id"], {"status": "failed", "error": "by hand"}).status_code == 200
    desk.create(max_retries=0)
    (expired,) = desk.claim()
    desk.shift(expired, 120)
    assert desk.reap() == 1
    silent = desk.create()
    assert desk.patch(silent["job_id"], {"status": "failed"}).status_code == 200
    causes = {each["cause"] for each in errors(desk)["data"]}
    assert causes == {"by hand", "lease expired"}
    assert light(desk, expired)["error_group"] == group("lease expired")
    assert light(desk, silent)["error_group"] is None


def test_light_list_shows_the_cause_of_an_error_and_the_worker(desk: Desk) -> None:
    pending = light(desk, desk.create())
    assert (pending["error_cause"], pending["error_group"], pending["worker"]) == (None,) * 3
    (job,) = desk.claim(worker="w-1")
    assert light(desk, job)["worker"] == "w-1"
    desk.report(job, status="failed", error="Traceback:\n  File x\nKeyError: 'a'", retryable=False)
    shown = light(desk, job)
    assert shown["error_cause"] == "KeyError: 'a'"
    assert shown["error_group"] == group("KeyError: 'b'")
    assert shown["worker"] is None


def test_success_after_a_failed_attempt_has_no_group(desk: Desk) -> None:
    desk.create()
    (job,) = desk.claim()
    desk.report(job, status="failed", error="boom", retry_after=0)
    assert light(desk, job)["error_group"] == group("boom")
    (job,) = desk.claim()
    desk.report(job, status="success")
    ended = light(desk, job)
    assert (ended["error"], ended["error_cause"], ended["error_group"]) == (None, None, None)


def test_filter_by_error_group_and_text_finds_failed_jobs(desk: Desk) -> None:
    one, two = fail(desk, "bad row 1", "bad row 2")
    (other,) = fail(desk, "Traceback 100%_\nKeyError: 'x'")

    def ids(query: str) -> set[str]:
        return {job["job_id"] for job in listed(desk, query)["data"]}

    wanted = group("bad row 3")
    assert ids(f"error_group={wanted}") == {one["job_id"], two["job_id"]}
    assert listed(desk, f"error_group={wanted}&limit=1")["pagination"]["total"] == 2
    assert ids(f"error_group={wanted}&status=success") == set()
    assert ids(f"error_group={wanted}&error_group={group('KeyError')}") == ids(
        f"error_group={wanted}"
    )
    assert ids("error=BAD%20ROW") == {one["job_id"], two["job_id"]}
    assert ids("error=traceback%20100%25_") == {other["job_id"]}
    assert ids("error=1__") == set()
    page = listed(desk, f"error_group={wanted}&limit=1&light=true")
    rest = listed(desk, f"error_group={wanted}&limit=1&cursor={page['pagination']['next_cursor']}")
    assert [job["job_id"] for job in page["data"] + rest["data"]] == [two["job_id"], one["job_id"]]


def test_filter_by_job_id_finds_these_jobs_in_any_order(desk: Desk) -> None:
    one, two, three = (desk.create() for _ in range(3))
    query = f"job_id={one['job_id']}&job_id={three['job_id']}&job_id=job_unknown"
    found = listed(desk, query)
    assert [job["job_id"] for job in found["data"]] == [three["job_id"], one["job_id"]]
    assert found["pagination"]["total"] == 2
    assert listed(desk, f"{query}&order=asc&light=true")["data"][0]["job_id"] == one["job_id"]
    assert listed(desk, f"{query}&status=failed")["data"] == []
    for wrong in ("x", "job_", "job_" + "x" * 37, "job_%00", "job_é"):
        assert desk.get(f"?job_id={wrong}").status_code == 422
    assert two["job_id"] not in str(found)


def test_errors_and_filters_stay_in_their_workspace(desk: Desk) -> None:
    (job,) = fail(desk, "boom")
    other = Desk(desk.world)
    fail(other, "boom", "boom")
    assert [each["count"] for each in errors(desk)["data"]] == [1]
    assert errors(desk)["data"][0]["job_ids"] == [job["job_id"]]
    assert listed(other, f"job_id={job['job_id']}")["data"] == []
    assert listed(other, f"error_group={group('boom')}")["pagination"]["total"] == 2


def test_key_for_some_types_sees_only_their_errors(desk: Desk, world: World) -> None:
    fail(desk, "boom", job_type="etl")
    fail(desk, "boom", job_type="mail")
    key = world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["mail"])
    path = f"/workspace/{desk.workspace_id}/jobs/errors"
    found = world.call("GET", path, key).json["data"]
    assert [each["job_type"] for each in found] == ["mail"]
    assert world.call("GET", f"{path}?job_type=etl", key).status_code == 403


def test_operation_by_error_group_retries_the_whole_group(desk: Desk) -> None:
    fail(desk, *(f"bad row {n}" for n in range(5)), "other")
    body = {
        "action": "retry",
        "filter": {"status": ["failed"], "error_group": [group("bad row 1")]},
    }
    path = f"/workspace/{desk.workspace_id}/operations"
    assert desk.call("POST", path, json={**body, "dry_run": True}).json["matched"] == 5
    operation = desk.call("POST", path, json=body).json
    assert (operation["status"], operation["changed"]) == ("finished", 5)
    assert operation["filter"]["error_group"] == [group("bad row 1")]
    assert [each["cause"] for each in errors(desk)["data"]] == ["other"]


def test_operation_by_job_ids_changes_these_jobs(desk: Desk) -> None:
    one, two, three = (desk.create() for _ in range(3))
    body = {"action": "cancel", "filter": {"job_id": [one["job_id"], three["job_id"]]}}
    operation = desk.call("POST", f"/workspace/{desk.workspace_id}/operations", json=body).json
    assert operation["changed"] == 2
    assert desk.get(f"/{two['job_id']}").json["status"] == "pending"


def test_sort_by_start_takes_running_jobs_only(desk: Desk) -> None:
    for _ in range(3):
        desk.create()
    started = [desk.claim()[0] for _ in range(3)]
    for n, job in enumerate(started):
        desk.shift(job, 60 * (3 - n))
    ids = [job["job_id"] for job in started]
    for query, expected in (
        ("order=asc", ids),
        ("order=desc", ids[::-1]),
        ("order=asc&page=2&limit=2", ids[2:]),
        ("order=asc&created_by=1&limit=1", ids[:1]),
    ):
        found = listed(desk, f"status=running&sort=started_at&{query}")
        assert [job["job_id"] for job in found["data"]] == expected
        assert found["pagination"]["total"] == 3
    page = listed(desk, "status=running&sort=started_at&order=asc&limit=2")
    cursor = page["pagination"]["next_cursor"]
    rest = listed(desk, f"status=running&sort=started_at&order=asc&cursor={cursor}")
    assert [job["job_id"] for job in rest["data"]] == ids[2:]
    for query in ("", "status=pending", "status=running&status=failed"):
        response = desk.get(f"?sort=started_at&{query}")
        assert response.status_code == 422
        assert "status=running" in response.json["errors"]["sort"][0]


def test_light_list_shows_progress_and_is_304_while_unchanged(desk: Desk) -> None:
    desk.create()
    (job,) = desk.claim()
    desk.report(job, progress_percent=40, progress_message="Rows")
    first = desk.get("?light=true")
    (shown,) = first.json["data"]
    assert (shown["progress_percent"], shown["progress_message"]) == (40, "Rows")
    unchanged = {"If-None-Match": first.headers["ETag"]}
    again = desk.get("?light=true", headers=unchanged)
    assert (again.status_code, again.data) == (304, b"")
    desk.report(job, progress_percent=41)
    changed = desk.get("?light=true", headers=unchanged)
    assert changed.json["data"][0]["progress_percent"] == 41
    assert "ETag" not in desk.get("").headers


def test_workspaces_with_counts_say_how_many_jobs_wait_run_and_have_failed(desk: Desk) -> None:
    for status in ("pending", "pending", "running", "failed", "success"):
        desk.job_in(status, job_type="etl")
    empty = desk.world.workspace(desk.user)
    found = desk.call("GET", "/workspace?counts=true").json["data"]
    counts = {each["workspace_id"]: each["counts"] for each in found}
    assert counts == {
        desk.workspace_id: {"pending": 2, "running": 1, "failed": 1},
        empty: {"pending": 0, "running": 0, "failed": 0},
    }
    assert "counts" not in desk.call("GET", "/workspace").json["data"][0]
    world = desk.world
    key = world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["mail"])
    (mine,) = world.call("GET", "/workspace?counts=true", key).json["data"]
    assert mine["counts"] == {"pending": 0, "running": 0, "failed": 0}


def test_groups_with_the_same_count_are_sorted_by_their_newest_failure(desk: Desk) -> None:
    fail(desk, "a", "b", "c", "b", "c", "a", "d")
    assert [(each["cause"], each["count"]) for each in errors(desk)["data"]] == [
        ("a", 2),
        ("c", 2),
        ("b", 2),
        ("d", 1),
    ]


def test_large_groups_share_a_limit_of_what_is_counted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_errors, "LEAST_COUNTED", 2)
    fail(desk, *(f"{word} {n}" for word in "abc" for n in range(5)), "d", "d")
    with desk.world.transaction() as tx:
        few, some, all_ = (
            job_errors.groups(tx, desk.workspace_id, most_at_once=n).groups for n in (3, 12, 15)
        )
    for found, n in ((few, 2), (some, 4), (all_, 5)):
        counted = {each.cause[0]: (each.count, each.count_is_capped) for each in found}
        assert counted == dict.fromkeys("abc", (n, n < 5)) | {"d": (2, False)}


def test_groups_beyond_the_bounds_are_capped(desk: Desk) -> None:
    fail(desk, *(f"{word} {n}" for word in "abcd" for n in range(3)))
    with desk.world.transaction() as tx:
        found = job_errors.groups(tx, desk.workspace_id, most_groups=3, most_jobs=2)
        whole = job_errors.groups(tx, desk.workspace_id, most_groups=4, most_jobs=3)
    assert found.is_capped
    assert [(each.count, each.count_is_capped) for each in found.groups] == [(2, True)] * 3
    assert not whole.is_capped
    assert [(each.count, each.count_is_capped) for each in whole.groups] == [(3, False)] * 4
