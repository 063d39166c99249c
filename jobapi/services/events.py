"""What happened in a workspace: to jobs, members, keys and webhooks, when, and by whom.

The database's triggers write the events of jobs, in the transaction of the change.
Deletions and all other events are written here.

Why streams have positions, and why these are more than a number: Postgres numbers a
transaction when it first writes, but transactions commit in any order. A stream that has
sent an event of transaction 9 does not know whether 7 and 8 will still commit events. Waiting
for them would delay all streams for as long as any client leaves a transaction open, in any
database of the server; going on by number would miss their events. So a position names the
older transactions that are still open (``gaps``). ``begin`` finds them in one query, so that a
stream is exact from its first event on. A transaction may have more events than fit into one
batch, so a position can lie inside a transaction (``sent``). And ``resume`` refuses a position
that is ahead of the server: a replica that took over, or a restored backup, may lack
transactions whose numbers are then used again, and the stream would silently miss their events.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Text,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
)

from ..errors import Unavailable, ValidationFailed
from ..rules.events import JOB_EVENTS, Event, EventKind, name_of
from ..rules.jobs import Job
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import NOT_MOVING
from ..store.paging import MAX_NUMBER, no_cursor, read_cursor, write_cursor
from ..store.records import insert_records, record_source, records
from ..store.tables import events, webhooks, workspaces
from ..store.transactions import IN_ORDER, set_planner, transactional

MAX_COUNTED = 10_000
"""The total of a list of events is counted up to this number."""

LOOKED_AT = 100_000
"""How many events of a workspace are read for one page at most."""

MAX_GAPS = 500
"""How many older transactions may be open at a position; with more, later events are delayed."""

MAX_NAME = 8_000
"""The maximum length of the name of a position, in characters."""

_LAST_NUMBER = "SELECT seq FROM sqlite_sequence WHERE name = 'jobapi_events'"
_NAME = re.compile(
    r"(?P<xid>[0-9]{1,19})-(?P<id>[0-9]{1,19})"
    rf"(?P<gaps>(?:\.[0-9a-f]{{1,16}}){{0,{MAX_GAPS}}})"
    r"(?:~(?P<gap>[0-9]{1,19})-(?P<sent>[0-9]{1,19}))?"
)
_NOTED = ("workspace_id", "xid", "at", "kind", "job_id", "job_type", "from_status", "actor", "data")


@dataclass(frozen=True, kw_only=True)
class EventFilters:
    """Filters of events. An event must match all that are given.

    ``owner`` says whether the reader is an owner. Others see only events of jobs of the kinds
    that this version knows: an unknown kind may be about members or keys.
    """

    kind: Sequence[EventKind] = ()
    job_id: str | None = None
    job_type: Sequence[str] = ()
    only_job_types: Sequence[str] | None = None
    owner: bool = False

    def conditions(self, c: Any) -> list[ColumnElement[bool]]:
        """The filters as SQL; ``c`` are the columns of the table, or of a subquery of it."""
        found: list[ColumnElement[bool]] = []
        if self.kind:
            found.append(c.kind.in_(self.kind))
        if self.job_id is not None:
            found.append(c.job_id == self.job_id)
        for types in (self.job_type or None, self.only_job_types):
            if types is not None:
                found.append(c.job_type.in_(types))
        if not self.owner:
            found.append(c.kind.in_(JOB_EVENTS))
        return found

    def matches(self, event: Event) -> bool:
        """Whether an event that has been read matches."""
        return (
            (not self.kind or event.kind in self.kind)
            and self.job_id in (None, event.job_id)
            and (not self.job_type or event.job_type in self.job_type)
            and (self.only_job_types is None or event.job_type in self.only_job_types)
            and (self.owner or event.kind in JOB_EVENTS)
        )


class Snapshot(NamedTuple):
    """Which transactions a snapshot sees: those below ``xmax`` that are not in ``running``.

    SQLite has one writer at a time and no numbers: its events have the ``xid`` 0.
    """

    xmax: int = 1
    running: tuple[int, ...] = ()
    """In ascending order."""

    @property
    def numbered(self) -> bool:
        """Whether transactions have numbers, so that equal snapshots see the same rows."""
        return self.xmax > 1

    def below(self, xid: int) -> tuple[int, ...]:
        """The open transactions that began before ``xid``."""
        return self.running[: bisect_left(self.running, xid)]


class Position(NamedTuple):
    """Which events of a workspace have been read.

    These are all events up to and including (``xid``, ``id``), except those of the
    transactions in ``gaps``, which were still open then. Of one of these, which has
    ended since, the events up to ``sent`` (its ``xid`` and an ``id``) have been read, too.

    Example: transactions 7, 8 and 9 write at the same time, and 9 commits first.
    After its event 31 the position is (9, 31) with the gaps 7 and 8. When 7 has
    committed its events 28 and 30 and the first of them has been read, it is
    (9, 31) with the gaps 7 and 8 and ``sent`` (7, 28); after both, and while 8 is
    under way, (9, 31) with the gap 8.

    The event itself is committed, so that no server gives its number, or a gap's,
    to another transaction after a crash.
    """

    xid: int = 0
    id: int = 0
    gaps: tuple[int, ...] = ()
    sent: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The position as the ``id`` of a stream's event.

        ``9-31``; with gaps, the differences between them in hexadecimal digits:
        ``9-31.1.1`` has the gaps 8 and 7; with ``sent``: ``9-31.1.1~7-28``.
        """
        sent = "" if self.sent is None else f"~{name_of(*self.sent)}"
        return f"{name_of(self.xid, self.id)}{_differences(self.xid, self.gaps)}{sent}"


