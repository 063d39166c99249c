"""Lists of jobs by page or cursor, at a cost that does not grow with the number of jobs.

``job_list_plans`` decides what is read for a list, ``job_filters`` which jobs belong to it, and
``job_order`` in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select, true

from ..errors import PageTooLarge
from ..store.columns import IsAmong
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.paging import MAX_BYTES
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import jobs
from . import counts
from .job_filters import Filters
from .job_list_plans import (
    KEY,
    Found,
    Listing,
    Merge,
    Plan,
    choose,
    exactly,
    filtered,
    looked_up,
    merged,
    scanned,
    too_deep,
)
from .job_order import Order
from .job_rows import COLUMNS, Scope, answer_bytes, fitting

WALKED = 10_000
"""How many jobs one step of a walk reads."""

LARGE = frozenset({"metadata", "result"})
"""The columns that a light list leaves out."""

_LIGHT = tuple(column for column in COLUMNS if column.name not in LARGE)


class JobPage(NamedTuple):
    """A page of jobs, the total of its list, and the cursor of the next page (None: the last)."""

    rows: Sequence[AnyRow]
    total: int
    total_is_capped: bool
    next_cursor: str | None


def page(
    session: Executor,
    scope: Scope,
    filters: Filters,
    *,
    sort: str = "created_at",
    order: str = "desc",
    page: int | None = None,
    limit: int = 50,
    cursor: str | None = None,
    light: bool = False,
) -> JobPage:
    """One page of the jobs in ``scope`` that match.

    ``page`` is a page number, from 1. Without it, the page continues after ``cursor`` or starts
    the list. Equal values are sorted by creation, in the direction of ``order``. ``light`` leaves
    out ``metadata`` and ``result``. A page without a number may end early, at ``MAX_BYTES`` or
    after reading ``MAX_SCANNED`` jobs; ``next_cursor`` says whether the list continues. Call it in
    a ``snapshot``, so that page and total show the same moment. Raises ``ValidationFailed`` for a
    cursor that is invalid or belongs to another list, and for a page that is too deep;
    ``PageTooLarge`` for a numbered page over ``MAX_BYTES``.
    """
    ordered = Order(sort, order)
    after = None if cursor is None else ordered.bound(cursor)
    offset = 0 if page is None else (page - 1) * limit
    listing = Listing(session, scope, filters, ordered)
    plan = choose(listing)
    stop = None
    if plan in (Plan.MERGE, Plan.SORT):
        total, is_capped = listing.total()
        if offset >= total and not is_capped:
            return JobPage((), total, False, None)
        found = exactly(listing, plan, after, offset, limit + 1, total)
    else:
        matches, total, is_capped = filtered(listing, plan, after, offset, limit + 1)
        stop = matches.stop
        if offset > 0 and stop is not None and not matches.rows:
            raise too_deep()
        found = _by_key(session, matches.rows)
    rows, n = _fetch(session, light, ordered, found, limit)
    if page is not None and len(rows) < min(n, limit):
        raise PageTooLarge(
            f"This page is larger than {MAX_BYTES:,} bytes. Use a smaller limit or light=true, or "
            "leave out page and follow next_cursor."
        )
    last = rows[-1] if len(rows) < n else stop
    return JobPage(rows, total, is_capped, None if last is None else ordered.cursor(last))


def count(session: Executor, scope: Scope, filters: Filters) -> tuple[int, bool]:
    """How many jobs in ``scope`` match, and whether there may be more. Call it in a transaction."""
    listing = Listing(session, scope, filters, Order("created_at", "desc"))
    plan = choose(listing)
    if plan in (Plan.MERGE, Plan.SORT):
        return listing.total()
    _, total, is_capped = filtered(listing, plan, None, 0, 0)
    return total, is_capped


class Walked(NamedTuple):
    """Matching jobs in the order of creation, and the bound to continue from; None at the end."""

    rows: Sequence[AnyRow]
    bound: list[Any] | None


def walk(
    session: Executor,
    scope: Scope,
    filters: Filters,
    *,
    after: Sequence[Any] | None,
    until: datetime,
    most: int,
) -> Walked:
    """The next jobs that match, up to ``most``, among those created ``until`` then.

    Each has ``id``, ``job_id`` and ``created_at``. One call reads ``WALKED`` jobs, however few of
    them match, unless the metadata index finds the matches. ``after`` is the ``bound`` of the last
    call. Call it in a transaction.
    """
    listing = Listing(session, scope, filters, Order("created_at", "asc"), until=until)
    start = None if after is None else [datetime.fromisoformat(after[0]), after[1]]
    found = looked_up(listing, start, 0, most) if choose(listing) is Plan.LOOKUP else None
    if found is None:
        found = scanned(listing, start, 0, most, WALKED)
    last = found.rows[-1] if len(found.rows) == most else found.stop
    return Walked(found.rows, None if last is None else [last.created_at.isoformat(), last.id])


def newest(session: Executor, kinds: Sequence[Any], most: int) -> Sequence[AnyRow]:
    """When the newest ``most`` jobs of each bucket started and ended, with their type."""
    names = counts.KIND
    columns = (jobs.c.job_type, jobs.c.started_at, jobs.c.completed_at)
    order = (jobs.c.created_at.desc(), jobs.c.id.desc())
    each = [{name: getattr(kind, name) for name in names} for kind in kinds]
    if dialect_name(session) == "sqlite":
        rows: list[AnyRow] = []
        for values in each:
            mine = [jobs.c[name] == value for name, value in values.items()]
            rows += session.execute(
                select(*columns).where(*mine).order_by(*order).limit(most)
            ).all()
        return rows
    table = record_source("postgresql", {name: jobs.c[name].type for name in names})
    same = [jobs.c[name] == table.c[name] for name in names]
    head = select(*columns).where(*same).order_by(*order).limit(most).lateral("newest")
    query = select(*head.c).select_from(table.join(head, true()))
    return session.execute(query, records(session, each)).all()


def _by_key(session: Executor, rows: Sequence[AnyRow]) -> Found:
    keys = records(session, [{name: getattr(row, name) for name in KEY} for row in rows])
    if dialect_name(session) != "sqlite":
        return Found(keys)
    table = record_source("sqlite", {"id": jobs.c.id.type})
    return Found(keys, query=select(table.c.id))


def _fetch(
    session: Executor, light: bool, order: Order, found: Found, limit: int
) -> tuple[Sequence[AnyRow], int]:
    """The jobs found, as many as a response holds, and how many: one more if there are more."""
    if found.query is None:
        statement = _fetching(light, order, found.merge)
        rows = statement.all(session, {**found.parameters, "most": limit})
        rows = sorted(rows, key=attrgetter("place"))
        return rows, len(rows) + (1 if rows and rows[-1].more else 0)
    columns = _LIGHT if light else COLUMNS
    ids = found.query.with_only_columns(found.query.selected_columns.id)
    query = (
        select(*columns, answer_bytes(columns).label("bytes"))
        .where(IsAmong(jobs.c.id, ids.scalar_subquery()))
        .order_by(*order.of(order.keys))
    )
    shown: list[AnyRow] = []
    size = 0
    # SQLite returns rows as it finds them, so reading can stop early.
    with closing(session.execute(query, found.parameters)) as read:
        for row in read:
            size += row.bytes
            if len(shown) == limit or (shown and size > MAX_BYTES):
                return shown, len(shown) + 1
            shown.append(row)
    return shown, len(shown)


@cache
def _fetching(light: bool, order: Order, merge: Merge | None) -> Statement[AnyRow]:
    if merge is None:
        found = record_source("postgresql", {name: jobs.c[name].type for name in KEY})
    else:
        found = merged(merge)
    # OFFSET 0 makes the planner fetch each job by its key, however many it expects.
    keeps = merge is not None and merge.first is not None
    same = [jobs.c[name] == found.c[name] for name in (("id",) if keeps else KEY)]
    row = select(*(_LIGHT if light else COLUMNS)).where(*same).offset(0).lateral("job")
    query = select(*row.c).select_from(found.join(row, true()))
    by = order.of([row.c[key.name] for key in order.keys])
    return Statement[AnyRow](fitting(query, by, bindparam("most")), prepare=keeps)
