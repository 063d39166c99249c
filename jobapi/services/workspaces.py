"""Workspaces and their members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, case, delete, func, insert, or_, select, true, tuple_, update

from ..errors import AlreadyMember, LastOwner, MemberNotFound, WorkspaceNotFound
from ..rules.events import EventKind
from ..rules.jobs import JobStatus
from ..rules.roles import Role, check_name
from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import NOT_MOVING
from ..store.paging import Page, fetch_page
from ..store.tables import (
    api_keys,
    idempotency_keys,
    job_flow,
    job_log_heads,
    job_logs,
    job_types,
    jobs,
    memberships,
    operations,
    schedules,
    users,
    webhook_deliveries,
    webhooks,
    workers,
    workspaces,
)
from ..store.tables import events as event_rows
from ..store.transactions import BY_KEY, IN_ORDER, set_planner, transactional
from . import events, flow
from .job_logs import delete_of_deleted_jobs

NOT_DELETED = workspaces.c.deleted_at.is_(None)

CLEAR_AT_ONCE = 500
"""How many rows of a deleted workspace are deleted in one transaction."""

MEMBER_COLUMNS = (
    memberships.c.user_id,
    users.c.username,
    memberships.c.role,
    memberships.c.created_at,
)


@transactional()
def create(session: Executor, name: str, *, owner_id: int) -> AnyRow:
    """Create a workspace with its first owner. Raises ``ValidationFailed`` for an invalid name."""
    check_name(name)
    now = session.execute(select(DbNow())).scalar_one()
    row = session.execute(
        insert(workspaces)
        .values(name=name, created_by=owner_id, created_at=now, updated_at=now)
        .returning(*workspaces.c)
    ).one()
    session.execute(
        insert(memberships).values(
            workspace_id=row.id, user_id=owner_id, role=Role.OWNER, created_at=now
        )
    )
    return row


def get(session: Executor, workspace_id: int) -> AnyRow:
    """One workspace. Raises ``WorkspaceNotFound``."""
    row = session.execute(
        select(workspaces).where(workspaces.c.id == workspace_id, NOT_DELETED)
    ).first()
    if row is None:
        raise WorkspaceNotFound(f"There is no workspace {workspace_id}.")
    return row


def ids(session: Executor) -> list[int]:
    """The ids of all workspaces."""
    return list(session.execute(select(workspaces.c.id).order_by(workspaces.c.id)).scalars())


def page(
    session: Executor,
    *,
    user_id: int,
    is_admin: bool = False,
    only_workspace: int | None = None,
    **paging: Any,
) -> Page:
    """A page of the workspaces that the user may read, each with the user's role.

    An administrator may read all of them, as an owner. ``paging``: see ``fetch_page``.
    """
    mine = workspaces.outerjoin(
        memberships,
        (memberships.c.workspace_id == workspaces.c.id) & (memberships.c.user_id == user_id),
    )
    where: list[ColumnElement[bool]] = [
        NOT_DELETED,
        true() if is_admin else memberships.c.user_id.is_not(None),
    ]
    if only_workspace is not None:
        where.append(workspaces.c.id == only_workspace)
    role = case((true(), int(Role.OWNER))) if is_admin else memberships.c.role
    return fetch_page(
        session, [*workspaces.c, role.label("role")], mine, where, workspaces.c.id, **paging
    )


@transactional()
def change(
    session: Executor,
    workspace_id: int,
    *,
    name: str | None = None,
    retention: Mapping[str, int | None] | None = None,
    actor: str | None = None,
    **ageing: int | None,
) -> AnyRow:
    """Rename a workspace, or change its retention or ``priority_ageing_seconds``.

    ``retention`` maps ``success``, ``failed``, ``cancelled`` (ended jobs) and ``events``
    to a number of days; None keeps them forever. Missing keys stay unchanged. Raises
    ``WorkspaceNotFound``, ``ValidationFailed``.
    """
    values: dict[str, Any] = {f"keep_{what}": days for what, days in (retention or {}).items()}
    if name is not None:
        check_name(name)
        values["name"] = name
    values |= ageing
    if values:
        if ageing:
            flow.bump(session, workspace_id)
        differs = [workspaces.c[key].is_distinct_from(value) for key, value in values.items()]
        changed: Any = session.execute(
            update(workspaces)
            .where(workspaces.c.id == workspace_id, NOT_DELETED, or_(*differs))
            .values(**values, updated_at=DbNow())
        )
        if changed.rowcount:
            requested = {"name": name, "retention": retention}
            data = {key: value for key, value in requested.items() if value is not None} | ageing
            events.note(session, workspace_id, EventKind.WORKSPACE_CHANGED, actor=actor, data=data)
    return get(session, workspace_id)


@transactional()
def pause(
    session: Executor, workspace_id: int, reason: str | None, *, actor: str | None = None
) -> AnyRow:
    """Stop claims from starting jobs of a workspace. Raises ``WorkspaceNotFound``."""
    return _set_paused(session, workspace_id, True, reason, actor)


@transactional()
def resume(session: Executor, workspace_id: int, *, actor: str | None = None) -> AnyRow:
    """Let claims start jobs of a workspace again. Raises ``WorkspaceNotFound``."""
    return _set_paused(session, workspace_id, False, None, actor)


def _set_paused(
    session: Executor, workspace_id: int, paused: bool, reason: str | None, actor: str | None
) -> AnyRow:
    flow.bump(session, workspace_id)
    changed: Any = session.execute(
        update(workspaces)
        .where(
            workspaces.c.id == workspace_id,
            NOT_DELETED,
            or_(
                workspaces.c.paused.is_distinct_from(paused),
                workspaces.c.paused_reason.is_distinct_from(reason),
            ),
        )
        .values(paused=paused, paused_reason=reason, updated_at=DbNow())
    )
    if changed.rowcount:
        kind = EventKind.WORKSPACE_PAUSED if paused else EventKind.WORKSPACE_RESUMED
        data = {"reason": reason} if paused else None
        events.note(session, workspace_id, kind, actor=actor, data=data)
    return get(session, workspace_id)


class Retention(NamedTuple):
    """A limited retention: jobs with this status are deleted ``days`` days after their end."""

    workspace_id: int
    status: JobStatus
    days: int


def retention(session: Executor, workspace_id: int | None = None) -> list[Retention]:
    """The limited retentions of jobs in one workspace, or in all."""
    columns = {
        JobStatus.SUCCESS: workspaces.c.keep_success,
        JobStatus.FAILED: workspaces.c.keep_failed,
        JobStatus.CANCELLED: workspaces.c.keep_cancelled,
    }
    some = NOT_DELETED & NOT_MOVING & or_(*(column.is_not(None) for column in columns.values()))
    if workspace_id is not None:
        some &= workspaces.c.id == workspace_id
    rows = session.execute(select(workspaces.c.id, *columns.values()).where(some))
    return [
        Retention(found, status, days)
        for found, *kept in rows
        for status, days in zip(columns, kept, strict=True)
        if days is not None
    ]


@transactional()
def remove(session: Executor, workspace_id: int) -> None:
    """Delete a workspace with its keys, members and schedules.

    It is marked as deleted, and inaccessible at once. The maintenance deletes its jobs and
    other rows, of which there may be millions, in small steps (``clear``).
    """
    for table in (api_keys, memberships, schedules):
        session.execute(delete(table).where(table.c.workspace_id == workspace_id))
    session.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id, NOT_DELETED)
        .values(deleted_at=DbNow())
    )


@transactional(planner=BY_KEY)
def clear(session: Executor) -> bool:
    """Delete some rows of a deleted workspace; False if there is no deleted workspace.

    A workspace that another process is clearing is skipped.
    """
    workspace_id = session.execute(
        select(workspaces.c.id)
        .where(~NOT_DELETED, NOT_MOVING)
        .order_by(workspaces.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()
    if workspace_id is None:
        return False
    # Table by table, because a host's SQLite may not enforce ON DELETE CASCADE. A workspace that
    # has moved away still has its keys and members.
    for table in (
        *(jobs, job_logs, job_log_heads, event_rows, job_flow, idempotency_keys, operations),
        *(webhook_deliveries, webhooks, job_types, workers, schedules, api_keys, memberships),
    ):
        in_workspace = table.c.workspace_id == workspace_id
        if table is job_logs and _clear_logs(session, workspace_id):
            return True
        # On Postgres, events have no index on their id alone. On SQLite that is the primary key,
        # and SQLite 3.40 does not look up pairs in an index that ends with it.
        on_postgres = dialect_name(session) == "postgresql"
        pair = (table.c.xid, table.c.id) if table is event_rows and on_postgres else None
        key = pair or tuple(table.primary_key)
        some = select(*key).where(in_workspace).limit(CLEAR_AT_ONCE)
        keys = tuple_(*key)
        gone: Any = session.execute(delete(table).where(in_workspace, keys.in_(some)))
        if gone.rowcount:
            return True
    session.execute(delete(workspaces).where(workspaces.c.id == workspace_id))
    return True


def _clear_logs(session: Executor, workspace_id: int) -> bool:
    """Delete some entries of the logs of deleted jobs, by ranges of the key."""
    set_planner(session, IN_ORDER)
    found = delete_of_deleted_jobs(session, workspace_id=workspace_id)
    set_planner(session, BY_KEY)
    return found


def first_owner(session: Executor, workspace_id: int) -> int:
    """The user id of the longest-standing owner. Raises ``WorkspaceNotFound``."""
    get(session, workspace_id)
    owner: int = session.execute(
        select(memberships.c.user_id)
        .where(memberships.c.workspace_id == workspace_id, memberships.c.role == Role.OWNER)
        .order_by(memberships.c.created_at, memberships.c.user_id)
        .limit(1)
    ).scalar_one()
    return owner


def page_members(session: Executor, workspace_id: int, **paging: Any) -> Page:
    """A page of a workspace's members by user id. ``paging``: see ``fetch_page``."""
    return fetch_page(
        session,
        MEMBER_COLUMNS,
        memberships.join(users, users.c.id == memberships.c.user_id),
        [memberships.c.workspace_id == workspace_id],
        memberships.c.user_id,
        **paging,
    )


