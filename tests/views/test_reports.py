"""Reports: what the holder of a lease can do, and that no other caller can."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from jobapi import queue
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.rules.roles import Role
from jobapi.store.tables import jobs
from jobapi.store.transactions import BY_KEY, transaction

from ..factories import Desk, World

FINAL = [("success", "success"), ("failed", "failed"), ("pending", "released")]


def leased(desk: Desk, **job: Any) -> dict[str, Any]:
    desk.create(**job)
    return desk.claim(worker="w1")[0]


def shown(desk: Desk, job: Any) -> dict[str, Any]:
    return dict(desk.get(f"/{job['job_id']}").json)


def refusal(answer: Any, *, renewed: bool = False) -> str:
    assert not answer["accepted"]
    assert (answer["lease_expires_at"] is not None) == renewed
    return str(answer["problem"]["type"].rsplit(":", 1)[1])


def test_heartbeat_renews_the_lease_for_its_own_time(desk: Desk) -> None:
    desk.create()
    (job,) = desk.claim(lease_seconds=100)
    desk.shift(job, 90)
    for body in ({}, {"status": "running"}, {"status": None}):
        answer = desk.report(job, **body)
        assert answer["accepted"]
        assert answer["status"] == "running"
        assert answer["problem"] is None
        left = datetime.fromisoformat(answer["lease_expires_at"]) - datetime.now(UTC)
        assert timedelta(seconds=95) < left <= timedelta(seconds=100)


def test_progress_and_result_of_a_report_are_merged(desk: Desk) -> None:
    job = leased(desk)
    desk.report(job, progress_percent=20, progress_message="a", result={"rows": 1, "x": {"y": 1}})
    desk.report(job, result={"progress_percent": 40, "x": {"z": 2}, "rows": None})
    now = shown(desk, job)
    assert now["result"] == {
        "progress_percent": 40,
        "progress_message": "a",
        "x": {"y": 1, "z": 2},
    }
    desk.report(job, status="completed", result={"done": True})
    now = shown(desk, job)
    assert now["status"] == "success"
    assert now["result"] == {"x": {"y": 1, "z": 2}, "done": True}
    assert now["completed_at"] is not None
    assert now["actual_duration"] == 0


def test_failure_is_retried_while_retries_are_left(desk: Desk) -> None:
    job = leased(desk, max_retries=1)
    assert desk.report(job, status="failed", error="e1", result={"part": 1})["status"] == "pending"
    now = shown(desk, job)
    assert (now["retry_count"], now["error"], now["result"]) == (1, "e1", {"part": 1})
    wait = datetime.fromisoformat(now["due_at"]) - datetime.now(UTC)
    assert timedelta(seconds=1) < wait <= timedelta(seconds=5)
    assert desk.claim() == []
    desk.shift(job, 10)
    (again,) = desk.claim(worker="w2")
    assert again["attempt"] == 2
    assert desk.report(again, status="failed", error="e2")["status"] == "failed"
    now = shown(desk, job)
    assert (now["status"], now["retry_count"], now["error"]) == ("failed", 1, "e2")
    assert [(a["attempt"], a["worker"], a["outcome"], a["error"]) for a in desk.attempts(job)] == [
        (1, "w1", "failed", "e1"),
        (2, "w2", "failed", "e2"),
    ]


def test_success_after_a_failure_has_no_error(desk: Desk) -> None:
    job = leased(desk)
    desk.report(job, status="failed", error="e1", retry_after=0)
    (again,) = desk.claim()
    assert again["error"] == "e1"
    desk.report(again, status="success")
    assert shown(desk, job)["error"] is None


def test_report_failure_not_retryable_is_final(desk: Desk) -> None:
    job = leased(desk)
    assert desk.report(job, status="failed", error="no", retryable=False)["status"] == "failed"
    assert shown(desk, job)["retry_count"] == 0


def test_retry_after_is_when_it_is_due(desk: Desk) -> None:
    job = leased(desk)
    desk.report(job, status="failed", retry_after=1000)
    wait = datetime.fromisoformat(shown(desk, job)["due_at"]) - datetime.now(UTC)
    assert timedelta(seconds=990) < wait <= timedelta(seconds=1000)


def test_hand_back_counts_no_retry_and_is_due_at_once(desk: Desk) -> None:
    job = leased(desk)
    desk.report(job, progress_percent=50, result={"part": 1})
    assert desk.report(job, status="pending")["status"] == "pending"
    now = shown(desk, job)
    assert (now["retry_count"], now["due_at"]) == (0, job["due_at"])
    assert (now["started_at"], now["result"]) == (None, {"part": 1})
    (again,) = desk.claim(worker="w2")
    assert again["attempt"] == 2
    listed = desk.attempts(job)
    assert [(a["attempt"], a["worker"], a["outcome"]) for a in listed] == [
        (1, "w1", "released"),
        (2, "w2", None),
    ]
    assert listed[1]["ended_at"] is None


@pytest.mark.parametrize(("status", "outcome"), FINAL)
def test_final_report_repeated_is_accepted_and_changes_nothing(
    desk: Desk, status: str, outcome: str
) -> None:
    job = leased(desk)
    first = desk.report(job, status=status, result={"a": 1}, retryable=False)
    before = shown(desk, job)
    again = desk.report(job, status=status, result={"a": 2}, retryable=False)
    assert again == first
    assert shown(desk, job) == before
    assert [a["outcome"] for a in desk.attempts(job)] == [outcome]
    other = "failed" if status == "success" else "success"
    assert refusal(desk.report(job, status=other)) == "lease-lost"
    assert refusal(desk.report(job)) == "lease-lost"
    assert shown(desk, job) == before


def test_repeat_failure_after_the_next_attempt_started_changes_nothing(desk: Desk) -> None:
    job = leased(desk)
    desk.report(job, status="failed", error="e", retry_after=0)
    (again,) = desk.claim()
    answer = desk.report(job, status="failed", error="e", retry_after=0)
    assert answer["accepted"]
    assert answer["status"] == "running"
    assert desk.report(again, status="success")["status"] == "success"


def test_wrong_token_is_lease_lost_and_changes_nothing(desk: Desk) -> None:
    job = leased(desk)
    before = shown(desk, job)
    for token in ("x", "0" * 32):
        for status in (None, "running", "pending", "success", "failed"):
            wrong = {**job, "lease_token": token}
            assert refusal(desk.report(wrong, status=status)) == "lease-lost"
    response = desk.patch(job["job_id"], {"status": "success"}, headers={"Lease-Token": "x"})
    assert response.status_code == 409
    assert response.json["type"].endswith(":lease-lost")
    assert shown(desk, job) == before


def test_cancelled_job_tells_its_worker(desk: Desk) -> None:
    job = leased(desk)
    assert desk.post(f"/{job['job_id']}/cancel").status_code == 200
    answer = desk.report(job, status="success", result={"a": 1})
    assert refusal(answer) == "lease-lost"
    assert answer["status"] == "cancelled"
    assert "cancelled" in answer["problem"]["detail"]
    assert [a["outcome"] for a in desk.attempts(job)] == ["cancelled"]


@pytest.mark.parametrize(
    "body",
    [
        {"status": "running"},
        {"status": "success"},
        {"status": "failed"},
        {"progress_percent": 3},
        {"result": {"a": 1}},
        {"error": "e"},
    ],
)
def test_patch_of_a_leased_job_needs_the_token(desk: Desk, body: Any) -> None:
    job = leased(desk)
    before = shown(desk, job)
    response = desk.patch(job["job_id"], body)
    assert response.status_code == 409
    assert response.json["type"].endswith(":lease-required")
    assert shown(desk, job) == before
    assert desk.patch(job["job_id"], {}).status_code == 200
    headers = {"Lease-Token": job["lease_token"]}
    assert desk.patch(job["job_id"], body, headers=headers).status_code == 200


def test_patch_with_the_token_is_a_report(desk: Desk) -> None:
    job = leased(desk)
    headers = {"Lease-Token": job["lease_token"]}
    response = desk.patch(job["job_id"], {"status": "failed", "error": "e"}, headers=headers)
    assert response.json["status"] == "pending"
    assert response.json["retry_count"] == 1
    job = leased(desk)
    headers = {"Lease-Token": job["lease_token"]}
    assert desk.patch(job["job_id"], {"priority": "low"}, headers=headers).status_code == 409
    stale = {**headers, "If-Match": '"1"'}
    assert desk.patch(job["job_id"], {"progress_percent": 1}, headers=stale).status_code == 412
    response = desk.patch(job["job_id"], {"status": "pending"}, headers=headers)
    assert response.json["status"] == "pending"
    response = desk.patch(job["job_id"], {"status": "cancelled"}, headers=headers)
    assert response.json["status"] == "cancelled"


def test_manual_work_is_an_attempt_too(desk: Desk) -> None:
    run = desk.job_in("running")
    desk.patch(run["job_id"], {"status": "failed", "error": "e"})
    assert shown(desk, run)["status"] == "failed"
    desk.post(f"/{run['job_id']}/retry")
    desk.patch(run["job_id"], {"status": "success"})
    listed = [(a["attempt"], a["worker"], a["outcome"], a["error"]) for a in desk.attempts(run)]
    assert listed == [(1, None, "failed", "e"), (2, None, "success", None)]
    assert desk.attempts(desk.create()) == []
    cancelled = desk.job_in("cancelled")
    assert desk.attempts(cancelled) == []


def test_each_report_is_judged_alone(desk: Desk) -> None:
    good, bad, other = (leased(desk) for _ in range(3))
    desk.report(bad, status="success")
    ids = {name: good[name] for name in ("job_id", "lease_token")}
    given = [
        {"job_id": bad["job_id"], "lease_token": "x", "status": "success"},
        {**ids, "progress_percent": 10},
        17,
        {"job_id": 5},
        {**ids, "progress_percent": 101},
        {**ids, "status": "cancelled"},
        {"job_id": "job_unknown", "lease_token": "x"},
        {**ids, "status": "success", "error": "e"},
        {**ids, "status": "success", "result": {"n": 1}},
        {**ids, "status": "success"},
        {"job_id": other["job_id"], "lease_token": other["lease_token"]},
    ]
    answers = desk.post("/report", json={"reports": given}).json["data"]
    kinds = [a["problem"] and a["problem"]["type"].rsplit(":", 1)[1] for a in answers]
    assert kinds == [
        "lease-lost",
        None,
        "validation-failed",
        "validation-failed",
        "validation-failed",
        "validation-failed",
        "job-not-found",
        "validation-failed",
        None,
        None,
        None,
    ]
    assert [a["job_id"] for a in answers[:2]] == [bad["job_id"], good["job_id"]]
    assert list(answers[4]["problem"]["errors"]) == ["progress_percent"]
    assert shown(desk, good)["result"] == {"n": 1}


@pytest.mark.parametrize("body", [{}, {"reports": []}, {"reports": [{}] * 101}, {"reports": {}}])
def test_reports_that_are_no_list_of_1_to_100_are_422(desk: Desk, body: Any) -> None:
    assert desk.post("/report", json=body).status_code == 422


@pytest.mark.parametrize("status", ["running", "success", "failed", "pending"])
def test_result_that_grows_too_large_is_refused_alone(desk: Desk, status: str) -> None:
    job = leased(desk)
    assert desk.report(job, result={"a": "x" * 600_000})["accepted"]
    too_large = {"status": status, "result": {"b": "x" * 600_000}}
    headers = {"Lease-Token": job["lease_token"]}
    for way in ("report", "patch"):
        desk.shift(job, 50)
        before = row(desk, job)
        if way == "report":
            answer = desk.report(job, **too_large)
            assert refusal(answer, renewed=True) == "validation-failed"
        else:
            assert desk.patch(job["job_id"], too_large, headers=headers).status_code == 422
        after = row(desk, job)
        assert after.lease_expires_at - before.lease_expires_at >= timedelta(seconds=50)
        assert after.version == before.version
    assert desk.report(job, status="success")["accepted"]


MALFORMED: list[dict[str, Any]] = [
    {"progress_percent": 101},
    {"progress_percent": 33.3},
    {"progress_percent": "half"},
    {"progress_percent": 2**40},
    {"progress_message": "x" * 2001},
    {"progress_message": 5},
    {"result": [1]},
    {"result": {"progress_percent": -1}},
    {"error": "x" * 70_000},
    {"status": "done"},
    {"status": "cancelled"},
    {"status": "success", "error": "e"},
    {"status": "failed", "retry_after": -1},
    {"status": "pending", "progress_percent": 101},
    {"begun": "yes"},
    {"run_id": "x" * 65},
    {"percent": 5},
]


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("said", MALFORMED)
def test_report_with_invalid_content_renews_the_lease(
    desk: Desk, said: dict[str, Any], begin: bool
) -> None:
    desk.create()
    (job,) = desk.claim(lease_seconds=60, begin=begin)
    desk.shift(job, 50)
    before = row(desk, job)
    answer = desk.report(job, **said)
    assert refusal(answer, renewed=True) == "validation-failed"
    assert (answer["job_id"], answer["status"]) == (job["job_id"], "running")
    after = row(desk, job)
    assert after.lease_expires_at - before.lease_expires_at >= timedelta(seconds=50)
    renewed = {"lease_expires_at": None}
    assert {**after._mapping, **renewed} == {**before._mapping, **renewed}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"progress_percent": 101}, 422),
        ({"progress_message": "x" * 2001}, 422),
        ({"begun": "yes"}, 422),
        ({"priority": "low", "progress_percent": 5}, 409),
        (b'{"progress_message": "\\u0000"}', 400),
        (b'{"result": {"n": 99999999999999999999}}', 400),
        (b'{"result": {"n": NaN}}', 400),
        (b"{", 400),
        (b"", 400),
        (b'{"result": {"rows": "' + b"x" * 2_000_000 + b'"}}', 413),
    ],
)
def test_patch_with_invalid_content_renews_the_lease(desk: Desk, body: Any, status: int) -> None:
    job = leased(desk)
    desk.shift(job, 50)
    before = row(desk, job)
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    path = f"{desk.jobs_path}/{job['job_id']}"
    types = {"content_type": "application/json"}
    other = {"Lease-Token": "0" * 32}
    assert desk.call("PATCH", path, **sent, **types, headers=other).status_code in (status, 409)
    assert row(desk, job) == before
    mine = {"Lease-Token": job["lease_token"]}
    assert desk.call("PATCH", path, **sent, **types, headers=mine).status_code == status
    after = row(desk, job)
    assert after.lease_expires_at - before.lease_expires_at >= timedelta(seconds=50)
    assert after.version == before.version


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"progress_percent": 5}, {"If-Match": '"99"'}, 412),
        ({"status": "success"}, {"If-Match": '"99"'}, 412),
        ({"status": "cancelled"}, {}, 403),
    ],
)
def test_patch_refused_for_its_conditions_renews_the_lease(
    world: World, desk: Desk, body: Any, headers: Any, status: int
) -> None:
    job = leased(desk)
    desk.shift(job, 50)
    before = row(desk, job)
    path = f"{desk.jobs_path}/{job['job_id']}"
    key = world.key(desk.workspace_id, desk.user, Role.WORKER)
    for token, renewed in (("0" * 32, False), (job["lease_token"], True)):
        sent = {**headers, "Lease-Token": token}
        assert world.call("PATCH", path, key, json=body, headers=sent).status_code == status
        after = row(desk, job)
        assert (after.lease_expires_at > before.lease_expires_at) == renewed
        assert after.version == before.version


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ('"progress_message": "a\\u0000b"', "progress_message"),
        ('"progress_message": "a\\ud800b"', "progress_message"),
        ('"progress_percent": 99999999999999999999', "progress_percent"),
        ('"progress_percent": NaN', "progress_percent"),
        ('"result": {"rows": [1, {"n": 1e400}]}', "result"),
        ('"result": {"rows": 123456789012345678901234567890}', "result"),
        ('"result": {"\\u0000": 1}', "result"),
        ('"result": ' + '{"a":' * 70 + "1" + "}" * 70, "result"),
        ('"status": "success", "error": "\\u0000", "run_id": "r1"', "error"),
        ('"run_id": "\\u0000"', "run_id"),
        ('"\\u0000": 1', "body"),
    ],
)
def test_report_that_cannot_be_kept_is_refused_alone(desk: Desk, said: str, field: str) -> None:
    jobs_ = [leased(desk), leased(desk)]
    for job in jobs_:
        desk.shift(job, 50)
    before = [row(desk, job) for job in jobs_]
    bad, good = (
        f'{{"job_id": "{job["job_id"]}", "lease_token": "{job["lease_token"]}"' for job in jobs_
    )
    body = f'{{"reports": [{bad}, {said}}}, {good}, "result": {{"n": 1}}}}]}}'
    response = desk.post("/report", data=body, content_type="application/json")
    assert response.status_code == 200, response.text
    refused, accepted = response.json["data"]
    assert refusal(refused, renewed=True) == "validation-failed"
    assert list(refused["problem"]["errors"]) == [field]
    assert accepted["accepted"]
    after = [row(desk, job) for job in jobs_]
    for was, now in zip(before, after, strict=True):
        assert now.lease_expires_at - was.lease_expires_at >= timedelta(seconds=50)
    assert (after[0].version, after[0].status) == (before[0].version, JobStatus.RUNNING)
    assert after[1].result == {"n": 1}


@pytest.mark.parametrize(
    "body",
    [
        '{"reports": [{"job_id": "\\u0000", "lease_token": 99999999999999999999}, "\\ud800", NaN]}',
        '{"reports": [{"job_id": NaN}, ["\\u0000"], 1e400]}',
    ],
)
def test_report_whose_lease_cannot_be_read_is_refused(desk: Desk, body: str) -> None:
    response = desk.post("/report", data=body, content_type="application/json")
    assert response.status_code == 200
    for answer in response.json["data"]:
        assert refusal(answer) == "validation-failed"
        assert answer["job_id"] is None


@pytest.mark.parametrize(
    "body",
    [
        '{"reports": [{"a": NaN}], "b": NaN}',
        '{"reports": [{"a": NaN}], "\\u0000": 1}',
        '{"reports": NaN}',
        '[{"a": NaN}]',
        '{"reports": [{"a": NaN}',
        '{"reports": [' + '{"a": NaN},' * 100 + "1]}",
        '{"reports": ' + "[" * 100_000,
    ],
)
def test_body_of_reports_that_is_wrong_otherwise_is_refused_whole(desk: Desk, body: str) -> None:
    response = desk.post("/report", data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.json["type"].endswith(":malformed-json")


def test_malformed_report_without_the_lease_renews_nothing(world: World, desk: Desk) -> None:
    job = leased(desk)
    stranger = Desk(world)
    key = world.key(desk.workspace_id, desk.user, Role.WORKER, job_types=["other"])
    before = row(desk, job)
    for changed in (
        {"lease_token": "0" * 32},
        {"lease_token": "x" * 65},
        {"lease_token": None},
        {"lease_token": 5},
        {"job_id": "job_other"},
        {"job_id": "x" * 41},
        {"job_id": 5},
    ):
        answer = desk.report({**job, **changed}, progress_percent=101)
        assert refusal(answer) == "validation-failed"
    assert refusal(stranger.report(job, progress_percent=101)) == "validation-failed"
    report = {"job_id": job["job_id"], "lease_token": job["lease_token"], "progress_percent": 101}
    path = f"{desk.jobs_path}/report"
    answer = world.call("POST", path, key, json={"reports": [report]}).json["data"][0]
    assert (refusal(answer), answer["status"]) == ("validation-failed", None)
    assert row(desk, job) == before
    desk.post(f"/{job['job_id']}/cancel")
    answer = desk.report(job, progress_percent=101)
    assert (refusal(answer), answer["status"]) == ("validation-failed", "cancelled")


def test_malformed_report_of_another_run_renews_nothing(desk: Desk) -> None:
    job = leased(desk)
    desk.report(job, begun=True, run_id="r1")
    before = row(desk, job)
    desk.report(job, begun=True, run_id="r2", progress_percent=101)
    assert row(desk, job) == before


@pytest.mark.parametrize(
    "value", ["naïve ☃ 🎉", "\u2028", 'quote " and \\ backslash', 1.5e300, 2**63 - 1, -0.0, [1.0]]
)
def test_values_survive_the_way_through_a_report_and_a_batch(desk: Desk, value: Any) -> None:
    body = {"jobs": [{"job_type": "a", "metadata": {"v": value}}]}
    made = desk.post("/batch", json=body).json["data"][0]
    (job,) = desk.claim()
    assert made["metadata"] == job["metadata"] == {"v": value}
    desk.report(job, status="success", result={"v": value, "n": {"v": [value]}})
    assert shown(desk, job)["result"] == {"v": value, "n": {"v": [value]}}


def test_expired_lease_counts_until_it_is_reaped(desk: Desk) -> None:
    job = leased(desk)
    desk.shift(job, 100)
    assert desk.report(job, status="success")["accepted"]
    assert desk.reap() == 0


def test_heartbeat_renews_the_lease_and_changes_nothing_else(desk: Desk) -> None:
    job = leased(desk)
    desk.shift(job, 30)
    before = row(desk, job)
    answer = desk.report(job)
    after = row(desk, job)
    assert after.lease_expires_at - before.lease_expires_at >= timedelta(seconds=30)
    renewed = {"lease_expires_at": None}
    assert {**after._mapping, **renewed} == {**before._mapping, **renewed}
    assert answer["status"] == "running"


def test_renew_lease_schedules_the_reaper_again(desk: Desk) -> None:
    job = leased(desk)
    desk.shift(job, 100)
    assert desk.report(job)["accepted"]
    before = row(desk, job)
    assert desk.reap() == 0
    after = row(desk, job)
    assert after.reap_at == after.lease_expires_at > before.reap_at
    assert (after.version, after.updated_at) == (before.version, before.updated_at)
    desk.shift(job, 100)
    assert desk.reap() == 1
    assert shown(desk, job)["error"] == "lease expired"


def test_heartbeat_touches_no_index(desk: Desk) -> None:
    """By Postgres's statistics of HOT updates: the new row stays in the page of the old one."""
    job = leased(desk)
    updates = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
        " WHERE relname = 'jobapi_jobs'"
    )
    with desk.world.transaction() as tx:
        is_postgres = tx.dialect.name == "postgresql"
        before = tx.execute(updates).one() if is_postgres else (0, 0)
        report = {"job_id": job["job_id"], "lease_token": job["lease_token"]}
        backoff = desk.world.state.backoff
        (answer,) = queue.report(tx, desk.workspace_id, [report], backoff=backoff)
        assert answer.problem is None
        if is_postgres:
            after = tx.execute(updates).one()
            assert [after[0] - before[0], after[1] - before[1]] == [1, 1]


