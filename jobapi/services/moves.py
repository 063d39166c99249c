"""Moves a workspace to another database, a step at a time.

Nothing in the source changes while it leaves: requests that write are 503, the maintenance passes
it by, and triggers refuse the rest, such as a transaction that began before. In the target the
workspace is hidden, like a deleted one, until it is complete. Each step may be repeated, so a move
that was interrupted continues when it is started again.

Ids of jobs, events and attempts are internal to a database and become new ones, in the same order.
The id of the workspace stays. Users are matched by name, keys by their hash; those that the target
does not have are copied, with their ids if these are free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Table, delete, func, insert, select, text, tuple_, update
from sqlalchemy import cast as cast_type
from sqlalchemy.types import String

from ..rules.operations import OperationStatus
from ..store.columns import DbNow
from ..store.connections import AnyRow, dialect_name
from ..store.records import insert_records, records
from ..store.tables import (
    ARRIVING,
    LEAVING,
    api_keys,
    attempts,
    events,
    idempotency_keys,
    job_count_changes,
    job_flow,
    jobs,
    memberships,
    operations,
    users,
    workspaces,
)
from . import counts

AT_ONCE = 200
"""How many rows are copied in one transaction: with documents of 1 MiB they fit into memory."""

NEAR = 1_000_000
"""How far an id must be from those that the target gives out."""

REFUSAL = "jobapi: the workspace is being moved"
"""How the triggers' message begins; ``store.faults`` knows it."""

# The others belong to jobs, which the triggers guard.
_GUARDED = (jobs, operations, memberships, api_keys, idempotency_keys)
_REST = (memberships, api_keys, operations, idempotency_keys, job_flow)


class CannotMove(Exception):
    """The workspace cannot be moved; the message says why."""


