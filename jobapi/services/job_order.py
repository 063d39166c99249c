"""Orders of lists of jobs, and the cursors that continue them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, literal, tuple_

from ..errors import ValidationFailed
from ..rules.jobs import JobStatus
from ..store.paging import MAX_NUMBER, no_cursor, read_cursor, write_cursor
from ..store.tables import jobs

_SORT_KEYS: Mapping[str, tuple[str, ...]] = {
    "created_at": ("created_at", "id"),
    "updated_at": ("updated_at", "id"),
    "started_at": ("started_at", "id"),
    "priority": ("priority", "created_at", "id"),
    "status": ("status", "created_at", "id"),
}


class Order(NamedTuple):
    """An order of jobs: by ``sort`` and, where that is equal, by creation.

    A bound is a position in the list: the values of the sort's keys in the last job before it.
    """

    sort: str
    order: str

    @property
    def is_ranked(self) -> bool:
        """Whether all jobs of one rank (a status or a priority) come before those of the next."""
        return self.sort in ("status", "priority")

    @property
    def is_descending(self) -> bool:
        """Whether the list starts with the greatest value."""
        return self.order == "desc"

    @property
    def reverse(self) -> Order:
        """The opposite order."""
        return Order(self.sort, "asc" if self.is_descending else "desc")

    @property
    def keys(self) -> list[Any]:
        """The columns that the list is sorted by."""
        return [jobs.c[name] for name in _SORT_KEYS[self.sort]]

    def of(self, columns: Sequence[Any]) -> list[Any]:
        """``ORDER BY`` for columns that correspond to the keys."""
        return [c.desc() if self.is_descending else c.asc() for c in columns]

    def beyond(self, columns: Sequence[Any], bound: Sequence[Any]) -> ColumnElement[bool]:
        """Whether columns that correspond to the keys come after a bound's columns or values."""
        values = [
            each if isinstance(each, ColumnElement) else literal(each, column.type)
            for each, column in zip(bound, columns, strict=True)
        ]
        one, other = tuple_(*columns), tuple_(*values)
        return one < other if self.is_descending else one > other

    def cursor(self, row: Any) -> str:
        """The cursor that continues the list after a job."""
        return write_cursor([*self, *(getattr(row, name) for name in _SORT_KEYS[self.sort])])

    def bound(self, cursor: str) -> list[Any]:
        """The bound of a cursor. Raises ``ValidationFailed`` if it belongs to another order."""
        try:
            sort, order, *values = read_cursor(cursor)
            if (sort, order) != (self.sort, self.order) or len(values) != len(self.keys):
                raise ValidationFailed(
                    {"cursor": ["It belongs to another sort or order. Start again without it."]}
                )
            *rank, moment, number = values
            moment = datetime.fromisoformat(moment)
            limits = [*(len(JobStatus) for _ in rank), MAX_NUMBER]
            in_range = all(
                type(value) is int and 0 <= value < limit
                for value, limit in zip([*rank, number], limits, strict=True)
            )
            # Times close to the ends of the calendar have no UTC.
            if not in_range or moment.tzinfo is None or not 1 < moment.year < 9999:
                raise ValueError(cursor)
        except (ValueError, TypeError):
            raise no_cursor() from None
        return [*rank, moment, number]