def get_member(session: Executor, workspace_id: int, user_id: int) -> AnyRow:
    """One member. Raises ``MemberNotFound``."""
    row = session.execute(
        select(*MEMBER_COLUMNS)
        .join_from(memberships, users, users.c.id == memberships.c.user_id)
        .where(memberships.c.workspace_id == workspace_id, memberships.c.user_id == user_id)
    ).first()
    if row is None:
        raise MemberNotFound("This user is not a member of the workspace.")
    return row


@transactional()
def add_member(
    session: Executor, workspace_id: int, user_id: int, role: Role, *, actor: str | None = None
) -> AnyRow:
    """Make a user a member. Raises ``AlreadyMember``."""
    now = session.execute(select(DbNow())).scalar_one()
    added = session.execute(
        insert_or_ignore(dialect_name(session), memberships)
        .values(workspace_id=workspace_id, user_id=user_id, role=role, created_at=now)
        .on_conflict_do_nothing()
        .returning(memberships.c.user_id)
    ).first()
    if added is None:
        raise AlreadyMember("The user is already a member. Change the role instead.")
    member = get_member(session, workspace_id, user_id)
    _note(session, EventKind.MEMBER_ADDED, workspace_id, member, actor)
    return member


def _note(
    session: Executor, kind: EventKind, workspace_id: int, member: AnyRow, actor: str | None
) -> None:
    data = {"user_id": member.user_id, "username": member.username, "role": Role(member.role).label}
    events.note(session, workspace_id, kind, actor=actor, data=data)


