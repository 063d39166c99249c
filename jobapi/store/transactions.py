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

from ..errors import Unavailable
from .connections import Executor, dialect_name, run_on_driver
from .faults import is_deadlock, violates

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_REPEATS = 10
"""How often a transaction is repeated that conflicts with other transactions."""

BY_KEY = ("seqscan", "indexscan")
"""Planner settings for statements that find rows by their keys, or by the content of documents.

The scans that are named are switched off. That leaves bitmap scans, which need a condition. So a
planner whose statistics are those of a small table, or that expects to search every partition, does
not read whole tables.
"""

IN_ORDER = ("seqscan", "bitmapscan", "sort")
"""Planner settings for statements that read only the first rows in the order of an index."""

_PLANNER = "jobapi_planner"
"""The key in ``Connection.info`` of the planner settings of a ``transaction`` that is open."""


def atomic(session: Executor, *, planner: Sequence[str] = ()) -> AbstractContextManager[Any]:
    """Run the statements inside in one transaction: the caller's, or a new one.

    A connection in autocommit mode gets a transaction, which begins and ends here. In a
    transaction that is open already, the statements become part of it. ``planner`` is
    ``BY_KEY`` or ``IN_ORDER``: what Postgres's planner must not use. A new transaction sets
    it together with the BEGIN, without another round trip; in a host's transaction the
    previous settings are restored afterwards.
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
    first, or after a deadlock, the service runs again, unless the transaction is the caller's.
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
    """Run a transaction, and repeat it after a deadlock, or if one of these indexes refuses a row.

    It is run only once if the caller has a transaction open, which has to be rolled back first.
    Raises ``Unavailable`` if it fails ``MAX_REPEATS`` times.
    """
    last: DBAPIError | None = None
    if not isinstance(session, Connection) or not _commits_each_statement(session):
        return run()
    for _ in range(MAX_REPEATS):
        try:
            return run()
        except DBAPIError as error:
            if not is_deadlock(error) and not any(violates(error, index) for index in after):
                raise
            last = error
    raise Unavailable("Other requests keep coming first. Try again.") from last


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
        # The rollback that has to follow restores the settings.
        failed = True
        raise
    finally:
        if not failed:
            _set(connection, before)
            if planned is not None:
                connection.info[_PLANNER] = planned


@contextmanager
def transaction(connection: Connection, *, planner: Sequence[str] = ()) -> Iterator[Connection]:
    """A transaction on a connection in autocommit mode; ``planner`` as in ``atomic``.

    On SQLite it takes the write lock at once. If a transaction read first and wrote
    later, SQLite would refuse the write, without waiting, if another transaction had
    written in between.
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
def savepoint(session: Executor) -> Iterator[None]:
    """A part of a transaction that is taken back if it raises; the rest of it goes on."""
    connection = session if isinstance(session, Connection) else session.connection()
    _command(connection, "SAVEPOINT jobapi_part")
    try:
        yield
    except BaseException:
        if not connection.invalidated:
            _command(connection, "ROLLBACK TO SAVEPOINT jobapi_part")
        raise
    _command(connection, "RELEASE SAVEPOINT jobapi_part")


@contextmanager
def snapshot(connection: Connection) -> Iterator[Connection]:
    """A read-only transaction, in which all statements see the same moment."""
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
        # The next statement gets another connection.
        connection.rollback()
        return
    driver_connection: Any = connection.connection.driver_connection
    if getattr(driver_connection, "in_transaction", True) is False:
        # SQLite rolls back by itself if the disk is full.
        return
    try:
        _command(connection, "ROLLBACK")
    except SQLAlchemyError as error:
        connection.invalidate(error)
        connection.rollback()


def once_more(connection: Connection, ask: Callable[[], T]) -> T:
    """Run ``ask``, and repeat it on another connection if the pool's connection was dead.

    A database that restarts closes all connections; the pool drops them when the first one fails.
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
    """Set what Postgres's planner must not use until the end of the transaction: see ``atomic``."""
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
    # Plans with a scan that is switched off count as expensive, and JIT compiles expensive plans.
    ways = [f"SET LOCAL enable_{way} = off" for way in planner]
    return "; ".join([begin, *ways, *(["SET LOCAL jit = off"] if ways else [])])


def _command(connection: Connection, sql: str) -> None:
    if connection.dialect.driver == "psycopg":
        run_on_driver(connection, sql, None, prepare=False)
    else:
        connection.exec_driver_sql(sql)