@lru_cache(maxsize=64)
def _differences(xid: int, gaps: tuple[int, ...]) -> str:
    falling = [xid, *reversed(gaps)]
    return "".join(f".{above - gap:x}" for above, gap in pairwise(falling))


def _parse(name: str) -> Position | None:
    found = _NAME.fullmatch(name) if len(name) <= MAX_NAME else None
    if found is None:
        return None
    xid = gap = int(found["xid"])
    gaps = []
    for difference in found["gaps"].split(".")[1:]:
        gap -= int(difference, 16)
        gaps.append(gap)
    falling = [xid, *gaps, 0]
    if any(above <= below for above, below in pairwise(falling) if gaps):
        return None
    sent = None if found["gap"] is None else (int(found["gap"]), int(found["sent"]))
    if sent is not None and (sent[0] not in gaps or sent[1] >= MAX_NUMBER):
        return None
    return Position(xid, int(found["id"]), tuple(reversed(gaps)), sent)


class Found(NamedTuple):
    """Events, each with the position after it; the last position, and whether there may be more.

    There may be more if as many were found as were requested.
    """

    events: Sequence[tuple[Event, Position]]
    end: Position
    more: bool


class EventPage(NamedTuple):
    """A page of events, the total, and the cursor of the next page."""

    rows: Sequence[Event]
    total: int
    total_is_capped: bool
    next_cursor: str | None


def note(
    session: Executor,
    workspace_id: int,
    kind: EventKind,
    *,
    actor: str | None,
    data: Mapping[str, Any] | None = None,
    job_type: str | None = None,
) -> None:
    """Record a change of a workspace's members, keys or settings, in its transaction."""
    now = session.execute(select(DbNow())).scalar_one()
    session.execute(
        insert(events).values(
            workspace_id=workspace_id,
            xid=_xid(session),
            at=now,
            kind=kind,
            job_type=job_type,
            actor=actor,
            data=data,
        )
    )


def note_deleted(session: Executor, gone: Sequence[Job], *, actor: str | None) -> None:
    """Record the deletion of jobs, in its transaction.

    Only ``workspace_id``, ``job_id``, ``job_type`` and ``status`` of the jobs are read.
    """
    if not gone:
        return
    now, xid = session.execute(select(DbNow(), _xid(session))).one()
    rows = [
        {
            "workspace_id": job.workspace_id,
            "xid": xid,
            "at": now,
            "kind": EventKind.DELETED,
            "job_id": job.job_id,
            "job_type": job.job_type,
            "from_status": job.status,
            "actor": actor,
            "data": None,
        }
        for job in gone
    ]
    session.execute(insert_records(session, events, _NOTED), records(session, rows))


def _xid(session: Executor) -> Any:
    if dialect_name(session) == "sqlite":
        return literal(0)
    return _number(func.pg_current_xact_id())


def _number(xid: Any) -> Any:
    # Postgres has no direct cast from xid8 to bigint.
    return cast(cast(xid, Text), BigInteger)