@transactional()
def set_role(
    session: Executor, workspace_id: int, user_id: int, role: Role, *, actor: str | None = None
) -> AnyRow:
    """Change a member's role. Raises ``MemberNotFound``, ``LastOwner``."""
    _keep_an_owner(session, workspace_id, user_id, role)
    changed: Any = session.execute(
        update(memberships)
        .where(
            memberships.c.workspace_id == workspace_id,
            memberships.c.user_id == user_id,
            memberships.c.role != role,
        )
        .values(role=role)
    )
    member = get_member(session, workspace_id, user_id)
    if changed.rowcount:
        _note(session, EventKind.MEMBER_CHANGED, workspace_id, member, actor)
    return member


@transactional()
def remove_member(
    session: Executor, workspace_id: int, user_id: int, *, actor: str | None = None
) -> None:
    """Remove a member. Raises ``MemberNotFound``, ``LastOwner``."""
    _keep_an_owner(session, workspace_id, user_id, None)
    member = get_member(session, workspace_id, user_id)
    _note(session, EventKind.MEMBER_REMOVED, workspace_id, member, actor)
    session.execute(
        delete(memberships).where(
            memberships.c.workspace_id == workspace_id, memberships.c.user_id == user_id
        )
    )


def _keep_an_owner(session: Executor, workspace_id: int, user_id: int, role: Role | None) -> None:
    # The lock on the workspace serializes two owners who leave at the same moment. (SQLite has
    # one writer at a time anyway.)
    session.execute(
        select(workspaces.c.id).where(workspaces.c.id == workspace_id).with_for_update()
    )
    member = get_member(session, workspace_id, user_id)
    if member.role != Role.OWNER or role is Role.OWNER:
        return
    owners = session.execute(
        select(func.count())
        .select_from(memberships)
        .where(memberships.c.workspace_id == workspace_id, memberships.c.role == Role.OWNER)
    ).scalar_one()
    if owners == 1:
        raise LastOwner("This is the last owner. Make another member an owner first.")
