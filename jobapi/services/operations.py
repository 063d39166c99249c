"""Operations: cancel, retry or delete all jobs that match a filter.

An operation walks through the jobs in the order of creation, a few hundred per transaction, and
stores its position. So it blocks others only briefly, continues after a crash, can be stopped, and
visits no job twice.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import insert, select, update

from ..errors import JobApiError, OperationEnded, OperationNotFound, ValidationFailed
from ..rules import lifecycle
from ..rules.documents import limit_documents
from ..rules.operations import Action, OperationStatus
from ..store.columns import DbNow, is_picked
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import not_moving
from ..store.paging import Page, fetch_page
from ..store.records import record_source, records
from ..store.tables import LIVE, jobs, operations
from ..store.transactions import BY_KEY, set_planner, transactional
from . import events, job_lists
from .job_filters import Filters
from .job_rows import in_workspace
from .settling import Settling, lock
from .unique_keys import TypeAndKey, find_taken

AT_ONCE = 500
"""How many jobs one transaction changes at most."""

KEPT_DAYS = 30
"""How long an operation that has ended can be read."""


@transactional()
def plan(session: Executor, workspace_id: int, action: Action, filters: Filters) -> dict[str, Any]:
    """The columns of an operation that is not created, with the number of jobs that match now.

    Raises ``ValidationFailed`` if the action applies to none of the filter's statuses.
    """
    narrowed = _narrowed(action, filters)
    total, capped = job_lists.count(session, in_workspace(workspace_id), narrowed)
    return {
        "workspace_id": workspace_id,
        "action": action,
        "filter": filters.to_json(),
        "matched": total,
        "matched_is_capped": capped,
        "changed": 0,
        "skipped": 0,
    }


@transactional(repeat_after=(LIVE,))
def create(
    session: Executor,
    workspace_id: int,
    action: Action,
    filters: Filters,
    *,
    created_by: int,
    actor: str | None = None,
    reason: str | None = None,
) -> AnyRow:
    """Begin an operation and do its first step, which may complete it.

    It changes only jobs that exist now. ``actor`` is who begins it, by default the user
    ``created_by``. Raises ``ValidationFailed`` as ``plan`` does.
    """
    values = plan(session, workspace_id, action, filters)
    now = session.execute(select(DbNow())).scalar_one()
    row = session.execute(
        insert(operations)
        .values(
            **values,
            created_by=created_by,
            actor=actor or f"user:{created_by}",
            reason=reason,
            status=OperationStatus.RUNNING,
            created_at=now,
            updated_at=now,
        )
        .returning(*operations.c)
    ).one()
    return _advance(session, row)


def turn(session: Executor) -> int | None:
    """The id of the operation that has waited longest for its next step, or None."""
    found: int | None = session.execute(
        select(operations.c.id)
        .where(
            operations.c.status == OperationStatus.RUNNING, not_moving(operations.c.workspace_id)
        )
        .order_by(operations.c.updated_at)
        .limit(1)
    ).scalar()
    return found


@transactional(planner=BY_KEY, repeat_after=(LIVE,))
def advance(session: Executor, operation_id: int) -> AnyRow | None:
    """Do one step of an operation; None if it has ended, or another process is doing a step."""
    row = session.execute(
        select(operations)
        .where(
            operations.c.id == operation_id,
            operations.c.status == OperationStatus.RUNNING,
            not_moving(operations.c.workspace_id),
        )
        .with_for_update(skip_locked=True)
    ).first()
    return None if row is None else _advance(session, row)


def put_off(session: Executor, operation_id: int) -> None:
    """Move an operation behind all others that wait for their next step."""
    session.execute(
        update(operations)
        .where(operations.c.id == operation_id, not_moving(operations.c.workspace_id))
        .values(updated_at=DbNow())
    )


def _narrowed(action: Action, filters: Filters) -> Filters:
    """The filters, limited to the statuses to which the action applies."""
    takes = action.takes
    statuses = [status for status in takes if not filters.status or status in filters.status]
    if not statuses:
        labels = " or ".join(status.label for status in takes)
        raise ValidationFailed(
            {"filter.status": [f"Only {labels} jobs can be matched by {action.label}."]}
        )
    return replace(filters, status=statuses)


def _advance(session: Executor, operation: AnyRow) -> AnyRow:
    action = Action(operation.action)
    filters = _narrowed(action, Filters.from_json(operation.filter))
    scope = in_workspace(operation.workspace_id)
    # Jobs that were created after it began are left alone.
    walked = job_lists.walk(
        session, scope, filters, after=operation.place, until=operation.created_at, most=AT_ONCE
    )
    set_planner(session, BY_KEY)
    wanted = [row.job_id for row in walked.rows]
    changed, skipped = _act(session, operation, action, filters, wanted) if wanted else (0, 0)
    over = walked.bound is None
    now = session.execute(select(DbNow())).scalar_one()
    return session.execute(
        update(operations)
        .where(operations.c.id == operation.id)
        .values(
            changed=operations.c.changed + changed,
            skipped=operations.c.skipped + skipped,
            place=operation.place if over else walked.bound,
            status=OperationStatus.FINISHED if over else OperationStatus.RUNNING,
            updated_at=now,
            ended_at=now if over else None,
        )
        .returning(*operations.c)
    ).one()


def _act(
    session: Executor, operation: AnyRow, action: Action, filters: Filters, job_ids: list[str]
) -> tuple[int, int]:
    """Act on those of the jobs that still match; returns how many changed and were skipped."""
    matches = [*filters.bucket(jobs.c), *filters.rest(dialect_name(session))]
    found = lock(session, operation.workspace_id, job_ids, *matches)
    actor = operation.actor or f"user:{operation.created_by}"
    if action is Action.DELETE:
        dialect = dialect_name(session)
        ids = select(record_source(dialect, {"id": jobs.c.id.type}).c.id)
        these = is_picked(dialect, jobs, ids, workspace_id=operation.workspace_id)
        given = records(session, [{"id": row.id} for row in found])
        session.execute(sql_delete(jobs).where(these), given)
        events.note_deleted(session, found, actor=actor)
        return len(found), 0
    rule = lifecycle.cancel if action is Action.CANCEL else lifecycle.retry
    settling = Settling(found, actor=actor)
    skipped = 0
    taken: set[TypeAndKey] = set()
    if action is Action.RETRY:
        keys = {(job.job_type, job.unique_key) for job in found if job.unique_key is not None}
        taken = find_taken(session, operation.workspace_id, keys)
    for job in settling.jobs.values():
        if action is Action.RETRY and job.unique_key is not None:
            key = (job.job_type, job.unique_key)
            if key in taken:
                skipped += 1
                continue
            taken.add(key)
        try:
            change = rule(job, reason=operation.reason, now=job.now)
            limit_documents(change.values)
        except JobApiError:
            skipped += 1
            continue
        settling.apply(job, change)
    settling.settle(session)
    return len(found) - skipped, skipped


def get(
    session: Executor, workspace_id: int, operation_id: int, *, actor: str | None = None
) -> AnyRow:
    """One operation, with ``actor`` only if it is theirs. Raises ``OperationNotFound``."""
    query = select(operations).where(
        operations.c.workspace_id == workspace_id, operations.c.id == operation_id
    )
    if actor is not None:
        query = query.where(operations.c.actor == actor)
    row = session.execute(query).first()
    if row is None:
        raise OperationNotFound("There is no such operation in this workspace.")
    return row


def page(session: Executor, workspace_id: int, *, actor: str | None = None, **paging: Any) -> Page:
    """A workspace's operations, or those of one actor, the newest first.

    ``paging``: see ``fetch_page``.
    """
    mine = [] if actor is None else [operations.c.actor == actor]
    return fetch_page(
        session,
        [*operations.c],
        operations,
        [operations.c.workspace_id == workspace_id, *mine],
        operations.c.id,
        newest_first=True,
        **paging,
    )


def stop(session: Executor, workspace_id: int, operation_id: int) -> AnyRow:
    """Stop an operation where it is; what it has done stays. Raises ``OperationEnded``."""
    now = session.execute(select(DbNow())).scalar_one()
    stopped = session.execute(
        update(operations)
        .where(
            operations.c.workspace_id == workspace_id,
            operations.c.id == operation_id,
            operations.c.status == OperationStatus.RUNNING,
        )
        .values(status=OperationStatus.STOPPED, updated_at=now, ended_at=now)
        .returning(*operations.c)
    ).first()
    if stopped is None:
        status = OperationStatus(get(session, workspace_id, operation_id).status)
        raise OperationEnded(f"The operation is {status.label}; there is nothing to stop.")
    return stopped


def forget(session: Executor) -> None:
    """Delete operations that ended more than ``KEPT_DAYS`` ago."""
    now = session.execute(select(DbNow())).scalar_one()
    session.execute(
        sql_delete(operations).where(
            operations.c.ended_at < now - timedelta(days=KEPT_DAYS),
            not_moving(operations.c.workspace_id),
        )
    )
