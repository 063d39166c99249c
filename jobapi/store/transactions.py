"""Transactions on connections in autocommit mode, and planner settings inside them.

A request that only reads costs one round trip and no BEGIN. A service whose
statements belong together uses ``atomic``, or is ``transactional``. If a transaction is
open already, as in a host application's session, these join it; otherwise they start one
and commit it. So services never commit a caller's transaction, and callers need not know
which services write more than one statement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Index, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..errors import Unavailable
from .connections import Executor, dialect_name, run_on_driver
from .faults import is_deadlock, violates
from .partitions import is_partitioned

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_REPEATS = 10
"""How often a transaction is repeated that conflicts with other transactions."""

Planner = Mapping[str, str]
"""Settings of Postgres's planner, which hold until the end of a transaction."""

BY_KEY: Planner = {"enable_seqscan": "off", "enable_indexscan": "off"}
"""For statements that find rows by their keys, or by the content of documents.

Only bitmap scans remain, and these need a condition. So a planner whose statistics are those of a
small table, or that expects to search every partition, does not read whole tables.
"""

IN_ORDER: Planner = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
}
"""For statements that read only the first rows in the order of an index."""

_NOTHING: Planner = {}

_KEEPING: Planner = {"plan_cache_mode": "force_generic_plan"}
"""Prepared statements are planned once per connection, for any parameters."""

_UNKNOWN: Planner = {"unknown": ""}
"""The value in ``Connection.info`` if an error leaves it unknown which settings are in effect."""

KEEP_SECONDS = 10.0
"""After this time a connection drops the plans that it kept, because the table may have grown.

A plan made for an empty table may use a poor index, but it lasts only this long, not until the next
ANALYZE. Behind a pooler, the plans that are dropped are those of the session that the pooler picks.
"""

_KEPT_SINCE = "jobapi_kept_since"
"""The key in ``Connection.info`` of when its plans were last dropped, on ``time.monotonic``."""

_PLANNER = "jobapi_planner"
"""The key in ``Connection.info`` of the planner settings of a ``transaction`` that is open."""


def atomic(
    session: Executor, *, planner: Planner = _NOTHING, keep_plans: bool = False
) -> AbstractContextManager[Any]:
    """Run the statements inside in one transaction: the caller's, or a new one.

    A connection in autocommit mode gets a transaction, which begins and ends here. In a
    transaction that is open already, the statements become part of it. ``planner`` is
    ``BY_KEY`` or ``IN_ORDER``. A new transaction sets it together with the BEGIN, without
    another round trip; in a host's transaction the previous settings are restored
    afterwards. With ``keep_plans``, a new transaction keeps the plans of statements that
    allow it (``Statement``) for ``KEEP_SECONDS``; not if the table of jobs is partitioned,
    because such a plan would have to consider every partition.
    """
    connection = session if isinstance(session, Connection) else session.connection()
    if isinstance(session, Connection) and _commits_each_statement(connection):
        if keep_plans and _can_keep_plans(connection):
            planner = {**planner, **_KEEPING}
        return transaction(connection, planner=planner)
    if planner and connection.dialect.name == "postgresql":
        return _planning(connection, planner)
    return nullcontext()


def keeps_plans(connection: Connection) -> bool:
    """Whether the transaction that is open on a connection was begun with ``keep_plans``."""
    return "plan_cache_mode" in connection.info.get(_PLANNER, _NOTHING)


def _can_keep_plans(connection: Connection) -> bool:
    if connection.dialect.driver != "psycopg":
        return False
    driver: Any = connection.connection.dbapi_connection
    return driver.prepare_threshold is not None and not is_partitioned(connection)


