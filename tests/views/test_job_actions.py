"""Cancel and retry, every verb in every status, and conditional requests."""

from __future__ import annotations

from typing import Any

import pytest

from ..factories import Desk

STATUSES = ("pending", "running", "success", "failed", "cancelled")

# From which statuses each call leads where; from all others it is 409.
CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    "running": (("pending", "running"), "running"),
    "success": (("pending", "running"), "success"),
    "completed": (("pending", "running"), "success"),
    "failed": (("pending", "running"), "failed"),
    "cancelled": (("pending", "running"), "cancelled"),
    "pending": ((), "pending"),
    "/cancel": (("pending", "running"), "cancelled"),
    "/retry": (("failed", "cancelled"), "pending"),
}


def make_call(desk: Desk, job_id: str, call: str, **kw: Any) -> Any:
    if call.startswith("/"):
        return desk.post(f"/{job_id}{call}", **kw)
    return desk.patch(job_id, {"status": call}, **kw)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", STATUSES)
def test_every_call_in_every_status(desk: Desk, status: str, call: str) -> None:
    allowed_from, leads_to = CALLS[call]
    job = desk.job_in(status)
    response = make_call(desk, job["job_id"], call)
    after = desk.get(f"/{job['job_id']}").json
    if status not in allowed_from:
        assert response.status_code == 409
        assert status in response.json["detail"]
        assert after == job
        return
    assert response.status_code == 200
    assert response.json == after
    assert after["status"] == leads_to
    assert (after["started_at"] is None) == (leads_to == "pending")
    assert (after["completed_at"] is None) == (leads_to in ("pending", "running"))
    assert (after["actual_duration"] is None) == (leads_to in ("pending", "running"))
    if status == "running":
        assert after["started_at"] == job["started_at"]


@pytest.mark.parametrize("body", [None, {}, {"reason": None}, {"reason": "Not needed"}])
def test_cancel_keeps_what_was_done_and_says_why(desk: Desk, body: Any) -> None:
    job_id = desk.job_in("running")["job_id"]
    desk.patch(job_id, {"result": {"partial_results": "temp.json"}, "progress_percent": 10})
    response = desk.post(f"/{job_id}/cancel", **({} if body is None else {"json": body}))
    assert response.status_code == 200
    assert response.json["result"] == {
        "cancelled_reason": (body or {}).get("reason") or "Cancelled via API",
        "partial_results": "temp.json",
    }


def test_cancel_by_update_is_the_same(desk: Desk) -> None:
    job_id = desk.job_in("running")["job_id"]
    body = {"status": "cancelled", "result": {"cancelled_reason": "Mine", "rows": 1}}
    assert desk.patch(job_id, body).json["result"] == {"cancelled_reason": "Mine", "rows": 1}


@pytest.mark.parametrize("action", ["cancel", "retry"])
@pytest.mark.parametrize(
    ("kw", "status"),
    [
        ({"headers": {"Content-Type": "application/json"}}, 200),
        ({"headers": {"Content-Type": "text/plain"}}, 200),
        ({"json": {"reason": 5}}, 422),
        ({"json": {"reason": ""}}, 422),
        ({"json": {"reason": "x" * 1001}}, 422),
        ({"json": {"because": "x"}}, 422),
        ({"json": []}, 422),
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"reason", "headers": {"Content-Type": "text/plain"}}, 415),
        ({"data": b"{}"}, 415),
    ],
)
def test_reason_is_an_optional_json_body(desk: Desk, action: str, kw: Any, status: int) -> None:
    job = desk.job_in("pending" if action == "cancel" else "failed")
    response = desk.post(f"/{job['job_id']}/{action}", **kw)
    assert response.status_code == status
    if status != 200:
        assert desk.get(f"/{job['job_id']}").json == job


