"""The database: connections, transactions, its clock, and the types of columns.

Connections are in autocommit mode, so that a request that reads costs one
round trip and no BEGIN; what writes more than one statement opens a
``transaction``. Services take either such a connection or a host
application's own session, and never commit.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast

import orjson
import psycopg
from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Insert,
    Row,
    String,
    Table,
    Text,
    and_,
    bindparam,
    column,
    func,
    insert,
    literal,
    select,
    true,
    type_coerce,
)
from sqlalchemy import cast as cast_type
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from .faults import judge

Executor = Connection | Session | scoped_session[Session]
"""What a service runs its statements on: ours, or a host application's."""

AnyRow = Row[*tuple[Any, ...]]
"""A row of whatever columns; they are its attributes."""

T = TypeVar("T")

OURS = "jobapi"
"""The execution option by which an engine is known to be ours, not a host application's."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: aware in Python, always in UTC, microseconds kept.

    SQLite has no time zones, so there the UTC time is stored without one.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database; a time without an offset is refused (``ValueError``)."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time needs an offset; datetime.now(UTC) has one")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database, in UTC whatever the session's time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class DbNow(FunctionElement[datetime]):
    """The database's clock, the only one that all nodes share."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(DbNow)
def _now_postgresql(element: DbNow, compiler: Any, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(DbNow, "sqlite")
def _now_sqlite(element: DbNow, compiler: Any, **kw: Any) -> str:
    # In the format in which SQLAlchemy stores times, so that they compare.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def insert_or_ignore(dialect: str, table: Table) -> Any:
    """An INSERT that does nothing where a unique constraint is in the way.

    It has the ``on_conflict_do_update`` of both dialects, too.
    """
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


class SecondsAfter(FunctionElement[datetime]):
    """A moment so many seconds after another."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(SecondsAfter)
def _after_postgresql(element: SecondsAfter, compiler: Any, **kw: Any) -> str:
    moment, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({moment} + {seconds} * interval '1 second')"


@compiles(SecondsAfter, "sqlite")
def _after_sqlite(element: SecondsAfter, compiler: Any, **kw: Any) -> str:
    moment, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    # Whole milliseconds, like its clock.
    return f"strftime('%Y-%m-%d %H:%M:%f000', {moment}, {seconds} || ' seconds')"


class Texts(TypeDecorator[Sequence[str]]):
    """Any number of texts as one parameter, so that it is the same statement for all numbers."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """An array where there are arrays."""
        array: Any = postgresql.ARRAY(String)
        return dialect.type_descriptor(array if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """To the database."""
        return list(value) if dialect.name == "postgresql" else dumps(list(value))


class OneOf(FunctionElement[bool]):
    """Whether a column is one of the texts of a parameter of the type ``Texts``."""

    # No Boolean, which SQLite would compare with 1, and find no index for.
    inherit_cache = True


@compiles(OneOf)
def _one_of_postgresql(element: OneOf, compiler: Any, **kw: Any) -> str:
    value, texts = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{value} = ANY ({texts})"


@compiles(OneOf, "sqlite")
def _one_of_sqlite(element: OneOf, compiler: Any, **kw: Any) -> str:
    value, texts = element.clauses
    each = select(func.json_each(texts).table_valued("value").c.value)
    return str(compiler.process(value.in_(each), **kw))


class IsAmong(FunctionElement[bool]):
    """Whether a column is among what a query finds.

    On Postgres an array: however many the planner believes there to be, it
    then goes from each to its row by the index, and never joins.
    """

    # No Boolean, which SQLite would compare with 1, and find no index for.
    inherit_cache = True


@compiles(IsAmong)
def _is_among_postgresql(element: IsAmong, compiler: Any, **kw: Any) -> str:
    column_, query = element.clauses
    return f"{compiler.process(column_, **kw)} = ANY (ARRAY{compiler.process(query, **kw)})"


@compiles(IsAmong, "sqlite")
def _is_among_sqlite(element: IsAmong, compiler: Any, **kw: Any) -> str:
    column_, query = element.clauses
    return f"{compiler.process(column_, **kw)} IN {compiler.process(query, **kw)}"


def is_picked(dialect: str, table: Any, query: Any, **values: Any) -> ColumnElement[bool]:
    """The condition that a row is one of those whose ids a query finds.

    For an UPDATE or a DELETE. ``values`` are columns that are the same for all of these rows,
    the workspace above all: where the table is partitioned by it, one partition is touched.
    """
    if dialect == "sqlite":
        return IsAmong(table.c.id, query.scalar_subquery())
    # From an array the planner expects ten ids, whatever it believes about the query, so that it
    # goes from each to its row by the key. The OFFSET keeps the values columns to be joined by.
    # As constants they would be conditions on the table, and a planner whose statistics do not
    # know a new workspace yet would go through all of its rows.
    ids = select(func.unnest(_ArrayOf(query.scalar_subquery())).label("id")).subquery("ids")
    columns = [
        literal(v).label(name) if not isinstance(v, ColumnElement) else v.label(name)
        for name, v in values.items()
    ]
    found = select(ids.c.id, *columns).offset(0).subquery("picked")
    return and_(*(table.c[column.name] == column for column in found.c))


class _ArrayOf(FunctionElement[Any]):
    inherit_cache = True


@compiles(_ArrayOf)
def _array_of(element: _ArrayOf, compiler: Any, **kw: Any) -> str:
    (query,) = element.clauses
    return f"ARRAY{compiler.process(query, **kw)}"


class JsonBytes(FunctionElement[int]):
    """How many bytes of JSON documents and texts have together; NULL has none."""

    type = BigInteger()
    inherit_cache = True


def _as_json(element: JsonBytes, compiler: Any, quote: str, **kw: Any) -> str:
    values = [
        compiler.process(c if isinstance(c.type, JSON) else getattr(func, quote)(c), **kw)
        for c in element.clauses
    ]
    return ", ".join(values)


@compiles(JsonBytes)
def _json_bytes_postgresql(element: JsonBytes, compiler: Any, **kw: Any) -> str:
    return f"octet_length(concat({_as_json(element, compiler, 'to_json', **kw)}))"


@compiles(JsonBytes, "sqlite")
def _json_bytes_sqlite(element: JsonBytes, compiler: Any, **kw: Any) -> str:
    parts = _as_json(element, compiler, "json_quote", **kw).split(", ")
    return f"length(CAST({' || '.join(f'ifnull({part}, char())' for part in parts)} AS BLOB))"


def dialect_name(executor: Executor) -> str:
    """``postgresql`` or ``sqlite``."""
    bind = executor if isinstance(executor, Connection) else executor.get_bind()
    return bind.dialect.name


# Many rows as one parameter, so that a statement for a thousand of them is sent,
# planned and run once: a JSON array that the database takes apart.


def records(executor: Executor, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The rows as the parameter of a statement over ``record_source``."""
    is_sqlite = dialect_name(executor) == "sqlite"
    return {
        "records": orjson.dumps(
            rows,
            default=_sqlite_time if is_sqlite else None,
            option=orjson.OPT_PASSTHROUGH_DATETIME if is_sqlite else None,
        ).decode()
    }


def _sqlite_time(value: Any) -> str:
    # As SQLAlchemy stores it, so that all times there compare.
    utc: datetime = value.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(" ", "microseconds")


def record_source(dialect: str, columns: Mapping[str, Any]) -> Any:
    """What ``records`` carries, to select from; ``columns`` are names with types."""
    parameter: Any = bindparam("records", type_=Text)
    if dialect == "sqlite":
        each = func.json_each(parameter).table_valued("value", name="each")
        return select(
            *[
                type_coerce(func.json_extract(each.c.value, f"$.{name}"), kind).label(name)
                for name, kind in columns.items()
            ]
        ).subquery("record")
    return (
        func.json_to_recordset(cast_type(parameter, JSON))
        .table_valued(*[column(name, kind) for name, kind in columns.items()], name="record")
        .render_derived(with_types=True)
    )


@cache
def _insert_records(dialect: str, table: Table, names: tuple[str, ...]) -> Insert:
    source = record_source(dialect, {name: table.c[name].type for name in names})
    return insert(table).from_select(list(names), select(*[source.c[name] for name in names]))


def insert_records(executor: Executor, table: Table, names: tuple[str, ...]) -> Insert:
    """An INSERT of the columns ``names`` of all rows that ``records`` carries, in their order."""
    return _insert_records(dialect_name(executor), table, names)


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
        _straight(connection, sql, None, prepare=False)
    else:
        connection.exec_driver_sql(sql)


def autocommit(engine: Engine) -> Engine:
    """The same engine and pool, with connections that commit each statement."""
    if engine.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def normalize_url(url: str) -> URL:
    """The URL in SQLAlchemy's form, with our driver, whichever driver it names.

    ``postgres://`` is the old spelling; others come from the settings of other programs.
    Raises ``sqlalchemy.exc.ArgumentError`` for what is no database URL.
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


def dumps(value: Any) -> str:
    """JSON for a column."""
    return orjson.dumps(value).decode()


class Statement:
    """A statement of a hot path: its SQL, and how its rows are read, are worked out once.

    On psycopg it goes straight to the driver, which saves most of what
    SQLAlchemy does for each row. ``prepare`` says that Postgres shall plan it
    once for each connection: good for one row by its key. What finds many rows
    is planned each time, because a plan made while a table was small would be
    kept when it is not. ``values`` are the columns that an INSERT is given.
    """

    def __init__(
        self, statement: Any, *, prepare: bool = False, values: Sequence[str] | None = None
    ) -> None:
        self.statement = statement
        self.prepare = prepare
        self._values = values
        columns = statement.exported_columns
        # SQLAlchemy's Row gives columns as attributes; so does this.
        make_type: Any = namedtuple
        self._row = make_type("_row", [str(c.key) for c in columns])
        self._times = [i for i, c in enumerate(columns) if isinstance(c.type, UtcDateTime)]
        self._sql: str | None = None
        self._constants: Mapping[str, Any] = {}
        self._bind: Mapping[str, Any] = {}

    def all(self, executor: Executor, parameters: Mapping[str, Any]) -> Sequence[AnyRow]:
        """The rows that it returns. Raises what SQLAlchemy raises."""
        connection = executor if isinstance(executor, Connection) else executor.connection()
        if connection.dialect.driver != "psycopg":
            result: Any = executor.execute(self.statement, parameters)
            return result.all() if result.returns_rows else ()
        if self._sql is None:
            compiled: Any = self.statement.compile(
                dialect=connection.dialect, column_keys=self._values
            )
            self._constants = compiled.params
            self._bind = compiled._bind_processors
            self._sql = str(compiled)
        sent = {**self._constants, **parameters}
        for name, process in self._bind.items():
            sent[name] = process(sent[name])
        return self._read(_straight(connection, self._sql, sent, prepare=self.prepare))

    def first(self, executor: Executor, parameters: Mapping[str, Any]) -> AnyRow | None:
        """The first of its rows, or None. Raises what SQLAlchemy raises."""
        rows = self.all(executor, parameters)
        return rows[0] if rows else None

    def _read(self, rows: Sequence[Sequence[Any]]) -> list[AnyRow]:
        make, times = self._row._make, self._times
        read = []
        for row in rows:
            values = list(row)
            for i in times:
                if values[i] is not None:
                    values[i] = values[i].astimezone(UTC)
            read.append(make(values))
        return cast(list[AnyRow], read)


def _straight(
    connection: Connection, sql: str, parameters: Mapping[str, Any] | None, *, prepare: bool
) -> Sequence[Sequence[Any]]:
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
            # As SQLAlchemy does: the others in the pool are no better.
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
