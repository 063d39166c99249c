"""Rows of the jobs table: which columns are read, which rows a caller may read, how many fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select

from ..errors import JobNotFound
from ..store.columns import JsonBytes
from ..store.paging import MAX_BYTES
from ..store.tables import jobs, memberships, workspaces

COLUMNS = tuple(jobs.c)
_TEXTS = ("metadata", "result", "error", "progress_message")
_OTHER_BYTES = 1_000


def answer_bytes(columns: Sequence[Any] = COLUMNS) -> Any:
    """An upper bound of the bytes of JSON that a job takes in a response with these columns."""
    return JsonBytes(*(c for c in columns if c.name in _TEXTS)) + _OTHER_BYTES


def fitting(query: Select[Any], order: Sequence[Any], most: Any) -> Select[Any]:
    """The first ``most`` jobs of a query, or as many as fit into a response, but at least one.

    ``query`` selects columns of the table. Rows come in no particular order: each has its
    ``place``, from 1, and ``more``, which is None for the last row of the query.
    """
    columns = list(query.selected_columns)
    # The same window for all, so that Postgres makes one pass.
    window: Any = {"order_by": order, "rows": (None, 0)}
    found = query.add_columns(
        func.sum(answer_bytes(columns)).over(**window).label("so_far"),
        func.row_number().over(**window).label("place"),
        func.lead(1).over(**window).label("more"),
    ).subquery()
    fits = or_(found.c.so_far <= MAX_BYTES, found.c.place == 1)
    shown = [found.c[column.name] for column in columns]
    return select(*shown, found.c.place, found.c.more).where(found.c.place <= most, fits)


def not_found() -> JobNotFound:
    """The error for a job that does not exist, or belongs to another workspace."""
    return JobNotFound("Job not found in specified workspace")


Scope = Callable[[Any], ColumnElement[bool]]
"""A function from columns to a condition on ``workspace_id``: which workspaces a list covers."""


def in_workspace(workspace_id: int) -> Scope:
    """The jobs of one workspace."""
    return lambda c: c.workspace_id == workspace_id


def both(one: Scope, other: Scope) -> Scope:
    """The jobs in both scopes."""
    return lambda c: one(c) & other(c)


def readable_by(user_id: int, *, is_admin: bool) -> Scope:
    """The jobs of all workspaces that the user may read."""
    if is_admin:
        all_ = select(workspaces.c.id).where(workspaces.c.deleted_at.is_(None))
        return lambda c: c.workspace_id.in_(all_)
    mine = select(memberships.c.workspace_id).where(memberships.c.user_id == user_id)
    return lambda c: c.workspace_id.in_(mine)
