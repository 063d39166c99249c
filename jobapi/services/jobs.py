"""The caller's verbs: create, get, list, edit, cancel and retry jobs.

Each takes the session to work on, which may be a host application's own, and
the workspace; none commits. They return rows of the jobs table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import uuid_utils
from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy import delete as sql_delete

from ..errors import JobNotEnded, PreconditionFailed, Unavailable, ValidationFailed
from ..rules import leases, lifecycle
from ..rules.documents import limit_documents
from ..rules.jobs import (
    DEFAULT_MAX_RETRIES,
    ENDED,
    JOB_TYPE_PATTERN,
    JOB_TYPE_RULE,
    JobStatus,
    Priority,
)
from ..store.columns import DbNow, is_picked
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import attempts, jobs
from ..store.transactions import IN_ORDER, atomic, transactional
from . import counts, events
from .job_rows import COLUMNS, not_found

MAX_JOB_TYPES = 1000
"""How many job types a workspace may have."""


GONE = (jobs.c.workspace_id, jobs.c.job_id, jobs.c.job_type, jobs.c.status)
"""What is noted of jobs that are deleted."""

# What a creation says of a job, and what a new job's row says besides.
_ITEM = (
    "job_type",
    "priority",
    "metadata",
    "estimated_duration",
    "timeout_seconds",
    "max_retries",
    "scheduled_at",
)
_BLANK: Mapping[str, Any] = {
    **{column.name: None for column in COLUMNS if column.name != "id"},
    "status": JobStatus.PENDING,
    "priority": Priority.NORMAL,
    "version": 1,
    "retry_count": 0,
    "max_retries": DEFAULT_MAX_RETRIES,
    "attempt": 0,
    "prefetched": False,
    "suspect": False,
}
_CREATED = (
    *("job_id", "workspace_id", "created_by", *_ITEM, "status", "version", "retry_count"),
    *("created_at", "updated_at", "queued_at", "due_at", "changed_by", "traceparent"),
)
_INSERT = Statement[AnyRow](insert(jobs).returning(*COLUMNS), prepare=True, values=_CREATED)

_JOB_TYPE = re.compile(JOB_TYPE_PATTERN)

# https://www.w3.org/TR/trace-context/#traceparent-header; no id is all zeros.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

# Two edits at the same moment: the second reads again and tries again.
_MAX_TRIES = 50


def new_job_id() -> str:
    """``job_`` and a UUID version 7 (RFC 9562): sorts by time, 74 random bits."""
    # Python has uuid7 since 3.14. Written in Python it takes 1.8 µs instead of 0.4 µs.
    return "job_" + uuid_utils.uuid7().hex


def create(
    session: Executor,
    workspace_id: int,
    *,
    created_by: int,
    job_type: str,
    priority: Priority = Priority.NORMAL,
    metadata: Mapping[str, Any] | None = None,
    estimated_duration: int | None = None,
    scheduled_at: datetime | None = None,
    max_retries: int = DEFAULT_MAX_RETRIES,
    timeout_seconds: int | None = None,
    now: datetime | None = None,
    by: str | None = None,
    traceparent: str | None = None,
) -> AnyRow:
    """Create a job, due now or when it is scheduled.

    Durations are in seconds, times need an offset. ``now`` is the database's
    time where the caller has just read it. In a host's own session the job is
    there when the host commits, and never was when it rolls back. ``by`` is who
    its history says it was, if not the creator: ``key:1``, for instance.
    ``traceparent`` is the creator's W3C trace context, for the worker; what is
    none counts as None. Raises ``ValidationFailed``.
    """
    if not _JOB_TYPE.fullmatch(job_type):
        raise ValidationFailed({"job_type": [JOB_TYPE_RULE]})
    if now is None:
        now = session.execute(select(DbNow())).scalar_one()
    item = {
        "job_type": job_type,
        "priority": priority,
        "metadata": metadata,
        "estimated_duration": estimated_duration,
        "timeout_seconds": timeout_seconds,
        "max_retries": max_retries,
        "scheduled_at": scheduled_at,
    }
    row = _new_row(new_job_id(), workspace_id, item, created_by, now)
    row.changed_by = by or f"user:{created_by}"
    row.traceparent = _trace_context(traceparent)
    _check_job_types(session, workspace_id, [job_type], "job_type")
    (made,) = _INSERT.all(session, {name: getattr(row, name) for name in _CREATED})
    return made


def create_many(
    session: Executor,
    workspace_id: int,
    items: Sequence[Mapping[str, Any]],
    *,
    created_by: int,
    now: datetime | None = None,
    by: str | None = None,
    traceparent: str | None = None,
) -> list[Any]:
    """Create jobs, all or none, in one statement; each item is as ``create`` takes it.

    Returns the new jobs' rows in the same order, but for the ``id``. Raises
    ``ValidationFailed``, naming the item as ``jobs.0``.
    """
    if now is None:
        now = session.execute(select(DbNow())).scalar_one()
    rows = new_rows(workspace_id, items, created_by=created_by, now=now)
    _check_job_types(
        session, workspace_id, [item["job_type"] for item in items], "jobs.{}.job_type"
    )
    # Only what makes them different is sent for each.
    varying = [
        {
            "job_id": row.job_id,
            **item,
            **({} if row.scheduled_at is None else {"due_at": row.due_at}),
        }
        for row, item in zip(rows, items, strict=True)
    ]
    _insert_many(dialect_name(session)).all(
        session,
        {
            "workspace": workspace_id,
            "creator": created_by,
            "by": by or f"user:{created_by}",
            "trace": _trace_context(traceparent),
            "now": now,
            **records(session, varying),
        },
    )
    return rows


def new_rows(
    workspace_id: int,
    items: Sequence[Mapping[str, Any]],
    *,
    created_by: int,
    now: datetime,
    ids: Sequence[str] | None = None,
) -> list[Any]:
    """The rows of jobs that ``create_many`` makes of ``items``, with new ``ids`` or these.

    Raises ``ValidationFailed``, naming the item as ``jobs.0``.
    """
    rows = []
    for number, item in enumerate(items):
        try:
            job_id = new_job_id() if ids is None else ids[number]
            rows.append(_new_row(job_id, workspace_id, item, created_by, now))
        except ValidationFailed as error:
            raise ValidationFailed(
                {f"jobs.{number}.{name}": texts for name, texts in error.errors.items()}
            ) from None
    return rows


def _new_row(
    job_id: str, workspace_id: int, item: Mapping[str, Any], created_by: int, now: datetime
) -> SimpleNamespace:
    if not _JOB_TYPE.fullmatch(item["job_type"]):
        raise ValidationFailed({"job_type": [JOB_TYPE_RULE]})
    limit_documents(item)
    values = {
        **_BLANK,
        **item,
        "job_id": job_id,
        "workspace_id": workspace_id,
        "created_by": created_by,
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
        "due_at": lifecycle.due_at(now, item.get("scheduled_at")),
    }
    return SimpleNamespace(**values)


def _trace_context(text: str | None) -> str | None:
    # A trace is worth no refusal.
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def _check_job_types(
    session: Executor, workspace_id: int, job_types: Sequence[str], field: str
) -> None:
    """Refuse a type too many: lists and totals are kept for each (``ValidationFailed``)."""
    engine = session.engine if isinstance(session, Connection) else session.get_bind()
    known = _known_job_types.setdefault(engine, {}).get(workspace_id, set())
    if known.issuperset(job_types):
        return
    known = counts.job_types(session, workspace_id)
    for number, job_type in enumerate(job_types):
        if job_type not in known and len(known) >= MAX_JOB_TYPES:
            raise ValidationFailed(
                {field.format(number): [f"A workspace has {MAX_JOB_TYPES} job types at most."]}
            )
        known.add(job_type)
    if len(_known_job_types[engine]) >= _MAX_KNOWN:
        _known_job_types[engine].clear()
    _known_job_types[engine][workspace_id] = known


# What has been looked up once; another process may add as many meanwhile, which
# does no harm: it is a limit, and no promise.
_known_job_types: WeakKeyDictionary[Any, dict[int, set[str]]] = WeakKeyDictionary()
_MAX_KNOWN = 1000


@cache
def _insert_many(dialect: str) -> Statement[AnyRow]:
    item = record_source(
        dialect, {name: jobs.c[name].type for name in ("job_id", "due_at", *_ITEM)}
    ).c
    now: Any = bindparam("now", type_=jobs.c.created_at.type)
    values = {
        **{name: literal(_BLANK[name], jobs.c[name].type) for name in _CREATED if name in _BLANK},
        **{name: item[name] for name in ("job_id", *_ITEM)},
        "priority": func.coalesce(item.priority, _BLANK["priority"]),
        "max_retries": func.coalesce(item.max_retries, _BLANK["max_retries"]),
        "workspace_id": bindparam("workspace", type_=jobs.c.workspace_id.type),
        "created_by": bindparam("creator", type_=jobs.c.created_by.type),
        "changed_by": bindparam("by", type_=jobs.c.changed_by.type),
        "traceparent": bindparam("trace", type_=jobs.c.traceparent.type),
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
        "due_at": func.coalesce(item.due_at, now),
    }
    return Statement[AnyRow](insert(jobs).from_select(list(values), select(*values.values())))


def get(session: Executor, workspace_id: int, job_id: str) -> AnyRow:
    """Read one job, with the database's time as ``now``. Raises ``JobNotFound``."""
    row = session.execute(
        select(*COLUMNS, DbNow().label("now")).where(
            jobs.c.workspace_id == workspace_id, jobs.c.job_id == job_id
        )
    ).first()
    if row is None:
        raise not_found()
    return row


