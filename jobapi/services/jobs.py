"""The verbs of callers: create, get, edit, cancel, retry and delete jobs.

Each takes a session, which may be a host application's own, and never commits it. They return rows
of the jobs table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any, Unpack, cast
from weakref import WeakKeyDictionary

import uuid_utils
from sqlalchemy import (
    ColumnElement,
    Connection,
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
    ENDED,
    FIELDS,
    JOB_TYPE_PATTERN,
    JOB_TYPE_RULE,
    CurrentJob,
    Job,
    JobEdit,
    JobStatus,
    NewJob,
    SetBy,
    fields_set_by,
)
from ..rules.lifecycle import Change
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


# The columns that the event of a deleted job shows.
_GONE = (jobs.c.workspace_id, jobs.c.job_id, jobs.c.job_type, jobs.c.status)

# The fields that a creation may set, and the values of a new job.
_GIVEN = fields_set_by(SetBy.CREATE)
_BLANK = {name: field.default for name, field in FIELDS.items() if name != "id"}
_CREATED = (
    *("job_id", "workspace_id", "created_by", *_GIVEN, "status", "version", "retry_count"),
    *("created_at", "updated_at", "queued_at", "due_at", "changed_by", "traceparent"),
)
_INSERT = Statement[Job](insert(jobs).returning(*COLUMNS), prepare=True, values=_CREATED)

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
    now: datetime | None = None,
    actor: str | None = None,
    traceparent: str | None = None,
    **fields: Unpack[NewJob],
) -> Job:
    """Create a job, due now or when it is scheduled.

    ``fields`` are ``job_type`` and, if wanted, ``priority``, ``metadata``, ``scheduled_at`` and
    the others of ``NewJob``. Durations are in seconds, times need an offset. ``now`` is the
    database's time if the caller has just read it. In a host's own session the job exists once
    the host commits. ``actor`` is who creates it for the history, such as ``key:1``; by default the
    creator. ``traceparent`` is the creator's W3C trace context, for the worker; an invalid one
    counts as None. Raises ``ValidationFailed``.
    """
    unknown = fields.keys() - set(_GIVEN)
    if unknown:
        raise TypeError(f"A new job has no field {', '.join(sorted(unknown))}.")
    if now is None:
        now = session.execute(select(DbNow())).scalar_one()
    row = _new_row(new_job_id(), workspace_id, fields, created_by, now)
    _check_job_types(session, workspace_id, [fields["job_type"]], "job_type")
    values = {
        **vars(row),
        "changed_by": actor or f"user:{created_by}",
        "traceparent": _trace_context(traceparent),
    }
    (made,) = _INSERT.all(session, {name: values[name] for name in _CREATED})
    return made


def create_many(
    session: Executor,
    workspace_id: int,
    items: Sequence[NewJob],
    *,
    created_by: int,
    now: datetime | None = None,
    actor: str | None = None,
    traceparent: str | None = None,
) -> list[Job]:
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
    # Each item sends only what differs between the jobs.
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
            "given_workspace_id": workspace_id,
            "given_created_by": created_by,
            "actor": actor or f"user:{created_by}",
            "given_traceparent": _trace_context(traceparent),
            "now": now,
            **records(session, varying),
        },
    )
    return rows


def new_rows(
    workspace_id: int,
    items: Sequence[NewJob],
    *,
    created_by: int,
    now: datetime,
    ids: Sequence[str] | None = None,
) -> list[Job]:
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


def _new_row(job_id: str, workspace_id: int, item: NewJob, created_by: int, now: datetime) -> Job:
    if not _JOB_TYPE.fullmatch(item["job_type"]):
        raise ValidationFailed({"job_type": [JOB_TYPE_RULE]})
    limit_documents(item)
    given = {name: value for name, value in item.items() if value is not None}
    values = {
        **_BLANK,
        **given,
        "job_id": job_id,
        "workspace_id": workspace_id,
        "created_by": created_by,
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
        "due_at": lifecycle.due_at(now, item.get("scheduled_at")),
    }
    return cast(Job, SimpleNamespace(**values))


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
# does no harm: it is a limit, not a promise.
_known_job_types: WeakKeyDictionary[Any, dict[int, set[str]]] = WeakKeyDictionary()
_MAX_KNOWN = 1000


@cache
def _insert_many(dialect: str) -> Statement[AnyRow]:
    item = record_source(
        dialect, {name: jobs.c[name].type for name in ("job_id", "due_at", *_GIVEN)}
    ).c
    now: Any = bindparam("now", type_=jobs.c.created_at.type)

    def given(name: str) -> Any:
        default = _BLANK[name]
        return item[name] if default is None else func.coalesce(item[name], default)

    values = {
        **{name: literal(_BLANK[name], jobs.c[name].type) for name in _CREATED},
        **{name: given(name) for name in ("job_id", *_GIVEN)},
        "workspace_id": bindparam("given_workspace_id", type_=jobs.c.workspace_id.type),
        "created_by": bindparam("given_created_by", type_=jobs.c.created_by.type),
        "changed_by": bindparam("actor", type_=jobs.c.changed_by.type),
        "traceparent": bindparam("given_traceparent", type_=jobs.c.traceparent.type),
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
        "due_at": func.coalesce(item.due_at, now),
    }
    return Statement[AnyRow](insert(jobs).from_select(list(values), select(*values.values())))


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
    """The refusal of a change to another version than the job's."""
    return PreconditionFailed(
        "The job has changed since you read it. Read it again and decide again."
    )


