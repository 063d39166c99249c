"""Statements of hot paths, compiled once and sent straight to the driver."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any, cast

from sqlalchemy import (
    Connection,
)

from .columns import UtcDateTime
from .connections import AnyRow, Executor, run_on_driver


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
        return self._read(run_on_driver(connection, self._sql, sent, prepare=self.prepare))

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
