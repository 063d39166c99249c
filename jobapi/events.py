"""What happened in a workspace: to jobs, members and keys, when, and by whom.

What happens to jobs the database's triggers note, in the transaction of the
change; the rest, and deletions, is noted here.
"""

from __future__ import annotations

import re
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
    text,
    tuple_,
)

from .database import (
    IN_ORDER,
    AnyRow,
    DbNow,
    Executor,
    dialect_name,
    insert_records,
    plan_without,
    records,
)
from .errors import ValidationFailed
from .lifecycle import EventKind
from .models import events, workspaces
from .paging import MAX_NUMBER, no_cursor, read_cursor, write_cursor

MAX_COUNTED = 10_000
"""Up to how many events are counted."""

LOOKED_AT = 100_000
"""How many events of a workspace one page looks through for those that match."""

Place = tuple[int, int]
"""Where in the order of events: ``xid`` and ``id``."""

_START: Place = (0, 0)
_SERVER: Any = cast(func.pg_postmaster_start_time(), Text)
_LAST_NUMBER = "SELECT seq FROM sqlite_sequence WHERE name = 'jobapi_events'"
_NAME = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
_NOTED = ("workspace_id", "xid", "at", "kind", "job_id", "job_type", "from_status", "actor", "data")


@dataclass(frozen=True, kw_only=True)
class EventFilters:
    """Which events: all of what is given. ``owner`` says whether those of members and keys, too."""

    kind: Sequence[EventKind] = ()
    job_id: str | None = None
    job_type: Sequence[str] = ()
    only_job_types: Sequence[str] | None = None
    owner: bool = False

    def conditions(self, c: Any) -> list[ColumnElement[bool]]:
        """On the columns of the table, or of a part of it."""
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
    """Where a stream begins: after an event, and which transactions after it had ended by then.

    ``server`` is the run of the database's server of which that is so.
    """

    place: Place
    next_xid: int = 0
    running: frozenset[int] = frozenset()
    server: str | None = None

    def had(self, event: Any) -> bool:
        """Whether the event had happened already."""
        return event.xid < self.next_xid and event.xid not in self.running


class Horizon(NamedTuple):
    """The ``xid`` before which no event is added any more, in one run of the database's server.

    After a crash a server may give numbers again that nothing came of. On
    SQLite, which has one writer at a time, the order is that of the commits: no
    event has to wait.
    """

    xid: int | None
    server: str | None


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


def resume(session: Executor, name: str) -> Begin:
    """Where a stream begins that goes on after the event of this name.

    Raises ``ValidationFailed`` for a name that no event of this server can have.
    """
    if _NAME.fullmatch(name):
        xid, _, number = name.partition("-")
        place = (int(xid), int(number))
        if dialect_name(session) == "sqlite":
            last = session.execute(text(_LAST_NUMBER)).scalar()
            newest = (0, last or 0)
        else:
            xmax = _number(func.pg_snapshot_xmax(func.pg_current_snapshot()))
            newest = (session.execute(select(xmax)).scalar_one(), MAX_NUMBER - 1)
        if place <= newest and place[1] < MAX_NUMBER:
            return Begin(place)
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

    Where few match, there may be fewer, and more after ``next_cursor`` all the
    same. To be called in a snapshot. Raises ``ValidationFailed`` for a cursor
    that is none.
    """
    plan_without(session, IN_ORDER)
    c = events.c
    mine = [c.workspace_id == workspace_id]
    # What happens to one job happens one after the other, so that its index has the order.
    keys = [c.id] if filters.job_id is not None else [c.xid, c.id]
    if filters.job_id is not None:
        mine.append(c.job_id == filters.job_id)
    in_order = [key.desc() if order == "desc" else key for key in keys]

    def looked_at(where: Sequence[ColumnElement[bool]]) -> Any:
        return select(*c).where(*where).order_by(*in_order).limit(LOOKED_AT).subquery()

    def end(where: Sequence[ColumnElement[bool]]) -> AnyRow | None:
        """The last that is looked at, where there are others after it."""
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
        return Begin(_START if row is None else (row.xid, row.id))
    snapshot = cast(func.pg_current_snapshot(), Text)
    ended, server = session.execute(select(snapshot, _SERVER)).one()
    first, following, running = ended.split(":")
    row = session.execute(query.where(events.c.xid < int(first))).first()
    return Begin(
        _START if row is None else (row.xid, row.id),
        int(following),
        frozenset(map(int, filter(None, running.split(",")))),
        server,
    )


def horizon(session: Executor) -> Horizon:
    """Up to where the order of events is settled."""
    if dialect_name(session) == "sqlite":
        return Horizon(None, None)
    xmin = _number(func.pg_snapshot_xmin(func.pg_current_snapshot()))
    return Horizon(*session.execute(select(xmin, _SERVER)).one())


def after(
    session: Executor, workspace_id: int, place: Place, *, before: Horizon, most: int
) -> Sequence[AnyRow]:
    """The next ``most`` events after a place, of those before the horizon.

    An event of a transaction that is older than one still under way has to wait
    for that: so nobody who goes on after what they have seen misses one.
    """
    query = select(*events.c).where(
        events.c.workspace_id == workspace_id,
        tuple_(events.c.xid, events.c.id) > tuple_(*place),
    )
    if before.xid is not None:
        query = query.where(events.c.xid < before.xid)
    return session.execute(query.order_by(events.c.xid, events.c.id).limit(most)).all()


def delete_old(session: Executor, workspace_id: int, days: int, *, limit: int) -> int:
    """Delete events that are so old, the oldest ``limit`` at most; returns how many."""
    c = events.c
    now = session.execute(select(DbNow())).scalar_one()
    old = now - timedelta(days=days)
    mine = c.workspace_id == workspace_id
    # What a clock that was ahead has written must not stand in the way of the rest.
    in_order = select(c.at, c.xid, c.id).where(mine, c.at <= now).order_by(c.xid, c.id).limit(1)
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


def kept(session: Executor, workspace_id: int | None = None) -> list[tuple[int, int]]:
    """The workspaces, or that one, that do not keep events for ever, with the number of days."""
    some = select(workspaces.c.id, workspaces.c.keep_events).where(
        workspaces.c.keep_events.is_not(None)
    )
    if workspace_id is not None:
        some = some.where(workspaces.c.id == workspace_id)
    return [(found, days) for found, days in session.execute(some)]


def begin_anew(session: Executor) -> None:
    """After a restore into another server: its transactions are counted from a lower number.

    Where a workspace has events of transactions that this server has not had yet,
    all that it has come first, in the order of their own numbers.
    """
    if dialect_name(session) == "sqlite":
        return
    future = events.c.xid >= _number(func.pg_snapshot_xmax(func.pg_current_snapshot()))
    # One by one, by the index, because nearly always there is nothing to do.
    for workspace_id in session.execute(select(workspaces.c.id)).scalars().all():
        mine = events.c.workspace_id == workspace_id
        if session.execute(select(events.c.id).where(mine, future).limit(1)).first():
            # All of them: among themselves they stay in the order of their numbers.
            session.execute(events.update().where(mine, events.c.xid > 0).values(xid=0))
