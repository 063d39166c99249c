"""What the deliverer does in the database: make deliveries of events, pick due ones, save results.

Nothing is written when an event happens. Each webhook has a position in the log of events. The
deliverer reads the events after it and, in one transaction, stores a delivery for each that the
webhook wants and moves the position on. So every such event has a delivery, whenever a process
dies. To send a delivery it moves its next attempt into the future (``LEASE``): if the process
dies meanwhile, another one sends it again after that time.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import null, select, update

from ..rules.events import Event, name_of
from ..rules.jobs import Job
from ..rules.webhooks import (
    Answer,
    DeliveryStatus,
    Verdict,
    message_id,
    type_of,
    verdict,
    wants,
)
from ..store.columns import DbNow, SecondsAfter, insert_or_ignore, is_picked
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import NOT_MOVING
from ..store.tables import jobs, webhook_deliveries, webhooks, workspaces
from ..store.transactions import transactional
from . import events
from .events import Snapshot
from .webhooks import deliveries_of, disable
from .workspaces import NOT_DELETED

EVENTS_AT_ONCE = 500
"""How many events are read for a webhook at a time."""

LARGE_AT_ONCE = 20
"""How many deliveries are made at a time if they include documents, which may have 1 MiB."""

MAX_PENDING = 10_000
"""With so many pending deliveries, a webhook is given no new ones: its position stays."""

LEASE = timedelta(seconds=60)
"""For how long a picked delivery is left to the process that sends it."""

MAX_MEASURED = 1_000
"""Of how many webhooks the oldest undelivered event is measured."""

Message = Callable[[Event, Job | None, Sequence[str]], str]
"""Makes the body of a message from an event, its job, and what the webhook includes."""

logger = logging.getLogger("jobapi")


def survey(session: Executor) -> Sequence[AnyRow]:
    """The enabled webhooks; ``is_due``: has due deliveries, ``is_full``: has ``MAX_PENDING``."""
    c = webhook_deliveries.c
    pending = (
        select(1)
        .where(
            c.workspace_id == webhooks.c.workspace_id,
            c.webhook_id == webhooks.c.id,
            c.status == DeliveryStatus.PENDING,
        )
        .correlate(webhooks)
    )
    due = pending.where(c.next_attempt_at <= DbNow()).limit(1)
    full = pending.offset(MAX_PENDING - 1).limit(1)
    query = select(webhooks, due.exists().label("is_due"), full.exists().label("is_full"))
    query = query.join(workspaces, workspaces.c.id == webhooks.c.workspace_id)
    return session.execute(query.where(webhooks.c.enabled, NOT_DELETED, NOT_MOVING)).all()


@dataclass(frozen=True)
class Read:
    """New deliveries of a webhook, and its position before and after their events."""

    webhook: AnyRow
    position: str
    deliveries: Sequence[dict[str, Any]]


class Reading(NamedTuple):
    """What was read for webhooks, and whether there may be more."""

    read: Sequence[Read]
    more: bool


def read(
    session: Executor, webhooks: Iterable[AnyRow], message: Message, *, seen: Snapshot
) -> Reading:
    """Read the next events for webhooks, which a snapshot sees.

    Call it in that snapshot, and ``store`` the result.
    """
    now = session.execute(select(DbNow())).scalar_one()
    at: dict[tuple[int, str], list[AnyRow]] = defaultdict(list)
    for webhook in webhooks:
        at[webhook.workspace_id, webhook.position].append(webhook)
    found, more = [], False
    for (workspace_id, name), alike in at.items():
        position = events.position_of(name)
        if position.xid >= seen.xmax:
            _warn_once(workspace_id)
            continue
        log = events.after(session, workspace_id, position, seen=seen, most=EVENTS_AT_ONCE)
        more |= log.more
        jobs_of = _Jobs(session, workspace_id)
        for webhook in alike:
            each = _of_webhook(webhook, log, jobs_of, message, now)
            more |= each.position != log.end.name
            if each.position != name:
                found.append(each)
    return Reading(found, more)


@cache
def _warn_once(workspace_id: int) -> None:
    logger.error(
        "the webhooks of workspace %s are ahead of the database server; after a restore, run "
        "jobapi init",
        workspace_id,
    )


def _of_webhook(
    webhook: AnyRow, log: events.Found, jobs_of: _Jobs, message: Message, now: datetime
) -> Read:
    matching = [
        (event, position)
        for event, position in log.events
        if wants(event, webhook.events, webhook.job_types)
    ]
    end = log.end
    if webhook.include and len(matching) > LARGE_AT_ONCE:
        matching = matching[:LARGE_AT_ONCE]
        end = matching[-1][1]
    found = jobs_of.get([event.job_id for event, _ in matching], webhook.include)
    deliveries = [
        {
            "workspace_id": webhook.workspace_id,
            "webhook_id": webhook.id,
            "id": message_id(webhook.id, event),
            "type": type_of(event),
            "event_id": name_of(event.xid, event.id),
            "job_id": event.job_id,
            "body": message(event, found.get(event.job_id), webhook.include),
            "status": DeliveryStatus.PENDING,
            "created_at": event.at,
            "next_attempt_at": now,
        }
        for event, _ in matching
    ]
    return Read(webhook, end.name, deliveries)


class _Jobs:
    """The jobs of events, read once for all webhooks that include the same."""

    def __init__(self, session: Executor, workspace_id: int) -> None:
        self._session = session
        self._workspace_id = workspace_id
        self._found: dict[tuple[bool, str], Any] = {}

    def get(self, ids: Iterable[str | None], include: Sequence[str]) -> dict[str | None, Any]:
        """The jobs with these ids that exist, without documents that are not included."""
        large = bool(include)
        wanted = {job_id for job_id in ids if job_id is not None}
        missing = wanted - {job_id for size, job_id in self._found if size == large}
        if missing:
            documents = () if large else ("metadata", "result")
            columns = [null().label(c.name) if c.name in documents else c for c in jobs.c]
            query = select(*columns).where(
                jobs.c.workspace_id == self._workspace_id, jobs.c.job_id.in_(missing)
            )
            self._found |= {(large, row.job_id): row for row in self._session.execute(query)}
        return {job_id: self._found.get((large, job_id)) for job_id in wanted}


@transactional()
def store(session: Executor, read: Read) -> bool:
    """Store new deliveries and the position after their events.

    False if another process was first, or the webhook was disabled meanwhile.
    """
    webhook = read.webhook
    moved: Any = session.execute(
        update(webhooks)
        .where(
            webhooks.c.workspace_id == webhook.workspace_id,
            webhooks.c.id == webhook.id,
            webhooks.c.position == webhook.position,
            webhooks.c.enabled,
        )
        .values(position=read.position)
    )
    if moved.rowcount and read.deliveries:
        # An event that is read twice, after a restore, has its delivery already.
        session.execute(
            insert_or_ignore(dialect_name(session), webhook_deliveries)
            .values(read.deliveries)
            .on_conflict_do_nothing()
        )
    return bool(moved.rowcount)


def pick(session: Executor, webhook: AnyRow, limit: int) -> Sequence[AnyRow]:
    """Take up to ``limit`` due deliveries of a webhook, with their bodies, for ``LEASE``."""
    c = webhook_deliveries.c
    mine = deliveries_of(webhook.workspace_id, webhook.id)
    due = (
        select(c.id)
        .where(mine, c.status == DeliveryStatus.PENDING, c.next_attempt_at <= DbNow())
        .order_by(c.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    picked = is_picked(dialect_name(session), webhook_deliveries, due)
    return session.execute(
        update(webhook_deliveries)
        .where(mine, c.status == DeliveryStatus.PENDING, picked)
        .values(next_attempt_at=SecondsAfter(DbNow(), LEASE.total_seconds()))
        .returning(c.workspace_id, c.webhook_id, c.id, c.attempts, c.body, DbNow().label("now"))
    ).all()


@transactional()
def save(session: Executor, delivery: AnyRow, answer: Answer, chance: float) -> Verdict | None:
    """Save the result of an attempt; None if the delivery is not pending any more.

    ``delivery`` is as it was picked; ``chance`` is from 0 to 1, for the jitter.
    """
    webhook = None
    if not answer.accepted:
        # Before the delivery, in the order of all who lock both.
        webhook = session.execute(
            select(webhooks)
            .where(
                webhooks.c.workspace_id == delivery.workspace_id,
                webhooks.c.id == delivery.webhook_id,
            )
            .with_for_update()
        ).first()
        if webhook is None:
            return None
    now = session.execute(select(DbNow())).scalar_one()
    decided = verdict(
        answer,
        attempts=delivery.attempts + 1,
        failing_since=None if webhook is None else webhook.failing_since,
        failed_at=None if webhook is None else webhook.failed_at,
        now=now,
        chance=chance,
    )
    c = webhook_deliveries.c
    saved: Any = session.execute(
        update(webhook_deliveries)
        .where(
            deliveries_of(delivery.workspace_id, delivery.webhook_id),
            c.id == delivery.id,
            c.status == DeliveryStatus.PENDING,
            c.attempts == delivery.attempts,
        )
        .values(
            status=decided.status,
            attempts=delivery.attempts + 1,
            next_attempt_at=decided.retry_at,
            last_attempt_at=now,
            response_status=answer.status,
            response_body=answer.body,
            error=answer.error,
        )
    )
    if not saved.rowcount:
        return None
    if webhook is not None:
        session.execute(
            update(webhooks)
            .where(webhooks.c.workspace_id == webhook.workspace_id, webhooks.c.id == webhook.id)
            .values(failing_since=decided.failing_since, failed_at=now)
        )
        if decided.disabled is not None and webhook.enabled:
            disable(session, webhook, decided.disabled, now)
    return decided


def note_success(session: Executor, delivery: AnyRow) -> None:
    """Note that a webhook does not fail any more, after ``save``.

    Not in its transaction, which would lock the delivery before the webhook.
    """
    session.execute(
        update(webhooks)
        .where(
            webhooks.c.workspace_id == delivery.workspace_id,
            webhooks.c.id == delivery.webhook_id,
            webhooks.c.failing_since.is_not(None),
        )
        .values(failing_since=None, failed_at=None)
    )


def oldest_undelivered(session: Executor, now: datetime) -> dict[int, float]:
    """By workspace with enabled webhooks: the age of the oldest undelivered event, in seconds.

    That is an event which a webhook has not read yet, wanted or not, or which has a pending
    delivery. Call it in a snapshot.
    """
    c = webhook_deliveries.c
    pending = (
        select(c.created_at)
        .where(
            c.workspace_id == webhooks.c.workspace_id,
            c.webhook_id == webhooks.c.id,
            c.status == DeliveryStatus.PENDING,
        )
        .order_by(c.created_at)
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(webhooks.c.workspace_id, webhooks.c.position, pending.label("pending"))
        .join(workspaces, workspaces.c.id == webhooks.c.workspace_id)
        .where(webhooks.c.enabled, NOT_DELETED, NOT_MOVING)
        .limit(MAX_MEASURED)
    )
    rows = session.execute(query).all()
    times = [(row.workspace_id, row.pending) for row in rows]
    if rows:
        positions = {(row.workspace_id, *events.position_of(row.position)[:2]) for row in rows}
        times += events.first_after(session, positions)
    ages = dict.fromkeys((workspace_id for workspace_id, _ in times), 0.0)
    for workspace_id, at in times:
        if at is not None:
            ages[workspace_id] = max(ages[workspace_id], (now - at).total_seconds())
    return ages
