"""Column types and expressions that mean the same on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    String,
    Table,
    Text,
    and_,
    func,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from .connections import dumps


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond; in Python an aware ``datetime``.

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
    """A dialect's INSERT, which has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


class SecondsAfter(FunctionElement[datetime]):
    """The moment that is a number of seconds after another one."""

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
    """A list of texts as one parameter, so that the statement does not depend on their number."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """An array, if the database has arrays."""
        array: Any = postgresql.ARRAY(String)
        return dialect.type_descriptor(array if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """To the database."""
        return list(value) if dialect.name == "postgresql" else dumps(list(value))


class OneOf(FunctionElement[bool]):
    """Whether a column is one of the texts of a parameter of the type ``Texts``."""

    # The type is not Boolean: SQLAlchemy would compare that with 1 on SQLite, and no index be used.
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
    """Whether a column is among the values that a query finds.

    On Postgres these become an array: however many values the planner expects, it
    then looks up each one in the index, and never joins.
    """

    # The type is not Boolean, for the same reason as in ``OneOf``.
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
    """The condition, for an UPDATE or a DELETE, that a row's id is among those that a query finds.

    ``values`` are columns with the same value in all of these rows, above all ``workspace_id``: if
    the table is partitioned by it, only one partition is searched.
    """
    if dialect == "sqlite":
        return IsAmong(table.c.id, query.scalar_subquery())
    # The planner expects ten ids from an array, whatever it expects from the query, so it looks up
    # each row by its key. OFFSET 0 keeps the values as columns of the join. As constants they would
    # be conditions on the table, and a planner whose statistics do not know a new workspace yet
    # would read all of its rows.
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
    """The total size of JSON documents and texts in bytes; NULL counts as 0."""

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
