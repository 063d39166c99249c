"""Transactions on connections in autocommit mode, and planner settings inside them.

A request that only reads costs one round trip and no BEGIN. A service whose
statements belong together uses ``atomic``, or is ``transactional``. If a transaction is
open already, as in a host application's session, these join it; otherwise they start one
and commit it. So services never commit a caller's transaction, and callers need not know
which services write more than one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Index, func, select, true
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .connections import Executor, dialect_name, run_on_driver
from .faults import is_deadlock, violates

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_REPEATS = 10
"""How often a transaction is run again that another one was in the way of."""

BY_KEY = ("seqscan", "indexscan")
"""For statements that go to rows by their keys in a table of any size, or by what documents have.

Only bitmap scans are left, which need a condition: a planner whose statistics are those of a small
table, or that takes each partition for one to be searched, does not read all of it.
"""

IN_ORDER = ("seqscan", "bitmapscan", "sort")
"""For statements that want the first rows in the order of an index, and no others."""

_PLANNER = "jobapi_planner"
"""The key in ``Connection.info`` of the planner settings of a ``transaction`` that is open."""


def atomic(session: Executor, *, planner: Sequence[str] = ()) -> AbstractContextManager[Any]:
    """Make the statements inside all or nothing, no matter who commits them.

    A connection in autocommit mode gets a transaction, which begins and ends here. In a
    transaction that is open already, the statements become part of it. ``planner`` are the
    ways in which Postgres shall not plan them: ``BY_KEY`` or ``IN_ORDER``. They come with
    the BEGIN, without a round trip of their own; in a host's transaction they are set and
    taken back afterwards.
    """
    connection = session if isinstance(session, Connection) else session.connection()
    if isinstance(session, Connection) and _commits_each_statement(connection):
        return transaction(connection, planner=planner)
    if planner and connection.dialect.name == "postgresql":
        return _planning(connection, planner)
    return nullcontext()


def transactional(
    *, planner: Sequence[str] = (), repeat_after: Sequence[Index] = ()
) -> Callable[[F], F]:
    """Decorate a service so that it runs in ``atomic`` on the session that it is given.

    If one of the unique indexes ``repeat_after`` refuses a row, because another transaction was
    first, the service runs again, unless the transaction is the caller's.
    """

    def decorator(service: F) -> F:
        @wraps(service)
        def whole(session: Executor, *args: Any, **kwargs: Any) -> Any:
            def run() -> Any:
                with atomic(session, planner=planner):
                    return service(session, *args, **kwargs)

            return repeating(session, run, repeat_after) if repeat_after else run()

        return cast(F, whole)

    return decorator


def repeating(session: Executor, run: Callable[[], T], after: Sequence[Index]) -> T:
    """Run a transaction, and run it again if one of these unique indexes refuses a row."""
    if not isinstance(session, Connection) or not _commits_each_statement(session):
        return run()
    for _ in range(MAX_REPEATS):
        try:
            return run()
        except DBAPIError as error:
            if not is_deadlock(error) and not any(violates(error, index) for index in after):
                raise
    return run()


def _commits_each_statement(connection: Connection) -> bool:
    """Whether a connection is in autocommit mode and outside a transaction, as its driver says."""
    # Not ``driver_connection``, which is None once a connection has left the pool.
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite":
        return driver.isolation_level is None and not driver.in_transaction
    if not driver.autocommit:
        return False
    # psycopg2 has it only in ``info``, which psycopg creates each time.
    of = driver.pgconn if connection.dialect.driver == "psycopg" else driver.info
    return not of.transaction_status


@contextmanager
def _planning(connection: Connection, planner: Sequence[str]) -> Iterator[None]:
    planned = connection.info.get(_PLANNER)
    if planned == planner:
        yield
        return
    names = [func.current_setting(name).label(name) for name in _settings(planner)]
    before = connection.execute(select(*names)).one()._asdict()
    plan_without(connection, planner)
    failed = False
    try:
        yield
    except DBAPIError:
        # The rollback that has to follow takes the settings back.
        failed = True
        raise
    finally:
        if not failed:
            _set(connection, before)
            if planned is not None:
                connection.info[_PLANNER] = planned


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
    connection.info[_PLANNER] = planner
    try:
        yield connection
        _command(connection, "COMMIT")
    except BaseException:
        _roll_back(connection)
        raise
    finally:
        if not connection.invalidated:
            connection.info.pop(_PLANNER, None)


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
        connection = executor if isinstance(executor, Connection) else executor.connection()
        _set(connection, _settings(planner))
        if _PLANNER in connection.info:
            connection.info[_PLANNER] = planner


def _settings(planner: Sequence[str]) -> dict[str, str]:
    every = {*IN_ORDER, *BY_KEY}
    settings = {f"enable_{way}": "off" if way in planner else "on" for way in sorted(every)}
    return settings | {"jit": "off", "max_parallel_workers_per_gather": "0"}


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    connection.execute(select(*(func.set_config(*item, true()) for item in settings.items())))


def _begin(begin: str, planner: Sequence[str]) -> str:
    # A plan that is switched off counts as expensive, and expensive plans would be compiled.
    ways = [f"SET LOCAL enable_{way} = off" for way in planner]
    return "; ".join([begin, *ways, *(["SET LOCAL jit = off"] if ways else [])])


def _command(connection: Connection, sql: str) -> None:
    if connection.dialect.driver == "psycopg":
        run_on_driver(connection, sql, None, prepare=False)
    else:
        connection.exec_driver_sql(sql)
