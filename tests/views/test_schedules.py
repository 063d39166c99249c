"""Schedules over HTTP, and the jobs of their ticks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from jobapi import keys, workspaces
from jobapi.background.periodic_tasks import run_schedules
from jobapi.rules.roles import Role
from jobapi.services import ticks
from jobapi.store import tables

from ..factories import Desk

SCHEDULES = tables.schedules
JOB = {"job_type": "report"}


class Clock:
    """Ticks of schedules, at times that a test chooses."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.ticked: list[ticks.Ticked] = []

    def tick(self, *schedules: dict[str, Any]) -> list[str | None]:
        """Let schedules have a tick now; what became of it."""
        now = datetime.now(UTC) - timedelta(milliseconds=1)
        ids = [schedule["schedule_id"] for schedule in schedules]
        which = update(SCHEDULES).where(SCHEDULES.c.schedule_id.in_(ids))
        with self.desk.world.transaction() as tx:
            tx.execute(which.values(next_run_at=now, due_at=now))
        return self.outcomes(None)

    def run(self, now: datetime | None) -> list[ticks.Ticked]:
        """Handle what is due at a moment, as the maintenance does."""
        self.ticked = []
        with self.desk.world.state.engine.connect() as connection:
            while run_schedules(
                connection,
                on_ticked=self.ticked.append,
                announce=lambda connection, workspace_id: None,
                now=now,
            ):
                pass
        return self.ticked

    def outcomes(self, now: datetime | None) -> list[str | None]:
        """What became of the ticks that are due at a moment."""
        return [None if each.outcome is None else each.outcome.label for each in self.run(now)]


@pytest.fixture
def clock(desk: Desk) -> Clock:
    return Clock(desk)


def path(desk: Desk, rest: str = "") -> str:
    return f"/workspace/{desk.workspace_id}/schedules{rest}"


def made(desk: Desk, **body: Any) -> dict[str, Any]:
    """Create a schedule; by default with a tick each minute."""
    if "every_seconds" not in body:
        body = {"cron": "* * * * *", **body}
    response = desk.call("POST", path(desk), json={"name": "s", "job": JOB, **body})
    assert response.status_code == 201, response.text
    return dict(response.json)


def shown(desk: Desk, schedule: dict[str, Any]) -> dict[str, Any]:
    response = desk.call("GET", path(desk, f"/{schedule['schedule_id']}"))
    assert response.status_code == 200, response.text
    return dict(response.json)


def changed(desk: Desk, schedule: dict[str, Any], **body: Any) -> dict[str, Any]:
    response = desk.call("PATCH", path(desk, f"/{schedule['schedule_id']}"), json=body)
    assert response.status_code == 200, response.text
    return dict(response.json)


def act(desk: Desk, schedule: dict[str, Any], verb: str, **kw: Any) -> Any:
    return desk.call("POST", path(desk, f"/{schedule['schedule_id']}/{verb}"), **kw)


