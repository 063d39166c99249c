"""Move a workspace to another database, a step at a time.

Nothing in the source changes while it leaves (``store.moving``). In the target the workspace is
hidden, like a deleted one, until it is complete. Each step may be repeated, so a move that was
interrupted continues when it is started again:

1. ``mark`` the workspace in the source, ``guard`` its tables and ``check_frozen``.
2. ``prepare`` a hidden workspace in the target.
3. ``copy`` each table in pages.
4. ``show`` the copy, if it is equal to the original.
5. ``hide`` the original, ``unguard`` the tables and ``release`` it to be deleted.

Each run of the command has a name, which it writes into the hidden workspace as its name. A step
that writes into the target first locks this row, if it still has the name of the run (``hold``). So
of two processes that move the same workspace only the one that began later continues, and neither
touches a copy that has become visible.

Ids of jobs, events and attempts are internal to a database, so they get new ones, in the same
order. The ids of the workspace and its webhooks stay, and the secrets of webhooks stay encrypted as
they are. Users are matched by name, and keys by their hash. Those that the target does not have are
copied, with their ids if these are free; so are operations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    delete,
    insert,
    literal,
    select,
    text,
    tuple_,
    update,
)

from ..rules.operations import OperationStatus
from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import AnyRow, dialect_name
from ..store.moving import Guard, drop_guard, drop_guards, is_guarded, put_guard
from ..store.records import insert_records, records
from ..store.tables import (
    ARRIVING,
    LEAVING,
    MAX_ID,
    api_keys,
    attempts,
    events,
    idempotency_keys,
    job_count_changes,
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
from ..store.transactions import IN_ORDER, atomic
from . import counts
from . import events as event_log

AT_ONCE = 200
"""How many rows one transaction copies: few enough for memory, with documents of 1 MiB."""

SMALL_AT_ONCE = 2_000
"""How many rows one transaction copies of tables without such documents."""

NEAR = 1_000_000
"""An id that the target will not assign soon is more than this above the last that it assigned."""

After = tuple[Any, ...]
"""The key of the last row of a page; empty before the first page."""

# In the order in which they are copied: jobs and events name keys by their ids in the target.
_KEYS: dict[Table, tuple[str, ...]] = {
    api_keys: ("id",),
    jobs: ("created_at", "id"),
    events: ("xid", "id"),
    memberships: ("user_id",),
    operations: ("id",),
    idempotency_keys: ("caller", "key"),
    job_flow: ("span", "at", "status", "job_type"),
    job_types: ("job_type",),
    workers: ("name", "actor"),
    job_log_heads: ("job",),
    job_logs: ("job", "number"),
    schedules: ("schedule_id",),
    webhooks: ("id",),
    webhook_deliveries: ("webhook_id", "created_at", "id"),
}
"""The order in which the rows of a workspace are read in pages. All but ``api_keys`` have an index
in this order."""

COPIED = tuple(_KEYS)
"""The tables that are copied; attempts are copied with their jobs."""

# Only for keys and jobs can a new run tell which rows were copied. It copies the others again.
REPEATED = frozenset(COPIED) - {api_keys, jobs}

_NEW_IDS = frozenset({jobs, events})
_SMALL = frozenset({events, job_flow, memberships, job_log_heads, job_logs})
_NOT_COMPARED: dict[Table, tuple[str, ...]] = {
    api_keys: ("id", "last_used_at"),
    jobs: ("id",),
    events: ("id", "xid"),
    operations: ("id",),
}
_ACTOR = re.compile(r"(user|key):([0-9]{1,10})")


class CannotMove(Exception):
    """The workspace cannot be moved; the message says why."""


# In the source


def find(session: Connection, workspace_id: int) -> AnyRow | None:
    """The row of a workspace, even of one that is hidden."""
    return session.execute(select(workspaces).where(workspaces.c.id == workspace_id)).first()


def mark(source: Connection, workspace_id: int) -> None:
    """Mark a workspace as leaving: requests and the maintenance skip it. Raises ``CannotMove``."""
    marked: Any = source.execute(
        update(workspaces)
        .where(
            workspaces.c.id == workspace_id,
            workspaces.c.deleted_at.is_(None),
            workspaces.c.move.is_(None) | (workspaces.c.move == LEAVING),
        )
        .values(move=LEAVING)
    )
    if not marked.rowcount:
        raise missing(workspace_id)


def missing(workspace_id: int) -> CannotMove:
    """The error for a workspace that does not exist."""
    return CannotMove(f"There is no workspace {workspace_id}.")


def guard(source: Connection, workspace_id: int, of: Guard) -> None:
    """Refuse changes of a workspace in a table. Raises ``CannotMove`` if it is not marked.

    On Postgres it waits for transactions that have written into the table, so their changes are
    seen afterwards.
    """
    row = _lock_source(source, workspace_id)
    if row is None or row.move != LEAVING:
        raise _undone()
    put_guard(source, workspace_id, of)


def unguard(source: Connection, workspace_id: int, of: Guard) -> None:
    """Allow changes in a table again."""
    _lock_source(source, workspace_id)
    drop_guard(source, workspace_id, of)


def release(source: Connection, workspace_id: int) -> None:
    """End the move in the source, after all tables are unguarded."""
    _lock_source(source, workspace_id)
    drop_guards(source, workspace_id)
    source.execute(update(workspaces).where(workspaces.c.id == workspace_id).values(move=None))


def _lock_source(source: Connection, workspace_id: int) -> AnyRow | None:
    # One process at a time changes the triggers. Inserts that refer to the row need not wait.
    return source.execute(
        select(workspaces).where(workspaces.c.id == workspace_id).with_for_update(key_share=True)
    ).first()


def _undone() -> CannotMove:
    return CannotMove("Another process has undone the move. Start it again if it is still wanted.")


def check_idle(source: Connection, workspace_id: int) -> None:
    """Raise ``CannotMove`` if the workspace has been deleted, or an operation is running."""
    row = find(source, workspace_id)
    if row is None or row.deleted_at is not None:
        raise missing(workspace_id)
    running = select(operations.c.id).where(
        operations.c.workspace_id == workspace_id, operations.c.status == OperationStatus.RUNNING
    )
    if source.execute(running.limit(1)).first() is not None:
        raise CannotMove("An operation is running in the workspace. Wait for its end, or stop it.")


def check_frozen(source: Connection, workspace_id: int) -> AnyRow:
    """The row of a workspace, if nothing in it can change. Raises ``CannotMove`` otherwise."""
    row = find(source, workspace_id)
    if row is None or row.move != LEAVING or not is_guarded(source, workspace_id):
        raise _undone()
    return row


def hide(source: Connection, workspace_id: int) -> None:
    """Mark the original as deleted. The maintenance deletes its rows after ``release``."""
    source.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id, workspaces.c.deleted_at.is_(None))
        .values(deleted_at=DbNow())
    )


def fold(source: Connection, workspace_id: int) -> bool:
    """Compact changes of the counts, unless the workspace has none left.

    Returns whether there may be more. Other workspaces still write such changes, so this does not
    wait until there are none at all.
    """
    of_workspace = job_count_changes.c.workspace_id == workspace_id
    if source.execute(select(job_count_changes.c.id).where(of_workspace).limit(1)).first() is None:
        return False
    counts.fold(source)
    return True


# In the target


def has_copy(target: Connection, workspace: AnyRow) -> bool:
    """Whether the target has the workspace, complete and visible."""
    here = find(target, workspace.id)
    return (
        here is not None
        and here.created_at == workspace.created_at
        and here.move is None
        and here.deleted_at is None
    )


def check_target(target: Connection, workspace: AnyRow) -> None:
    """Raise ``CannotMove`` if the target cannot take the workspace."""
    here = find(target, workspace.id)
    if here is None:
        if _will_give_out(target, workspaces, workspace.id):
            raise CannotMove(
                f"The target will give the id {workspace.id} to a new workspace. Prepare each cell "
                "with a range of ids of its own: jobapi init --first-id."
            )
    elif here.move == LEAVING:
        raise CannotMove(
            f"Workspace {workspace.id} is leaving the target. Complete or undo that move first."
        )
    elif here.move is None and here.deleted_at is not None:
        raise CannotMove("The target is still deleting its old copy; try again in a few minutes.")
    elif here.move is None or here.created_at != workspace.created_at:
        raise CannotMove(f"The target has a workspace {workspace.id} of its own.")


def prepare(source: Connection, target: Connection, workspace: AnyRow, run: str) -> None:
    """Create the hidden workspace in the target, or take over the one of an earlier run.

    Raises ``CannotMove`` as ``check_target`` does.
    """
    check_target(target, workspace)
    (values,) = _translate(source, target, workspaces, [workspace])
    values |= {"name": run, "move": ARRIVING, "deleted_at": DbNow()}
    target.execute(
        insert_or_ignore(dialect_name(target), workspaces).values(values).on_conflict_do_nothing()
    )
    target.execute(
        update(workspaces)
        .where(
            workspaces.c.id == workspace.id,
            workspaces.c.move == ARRIVING,
            workspaces.c.created_at == workspace.created_at,
        )
        .values(name=run)
    )
    hold(target, workspace.id, run)


def hold(target: Connection, workspace_id: int, run: str) -> None:
    """Lock the hidden workspace until the end of the transaction.

    Raises ``CannotMove`` if it is no longer hidden, or if another run has taken it over.
    """
    held = target.execute(
        select(workspaces.c.id)
        .where(
            workspaces.c.id == workspace_id,
            workspaces.c.move == ARRIVING,
            workspaces.c.name == run,
        )
        .with_for_update()
    ).first()
    if held is None:
        raise CannotMove("Another process has continued, completed or undone this move.")


def give_up(target: Connection, workspace: AnyRow) -> None:
    """Have the maintenance of the target delete an incomplete copy.

    Raises ``CannotMove`` if the copy is complete.
    """
    target.execute(
        update(workspaces)
        .where(
            workspaces.c.id == workspace.id,
            workspaces.c.move == ARRIVING,
            workspaces.c.created_at == workspace.created_at,
        )
        .values(move=None)
    )
    if has_copy(target, workspace):
        raise CannotMove("The target has the whole workspace. Start the move again to complete it.")


def forget(target: Connection, workspace_id: int, table: Table) -> bool:
    """Delete some rows of an incomplete copy; returns whether there may be more."""
    key = _key(table)
    if table is events and dialect_name(target) == "sqlite":
        # SQLite 3.40 does not look up pairs in an index that ends with the row's id.
        key = [events.c.id]
    mine = table.c.workspace_id == workspace_id
    some = select(*key).where(mine).limit(SMALL_AT_ONCE)
    gone: Any = target.execute(delete(table).where(mine, tuple_(*key).in_(some)))
    return bool(gone.rowcount)


def show(source: Connection, target: Connection, workspace: AnyRow) -> None:
    """Make the copy visible. Raises ``CannotMove`` if it differs from the original.

    Call it in one transaction with ``hold``.
    """
    there = _digests(
        source, workspace.id, lambda table, rows: _translate(source, target, table, rows)
    )
    here = _digests(target, workspace.id, lambda table, rows: [_values(row) for row in rows])
    wrong = [name for name in there if there[name] != here[name]]
    if counts.check(target, workspace.id):
        wrong.append("the totals")
    if wrong:
        raise CannotMove(
            f"The copy differs in {', '.join(wrong)}. Undo the move with --undo, and start it "
            "again a few minutes later."
        )
    (values,) = _translate(source, target, workspaces, [workspace])
    values |= {"move": None, "deleted_at": None}
    target.execute(update(workspaces).where(workspaces.c.id == workspace.id).values(values))


# Copying


def copied(source: Connection, target: Connection, workspace_id: int) -> After:
    """The key of the last job of the source that has been copied: the copy continues after it."""
    c = jobs.c
    newest = (
        select(c.job_id)
        .where(c.workspace_id == workspace_id)
        .order_by(c.created_at.desc(), c.id.desc())
    )
    last = target.scalar(newest.limit(1))
    found = source.execute(
        select(*_key(jobs)).where(c.workspace_id == workspace_id, c.job_id == last)
    ).first()
    return () if found is None else tuple(found)


def copy(
    source: Connection, target: Connection, workspace_id: int, table: Table, after: After
) -> After | None:
    """Copy the rows after a key; returns the key of the last one, None if there were none."""
    rows = _page(source, table, table.c.workspace_id == workspace_id, after)
    if not rows:
        return None
    values = _translate(source, target, table, rows)
    if table in _NEW_IDS:
        values = [{k: v for k, v in each.items() if k != "id"} for each in values]
    elif table in (api_keys, operations):
        if table is api_keys:
            known = _key_ids(target, [each["key_hash"] for each in values])
            values = [each for each in values if each["key_hash"] not in known]
        _drop_taken_ids(target, table, values)
    _insert(target, table, values)
    if table is jobs:
        _forget_creation(target, workspace_id)
        _copy_attempts(source, target, workspace_id, {row.id: row.job_id for row in rows})
    return tuple(getattr(rows[-1], name) for name in _KEYS[table])


def _forget_creation(target: Connection, workspace_id: int) -> None:
    """Undo what the triggers wrote for the copied jobs: their events, and their throughput."""
    target.execute(delete(events).where(events.c.workspace_id == workspace_id))
    c = job_count_changes.c
    target.execute(
        update(job_count_changes)
        .where(c.workspace_id == workspace_id, c.at.is_not(None))
        .values(at=None)
    )


def _copy_attempts(
    source: Connection, target: Connection, workspace_id: int, names: Mapping[int, str]
) -> None:
    """Copy the attempts of jobs; ``names`` are their ids in the source with their ``job_id``."""
    found = select(jobs.c.job_id, jobs.c.id).where(
        jobs.c.workspace_id == workspace_id, jobs.c.job_id.in_(names.values())
    )
    ids = {row.job_id: row.id for row in target.execute(found)}
    for rows in _attempts(source, names):
        _insert(target, attempts, [{**_values(row), "job": ids[names[row.job]]} for row in rows])


def _insert(target: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows in their order. Those with an ``id`` come first."""
    by_names: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_names.setdefault(tuple(row), []).append(row)
    for names, alike in sorted(by_names.items(), key=lambda item: -len(item[0])):
        if dialect_name(target) == "postgresql":
            target.execute(insert_records(target, table, names), records(target, alike))
        else:
            # SQLite's JSON functions do not read every floating-point number exactly.
            target.execute(insert(table), alike)


