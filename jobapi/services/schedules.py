"""Schedules as resources: create, read, change, pause, resume, run and delete them.

``ticks`` makes their jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast

import uuid_utils
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from ..errors import (
    PageTooLarge,
    PreconditionFailed,
    ScheduleNameTaken,
    ScheduleNotFound,
    TooManySchedules,
    ValidationFailed,
)
from ..rules import cron
from ..rules.documents import merge_patch, wrong_document
from ..rules.events import EventKind
from ..rules.jobs import JobRequest, OnConflict, Priority
from ..rules.labels import Labelled
from ..rules.roles import check_name
from ..rules.schedules import CatchUp, Overlap, RunOutcome
from ..rules.ticks import Timing, due_at
from ..store.columns import DbNow, JsonBytes, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.faults import violates
from ..store.paging import MAX_BYTES, no_cursor, read_cursor, write_cursor
from ..store.tables import SCHEDULE_NAMES, schedules, workspaces
from ..store.transactions import savepoint, transactional
from . import creating, events

DEFAULTS: Mapping[str, Any] = {
    "cron": None,
    "every_seconds": None,
    "timezone": "UTC",
    "overlap": Overlap.ALLOW,
    "catch_up": CatchUp.LAST,
    "jitter_seconds": 0,
    "starts_at": None,
    "ends_at": None,
}
"""The fields that need not be given, and what null means."""

TIMING = ("cron", "every_seconds", "timezone", "starts_at", "ends_at")
_OTHER_BYTES = 2_000


class SchedulePage(NamedTuple):
    """A page of schedules, in the order of their creation."""

    rows: Sequence[AnyRow]
    total: int
    next_cursor: str | None


def timing_of(row: Any) -> Timing:
    """When a schedule has its ticks."""
    return _timing({name: getattr(row, name) for name in TIMING}, row.created_at)


def _timing(values: Mapping[str, Any], created_at: datetime) -> Timing:
    return Timing(**{name: values[name] for name in TIMING}, created_at=created_at)


def upcoming(row: Any) -> Sequence[datetime]:
    """The next ticks of a schedule."""
    return timing_of(row).upcoming(row.next_run_at)


def request_of(job: Mapping[str, Any]) -> JobRequest:
    """The create that a schedule makes, from what is stored."""
    values = dict(job)
    if "priority" in values:
        values["priority"] = Priority[values["priority"].upper()]
    if "on_conflict" in values:
        values["on_conflict"] = OnConflict[values["on_conflict"].upper()]
    return cast(JobRequest, values)


def _stored(job: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.label if isinstance(value, Labelled) else value for name, value in job.items()
    }


def _visible(workspace_id: int, only_job_types: Sequence[str] | None) -> list[ColumnElement[bool]]:
    mine = [schedules.c.workspace_id == workspace_id]
    return mine if only_job_types is None else [*mine, schedules.c.job_type.in_(only_job_types)]


def page(
    session: Executor,
    workspace_id: int,
    *,
    only_job_types: Sequence[str] | None = None,
    limit: int,
    page: int | None = None,
    cursor: str | None = None,
) -> SchedulePage:
    """A page of schedules. Call it in a ``snapshot``.

    It ends early if it would be too large, or with ``page`` raises ``PageTooLarge``. Raises
    ``ValidationFailed`` for an invalid cursor.
    """
    c = schedules.c
    visible = _visible(workspace_id, only_job_types)
    total = session.execute(
        select(func.count()).select_from(schedules).where(*visible)
    ).scalar_one()
    size = (JsonBytes(c.job) + _OTHER_BYTES).label("size")
    query = select(c.schedule_id, size).where(*visible).order_by(c.schedule_id).limit(limit + 1)
    if cursor is not None:
        last = read_cursor(cursor)
        if len(last) != 1 or not isinstance(last[0], str) or "\x00" in last[0]:
            raise no_cursor()
        query = query.where(c.schedule_id > last[0])
    found = session.execute(query.offset(((page or 1) - 1) * limit)).all()
    ids: list[str] = []
    room = MAX_BYTES
    for row in found[:limit]:
        room -= row.size
        if ids and room < 0:
            break
        ids.append(row.schedule_id)
    if page is not None and len(ids) < len(found[:limit]):
        raise PageTooLarge("The page is larger than 8 MiB. Use a smaller limit, or a cursor.")
    rows = session.execute(
        select(schedules)
        .where(c.workspace_id == workspace_id, c.schedule_id.in_(ids))
        .order_by(c.schedule_id)
    ).all()
    return SchedulePage(rows, total, write_cursor([ids[-1]]) if len(ids) < len(found) else None)


def get(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    *,
    only_job_types: Sequence[str] | None = None,
) -> AnyRow:
    """One schedule. Raises ``ScheduleNotFound``."""
    return _get(session, workspace_id, schedule_id, only_job_types, lock=False)


def _get(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    only_job_types: Sequence[str] | None,
    *,
    lock: bool = True,
) -> AnyRow:
    query = select(schedules, DbNow().label("now")).where(
        *_visible(workspace_id, only_job_types), schedules.c.schedule_id == schedule_id
    )
    row = session.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise ScheduleNotFound("No schedule of this workspace has this id.")
    return row


@transactional()
def create(
    session: Executor,
    workspace_id: int,
    *,
    name: str,
    job: JobRequest,
    created_by: int,
    most: int,
    actor: str | None = None,
    now: datetime | None = None,
    **given: Any,
) -> AnyRow:
    """Create a schedule, whose jobs run as ``actor``, by default the user ``created_by``.

    ``job`` is what a create takes, ``given`` are fields of ``DEFAULTS``, and ``most`` is how many
    schedules a workspace may have. Raises ``ValidationFailed``, ``ScheduleNameTaken`` and
    ``TooManySchedules``.
    """
    check_name(name)
    # One create at a time, so that there are not more than may be. Creates of jobs need not wait.
    session.execute(
        select(workspaces.c.id)
        .where(workspaces.c.id == workspace_id)
        .with_for_update(key_share=True)
    )
    now = now or session.execute(select(DbNow())).scalar_one()
    actor = actor or f"user:{created_by}"
    schedule_id = "sch_" + uuid_utils.uuid7().hex
    values = {**DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
    if values["cron"] is not None:
        values["cron"] = cron.parse(values["cron"]).text
    timing = _timing(values, now)
    timing.check()
    mine = select(func.count()).select_from(schedules).where(*_visible(workspace_id, None))
    if session.execute(mine).scalar_one() >= most:
        raise TooManySchedules(
            f"A workspace has {most:,} schedules at most. Delete one that is not needed any more."
        )
    row = session.execute(
        insert_or_ignore(dialect_name(session), schedules)
        .values(
            **values,
            workspace_id=workspace_id,
            schedule_id=schedule_id,
            name=name,
            **_job_columns(job),
            **_next(schedule_id, timing, values["jitter_seconds"], now),
            paused=False,
            runs_as=actor,
            version=1,
            created_by=created_by,
            created_at=now,
            updated_at=now,
        )
        .on_conflict_do_nothing(index_elements=["workspace_id", "name"])
        .returning(*schedules.c)
    ).first()
    if row is None:
        raise _name_taken(name)
    note(session, row, EventKind.SCHEDULE_CREATED, actor)
    return row


def _job_columns(job: Mapping[str, Any]) -> dict[str, Any]:
    wrong = wrong_document(job.get("metadata") or {})
    if wrong is not None:
        raise ValidationFailed({"job.metadata": [wrong]})
    given = {name: value for name, value in job.items() if value is not None}
    return {"job": _stored(given), "job_type": job["job_type"]}


def _next(
    schedule_id: str, timing: Timing, jitter_seconds: int, after: datetime
) -> dict[str, datetime | None]:
    """The columns of the next tick after a moment."""
    tick = timing.first(after)
    due = None if tick is None else due_at(schedule_id, tick, jitter_seconds)
    return {"next_run_at": tick, "due_at": due}


def next_columns(row: Any, after: datetime) -> dict[str, datetime | None]:
    """The columns of a schedule's next tick after a moment."""
    return _next(row.schedule_id, timing_of(row), row.jitter_seconds, after)