def jobs_of(desk: Desk, schedule: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    """The jobs of a schedule, in the order of their creation."""
    query = {"schedule_id": schedule["schedule_id"], "order": "asc", **query}
    response = desk.get("", query_string=query)
    assert response.status_code == 200, response.text
    assert response.json["pagination"]["total"] == len(response.json["data"])
    return list(response.json["data"])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def events(desk: Desk, kind: str) -> list[dict[str, Any]]:
    response = desk.call("GET", f"/workspace/{desk.workspace_id}/events?kind={kind}")
    assert response.status_code == 200, response.text
    return [{**each["data"], "user_id": each["user_id"]} for each in response.json["data"]]


def test_create_schedule_shows_its_next_ticks(desk: Desk) -> None:
    schedule = made(
        desk,
        name="nightly",
        cron="30  2 * * MON-FRI",
        timezone="Europe/Berlin",
        job={"job_type": "report", "priority": "high", "metadata": {"a": None, "b": 1}},
    )
    assert schedule["schedule_id"].startswith("sch_")
    assert schedule["cron"] == "30 2 * * MON-FRI"
    assert schedule["job"] == {
        "job_type": "report",
        "priority": "high",
        "metadata": {"a": None, "b": 1},
    }
    assert len(schedule["upcoming"]) == 5
    assert schedule["upcoming"][0] == schedule["next_run_at"]
    assert {
        name: schedule[name]
        for name in ("overlap", "catch_up", "jitter_seconds", "paused", "last_run", "runs_as")
    } == {
        "overlap": "allow",
        "catch_up": "last",
        "jitter_seconds": 0,
        "paused": False,
        "last_run": None,
        "runs_as": f"user:{desk.user.id}",
    }
    assert schedule["suspended_reason"] is None
    assert shown(desk, schedule) == schedule
    listed = desk.call("GET", path(desk)).json
    assert listed["data"] == [schedule]
    assert listed["pagination"]["total"] == 1


def test_create_schedule_answers_where_it_is(desk: Desk) -> None:
    body = {"name": "s", "every_seconds": 5, "job": JOB}
    response = desk.call("POST", path(desk), json=body)
    assert response.headers["Location"] == path(desk, f"/{response.json['schedule_id']}")
    assert response.headers["ETag"] == '"1"'
    assert desk.call("GET", response.headers["Location"]).headers["ETag"] == '"1"'


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "0 0 31 2,4 *"}, "cron"),
        ({"cron": "* * * *"}, "cron"),
        ({"cron": "0 * * * * *"}, "cron"),
        ({"cron": "@daily"}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "*/0 * * * *"}, "cron"),
        ({"cron": ""}, "cron"),
        ({}, "cron"),
        ({"cron": None, "every_seconds": None}, "cron"),
        ({"cron": "* * * * *", "every_seconds": 5}, "cron"),
        ({"every_seconds": 0}, "every_seconds"),
        ({"every_seconds": 1.5}, "every_seconds"),
        ({"cron": "* * * * *", "timezone": "Mars/Base"}, "timezone"),
        ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, "timezone"),
        ({"cron": "* * * * *", "timezone": "/etc/localtime"}, "timezone"),
        ({"cron": "* * * * *", "timezone": "europe/berlin"}, "timezone"),
        ({"cron": "* * * * *", "timezone": "posix/Europe/Berlin"}, "timezone"),
        ({"cron": "* * * * *", "job": {}}, "job.job_type"),
        ({"cron": "* * * * *", "job": {**JOB, "scheduled_at": "2030-01-01T00:00:00Z"}}, "job"),
        ({"cron": "* * * * *", "job": {**JOB, "expires_at": "2030-01-01T00:00:00Z"}}, "job"),
        ({"cron": "* * * * *", "job": {**JOB, "workspace_id": 9}}, "job.workspace_id"),
        ({"cron": "* * * * *", "job": {**JOB, "schedule_id": "sch_1"}}, "job"),
        ({"cron": "* * * * *", "name": " "}, "name"),
        ({"cron": "* * * * *", "overlap": "wait"}, "overlap"),
        ({"cron": "* * * * *", "catch_up": "some"}, "catch_up"),
        ({"cron": "* * * * *", "jitter_seconds": -1}, "jitter_seconds"),
        ({"cron": "* * * * *", "next_run_at": "2030-01-01T00:00:00Z"}, "next_run_at"),
        (
            {
                "cron": "* * * * *",
                "starts_at": "2030-01-02T00:00:00Z",
                "ends_at": "2030-01-01T00:00:00Z",
            },
            "ends_at",
        ),
    ],
)
def test_create_impossible_schedule_is_refused(
    desk: Desk, body: dict[str, Any], field: str
) -> None:
    response = desk.call("POST", path(desk), json={"name": "s", "job": JOB, **body})
    assert response.status_code == 422, response.text
    assert any(name == field or name.startswith(f"{field}.") for name in response.json["errors"])


def test_create_schedule_with_the_name_of_another_is_refused(desk: Desk) -> None:
    one = made(desk, name="a")
    body = {"name": "a", "every_seconds": 5, "job": JOB}
    refused = desk.call("POST", path(desk), json=body)
    assert refused.status_code == 409
    assert refused.json["type"].endswith("schedule-name-taken")
    other = made(desk, name="b")
    refused = desk.call("PATCH", path(desk, f"/{other['schedule_id']}"), json={"name": "a"})
    assert refused.status_code == 409
    assert changed(desk, one, name="a") == one


