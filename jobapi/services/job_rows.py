"""Rows of the jobs table: which columns are read, which rows a caller may read, how many fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, func, or_, select

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


@dataclass(frozen=True)
class Scope:
    """Which workspaces a list covers: all that match each of these."""

    workspace_id: int | None = None
    """Only this one."""
    member: int | None = None
    """Only those of which this user is a member."""
    undeleted: bool = False
    """Only those that are not deleted."""

    def __call__(self, c: Any) -> ColumnElement[bool]:
        """The condition on ``workspace_id`` among some columns."""
        conditions = []
        if self.workspace_id is not None:
            given: Any = bindparam("scope_workspace_id", self.workspace_id)
            conditions.append(c.workspace_id == given)
        if self.member is not None:
            of_member = memberships.c.user_id == bindparam("scope_member", self.member)
            conditions.append(
                c.workspace_id.in_(select(memberships.c.workspace_id).where(of_member))
            )
        if self.undeleted:
            existing = select(workspaces.c.id).where(workspaces.c.deleted_at.is_(None))
            conditions.append(c.workspace_id.in_(existing))
        return and_(*conditions)

    @property
    def form(self) -> Scope:
        """A scope whose condition has the same form with other values."""
        return replace(
            self,
            workspace_id=None if self.workspace_id is None else 0,
            member=None if self.member is None else 0,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """The values in its condition, for a statement that was compiled for its ``form``."""
        return {"scope_workspace_id": self.workspace_id, "scope_member": self.member}


def in_workspace(workspace_id: int) -> Scope:
    """The jobs of one workspace."""
    return Scope(workspace_id)


def readable_by(user_id: int, *, is_admin: bool, workspace_id: int | None = None) -> Scope:
    """The jobs of all workspaces that the user may read, or of one if that is among them."""
    return Scope(workspace_id, None if is_admin else user_id, undeleted=is_admin)