def _from_now(row: Any, now: datetime) -> datetime:
    # The clock of another server may be behind, and no tick makes two jobs.
    last = row.last_scheduled_for
    return now if last is None else max(now, last)


def _name_taken(name: str) -> ScheduleNameTaken:
    return ScheduleNameTaken(f"Another schedule of the workspace has the name {name!r}.")


@transactional()
def change(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    changes: Mapping[str, Any],
    *,
    check_job_type: Callable[[str], None] = lambda job_type: None,
    actor: str,
    only_job_types: Sequence[str] | None = None,
    if_match: Callable[[int], bool] | None = None,
    now: datetime | None = None,
) -> AnyRow:
    """Change fields of a schedule; None returns one to its default.

    ``job`` is merged into the stored one (RFC 7396). If it is given, the jobs run as ``actor`` from
    now on, and a suspended schedule continues. ``check_job_type`` may refuse its type. Raises
    ``ScheduleNotFound``, ``PreconditionFailed``, ``ValidationFailed`` and ``ScheduleNameTaken``.
    """
    row = _get(session, workspace_id, schedule_id, only_job_types)
    if if_match is not None and not if_match(row.version):
        raise PreconditionFailed("The schedule has changed since you read it. Read it again.")
    now = now or row.now
    values = {
        name: DEFAULTS[name] if value is None and name in DEFAULTS else value
        for name, value in changes.items()
        if name != "job"
    }
    for one, other in (("cron", "every_seconds"), ("every_seconds", "cron")):
        if values.get(one) is not None and other not in values:
            values[other] = None
    if values.get("cron") is not None:
        values["cron"] = cron.parse(values["cron"]).text
    if "name" in values:
        check_name(values["name"])
    suspended = row.suspended_reason
    if changes.get("job") is not None:
        job = merge_patch(row.job, _stored(changes["job"]))
        if "job_type" not in job:
            raise ValidationFailed({"job.job_type": ["Missing data for required field."]})
        check_job_type(job["job_type"])
        values |= {**_job_columns(job), "runs_as": actor, "suspended_reason": None}
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    if not changed:
        return row
    timing = _timing({**row._asdict(), **changed}, row.created_at)
    jitter = changed.get("jitter_seconds", row.jitter_seconds)
    if not changed.keys().isdisjoint(TIMING):
        timing.check()
    is_active = not row.paused and changed.get("suspended_reason", suspended) is None
    if is_active and (suspended is not None or not changed.keys().isdisjoint(TIMING)):
        changed |= _next(schedule_id, timing, jitter, _from_now(row, now))
    elif row.next_run_at is not None and "jitter_seconds" in changed:
        # No earlier than now, or the tick would seem to have been missed.
        changed["due_at"] = max(due_at(schedule_id, row.next_run_at, jitter), min(row.due_at, now))
    shown = [name for name in changes if name in changed]
    return _write(session, row, changed, now, EventKind.SCHEDULE_CHANGED, actor, changed=shown)