def changed_since() -> PreconditionFailed:
    """The refusal of a change to another version than the job's."""
    return PreconditionFailed(
        "The job has changed since you read it. Read it again and decide anew."
    )


def edit(
    session: Executor,
    workspace_id: int,
    job_id: str,
    changes: Mapping[str, Any],
    *,
    if_match: Callable[[int], bool] | None = None,
    job: AnyRow | None = None,
    by: str | None = None,
) -> AnyRow:
    """Change what a caller may change; see ``lifecycle.edit`` for the rules.

    ``if_match`` is asked whether the job's version is the wanted one. ``job``
    is the job where it has just been read. ``by`` is who it is: ``user:1``, ``key:1``.
    """
    return _change(
        session,
        workspace_id,
        job_id,
        lambda j: lifecycle.edit(j, changes, j.now),
        if_match,
        job,
        by,
    )


def cancel(
    session: Executor,
    workspace_id: int,
    job_id: str,
    *,
    reason: str | None = None,
    if_match: Callable[[int], bool] | None = None,
    job: AnyRow | None = None,
    by: str | None = None,
) -> AnyRow:
    """Cancel a pending or running job. Raises ``JobNotCancellable``."""
    return _change(
        session,
        workspace_id,
        job_id,
        lambda j: lifecycle.cancel(j, reason=reason, now=j.now),
        if_match,
        job,
        by,
    )