IfMatch = Callable[[int], bool]
"""Whether a version of the job is the one that the caller wants to change."""


def edit(
    session: Executor,
    workspace_id: int,
    job_id: str,
    changes: JobEdit,
    *,
    if_match: IfMatch | None = None,
    job: CurrentJob | None = None,
    actor: str | None = None,
) -> Job:
    """Edit the fields that a caller may edit; ``lifecycle.edit`` has the rules.

    ``job`` is the job's row, if the caller has just read it. ``actor`` is who edits it: ``user:1``,
    ``key:1``. The other verbs take the same. Raises ``JobNotFound``, ``PreconditionFailed`` if
    ``if_match`` refuses the version, and the errors of the rule.
    """

    def rule(job: CurrentJob) -> Change:
        return lifecycle.edit(job, changes, job.now)

    return _change(session, workspace_id, job_id, rule, if_match, job, actor)


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

    return _change(session, workspace_id, job_id, rule, if_match, job, actor)


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
    """Make a failed or cancelled job pending again. Raises ``JobNotRetryable``."""

    def rule(job: CurrentJob) -> Change:
        return lifecycle.retry(job, reason=reason, now=job.now)

    return _change(session, workspace_id, job_id, rule, if_match, job, actor)


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


def _change(
    session: Executor,
    workspace_id: int,
    job_id: str,
    rule: Callable[[CurrentJob], Change],
    if_match: IfMatch | None,
    job: CurrentJob | None,
    actor: str | None,
) -> Job:
    """Apply a rule to the current version of a job, or change nothing.

    The rule decides on one version, and the UPDATE that writes its change applies to that version
    only. If another change came first, the job is read and the rule decides again.
    """
    for _ in range(_MAX_TRIES):
        if job is None:
            job = get(session, workspace_id, job_id)
        if if_match is not None and not if_match(job.version):
            raise changed_since()
        change = rule(job)
        if not change.values:
            return job
        limit_documents(change.values)
        changed = _write(session, job, change, actor)
        if changed is not None:
            return changed
        job = None
    raise Unavailable("Too many requests are changing this job. Try again.")


def _write(session: Executor, job: CurrentJob, change: Change, actor: str | None) -> Job | None:
    """Write a change to the version that was read, and the attempt that it ends.

    Returns None if that version is no longer current.
    """
    ended = leases.ended_attempt(job, change, job.now)
    # A single statement needs no transaction, which would cost two round trips.
    with nullcontext() if ended is None else atomic(session):
        changed = session.execute(
            update(jobs)
            .where(
                jobs.c.workspace_id == job.workspace_id,
                jobs.c.job_id == job.job_id,
                jobs.c.version == job.version,
            )
            .values(
                **change.values,
                version=job.version + 1,
                updated_at=job.now,
                changed_by=actor,
                last_event=change.event,
                last_edited=" ".join(change.edited) or None,
                last_event_version=job.version + 1,
            )
            .returning(*COLUMNS)
        ).first()
        if changed is not None and ended is not None:
            session.execute(insert(attempts), ended._asdict())
    return cast(Job | None, changed)