def test_create_more_schedules_than_may_be_is_refused(desk: Desk) -> None:
    for number in range(100):
        made(desk, name=str(number))
    body = {"name": "one more", "every_seconds": 5, "job": JOB}
    refused = desk.call("POST", path(desk), json=body)
    assert refused.status_code == 409
    assert refused.json["type"].endswith("too-many-schedules")
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 30, **({} if cursor is None else {"cursor": cursor})}
        page = desk.call("GET", path(desk), query_string=query).json
        seen += [each["name"] for each in page["data"]]
        cursor = page["pagination"]["next_cursor"]
        if cursor is None:
            break
    assert seen == [str(number) for number in range(100)]
    second = desk.call("GET", path(desk), query_string={"limit": 30, "page": 2}).json
    assert [each["name"] for each in second["data"]] == seen[30:60]
    assert second["pagination"]["total_pages"] == 4


def test_create_schedule_again_with_the_same_key_gives_the_first(desk: Desk) -> None:
    body = {"name": "s", "every_seconds": 5, "job": JOB}
    headers = {"Idempotency-Key": "k"}
    first = desk.call("POST", path(desk), json=body, headers=headers)
    again = desk.call("POST", path(desk), json=body, headers=headers)
    assert again.status_code == 201
    assert again.json == first.json
    assert again.headers["Idempotency-Replayed"] == "true"


def test_list_of_large_schedules_ends_early(desk: Desk) -> None:
    large = {**JOB, "metadata": {"text": "x" * 1_000_000}}
    for number in range(10):
        made(desk, name=str(number), job=large)
    first = desk.call("GET", path(desk)).json
    assert 1 < len(first["data"]) < 10
    cursor = first["pagination"]["next_cursor"]
    rest = desk.call("GET", path(desk), query_string={"cursor": cursor}).json
    assert len(first["data"]) + len(rest["data"]) == 10
    refused = desk.call("GET", path(desk), query_string={"page": 1})
    assert refused.status_code == 422
    assert refused.json["type"].endswith("page-too-large")


def test_tick_creates_the_job_once(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, job={**JOB, "priority": "high", "metadata": {"n": 1}, "max_retries": 0})
    due = moment(schedule["next_run_at"])
    assert clock.run(due - timedelta(seconds=1)) == []
    assert clock.outcomes(due + timedelta(seconds=1)) == ["created"]
    assert clock.run(due + timedelta(seconds=1)) == []
    (job,) = jobs_of(desk, schedule)
    assert job["schedule_id"] == schedule["schedule_id"]
    assert job["scheduled_for"] == schedule["next_run_at"]
    assert (job["priority"], job["metadata"], job["max_retries"]) == ("high", {"n": 1}, 0)
    assert (job["status"], job["created_by"]) == ("pending", desk.user.id)
    after = shown(desk, schedule)
    assert after["next_run_at"] == schedule["upcoming"][1]
    assert after["last_run"] == {
        "scheduled_for": schedule["next_run_at"],
        "ran_at": text(due + timedelta(seconds=1)),
        "outcome": "created",
        "job_id": job["job_id"],
    }
    (event,) = desk.get(f"/{job['job_id']}/events").json["data"]
    assert (event["kind"], event["user_id"]) == ("created", desk.user.id)


def test_job_without_schedule_has_null(desk: Desk) -> None:
    job = desk.create()
    assert (job["schedule_id"], job["scheduled_for"]) == (None, None)
    for body in ({"schedule_id": "sch_1"}, {"scheduled_for": "2030-01-01T00:00:00Z"}):
        full = {"job_type": "a", "workspace_id": desk.workspace_id, **body}
        assert desk.post(json=full).status_code == 422
        assert desk.patch(job["job_id"], body).status_code == 422


