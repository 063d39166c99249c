"""Success by the fast path and by the rules: one table of cases, run through both."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from jobapi import jobs as verbs
from jobapi import queue
from jobapi.errors import ValidationFailed
from jobapi.rules.documents import MAX_DOCUMENT_BYTES
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.services import counts, success
from jobapi.services.job_rows import in_workspace
from jobapi.store.tables import attempts, events, jobs

from ..factories import Desk

BACKOFF = Backoff(5, 3600)
HOUR = timedelta(hours=1)
SUCCESS = {"status": JobStatus.SUCCESS}
LARGE = {"rows": "x" * MAX_DOCUMENT_BYTES}


@dataclass
class Case:
    """A leased job with other ``columns``, what is reported on it, and what becomes of it.

    ``answer`` is the status of the answer, or the kind of its problem. ``fast`` says whether the
    fast path settles it. ``before`` is what happens to the job between the claim and the report.
    """

    name: str
    reports: list[dict[str, Any]]
    answer: Any = JobStatus.SUCCESS
    fast: bool = False
    columns: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Connection, Any], Any] | None = None
    only_job_types: list[str] | None = None
    in_workspace: int | None = None


def edit(changes: dict[str, Any], tx: Connection, job: Any) -> Any:
    return verbs.edit(tx, job.workspace_id, job.job_id, changes)


def cancel(tx: Connection, job: Any) -> Any:
    return verbs.cancel(tx, job.workspace_id, job.job_id)


def report(said: dict[str, Any], tx: Connection, job: Any) -> Any:
    given = {"job_id": job.job_id, "lease_token": job.lease_token, **said}
    return queue.report(tx, job.workspace_id, [given], backoff=BACKOFF)


CASES = [
    # What the fast path settles.
    Case("no result", [SUCCESS], fast=True),
    Case("result", [{**SUCCESS, "result": {"rows": 3}}], fast=True),
    Case("nulls in a result", [{**SUCCESS, "result": {"a": None, "b": [None]}}], fast=True),
    Case("empty result", [{**SUCCESS, "result": {}}], fast=True),
    Case("result before", [SUCCESS], fast=True, columns={"result": {"rows": 1}}),
    Case("empty result before", [SUCCESS], fast=True, columns={"result": {}}),
    Case("begun before", [{**SUCCESS, "begun": True}], fast=True),
    Case("prefetched", [SUCCESS], fast=True, columns={"prefetched": True}),
    Case(
        "prefetched and begun",
        [{**SUCCESS, "begun": True, "result": {"rows": 3}}],
        fast=True,
        columns={"prefetched": True},
    ),
    Case("not begun", [{**SUCCESS, "begun": False}], fast=True, columns={"prefetched": True}),
    Case("another run", [SUCCESS], fast=True, columns={"run_id": "r1"}),
    Case("error before", [SUCCESS], fast=True, columns={"error": "lease expired"}),
    Case(
        "progress before",
        [SUCCESS],
        fast=True,
        columns={"progress_percent": 40, "progress_message": "half"},
    ),
    Case("retried before", [SUCCESS], fast=True, columns={"retry_count": 2, "attempt": 3}),
    Case("due later", [SUCCESS], fast=True, columns={"due_at": datetime(2999, 1, 1, tzinfo=UTC)}),
    Case("time is over", [SUCCESS], fast=True, columns={"timeout_seconds": 1}),
    Case("of a type that is allowed", [SUCCESS], fast=True, only_job_types=["b", "data_analysis"]),
    # What the fast path leaves to the rules.
    Case("result over another", [{**SUCCESS, "result": {"b": 2}}], columns={"result": {"a": 1}}),
    Case("result that removes", [{**SUCCESS, "result": {"a": None}}], columns={"result": {"a": 1}}),
    Case("result of null", [{**SUCCESS, "result": None}], columns={"result": {"a": 1}}),
    Case("progress", [{**SUCCESS, "progress_percent": 90}]),
    Case("message", [{**SUCCESS, "progress_message": "nearly"}]),
    Case("run", [{**SUCCESS, "run_id": "r1"}]),
    Case("its run", [{**SUCCESS, "run_id": "r1"}], columns={"run_id": "r1"}),
    Case("two of one job", [{"status": JobStatus.RUNNING, "progress_percent": 5}, SUCCESS]),
    Case("twice", [SUCCESS, SUCCESS]),
    Case("and then a failure", [SUCCESS, {"status": JobStatus.FAILED}], "lease-lost"),
    Case("reported before", [SUCCESS], before=partial(report, SUCCESS)),
    # What is refused, which only the rules do.
    Case("already begun", [{**SUCCESS, "run_id": "r2"}], "already-begun", columns={"run_id": "r1"}),
    Case("wrong token", [{**SUCCESS, "lease_token": "0" * 32}], "lease-lost"),
    Case("no token", [{**SUCCESS, "lease_token": "\0"}], "lease-lost"),
    Case("unknown job", [{**SUCCESS, "job_id": "job_0"}], "job-not-found"),
    Case("another workspace", [SUCCESS], "job-not-found", in_workspace=0),
    Case("another type", [SUCCESS], "job-not-found", only_job_types=["b"]),
    Case("cancelled", [SUCCESS], "lease-lost", before=cancel),
    Case(
        "handed back",
        [SUCCESS],
        "lease-lost",
        before=partial(report, {"status": JobStatus.PENDING}),
    ),
    Case(
        "failed before",
        [SUCCESS],
        "lease-lost",
        before=partial(report, {"status": JobStatus.FAILED, "retryable": False}),
    ),
    Case("too large", [{**SUCCESS, "result": LARGE}], "validation-failed"),
    Case("U+0000", [{**SUCCESS, "result": {"a": "\0"}}], "validation-failed"),
    Case(
        "too large together",
        [{**SUCCESS, "result": {"rows": "x" * 600_000}}],
        "validation-failed",
        columns={"result": {"more": "x" * 600_000}},
    ),
    Case(
        "wrong otherwise",
        [{**SUCCESS, "refused": ValidationFailed({"error": ["no"]})}],
        "validation-failed",
    ),
]


def leased_job(desk: Desk, case: Case) -> Any:
    """A job that was leased an hour ago, as the case wants it."""
    desk.create()
    (claimed,) = desk.claim(worker="w1", lease_seconds=3600)
    desk.shift(claimed, HOUR.total_seconds())
    where = jobs.c.job_id == claimed["job_id"]
    with desk.world.transaction() as tx:
        if case.columns:
            tx.execute(update(jobs).where(where).values(case.columns))
        job = tx.execute(select(jobs).where(where)).one()
        if case.before is not None:
            case.before(tx, job)
    return job


def reported(job: Any, case: Case) -> list[dict[str, Any]]:
    return [{"job_id": job.job_id, "lease_token": job.lease_token, **said} for said in case.reports]


def outcome(desk: Desk, case: Case, job: Any, way: Callable[..., Any]) -> Any:
    """What the reports do to the database, and how they are answered; it is rolled back."""
    began = datetime.now(UTC) - timedelta(minutes=1)
    with desk.world.state.engine.connect() as tx:
        tx.exec_driver_sql("BEGIN")
        answers = way(
            tx,
            desk.workspace_id if case.in_workspace is None else case.in_workspace,
            reported(job, case),
            backoff=BACKOFF,
            only_job_types=case.only_job_types,
            actor="key:7",
            chance=random.Random(7).random,
        )
        row = tx.execute(select(jobs).where(jobs.c.id == job.id)).one()
        found = {
            "job": {**row._asdict(), "actual_duration": duration(row)},
            "attempts": rows(tx, select(attempts).where(attempts.c.job == job.id)),
            "events": rows(
                tx, select(*NOTED).where(events.c.job_id == job.job_id).order_by(events.c.id)
            ),
            "counts": counts.kinds(tx, in_workspace(desk.workspace_id)),
            "answers": [answered(each, row) for each in answers],
        }
        tx.exec_driver_sql("ROLLBACK")
    return without_moments(found, began)


NOTED = [column for column in events.c if column.name not in ("id", "xid")]


def rows(tx: Connection, query: Any) -> list[dict[str, Any]]:
    return [row._asdict() for row in tx.execute(query.order_by(query.selected_columns.attempt))]


def duration(job: Any) -> Any:
    """A job's duration, or ``right`` if it is what its times say."""
    due, end = job.due_at, job.completed_at
    right = None if end is None or end < due else int((end - due).total_seconds())
    return "right" if job.actual_duration == right else job.actual_duration