# Reading


def _key(table: Table) -> list[Any]:
    return [table.c[name] for name in _KEYS[table]]


def _after(columns: Sequence[Any], after: After) -> list[ColumnElement[bool]]:
    if not after:
        return []
    last = (literal(value, column.type) for column, value in zip(columns, after, strict=True))
    return [tuple_(*columns) > tuple_(*last)]


def _page(
    session: Connection, table: Table, mine: ColumnElement[bool], after: After
) -> Sequence[AnyRow]:
    """The next page of a workspace's rows, in the order of the key."""
    key = _key(table)
    size = SMALL_AT_ONCE if table in _SMALL else AT_ONCE
    query = select(table).where(mine, *_after(key, after)).order_by(*key).limit(size)
    # Without this the planner might sort all remaining rows again for each page.
    with atomic(session, planner=IN_ORDER if table in (jobs, events, job_logs) else {}):
        return session.execute(query).all()


def _attempts(session: Connection, ids: Iterable[int]) -> Iterator[Sequence[AnyRow]]:
    """The attempts of jobs, in pages."""
    key = (attempts.c.job, attempts.c.attempt)
    after: After = ()
    query = select(attempts).where(attempts.c.job.in_(ids)).order_by(*key).limit(SMALL_AT_ONCE)
    while rows := session.execute(query.where(*_after(key, after))).all():
        yield rows
        after = rows[-1].job, rows[-1].attempt


