"""Many rows as one parameter.

A statement for a thousand rows is sent, planned and run once: the rows are a
JSON array that the database takes apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Insert,
    Table,
    Text,
    bindparam,
    column,
    func,
    insert,
    select,
    type_coerce,
)
from sqlalchemy import cast as cast_type

from .connections import Executor, dialect_name


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
    # In the format in which SQLAlchemy stores times, so that they compare.
    utc: datetime = value.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(" ", "microseconds")


def record_source(dialect: str, columns: Mapping[str, Any]) -> Any:
    """The rows of ``records`` as a table to select from; ``columns`` are names with types."""
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
