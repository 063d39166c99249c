"""What happened in a workspace: to jobs, members and keys, when, and by whom.

What happens to jobs the database's triggers note, in the transaction of the
change; the rest, and deletions, is noted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Text,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    true,
    tuple_,
)

from .database import AnyRow, DbNow, Executor, dialect_name, insert_records, records
from .errors import ValidationFailed
from .lifecycle import EventKind
from .models import events, workspaces
from .paging import MAX_NUMBER, no_cursor, read_cursor, write_cursor

MAX_COUNTED = 10_000
"""Up to how many events are counted."""

Place = tuple[int, int]
"""Where in the order of events: ``xid`` and ``id``."""

START: Place = (0, 0)

_NOTED = ("workspace_id", "xid", "at", "kind", "job_id", "job_type", "from_status", "actor", "data")


@dataclass(frozen=True, kw_only=True)
class EventFilters:
    """Which events: all of what is given. ``owner`` says whether those of members and keys, too."""

    kind: Sequence[EventKind] = ()
    job_id: str | None = None
    job_type: Sequence[str] = ()
    only_job_types: Sequence[str] | None = None
    owner: bool = False

    def conditions(self) -> list[ColumnElement[bool]]:
        """On the columns of the table."""
        c = events.c
        found: list[ColumnElement[bool]] = []
        if self.kind:
            found.append(c.kind.in_(self.kind))
        if self.job_id is not None:
            found.append(c.job_id == self.job_id)
        for types in (self.job_type or None, self.only_job_types):
            if types is not None:
                found.append(c.job_type.in_(types))
        if not self.owner:
            found.append(c.kind < EventKind.MEMBER_ADDED)
        return found

    def matches(self, event: Any) -> bool:
        """The same, of an event that has been read."""
        return (
            (not self.kind or event.kind in self.kind)
            and self.job_id in (None, event.job_id)
            and (not self.job_type or event.job_type in self.job_type)
            and (self.only_job_types is None or event.job_type in self.only_job_types)
            and (self.owner or event.kind < EventKind.MEMBER_ADDED)
        )


class Begin(NamedTuple):
    """Where a stream begins: a place, and which transactions after it had ended by then."""

    place: Place
    next_xid: int = 0
    running: frozenset[int] = frozenset()

    def had(self, event: Any) -> bool:
        """Whether the event had happened already."""
        return event.xid < self.next_xid and event.xid not in self.running


class EventPage(NamedTuple):
    """Some events, how many there are, and where it goes on."""

    rows: Sequence[AnyRow]
    total: int
    total_is_capped: bool
    next_cursor: str | None


def note(
    session: Executor,
    workspace_id: int,
    kind: EventKind,
    *,
    by: str | None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Note what happened to a workspace's members, keys or settings, with the change itself."""
    now = session.execute(select(DbNow())).scalar_one()
    session.execute(
        insert(events).values(
            workspace_id=workspace_id, xid=_xid(session), at=now, kind=kind, actor=by, data=data
        )
    )


def note_deleted(session: Executor, gone: Sequence[Any], *, by: str | None) -> None:
    """Note that jobs were deleted, of which these are the rows, with the deletion itself."""
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
            "actor": by,
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
    # There is no shorter way.
    return cast(cast(xid, Text), BigInteger)


def name_of(place: Place) -> str:
    """An event's public name, by which a stream is gone on with."""
    return f"{place[0]}-{place[1]}"


