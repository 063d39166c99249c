"""What services run their statements on, and how to bypass SQLAlchemy's execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, cast

import orjson
import psycopg
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


def run_on_driver(
    connection: Connection, sql: str, parameters: Mapping[str, Any] | None, *, prepare: bool
) -> Sequence[Sequence[Any]]:
    """Run a statement on psycopg directly; returns its rows, and raises SQLAlchemy's errors."""
    pooled: Any = connection.connection
    try:
        with closing(pooled.cursor()) as cursor:
            cursor.execute(sql, parameters, prepare=prepare)
            rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else ()
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
