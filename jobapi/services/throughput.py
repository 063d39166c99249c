"""How many jobs came into which status, and when: what rates and charts are made of.

The changes of the counts say when they were made. Folded, they are sums over
spans of time, of which the longer ones are kept for longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import add as add_up
from typing import Any, NamedTuple

from sqlalchemy import case, delete, func, literal, select

from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import not_moving
from ..store.records import record_source, records
from ..store.tables import job_count_changes, job_flow

KEPT = {10: timedelta(minutes=5), 60: timedelta(hours=2), 600: timedelta(days=31)}
"""The spans in seconds, and for how long they are kept."""

_KEY = ("workspace_id", "span", "at", "status", "job_type")
_SUMS = ("n", "net", "seconds")
_COLUMNS = (*_KEY, *_SUMS)


class Came(NamedTuple):
    """How many jobs came into a status within a span that begins ``at``.

    ``net`` is less those that left it. ``seconds`` are those that the ones that
    started had waited since they were due, and those that the ones that ended
    had run, all together.
    """

    at: datetime
    status: int
    n: int
    net: int
    seconds: float


def begin_of(moment: datetime, span: int) -> datetime:
    """When the span in which a moment lies begins."""
    return datetime.fromtimestamp(moment.timestamp() // span * span, UTC)


def add(session: Executor, changes: Sequence[AnyRow]) -> None:
    """Add what changes of the counts say, in their transaction."""
    sums: defaultdict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for change in changes:
        if change.at is None:
            continue
        came = (max(change.n, 0), change.n, change.seconds if change.n > 0 else 0.0)
        for span in KEPT:
            at = begin_of(change.at, span)
            all_ = sums[change.workspace_id, span, at, change.status, change.job_type]
            all_[:] = map(add_up, all_, came)
    if sums:
        # In one order, so that two who fold never wait for each other in a circle.
        rows = [dict(zip(_COLUMNS, (*key, *sums[key]), strict=True)) for key in sorted(sums)]
        session.execute(_add(dialect_name(session)), records(session, rows))


@cache
def _add(dialect: str) -> Any:
    source = record_source(dialect, {name: job_flow.c[name].type for name in _COLUMNS})
    added = insert_or_ignore(dialect, job_flow).from_select(
        list(_COLUMNS),
        # SQLite takes ON CONFLICT for a join's without a WHERE in between.
        select(*(source.c[name] for name in _COLUMNS)).where(literal(1) == 1),
    )
    more = {name: job_flow.c[name] + added.excluded[name] for name in _SUMS}
    return added.on_conflict_do_update(index_elements=list(_KEY), set_=more)


def read(
    session: Executor,
    workspace_id: int,
    span: int,
    since: datetime,
    *,
    only_job_types: Sequence[str] | None = None,
) -> list[Came]:
    """What came in the spans that begin at ``since`` or later, in no order.

    Of one span and status there may be several, to be added up.

    To be called in a snapshot: what is just being folded is either here or there.
    """
    c, kept = job_count_changes.c, job_flow.c
    folded = (
        select(kept.at, kept.status, *(func.sum(kept[name]) for name in _SUMS))
        .where(kept.workspace_id == workspace_id, kept.span == span, kept.at >= since)
        .group_by(kept.at, kept.status)
    )
    came = case((c.n > 0, c.n), else_=0), c.n, case((c.n > 0, c.seconds), else_=0.0)
    fresh = select(c.at, c.status, *came).where(c.workspace_id == workspace_id, c.at >= since)
    if only_job_types is not None:
        folded = folded.where(kept.job_type.in_(only_job_types))
        fresh = fresh.where(c.job_type.in_(only_job_types))
    rows = [row for query in (folded, fresh) for row in session.execute(query)]
    return [
        Came(begin_of(at, span), status, int(n), int(net), float(seconds))
        for at, status, n, net, seconds in rows
    ]


def forget(session: Executor) -> None:
    """Delete spans that are older than their retention."""
    now = session.execute(select(DbNow())).scalar_one()
    for span, kept in KEPT.items():
        old = (job_flow.c.span == span) & (job_flow.c.at < now - kept)
        session.execute(delete(job_flow).where(old, not_moving(job_flow.c.workspace_id)))