def transactional(
    *, planner: Planner = _NOTHING, keep_plans: bool = False, repeat_after: Sequence[Index] = ()
) -> Callable[[F], F]:
    """Decorate a service so that it runs in ``atomic`` on the session that it is given.

    If one of the unique indexes ``repeat_after`` refuses a row, because another transaction was
    first, or after a deadlock, the service runs again, unless the transaction is the caller's.
    """

    def decorator(service: F) -> F:
        @wraps(service)
        def whole(session: Executor, *args: Any, **kwargs: Any) -> Any:
            def run() -> Any:
                with atomic(session, planner=planner, keep_plans=keep_plans):
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
def _planning(connection: Connection, planner: Planner) -> Iterator[None]:
    planned = connection.info.get(_PLANNER)
    if planned is not None and planner.items() <= planned.items():
        yield
        return
    names = [func.current_setting(name).label(name) for name in _settings(planner, planned)]
    before = connection.execute(select(*names)).one()._asdict()
    set_planner(connection, planner)
    failed = False
    try:
        yield
    except DBAPIError:
        # The rollback that has to follow restores the settings.
        failed = True
        if planned is not None:
            connection.info[_PLANNER] = _UNKNOWN
        raise
    finally:
        if not failed:
            _set(connection, before)
            if planned is not None:
                connection.info[_PLANNER] = planned


@contextmanager
def transaction(connection: Connection, *, planner: Planner = _NOTHING) -> Iterator[Connection]:
    """A transaction on a connection in autocommit mode; ``planner`` as in ``atomic``.

    On SQLite it takes the write lock at once. If a transaction read first and wrote
    later, SQLite would refuse the write, without waiting, if another transaction had
    written in between.
    """
    immediate = connection.dialect.name == "sqlite"
    _command(connection, "BEGIN IMMEDIATE" if immediate else _begin(connection, "BEGIN", planner))
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
def snapshot(connection: Connection, *, planner: Planner = IN_ORDER) -> Iterator[Connection]:
    """A read-only transaction, in which all statements see the same moment.

    ``planner`` is as in ``atomic``: what a service in it would set first costs no round trip.
    """
    if connection.dialect.name == "sqlite":
        begin = "BEGIN"
    else:
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        begin = _begin(connection, begin, planner)
    _command(connection, begin)
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


def set_planner(executor: Executor, planner: Planner) -> None:
    """Set Postgres's planner until the end of the transaction: see ``atomic``."""
    if dialect_name(executor) == "postgresql":
        connection = executor if isinstance(executor, Connection) else executor.connection()
        planned = connection.info.get(_PLANNER)
        if planned is not None and planner.items() <= planned.items():
            return
        _set(connection, _settings(planner, planned))
        if planned is not None:
            connection.info[_PLANNER] = planner


def _settings(planner: Planner, planned: Planner | None) -> Planner:
    every = {*IN_ORDER, *BY_KEY}
    settings = {**dict.fromkeys(sorted(every), "on"), **_ALWAYS, **planner}
    # A plan that is kept must have been made with the settings of its own kind of transaction.
    keeps = planned is not None and planned.keys() & {*_KEEPING, *_UNKNOWN}
    return {**settings, "plan_cache_mode": "auto"} if keeps else settings


_ALWAYS = {"jit": "off", "max_parallel_workers_per_gather": "0"}
"""Plans with a scan that is switched off count as expensive, and JIT compiles expensive plans."""


def _set(connection: Connection, settings: Planner) -> None:
    _command(connection, _set_local(settings))


def _begin(connection: Connection, begin: str, planner: Planner) -> str:
    if not planner:
        return begin
    begin = f"{begin}; {_set_local({**planner, **_ALWAYS})}"
    return f"DISCARD PLANS; {begin}" if _has_old_plans(connection, planner) else begin


def _has_old_plans(connection: Connection, planner: Planner) -> bool:
    if not planner.keys() & _KEEPING.keys():
        return False
    now = time.monotonic()
    if now - connection.info.setdefault(_KEPT_SINCE, now) < KEEP_SECONDS:
        return False
    connection.info[_KEPT_SINCE] = now
    return True


def _set_local(settings: Planner) -> str:
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())


def _command(connection: Connection, sql: str) -> None:
    if connection.dialect.driver == "psycopg":
        run_on_driver(connection, sql, None, prepare=False)
    else:
        connection.exec_driver_sql(sql)
