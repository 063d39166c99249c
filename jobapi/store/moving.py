"""What keeps a workspace unchanged while it moves to another database: a mark and triggers.

The mark (``Workspace.move``) tells requests and the maintenance to leave the workspace alone. The
triggers refuse writes that do not look at the mark, such as those of a transaction that began
before. They exist only during a move. Those of a table are created in a transaction of their own,
so that one table at a time is locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, select, text

from .connections import dialect_name
from .tables import (
    api_keys,
    events,
    idempotency_keys,
    job_flow,
    job_log_heads,
    job_logs,
    job_types,
    jobs,
    memberships,
    operations,
    schedules,
    webhook_deliveries,
    webhooks,
    workers,
    workspaces,
)

NOT_MOVING = workspaces.c.move.is_(None)
"""The condition that a workspace is not being moved, for a query of workspaces."""


def not_moving(workspace_id: ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a row does not belong to a workspace that is being moved.

    The maintenance must leave such rows out. In the source a trigger would make the whole statement
    fail, for all workspaces. In the target the copy would differ from the original.
    """
    return workspace_id.not_in(select(workspaces.c.id).where(~NOT_MOVING))


class Guard(NamedTuple):
    """The triggers on a table.

    They refuse ``statements``, except for updates of the columns ``free``.
    """

    table: Table
    statements: tuple[str, ...] = ("INSERT", "UPDATE", "DELETE")
    free: tuple[str, ...] = ()

    def _event(self, statement: str) -> str:
        if statement != "UPDATE" or not self.free:
            return statement
        guarded = [column.name for column in self.table.c if column.name not in self.free]
        return f"UPDATE OF {', '.join(guarded)}"


# Attempts only change together with their jobs.
GUARDS = (
    Guard(workspaces, ("UPDATE", "DELETE"), free=("move", "deleted_at")),
    Guard(jobs),
    Guard(operations),
    Guard(memberships),
    Guard(api_keys, free=("last_used_at",)),
    Guard(idempotency_keys),
    Guard(job_types),
    Guard(workers),
    Guard(job_log_heads),
    Guard(job_logs),
    Guard(schedules),
    # Not the position: ``events.put_restored_first`` changes it, too.
    Guard(webhooks, free=("position",)),
    Guard(webhook_deliveries),
    # Not UPDATE: ``events.put_restored_first`` numbers all events of a restored database.
    Guard(events, ("INSERT", "DELETE")),
    # Changes that were made before are still added to the throughput.
    Guard(job_flow, ("DELETE",)),
)

_MESSAGE = "jobapi: the workspace is being moved"

_PRESENT = {
    "postgresql": text(
        "SELECT tgname FROM pg_trigger"
        " WHERE starts_with(tgname, :prefix) AND pg_table_is_visible(tgrelid)"
    ),
    "sqlite": text(
        "SELECT name FROM sqlite_master"
        " WHERE type = 'trigger' AND substr(name, 1, length(:prefix)) = :prefix"
    ),
}


def _function(workspace_id: int) -> str:
    return f"jobapi_moving_{int(workspace_id)}"


def _names(workspace_id: int, guard: Guard) -> Iterator[tuple[str, str]]:
    table = guard.table.name.removeprefix("jobapi_")
    for statement in guard.statements:
        yield f"{_function(workspace_id)}_{table}_{statement.lower()}", statement


def _present(session: Connection, workspace_id: int) -> set[str]:
    given = {"prefix": f"{_function(workspace_id)}_"}
    return set(session.scalars(_PRESENT[dialect_name(session)], given))


def is_guarded(session: Connection, workspace_id: int) -> bool:
    """Whether all triggers are there."""
    wanted = {name for guard in GUARDS for name, _ in _names(workspace_id, guard)}
    return wanted <= _present(session, workspace_id)


def put_guard(session: Connection, workspace_id: int, guard: Guard) -> None:
    """Create the triggers on a table that are missing.

    On Postgres this waits for all transactions that have written into the table.
    """
    function, table = _function(workspace_id), guard.table
    on_postgres = dialect_name(session) == "postgresql"
    if on_postgres:
        session.exec_driver_sql(
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" RAISE EXCEPTION '{_MESSAGE}' USING ERRCODE = 'JM001'; END $$"
        )
    present = _present(session, workspace_id)
    column = "id" if table is workspaces else "workspace_id"
    for name, statement in _names(workspace_id, guard):
        if name in present:
            continue
        row = "NEW" if statement == "INSERT" else "OLD"
        when = f"{row}.{column} = {int(workspace_id)}"
        head = f"CREATE TRIGGER {name} BEFORE {guard._event(statement)} ON {table.name}"
        if on_postgres:
            body = f"WHEN ({when}) EXECUTE FUNCTION {function}()"
        else:
            body = f"WHEN {when} BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
        session.exec_driver_sql(f"{head} FOR EACH ROW {body}")


def drop_guard(session: Connection, workspace_id: int, guard: Guard) -> None:
    """Drop the triggers on a table. On Postgres this waits for all transactions that use it."""
    present = _present(session, workspace_id)
    on_table = f" ON {guard.table.name}" if dialect_name(session) == "postgresql" else ""
    for name, _ in _names(workspace_id, guard):
        if name in present:
            session.exec_driver_sql(f"DROP TRIGGER {name}{on_table}")


def drop_guards(session: Connection, workspace_id: int) -> None:
    """Drop all remaining triggers, and their function."""
    for guard in GUARDS:
        drop_guard(session, workspace_id, guard)
    if dialect_name(session) == "postgresql":
        session.exec_driver_sql(f"DROP FUNCTION IF EXISTS {_function(workspace_id)}()")
