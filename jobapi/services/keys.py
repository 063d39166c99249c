"""API keys: credentials of programs, each for one workspace."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, insert, or_, select, update

from ..errors import KeyNotFound, NotAMember, ValidationFailed
from ..rules.events import EventKind
from ..rules.jobs import JOB_TYPE_PATTERN, JOB_TYPE_RULE
from ..rules.roles import MAX_KEY_JOB_TYPES, Role, check_name
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor
from ..store.paging import Page, fetch_page
from ..store.tables import api_keys, memberships, users
from ..store.transactions import transactional
from . import events

KEY_PREFIX = "jk_"
USE_RESOLUTION = timedelta(minutes=1)
"""How precisely the last use of a key is recorded."""


def digest(key: str) -> str:
    """The hash under which an API key is stored. SHA-256 suffices, because keys are random."""
    return hashlib.sha256(key.encode()).hexdigest()


@transactional()
def create(
    session: Executor,
    workspace_id: int,
    *,
    user_id: int,
    name: str,
    role: Role,
    job_types: Sequence[str] | None = None,
    expires_at: datetime | None = None,
    actor: str | None = None,
) -> tuple[AnyRow, str]:
    """Create an API key; returns its row and the key itself, which is not stored.

    It acts on behalf of ``user_id``, who must be a member of the workspace or an
    administrator (otherwise ``NotAMember``). ``job_types`` limits it to these job types;
    None allows all. Raises ``ValidationFailed`` for a name without a visible character,
    the role owner, malformed job types, and an expiry in the past.
    """
    check_name(name)
    if job_types is not None:
        _check_job_types(job_types)
    now = session.execute(select(DbNow())).scalar_one()
    if role is Role.OWNER:
        raise ValidationFailed({"role": ["Must be one of: viewer, worker, member."]})
    if expires_at is not None and expires_at <= now:
        raise ValidationFailed({"expires_at": ["Must be in the future."]})
    may = session.execute(
        select(users.c.id).where(
            users.c.id == user_id,
            or_(
                users.c.is_admin,
                exists().where(
                    memberships.c.workspace_id == workspace_id, memberships.c.user_id == user_id
                ),
            ),
        )
    ).first()
    if may is None:
        raise NotAMember(
            "The user on whose behalf a key acts must be a member of the workspace. Add the user "
            "first."
        )
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    row = session.execute(
        insert(api_keys)
        .values(
            workspace_id=workspace_id,
            user_id=user_id,
            name=name,
            role=role,
            job_types=None if job_types is None else list(job_types),
            key_hash=digest(key),
            created_at=now,
            expires_at=expires_at,
        )
        .returning(*api_keys.c)
    ).one()
    _note(session, EventKind.KEY_CREATED, workspace_id, row, actor)
    return row, key


def _check_job_types(job_types: Sequence[str]) -> None:
    if not 1 <= len(job_types) <= MAX_KEY_JOB_TYPES:
        raise ValidationFailed({"job_types": [f"Must have 1 to {MAX_KEY_JOB_TYPES} entries."]})
    wrong = next((each for each in job_types if not re.fullmatch(JOB_TYPE_PATTERN, each)), None)
    if wrong is not None:
        raise ValidationFailed({"job_types": [f"{wrong!r}: {JOB_TYPE_RULE}"]})


def _note(
    session: Executor, kind: EventKind, workspace_id: int, key: AnyRow, actor: str | None
) -> None:
    data = {"key_id": key.id, "name": key.name, "role": Role(key.role).label}
    events.note(session, workspace_id, kind, actor=actor, data=data)


def page(session: Executor, workspace_id: int, **paging: Any) -> Page:
    """A page of a workspace's API keys, including revoked ones, the oldest first.

    ``paging``: see ``fetch_page``.
    """
    return fetch_page(
        session,
        [*api_keys.c],
        api_keys,
        [api_keys.c.workspace_id == workspace_id],
        api_keys.c.id,
        **paging,
    )


@transactional()
def revoke(session: Executor, workspace_id: int, key_id: int, *, actor: str | None = None) -> None:
    """Revoke a key. It stops working immediately. Raises ``KeyNotFound``."""
    now = session.execute(select(DbNow())).scalar_one()
    revoked = session.execute(
        update(api_keys)
        .where(
            api_keys.c.workspace_id == workspace_id,
            api_keys.c.id == key_id,
            api_keys.c.revoked_at.is_(None),
        )
        .values(revoked_at=now)
        .returning(api_keys.c.id, api_keys.c.name, api_keys.c.role)
    ).first()
    if revoked is None:
        raise KeyNotFound("No key of this workspace has this id, or it is already revoked.")
    _note(session, EventKind.KEY_REVOKED, workspace_id, revoked, actor)


def record_use(session: Executor, key_id: int, now: datetime) -> None:
    """Record the use of a key, at most once a minute. On Postgres it never waits for a lock."""
    c = api_keys.c
    due = (
        select(c.id)
        .where(
            c.id == key_id, or_(c.last_used_at.is_(None), c.last_used_at <= now - USE_RESOLUTION)
        )
        .with_for_update(skip_locked=True)
    )
    session.execute(update(api_keys).where(c.id.in_(due)).values(last_used_at=now))