def row(desk: Desk, job: Any) -> Any:
    with desk.world.transaction() as tx:
        return tx.execute(select(jobs).where(jobs.c.job_id == job["job_id"])).one()


def test_reaped_lease_is_an_attempt_that_failed(desk: Desk) -> None:
    job = leased(desk, max_retries=1)
    assert desk.reap() == 0
    desk.shift(job, 100)
    assert desk.reap() == 1
    now = shown(desk, job)
    assert (now["status"], now["error"], now["retry_count"]) == ("pending", "lease expired", 1)
    assert refusal(desk.report(job, status="success")) == "lease-lost"
    desk.shift(job, 10)
    (again,) = desk.claim()
    desk.shift(again, 100)
    assert desk.reap() == 1
    now = shown(desk, job)
    assert (now["status"], now["error"]) == ("failed", "lease expired")
    assert [a["outcome"] for a in desk.attempts(job)] == ["expired", "expired"]


def test_attempt_over_its_time_ends_though_its_lease_lives(desk: Desk) -> None:
    job = leased(desk, timeout_seconds=30)
    desk.shift(job, 20)
    desk.report(job)
    assert desk.reap() == 0
    desk.shift(job, 20)
    desk.report(job)
    assert desk.reap() == 1
    assert shown(desk, job)["error"] == "timed out"
    assert shown(desk, job)["status"] == "pending"
    assert [a["outcome"] for a in desk.attempts(job)] == ["timed_out"]