def page(
    session: Executor,
    workspace_id: int,
    filters: EventFilters,
    *,
    limit: int,
    order: str = "desc",
    cursor: str | None = None,
) -> EventPage:
    """``limit`` events, the newest first unless ``order`` is ``asc``, and their number.

    One call reads ``LOOKED_AT`` events at most, so if few match, the page may be short although
    ``next_cursor`` leads to more. Call it in a snapshot. Raises ``ValidationFailed`` for an
    invalid cursor.
    """
    set_planner(session, IN_ORDER)
    c = events.c
    mine = [c.workspace_id == workspace_id]
    # Changes of one job are serialized, so the ids of its events have their order, and so does
    # the index on the job.
    keys = [c.id] if filters.job_id is not None else [c.xid, c.id]
    if filters.job_id is not None:
        mine.append(c.job_id == filters.job_id)
    in_order = [key.desc() if order == "desc" else key for key in keys]

    def looked_at(where: Sequence[ColumnElement[bool]]) -> Any:
        return select(*c).where(*where).order_by(*in_order).limit(LOOKED_AT).subquery()

    def end(where: Sequence[ColumnElement[bool]]) -> AnyRow | None:
        """The last event that is read, if there are others after it."""
        query = select(*keys).where(*where).order_by(*in_order)
        found = session.execute(query.offset(LOOKED_AT - 1).limit(2)).all()
        return found[0] if len(found) == 2 else None

    part = looked_at(mine)
    matches = filters.conditions(part.c)
    some = select(literal(1)).select_from(part).where(*matches).limit(MAX_COUNTED + 1)
    total = session.execute(select(func.count()).select_from(some.subquery())).scalar_one()
    capped = total > MAX_COUNTED or end(mine) is not None
    if cursor is not None:
        after = tuple_(*_values(cursor, len(keys)))
        place = tuple_(*keys)
        mine.append(place < after if order == "desc" else place > after)
    part = looked_at(mine)
    query = select(part).where(*filters.conditions(part.c)).limit(limit + 1)
    rows = session.execute(
        query.order_by(
            *(part.c[key.name].desc() if order == "desc" else part.c[key.name] for key in keys)
        )
    ).all()
    last = rows[limit - 1] if len(rows) > limit else end(mine)
    more = None if last is None else write_cursor([getattr(last, key.name) for key in keys])
    return EventPage(rows[:limit], min(total, MAX_COUNTED), capped, more)


def _values(cursor: str, n: int) -> list[Any]:
    values = read_cursor(cursor)
    if len(values) != n or not all(type(v) is int and 0 <= v < MAX_NUMBER for v in values):
        raise no_cursor()
    return values


def position_of(name: str) -> Position:
    """The position with a name that was stored. Raises ``ValueError`` for another text."""
    position = _parse(name)
    if position is None:
        raise ValueError("This is not the name of a position.")
    return position


def first_unread(session: Executor, workspace_id: int, position: Position) -> AnyRow | None:
    """The first event that has not been read at a position, in the order of events."""
    c = events.c
    return session.execute(
        select(c.xid, c.id, c.at)
        .where(c.workspace_id == workspace_id, _unread(position))
        .order_by(c.xid, c.id)
        .limit(1)
    ).first()


def _unread(position: Position) -> ColumnElement[bool]:
    c = events.c
    above: ColumnElement[bool] = tuple_(c.xid, c.id) > tuple_(position.xid, position.id)
    if not position.gaps:
        return above
    late: ColumnElement[bool] = c.xid.in_(position.gaps)
    if position.sent is not None:
        late &= (c.xid != position.sent[0]) | (c.id > position.sent[1])
    return above | late


def first_after(
    session: Executor, positions: Iterable[tuple[int, int, int]]
) -> list[tuple[int, datetime | None]]:
    """When the first event after each position happened, whatever is in its gaps.

    ``positions`` are workspaces with an ``xid`` and an ``id``; so are the results with a time.
    """
    kinds = {"workspace_id": Integer(), "xid": BigInteger(), "id": BigInteger()}
    source = record_source(dialect_name(session), kinds)
    c = events.c
    first = (
        select(c.at)
        .where(
            c.workspace_id == source.c.workspace_id,
            tuple_(c.xid, c.id) > tuple_(source.c.xid, source.c.id),
        )
        .order_by(c.xid, c.id)
        .limit(1)
        .scalar_subquery()
    )
    rows = [dict(zip(kinds, each, strict=True)) for each in positions]
    query = select(source.c.workspace_id, first.label("at"))
    return [(row.workspace_id, row.at) for row in session.execute(query, records(session, rows))]


