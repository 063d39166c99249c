"""Throughput: how many jobs entered each status, and when. Rates and charts are made from it.

The changes of the counts say when they were made. The compaction adds them up over
spans of time; the longer spans are kept for longer.
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
"""The lengths of spans in seconds, and how long rows of each length are kept."""

_KEY = ("workspace_id", "span", "at", "status", "job_type")
_SUMS = ("n", "net", "seconds")
_COLUMNS = (*_KEY, *_SUMS)


class Came(NamedTuple):
    """How many jobs entered a status in a span that begins ``at``.

    ``net`` is ``n`` minus the jobs that left the status. ``seconds`` is a sum over the
    ``n`` jobs: for running, how long they had waited since they were due; for success and
    failed, how long they had run.
    """

    at: datetime
    status: int
    n: int
    net: int
    seconds: float


def begin_of(moment: datetime, span: int) -> datetime:
    """The start of the span, of ``span`` seconds, in which a moment lies."""
    return datetime.fromtimestamp(moment.timestamp() // span * span, UTC)


def add(session: Executor, changes: Sequence[AnyRow]) -> None:
    """Add changes of the counts to the throughput, in the transaction that compacts them."""
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
        # Always in the same order, so that concurrent compactions cannot deadlock.
        rows = [dict(zip(_COLUMNS, (*key, *sums[key]), strict=True)) for key in sorted(sums)]
        session.execute(_add(dialect_name(session)), records(session, rows))


@cache
def _add(dialect: str) -> Any:
    source = record_source(dialect, {name: job_flow.c[name].type for name in _COLUMNS})
    added = insert_or_ignore(dialect, job_flow).from_select(
        list(_COLUMNS),
        # Without the WHERE, SQLite would read the ON of ON CONFLICT as that of a join.
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
    """The throughput in the spans that begin at ``since`` or later, in no order.

    There may be several rows for one span and status, which the caller adds up. Call it in
    a snapshot, so that changes that are being compacted count exactly once.
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
