"""Engines: how connections to the database are made, for how long they wait, when they are dropped.

Our engine has a separate pool even if the host application has an engine: a
request that holds a connection of the host's pool never waits for a second one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import AssertionPool, SingletonThreadPool

from .connections import OURS, autocommit, dumps
from .faults import judge
from .transactions import snapshot, transaction

NEVER = 2**31

ANSWER_SECONDS = 2
"""How much longer than Postgres's own limit we wait; after that, the server counts as hung."""

IDLE_SECONDS = 60
"""How long Postgres keeps an idle transaction open."""

SQLITE_ROUND_MILLISECONDS = 15
"""For how long SQLite itself waits for the lock of its file: see ``_wait_for_lock``."""

PROBE_SECONDS = 1.0
"""How long to wait before trying a database again that did not answer."""


class Limits(NamedTuple):
    """Time limits for waiting on the database, in seconds."""

    statement: int
    lock: int
    connect: int


def engine_options(url: URL, pool_size: int, limits: Limits, *, prepare: bool) -> dict[str, Any]:
    """The arguments of ``create_engine`` for a database URL of ours; ``set_up`` does the rest.

    ``prepare`` says whether Postgres may be asked to prepare statements at all.
    """
    options: dict[str, Any] = {
        **_COMMON,
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": 10,
        # The connection used last is the one most likely to be warm.
        "pool_use_lifo": True,
    }
    if url.get_backend_name() == "sqlite":
        return options
    given = {
        "connect_timeout": limits.connect,
        # To notice a server that is gone without closing the connection: while we send
        # (tcp_user_timeout), and while we wait (keepalives).
        "tcp_user_timeout": 1000 * (limits.statement + ANSWER_SECONDS),
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    arguments: dict[str, Any] = {k: v for k, v in given.items() if k not in url.query}
    # psycopg must not prepare statements by their frequency: ``Statement`` says which ones to
    # prepare. None forbids these, too.
    arguments["prepare_threshold"] = NEVER if prepare else None
    # ``_end_transaction`` rolls back what is open when a connection returns to the pool.
    return {**options, "connect_args": arguments, "pool_reset_on_return": None}


_COMMON: dict[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "execution_options": {OURS: True},
    # The text of an error must not contain parameters, such as a password hash.
    "hide_parameters": True,
    "json_serializer": dumps,
    "json_deserializer": orjson.loads,
}


def from_host(engine: Engine, limits: Limits) -> Engine:
    """An engine for the database of a host's engine, which stays as it is.

    It connects as the host's engine does, with a pool of the same kind and size. A
    database that exists in one connection only, such as SQLite in memory, is shared.
    """
    in_memory = engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")
    if in_memory or isinstance(engine.pool, StaticPool | SingletonThreadPool | AssertionPool):
        return autocommit(engine)
    own = create_engine(engine.url, pool=engine.pool.recreate(), **_COMMON)
    set_up(own, limits)
    return own


def set_up(engine: Engine, limits: Limits) -> None:
    """Limit how long jobapi's engine waits, and drop connections that no longer work."""
    if engine.dialect.name == "postgresql":
        gate = _Gate(engine)
        event.listen(engine, "connect", _set_up_postgres(limits, gate), insert=True)
        event.listen(engine, "reset", _end_transaction)
    else:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "do_execute", _wait_for_lock(limits.lock))
    event.listen(engine, "handle_error", _on_error)
    # A process that is forked must not use the connections of its parent.
    known = weakref.ref(engine)
    os.register_at_fork(after_in_child=lambda: _forget_connections(known))


def _forget_connections(known: Callable[[], Engine | None]) -> None:
    engine = known()
    if engine is not None:
        engine.dispose(close=False)


def prepare_sqlite(engine: Engine) -> None:
    """Set up each new connection to a SQLite file of ours, which only its owner may read."""
    if engine.dialect.name != "sqlite":
        return
    path = engine.url.database or ""
    if not path.startswith("file:"):
        # SQLite gives its other files the same permissions. If the folder is missing, SQLite's
        # own error says so.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # With WAL, no commit is lost if the process dies. A power failure can lose the
        # last commits, but does not damage the file.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()


@contextmanager
def long_transaction(connection: Connection, *, lock_seconds: int = 0) -> Iterator[Connection]:
    """A transaction without time limits, for commands that a person runs.

    On Postgres a statement waits for a lock for at most ``lock_seconds``; 0 means no limit. The
    connection leaves the pool, and can be used for any number of such transactions.
    """
    _leave_pool(connection)
    with transaction(connection):
        _lift_limits(connection, lock_seconds)
        yield connection


@contextmanager
def long_snapshot(connection: Connection) -> Iterator[Connection]:
    """A ``snapshot`` without time limits, as in ``long_transaction``."""
    _leave_pool(connection)
    with snapshot(connection):
        _lift_limits(connection, 0)
        yield connection


def _leave_pool(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        raw: Any = connection.connection.dbapi_connection
        if isinstance(raw, psycopg.Connection):
            vars(raw).pop("wait", None)
        connection.detach()


def _lift_limits(connection: Connection, lock_seconds: int) -> None:
    if connection.dialect.name != "postgresql":
        return
    # SET LOCAL, because behind a pooler another client may get the session next.
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {name} = 0")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{lock_seconds}s'")


