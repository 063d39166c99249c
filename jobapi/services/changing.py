"""Apply a rule to one job, with optimistic locking by the job's version."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from ..errors import JobExists, PreconditionFailed, Unavailable
from ..rules import leases
from ..rules.documents import limit_documents
from ..rules.jobs import CurrentJob, Job, JobStatus
from ..rules.lifecycle import Change
from ..store.columns import DbNow
from ..store.connections import Executor
from ..store.faults import violates
from ..store.tables import LIVE, SLOTS, attempts, jobs
from ..store.transactions import atomic, repeating
from . import flow
from .flow_admission import admit
from .job_rows import COLUMNS, not_found
from .unique_keys import exists, find_live

MAX_TRIES = 50
"""How often a change is tried if other changes of the job keep coming first."""


def get(session: Executor, workspace_id: int, job_id: str) -> CurrentJob:
    """Read one job, with the database's time as ``now``. Raises ``JobNotFound``."""
    row = session.execute(
        select(*COLUMNS, DbNow().label("now")).where(
            jobs.c.workspace_id == workspace_id, jobs.c.job_id == job_id
        )
    ).first()
    if row is None:
        raise not_found()
    return cast(CurrentJob, row)


def changed_since() -> PreconditionFailed:
    """The error for a change that was requested for another version of the job."""
    return PreconditionFailed(
        "The job has changed since you read it. Read it again, then repeat the change if it "
        "still applies."
    )


IfMatch = Callable[[int], bool]
"""Whether a version of the job is the one that the caller wants to change."""


def change(
    session: Executor,
    workspace_id: int,
    job_id: str,
    rule: Callable[[CurrentJob], Change],
    *,
    if_match: IfMatch | None = None,
    job: CurrentJob | None = None,
    actor: str | None = None,
    flow_version: int | None = None,
) -> Job:
    """Apply a rule to the current version of a job, or change nothing.

    The rule decides on one version, and the UPDATE that writes its change applies to that version
    only. If another change came first, the job is read and the rule decides again. A job that is
    started takes a slot and a token, if its type has limits.

    Raises ``JobNotFound``, ``PreconditionFailed`` if ``if_match`` refuses the version, the errors
    of the rule and of ``flow_admission.admit``, ``JobExists``, and ``Unavailable`` after
    ``MAX_TRIES``.
    """
    for _ in range(MAX_TRIES):
        if job is None:
            job = get(session, workspace_id, job_id)
        if if_match is not None and not if_match(job.version):
            raise changed_since()
        change = rule(job)
        if not change.values:
            return job
        limit_documents(change.values)
        _check_unique_key(session, job, change)
        if job.status == JobStatus.PENDING and change.values.get("status") is JobStatus.RUNNING:
            changed = _start(session, job, rule, actor, flow_version)
        else:
            changed = _write(session, job, change, actor)
        if changed is not None:
            return changed
        job = None
    raise Unavailable("Too many requests are changing this job. Try again.")


def _check_unique_key(session: Executor, job: Job, change: Change) -> None:
    """Raise ``JobExists`` if the job would become the second live one with its key."""
    becomes_live = change.values.get("status") is JobStatus.PENDING
    key = change.values.get("unique_key", job.unique_key)
    if key is None or not (becomes_live or "unique_key" in change.values):
        return
    live = find_live(session, job.workspace_id, [(job.job_type, key)])
    for other in live.values():
        if other.id != job.id:
            raise exists(other)


def _start(
    session: Executor,
    seen: CurrentJob,
    rule: Callable[[CurrentJob], Change],
    actor: str | None,
    flow_version: int | None,
) -> Job | None:
    """Start a job, with a slot if its type has a limit; None if it has changed since ``seen``."""
    settings = flow.load(session, seen.workspace_id, flow_version)
    if not settings.paused and not settings.of(seen.job_type).is_governed:
        return _write(session, seen, rule(seen), actor, slot=None, key_slot=None)

    def start() -> Job | None:
        with atomic(session):
            # Read in the transaction, so that its time is that of the start and of its token.
            job = get(session, seen.workspace_id, seen.job_id)
            if job.version != seen.version:
                return None
            change = rule(job)
            key = change.values.get("concurrency_key", job.concurrency_key)
            admission = admit(session, settings, job, key)
            started = _write(
                session, job, change, actor, slot=admission.slot, key_slot=admission.key_slot
            )
            if started is not None:
                admission.take_token(session)
            return started

    return repeating(session, start, SLOTS)


def _write(
    session: Executor, job: CurrentJob, change: Change, actor: str | None, **more: Any
) -> Job | None:
    """Write a change to the version that was read, and the attempt that it ends.

    Returns None if that version is no longer current.
    """
    ended = leases.ended_attempt(job, change, job.now)
    # A single statement needs no transaction, which would cost two round trips.
    with nullcontext() if ended is None else atomic(session):
        changed = _update(
            session,
            update(jobs)
            .where(
                jobs.c.workspace_id == job.workspace_id,
                jobs.c.job_id == job.job_id,
                jobs.c.version == job.version,
            )
            .values(
                **change.values,
                **more,
                version=job.version + 1,
                updated_at=job.now,
                changed_by=actor,
                last_event=change.event,
                last_edited=" ".join(change.edited) or None,
                last_event_version=job.version + 1,
            )
            .returning(*COLUMNS),
        )
        if changed is not None and ended is not None:
            session.execute(insert(attempts), ended._asdict())
    return cast(Job | None, changed)


def _update(session: Executor, statement: Any) -> Any:
    try:
        return session.execute(statement).first()
    except IntegrityError as error:
        if violates(error, LIVE):
            raise JobExists("Another job with this unique_key has just become live.") from error
        raise
