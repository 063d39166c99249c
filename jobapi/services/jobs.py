"""The verbs of callers: create, get, edit, cancel, retry and delete jobs.

Each takes a session, which may be a host application's own, and never commits it. They return rows
of the jobs table.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from sqlalchemy import ColumnElement, select
from sqlalchemy import delete as sql_delete

from ..errors import JobNotEnded
from ..rules import lifecycle
from ..rules.jobs import ENDED, CurrentJob, Job, JobEdit, JobStatus
from ..rules.lifecycle import Change
from ..store.columns import DbNow, is_picked
from ..store.connections import Executor, dialect_name
from ..store.tables import jobs
from ..store.transactions import IN_ORDER, transactional
from . import events, flow
from .changing import IfMatch, change, get
from .creating import create as create
from .creating import create_many as create_many

# The columns that the event of a deleted job shows.
_GONE = (jobs.c.workspace_id, jobs.c.job_id, jobs.c.job_type, jobs.c.status)


def edit(
    session: Executor,
    workspace_id: int,
    job_id: str,
    changes: JobEdit,
    *,
    if_match: IfMatch | None = None,
    job: CurrentJob | None = None,
    actor: str | None = None,
    flow_version: int | None = None,
) -> Job:
    """Edit the fields that a caller may edit; ``lifecycle.edit`` has the rules.

    ``job`` is the job's row, and ``flow_version`` that of its workspace, if the caller has just
    read them. ``actor`` is who edits it: ``user:1``, ``key:1``. The other verbs take the same.
    Raises ``JobNotFound``, ``PreconditionFailed`` if ``if_match`` refuses the version, the errors
    of the rule, ``JobExists`` if a live job has the new ``unique_key``, and the errors of
    ``flow_admission.admit`` for a job that must not start.
    """

    def rule(job: CurrentJob) -> Change:
        return lifecycle.edit(job, changes, job.now)

    if changes.get("concurrency_key") is not None:
        job = job or get(session, workspace_id, job_id)
        settings = flow.load(session, workspace_id, flow_version)
        if not settings.of(job.job_type).keyed:
            flow.let_keys_take_turns(session, workspace_id, [job.job_type])
    return change(
        session,
        workspace_id,
        job_id,
        rule,
        if_match=if_match,
        job=job,
        actor=actor,
        flow_version=flow_version,
    )


def cancel(
    session: Executor,
    workspace_id: int,
    job_id: str,
    *,
    reason: str | None = None,
    if_match: IfMatch | None = None,
    job: CurrentJob | None = None,
    actor: str | None = None,
) -> Job:
    """Cancel a pending or running job. Raises ``JobNotCancellable``."""

    def rule(job: CurrentJob) -> Change:
        return lifecycle.cancel(job, reason=reason, now=job.now)

    return change(session, workspace_id, job_id, rule, if_match=if_match, job=job, actor=actor)


def retry(
    session: Executor,
    workspace_id: int,
    job_id: str,
    *,
    reason: str | None = None,
    if_match: IfMatch | None = None,
    job: CurrentJob | None = None,
    actor: str | None = None,
) -> Job:
    """Make a failed or cancelled job pending again.

    Raises ``JobNotRetryable``, and ``JobExists`` if a live job has its ``unique_key``.
    """

    def rule(job: CurrentJob) -> Change:
        return lifecycle.retry(job, reason=reason, now=job.now)

    return change(session, workspace_id, job_id, rule, if_match=if_match, job=job, actor=actor)


@transactional()
def delete(session: Executor, workspace_id: int, job_id: str, *, actor: str | None = None) -> None:
    """Delete a job that has ended, with its attempts. Raises ``JobNotEnded``."""
    mine = (jobs.c.workspace_id == workspace_id) & (jobs.c.job_id == job_id)
    if not _delete(session, mine & jobs.c.status.in_(ENDED), actor):
        status = JobStatus(get(session, workspace_id, job_id).status)
        raise JobNotEnded(
            f"The job is {status.label}; only a job that has ended can be deleted. Cancel it first."
        )


@transactional(planner=IN_ORDER)
def delete_old(
    session: Executor, workspace_id: int, status: JobStatus, days: int, *, limit: int
) -> int:
    """Delete up to ``limit`` jobs that ended more than ``days`` days ago; returns how many.

    Jobs that are locked by another transaction are left for the next time.
    """
    now = session.execute(select(DbNow())).scalar_one()
    old = (
        select(jobs.c.id)
        .where(
            jobs.c.workspace_id == workspace_id,
            jobs.c.status == status,
            # An ended job does not change any more.
            jobs.c.updated_at < now - timedelta(days=days),
        )
        .order_by(jobs.c.updated_at, jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    picked = is_picked(dialect_name(session), jobs, old, workspace_id=workspace_id)
    # Each row is locked, so its status is still the one that was found.
    return _delete(session, picked, None)


def _delete(session: Executor, which: ColumnElement[bool], actor: str | None) -> int:
    gone = session.execute(sql_delete(jobs).where(which).returning(*_GONE)).all()
    events.note_deleted(session, cast(Sequence[Job], gone), actor=actor)
    return len(gone)