def _set_up_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_ROUND_MILLISECONDS}")
    cursor.close()


def _wait_for_lock(seconds: float) -> Callable[..., bool]:
    """How SQLAlchemy runs a statement on SQLite: it waits for the lock of the file in short rounds.

    SQLite has no queue for its lock: waiters poll, at growing intervals of up to 100 ms, so among
    busy writers one may wait for seconds. A new round begins with short intervals again.
    """

    def execute(cursor: sqlite3.Cursor, statement: str, parameters: Any, context: Any) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            try:
                cursor.execute(statement, parameters)
                return True
            except sqlite3.OperationalError as error:
                # Not BUSY_SNAPSHOT: a transaction that has read an old state can never write.
                name = getattr(error, "sqlite_errorname", "")
                again = name.startswith("SQLITE_BUSY") and name != "SQLITE_BUSY_SNAPSHOT"
                if not again or time.monotonic() >= deadline:
                    raise
                # Where SQLite sees a deadlock, it does not wait itself.
                time.sleep(0.001)

    return execute


def _set_up_postgres(limits: Limits, gate: _Gate) -> Callable[[Any, Any], None]:
    # Not as options of the connection, which poolers refuse. They override what the role
    # or the database sets, which is meant for other applications.
    settings = {
        "statement_timeout": 1000 * limits.statement,
        "lock_timeout": 1000 * limits.lock,
        "idle_in_transaction_session_timeout": 1000 * IDLE_SECONDS,
        "default_transaction_isolation": "'read committed'",
        "DateStyle": "ISO",
        "IntervalStyle": "postgres",
    }
    sql = "; ".join(f"SET {name} = {value}" for name, value in settings.items())

    def on_connect(connection: Any, record: Any) -> None:
        if isinstance(connection, psycopg.Connection):
            waiting: Any = connection
            waiting.wait = _Wait(connection, limits.statement + ANSWER_SECONDS, gate)
        was = connection.autocommit
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
        connection.autocommit = was

    return on_connect


def _end_transaction(connection: Any, record: Any, state: Any) -> None:
    """Roll back the transaction of a connection that returns to the pool, if one is open.

    SQLAlchemy would call ``rollback`` each time, which makes returning a connection take half as
    long again.
    """
    status = connection.pgconn if isinstance(connection, psycopg.Connection) else connection.info
    if status.transaction_status != TransactionStatus.IDLE:
        connection.rollback()


class _Wait:
    """Waits for Postgres as psycopg does, but gives up on a server that does not answer at all."""

    def __init__(self, connection: psycopg.Connection[Any], seconds: float, gate: _Gate) -> None:
        self._pgconn = connection.pgconn
        self._wait = connection.wait
        self._seconds = seconds
        self._gate = gate

    def __call__(self, generator: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None:
            return self._wait(generator, interval, timeout)
        try:
            return self._wait(generator, interval, self._seconds)
        except psycopg.OperationalError:
            # If the server has sent an error or has gone, psycopg has handled it already.
            if self._pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self._pgconn.finish()
            self._gate.close()
            raise psycopg.OperationalError(
                f"Postgres did not answer within {self._seconds} seconds"
            ) from None


class _Gate:
    """A circuit breaker: keeps threads from all waiting for a database that does not answer.

    After a failure one thread at a time tries to connect; the others fail at once.
    """

    def __init__(self, engine: Engine) -> None:
        self._error = engine.dialect.loaded_dbapi.OperationalError
        self._lock = Lock()
        self._closed = False
        self._try_at = 0.0
        pool: Any = engine.pool
        self._connect = pool._invoke_creator
        # The pool has no event that comes before a connection is made.
        pool._creator = self._pass

    def close(self) -> None:
        """The database did not answer in time."""
        self._closed = True
        self._try_at = time.monotonic() + PROBE_SECONDS

    def _pass(self, record: Any) -> Any:
        if not self._closed:
            return self._try(record)
        if time.monotonic() < self._try_at or not self._lock.acquire(blocking=False):
            raise self._error("the database did not answer a moment ago")
        try:
            return self._try(record)
        finally:
            self._lock.release()

    def _try(self, record: Any) -> Any:
        began = time.monotonic()
        try:
            connection = self._connect(record)
        except self._error:
            # A connection that is refused at once costs threads no time.
            if time.monotonic() - began >= PROBE_SECONDS:
                self.close()
            raise
        self._closed = False
        return connection


def _on_error(context: Any) -> None:
    if context.connection is not None and not context.is_disconnect:
        fault = judge(context.original_exception)
        context.is_disconnect = fault is not None and fault.reconnect


def normalize_url(url: str) -> URL:
    """The URL in SQLAlchemy's form, with our driver, whichever driver it names.

    ``postgres://`` is the old spelling; others come from the settings of other programs.
    Raises ``sqlalchemy.exc.ArgumentError`` for an invalid database URL.
    """
    parsed = make_url(url)
    backend, _, driver = parsed.drivername.partition("+")
    if backend in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and driver in ("pysqlite", "aiosqlite"):
        return parsed.set(drivername="sqlite")
    return parsed


def unknown_options(url: URL) -> list[str]:
    """The options of a Postgres URL that libpq does not know, such as another driver's."""
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    return sorted(url.query.keys() - known)
