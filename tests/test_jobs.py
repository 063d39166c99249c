"""Jobs over HTTP: create, read, change; the guide's operations and the contract's fine print."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from jobapi.models import jobs

from .factories import Desk

OPTIONAL = (
    "priority",
    "metadata",
    "estimated_duration",
    "scheduled_at",
    "max_retries",
    "timeout_seconds",
)
ZULU = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def age(desk: Desk, job_id: str, seconds: int) -> None:
    """Make a job as old as if it had been created so long ago."""
    moved = {
        name: getattr(jobs.c, name)
        for name in ("created_at", "updated_at", "queued_at", "due_at", "started_at")
    }
    with desk.world.transaction() as tx:
        row = tx.execute(jobs.select().where(jobs.c.job_id == job_id)).one()
        values = {
            name: getattr(row, name) - timedelta(seconds=seconds)
            for name in moved
            if getattr(row, name) is not None
        }
        tx.execute(update(jobs).where(jobs.c.job_id == job_id).values(values))


# Create


def test_create_minimal_job_answers_the_whole_job(desk: Desk) -> None:
    response = desk.post(json={"job_type": "data_processing", "workspace_id": desk.workspace_id})
    assert response.status_code == 201
    job = response.json
    assert response.headers["Location"] == f"{desk.jobs_path}/{job['job_id']}"
    assert desk.get(f"/{job['job_id']}").json == job
    assert ZULU.fullmatch(job["created_at"])
    created = job["created_at"]
    assert job == {
        "job_id": job["job_id"],
        "job_type": "data_processing",
        "status": "pending",
        "priority": "normal",
        "workspace_id": desk.workspace_id,
        "created_by": desk.user.id,
        "metadata": None,
        "result": None,
        "error": None,
        "estimated_duration": None,
        "actual_duration": None,
        "timeout_seconds": None,
        "retry_count": 0,
        "max_retries": 3,
        "created_at": created,
        "updated_at": created,
        "started_at": None,
        "completed_at": None,
        "scheduled_at": None,
        "due_at": created,
    }


def test_create_full_job_keeps_what_was_given(desk: Desk) -> None:
    given = {
        "job_type": "data_processing",
        "priority": "urgent",
        "metadata": {"filters": {"column": "value"}, "none": None, "π": [1, 2.5, True, "😀"]},
        "estimated_duration": 600,
        "scheduled_at": "2099-01-15T15:00:00Z",
        "max_retries": 0,
        "timeout_seconds": 1,
    }
    job = desk.create(**given)
    assert {name: job[name] for name in given} == given
    assert job["due_at"] == "2099-01-15T15:00:00Z"


def test_create_null_equals_absence(desk: Desk) -> None:
    plain, nulls = desk.create(), desk.create(**dict.fromkeys(OPTIONAL))
    for name in OPTIONAL:
        assert nulls[name] == plain[name], name


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2099-01-15T15:00:00Z", "2099-01-15T15:00:00Z"),
        ("2099-01-15t15:00:00z", "2099-01-15T15:00:00Z"),
        ("2099-01-15 15:00:00+00:00", "2099-01-15T15:00:00Z"),
        ("2099-01-15T15:00:00.999999999Z", "2099-01-15T15:00:00Z"),
        ("2099-01-15T15:00:00+05:30", "2099-01-15T09:30:00Z"),
        ("2096-02-29T23:59:59-23:59", "2096-03-01T23:58:59Z"),
        ("0001-01-03T00:00:00Z", "0001-01-03T00:00:00Z"),
        ("9999-12-29T23:59:59Z", "9999-12-29T23:59:59Z"),
    ],
)
def test_create_takes_every_rfc_3339_time(desk: Desk, given: str, stored: str) -> None:
    job = desk.create(scheduled_at=given)
    assert job["scheduled_at"] == stored
    assert desk.get(f"/{job['job_id']}").json == job


def test_create_scheduled_in_the_past_is_due_now(desk: Desk) -> None:
    job = desk.create(scheduled_at="2024-01-15T15:00:00Z")
    assert job["scheduled_at"] == "2024-01-15T15:00:00Z"
    assert job["due_at"] == job["created_at"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"job_type": None}, "job_type"),
        ({"job_type": ""}, "job_type"),
        ({"job_type": "x" * 101}, "job_type"),
        ({"job_type": "with space"}, "job_type"),
        ({"job_type": "line\n"}, "job_type"),
        ({"job_type": 7}, "job_type"),
        ({"workspace_id": None}, "workspace_id"),
        ({"workspace_id": "1"}, "workspace_id"),
        ({"workspace_id": 999}, "workspace_id"),
        ({"workspace_id": True}, "workspace_id"),
        ({"priority": "highest"}, "priority"),
        ({"priority": 3}, "priority"),
        ({"priority": "HIGH"}, "priority"),
        ({"metadata": []}, "metadata"),
        ({"metadata": "text"}, "metadata"),
        ({"estimated_duration": -1}, "estimated_duration"),
        ({"estimated_duration": 5.7}, "estimated_duration"),
        ({"estimated_duration": "600"}, "estimated_duration"),
        ({"estimated_duration": True}, "estimated_duration"),
        ({"estimated_duration": 10**12}, "estimated_duration"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"max_retries": 101}, "max_retries"),
        ({"max_retries": -1}, "max_retries"),
        ({"scheduled_at": "2024-01-15T10:00:00"}, "scheduled_at"),
        ({"scheduled_at": "2024-01-15"}, "scheduled_at"),
        ({"scheduled_at": 1705312800}, "scheduled_at"),
        ({"scheduled_at": "2023-02-29T10:00:00Z"}, "scheduled_at"),
        ({"scheduled_at": "2024-01-15T24:00:00Z"}, "scheduled_at"),
        ({"scheduled_at": "2024-01-15T10:00:60Z"}, "scheduled_at"),
        ({"scheduled_at": "9999-12-31T23:59:59-12:00"}, "scheduled_at"),
        ({"scheduled_at": "0001-01-01T00:00:00+12:00"}, "scheduled_at"),
        ({"scheduled_at": "\uff12024-01-15T10:00:00Z"}, "scheduled_at"),
        ({"status": "running"}, "status"),
        ({"job_id": "job_mine"}, "job_id"),
        ({"created_by": 1}, "created_by"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_create_bad_input_names_the_field(desk: Desk, body: Any, field: str) -> None:
    whole = {"job_type": "data_analysis", "workspace_id": desk.workspace_id, **body}
    response = desk.post(json=whole)
    assert response.status_code == 422, response.text
    assert list(response.json["errors"]) == [field]
    assert response.json["detail"].startswith(f"{field}: ")
    assert desk.get().json["pagination"]["total"] == 0


def test_create_names_all_fields_that_are_wrong(desk: Desk) -> None:
    response = desk.post(json={"priority": "x", "max_retries": 200})
    assert set(response.json["errors"]) == {
        "job_type",
        "workspace_id",
        "priority",
        "max_retries",
    }


def test_job_ids_are_url_safe_sort_by_time_and_cannot_be_guessed(desk: Desk) -> None:
    ids = [desk.create()["job_id"] for _ in range(50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 50
    assert all(re.fullmatch(r"job_[0-9a-v]{26}", job_id) for job_id in ids)
    # What follows the time differs in nearly every place.
    assert len({job_id[-10:] for job_id in ids}) == 50


# Read


def test_status_before_and_after_reports(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    path = f"/{job_id}/status"
    fresh = desk.get(path).json
    assert fresh.keys() == {
        "job_id",
        "status",
        "progress_percent",
        "progress_message",
        "updated_at",
    }
    assert (fresh["progress_percent"], fresh["progress_message"]) == (0, None)
    desk.patch(job_id, {"status": "running", "progress_percent": 75, "progress_message": "3 of 4"})
    running = desk.get(path).json
    assert running["status"] == "running"
    assert (running["progress_percent"], running["progress_message"]) == (75, "3 of 4")
    desk.patch(job_id, {"status": "success"})
    assert desk.get(path).json["progress_percent"] == 100


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_status_keeps_the_progress_of_what_did_not_succeed(desk: Desk, status: str) -> None:
    job_id = desk.create()["job_id"]
    desk.patch(job_id, {"status": "running", "progress_percent": 40})
    desk.patch(job_id, {"status": status})
    assert desk.get(f"/{job_id}/status").json["progress_percent"] == 40


@pytest.mark.parametrize("status", ["pending", "running"])
def test_result_before_the_end_is_409_and_names_the_status(desk: Desk, status: str) -> None:
    job = desk.job_in(status)
    response = desk.get(f"/{job['job_id']}/result")
    assert response.status_code == 409
    assert status in response.json["detail"]


@pytest.mark.parametrize("status", ["success", "failed", "cancelled"])
def test_result_after_any_end_is_what_there_is(desk: Desk, status: str) -> None:
    job = desk.job_in(status)
    response = desk.get(f"/{job['job_id']}/result")
    assert response.status_code == 200
    expected = {"cancelled_reason": "Cancelled via API"} if status == "cancelled" else None
    assert response.json == {
        "job_id": job["job_id"],
        "result": expected,
        "status": status,
        "completed_at": job["completed_at"],
    }


def test_get_with_the_current_etag_is_304(desk: Desk) -> None:
    job = desk.job_in("success")
    for rest in ("", "/status", "/result"):
        path = f"/{job['job_id']}{rest}"
        tag = desk.get(path).headers["ETag"]
        for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            unchanged = desk.get(path, headers={"If-None-Match": header})
            assert unchanged.status_code == 304, header
            assert unchanged.data == b""
            assert unchanged.headers["ETag"] == tag
        assert desk.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    changing = desk.create()["job_id"]
    tag = desk.get(f"/{changing}").headers["ETag"]
    desk.patch(changing, {"priority": "low"})
    assert desk.get(f"/{changing}", headers={"If-None-Match": tag}).status_code == 200


# Update


def test_update_as_in_the_guide(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    response = desk.patch(
        job_id,
        {
            "status": "running",
            "progress_percent": 50,
            "progress_message": "Halfway complete",
            "result": {"intermediate_data": "temp_results.json", "rows_processed": 25000},
        },
    )
    assert response.status_code == 200
    assert response.json["status"] == "running"
    assert response.json["started_at"] is not None
    assert response.json["result"] == {
        "progress_percent": 50,
        "progress_message": "Halfway complete",
        "intermediate_data": "temp_results.json",
        "rows_processed": 25000,
    }
    assert desk.get(f"/{job_id}").json == response.json
    ended = desk.patch(job_id, {"status": "completed", "result": {"success": True}}).json
    assert ended["status"] == "success"
    assert ended["result"] == {
        "intermediate_data": "temp_results.json",
        "rows_processed": 25000,
        "success": True,
    }


def test_update_nothing_changes_nothing(desk: Desk) -> None:
    for status in ("pending", "running", "success", "failed", "cancelled"):
        job = desk.job_in(status)
        before = desk.get(f"/{job['job_id']}")
        response = desk.patch(job["job_id"], {})
        assert response.status_code == 200
        after = desk.get(f"/{job['job_id']}")
        assert after.json == before.json == response.json
        assert after.headers["ETag"] == before.headers["ETag"]


def test_update_result_is_a_merge_patch(desk: Desk) -> None:
    job_id = desk.job_in("running")["job_id"]
    desk.patch(job_id, {"result": {"a": 1, "b": {"c": 2, "d": 3}, "list": [1, {"x": None}]}})
    response = desk.patch(job_id, {"result": {"a": None, "b": {"d": None, "e": 4}, "list": [2]}})
    assert response.json["result"] == {"b": {"c": 2, "e": 4}, "list": [2]}
    assert desk.patch(job_id, {"result": None}).json["result"] is None


def test_update_takes_merge_patch_content_type(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    response = desk.call(
        "PATCH",
        f"{desk.jobs_path}/{job_id}",
        data=b'{"priority": "high"}',
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert response.json["priority"] == "high"


def test_update_progress_inside_result_counts_as_progress(desk: Desk) -> None:
    job_id = desk.job_in("running")["job_id"]
    sent = {"result": {"progress_percent": 30, "progress_message": "a third", "rows": 7}}
    assert desk.patch(job_id, sent).json["result"] == sent["result"]
    assert desk.get(f"/{job_id}/status").json["progress_percent"] == 30
    assert desk.get(f"/{job_id}/status").json["progress_message"] == "a third"
    ended = desk.patch(job_id, {"status": "success"}).json
    assert ended["result"] == {"rows": 7}


def test_update_progress_inside_result_is_checked(desk: Desk) -> None:
    job_id = desk.job_in("running")["job_id"]
    response = desk.patch(job_id, {"result": {"progress_percent": 101}})
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["result.progress_percent"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"status": "done"}, "status"),
        ({"status": None}, "status"),
        ({"progress_percent": 101}, "progress_percent"),
        ({"progress_percent": -1}, "progress_percent"),
        ({"progress_percent": 50.5}, "progress_percent"),
        ({"progress_percent": "50"}, "progress_percent"),
        ({"progress_message": 5}, "progress_message"),
        ({"progress_message": "x" * 2001}, "progress_message"),
        ({"result": []}, "result"),
        ({"result": "text"}, "result"),
        ({"metadata": 5}, "metadata"),
        ({"error": {"code": 5}}, "error"),
        ({"error": "x" * 65_537}, "error"),
        ({"job_type": "other"}, "job_type"),
        ({"retry_count": 0}, "retry_count"),
        ({"completed_at": "2024-01-15T10:00:00Z"}, "completed_at"),
    ],
)
def test_update_bad_input_names_the_field_and_changes_nothing(
    desk: Desk, body: Any, field: str
) -> None:
    job = desk.job_in("running")
    response = desk.patch(job["job_id"], {"progress_percent": 1, **body})
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]
    assert desk.get(f"/{job['job_id']}").json == job


@pytest.mark.parametrize("body", ["[]", '"text"', "5", "null", "true"])
def test_update_body_that_is_no_object_is_422(desk: Desk, body: str) -> None:
    path = f"{desk.jobs_path}/{desk.create()['job_id']}"
    response = desk.call("PATCH", path, data=body, content_type="application/json")
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["body"]


PENDING_EDITS = {
    "priority": "low",
    "scheduled_at": "2099-01-01T00:00:00Z",
    "estimated_duration": 5,
    "max_retries": 9,
    "timeout_seconds": 60,
    "metadata": {"a": 1},
}


@pytest.mark.parametrize("name", sorted(PENDING_EDITS))
def test_update_of_how_a_job_runs_is_for_pending_jobs(desk: Desk, name: str) -> None:
    pending, running = desk.create(), desk.job_in("running")
    body = {name: PENDING_EDITS[name]}
    assert desk.patch(pending["job_id"], body).json[name] == PENDING_EDITS[name]
    refused = desk.patch(running["job_id"], body)
    assert refused.status_code == 409
    assert name in refused.json["detail"]
    assert desk.get(f"/{running['job_id']}").json == running
    cleared = desk.patch(pending["job_id"], {name: None}).json
    assert cleared[name] == pending[name]


def test_update_schedule_moves_when_the_job_is_due(desk: Desk) -> None:
    job = desk.create()
    later = desk.patch(job["job_id"], {"scheduled_at": "2099-01-01T00:00:00Z"}).json
    assert later["due_at"] == "2099-01-01T00:00:00Z"
    at_once = desk.patch(job["job_id"], {"scheduled_at": None}).json
    assert at_once["due_at"] == job["due_at"]


def test_update_metadata_is_merged(desk: Desk) -> None:
    job = desk.create(metadata={"a": 1, "b": {"c": 2}})
    body = {"metadata": {"a": None, "b": {"d": 3}}}
    assert desk.patch(job["job_id"], body).json["metadata"] == {"b": {"c": 2, "d": 3}}


@pytest.mark.parametrize("status", ["pending", "success", "failed", "cancelled"])
@pytest.mark.parametrize(
    "body",
    [{"progress_percent": 5}, {"progress_message": "x"}, {"result": {"a": 1}}, {"error": "x"}],
)
def test_update_of_work_without_a_running_job_is_409(desk: Desk, status: str, body: Any) -> None:
    job = desk.job_in(status)
    response = desk.patch(job["job_id"], body)
    assert response.status_code == 409
    assert response.json["type"].endswith(":job-not-running")
    assert desk.get(f"/{job['job_id']}").json == job


def test_update_to_an_end_takes_result_and_error_with_it(desk: Desk) -> None:
    job = desk.create()
    failed = desk.patch(
        job["job_id"], {"status": "failed", "error": "disk full", "result": {"rows": 5}}
    ).json
    assert (failed["error"], failed["result"]) == ("disk full", {"rows": 5})
    assert failed["started_at"] == failed["completed_at"] is not None
    contradiction = desk.patch(desk.create()["job_id"], {"status": "success", "error": "x"})
    assert contradiction.status_code == 422
    assert list(contradiction.json["errors"]) == ["error"]


def test_update_to_failed_stays_failed(desk: Desk) -> None:
    job = desk.job_in("failed", max_retries=3)
    assert desk.get(f"/{job['job_id']}").json["status"] == "failed"
    assert job["retry_count"] == 0


def test_durations_are_those_of_the_guide(desk: Desk) -> None:
    """285 seconds from due to success, 120 to a cancellation."""
    job = desk.create()
    desk.patch(job["job_id"], {"status": "running"})
    age(desk, job["job_id"], 285)
    assert desk.patch(job["job_id"], {"status": "success"}).json["actual_duration"] == 285
    job = desk.create()
    age(desk, job["job_id"], 120)
    assert desk.post(f"/{job['job_id']}/cancel").json["actual_duration"] == 120


def test_duration_counts_from_the_schedule_and_is_null_before_it(desk: Desk) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=100)).isoformat()
    job = desk.create(scheduled_at=soon)
    age(desk, job["job_id"], 300)
    assert desk.patch(job["job_id"], {"status": "success"}).json["actual_duration"] in (199, 200)
    future = desk.create(scheduled_at="2099-01-01T00:00:00Z")
    assert desk.post(f"/{future['job_id']}/cancel").json["actual_duration"] is None