def _values(row: AnyRow) -> dict[str, Any]:
    # Column names are of a subclass of str, which orjson does not accept as keys.
    return {str(name): value for name, value in row._asdict().items()}


class _Digest:
    """A digest of rows that does not depend on their order: databases sort texts differently."""

    def __init__(self) -> None:
        self.n = 0
        self._sum = 0

    def add(self, *row: Any) -> None:
        self.n += 1
        whole = hashlib.sha256(orjson.dumps(row, option=orjson.OPT_SORT_KEYS)).digest()
        self._sum = (self._sum + int.from_bytes(whole)) % 2**256

    @property
    def value(self) -> tuple[int, int]:
        return self.n, self._sum


def _digests(
    session: Connection,
    workspace_id: int,
    read: Callable[[Table, Sequence[AnyRow]], list[dict[str, Any]]],
) -> dict[str, tuple[int, int]]:
    """A digest of all rows of a workspace for each table; equal for equal rows.

    ``read`` turns rows into values with the ids of the target.
    """
    found = {table: _Digest() for table in (*COPIED, attempts)}
    for table in COPIED:
        digest, after = found[table], ()
        while rows := _page(session, table, table.c.workspace_id == workspace_id, after):
            for values in read(table, rows):
                for name in _NOT_COMPARED.get(table, ()):
                    del values[name]
                # The order of jobs and events must be the same.
                digest.add(digest.n if table in _NEW_IDS else 0, values)
            after = tuple(getattr(rows[-1], name) for name in _KEYS[table])
            if table is jobs:
                names = {row.id: row.job_id for row in rows}
                for tried in _attempts(session, names):
                    for row in tried:
                        found[attempts].add({**_values(row), "job": names[row.job]})
    return {table.name: digest.value for table, digest in found.items()}


