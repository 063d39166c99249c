"""Statistics of a workspace: totals, due jobs, rates, durations and history."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from jobapi.rules.jobs import JobStatus
from jobapi.rules.roles import Role
from jobapi.services import counts, stats, throughput
from jobapi.store.columns import DbNow
from jobapi.store.tables import job_count_changes, job_flow, jobs
from jobapi.store.transactions import IN_ORDER, set_planner, snapshot

from ..factories import Desk

NOTHING = {"pending": 0, "running": 0, "success": 0, "failed": 0, "cancelled": 0}
NONE_DUE = {"due": 0, "due_is_capped": False, "oldest_due_seconds": 0}
NO_RATES = {"queued": 0, "started": 0, "succeeded": 0, "failed": 0, "cancelled": 0}


def read(desk: Desk, token: str | None = None) -> Any:
    path = f"/workspace/{desk.workspace_id}/stats"
    response = desk.world.call("GET", path, token or desk.token)
    assert response.status_code == 200, response.text
    return response.json


def fold(desk: Desk) -> None:
    with desk.world.transaction() as tx:
        counts.fold(tx)


def ran(desk: Desk, seconds: float, **body: Any) -> None:
    """A job that succeeded after so many seconds."""
    job = desk.job_in("success", **body)
    with desk.world.transaction() as tx:
        where = jobs.c.job_id == job["job_id"]
        ended = tx.execute(select(jobs.c.completed_at).where(where)).scalar_one()
        tx.execute(update(jobs).where(where).values(started_at=ended - timedelta(seconds=seconds)))


def test_empty_workspace_has_zeros(desk: Desk) -> None:
    found = read(desk)
    assert datetime.fromisoformat(found.pop("at")) <= datetime.now(UTC)
    assert found == {
        "workspace_id": desk.workspace_id,
        "total": 0,
        "by_status": NOTHING,
        "by_type": {},
        **NONE_DUE,
        "oldest_pending_seconds": None,
        "rates": dict.fromkeys(["minute", "hour", "day"], NO_RATES),
        "durations": {},
    }


def test_jobs_are_counted_by_status_and_type(desk: Desk) -> None:
    other = Desk(desk.world)
    other.create(job_type="theirs")
    for status in ("pending", "pending", "running", "success", "failed", "cancelled"):
        desk.job_in(status, job_type="a")
    desk.job_in("failed", job_type="b", priority="high")
    for _ in range(2):
        found = read(desk)
        assert found["total"] == 7
        assert found["by_status"] == NOTHING | {
            "pending": 2,
            "running": 1,
            "success": 1,
            "failed": 2,
            "cancelled": 1,
        }
        assert found["by_type"] == {
            "a": {"pending": 2, "running": 1, "success": 1, "failed": 1, "cancelled": 1}
            | {**NONE_DUE, "due": 2, "oldest_due_seconds": found["oldest_due_seconds"]},
            "b": NOTHING | NONE_DUE | {"failed": 1},
        }
        fold(desk)


def due(found: Any) -> dict[str, int]:
    return {name: each["due"] for name, each in found["by_type"].items()}


def test_due_jobs_are_counted_by_type_without_those_that_are_not_due(desk: Desk) -> None:
    other = Desk(desk.world)
    other.create(job_type="a")
    for priority in ("low", "normal", "high", "urgent"):
        desk.create(job_type="a", priority=priority)
        desk.create(job_type="a.b", priority=priority, scheduled_at="2100-01-01T00:00:00Z")
    desk.shift(desk.create(job_type="a.b"), 50)
    desk.create(job_type="c")
    (claimed,) = desk.claim(job_types=["c"])
    assert desk.report(claimed, status="failed", retry_after=600)["accepted"]
    for _ in range(2):
        found = read(desk)
        assert due(found) == {"a": 4, "a.b": 1, "c": 0}
        assert found["due"] == 5
        assert found["by_type"]["c"]["pending"] == 1
        assert found["due_is_capped"] is False
        assert 50 <= found["oldest_due_seconds"] == found["by_type"]["a.b"]["oldest_due_seconds"]
        assert found["oldest_pending_seconds"] == found["oldest_due_seconds"]
        assert found["by_type"]["a"]["oldest_due_seconds"] < 50
        assert found["by_type"]["c"]["oldest_due_seconds"] == 0
        fold(desk)


def test_stats_of_job_types_cover_only_these_and_have_zeros(desk: Desk) -> None:
    path = f"/workspace/{desk.workspace_id}/stats?job_type=a.b&job_type=none"
    for n in (0, 1):
        found = desk.call("GET", path).json
        assert found["by_type"].keys() == {"a.b", "none"}
        assert found["total"] == found["due"] == found["by_type"]["a.b"]["due"] == n
        assert found["by_type"]["none"] == NOTHING | NONE_DUE
        assert type(found["oldest_due_seconds"]) is int
        assert found["rates"]["minute"]["queued"] == n
        for job_type in ("a.b", "other"):
            desk.create(job_type=job_type)
    for query in ("job_type=a%20b", "job_type=", "type=a", "job_type=a&" * 101):
        assert desk.call("GET", f"/workspace/{desk.workspace_id}/stats?{query}").status_code == 422


def test_stats_of_job_types_that_a_key_may_not_see_are_403(desk: Desk) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["a"])
    path = f"/workspace/{desk.workspace_id}/stats"
    assert desk.world.call("GET", f"{path}?job_type=a", key).json["by_type"].keys() == {"a"}
    refused = desk.world.call("GET", f"{path}?job_type=a&job_type=b", key)
    assert refused.status_code == 403
    assert refused.json["type"].endswith(":job-type-not-allowed")


def test_due_jobs_are_counted_up_to_a_bound(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "MAX_DUE", 3)
    monkeypatch.setattr(stats, "LEAST_DUE", 2)
    later = {"scheduled_at": "2100-01-01T00:00:00Z"}
    for job_type, due_jobs, not_due in (("a", 5, 2), ("b", 2, 5), ("c", 5, 5), ("d", 0, 4)):
        batch = [{"job_type": job_type}] * due_jobs + [{"job_type": job_type, **later}] * not_due
        assert desk.post("/batch", json={"jobs": batch}).status_code == 201
    found = read(desk)
    assert due(found) == {"a": 5, "b": 2, "c": 3, "d": 0}
    capped = {name for name, each in found["by_type"].items() if each["due_is_capped"]}
    assert capped == {"c"}
    assert (found["due"], found["due_is_capped"]) == (10, True)


def test_due_jobs_are_found_with_the_index_of_claims_only(desk: Desk, database: str) -> None:
    desk.create(job_type="a")
    # While the table has one block, another index is as good.
    desk.post("/batch", json={"jobs": [{"job_type": "b"}] * 300})
    if database == "postgresql":
        with desk.world.state.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE jobapi_jobs")
    plans = explained(desk)
    assert len(plans) == 3, plans
    for plan in plans:
        assert "ix_jobapi_jobs_claim_type" in plan, plan
        assert not re.search(r"Seq Scan on jobapi_jobs|SCAN jobapi_jobs", plan), plan


def explained(desk: Desk) -> list[str]:
    """The plans of the statements that look for due jobs."""
    of: Any = {(desk.workspace_id, "a"): 1}
    plans: list[str] = []

    def explain(
        connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        if "jobapi_jobs" in statement:
            word = "EXPLAIN QUERY PLAN" if cursor.__class__.__module__ == "sqlite3" else "EXPLAIN"
            cursor.execute(f"{word} {statement}", parameters)
            plans.append("\n".join(str(row) for row in cursor.fetchall()))
        return statement, parameters

    engine = desk.world.state.engine
    with engine.connect() as connection, snapshot(connection) as tx:
        set_planner(tx, IN_ORDER)
        now = tx.execute(select(DbNow())).scalar_one()
        event.listen(engine, "before_cursor_execute", explain, retval=True)
        try:
            stats._count(tx, of, jobs.c.due_at > now, now, 5)
            stats._count(tx, of, jobs.c.due_at <= now, now, 5)
            stats.oldest_due(tx, of, now)
        finally:
            event.remove(engine, "before_cursor_execute", explain)
    return plans


def test_rates_say_what_came_and_folding_changes_nothing(desk: Desk) -> None:
    for status in ("pending", "running", "success", "failed", "cancelled"):
        desk.job_in(status)
    desk.patch(desk.get("?status=running").json["data"][0]["job_id"], {"progress_percent": 5})
    failed = desk.get("?status=failed").json["data"][0]["job_id"]
    desk.post(f"/{failed}/retry")
    claimed = desk.claim(limit=2)
    assert [desk.report(job, status="success")["accepted"] for job in claimed] == [True, True]
    wanted = {"queued": 6, "started": 3, "succeeded": 3, "failed": 1, "cancelled": 1}
    for _ in range(2):
        assert read(desk)["rates"] == dict.fromkeys(["minute", "hour", "day"], wanted)
        fold(desk)
    with desk.world.transaction() as tx:
        assert tx.execute(select(job_count_changes)).all() == []


def test_rates_forget_what_is_older_than_their_window(desk: Desk) -> None:
    desk.create()
    fold(desk)
    for ago, left in ((70, 2), (3700, 1), (25 * 3600, 0)):
        with desk.world.transaction() as tx:
            then = datetime.now(UTC) - timedelta(seconds=ago)
            for span in throughput.KEPT:
                moved = update(job_flow).where(job_flow.c.span == span)
                tx.execute(moved.values(at=throughput.begin_of(then, span)))
        rates = read(desk)["rates"]
        assert [rates[window]["queued"] for window in ("minute", "hour", "day")] == (
            [0] * (3 - left) + [1] * left
        )


def test_another_priority_is_no_rate(desk: Desk) -> None:
    job_id = desk.create(priority="normal")["job_id"]
    for priority in ("high", "low"):
        desk.patch(job_id, {"priority": priority})
    desk.patch(job_id, {"status": "running", "priority": "high"})
    wanted = NO_RATES | {"queued": 1, "started": 1}
    for _ in range(2):
        assert read(desk)["rates"]["minute"] == wanted
        assert history(desk, "hour")["data"][-1]["by_status"]["running"] == 1
        fold(desk)
    assert desk.get("?priority=high").json["pagination"]["total"] == 1
    assert desk.get("?priority=low").json["pagination"]["total"] == 0


def test_job_that_was_started_before_it_was_due_waited_for_nothing(desk: Desk) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    job_id = desk.create(scheduled_at=tomorrow)["job_id"]
    desk.patch(job_id, {"status": "running"})
    assert history(desk, "hour")["data"][-1]["wait_seconds"] == 0
    fold(desk)
    assert history(desk, "hour")["data"][-1]["wait_seconds"] == 0


def test_repair_of_totals_is_no_rate(desk: Desk) -> None:
    desk.create()
    with desk.world.transaction() as tx:
        kind = {"status": 0, "job_type": "data_analysis", "priority": 1}
        tx.execute(job_count_changes.insert().values(workspace_id=desk.workspace_id, **kind, n=-1))
    fold(desk)
    with desk.world.transaction() as tx:
        assert len(counts.check(tx, desk.workspace_id)) == 1
    for _ in range(2):
        assert read(desk)["rates"]["minute"]["queued"] == 1
        fold(desk)


def test_flow_says_how_long_jobs_waited_and_ran(desk: Desk) -> None:
    jobs_made = [desk.create(job_type="a") for _ in range(2)]
    for job in jobs_made:
        desk.shift(job, 30)
    for job in desk.claim(limit=2):
        desk.shift(job, 10)
        desk.report(job, progress_percent=50)
        desk.report(job, status="success", result={"rows": 1})
    for _ in range(2):
        with desk.world.state.engine.connect() as connection, snapshot(connection) as tx:
            since = datetime.now(UTC) - timedelta(minutes=5)
            found = throughput.read(tx, desk.workspace_id, 60, since)
        waited = sum(each.seconds for each in found if each.status == JobStatus.RUNNING)
        took = sum(each.seconds for each in found if each.status == JobStatus.SUCCESS)
        assert sum(each.n for each in found if each.status == JobStatus.RUNNING) == 2
        assert 60 <= waited < 70
        assert 20 <= took < 30
        fold(desk)


def test_oldest_pending_is_the_one_that_has_been_due_the_longest(desk: Desk) -> None:
    assert read(desk)["oldest_pending_seconds"] is None
    desk.create(scheduled_at="2100-01-01T00:00:00Z")
    assert read(desk)["oldest_pending_seconds"] is None
    urgent, low = desk.create(priority="urgent"), desk.create(priority="low")
    assert 0 <= read(desk)["oldest_pending_seconds"] <= 2
    desk.shift(urgent, 100)
    desk.shift(low, 500)
    assert 500 <= read(desk)["oldest_pending_seconds"] <= 502
    desk.post(f"/{low['job_id']}/cancel")
    assert 100 <= read(desk)["oldest_pending_seconds"] <= 102


def test_durations_are_median_and_95th_percentile_by_type(desk: Desk) -> None:
    for seconds in range(1, 21):
        ran(desk, seconds, job_type="a", priority="high" if seconds % 2 else "low")
    ran(desk, 7.25, job_type="b")
    desk.job_in("failed", job_type="c")
    assert read(desk)["durations"] == {
        "a": {"jobs": 20, "median_seconds": 10.0, "p95_seconds": 19.0},
        "b": {"jobs": 1, "median_seconds": 7.25, "p95_seconds": 7.25},
    }


def test_durations_are_those_of_the_newest(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 1)
    for seconds in [900] * 3 + [5] * 10:
        ran(desk, seconds, job_type="a")
    assert read(desk)["durations"]["a"] == {"jobs": 10, "median_seconds": 5, "p95_seconds": 5}


def test_durations_share_the_sample_between_types_and_priorities(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 3 * 12)
    for kind in ({"job_type": "a"}, {"job_type": "a", "priority": "low"}, {"job_type": "b"}):
        for _ in range(14):
            ran(desk, 1, **kind)
    durations = read(desk)["durations"]
    assert {name: each["jobs"] for name, each in durations.items()} == {"a": 24, "b": 12}


def test_key_bound_to_job_types_sees_these_alone(desk: Desk) -> None:
    key = desk.world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["a"])
    old = desk.create(job_type="b")
    desk.shift(old, 1000)
    ran(desk, 5, job_type="b")
    desk.create(job_type="a")
    fold(desk)
    desk.create(job_type="a")
    found = read(desk, key)
    assert found["total"] == found["rates"]["hour"]["queued"] == 2
    assert found["by_type"].keys() == {"a"}
    assert found["oldest_pending_seconds"] < 100
    assert found["durations"] == {}


def test_flow_is_forgotten_when_it_is_old(desk: Desk) -> None:
    desk.create()
    fold(desk)

    def spans() -> set[int]:
        desk.world.maintain("old throughput")
        with desk.world.state.engine.connect() as connection:
            return set(connection.execute(select(job_flow.c.span)).scalars())

    assert spans() == {10, 60, 600}
    for kept, left in ((timedelta(minutes=6), {60, 600}), (timedelta(hours=3), {600})):
        with desk.world.transaction() as tx:
            tx.execute(update(job_flow).values(at=datetime.now(UTC) - kept))
        assert spans() == left
    with desk.world.transaction() as tx:
        tx.execute(update(job_flow).values(at=datetime.now(UTC) - timedelta(days=32)))
    assert spans() == set()


def test_net_flow_says_how_many_there_are_more(desk: Desk) -> None:
    for status in ("pending", "running", "success", "failed", "cancelled"):
        desk.job_in(status)
    failed = desk.get("?status=failed").json["data"][0]["job_id"]
    desk.post(f"/{failed}/retry")
    done = desk.get("?status=success").json["data"][0]["job_id"]
    assert desk.call("DELETE", f"{desk.jobs_path}/{done}").status_code == 204
    for _ in range(2):
        with desk.world.state.engine.connect() as connection, snapshot(connection) as tx:
            since = datetime.now(UTC) - timedelta(minutes=5)
            found = throughput.read(tx, desk.workspace_id, 60, since)
        net: Counter[int] = Counter()
        for each in found:
            net[each.status] += each.net
        assert +net == {JobStatus.PENDING: 2, JobStatus.RUNNING: 1, JobStatus.CANCELLED: 1}
        fold(desk)


def history(desk: Desk, window: str, token: str | None = None) -> Any:
    path = f"/workspace/{desk.workspace_id}/stats/history?window={window}"
    response = desk.world.call("GET", path, token or desk.token)
    assert response.status_code == 200, response.text
    return response.json


@pytest.mark.parametrize(
    ("window", "span", "number"), [("hour", 60, 60), ("day", 600, 144), ("month", 14400, 180)]
)
def test_history_has_a_point_for_each_span(desk: Desk, window: str, span: int, number: int) -> None:
    for status in ("pending", "running", "success", "failed", "cancelled"):
        desk.job_in(status)
    for _ in range(2):
        found = history(desk, window)
        assert (found["window"], found["span_seconds"]) == (window, span)
        assert len(found["data"]) == number
        begins = [datetime.fromisoformat(point["at"]).timestamp() for point in found["data"]]
        assert begins == [begins[0] + span * n for n in range(number)]
        assert begins[-1] % span == 0
        wanted = {"queued": 5, "started": 1, "succeeded": 1, "failed": 1, "cancelled": 1}
        sums = {name: sum(point[name] for point in found["data"]) for name in wanted}
        assert sums == wanted
        assert found["data"][-1]["by_status"] == dict.fromkeys(NOTHING, 1)
        assert found["data"][0]["by_status"] == NOTHING
        fold(desk)


def test_history_goes_back_from_now(desk: Desk) -> None:
    for job_type in "ab":
        ran(desk, 4, job_type=job_type)
    fold(desk)
    with desk.world.transaction() as tx:
        moved = update(job_flow).where(job_flow.c.job_type == "a", job_flow.c.span == 60)
        tx.execute(
            moved.values(at=throughput.begin_of(datetime.now(UTC) - timedelta(minutes=30), 60))
        )
    points = history(desk, "hour")["data"]
    totals = [point["by_status"]["success"] for point in points]
    assert totals == sorted(totals)
    assert (totals[0], totals[45], totals[-1]) == (0, 1, 2)
    assert points[0]["wait_seconds"] is points[0]["run_seconds"] is None
    key = desk.world.key(desk.workspace_id, desk.user, Role.VIEWER, job_types=["a"])
    only = history(desk, "hour", key)["data"]
    assert only[-1]["by_status"]["success"] == sum(point["succeeded"] for point in only) == 1


def test_history_of_another_window_is_422(desk: Desk) -> None:
    path = f"/workspace/{desk.workspace_id}/stats/history?window=year"
    assert desk.call("GET", path).status_code == 422