def answered(answer: Any, job: Any) -> dict[str, Any]:
    ran = None if job.completed_at is None else job.completed_at - job.started_at
    return {
        "status": None if answer.job is None else JobStatus(answer.job.status),
        "lease_expires_at": None if answer.job is None else answer.job.lease_expires_at,
        "problem": None if answer.problem is None else answer.problem.problem(),
        "ran": "right" if answer.ran == ran else answer.ran,
        "renewed": answer.renewed,
    }


def without_moments(value: Any, began: datetime) -> Any:
    """The value with the times since ``began`` in half hours: both ways have a now of their own."""
    if isinstance(value, dict):
        return {name: without_moments(each, began) for name, each in value.items()}
    if isinstance(value, list):
        return [without_moments(each, began) for each in value]
    if isinstance(value, datetime) and value >= began:
        return round((value - began) / timedelta(minutes=30))
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_report_of_success_by_both_ways_has_one_outcome(desk: Desk, case: Case) -> None:
    job = leased_job(desk, case)
    by_rules = outcome(desk, case, job, queue.judge)
    last = by_rules["answers"][-1]
    problem = last["problem"] and last["problem"]["type"].rsplit(":", 1)[1]
    assert (problem or last["status"]) == case.answer
    assert outcome(desk, case, job, queue.report) == by_rules


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fast_path_settles_what_it_is_for_and_leaves_the_rest(desk: Desk, case: Case) -> None:
    if desk.world.state.engine.dialect.name == "sqlite":
        return  # it is for Postgres alone
    job = leased_job(desk, case)
    workspace_id = desk.workspace_id if case.in_workspace is None else case.in_workspace
    of_job = select(jobs).where(jobs.c.id == job.id)
    with desk.world.transaction() as tx:
        before = tx.execute(of_job).one()
        plain = success.plain(reported(job, case))
        settled = success.settle(
            tx, workspace_id, plain, only_job_types=case.only_job_types, actor="key:7"
        )
        assert list(settled) == [job.job_id] * case.fast
        assert (tx.execute(of_job).one() != before) == case.fast
