"""Statements of hot paths, compiled once and sent straight to the driver."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import UTC
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection, Dialect

from .columns import UtcDateTime
from .connections import Executor, run_on_driver
from .transactions import keeps_plans

R = TypeVar("R")


class Statement(Generic[R]):
    """A statement of a hot path, compiled once.

    On psycopg it bypasses SQLAlchemy's execution and sends its SQL straight to the
    driver, which saves most of what SQLAlchemy does for each row. On other drivers
    SQLAlchemy executes it. Either way its rows have columns as attributes: ``R`` is
    the type that names them, for the type checker only. ``Statement[AnyRow]`` has
    any columns.

    ``prepare`` lets Postgres plan the statement once per connection. Use it to find
    one row by its key. ``keep`` does the same, but only in transactions that
    ``keep_plans``, all of which must set the same planner: use it for hot statements
    that find many rows. Any other such statement is planned each time, because a plan
    made while a table was small would be kept when it has grown. ``values`` names the
    columns of an INSERT.

    SQLAlchemy takes a parameter with the name of a column as the new value of this column. So
    in an UPDATE, and an INSERT from a SELECT, other parameters get the prefix ``given_``.
    """

    def __init__(
        self,
        statement: Any,
        *,
        prepare: bool = False,
        keep: bool = False,
        values: Sequence[str] | None = None,
    ) -> None:
        self.statement = statement
        self.prepare = prepare
        self.keep = keep
        self._values = values
        columns = statement.exported_columns
        # SQLAlchemy's Row gives columns as attributes; so does this.
        make_type: Any = namedtuple
        self._row = make_type("_row", [str(c.key) for c in columns])
        self._times = [i for i, c in enumerate(columns) if isinstance(c.type, UtcDateTime)]
        self._sql: str | None = None
        self._constants: Mapping[str, Any] = {}
        self._bind: Mapping[str, Any] = {}
        self._order: Sequence[str] = ()

    def all(self, executor: Executor, parameters: Mapping[str, Any]) -> Sequence[R]:
        """All rows it returns. Raises SQLAlchemy's errors."""
        connection = executor if isinstance(executor, Connection) else executor.connection()
        if connection.dialect.driver != "psycopg":
            result: Any = executor.execute(self.statement, parameters)
            return result.all() if result.returns_rows else ()
        if self._sql is None:
            compiled: Any = self.statement.compile(
                dialect=_with_numbers(connection.dialect), column_keys=self._values
            )
            self._constants = compiled.params
            self._bind = compiled._bind_processors
            self._order = compiled.positiontup
            self._sql = str(compiled)
        values = {**self._constants, **parameters}
        for name, process in self._bind.items():
            values[name] = process(values[name])
        sent = [values[name] for name in self._order]
        prepare = self.prepare or (self.keep and keeps_plans(connection))
        return self._read(run_on_driver(connection, self._sql, sent, prepare=prepare))

    def first(self, executor: Executor, parameters: Mapping[str, Any]) -> R | None:
        """Its first row, or None. Raises SQLAlchemy's errors."""
        rows = self.all(executor, parameters)
        return rows[0] if rows else None

    def _read(self, rows: Sequence[Sequence[Any]]) -> list[R]:
        make, times = self._row._make, self._times
        read = []
        for row in rows:
            values = list(row)
            for i in times:
                if values[i] is not None:
                    values[i] = values[i].astimezone(UTC)
            read.append(make(values))
        return cast(list[R], read)


def _with_numbers(dialect: Dialect) -> Dialect:
    """The same dialect, but with Postgres's own form of parameters, such as ``$1``."""
    numbered: Any = copy(dialect)
    numbered.paramstyle = "numeric_dollar"
    numbered.positional = True
    # A preparer for parameters such as ``%(name)s`` doubles percent signs.
    numbered.identifier_preparer = numbered.preparer(numbered)
    return cast(Dialect, numbered)