def test_interval_counts_from_its_start(desk: Desk, clock: Clock) -> None:
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    schedule = made(desk, every_seconds=7, starts_at=text(start))
    wanted = [text(start + timedelta(seconds=7 * n)) for n in range(5)]
    assert schedule["upcoming"] == wanted
    for n in range(3):
        clock.run(start + timedelta(seconds=7 * n + 1))
    assert [job["scheduled_for"] for job in jobs_of(desk, schedule)] == wanted[:3]
    past = made(desk, name="past", every_seconds=3600, starts_at="2020-01-01T00:20:00Z")
    assert past["next_run_at"].endswith(":20:00Z")


def test_interval_without_start_counts_from_the_creation(desk: Desk) -> None:
    schedule = made(desk, every_seconds=90)
    begin = moment(schedule["created_at"])
    assert schedule["upcoming"] == [text(begin + timedelta(seconds=90 * n)) for n in range(1, 6)]


def test_schedule_ends(desk: Desk, clock: Clock) -> None:
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    end = start + timedelta(seconds=20)
    schedule = made(desk, every_seconds=10, starts_at=text(start), ends_at=text(end))
    assert len(schedule["upcoming"]) == 3
    for n in range(4):
        clock.run(start + timedelta(seconds=10 * n + 1))
    assert len(jobs_of(desk, schedule)) == 3
    after = shown(desk, schedule)
    assert (after["next_run_at"], after["upcoming"], after["paused"]) == (None, [], False)
    over = made(desk, name="over", ends_at="2020-01-01T00:00:00Z")
    assert over["next_run_at"] is None


def test_jitter_delays_the_job_and_not_the_tick(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, cron="0 * * * *", jitter_seconds=600)
    tick = moment(schedule["next_run_at"])
    made_at = [
        second for second in range(0, 601, 20) if clock.run(tick + timedelta(seconds=second))
    ]
    (job,) = jobs_of(desk, schedule)
    assert len(made_at) == 1
    assert job["scheduled_for"] == schedule["next_run_at"]
    assert moment(job["created_at"]) >= tick


def test_jitter_longer_than_the_time_between_ticks_is_no_outage(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, cron="* * * * *", jitter_seconds=300, catch_up="none")
    first = moment(schedule["next_run_at"])
    for second in range(0, 1201, 4):
        clock.run(first + timedelta(seconds=second))
    found = {moment(job["scheduled_for"]) for job in jobs_of(desk, schedule)}
    assert found >= {first + n * MINUTE for n in range(16)}


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("catch_up", "wanted"), [("none", []), ("last", [9]), ("all", list(range(10)))]
)
def test_outage_is_caught_up(desk: Desk, clock: Clock, catch_up: str, wanted: list[int]) -> None:
    schedule = made(desk, catch_up=catch_up)
    first = moment(schedule["next_run_at"])
    clock.run(first + 9 * MINUTE + timedelta(seconds=30))
    found = [moment(job["scheduled_for"]) for job in jobs_of(desk, schedule)]
    assert found == [first + n * MINUTE for n in wanted]
    assert shown(desk, schedule)["next_run_at"] == text(first + 10 * MINUTE)
    assert clock.outcomes(first + 10 * MINUTE) == ["created"]
    skipped = events(desk, "schedule_skipped")
    if catch_up == "all":
        assert skipped == []
    else:
        assert skipped == [
            {
                "schedule_id": schedule["schedule_id"],
                "name": "s",
                "reason": "missed",
                "scheduled_for": text(first),
                "until": text(first + (9 if catch_up == "none" else 8) * MINUTE),
                "user_id": None,
            }
        ]


def test_outage_longer_than_100_ticks_makes_100_jobs(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, catch_up="all")
    first = moment(schedule["next_run_at"])
    clock.run(first + timedelta(days=1) + timedelta(seconds=30))
    found = [moment(job["scheduled_for"]) for job in jobs_of(desk, schedule, limit=100)]
    assert found == [first + timedelta(days=1) - n * MINUTE for n in reversed(range(100))]
    (skipped,) = events(desk, "schedule_skipped")
    assert skipped["until"] == text(first + timedelta(days=1) - 100 * MINUTE)


def test_tick_within_the_grace_is_not_missed(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, every_seconds=1, catch_up="none")
    first = moment(schedule["next_run_at"])
    clock.run(first + timedelta(seconds=4))
    assert len(jobs_of(desk, schedule)) == 5