def retry(
    session: Executor,
    workspace_id: int,
    job_id: str,
    *,
    reason: str | None = None,
    if_match: Callable[[int], bool] | None = None,
    job: AnyRow | None = None,
    by: str | None = None,
) -> AnyRow:
    """Put a failed or cancelled job back. Raises ``JobNotRetryable``."""
    return _change(
        session,
        workspace_id,
        job_id,
        lambda j: lifecycle.retry(j, reason=reason, now=j.now),
        if_match,
        job,
        by,
    )


@transactional()
def delete(session: Executor, workspace_id: int, job_id: str, *, by: str | None = None) -> None:
    """Delete a job that has ended, with its attempts. Raises ``JobNotEnded``."""
    mine = (jobs.c.workspace_id == workspace_id) & (jobs.c.job_id == job_id)
    ended = jobs.c.status.in_(ENDED)
    gone = session.execute(sql_delete(jobs).where(mine, ended).returning(*GONE)).all()
    events.note_deleted(session, gone, by=by)
    if not gone:
        status = JobStatus(get(session, workspace_id, job_id).status)
        raise JobNotEnded(
            f"The job is {status.label}; only a job that has ended can be deleted. Cancel it first."
        )


@transactional(planner=IN_ORDER)
def delete_old(
    session: Executor, workspace_id: int, status: JobStatus, days: int, *, limit: int
) -> int:
    """Delete the jobs that ended so long ago, ``limit`` at most; returns how many.

    Those that somebody is changing at this moment are left for the next time.
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
    # Its own row is locked: the status is as it was found.
    rows = session.execute(sql_delete(jobs).where(picked).returning(*GONE)).all()
    events.note_deleted(session, rows, by=None)
    return len(rows)


def _change(
    session: Executor,
    workspace_id: int,
    job_id: str,
    rule: Callable[[Any], dict[str, Any]],
    if_match: Callable[[int], bool] | None,
    job: AnyRow | None,
    by: str | None,
) -> AnyRow:
    """Apply a rule to the job as it is, or to nothing.

    The rule is decided on a version of the job, and the one statement that
    writes it down applies to that version alone. Where somebody else was
    faster, it is decided again on what they left.
    """
    for _ in range(_MAX_TRIES):
        if job is None:
            job = get(session, workspace_id, job_id)
        if if_match is not None and not if_match(job.version):
            raise changed_since()
        values = rule(job)
        if not values:
            return job
        limit_documents(values)
        changed = _write(session, job, values, by)
        if changed is not None:
            return changed
        job = None
    raise Unavailable("The job is being changed by too many others at this moment; try again.")


def _write(
    session: Executor, job: AnyRow, values: Mapping[str, Any], by: str | None
) -> AnyRow | None:
    """Write a change to the version that was read, and the attempt that it ends; None: too late."""
    ended = leases.ended_attempt(job, values, job.now)
    # A single statement needs no transaction, which would cost two round trips.
    with nullcontext() if ended is None else atomic(session):
        changed = session.execute(
            update(jobs)
            .where(
                and_(
                    jobs.c.workspace_id == job.workspace_id,
                    jobs.c.job_id == job.job_id,
                    jobs.c.version == job.version,
                )
            )
            .values(**values, version=job.version + 1, updated_at=job.now, changed_by=by)
            .returning(*COLUMNS)
        ).first()
        if changed is not None and ended is not None:
            session.execute(insert(attempts), ended)
    return changed