def test_manual_work_over_its_time_fails(desk: Desk) -> None:
    job = desk.job_in("running", timeout_seconds=30)
    desk.shift(job, 20)
    assert desk.reap() == 0
    desk.shift(job, 20)
    assert desk.reap() == 1
    now = shown(desk, job)
    assert (now["status"], now["error"], now["retry_count"]) == ("failed", "timed out", 0)
    assert [a["outcome"] for a in desk.attempts(job)] == ["timed_out"]


@pytest.mark.parametrize(
    ("retry", "chance", "seconds"),
    [(1, 0, 2.5), (1, 1, 5), (2, 1, 10), (3, 0, 10), (4, 1, 40), (99, 1, 3600), (99, 0, 1800)],
)
def test_backoff_doubles_up_to_its_limit(retry: int, chance: float, seconds: float) -> None:
    assert Backoff(5, 3600).delay(retry, chance) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "impossible",
    [
        {"lease_token": None},
        {"lease_expires_at": None},
        {"lease_seconds": None},
        {"status": 0, "started_at": None},
        {"attempt": 0},
        {"reap_at": datetime(2100, 1, 1, tzinfo=UTC)},
    ],
)
def test_database_refuses_half_a_lease(desk: Desk, impossible: Any) -> None:
    leased(desk)
    with pytest.raises(IntegrityError), desk.world.transaction() as tx:
        tx.execute(update(jobs).values(**impossible))


