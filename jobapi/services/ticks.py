"""Ticks of schedules: each makes one job, whatever number of nodes run and whichever is killed.

One transaction locks the schedule, makes the job and sets the next tick. So the tick is still
there if it fails, and no other process finds it once it has succeeded. A unique index on the ticks
of jobs stands behind that.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import IntegrityError

from ..errors import JobApiError, JobExists, QueueFull, Unavailable
from ..rules import lifecycle
from ..rules.events import EventKind
from ..rules.schedules import Overlap, RunOutcome
from ..rules.ticks import decide
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor
from ..store.faults import violates
from ..store.moving import not_moving
from ..store.statement import Statement
from ..store.tables import TICKS, jobs, schedules, workspaces
from ..store.transactions import savepoint, transactional
from . import actors, creating
from .schedules import next_columns, note, request_of, suspend, timing_of
from .settling import Settling, lock
from .unique_keys import IS_LIVE

AT_ONCE = 50
"""How many due schedules are looked for at once."""

REPLACED_REASON = "Replaced by the next run of its schedule"
REPLACED_AT_ONCE = 500

PUT_OFF = timedelta(seconds=30)
"""How long a schedule waits whose tick has failed, so that it holds up no other."""


class Ticked(NamedTuple):
    """What a tick has done."""

    workspace_id: int
    outcome: RunOutcome | None
    """None: the schedule was suspended."""
    late: timedelta
    """How long after it was due, which is its time and the jitter."""
    wakes: bool
    """Whether a waiting claim may get a job now."""


_c = schedules.c
_DUE = Statement[AnyRow](
    select(_c.workspace_id, _c.schedule_id)
    .where(_c.due_at <= bindparam("now", type_=_c.due_at.type), not_moving(_c.workspace_id))
    .order_by(_c.due_at)
    .limit(AT_ONCE),
    prepare=True,
)


def find_due(session: Executor, *, now: datetime | None = None) -> Sequence[AnyRow]:
    """Schedules of all workspaces that have a due tick, the most overdue first."""
    now = now or session.execute(select(DbNow())).scalar_one()
    return _DUE.all(session, {"now": now})


@transactional()
def tick(
    session: Executor, workspace_id: int, schedule_id: str, *, now: datetime | None = None
) -> Ticked | None:
    """Handle the next tick of a schedule, if it is due; None: it is not, or another is at it."""
    row = session.execute(
        select(schedules, DbNow().label("now"), workspaces.c.flow_version)
        .join_from(schedules, workspaces, workspaces.c.id == _c.workspace_id)
        .where(
            _c.workspace_id == workspace_id,
            _c.schedule_id == schedule_id,
            _c.due_at <= (DbNow() if now is None else now),
            workspaces.c.deleted_at.is_(None),
            workspaces.c.move.is_(None),
        )
        .with_for_update(of=schedules, skip_locked=True)
    ).first()
    if row is None:
        return None
    now = now or row.now
    due = decide(timing_of(row), row.catch_up, row.jitter_seconds, row.next_run_at, row.due_at, now)
    if due.missed is not None:
        _skip(session, row, "missed", due.missed[0], until=due.missed[1])
    late = now - row.due_at
    made = _Made(RunOutcome.MISSED)
    if due.tick is not None:
        try:
            made = _make(session, row, due.tick, now)
        except Unavailable:
            raise
        except JobApiError as refusal:
            suspend(session, row, refusal.detail, now)
            return Ticked(workspace_id, None, late, wakes=False)
    session.execute(
        update(schedules)
        .where(
            _c.workspace_id == workspace_id,
            _c.schedule_id == schedule_id,
            _c.next_run_at == row.next_run_at,
        )
        .values(
            **_following(row, due.after),
            last_scheduled_for=due.after,
            last_ran_at=now,
            last_outcome=made.outcome,
            last_job_id=made.job_id,
        )
    )
    return Ticked(workspace_id, made.outcome, late, made.wakes)


def _following(row: AnyRow, after: datetime) -> dict[str, datetime | None]:
    """The columns of the next tick, which is due no earlier than this one was.

    With a jitter longer than the time between two ticks it might have been; then it would seem to
    have been missed. What was put off after a failure does not count.
    """
    columns = next_columns(row, after)
    due = columns["due_at"]
    if due is not None:
        was = min(row.due_at, row.next_run_at + timedelta(seconds=row.jitter_seconds))
        columns["due_at"] = max(due, was)
    return columns


class _Made(NamedTuple):
    outcome: RunOutcome
    job_id: str | None = None
    wakes: bool = False


def _make(session: Executor, row: AnyRow, tick: datetime, now: datetime) -> _Made:
    """Make the job of a tick. Raises what suspends the schedule."""
    user_id = actors.check_may_create(session, row.workspace_id, row.runs_as, row.job_type, now)
    if row.overlap == Overlap.SKIP and _live(session, row, 1):
        _skip(session, row, "overlap", tick)
        return _Made(RunOutcome.OVERLAP)
    try:
        with savepoint(session):
            if row.overlap == Overlap.REPLACE:
                _cancel_live(session, row)
            made = creating.submit(
                session,
                row.workspace_id,
                **request_of(row.job),
                created_by=user_id,
                now=now,
                actor=row.runs_as,
                flow_version=row.flow_version,
                schedule_id=row.schedule_id,
                scheduled_for=tick,
            )
    except QueueFull:
        _skip(session, row, "queue-full", tick)
        return _Made(RunOutcome.QUEUE_FULL)
    except JobExists as refusal:
        return _Made(RunOutcome.EXISTING, refusal.job_id)
    except IntegrityError as error:
        if not violates(error, TICKS):
            raise
        # The clock of another server was ahead.
        return _Made(RunOutcome.EXISTING, _job_of(session, row, tick))
    outcome = RunOutcome.EXISTING if made.existing else RunOutcome.CREATED
    return _Made(outcome, made.job.job_id, wakes=not made.existing)


def _live(session: Executor, row: AnyRow, most: int) -> Sequence[str]:
    """The ids of live jobs of a schedule."""
    c = jobs.c
    mine = (c.workspace_id == row.workspace_id) & (c.schedule_id == row.schedule_id)
    query = select(c.job_id).where(mine, IS_LIVE).order_by(c.id).limit(most)
    return session.execute(query).scalars().all()


def _cancel_live(session: Executor, row: AnyRow) -> None:
    while job_ids := _live(session, row, REPLACED_AT_ONCE):
        settling = Settling(lock(session, row.workspace_id, job_ids, IS_LIVE), actor=row.runs_as)
        for job in list(settling.jobs.values()):
            change = lifecycle.cancel(job, reason=REPLACED_REASON, now=job.now)
            settling.apply(job, change)
        settling.settle(session)


def _job_of(session: Executor, row: AnyRow, tick: datetime) -> str | None:
    c = jobs.c
    query = select(c.job_id).where(
        c.workspace_id == row.workspace_id,
        c.schedule_id == row.schedule_id,
        c.scheduled_for == tick,
    )
    return session.execute(query).scalar()


def _skip(
    session: Executor, row: AnyRow, reason: str, tick: datetime, *, until: datetime | None = None
) -> None:
    data = {"reason": reason, "scheduled_for": _text(tick)}
    if until is not None:
        data["until"] = _text(until)
    note(session, row, EventKind.SCHEDULE_SKIPPED, None, **data)


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def put_off(session: Executor, workspace_id: int, schedule_id: str) -> None:
    """Let a schedule wait whose tick has failed. The tick stays the same."""
    now = session.execute(select(DbNow())).scalar_one()
    session.execute(
        update(schedules)
        .where(
            _c.workspace_id == workspace_id,
            _c.schedule_id == schedule_id,
            _c.due_at <= now,
            not_moving(_c.workspace_id),
        )
        .values(due_at=now + PUT_OFF)
    )


def most_overdue(session: Executor, now: datetime) -> float:
    """For how many seconds the most overdue tick has been due; 0: none is."""
    first = select(_c.due_at).where(_c.due_at <= now, not_moving(_c.workspace_id))
    found = session.execute(first.order_by(_c.due_at).limit(1)).scalar()
    return 0.0 if found is None else (now - found).total_seconds()