def test_overlap_allow_creates_another(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, overlap="allow")
    first = moment(schedule["next_run_at"])
    for n in range(2):
        assert clock.outcomes(first + n * MINUTE) == ["created"]
    assert len(jobs_of(desk, schedule, status="pending")) == 2


def test_overlap_skip_creates_none_while_one_is_live(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, overlap="skip")
    assert clock.tick(schedule) == ["created"]
    (job,) = desk.claim()
    assert clock.tick(schedule) == ["overlap"]
    assert shown(desk, schedule)["last_run"]["outcome"] == "overlap"
    assert [each["reason"] for each in events(desk, "schedule_skipped")] == ["overlap"]
    desk.report(job, status="success")
    assert clock.tick(schedule) == ["created"]
    assert len(jobs_of(desk, schedule)) == 2


def test_overlap_replace_cancels_the_live_one(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, overlap="replace", job={**JOB, "unique_key": "k"})
    clock.tick(schedule)
    (job,) = desk.claim()
    assert clock.tick(schedule) == ["created"]
    old, new = jobs_of(desk, schedule)
    assert (old["status"], new["status"]) == ("cancelled", "pending")
    assert "next run" in old["result"]["cancelled_reason"]
    assert desk.report(job, status="success")["problem"]["type"].endswith("lease-lost")


@pytest.mark.parametrize("on_conflict", [None, "keep", "replace", "refuse"])
def test_live_unique_key_settles_the_tick(desk: Desk, clock: Clock, on_conflict: Any) -> None:
    live = desk.create(job_type="report", unique_key="k")
    if on_conflict == "replace":
        desk.claim()
    job = {**JOB, "unique_key": "k", "on_conflict": on_conflict}
    schedule = made(desk, job=job)
    first = moment(schedule["next_run_at"])
    assert clock.outcomes(first) == ["existing"]
    after = shown(desk, schedule)
    assert after["last_run"]["job_id"] == live["job_id"]
    assert after["next_run_at"] == schedule["upcoming"][1]
    assert jobs_of(desk, schedule) == []


def test_full_queue_makes_no_job_and_is_an_event(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, overlap="replace")
    limit = {"max_pending": 1}
    types = f"/workspace/{desk.workspace_id}/job-types/report"
    assert desk.call("PATCH", types, json=limit).status_code == 200
    assert clock.tick(schedule) == ["created"]
    # In the place of the one that it cancels.
    assert clock.tick(schedule) == ["created"]
    assert len(desk.claim()) == 1
    desk.create(job_type="report")
    assert clock.tick(schedule) == ["queue_full"]
    running = [job["status"] for job in jobs_of(desk, schedule)]
    assert running == ["cancelled", "running"]
    assert [each["reason"] for each in events(desk, "schedule_skipped")] == ["queue-full"]
    assert shown(desk, schedule)["next_run_at"] is not None


def test_pause_of_workspace_and_type_does_not_stop_ticks(desk: Desk, clock: Clock) -> None:
    schedule = made(desk)
    for place in ("", "/job-types/report"):
        paused = desk.call("POST", f"/workspace/{desk.workspace_id}{place}/pause")
        assert paused.status_code == 200
    assert clock.outcomes(moment(schedule["next_run_at"])) == ["created"]
    assert desk.claim() == []


def test_pause_and_resume(desk: Desk, clock: Clock) -> None:
    schedule = made(desk)
    first = moment(schedule["next_run_at"])
    paused = act(desk, schedule, "pause", json={"reason": "deploy"}).json
    assert (paused["paused"], paused["paused_reason"]) == (True, "deploy")
    assert (paused["next_run_at"], paused["upcoming"]) == (None, [])
    assert clock.run(first + 10 * MINUTE) == []
    assert changed(desk, schedule, cron="*/2 * * * *")["next_run_at"] is None
    resumed = act(desk, schedule, "resume").json
    assert (resumed["paused"], resumed["paused_reason"]) == (False, None)
    assert moment(resumed["next_run_at"]) > datetime.now(UTC) - MINUTE
    assert act(desk, schedule, "resume").json == resumed
    assert [each["reason"] for each in events(desk, "schedule_paused")] == ["deploy"]
    assert len(events(desk, "schedule_resumed")) == 1


