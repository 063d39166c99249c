"""Retention: how long a workspace keeps ended jobs, and their deletion."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select

from jobapi.background.periodic_tasks import InTurns, delete_old_jobs, find_job_retention
from jobapi.rules.jobs import JobStatus
from jobapi.store.tables import attempts, job_counts

from ..factories import Desk

STATUSES = ["pending", "running", "success", "failed", "cancelled"]
FOREVER = {"success": None, "failed": None, "cancelled": None, "events": 30}


def workspace(desk: Desk, body: Any = None) -> Any:
    path = f"/workspace/{desk.workspace_id}"
    response = desk.call("GET", path) if body is None else desk.call("PATCH", path, json=body)
    assert response.status_code == 200, response.text
    return response.json


def sweep(desk: Desk) -> int:
    before = len(left(desk))
    desk.world.maintain("old jobs", "old events")
    return before - len(left(desk))


def age(desk: Desk, job: Any, days: float) -> None:
    with desk.world.transaction() as tx:
        table = job_counts.metadata.tables["jobapi_jobs"]
        where = table.c.job_id == job["job_id"]
        row = tx.execute(select(table.c.updated_at).where(where)).one()
        tx.execute(
            table.update().where(where).values(updated_at=row.updated_at - timedelta(days=days))
        )


def left(desk: Desk) -> list[str]:
    return [job["status"] for job in desk.get("?order=asc&limit=100").json["data"]]


def test_new_workspace_keeps_all_jobs(desk: Desk) -> None:
    assert workspace(desk)["retention"] == FOREVER
    for status in STATUSES:
        age(desk, desk.job_in(status), 10_000)
    assert sweep(desk) == 0
    assert left(desk) == STATUSES


def test_retention_is_changed_by_status(desk: Desk) -> None:
    assert workspace(desk, {"retention": {"success": 7}})["retention"] == {**FOREVER, "success": 7}
    changed = workspace(desk, {"name": "Kept", "retention": {"failed": 30}})
    assert (changed["name"], changed["retention"]) == (
        "Kept",
        {**FOREVER, "success": 7, "failed": 30},
    )
    assert workspace(desk, {"retention": {"success": None}})["retention"]["success"] is None
    assert workspace(desk, {})["retention"] == workspace(desk)["retention"]


@pytest.mark.parametrize("days", [0, -1, 1.5, "7", 36_501, True])
def test_retention_of_no_days_is_422(desk: Desk, days: Any) -> None:
    body = {"retention": {"success": days}}
    response = desk.call("PATCH", f"/workspace/{desk.workspace_id}", json=body)
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["retention.success"]


def test_delete_old_jobs_deletes_only_older_ones(desk: Desk) -> None:
    workspace(desk, {"retention": {"success": 7, "failed": 30}})
    other = Desk(desk.world)
    for where in (desk, other):
        for status in STATUSES:
            age(where, where.job_in(status), 8)
            where.job_in(status)
    assert sweep(desk) == 1
    assert left(desk) == [s for s in STATUSES for _ in range(1 if s == "success" else 2)]
    assert len(left(other)) == 10
    workspace(desk, {"retention": {"failed": 8}})
    assert sweep(desk) == 1
    assert desk.get("?status=failed").json["pagination"]["total"] == 1
    with desk.world.transaction() as tx:
        # Of what is gone the attempts are gone, too: two cancelled without one, one failed left.
        failed = select(func.count()).select_from(attempts).where(attempts.c.outcome == 1)
        assert tx.execute(failed).scalar_one() == 3


def two_at_a_time() -> InTurns[tuple[int, JobStatus]]:
    return InTurns(find_job_retention, partial(delete_old_jobs, limit=2))


def test_delete_old_jobs_of_two_workspaces_takes_turns(desk: Desk) -> None:
    other = Desk(desk.world)
    for each, number in ((desk, 5), (other, 1)):
        workspace(each, {"retention": {"cancelled": 1}})
        for _ in range(number):
            age(each, each.job_in("cancelled"), 2)
    seen = []
    step = two_at_a_time()
    with desk.world.state.engine.connect() as connection:
        while step(connection):
            seen.append((len(left(desk)), len(left(other))))
    assert seen == [(3, 1), (3, 0), (1, 0)]
    assert (left(desk), left(other)) == ([], [])


def test_delete_old_jobs_after_the_owner_keeps_them_stops(desk: Desk) -> None:
    workspace(desk, {"retention": {"cancelled": 1}})
    for _ in range(5):
        age(desk, desk.job_in("cancelled"), 2)
    step = two_at_a_time()
    with desk.world.state.engine.connect() as connection:
        assert step(connection) is True
        workspace(desk, {"retention": {"cancelled": None}})
        assert step(connection) is False
    assert len(left(desk)) == 3
