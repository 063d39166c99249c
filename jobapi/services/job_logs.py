"""The logs of jobs: append, read and delete entries.

The caller of ``append`` has locked the job's row, so that each job has one writer at a time, and
the numbers of its entries are in the order of the commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, delete, func, select, true, tuple_, update

from ..rules.job_logs import Head, LogEntry, LogLevel, NewEntry, excess, extend
from ..store.columns import insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import not_moving
from ..store.paging import MAX_BYTES, MAX_NUMBER, no_cursor, read_cursor, write_cursor
from ..store.records import insert_records, record_source, records
from ..store.statement import Statement
from ..store.tables import job_log_heads, job_logs
from ..store.transactions import IN_ORDER, set_planner, transactional

TRIM_AT_ONCE = 200
"""How many of the oldest entries, at least, one statement reads to find those to delete."""

DELETE_AT_ONCE = 5_000
"""How many entries of deleted jobs are deleted in one transaction."""

HEADS_AT_ONCE = 200
"""And the logs of how many jobs."""

_OTHER_BYTES = 150
"""What an entry takes in a response besides its message, at most."""

_COLUMNS = tuple(
    job_logs.c[name] for name in ("number", "attempt", "seq", "at", "level", "message")
)


class Addition(NamedTuple):
    """Entries for the log of a job whose row is locked."""

    job: int
    """The job's ``id``."""
    attempt: int
    entries: Sequence[LogEntry]
    now: datetime


class Appended(NamedTuple):
    """What became of the entries."""

    stored: int = 0
    repeated: int = 0
    """Those that had been stored before, by their ``seq``."""
    trimmed: int = 0
    """How many older entries were deleted for them."""
    dropped: int = 0
    """How many entries of the log are not kept any more, in all."""


class LogPage(NamedTuple):
    """A page of a job's log."""

    rows: Sequence[AnyRow]
    total: int
    dropped: int
    next_cursor: str | None
    tail_cursor: str
    """Continues, in ascending order, after the newest entry that there is now."""


def append(session: Executor, workspace_id: int, given: Sequence[Addition]) -> list[Appended]:
    """Append to the logs of jobs whose rows are locked; several additions to one job in order."""
    dialect = dialect_name(session)
    wanted = [
        {"workspace_id": workspace_id, "job": job} for job in sorted({each.job for each in given})
    ]
    found = _heads(dialect).all(session, records(session, wanted))
    heads = {row.job: Head(row.first, row.last, row.bytes, row.attempt, row.seq) for row in found}
    added: dict[int, list[NewEntry]] = {}
    appended = []
    for each in given:
        head, new = extend(heads.get(each.job, Head()), each.attempt, each.entries, each.now)
        heads[each.job] = head
        added.setdefault(each.job, []).extend(new)
        appended.append(Appended(len(new), len(each.entries) - len(new)))
    trimmed = {}
    for job, new in added.items():
        before = heads[job].first
        heads[job] = _trim(session, workspace_id, job, heads[job], new)
        trimmed[job] = heads[job].first - before
    entries = [
        {"workspace_id": workspace_id, "job": job, **entry._asdict()}
        for job, new in added.items()
        for entry in new
        if entry.number >= heads[job].first
    ]
    if entries:
        session.execute(insert_records(session, job_logs, _ENTRY), records(session, entries))
    changed = [
        {"workspace_id": workspace_id, "job": job, **heads[job]._asdict()}
        for job, new in sorted(added.items())
        if new
    ]
    if changed:
        session.execute(_move_heads(dialect), records(session, changed))
    return [
        each._replace(
            # What was deleted is counted once for each job.
            trimmed=trimmed.pop(addition.job, 0),
            dropped=heads[addition.job].first - 1,
        )
        for each, addition in zip(appended, given, strict=True)
    ]


_ENTRY = ("workspace_id", "job", *NewEntry._fields)
_HEAD = ("workspace_id", "job", *Head._fields)


@cache
def _heads(dialect: str) -> Statement[AnyRow]:
    c = job_log_heads.c
    wanted = record_source(dialect, {"workspace_id": c.workspace_id.type, "job": c.job.type}).c
    return Statement[AnyRow](
        select(job_log_heads).where(c.workspace_id == wanted.workspace_id, c.job == wanted.job)
    )


@cache
def _move_heads(dialect: str) -> Any:
    source = record_source(dialect, {name: job_log_heads.c[name].type for name in _HEAD})
    # SQLite needs a WHERE there, to tell ON CONFLICT from a join.
    rows = select(*(source.c[name] for name in _HEAD)).where(source.c.job.is_not(None))
    heads = insert_or_ignore(dialect, job_log_heads).from_select(list(_HEAD), rows)
    return heads.on_conflict_do_update(
        index_elements=["workspace_id", "job"],
        set_={name: heads.excluded[name] for name in Head._fields},
    )