def number_from(session: Executor, workspace_id: int, first: AnyRow | None) -> int:
    """How many events follow from ``first`` on, that included."""
    if first is None:
        return 0
    c = events.c
    return int(
        session.execute(
            select(func.count()).where(
                c.workspace_id == workspace_id, tuple_(c.xid, c.id) >= tuple_(first.xid, first.id)
            )
        ).scalar_one()
    )


def before_last(session: Executor, workspace_id: int, number: int) -> Position:
    """The position that the last ``number`` events follow, if no transaction is open."""
    c = events.c
    last = session.execute(
        select(c.xid, c.id)
        .where(c.workspace_id == workspace_id)
        .order_by(c.xid.desc(), c.id.desc())
        .offset(number)
        .limit(1)
    ).first()
    return Position() if last is None else Position(last.xid, last.id)


def current_snapshot(session: Executor) -> Snapshot:
    """What the current snapshot sees. Call it in ``store.transactions.snapshot``.

    Raises ``Unavailable`` on a replica, whose snapshots do not list open transactions.
    """
    if dialect_name(session) == "sqlite":
        return Snapshot()
    text_of = cast(func.pg_current_snapshot(), Text)
    found, replica = session.execute(select(text_of, func.pg_is_in_recovery())).one()
    if replica:
        raise Unavailable("The database server is a read-only replica; try again later.")
    _, xmax, running = found.split(":")
    return Snapshot(int(xmax), tuple(sorted(map(int, filter(None, running.split(","))))))


def begin(session: Executor, workspace_id: int) -> Position:
    """The position of a stream that begins now. Call it in a snapshot."""
    seen = current_snapshot(session)
    c = events.c
    last = session.execute(
        select(c.xid, c.id)
        .where(c.workspace_id == workspace_id, c.xid < seen.xmax)
        .order_by(c.xid.desc(), c.id.desc())
        .limit(1)
    ).first()
    return Position() if last is None else Position(last.xid, last.id, seen.below(last.xid))


def resume(session: Executor, name: str) -> Position:
    """The position to resume a stream from, by its name. Call it in a snapshot.

    Raises ``ValidationFailed`` for a name that this server cannot have issued.
    """
    position = _parse(name)
    if position is not None:
        last = MAX_NUMBER - 1
        if dialect_name(session) == "sqlite":
            last = session.execute(text(_LAST_NUMBER)).scalar() or 0
        if position.xid < current_snapshot(session).xmax and position.id <= last:
            return position
    raise ValidationFailed(
        {"last_event_id": ["Invalid position. Send the `id` of a stream's event unchanged."]}
    )


def after(
    session: Executor, workspace_id: int, position: Position, *, seen: Snapshot, most: int
) -> Found:
    """The next ``most`` events after a position that a snapshot sees.

    Call it in that snapshot. First come the events of gaps whose transactions have
    ended since, then those above the position. A transaction that stays open
    costs nothing and delays nothing.
    """
    below = seen.below(position.xid)
    ended = sorted(set(position.gaps).difference(below))
    if position.sent is not None:
        # The transaction that has been sent in part comes first: a position has one ``sent``.
        begun = position.sent[0]
        ended.sort(key=lambda xid: xid != begun)
    late = _of_gaps(session, workspace_id, ended, position.sent, most) if ended else ()
    found = []
    gaps: tuple[int, ...] = ()
    last = None
    for event in late:
        if event.xid != last:
            last = event.xid
            gaps = tuple(sorted({*below, *ended[ended.index(last) :]}))
        found.append((event, Position(position.xid, position.id, gaps, (event.xid, event.id))))
    if len(found) == most:
        return Found(found, found[-1][1], more=True)
    end = Position(position.xid, position.id, below)
    c = events.c
    above = session.execute(
        select(*c)
        .where(
            c.workspace_id == workspace_id,
            tuple_(c.xid, c.id) > tuple_(position.xid, position.id),
            c.xid < seen.xmax,
        )
        .order_by(c.xid, c.id)
        .limit(most - len(found))
    ).all()
    for event in above:
        gaps = end.gaps if event.xid == end.xid else seen.below(event.xid)
        if len(gaps) > MAX_GAPS:
            # Wait until some of these transactions have ended.
            return Found(found, end, more=False)
        end = Position(event.xid, event.id, gaps)
        found.append((event, end))
    return Found(found, end, more=len(found) == most)