def test_run_creates_the_job_now(desk: Desk, clock: Clock) -> None:
    schedule = made(desk, overlap="skip")
    act(desk, schedule, "pause")
    headers = {"Idempotency-Key": "k"}
    response = act(desk, schedule, "run", headers=headers)
    assert response.status_code == 201, response.text
    job = response.json
    assert (job["schedule_id"], job["scheduled_for"]) == (schedule["schedule_id"], None)
    assert desk.call("GET", response.headers["Location"]).json == job
    again = act(desk, schedule, "run", headers=headers)
    assert again.json == job
    act(desk, schedule, "resume")
    assert clock.tick(schedule) == ["overlap"]
    assert act(desk, schedule, "run").status_code == 201
    assert len(jobs_of(desk, schedule)) == 2
    last = shown(desk, schedule)["last_run"]
    assert (last["outcome"], last["scheduled_for"]) == ("created", None)


def test_run_with_a_live_unique_key_answers_with_that_job(desk: Desk) -> None:
    schedule = made(desk, job={**JOB, "unique_key": "k"})
    first = act(desk, schedule, "run")
    again = act(desk, schedule, "run")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json["existing"] is True
    assert again.json["job_id"] == first.json["job_id"]
    changed(desk, schedule, job={"on_conflict": "refuse"})
    refused = act(desk, schedule, "run")
    assert refused.status_code == 409
    assert refused.json["type"].endswith("job-exists")


def test_update_merges_the_job(desk: Desk) -> None:
    schedule = made(desk, job={**JOB, "priority": "high", "metadata": {"a": 1, "b": {"c": 2}}})
    patch = {"priority": None, "metadata": {"a": None, "b": {"d": 3}}, "timeout_seconds": 9}
    after = changed(desk, schedule, job=patch, name="new")
    assert after["job"] == {
        "job_type": "report",
        "metadata": {"b": {"c": 2, "d": 3}},
        "timeout_seconds": 9,
    }
    assert after["name"] == "new"
    assert after["next_run_at"] == schedule["next_run_at"]
    refused = desk.call(
        "PATCH", path(desk, f"/{schedule['schedule_id']}"), json={"job": {"job_type": None}}
    )
    assert refused.status_code == 422
    assert changed(desk, schedule) == after
    (event,) = events(desk, "schedule_changed")
    assert event["changed"] == ["name", "job"]


def test_update_of_times_continues_from_now(desk: Desk) -> None:
    schedule = made(desk, catch_up="all", jitter_seconds=5, timezone="Asia/Tokyo")
    after = changed(desk, schedule, every_seconds=3600)
    assert (after["cron"], after["every_seconds"]) == (None, 3600)
    back = changed(desk, schedule, cron="0 0 1 1 *", timezone=None, catch_up=None)
    assert (back["timezone"], back["catch_up"]) == ("UTC", "last")
    assert back["every_seconds"] is None
    assert back["next_run_at"].endswith("-01-01T00:00:00Z")
    for wrong in (
        {"cron": None},
        {"cron": "* * * * *", "every_seconds": 5},
        {"cron": "0 0 30 2 *"},
    ):
        response = desk.call("PATCH", path(desk, f"/{schedule['schedule_id']}"), json=wrong)
        assert response.status_code == 422, response.text
    assert shown(desk, schedule) == back


def test_update_with_an_old_version_is_refused(desk: Desk, clock: Clock) -> None:
    schedule = made(desk)
    where = path(desk, f"/{schedule['schedule_id']}")
    clock.run(moment(schedule["next_run_at"]))
    # A tick is no edit.
    first = desk.call("PATCH", where, json={"name": "a"}, headers={"If-Match": '"1"'})
    assert (first.status_code, first.headers["ETag"]) == (200, '"2"')
    refused = desk.call("PATCH", where, json={"name": "b"}, headers={"If-Match": '"1"'})
    assert refused.status_code == 412