@transactional()
def pause(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    reason: str | None,
    *,
    actor: str,
    only_job_types: Sequence[str] | None = None,
) -> AnyRow:
    """Let a schedule have no ticks. Raises ``ScheduleNotFound``."""
    row = _get(session, workspace_id, schedule_id, only_job_types)
    if row.paused and row.paused_reason == reason:
        return row
    values = {"paused": True, "paused_reason": reason, "next_run_at": None, "due_at": None}
    data = {"reason": reason}
    return _write(session, row, values, row.now, EventKind.SCHEDULE_PAUSED, actor, **data)


@transactional()
def resume(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    *,
    actor: str,
    only_job_types: Sequence[str] | None = None,
) -> AnyRow:
    """Let a paused or suspended schedule continue from now. Raises ``ScheduleNotFound``."""
    row = _get(session, workspace_id, schedule_id, only_job_types)
    if not row.paused and row.suspended_reason is None:
        return row
    values = {
        "paused": False,
        "paused_reason": None,
        "suspended_reason": None,
        **next_columns(row, _from_now(row, row.now)),
    }
    return _write(session, row, values, row.now, EventKind.SCHEDULE_RESUMED, actor)


@transactional()
def remove(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    *,
    actor: str,
    only_job_types: Sequence[str] | None = None,
) -> None:
    """Delete a schedule. Its jobs stay. Raises ``ScheduleNotFound``."""
    row = _get(session, workspace_id, schedule_id, only_job_types)
    session.execute(delete(schedules).where(*_is(row)))
    note(session, row, EventKind.SCHEDULE_DELETED, actor)


@transactional()
def run(
    session: Executor,
    workspace_id: int,
    schedule_id: str,
    *,
    created_by: int,
    actor: str,
    only_job_types: Sequence[str] | None = None,
    traceparent: str | None = None,
) -> creating.Created:
    """Create the schedule's job now, as its caller; ``overlap`` does not matter.

    Raises ``ScheduleNotFound``, and what ``creating.create`` raises.
    """
    row = _get(session, workspace_id, schedule_id, only_job_types)
    made = creating.submit(
        session,
        workspace_id,
        **request_of(row.job),
        created_by=created_by,
        actor=actor,
        traceparent=traceparent,
        schedule_id=schedule_id,
    )
    outcome = RunOutcome.EXISTING if made.existing else RunOutcome.CREATED
    session.execute(
        update(schedules)
        .where(*_is(row))
        .values(
            last_scheduled_for=None,
            last_ran_at=row.now,
            last_outcome=outcome,
            last_job_id=made.job.job_id,
        )
    )
    return made


def suspend(session: Executor, row: Any, reason: str, now: datetime, **values: Any) -> None:
    """Stop a schedule that may not make its job any more. Its row is locked."""
    values |= {"suspended_reason": reason, "next_run_at": None, "due_at": None}
    _write(session, row, values, now, EventKind.SCHEDULE_SUSPENDED, None, reason=reason)


def _is(row: Any) -> list[ColumnElement[bool]]:
    c = schedules.c
    return [c.workspace_id == row.workspace_id, c.schedule_id == row.schedule_id]


def _write(
    session: Executor,
    row: Any,
    values: Mapping[str, Any],
    now: datetime,
    kind: EventKind,
    actor: str | None,
    **data: Any,
) -> AnyRow:
    """Write a change to a locked schedule, with its event."""
    statement = (
        update(schedules)
        .where(*_is(row))
        .values(**values, version=row.version + 1, updated_at=now)
        .returning(*schedules.c)
    )
    try:
        with savepoint(session):
            changed = session.execute(statement).one()
    except IntegrityError as error:
        if violates(error, SCHEDULE_NAMES):
            raise _name_taken(values["name"]) from None
        raise
    note(session, changed, kind, actor, **data)
    return changed


def note(session: Executor, row: Any, kind: EventKind, actor: str | None, **data: Any) -> None:
    """Note what happened to a schedule, with the change itself."""
    data = {"schedule_id": row.schedule_id, "name": row.name, **data}
    events.note(session, row.workspace_id, kind, actor=actor, data=data, job_type=row.job_type)
