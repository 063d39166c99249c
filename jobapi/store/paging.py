"""Pages of a list, by number or by cursor."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, FromClause, func, select

from ..errors import ValidationFailed
from .connections import AnyRow, Executor
from .tables import MAX_ID

MAX_BYTES = 8 * 1024 * 1024
"""How large an answer with many jobs may be, as JSON."""

MAX_NUMBER = 2**63
"""Numbers in a cursor are below this, which is the limit of a database's integers."""


class Page(NamedTuple):
    """A page of rows, the total of the list, and the cursor of the next page."""

    rows: Sequence[AnyRow]
    total: int
    next_cursor: str | None


def write_cursor(values: Sequence[Any]) -> str:
    """A position in a list, as an opaque text for URLs."""
    return urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def read_cursor(cursor: str) -> list[Any]:
    """The values that ``write_cursor`` was given.

    A caller may have made the cursor up, so check their number, types and ranges. Raises
    ``ValidationFailed`` for an invalid cursor.
    """
    try:
        values = orjson.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise no_cursor() from None
    if not isinstance(values, list):
        raise no_cursor()
    return values


def no_cursor() -> ValidationFailed:
    """The error for an invalid cursor."""
    return ValidationFailed({"cursor": ["Invalid cursor. Pass `next_cursor` unchanged."]})


class Slice(NamedTuple):
    """A part of a sequence, and the cursor of the next one."""

    rows: Sequence[Any]
    next_cursor: str | None


def slice_by_name(
    rows: Sequence[Any],
    name_of: Callable[[Any], tuple[str, ...]],
    *,
    limit: int,
    page: int | None = None,
    cursor: str | None = None,
) -> Slice:
    """Page ``page``, from 1, of rows sorted by ``name_of``, or those after ``cursor``.

    Raises ``ValidationFailed`` for an invalid cursor.
    """
    start = ((page or 1) - 1) * limit
    if cursor is not None:
        last = read_cursor(cursor)
        if not all(isinstance(part, str) for part in last):
            raise no_cursor()
        start = sum(1 for row in rows if name_of(row) <= tuple(last))
    shown = rows[start : start + limit]
    more = write_cursor(name_of(shown[-1])) if shown and start + limit < len(rows) else None
    return Slice(shown, more)


def fetch_page(
    executor: Executor,
    columns: Sequence[Any],
    source: FromClause,
    where: Sequence[ColumnElement[bool]],
    key: Any,
    *,
    page: int | None = None,
    limit: int,
    cursor: str | None = None,
    newest_first: bool = False,
) -> Page:
    """Read ``limit`` rows in the order of ``key``, with the total.

    They are the page number ``page``, from 1, or the rows after ``cursor``. ``key`` is a
    unique integer column; with ``newest_first`` the largest values come first. One
    statement reads the page and the total, so that they are of the same moment. Only for
    a page past the end, where no row carries the total, a second one reads it. Raises
    ``ValidationFailed`` for an invalid cursor.
    """
    total = select(func.count()).select_from(source).where(*where)
    query = (
        select(*columns, key.label("page_key"), total.scalar_subquery().label("page_total"))
        .select_from(source)
        .where(*where)
        .order_by(key.desc() if newest_first else key)
        .limit(limit + 1)
    )
    if cursor is not None:
        last = _read_key(cursor)
        query = query.where(key < last if newest_first else key > last)
    elif page is not None:
        query = query.offset((page - 1) * limit)
    rows = executor.execute(query).all()
    n = rows[0].page_total if rows else executor.execute(total).scalar_one()
    more = write_cursor([rows[limit - 1].page_key]) if len(rows) > limit else None
    return Page(rows[:limit], n, more)


def _read_key(cursor: str) -> int:
    values = read_cursor(cursor)
    if len(values) != 1 or type(values[0]) is not int or not 0 <= values[0] <= MAX_ID:
        raise no_cursor()
    return int(values[0])