def test_delete_leaves_the_jobs(desk: Desk, clock: Clock) -> None:
    schedule = made(desk)
    clock.run(moment(schedule["next_run_at"]))
    where = path(desk, f"/{schedule['schedule_id']}")
    assert desk.call("DELETE", where).status_code == 204
    assert desk.call("GET", where).status_code == 404
    assert desk.call("DELETE", where).status_code == 404
    assert len(jobs_of(desk, schedule)) == 1
    assert len(events(desk, "schedule_deleted")) == 1
    assert clock.run(moment(schedule["next_run_at"]) + MINUTE) == []


def test_jobs_of_several_schedules_are_filtered(desk: Desk, clock: Clock) -> None:
    one, two = made(desk, name="one"), made(desk, name="two")
    desk.create()
    assert clock.tick(one, two) == ["created", "created"]
    both = desk.get("", query_string={"schedule_id": [one["schedule_id"], two["schedule_id"]]})
    assert both.json["pagination"]["total"] == 2
    assert desk.get("", query_string={"schedule_id": "sch_0"}).json["data"] == []
    assert desk.get("", query_string={"schedule_id": "5"}).status_code == 422
    body = {"action": "cancel", "filter": {"schedule_id": [one["schedule_id"]]}}
    cancelled = desk.call("POST", f"/workspace/{desk.workspace_id}/operations", json=body)
    assert cancelled.json["changed"] == 1


def test_schedule_of_another_workspace_is_not_found(desk: Desk, clock: Clock) -> None:
    other = Desk(desk.world)
    schedule = made(other)
    for name in (schedule["schedule_id"], "sch_x", "%00", "é", "1"):
        assert desk.call("GET", path(desk, f"/{name}")).status_code == 404
        assert desk.call("POST", path(desk, f"/{name}/run")).status_code == 404
    assert desk.call("GET", path(desk)).json["data"] == []


def no_longer(desk: Desk, how: str) -> tuple[dict[str, Any], str]:
    """A schedule of somebody who then loses what its ticks need; and a part of the reason."""
    world, workspace_id = desk.world, desk.workspace_id
    member = world.member(workspace_id, Role.MEMBER)
    token = world.token(member)
    if "key" in how:
        more = {"job_types": ["report"]} if how == "key of other types" else {}
        token = world.key(workspace_id, member, Role.MEMBER, **more)
    body = {"name": "s", "cron": "* * * * *", "job": JOB}
    schedule = world.call("POST", path(desk), token, json=body).json
    c = tables.api_keys.c
    with world.transaction() as tx:
        if how in ("left", "key of a user who left"):
            workspaces.remove_member(tx, workspace_id, member.id)
            return schedule, "not a member"
        if how in ("viewer", "key of a viewer"):
            workspaces.set_role(tx, workspace_id, member.id, Role.VIEWER)
            return schedule, "role member"
        if how == "disabled":
            disabled = update(tables.users).where(tables.users.c.id == member.id)
            tx.execute(disabled.values(disabled=True))
            return schedule, "disabled"
        key_id = tx.execute(select(c.id).where(c.user_id == member.id)).scalar_one()
        if how == "revoked key":
            keys.revoke(tx, workspace_id, key_id)
            return schedule, "revoked"
        if how == "expired key":
            past = datetime.now(UTC) - timedelta(days=1)
            tx.execute(update(tables.api_keys).where(c.id == key_id).values(expires_at=past))
            return schedule, "expired"
        tx.execute(update(tables.api_keys).where(c.id == key_id).values(job_types=["other"]))
        return schedule, "other job types"


@pytest.mark.parametrize(
    "how",
    [
        "left",
        "viewer",
        "disabled",
        "revoked key",
        "expired key",
        "key of other types",
        "key of a user who left",
        "key of a viewer",
    ],
)
def test_tick_of_somebody_who_may_not_any_more_suspends(desk: Desk, clock: Clock, how: str) -> None:
    schedule, reason = no_longer(desk, how)
    first = moment(schedule["next_run_at"])
    assert clock.outcomes(first) == [None]
    after = shown(desk, schedule)
    assert reason in after["suspended_reason"]
    assert (after["next_run_at"], after["upcoming"]) == (None, [])
    assert jobs_of(desk, schedule) == []
    (event,) = events(desk, "schedule_suspended")
    assert event["reason"] == after["suspended_reason"]
    assert clock.run(first + MINUTE) == []
    # Somebody else takes it over.
    taken = changed(desk, schedule, job={"metadata": {"a": 1}})
    assert taken["runs_as"] == f"user:{desk.user.id}"
    assert taken["suspended_reason"] is None
    assert clock.outcomes(moment(taken["next_run_at"])) == ["created"]
    (job,) = jobs_of(desk, schedule)
    assert job["created_by"] == desk.user.id