def test_retry_puts_a_failed_job_back_to_the_start(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    desk.patch(job_id, {"status": "running", "progress_percent": 90, "progress_message": "nearly"})
    desk.patch(job_id, {"status": "failed", "error": "disk full", "result": {"rows": 5}})
    response = desk.post(f"/{job_id}/retry")
    assert response.status_code == 200
    job = response.json
    assert job["status"] == "pending"
    assert job["retry_count"] == 1
    assert job["result"] == {"retry_reason": "Retried via API", "previous_attempts": 1}
    assert job["due_at"] == job["updated_at"]
    for name in ("started_at", "completed_at", "actual_duration", "error"):
        assert job[name] is None
    status = desk.get(f"/{job_id}/status").json
    assert (status["progress_percent"], status["progress_message"]) == (0, None)


def test_retry_of_a_scheduled_job_is_due_now(desk: Desk) -> None:
    job_id = desk.create(scheduled_at="2099-01-01T00:00:00Z")["job_id"]
    desk.post(f"/{job_id}/cancel")
    job = desk.post(f"/{job_id}/retry", json={"reason": "It was needed"}).json
    assert job["due_at"] == job["updated_at"]
    assert job["result"]["retry_reason"] == "It was needed"
    assert desk.post(f"/{job_id}/cancel").json["actual_duration"] == 0


def test_retry_by_a_person_is_never_refused_for_its_count(desk: Desk) -> None:
    job_id = desk.create(max_retries=1)["job_id"]
    for count in (1, 2, 3):
        desk.patch(job_id, {"status": "failed"})
        job = desk.post(f"/{job_id}/retry").json
        assert (job["retry_count"], job["max_retries"]) == (count, max(1, count))
        assert job["result"]["previous_attempts"] == count


def test_update_max_retries_below_the_count_is_409(desk: Desk) -> None:
    job_id = desk.job_in("failed")["job_id"]
    desk.post(f"/{job_id}/retry")
    response = desk.patch(job_id, {"max_retries": 0})
    assert response.status_code == 409
    assert "already retried" in response.json["detail"]


# Conditional requests


@pytest.mark.parametrize("call", ["running", "/cancel", "/retry"])
def test_change_with_an_old_etag_is_412_and_with_the_current_one_done(
    desk: Desk, call: str
) -> None:
    job = desk.job_in("failed" if call == "/retry" else "pending")
    job_id = job["job_id"]
    current = desk.get(f"/{job_id}").headers["ETag"]
    compressed = f'{current[:-1]}-gzip"'
    for stale in ('"0"', 'W/"0"', '"1234567"', "nonsense", compressed, f"W/{compressed}"):
        response = make_call(desk, job_id, call, headers={"If-Match": stale})
        assert response.status_code == 412, stale
        assert desk.get(f"/{job_id}").json == job
    response = make_call(desk, job_id, call, headers={"If-Match": f'"x", {current}'})
    assert response.status_code == 200
    assert response.headers["ETag"] != current
    again = make_call(desk, job_id, call, headers={"If-Match": current})
    assert again.status_code == 412


def test_change_with_the_weak_form_of_our_etag_is_done(desk: Desk) -> None:
    """Proxies that compress answers make it of ours."""
    job_id = desk.create()["job_id"]
    for call in ("running", "/cancel", "/retry"):
        weak = f"W/{desk.get(f'/{job_id}').headers['ETag']}"
        assert desk.get(f"/{job_id}", headers={"If-None-Match": weak}).status_code == 304
        response = make_call(desk, job_id, call, headers={"If-Match": f'"x", {weak}'})
        assert response.status_code == 200, response.text
        again = make_call(desk, job_id, call, headers={"If-Match": weak})
        assert again.status_code == 412


def test_precondition_is_judged_before_the_state(desk: Desk) -> None:
    job_id = desk.job_in("success")["job_id"]
    assert desk.post(f"/{job_id}/cancel", headers={"If-Match": '"0"'}).status_code == 412
    assert desk.post(f"/{job_id}/cancel", headers={"If-Match": "*"}).status_code == 409


def test_etag_of_a_change_is_that_of_the_next_read(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    changed = desk.patch(job_id, {"priority": "high"})
    assert desk.get(f"/{job_id}").headers["ETag"] == changed.headers["ETag"]
    assert desk.get(f"/{job_id}/status").headers["ETag"] == changed.headers["ETag"]


@pytest.mark.parametrize("status", ["success", "failed", "cancelled"])
def test_delete_takes_an_ended_job_away(desk: Desk, status: str) -> None:
    job = desk.job_in(status)
    path = f"{desk.jobs_path}/{job['job_id']}"
    assert desk.call("DELETE", path).status_code == 204
    assert desk.call("GET", path).status_code == 404
    assert desk.call("DELETE", path).status_code == 404
    assert desk.get().json["pagination"]["total"] == 0


@pytest.mark.parametrize("status", ["pending", "running"])
def test_delete_of_a_live_job_is_409(desk: Desk, status: str) -> None:
    job = desk.job_in(status)
    response = desk.call("DELETE", f"{desk.jobs_path}/{job['job_id']}")
    assert response.status_code == 409
    assert status in response.json["detail"]
    assert desk.get().json["pagination"]["total"] == 1
