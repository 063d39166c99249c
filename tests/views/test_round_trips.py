"""How many statements a request sends to Postgres: each is a round trip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..factories import Desk

KEY = {"Idempotency-Key": "k"}
LOGS = [{"message": "x", "seq": n} for n in range(9)]


def pending(desk: Desk) -> dict[str, Any]:
    return desk.create(job_type="a")


def leased(desk: Desk) -> dict[str, Any]:
    pending(desk)
    return desk.claim()[0]


def nothing(desk: Desk) -> None:
    pending(desk)


def report(desk: Desk, job: Any, **body: Any) -> Any:
    report = {"job_id": job["job_id"], "lease_token": job["lease_token"], **body}
    return desk.post("/report", json={"reports": [report]})


def patch_with_lease(desk: Desk, job: Any) -> Any:
    headers = {"Lease-Token": job["lease_token"]}
    return desk.patch(job["job_id"], {"status": "success"}, headers=headers)


def append_logs(desk: Desk, job: Any) -> Any:
    headers = {"Lease-Token": job["lease_token"]}
    return desk.post(f"/{job['job_id']}/logs", json={"entries": LOGS}, headers=headers)


Act = Callable[[Desk, Any], Any]
BODY = {"job_type": "a"}
REQUESTS: dict[str, tuple[Callable[[Desk], Any], Act, int]] = {
    "read": (pending, lambda desk, job: desk.get(f"/{job['job_id']}"), 1),
    "create": (
        nothing,
        lambda desk, _: desk.post(json={**BODY, "workspace_id": desk.workspace_id}),
        2,
    ),
    "create many": (nothing, lambda desk, _: desk.post("/batch", json={"jobs": [BODY] * 9}), 2),
    "create many with a key": (
        nothing,
        lambda desk, _: desk.post("/batch", json={"jobs": [BODY] * 9}, headers=KEY),
        7,
    ),
    "claim": (nothing, lambda desk, _: desk.post("/claim"), 4),
    "claim with a key": (nothing, lambda desk, _: desk.post("/claim", headers=KEY), 7),
    "report success": (leased, lambda desk, job: report(desk, job, status="success"), 4),
    "report a heartbeat": (leased, report, 5),
    "report failed": (leased, lambda desk, job: report(desk, job, status="failed"), 6),
    "report logs": (leased, lambda desk, job: report(desk, job, logs=LOGS), 8),
    "append logs": (leased, append_logs, 8),
    "report with PATCH": (leased, patch_with_lease, 5),
    "edit": (pending, lambda desk, job: desk.patch(job["job_id"], {"priority": "high"}), 2),
    "cancel pending": (pending, lambda desk, job: desk.post(f"/{job['job_id']}/cancel"), 2),
    "cancel running": (leased, lambda desk, job: desk.post(f"/{job['job_id']}/cancel"), 5),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_request_sends_no_more_statements_than_it_needs(desk: Desk, sent: Any, name: str) -> None:
    prepare, act, wanted = REQUESTS[name]
    # A worker's first claim notes its presence.
    desk.claim()
    prepared = prepare(desk)
    sent.clear()
    assert act(desk, prepared).status_code in (200, 201)
    # How often a workspace is announced depends on the time.
    assert len([sql for sql in sent if "pg_notify" not in sql]) == wanted