def test_resume_of_suspended_schedule_is_judged_again(desk: Desk, clock: Clock) -> None:
    schedule, _ = no_longer(desk, "left")
    clock.run(moment(schedule["next_run_at"]))
    resumed = act(desk, schedule, "resume").json
    assert resumed["suspended_reason"] is None
    assert clock.outcomes(moment(resumed["next_run_at"])) == [None]
    assert len(events(desk, "schedule_suspended")) == 2


def test_schedule_of_a_key_runs_as_the_key(desk: Desk, clock: Clock) -> None:
    world = desk.world
    key = world.key(desk.workspace_id, desk.user, Role.MEMBER)
    body = {"name": "s", "cron": "* * * * *", "job": JOB}
    schedule = world.call("POST", path(desk), key, json=body).json
    assert schedule["runs_as"].startswith("key:")
    clock.run(moment(schedule["next_run_at"]))
    (job,) = jobs_of(desk, schedule)
    assert job["created_by"] == desk.user.id
    (event,) = desk.get(f"/{job['job_id']}/events").json["data"]
    assert f"key:{event['key_id']}" == schedule["runs_as"]
    # A change of anything but the job changes nothing about it.
    assert changed(desk, schedule, name="t")["runs_as"] == schedule["runs_as"]


def test_key_of_job_types_sees_its_schedules_only(desk: Desk) -> None:
    world = desk.world
    key = world.key(desk.workspace_id, desk.user, Role.MEMBER, job_types=["report"])
    mine = made(desk, name="mine")
    other = made(desk, name="other", job={"job_type": "import"})
    listed = world.call("GET", path(desk), key).json
    assert [each["name"] for each in listed["data"]] == ["mine"]
    where = path(desk, f"/{other['schedule_id']}")
    for method, rest in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/run"),
        ("POST", "/pause"),
        ("POST", "/resume"),
    ):
        kw: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
        assert world.call(method, where + rest, key, **kw).status_code == 404
    body = {"name": "new", "every_seconds": 5, "job": {"job_type": "import"}}
    assert world.call("POST", path(desk), key, json=body).status_code == 403
    own = path(desk, f"/{mine['schedule_id']}")
    refused = world.call("PATCH", own, key, json={"job": {"job_type": "import"}})
    assert refused.status_code == 403
    assert world.call("POST", own + "/run", key).status_code == 201


def test_tick_that_fails_is_put_off_and_holds_up_no_other(desk: Desk, clock: Clock) -> None:
    broken, good = made(desk, name="broken"), made(desk, name="good")
    with desk.world.transaction() as tx:
        wrong = update(SCHEDULES).where(SCHEDULES.c.schedule_id == broken["schedule_id"])
        tx.execute(wrong.values(job={"job_type": "report", "priority": "none"}))
    assert clock.tick(broken, good) == ["created"]
    assert len(jobs_of(desk, good)) == 1
    assert jobs_of(desk, broken) == []
    with desk.world.transaction() as tx:
        row = tx.execute(
            select(SCHEDULES).where(SCHEDULES.c.schedule_id == broken["schedule_id"])
        ).one()
    assert row.next_run_at < datetime.now(UTC)
    assert row.due_at > datetime.now(UTC)


def test_deleted_workspace_has_no_ticks(desk: Desk, clock: Clock) -> None:
    schedule = made(desk)
    assert desk.call("DELETE", f"/workspace/{desk.workspace_id}").status_code == 204
    assert clock.run(moment(schedule["next_run_at"])) == []
    desk.world.maintain("deleted workspaces")
    with desk.world.transaction() as tx:
        assert tx.execute(select(SCHEDULES)).all() == []