# Ids


class _Reference(NamedTuple):
    """A user or a key that a document names: ``user_id`` 1, or an ``actor`` ``user:1``."""

    document: dict[str, Any]
    name: str
    kind: str
    id: int
    is_actor: bool = False

    def become(self, number: int) -> None:
        """Refer to the user or key with this id instead."""
        self.document[self.name] = f"{self.kind}:{number}" if self.is_actor else number


def _references(values: dict[str, Any]) -> Iterator[_Reference]:
    """All references of a row, also in the data of an event and the filter of an operation."""
    for document in (values, values.get("data"), values.get("filter")):
        if not isinstance(document, dict):
            continue
        for name, kind in (("created_by", "user"), ("user_id", "user"), ("key_id", "key")):
            if isinstance(document.get(name), int):
                yield _Reference(document, name, kind, document[name])
    for name in ("changed_by", "actor", "caller", "runs_as"):
        # A host may write any text.
        if found := _ACTOR.fullmatch(values.get(name) or ""):
            yield _Reference(values, name, found[1], int(found[2]), is_actor=True)


def _translate(
    source: Connection, target: Connection, table: Table, rows: Sequence[AnyRow]
) -> list[dict[str, Any]]:
    """Rows of the source with the ids of the target. Users that the target lacks are created."""
    translated = [_values(row) for row in rows]
    references = [each for values in translated for each in _references(values)]
    wanted: dict[str, set[int]] = {"user": set(), "key": set()}
    for each in references:
        if each.id <= MAX_ID:
            wanted[each.kind].add(each.id)
    ids = {
        "user": _user_ids(source, target, wanted["user"]) if wanted["user"] else {},
        "key": _same_keys(source, target, wanted["key"]) if wanted["key"] else {},
    }
    for each in references:
        # References to users that were deleted stay as they are.
        each.become(ids[each.kind].get(each.id, each.id))
    if table in (job_log_heads, job_logs):
        ids_of_jobs = _job_ids(source, target, rows)
        # Not those of jobs that were deleted a moment ago.
        translated = [
            {**values, "job": ids_of_jobs[values["job"]]}
            for values in translated
            if values["job"] in ids_of_jobs
        ]
    if table is events:
        for values in translated:
            # Orders them before all events that the target writes.
            values["xid"] = 0
    elif table is webhooks:
        for values in translated:
            values["position"] = _position(source, target, values)
    return translated


