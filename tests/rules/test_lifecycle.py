"""The rules of the lifecycle as tables, and the states that the database itself refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from jobapi.errors import Conflict, JobNotEditable, TransitionNotAllowed, ValidationFailed
from jobapi.rules import leases, lifecycle
from jobapi.rules.events import JOB_EVENTS, EventKind
from jobapi.rules.jobs import FIELDS, STATUS_ORDER, JobStatus, Outcome, ReportFields
from jobapi.rules.leases import Backoff
from jobapi.rules.lifecycle import EDIT_VERBS, TRANSITIONS, Change, actual_duration, due_at
from jobapi.store.tables import jobs

from ..factories import Desk

NOW = datetime(2024, 1, 15, 10, 0, tzinfo=UTC)
BACKOFF = Backoff(5, 3600)


def job(status: JobStatus, **values: Any) -> Any:
    return SimpleNamespace(
        **{
            **{name: field.default for name, field in FIELDS.items()},
            "status": status,
            "started_at": None if status is JobStatus.PENDING else NOW,
            "queued_at": NOW,
            "due_at": NOW,
            "attempt": 0 if status is JobStatus.PENDING else 1,
            **values,
        }
    )


REPORTS: dict[str, dict[str, Any]] = {
    "begin": {"begun": True},
    "release": {"status": JobStatus.PENDING},
    "reschedule": {"status": JobStatus.FAILED},
}


def act(verb: str, status: JobStatus, *, prefetched: bool = False) -> Change:
    later = NOW + timedelta(seconds=9)
    if verb == "cancel":
        return lifecycle.cancel(job(status), reason=None, now=later)
    if verb == "retry":
        return lifecycle.retry(job(status), reason=None, now=later)
    if verb in REPORTS:
        holder = job(status, lease_token="mine", lease_seconds=60, prefetched=prefetched)
        return leases.report(holder, "mine", REPORTS[verb], backoff=BACKOFF, chance=0.5, now=later)
    target = next(to for to, name in EDIT_VERBS.items() if name == verb)
    return lifecycle.edit(job(status), {"status": target}, later)


@pytest.mark.parametrize("status", list(JobStatus))
@pytest.mark.parametrize("verb", sorted(TRANSITIONS.keys() - {"claim"}))
def test_every_verb_on_every_status(verb: str, status: JobStatus) -> None:
    transition = TRANSITIONS[verb]
    if status not in transition.allowed:
        with pytest.raises(Conflict, match=status.label):
            act(verb, status)
        return
    change = act(verb, status)
    assert change.values.get("status", status) == transition.target
    # Starting a job that runs is no event, and cancelling one that never began ends no attempt.
    starts_again = verb == "start" and status is JobStatus.RUNNING
    assert change.event == (None if starts_again else transition.event)
    ends_none = verb == "cancel" and status is JobStatus.PENDING
    assert change.outcome == (None if ends_none else transition.outcome)


@pytest.mark.parametrize(
    ("verb", "started_at", "retry_count"),
    [("begin", 9, 0), ("release", None, 0), ("reschedule", None, 1), ("cancel", 0, 0)],
)
def test_verbs_on_a_job_that_has_not_begun(
    verb: str, started_at: int | None, retry_count: int
) -> None:
    held = job(JobStatus.RUNNING, prefetched=True)
    after = vars(held) | act(verb, JobStatus.RUNNING, prefetched=True).values
    moment = None if started_at is None else NOW + timedelta(seconds=started_at)
    assert (after["started_at"], after["retry_count"]) == (moment, retry_count)
    assert (after["prefetched"], after["suspect"], after["run_id"]) == (False, False, None)


@pytest.mark.parametrize("status", list(JobStatus))
@pytest.mark.parametrize("prefetched", [True, False])
@pytest.mark.parametrize("max_retries", [0, 3])
def test_lease_that_expires_on_every_status(
    status: JobStatus, prefetched: bool, max_retries: int
) -> None:
    held = job(
        status,
        lease_token="mine",
        lease_seconds=60,
        lease_expires_at=NOW,
        reap_at=NOW,
        max_retries=max_retries,
        prefetched=prefetched,
    )
    later = NOW + timedelta(seconds=9)
    change = leases.expire(held, backoff=BACKOFF, chance=0.5, now=later)
    if status is not JobStatus.RUNNING:
        assert change == Change({})
        return
    values = change.values
    assert (change.event, change.outcome) == (EventKind.LEASE_EXPIRED, Outcome.EXPIRED)
    costs = not prefetched
    back = prefetched or max_retries > 0
    assert values["status"] == (JobStatus.PENDING if back else JobStatus.FAILED)
    assert values.get("retry_count", 0) == (costs and back)
    assert values["suspect"] == prefetched
    assert ("due_at" in values) == (costs and back)


@pytest.mark.parametrize("error", [None, leases.LEASE_EXPIRED, leases.TIMED_OUT])
def test_failure_with_the_text_of_an_expiry_is_a_failure(error: str | None) -> None:
    held = job(JobStatus.RUNNING, lease_token="mine", lease_seconds=60, reap_at=NOW, max_retries=0)
    later = NOW + timedelta(seconds=9)
    said: ReportFields = {"status": JobStatus.FAILED, "error": error}
    reported = leases.report(held, "mine", said, backoff=BACKOFF, chance=0.5, now=later)
    free = job(JobStatus.RUNNING, reap_at=NOW)
    edited = lifecycle.edit(free, {"status": JobStatus.FAILED, "error": error}, later)
    for change in (reported, edited):
        assert (change.event, change.outcome) == (EventKind.FAILED, Outcome.FAILED)


def test_attempt_over_its_time_is_timed_out_though_its_lease_has_expired_too() -> None:
    held = job(
        JobStatus.RUNNING,
        lease_token="mine",
        lease_expires_at=NOW,
        reap_at=NOW,
        timeout_seconds=5,
    )
    later = NOW + timedelta(seconds=9)
    change = leases.expire(held, backoff=BACKOFF, chance=0.5, now=later)
    assert (change.event, change.outcome) == (EventKind.TIMED_OUT, Outcome.TIMED_OUT)
    assert (change.values["status"], change.values["error"]) == (JobStatus.PENDING, "timed out")


@pytest.mark.parametrize(
    ("before", "said", "is_renewal", "event"),
    [
        ({}, {}, True, None),
        ({}, {"begun": True, "run_id": "r1"}, True, None),
        ({}, {"result": {"rows": 1}}, False, None),
        ({}, {"progress_percent": 9}, False, None),
        ({}, {"progress_percent": 10}, False, EventKind.PROGRESSED),
        ({"progress_percent": 10}, {"progress_percent": 19}, False, None),
        ({"progress_percent": 19}, {"progress_percent": None}, False, EventKind.PROGRESSED),
        ({"prefetched": True}, {"run_id": "r1"}, True, None),
        ({"prefetched": True}, {"begun": True}, False, None),
    ],
)
def test_report_while_running_is_a_renewal_unless_the_job_changes(
    before: Any, said: Any, is_renewal: bool, event: EventKind | None
) -> None:
    held = job(JobStatus.RUNNING, lease_token="mine", lease_seconds=60, reap_at=NOW, **before)
    change = leases.report(held, "mine", said, backoff=BACKOFF, chance=0.5, now=NOW)
    assert (change.is_renewal, change.event, change.outcome) == (is_renewal, event, None)
    assert change.values["lease_expires_at"] == NOW + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("changes", "edited"),
    [
        ({}, ()),
        ({"priority": 1}, ()),
        ({"priority": None}, ()),
        ({"priority": 3, "max_retries": 3}, ("priority",)),
        ({"scheduled_at": NOW, "priority": 0}, ("priority", "scheduled_at")),
        ({"metadata": {"a": 1}}, ()),
        ({"metadata": {"a": 1.0}}, ("metadata",)),
        ({"metadata": {"a": True}}, ("metadata",)),
        ({"metadata": {"a": None}}, ("metadata",)),
        ({"metadata": None}, ("metadata",)),
    ],
)
def test_edit_of_a_pending_job_names_the_fields_that_differ_from_before(
    changes: Any, edited: tuple[str, ...]
) -> None:
    before = job(JobStatus.PENDING, metadata={"a": 1})
    change = lifecycle.edit(before, changes, NOW)
    assert change.edited == edited
    assert change.event is (EventKind.EDITED if edited else None)


def test_order_of_the_statuses_is_that_of_their_numbers_and_of_all_of_them() -> None:
    """Lists read an index that sorts by the numbers."""
    assert list(STATUS_ORDER) == sorted(JobStatus)


def test_kinds_of_events_that_members_see_are_of_jobs() -> None:
    assert {kind.label for kind in EventKind} - {kind.label for kind in JOB_EVENTS} == {
        *("member_added", "member_changed", "member_removed", "key_created", "key_revoked"),
        *("workspace_changed", "workspace_paused", "workspace_resumed"),
        *("job_type_changed", "job_type_paused", "job_type_resumed"),
        *("schedule_created", "schedule_changed", "schedule_deleted", "schedule_paused"),
        *("schedule_resumed", "schedule_suspended", "schedule_skipped"),
        *("webhook_created", "webhook_changed", "webhook_deleted", "webhook_disabled"),
        "webhook_secret_rotated",
    }


def test_no_edit_leads_back_to_pending() -> None:
    for status in JobStatus:
        with pytest.raises(TransitionNotAllowed):
            lifecycle.edit(job(status), {"status": JobStatus.PENDING}, NOW)


def test_refusal_says_what_to_do() -> None:
    with pytest.raises(TransitionNotAllowed, match=r"Retry it with POST …/retry\."):
        lifecycle.edit(job(JobStatus.FAILED), {"status": JobStatus.PENDING}, NOW)
    with pytest.raises(TransitionNotAllowed, match=r"Retry it first\."):
        lifecycle.edit(job(JobStatus.CANCELLED), {"status": JobStatus.RUNNING}, NOW)


def test_edit_to_success_with_an_error_is_a_contradiction() -> None:
    with pytest.raises(ValidationFailed):
        lifecycle.edit(
            job(JobStatus.RUNNING), {"status": JobStatus.SUCCESS, "error": "disk full"}, NOW
        )
    change = lifecycle.edit(job(JobStatus.RUNNING, error="old"), {"status": JobStatus.SUCCESS}, NOW)
    assert change.values["error"] is None


def test_edit_max_retries_below_what_was_used_is_refused() -> None:
    with pytest.raises(JobNotEditable):
        lifecycle.edit(job(JobStatus.PENDING, retry_count=2), {"max_retries": 1}, NOW)


@pytest.mark.parametrize(
    ("due", "end", "seconds"), [(0, 285.9, 285), (0, 0, 0), (10, 9.9, None), (10, 10.5, 0)]
)
def test_duration_is_in_whole_seconds_from_when_it_was_due(
    due: float, end: float, seconds: int | None
) -> None:
    at = [NOW + timedelta(seconds=s) for s in (due, end)]
    assert actual_duration(*at) == seconds


def test_due_is_the_later_of_queued_and_scheduled() -> None:
    later = NOW + timedelta(days=1)
    assert due_at(NOW, None) == NOW
    assert due_at(NOW, later) == later
    assert due_at(later, NOW) == later


@pytest.mark.parametrize(
    ("status", "impossible"),
    [
        ("pending", {"status": 5}),
        ("pending", {"status": -1}),
        ("pending", {"priority": 4}),
        ("pending", {"status": 1}),
        ("pending", {"status": 2}),
        ("pending", {"started_at": NOW}),
        ("pending", {"completed_at": NOW}),
        ("pending", {"actual_duration": 5}),
        ("pending", {"progress_percent": 5}),
        ("pending", {"progress_message": "x"}),
        ("pending", {"retry_count": 4}),
        ("pending", {"retry_count": -1}),
        ("pending", {"estimated_duration": -1}),
        ("pending", {"timeout_seconds": 0}),
        ("pending", {"job_type": ""}),
        ("pending", {"due_at": NOW}),
        ("pending", {"workspace_id": 999}),
        ("pending", {"created_by": 999}),
        ("running", {"started_at": None}),
        ("running", {"completed_at": NOW}),
        ("running", {"progress_percent": 101}),
        ("running", {"progress_percent": -1}),
        ("success", {"completed_at": None}),
        ("success", {"actual_duration": -1}),
        ("failed", {"status": 0}),
        ("cancelled", {"status": 1}),
    ],
)
def test_database_refuses_impossible_jobs(desk: Desk, status: str, impossible: Any) -> None:
    made = desk.job_in(status)
    with pytest.raises(IntegrityError), desk.world.transaction() as tx:
        tx.execute(update(jobs).values(impossible))
    assert desk.get(f"/{made['job_id']}").json == made


def test_database_refuses_a_second_job_of_the_same_id(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    desk.create()
    with pytest.raises(IntegrityError), desk.world.transaction() as tx:
        tx.execute(update(jobs).values(job_id=job_id))


def test_columns_are_stored_in_utc_with_microseconds(desk: Desk) -> None:
    moment = "2099-01-15T15:00:00.123456+05:30"
    desk.create(scheduled_at=moment)
    with desk.world.transaction() as tx:
        stored = tx.execute(select(jobs.c.scheduled_at)).scalar_one()
    assert stored == datetime.fromisoformat(moment)
    assert stored.tzinfo is UTC
