"""Edits of a job: which fields may be changed, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from jobapi.store.tables import jobs

from ..factories import Desk


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
def test_update_with_a_body_that_is_not_an_object_is_422(desk: Desk, body: str) -> None:
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