def _job_ids(source: Connection, target: Connection, rows: Sequence[AnyRow]) -> dict[int, int]:
    """The ids in the target of the jobs of rows, by their ids in the source."""
    c = jobs.c
    query = select(c.job_id, c.id).where(c.workspace_id.in_({row.workspace_id for row in rows}))
    wanted = c.id.in_({row.job for row in rows})
    names = {row.job_id: row.id for row in source.execute(query.where(wanted))}
    found = target.execute(query.where(c.job_id.in_(names)))
    return {names[row.job_id]: row.id for row in found}


def _position(source: Connection, target: Connection, webhook: Mapping[str, Any]) -> str:
    """How far a webhook is in the target's log: as many events follow there.

    If transactions were open at its position, it may get events again.
    """
    workspace_id = webhook["workspace_id"]
    position = event_log.position_of(webhook["position"])
    first = event_log.first_unread(source, workspace_id, position)
    unread = event_log.number_from(source, workspace_id, first)
    return event_log.before_last(target, workspace_id, unread).name


def _user_ids(source: Connection, target: Connection, wanted: set[int]) -> dict[int, int]:
    found = source.execute(select(users).where(users.c.id.in_(wanted)).order_by(users.c.id)).all()
    ids = _users_by_name(target, [user.username for user in found])
    lacking = [user for user in found if user.username not in ids]
    for user in lacking:
        # An administrator of one cell is not automatically one of another.
        values = {**_values(user), "is_admin": False}
        _drop_taken_ids(target, users, [values])
        target.execute(
            insert_or_ignore(dialect_name(target), users)
            .values(values)
            .on_conflict_do_nothing(index_elements=["username"])
        )
    if lacking:
        ids |= _users_by_name(target, [user.username for user in lacking])
    return {user.id: ids[user.username] for user in found}