@dataclass(frozen=True)
class Ids:
    """The ids in the target, by those in the source."""

    users: Mapping[int, int]
    keys: Mapping[int, int]

    def actor(self, actor: str | None) -> str | None:
        """An actor such as ``user:1`` by its id in the target."""
        if actor is None:
            return None
        kind, _, number = actor.partition(":")
        known = self.users if kind == "user" else self.keys
        return f"{kind}:{known.get(int(number), int(number))}"

    def row(self, table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the source as the target has it, without the ids that are internal."""
        # The names of columns are a subclass of str, which no JSON object takes.
        values = {str(name): value for name, value in row.items()}
        if table in (jobs, events):
            del values["id"]
        if table is events:
            # Before all events that the target writes.
            values["xid"] = 0
        for name in values.keys() & {"created_by", "user_id"}:
            values[name] = self.users[values[name]]
        for name in values.keys() & {"changed_by", "actor", "caller"}:
            values[name] = self.actor(values[name])
        if table is api_keys:
            values["id"] = self.keys[values["id"]]
        return values


# In the source


def freeze(source: Connection, workspace_id: int) -> AnyRow:
    """Let nothing in a workspace change any more; returns its row.

    Creating the triggers waits for transactions that write, so all changes before it are committed.
    Raises ``CannotMove`` if there is no such workspace, and while an operation runs in it.
    """
    row = source.execute(
        select(workspaces).where(workspaces.c.id == workspace_id, workspaces.c.deleted_at.is_(None))
    ).first()
    if row is None:
        raise CannotMove(f"There is no workspace {workspace_id}.")
    running = select(operations.c.id).where(
        operations.c.workspace_id == workspace_id, operations.c.status == OperationStatus.RUNNING
    )
    if source.execute(running.limit(1)).first() is not None:
        raise CannotMove("An operation is running in the workspace. Wait for its end, or stop it.")
    if row.move is None:
        for statement in _triggers(dialect_name(source), workspace_id):
            source.exec_driver_sql(statement)
        source.execute(
            update(workspaces).where(workspaces.c.id == workspace_id).values(move=LEAVING)
        )
    return row


def thaw(source: Connection, workspace_id: int, *, moved: bool) -> None:
    """End the guard of a workspace; if it has been ``moved``, it is deleted here."""
    for statement in _no_triggers(dialect_name(source), workspace_id):
        source.exec_driver_sql(statement)
    source.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id)
        .values(move=None, deleted_at=DbNow() if moved else None)
    )


def _triggers(dialect: str, workspace_id: int) -> Iterator[str]:
    name = f"jobapi_moving_{workspace_id}"
    if dialect == "postgresql":
        yield (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'JM001'; END $$"
        )
    for table in _GUARDED:
        for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            if table is api_keys and event == "UPDATE":
                # Not the time of the last use.
                event = "UPDATE OF role, revoked_at, expires_at, job_types, name"
            trigger = f"{name}_{table.name.removeprefix('jobapi_')}_{event[:6].lower()}"
            head = f"CREATE TRIGGER {trigger} BEFORE {event} ON {table.name} FOR EACH ROW"
            when = f"{row}.workspace_id = {workspace_id}"
            if dialect == "postgresql":
                yield f"{head} WHEN ({when}) EXECUTE FUNCTION {name}()"
            else:
                yield f"{head} WHEN {when} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"


def _no_triggers(dialect: str, workspace_id: int) -> Iterator[str]:
    name = f"jobapi_moving_{workspace_id}"
    if dialect == "postgresql":
        yield f"DROP FUNCTION IF EXISTS {name}() CASCADE"
        return
    for table in _GUARDED:
        for event in ("insert", "update", "delete"):
            yield f"DROP TRIGGER IF EXISTS {name}_{table.name.removeprefix('jobapi_')}_{event}"


def fold(source: Connection) -> bool:
    """Add the newest changes of the counts to the throughput; returns whether there are more."""
    return counts.fold(source) > 0


# Both


def is_there(session: Connection, workspace_id: int) -> bool:
    """Whether a database has the workspace, complete and visible."""
    found = select(workspaces.c.id).where(
        workspaces.c.id == workspace_id, workspaces.c.deleted_at.is_(None)
    )
    return session.execute(found).first() is not None


def prepare(source: Connection, target: Connection, workspace: AnyRow) -> Ids:
    """Make the hidden workspace in the target, with its users; returns the ids.

    Raises ``CannotMove`` if the target has another workspace with this id, or will have.
    """
    here = target.execute(select(workspaces).where(workspaces.c.id == workspace.id)).first()
    if here is not None and here.move != ARRIVING:
        raise CannotMove(f"The target has a workspace {workspace.id} of its own.")
    if here is None and abs(_last_id(target, workspaces) - workspace.id) < NEAR:
        raise CannotMove(
            f"The target gives out ids near {workspace.id}. Prepare each cell with a range of its "
            "own: jobapi init --first-id."
        )
    by_id = _users(source, target, workspace)
    if here is None:
        values = {**workspace._asdict(), "created_by": by_id[workspace.created_by]}
        values |= {"move": ARRIVING, "deleted_at": DbNow()}
        target.execute(insert(workspaces).values(values))
    mine = select(api_keys.c.id, api_keys.c.key_hash).where(api_keys.c.workspace_id == workspace.id)
    known = {row.key_hash: row.id for row in target.execute(mine)}
    keys: dict[int, int] = {}
    for row in source.execute(mine):
        keys[row.id] = known.get(row.key_hash) or _free_id(target, api_keys, row.id, keys.values())
    return Ids(by_id, keys)


def _users(source: Connection, target: Connection, workspace: AnyRow) -> dict[int, int]:
    """All users whom the workspace's rows name, by id, with their ids in the target."""
    named = {workspace.created_by}
    for column in (
        memberships.c.user_id,
        api_keys.c.user_id,
        operations.c.created_by,
        jobs.c.created_by,
    ):
        mine = column.table.c.workspace_id == workspace.id
        named |= set(source.scalars(select(column).where(mine).distinct()))
    for column in (
        events.c.actor,
        jobs.c.changed_by,
        operations.c.actor,
        idempotency_keys.c.caller,
    ):
        mine = column.table.c.workspace_id == workspace.id
        actors = source.scalars(select(column).where(mine, column.like("user:%")).distinct())
        named |= {int(actor.removeprefix("user:")) for actor in actors if actor is not None}
    found: dict[int, int] = {}
    for user in source.execute(select(users).where(users.c.id.in_(named)).order_by(users.c.id)):
        here = target.scalar(select(users.c.id).where(users.c.username == user.username))
        if here is None:
            here = _free_id(target, users, user.id)
            # An administrator of one cell is not one of another.
            values = {**user._asdict(), "id": here, "is_admin": False}
            target.execute(insert(users).values(values))
        found[user.id] = here
    return found


def _free_id(target: Connection, table: Table, wanted: int, taken: Any = ()) -> int:
    """An id that the target does not use, and will not give out: the wanted one if possible."""
    last = _last_id(target, table)
    in_use = target.execute(select(table.c.id).where(table.c.id == wanted)).first()
    if in_use is None and wanted not in taken and abs(wanted - last) >= NEAR:
        return wanted
    if dialect_name(target) == "postgresql":
        sequence = func.pg_get_serial_sequence(table.name, "id")
        return int(target.execute(select(func.nextval(sequence))).scalar_one())
    number = int(max(last, *taken, 0)) + 1
    _restart(target, table, number + 1)
    return number


def _last_id(session: Connection, table: Table) -> int:
    """The last id that the database has given out; 0: none yet."""
    if dialect_name(session) == "sqlite":
        query = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
        return int(session.execute(query, {"name": table.name}).scalar() or 0)
    sequence = session.scalar(select(func.pg_get_serial_sequence(table.name, "id")))
    # The name comes from the database itself.
    query = text(
        f"SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence}"  # noqa: S608
    )
    return int(session.execute(query).scalar_one())


def copy_jobs(
    source: Connection, target: Connection, workspace_id: int, ids: Ids, after: int
) -> int | None:
    """Copy the jobs that follow the one with the source's id ``after``, with their attempts.

    Returns the id of the last one; None if there are no more.
    """
    mine = jobs.c.workspace_id == workspace_id
    rows = source.execute(
        select(jobs).where(mine, jobs.c.id > after).order_by(jobs.c.id).limit(AT_ONCE)
    ).all()
    if not rows:
        return None
    _insert(target, jobs, [ids.row(jobs, row._asdict()) for row in rows])
    # What the triggers have written: these jobs were not created now.
    target.execute(delete(events).where(events.c.workspace_id == workspace_id))
    here = job_count_changes.c.workspace_id == workspace_id
    target.execute(update(job_count_changes).where(here).values(at=None))
    names = {row.id: row.job_id for row in rows}
    tried = source.execute(select(attempts).where(attempts.c.job.in_(names))).all()
    if tried:
        found = select(jobs.c.job_id, jobs.c.id).where(
            jobs.c.workspace_id == workspace_id, jobs.c.job_id.in_(names.values())
        )
        by_name = {row.job_id: row.id for row in target.execute(found)}
        made = [
            {**ids.row(attempts, row._asdict()), "job": by_name[names[row.job]]} for row in tried
        ]
        _insert(target, attempts, made)
    return int(rows[-1].id)


def copied_jobs(source: Connection, target: Connection, workspace_id: int) -> int:
    """The source's id of the last job that the target has; 0: none."""
    last = target.scalar(
        select(jobs.c.job_id)
        .where(jobs.c.workspace_id == workspace_id)
        .order_by(jobs.c.id.desc())
        .limit(1)
    )
    found = source.scalar(
        select(jobs.c.id).where(jobs.c.workspace_id == workspace_id, jobs.c.job_id == last)
    )
    return int(found or 0)


def forget_events(target: Connection, workspace_id: int) -> bool:
    """Delete some events of the target's copy; returns whether there may be more."""
    some = select(events.c.id).where(events.c.workspace_id == workspace_id).limit(10 * AT_ONCE)
    gone: Any = target.execute(delete(events).where(events.c.id.in_(some)))
    return bool(gone.rowcount)


def copy_events(
    source: Connection, target: Connection, workspace_id: int, ids: Ids, after: tuple[int, int]
) -> tuple[int, int] | None:
    """Copy the events that follow a position of the source; returns the next, None at the end."""
    rows = _events(source, workspace_id, after)
    if not rows:
        return None
    _insert(target, events, [ids.row(events, row._asdict()) for row in rows])
    return rows[-1].xid, rows[-1].id


def _events(session: Connection, workspace_id: int, after: tuple[int, int]) -> Sequence[AnyRow]:
    c = events.c
    return session.execute(
        select(events)
        .where(c.workspace_id == workspace_id, tuple_(c.xid, c.id) > tuple_(*after))
        .order_by(c.xid, c.id)
        .limit(10 * AT_ONCE)
    ).all()


def copy_rest(source: Connection, target: Connection, workspace_id: int, ids: Ids) -> None:
    """Copy members, keys, operations, idempotency keys and throughput, all of them."""
    for table in _REST:
        mine = table.c.workspace_id == workspace_id
        target.execute(delete(table).where(mine))
        rows = source.execute(select(table).where(mine)).all()
        for start in range(0, len(rows), AT_ONCE):
            part = [ids.row(table, row._asdict()) for row in rows[start : start + AT_ONCE]]
            _insert(target, table, part)


def digests(session: Connection, workspace_id: int, ids: Ids | None) -> dict[str, str]:
    """A digest of all rows of a workspace for each table; equal for equal rows.

    ``ids`` translates the rows of the source.
    """
    same = ids or Ids(_Same(), _Same())
    found = {}
    for table in (jobs, events, *_REST):
        whole = hashlib.sha256()
        n = 0
        for row in _all_rows(session, table, workspace_id):
            values = same.row(table, row._asdict())
            values.pop("xid", None)
            whole.update(orjson.dumps(values, option=orjson.OPT_SORT_KEYS))
            n += 1
        found[table.name] = f"{n} rows, {whole.hexdigest()}"
    tried = (
        select(jobs.c.job_id, *(c for c in attempts.c if c.name != "job"))
        .join_from(attempts, jobs, jobs.c.id == attempts.c.job)
        .where(jobs.c.workspace_id == workspace_id)
        .order_by(jobs.c.id, attempts.c.attempt)
    )
    whole = hashlib.sha256()
    for row in session.execute(tried):
        whole.update(orjson.dumps(tuple(row)))
    found[attempts.name] = whole.hexdigest()
    kinds = counts.kinds(session, lambda c: [c.workspace_id == workspace_id])
    found["counts"] = str(sorted(tuple(kind) for kind in kinds))
    return found


class _Same(dict[int, int]):
    def __missing__(self, key: int) -> int:
        return key


def _all_rows(session: Connection, table: Table, workspace_id: int) -> Iterator[AnyRow]:
    if table is jobs:
        after = 0
        while rows := session.execute(
            select(jobs)
            .where(jobs.c.workspace_id == workspace_id, jobs.c.id > after)
            .order_by(jobs.c.id)
            .limit(AT_ONCE)
        ).all():
            yield from rows
            after = rows[-1].id
    elif table is events:
        position = (-1, -1)
        while rows := _events(session, workspace_id, position):
            yield from rows
            position = rows[-1].xid, rows[-1].id
    else:
        key = [cast_type(column, String) for column in table.primary_key]
        mine = table.c.workspace_id == workspace_id
        yield from session.execute(select(table).where(mine).order_by(*key))


def show(target: Connection, workspace_id: int) -> None:
    """Make the complete workspace visible in the target."""
    target.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id, workspaces.c.move == ARRIVING)
        .values(move=None, deleted_at=None)
    )


def give_up(target: Connection, workspace_id: int) -> None:
    """Let the maintenance of the target delete an incomplete copy."""
    target.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id, workspaces.c.move == ARRIVING)
        .values(move=None)
    )


def _insert(target: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    names = tuple(rows[0])
    target.execute(insert_records(target, table, names), records(target, rows))


# Ranges of ids


def start_ids(session: Connection, first: int) -> None:
    """Let the ids of users, workspaces, keys and operations begin with ``first``.

    Raises ``CannotMove`` if there are rows with lower ids.
    """
    for table in (users, workspaces, api_keys, operations):
        if _last_id(session, table) >= first - 1:
            continue
        if session.execute(select(table.c.id).limit(1)).first() is not None:
            raise CannotMove(
                f"{table.name} has rows already; only a new database gets another first id."
            )
        _restart(session, table, first)


def _restart(session: Connection, table: Table, first: int) -> None:
    if dialect_name(session) == "postgresql":
        session.exec_driver_sql(f"ALTER TABLE {table.name} ALTER id RESTART WITH {int(first)}")
        return
    given = {"name": table.name, "last": first - 1}
    session.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), given)
    session.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), given)
