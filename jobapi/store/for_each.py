"""Queries for each of many rows: "the first jobs of each of these keys"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Select, bindparam, select, true

from .connections import AnyRow, Executor, dialect_name
from .records import record_source, records
from .statement import Statement


class ForEach:
    """A query that runs once for each of many rows.

    ``columns`` are the names and types of the rows' columns; ``query`` makes the query from them.
    On Postgres it is one statement for all rows, with a lateral join. SQLite has no
    lateral joins: there it is one statement per row, which costs no round trip.
    """

    def __init__(self, columns: Mapping[str, Any], query: Callable[[Any], Select[Any]]) -> None:
        self._columns = columns
        self._query = query
        self._statements: dict[str, Statement[AnyRow]] = {}

    def all(
        self, session: Executor, rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
    ) -> list[AnyRow]:
        """The results for all of ``rows`` together."""
        if not rows:
            return []
        dialect = dialect_name(session)
        if dialect not in self._statements:
            self._statements[dialect] = self._statement(dialect)
        statement = self._statements[dialect]
        if dialect == "sqlite":
            return [each for row in rows for each in statement.all(session, {**parameters, **row})]
        return list(statement.all(session, {**parameters, **records(session, rows)}))

    def _statement(self, dialect: str) -> Statement[AnyRow]:
        if dialect == "sqlite":
            one = {name: bindparam(name, type_=kind) for name, kind in self._columns.items()}
            return Statement(self._query(SimpleNamespace(**one)))
        source = record_source(dialect, self._columns)
        found = self._query(source.c).lateral("found")
        query = select(*found.c).select_from(source.join(found, true()))
        return Statement(query, keep=True)