def place_of(name: str) -> Place:
    """The place that an event's name says. Raises ``ValidationFailed``."""
    xid, _, number = name.partition("-")
    if xid.isascii() and xid.isdigit() and number.isascii() and number.isdigit():
        place = (int(xid), int(number))
        if max(place) < MAX_NUMBER:
            return place
    raise ValidationFailed({"last_event_id": ["It is none of ours; use the id of an event."]})


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

    To be called in a snapshot. Raises ``ValidationFailed`` for a cursor that is none.
    """
    c = events.c
    where = [c.workspace_id == workspace_id, *filters.conditions()]
    # What happens to one job happens one after the other, so that its index has the order.
    keys = [c.id] if filters.job_id is not None else [c.xid, c.id]
    some = select(literal(1)).select_from(events).where(*where).limit(MAX_COUNTED + 1)
    total = session.execute(select(func.count()).select_from(some.subquery())).scalar_one()
    query = select(*c).where(*where).limit(limit + 1)
    query = query.order_by(*(key.desc() if order == "desc" else key for key in keys))
    if cursor is not None:
        after = tuple_(*_values(cursor, len(keys)))
        place = tuple_(*keys)
        query = query.where(place < after if order == "desc" else place > after)
    rows = session.execute(query).all()
    more = None
    if len(rows) > limit:
        more = write_cursor([getattr(rows[limit - 1], key.name) for key in keys])
    return EventPage(rows[:limit], min(total, MAX_COUNTED), total > MAX_COUNTED, more)


def _values(cursor: str, n: int) -> list[Any]:
    values = read_cursor(cursor)
    if len(values) != n or not all(type(v) is int and 0 <= v < MAX_NUMBER for v in values):
        raise no_cursor()
    return values


def begin(session: Executor, workspace_id: int) -> Begin:
    """Where a stream begins that begins now."""
    query = (
        select(events.c.xid, events.c.id)
        .where(events.c.workspace_id == workspace_id)
        .order_by(events.c.xid.desc(), events.c.id.desc())
        .limit(1)
    )
    if dialect_name(session) == "sqlite":
        row = session.execute(query).first()
        return Begin(START if row is None else (row.xid, row.id))
    ended = session.execute(select(cast(func.pg_current_snapshot(), Text))).scalar_one()
    first, following, running = ended.split(":")
    row = session.execute(query.where(events.c.xid < int(first))).first()
    return Begin(
        START if row is None else (row.xid, row.id),
        int(following),
        frozenset(map(int, filter(None, running.split(",")))),
    )


def after(session: Executor, workspace_id: int, place: Place, *, most: int) -> Sequence[AnyRow]:
    """The next ``most`` events after a place, of those to which nothing earlier is added any more.

    An event of a transaction that is older than one still under way has to wait
    for that: so nobody who goes on after what they have seen misses one.
    """
    return session.execute(
        select(*events.c)
        .where(
            events.c.workspace_id == workspace_id,
            tuple_(events.c.xid, events.c.id) > tuple_(*place),
            _horizon(session),
        )
        .order_by(events.c.xid, events.c.id)
        .limit(most)
    ).all()


def _horizon(session: Executor) -> ColumnElement[bool]:
    # SQLite has one writer at a time, so that its order is that of the commits.
    if dialect_name(session) == "sqlite":
        return true()
    over: ColumnElement[bool] = events.c.xid < _number(
        func.pg_snapshot_xmin(func.pg_current_snapshot())
    )
    return over


def delete_old(session: Executor, workspace_id: int, days: int, *, limit: int) -> int:
    """Delete events that are so old, the oldest ``limit`` at most; returns how many."""
    c = events.c
    old = session.execute(select(DbNow())).scalar_one() - timedelta(days=days)
    mine = c.workspace_id == workspace_id
    in_order = select(c.at, c.xid, c.id).where(mine).order_by(c.xid, c.id).limit(1)
    first = session.execute(in_order).first()
    if first is None or first.at >= old:
        return 0
    # Up to the first that is left for the next time: a range of the index, and no list of ids.
    stop = session.execute(in_order.offset(limit)).first()
    where = [mine, c.at < old]
    if stop is not None:
        where.append(tuple_(c.xid, c.id) < tuple_(stop.xid, stop.id))
    gone: Any = session.execute(delete(events).where(*where))
    return int(gone.rowcount)


def kept(session: Executor) -> list[tuple[int, int]]:
    """The workspaces that do not keep events for ever, with the number of days."""
    rows = session.execute(
        select(workspaces.c.id, workspaces.c.keep_events).where(
            workspaces.c.keep_events.is_not(None)
        )
    )
    return [(workspace_id, days) for workspace_id, days in rows]


def begin_anew(session: Executor) -> None:
    """After a restore into another server: its transactions are counted from a lower number.

    Events of transactions that this server has not had yet are put before all others.
    """
    if dialect_name(session) == "sqlite":
        return
    future = events.c.xid >= _number(func.pg_snapshot_xmax(func.pg_current_snapshot()))
    # One by one, by the index, because nearly always there is nothing to do.
    for workspace_id in session.execute(select(workspaces.c.id)).scalars().all():
        mine = events.c.workspace_id == workspace_id
        session.execute(events.update().where(mine, future).values(xid=0))
