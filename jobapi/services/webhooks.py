"""Webhooks of a workspace, and the list of their deliveries.

``services.deliveries`` makes and sends the deliveries.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import uuid_utils
from sqlalchemy import and_, delete, func, insert, literal, select, tuple_, update

from ..errors import (
    DeliveryNotFound,
    TooManyRequests,
    TooManyWebhooks,
    Unavailable,
    WebhookDisabled,
    WebhookNotFound,
)
from ..rules.events import EventKind
from ..rules.webhooks import (
    BOTH_SECRETS,
    SECRET_BYTES,
    TEST_TYPE,
    DeliveryStatus,
    Disabled,
    secret_of,
)
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor
from ..store.moving import NOT_MOVING
from ..store.paging import Page, no_cursor, read_cursor, write_cursor
from ..store.secret_box import SecretBox
from ..store.tables import webhook_deliveries, webhooks, workspaces
from ..store.transactions import IN_ORDER, transactional
from . import events
from .events import MAX_GAPS, begin

TESTS_PER_MINUTE = 10
KEPT_DAYS = 30
KEPT_DELIVERIES = 1_000
"""How many ended deliveries of a webhook are kept at most."""

DELETE_AT_ONCE = 500

_SHOWN = tuple(c for c in webhook_deliveries.c if c.name != "body")


def _this(workspace_id: int, webhook_id: str) -> Any:
    return and_(webhooks.c.workspace_id == workspace_id, webhooks.c.id == webhook_id)


def deliveries_of(workspace_id: int, webhook_id: str) -> Any:
    """The condition that a delivery belongs to a webhook."""
    c = webhook_deliveries.c
    return and_(c.workspace_id == workspace_id, c.webhook_id == webhook_id)


def page(
    session: Executor,
    workspace_id: int,
    *,
    limit: int,
    page: int | None = None,
    cursor: str | None = None,
) -> Page:
    """A page of a workspace's webhooks, the oldest first.

    Raises ``ValidationFailed`` for an invalid cursor.
    """
    rows = session.execute(
        select(webhooks).where(webhooks.c.workspace_id == workspace_id).order_by(webhooks.c.id)
    ).all()
    start = ((page or 1) - 1) * limit
    if cursor is not None:
        last = read_cursor(cursor)
        if len(last) != 1 or not isinstance(last[0], str):
            raise no_cursor()
        start = sum(1 for row in rows if row.id <= last[0])
    shown = rows[start : start + limit]
    more = write_cursor([shown[-1].id]) if shown and start + limit < len(rows) else None
    return Page(shown, len(rows), more)


def get(session: Executor, workspace_id: int, webhook_id: str, *, lock: bool = False) -> AnyRow:
    """One webhook. Raises ``WebhookNotFound``."""
    # Postgres takes no text with U+0000.
    query = select(webhooks).where(_this(workspace_id, webhook_id.replace("\0", "")))
    row = session.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise WebhookNotFound("The workspace has no webhook with this id.")
    return row


@transactional()
def create(
    session: Executor,
    workspace_id: int,
    box: SecretBox,
    values: Mapping[str, Any],
    *,
    most: int,
    created_by: int,
    actor: str | None = None,
) -> tuple[AnyRow, str]:
    """Create a webhook that gets the events from now on; returns its row and its secret.

    ``values`` has ``url``, which ``rules.webhooks.target_of`` has judged, and any of ``events``,
    ``job_types``, ``include``, ``description`` and ``enabled``. Raises ``TooManyWebhooks`` if the
    workspace has ``most``.
    """
    # Two creates of a workspace come one after the other.
    session.execute(
        select(workspaces.c.id)
        .where(workspaces.c.id == workspace_id)
        .with_for_update(key_share=True)
    )
    number = session.execute(
        select(func.count()).select_from(webhooks).where(webhooks.c.workspace_id == workspace_id)
    ).scalar_one()
    if number >= most:
        raise TooManyWebhooks(
            f"A workspace has {most:,} webhooks at most. Delete one that is not needed."
        )
    secret = secret_of(secrets.token_bytes(SECRET_BYTES))
    now = session.execute(select(DbNow())).scalar_one()
    row = session.execute(
        insert(webhooks)
        .values(
            workspace_id=workspace_id,
            id="wh_" + uuid_utils.uuid7().hex,
            secret=box.seal(secret),
            position=_now(session, workspace_id),
            created_by=created_by,
            created_at=now,
            updated_at=now,
            **{"include": [], "enabled": True, **values},
        )
        .returning(*webhooks.c)
    ).one()
    _note(session, EventKind.WEBHOOK_CREATED, row, actor)
    return row, secret


def _now(session: Executor, workspace_id: int) -> str:
    """The position from which events are delivered from now on."""
    position = begin(session, workspace_id)
    if len(position.gaps) > MAX_GAPS:
        raise Unavailable("Too many transactions are open in the database; try again later.")
    return position.name


def _note(
    session: Executor, kind: EventKind, webhook: AnyRow, actor: str | None, **data: Any
) -> None:
    # Not the URL: it may contain a secret.
    data = {"webhook_id": webhook.id, **data}
    events.note(session, webhook.workspace_id, kind, actor=actor, data=data)


@transactional()
def change(
    session: Executor,
    workspace_id: int,
    webhook_id: str,
    changes: Mapping[str, Any],
    *,
    actor: str | None = None,
) -> AnyRow:
    """Change a webhook; ``changes`` are as in ``create``. Raises ``WebhookNotFound``.

    One that is enabled again gets the events from now on. One that is disabled gets nothing any
    more: what was pending is cancelled.
    """
    row = get(session, workspace_id, webhook_id, lock=True)
    values = {name: value for name, value in changes.items() if getattr(row, name) != value}
    if not values:
        return row
    data: dict[str, Any] = {"fields": sorted(values)}
    if "enabled" in values:
        data["enabled"] = values["enabled"]
    if values.get("enabled"):
        values |= {"position": _now(session, workspace_id), "disabled_reason": None}
    if not {"enabled", "url"}.isdisjoint(values):
        values |= {"failing_since": None, "failed_at": None}
    changed = session.execute(
        update(webhooks)
        .where(_this(workspace_id, webhook_id))
        .values(**values, updated_at=DbNow())
        .returning(*webhooks.c)
    ).one()
    if not changed.enabled:
        cancel_pending(session, workspace_id, webhook_id)
    _note(session, EventKind.WEBHOOK_CHANGED, changed, actor, **data)
    return changed


def cancel_pending(session: Executor, workspace_id: int, webhook_id: str) -> None:
    """Cancel the pending deliveries of a webhook."""
    session.execute(
        update(webhook_deliveries)
        .where(
            deliveries_of(workspace_id, webhook_id),
            webhook_deliveries.c.status == DeliveryStatus.PENDING,
        )
        .values(status=DeliveryStatus.CANCELLED, next_attempt_at=None)
    )


def disable(session: Executor, webhook: AnyRow, reason: Disabled, now: datetime) -> None:
    """Disable a webhook whose row is locked, because its deliveries fail."""
    session.execute(
        update(webhooks)
        .where(_this(webhook.workspace_id, webhook.id))
        .values(enabled=False, disabled_reason=reason, updated_at=now)
    )
    cancel_pending(session, webhook.workspace_id, webhook.id)
    _note(session, EventKind.WEBHOOK_DISABLED, webhook, None, reason=reason.label)


@transactional()
def remove(
    session: Executor, workspace_id: int, webhook_id: str, *, actor: str | None = None
) -> None:
    """Delete a webhook and its deliveries. Raises ``WebhookNotFound``."""
    row = get(session, workspace_id, webhook_id, lock=True)
    # A host's SQLite may not enforce ON DELETE CASCADE.
    session.execute(delete(webhook_deliveries).where(deliveries_of(workspace_id, webhook_id)))
    session.execute(delete(webhooks).where(_this(workspace_id, webhook_id)))
    _note(session, EventKind.WEBHOOK_DELETED, row, actor)


@transactional()
def rotate_secret(
    session: Executor,
    workspace_id: int,
    webhook_id: str,
    box: SecretBox,
    *,
    actor: str | None = None,
) -> tuple[AnyRow, str]:
    """Give a webhook a new secret; returns its row and the secret. Raises ``WebhookNotFound``.

    Deliveries are signed with both secrets for ``BOTH_SECRETS``; an older one is not used any more.
    """
    row = get(session, workspace_id, webhook_id, lock=True)
    secret = secret_of(secrets.token_bytes(SECRET_BYTES))
    now = session.execute(select(DbNow())).scalar_one()
    changed = session.execute(
        update(webhooks)
        .where(_this(workspace_id, webhook_id))
        .values(
            secret=box.seal(secret),
            previous_secret=row.secret,
            previous_secret_expires_at=now + BOTH_SECRETS,
            updated_at=now,
        )
        .returning(*webhooks.c)
    ).one()
    _note(session, EventKind.WEBHOOK_SECRET_ROTATED, changed, actor)
    return changed, secret


# Deliveries


class DeliveryPage(NamedTuple):
    """A page of deliveries, the total, and the cursor of the next page."""

    rows: Sequence[AnyRow]
    total: int
    next_cursor: str | None


def page_deliveries(
    session: Executor,
    workspace_id: int,
    webhook_id: str,
    *,
    status: Sequence[DeliveryStatus] = (),
    limit: int,
    page: int | None = None,
    cursor: str | None = None,
) -> DeliveryPage:
    """A page of the deliveries of a webhook, the newest first, without their bodies.

    Call it in a snapshot. Raises ``WebhookNotFound``, and ``ValidationFailed`` for an invalid
    cursor.
    """
    get(session, workspace_id, webhook_id)
    c = webhook_deliveries.c
    where = [deliveries_of(workspace_id, webhook_id)]
    if status:
        where.append(c.status.in_(status))
    total = session.execute(
        select(func.count()).select_from(webhook_deliveries).where(*where)
    ).scalar_one()
    query = select(*_SHOWN).where(*where).order_by(c.created_at.desc(), c.id.desc())
    if cursor is not None:
        query = query.where(tuple_(c.created_at, c.id) < tuple_(*_after(cursor)))
    elif page is not None:
        query = query.offset((page - 1) * limit)
    rows = session.execute(query.limit(limit + 1)).all()
    more = None
    if len(rows) > limit:
        last = rows[limit - 1]
        more = write_cursor([last.created_at.isoformat(), last.id])
    return DeliveryPage(rows[:limit], total, more)


def _after(cursor: str) -> list[Any]:
    values = read_cursor(cursor)
    if len(values) != 2 or not all(isinstance(v, str) and "\0" not in v for v in values):
        raise no_cursor()
    try:
        at = datetime.fromisoformat(values[0]).astimezone(UTC)
    except (ValueError, OverflowError):
        raise no_cursor() from None
    c = webhook_deliveries.c
    return [literal(at, c.created_at.type), literal(values[1], c.id.type)]


def get_delivery(session: Executor, workspace_id: int, webhook_id: str, delivery_id: str) -> AnyRow:
    """One delivery, without its body. Raises ``WebhookNotFound``, ``DeliveryNotFound``."""
    row = session.execute(
        select(*_SHOWN).where(
            deliveries_of(workspace_id, webhook_id.replace("\0", "")),
            webhook_deliveries.c.id == delivery_id.replace("\0", ""),
        )
    ).first()
    if row is None:
        get(session, workspace_id, webhook_id)
        raise DeliveryNotFound("The webhook has no delivery with this id.")
    return row


@transactional()
def redeliver(session: Executor, workspace_id: int, webhook_id: str, delivery_id: str) -> AnyRow:
    """Let a message be sent again now, with all retries; one that is pending is sent now.

    Raises ``WebhookNotFound``, ``DeliveryNotFound``, and ``WebhookDisabled``.
    """
    webhook = get(session, workspace_id, webhook_id, lock=True)
    delivery = get_delivery(session, workspace_id, webhook_id, delivery_id)
    _check_enabled(webhook)
    values: dict[str, Any] = {"next_attempt_at": DbNow()}
    if delivery.status != DeliveryStatus.PENDING:
        values |= {"status": DeliveryStatus.PENDING, "attempts": 0}
    return session.execute(
        update(webhook_deliveries)
        .where(deliveries_of(workspace_id, webhook_id), webhook_deliveries.c.id == delivery.id)
        .values(**values)
        .returning(*_SHOWN)
    ).one()


def _check_enabled(webhook: AnyRow) -> None:
    if not webhook.enabled:
        raise WebhookDisabled("The webhook is disabled. Enable it first.")


@transactional()
def test(
    session: Executor, workspace_id: int, webhook_id: str, body: Callable[[datetime], str]
) -> AnyRow:
    """Send a test message; returns its delivery, which is pending.

    ``body`` makes the message of the time. Raises ``WebhookNotFound``, ``WebhookDisabled``, and
    ``TooManyRequests`` after ``TESTS_PER_MINUTE``.
    """
    webhook = get(session, workspace_id, webhook_id, lock=True)
    _check_enabled(webhook)
    now = session.execute(select(DbNow())).scalar_one()
    c = webhook_deliveries.c
    minute = timedelta(minutes=1)
    recent = session.execute(
        select(c.created_at)
        .where(
            deliveries_of(workspace_id, webhook_id),
            c.created_at > now - minute,
            c.type == TEST_TYPE,
        )
        .order_by(c.created_at)
    ).scalars()
    times = list(recent)
    if len(times) >= TESTS_PER_MINUTE:
        wait = (times[-TESTS_PER_MINUTE] + minute - now).total_seconds()
        raise TooManyRequests(
            f"A webhook is tested {TESTS_PER_MINUTE} times a minute at most; try again later.",
            retry_after=max(1, -int(-wait // 1)),
        )
    return session.execute(
        insert(webhook_deliveries)
        .values(
            workspace_id=workspace_id,
            webhook_id=webhook_id,
            id="msg_" + uuid_utils.uuid7().hex,
            type=TEST_TYPE,
            body=body(now),
            status=DeliveryStatus.PENDING,
            created_at=now,
            next_attempt_at=now,
        )
        .returning(*_SHOWN)
    ).one()


def all_ids(session: Executor) -> list[tuple[int, str]]:
    """The webhooks of all workspaces that are not being moved."""
    query = select(webhooks.c.workspace_id, webhooks.c.id).join_from(
        webhooks, workspaces, (workspaces.c.id == webhooks.c.workspace_id) & NOT_MOVING
    )
    return [(row.workspace_id, row.id) for row in session.execute(query)]


@transactional(planner=IN_ORDER)
def delete_old_deliveries(
    session: Executor,
    workspace_id: int,
    webhook_id: str,
    *,
    limit: int = DELETE_AT_ONCE,
    keep: int = KEPT_DELIVERIES,
) -> int:
    """Delete ended deliveries that are not kept any longer, at most ``limit``; returns how many."""
    c = webhook_deliveries.c
    now = session.execute(select(DbNow())).scalar_one()
    ended = (deliveries_of(workspace_id, webhook_id), c.status != DeliveryStatus.PENDING)
    newest = (
        select(c.created_at)
        .where(*ended)
        .order_by(c.created_at.desc(), c.id.desc())
        .offset(keep)
        .limit(1)
    )
    beyond = session.execute(newest).scalar()
    old = max(filter(None, (beyond, now - timedelta(days=KEPT_DAYS))))
    some = (
        select(c.id)
        .where(*ended, c.created_at <= old)
        .order_by(c.created_at, c.id)
        .limit(limit)
        .scalar_subquery()
    )
    gone: Any = session.execute(delete(webhook_deliveries).where(*ended, c.id.in_(some)))
    return int(gone.rowcount)
