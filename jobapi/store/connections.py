"""What services run their statements on, and how to bypass SQLAlchemy's execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson
import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from .faults import judge

Executor = Connection | Session | scoped_session[Session]
"""What a service runs its statements on: ours, or a host application's."""

AnyRow = Row[*tuple[Any, ...]]
"""A row of whatever columns; they are its attributes."""

OURS = "jobapi"
"""The execution option by which an engine is known to be ours, not a host application's."""


def dialect_name(executor: Executor) -> str:
    """``postgresql`` or ``sqlite``."""
    bind = executor if isinstance(executor, Connection) else executor.get_bind()
    return bind.dialect.name


def autocommit(engine: Engine) -> Engine:
    """The same engine and pool, with connections that commit each statement."""
    if engine.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def dumps(value: Any) -> str:
    """JSON for a column."""
    return orjson.dumps(value).decode()


class _Cursor(psycopg.RawCursor[tuple[Any, ...]]):
    """Runs one statement, again and again, on one connection whose settings do not change.

    A new cursor has to look up again how psycopg converts each parameter and column. For a short
    statement that takes longer than running it.
    """

    def __init__(self, connection: psycopg.Connection[Any], sql: str) -> None:
        super().__init__(connection, row_factory=tuple_row)
        # psycopg compares statements by identity.
        self._sql = sql

    def run(self, parameters: Sequence[Any] | None, *, prepare: bool) -> Sequence[tuple[Any, ...]]:
        """Run it; returns its rows. Raises psycopg's errors."""
        self.execute(self._sql, parameters, prepare=prepare)
        result: Any = self.pgresult
        try:
            # Not ``description``, which makes an object for each column.
            return self.fetchall() if result.nfields else ()
        finally:
            # Free the result, which may be megabytes: the statement may not run again for hours.
            self._reset()
            self._tx.set_pgresult(None)


_CURSORS = "jobapi_cursors"
"""The key in ``Connection.info`` of the cursors of a connection of ours, by statement."""

_MAX_CURSORS = 200


def run_on_driver(
    connection: Connection, sql: str, parameters: Sequence[Any] | None, *, prepare: bool
) -> Sequence[Sequence[Any]]:
    """Run a statement on psycopg directly; returns its rows, and raises SQLAlchemy's errors.

    ``parameters`` are the values of ``$1``, ``$2`` and so on; None: it has none.
    """
    pooled: Any = connection.connection
    try:
        if not connection.get_execution_options().get(OURS):
            # A host may change the encoding or the format of times, which a cursor remembers.
            return _Cursor(pooled.dbapi_connection, sql).run(parameters, prepare=prepare)
        cursors: dict[str, _Cursor] = pooled.info.setdefault(_CURSORS, {})
        # Taken out while it runs, because threads may share the connection, and left out after an
        # error, because it would keep the parameters in memory.
        cursor = cursors.pop(sql, None) or _Cursor(pooled.dbapi_connection, sql)
        rows = cursor.run(parameters, prepare=prepare)
        if len(cursors) >= _MAX_CURSORS:
            cursors.clear()
        cursors[sql] = cursor
        return rows
    except psycopg.Error as error:
        dialect = connection.dialect
        lost = dialect.is_disconnect(cast(Any, error), pooled.driver_connection, None)
        if not lost and connection.get_execution_options().get(OURS):
            fault = judge(error)
            lost = fault is not None and fault.reconnect
        if lost:
            # As SQLAlchemy does: the other connections in the pool are probably lost, too.
            pool: Any = connection.engine.pool
            pool._invalidate(pooled, error)
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql,
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=dialect,
        ) from error
