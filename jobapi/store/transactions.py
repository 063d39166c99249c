"""Transactions on connections in autocommit mode, and planner settings inside them.

A request that only reads costs one round trip and no BEGIN. Writing more than
one statement takes a ``transaction``. Services take such a connection or a host
application's own session, and never commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    func,
    select,
    true,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .connections import Executor, dialect_name, run_on_driver

T = TypeVar("T")


BY_KEY = ("seqscan", "indexscan")
"""For statements that go to rows by their keys in a table of any size, or by what documents have.

Only bitmap scans are left, which need a condition: a planner whose statistics are those of a small
table, or that takes each partition for one to be searched, does not read all of it.
"""

IN_ORDER = ("seqscan", "bitmapscan", "sort")
"""For statements that want the first rows in the order of an index, and no others."""


@contextmanager
def transaction(connection: Connection, *, planner: Sequence[str] = ()) -> Iterator[Connection]:
    """All or nothing, on a connection in autocommit mode.

    SQLite takes the write lock at once: a transaction that starts by reading
    and then wants to write is refused there when another has written
    meanwhile, whatever the time it would wait. ``planner`` are the ways in which
    Postgres shall not plan: ``BY_KEY`` or ``IN_ORDER``.
    """
    immediate = connection.dialect.name == "sqlite"
    _command(connection, "BEGIN IMMEDIATE" if immediate else _begin("BEGIN", planner))
    try:
        yield connection
        _command(connection, "COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


@contextmanager
def snapshot(connection: Connection) -> Iterator[Connection]:
    """Several reads of one moment."""
    one_moment = " ISOLATION LEVEL REPEATABLE READ READ ONLY"
    _command(connection, "BEGIN" + (one_moment if connection.dialect.name != "sqlite" else ""))
    try:
        yield connection
        _command(connection, "COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: Connection) -> None:
    """End a failed transaction; never raises, which would hide the first error."""
    if connection.invalidated:
        # What comes next is asked on another connection.
        connection.rollback()
        return
    driver_connection: Any = connection.connection.driver_connection
    if getattr(driver_connection, "in_transaction", True) is False:
        # SQLite rolls back by itself where its disk is full.
        return
    try:
        _command(connection, "ROLLBACK")
    except SQLAlchemyError as error:
        connection.invalidate(error)
        connection.rollback()


def once_more(connection: Connection, ask: Callable[[], T]) -> T:
    """Ask, and ask again on another connection if the pool's connection was dead.

    The database closes connections when it restarts; all of them are dropped with the first.
    Only for work that is safe to repeat.
    """
    try:
        return ask()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        connection.rollback()
        return ask()


def plan_without(executor: Executor, planner: Sequence[str]) -> None:
    """Until the end of the transaction Postgres plans in all ways but these."""
    if dialect_name(executor) == "postgresql":
        every = {*IN_ORDER, *BY_KEY}
        settings = {f"enable_{way}": "off" if way in planner else "on" for way in sorted(every)}
        settings |= {"jit": "off", "max_parallel_workers_per_gather": "0"}
        executor.execute(select(*(func.set_config(*item, true()) for item in settings.items())))


def _begin(begin: str, planner: Sequence[str]) -> str:
    # What is never to be chosen counts as dear, and what is dear would be compiled.
    ways = [f"SET LOCAL enable_{way} = off" for way in planner]
    return "; ".join([begin, *ways, *(["SET LOCAL jit = off"] if ways else [])])


def _command(connection: Connection, sql: str) -> None:
    if connection.dialect.driver == "psycopg":
        run_on_driver(connection, sql, None, prepare=False)
    else:
        connection.exec_driver_sql(sql)
