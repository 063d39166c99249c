"""Whether a user or a key may still do what runs later in their name."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from ..errors import Forbidden, JobTypeNotAllowed, NotAMember, RoleTooLow
from ..rules.roles import Role
from ..store.connections import AnyRow, Executor
from ..store.tables import api_keys, memberships, users


def check_may_create(
    session: Executor, workspace_id: int, actor: str, job_type: str, now: datetime
) -> int:
    """Check that an actor may create jobs of a type; returns the ``id`` of the user.

    ``actor`` is ``user:1`` or ``key:1``. Raises a kind of ``Forbidden``, whose detail says why not.
    """
    kind, _, number = actor.partition(":")
    by_key = kind == "key"
    row = _find(session, workspace_id, int(number), by_key=by_key)
    if row is None or (by_key and row.revoked_at is not None):
        raise Forbidden(f"The API key {number} was revoked.")
    if by_key and row.expires_at is not None and row.expires_at <= now:
        raise Forbidden(f"The API key {number} has expired.")
    if row.disabled:
        raise Forbidden(f"The user {row.username} is disabled.")
    role = Role.OWNER if row.is_admin else row.role
    if role is None:
        raise NotAMember(f"The user {row.username} is not a member of the workspace.")
    if min(role, row.key_role if by_key else role) < Role.MEMBER:
        who = f"API key {number}" if by_key and role >= Role.MEMBER else f"user {row.username}"
        raise RoleTooLow(f"The {who} does not have the role member any more.")
    if by_key and row.job_types is not None and job_type not in row.job_types:
        raise JobTypeNotAllowed(f"The API key {number} is limited to other job types.")
    return int(row.id)


def _find(session: Executor, workspace_id: int, number: int, *, by_key: bool) -> AnyRow | None:
    columns = [users.c.id, users.c.username, users.c.disabled, users.c.is_admin, memberships.c.role]
    member = (memberships.c.workspace_id == workspace_id) & (memberships.c.user_id == users.c.id)
    if not by_key:
        query = select(*columns).select_from(users.outerjoin(memberships, member))
        return session.execute(query.where(users.c.id == number)).first()
    c = api_keys.c
    source = api_keys.join(users, users.c.id == c.user_id).outerjoin(memberships, member)
    return session.execute(
        select(*columns, c.role.label("key_role"), c.job_types, c.expires_at, c.revoked_at)
        .select_from(source)
        .where(c.id == number, c.workspace_id == workspace_id)
    ).first()
