"""Jobs over HTTP: create and read; the guide's operations and the contract's fine print."""

from __future__ import annotations

import re
from typing import Any

import pytest

from jobapi.services import creating as service

from ..factories import Desk

OPTIONAL = (
    "priority",
    "metadata",
    "estimated_duration",
    "scheduled_at",
    "max_retries",
    "timeout_seconds",
)
ZULU = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


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
        "concurrency_key": None,
        "unique_key": None,
        "expires_at": None,
        "schedule_id": None,
        "scheduled_for": None,
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
    assert all(re.fullmatch(r"job_[0-9a-f]{32}", job_id) for job_id in ids)
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


def test_create_of_one_job_type_too_many_is_422(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_JOB_TYPES", 3)
    for job_type in ("one", "two", "three", "one"):
        desk.create(job_type=job_type)
    body = {"job_type": "four", "workspace_id": desk.workspace_id}
    refused = desk.post(json=body)
    assert (refused.status_code, list(refused.json["errors"])) == (422, ["job_type"])
    refused = desk.post("/batch", json={"jobs": [{"job_type": "one"}, {"job_type": "four"}]})
    assert (refused.status_code, list(refused.json["errors"])) == (422, ["jobs.1.job_type"])
    assert desk.get().json["pagination"]["total"] == 4