def _trim(
    session: Executor, workspace_id: int, job: int, head: Head, new: Sequence[NewEntry]
) -> Head:
    """Delete the oldest entries that are too much; ``new`` are those that are not stored yet."""
    until, too_many = excess(head)
    if until < head.first and not too_many:
        return head
    stored_last = new[0].number - 1 if new else head.last
    mine = _of_job(workspace_id, job)
    c = job_logs.c
    first, freed = head.first, 0
    at_once = max(TRIM_AT_ONCE, 2 * len(new))
    while first <= stored_last and (first <= until or freed < too_many):
        # A range of the key, so that a full log is not read as a whole.
        end = min(first + at_once - 1, stored_last)
        some = select(c.number, c.size).where(mine, c.number.between(first, end))
        for number, size in session.execute(some.order_by(c.number)):
            if number > until and freed >= too_many:
                break
            first, freed = number + 1, freed + size
    session.execute(delete(job_logs).where(mine, c.number.between(head.first, first - 1)))
    for entry in new:
        if first <= until or freed < too_many:
            first, freed = entry.number + 1, freed + entry.size
    return head._replace(first=first, bytes=head.bytes - freed)


def _of_job(workspace_id: int, job: int) -> ColumnElement[bool]:
    return (job_logs.c.workspace_id == workspace_id) & (job_logs.c.job == job)


def page(
    session: Executor,
    workspace_id: int,
    job: int,
    *,
    limit: int,
    order: str = "asc",
    cursor: str | None = None,
    level: LogLevel | None = None,
    attempt: int | None = None,
) -> LogPage:
    """``limit`` entries of a log, the oldest first unless ``order`` is ``desc``.

    ``level`` is the lowest that is wanted. A page has at most ``MAX_BYTES``. Call it in a
    snapshot. Raises ``ValidationFailed`` for an invalid cursor.
    """
    after = None if cursor is None else _number(cursor)
    heads = job_log_heads.c
    head = session.execute(
        select(heads.first, heads.last).where(heads.workspace_id == workspace_id, heads.job == job)
    ).first()
    if head is None:
        return LogPage((), 0, 0, None, write_cursor([after or 0]))
    set_planner(session, IN_ORDER)
    number = job_logs.c.number
    # From the head on: of what was trimmed, an index has dead entries for a while.
    where = [_of_job(workspace_id, job), number >= head.first]
    total = head.last - head.first + 1
    if level is not None:
        where.append(job_logs.c.level >= level)
    if attempt is not None:
        where.append(job_logs.c.attempt == attempt)
    if level is not None or attempt is not None:
        matches = select(func.count()).select_from(job_logs).where(*where)
        total = session.execute(matches).scalar_one()
    descending = order == "desc"
    if after is not None:
        where.append(number < after if descending else number > after)
    query = select(*_COLUMNS).where(*where).limit(limit + 1)
    found = session.execute(query.order_by(number.desc() if descending else number)).all()
    rows = found[: _fitting(found, limit)]
    more = write_cursor([rows[-1].number]) if len(rows) < len(found) else None
    # An ascending page goes on where it ends; after any other, new entries are numbered higher.
    tail = more if more is not None and not descending else write_cursor([head.last])
    return LogPage(rows, total, head.first - 1, more, tail)


def _fitting(rows: Sequence[AnyRow], limit: int) -> int:
    """How many of the rows fit into a page: one at least."""
    size = 0
    for n, row in enumerate(rows[:limit]):
        size += len(orjson.dumps(row.message)) + _OTHER_BYTES
        if n and size > MAX_BYTES:
            return n
    return min(len(rows), limit)


def _number(cursor: str) -> int:
    values = read_cursor(cursor)
    if len(values) != 1 or type(values[0]) is not int or not 0 <= values[0] < MAX_NUMBER:
        raise no_cursor()
    return int(values[0])


@transactional()
def delete_of_deleted_jobs(
    session: Executor, *, workspace_id: int | None = None, most: int = DELETE_AT_ONCE
) -> bool:
    """Delete up to ``most`` entries of jobs that were deleted; returns whether there may be more.

    Logs that another process is deleting are skipped.
    """
    c = job_log_heads.c
    heads = session.execute(
        select(c.workspace_id, c.job, c.first, c.last)
        .where(
            c.deleted,
            not_moving(c.workspace_id),
            true() if workspace_id is None else c.workspace_id == workspace_id,
        )
        .limit(HEADS_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    left = most
    gone = []
    for head in heads:
        if left <= 0:
            break
        until = min(head.last, head.first + left - 1)
        entries = job_logs.c.number.between(head.first, until)
        session.execute(delete(job_logs).where(_of_job(head.workspace_id, head.job), entries))
        left -= until - head.first + 1
        if until == head.last:
            gone.append((head.workspace_id, head.job))
        else:
            mine = (c.workspace_id == head.workspace_id) & (c.job == head.job)
            session.execute(update(job_log_heads).where(mine).values(first=until + 1))
    if gone:
        session.execute(delete(job_log_heads).where(tuple_(c.workspace_id, c.job).in_(gone)))
    return bool(heads)