def _of_gaps(
    session: Executor,
    workspace_id: int,
    xids: Sequence[int],
    sent: tuple[int, int] | None,
    most: int,
) -> Sequence[AnyRow]:
    """The first ``most`` events of transactions, in the given order of the transactions.

    Of the transaction in ``sent``, only the events after it.
    """
    gap = record_source(
        "postgresql", {"turn": BigInteger(), "xid": BigInteger(), "sent": BigInteger()}
    )
    c = events.c
    # A lateral query for each transaction, so that one with many events is not read completely
    # each time.
    each = (
        select(*c)
        .where(c.workspace_id == workspace_id, c.xid == gap.c.xid, c.id > gap.c.sent)
        .order_by(c.id)
        .limit(most)
        .lateral()
    )
    rows = [
        {"turn": turn, "xid": xid, "sent": sent[1] if sent and sent[0] == xid else 0}
        for turn, xid in enumerate(xids)
    ]
    query = select(*each.c).select_from(gap.join(each, true()))
    query = query.order_by(gap.c.turn, each.c.id).limit(most)
    return session.execute(query, records(session, rows)).all()


@transactional(planner=IN_ORDER)
def delete_old(session: Executor, workspace_id: int, days: int, *, limit: int) -> int:
    """Delete events older than ``days``, at most ``limit``, the oldest first; returns how many."""
    c = events.c
    now = session.execute(select(DbNow())).scalar_one()
    old = now - timedelta(days=days)
    mine = c.workspace_id == workspace_id
    # An event from a clock that was ahead must not block the deletion of the others.
    in_order = select(c.at, c.xid, c.id).where(mine, c.at <= now).order_by(c.xid, c.id).limit(1)
    first = session.execute(in_order).first()
    if first is None or first.at >= old:
        return 0
    # Up to the first event that is left for the next time: an index range, no list of ids.
    stop = session.execute(in_order.offset(limit)).first()
    where = [mine, c.at < old]
    if stop is not None:
        where.append(tuple_(c.xid, c.id) < tuple_(stop.xid, stop.id))
    gone: Any = session.execute(delete(events).where(*where))
    return int(gone.rowcount)


def kept(session: Executor, workspace_id: int | None = None) -> list[tuple[int, int]]:
    """The workspaces, or the given one, with a limited retention of events: ids and days."""
    some = select(workspaces.c.id, workspaces.c.keep_events).where(
        workspaces.c.keep_events.is_not(None), NOT_MOVING
    )
    if workspace_id is not None:
        some = some.where(workspaces.c.id == workspace_id)
    return [(found, days) for found, days in session.execute(some)]


def put_restored_first(session: Executor) -> None:
    """Give the events of a backup the earliest positions, after a restore into another server.

    Another server counts transactions from a lower number, so new events would come before
    the restored ones. If a workspace has events with a number that this server has not
    reached, all of its events get the number 0, and stay in the order of their ids.
    """
    if dialect_name(session) == "sqlite":
        return
    limit = session.execute(select(_number(func.pg_snapshot_xmax(func.pg_current_snapshot()))))
    xmax = int(limit.scalar_one())
    # Workspace by workspace, by the index, because nearly always there is nothing to do.
    for workspace_id in session.execute(select(workspaces.c.id)).scalars().all():
        mine = events.c.workspace_id == workspace_id
        hooks = session.execute(
            select(webhooks.c.id, webhooks.c.position).where(
                webhooks.c.workspace_id == workspace_id
            )
        ).all()
        positions = {hook.id: position_of(hook.position) for hook in hooks}
        future = select(events.c.id).where(mine, events.c.xid >= xmax).limit(1)
        is_ahead = any(position.xid >= xmax for position in positions.values())
        if not is_ahead and session.execute(future).first() is None:
            continue
        read = {hook: _read_to(session, workspace_id, at) for hook, at in positions.items()}
        session.execute(events.update().where(mine, events.c.xid > 0).values(xid=0))
        for hook, position in read.items():
            where = (webhooks.c.workspace_id == workspace_id) & (webhooks.c.id == hook)
            session.execute(webhooks.update().where(where).values(position=position.name))


def _read_to(session: Executor, workspace_id: int, position: Position) -> Position:
    """A position once all events have the number 0: before the first that has not been read."""
    c = events.c
    mine = c.workspace_id == workspace_id
    lowest = select(func.min(c.id)).where(mine, _unread(position))
    last = select(func.max(c.id)).where(mine)
    unread, newest = session.execute(select(lowest.scalar_subquery(), last.scalar_subquery())).one()
    return Position(0, unread - 1 if unread is not None else newest or 0)