def _users_by_name(target: Connection, names: Sequence[str]) -> dict[str, int]:
    rows = target.execute(select(users.c.username, users.c.id).where(users.c.username.in_(names)))
    return {row.username: row.id for row in rows}


def _same_keys(source: Connection, target: Connection, wanted: set[int]) -> dict[int, int]:
    query = select(api_keys.c.id, api_keys.c.key_hash).where(api_keys.c.id.in_(wanted))
    hashes = {row.id: row.key_hash for row in source.execute(query)}
    ids = _key_ids(target, list(hashes.values()))
    return {number: ids[hash_] for number, hash_ in hashes.items() if hash_ in ids}


def _key_ids(target: Connection, hashes: Sequence[str]) -> dict[str, int]:
    query = select(api_keys.c.key_hash, api_keys.c.id).where(api_keys.c.key_hash.in_(hashes))
    return {row.key_hash: row.id for row in target.execute(query)}


def _drop_taken_ids(target: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Remove ids that the target uses or will soon assign, so that it assigns new ones."""
    ids = [row["id"] for row in rows]
    taken = set(target.scalars(select(table.c.id).where(table.c.id.in_(ids))))
    for row in rows:
        if row["id"] in taken or _will_give_out(target, table, row["id"]):
            del row["id"]


def _will_give_out(target: Connection, table: Table, number: int) -> bool:
    """Whether the target will soon assign an id that it does not use yet.

    SQLite only assigns ids above the largest one, so it never assigns a copied id again.
    """
    if dialect_name(target) == "sqlite":
        return False
    return 0 < number - _last_id(target, table) <= NEAR


def _last_id(session: Connection, table: Table) -> int:
    """The last id that the database has assigned; before the first, the one below it."""
    if dialect_name(session) == "sqlite":
        query = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
    else:
        query = text(
            "SELECT coalesce(pg_sequence_last_value(seqrelid), seqstart - 1) FROM pg_sequence"
            " WHERE seqrelid = pg_get_serial_sequence(:name, 'id')::regclass"
        )
    return int(session.execute(query, {"name": table.name}).scalar() or 0)


def start_ids(session: Connection, first: int) -> None:
    """Start the ids of users, workspaces, keys and operations at ``first``.

    Raises ``CannotMove`` if there are rows with lower ids.
    """
    for table in (users, workspaces, api_keys, operations):
        if _last_id(session, table) >= first - 1:
            continue
        if session.execute(select(table.c.id).limit(1)).first() is not None:
            raise CannotMove(
                f"{table.name} has rows already; only a new database gets another first id."
            )
        if dialect_name(session) == "postgresql":
            session.exec_driver_sql(
                f"ALTER TABLE {table.name} ALTER id SET START WITH {int(first)} RESTART"
            )
            continue
        given = {"name": table.name, "last": first - 1}
        session.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), given)
        session.execute(
            text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), given
        )