@pytest.mark.parametrize("token", ["\x00", "x" * 33, "x" * 64, "x" * 5000, "\xff\x80", "", "é"])
def test_report_with_a_malformed_lease_token_is_lease_lost(desk: Desk, token: str) -> None:
    job = leased(desk)
    headers = {"Lease-Token": token}
    for status in ("success", "failed", "running"):
        refused = desk.patch(job["job_id"], {"status": status}, headers=headers)
        assert (refused.status_code, refused.json["type"]) == (409, "urn:jobapi:problem:lease-lost")
    # One letter more than the right one is another.
    for wrong in (job["lease_token"] + "0", job["lease_token"] + " ", "0" * 33):
        answer = desk.report({**job, "lease_token": wrong}, status="success")
        assert answer["problem"]["type"] == "urn:jobapi:problem:lease-lost"
    assert desk.report(job, status="success")["accepted"]


def test_report_beside_many_running_jobs_reads_the_reported_alone(desk: Desk) -> None:
    """Also by a planner that knows of no running job yet."""
    for _ in range(3):
        desk.post("/batch", json={"jobs": [{"job_type": "t"}] * 1000})
    with desk.world.transaction() as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(text("ANALYZE jobapi_jobs"))
    claimed = [job for _ in range(30) for job in desk.claim(limit=100)]
    assert len(claimed) == 3000
    said = [JobStatus.SUCCESS, JobStatus.FAILED, JobStatus.PENDING, JobStatus.RUNNING]
    reports = [
        {"job_id": job["job_id"], "lease_token": job["lease_token"], "status": said[n % 4]}
        for n, job in enumerate(claimed[:100])
    ]
    engine = desk.world.state.engine
    with engine.connect() as connection, transaction(connection, planner=BY_KEY) as tx:
        read = text("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = :name")
        name = {"name": "jobapi_jobs"}
        is_postgres = tx.dialect.name == "postgresql"
        before = tx.execute(read, name).scalar_one() if is_postgres else 0
        answers = queue.report(tx, desk.workspace_id, reports, backoff=Backoff(1, 1))
        assert all(answer.problem is None for answer in answers)
        if is_postgres:
            assert tx.execute(read, name).scalar_one() - before < 1000
