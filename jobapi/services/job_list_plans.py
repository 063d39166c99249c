r"""Plans of lists of jobs: which index is read, how much of it, and what has to be filtered.

In an index the jobs of one range (a workspace, or a bucket: workspace, status, type, priority)
lie next to each other, in order of time. The count table tells which buckets exist and how many
jobs each holds. ``choose`` takes the first row of this table that fits:

==============================  ==================  ============  ========
filters (each may be missing)   sort                Postgres      SQLite
==============================  ==================  ============  ========
status, type, priority          any but updated_at  ``MERGE``     ``SORT``
status, type, priority,         any but updated_at  ``MERGE``     ``SCAN``
created
status                          updated_at          ``MERGE`` *   ``SORT``
status, updated                 updated_at          ``MERGE`` *   ``SCAN``
status, type, priority          updated_at          ``SCAN`` *    ``SORT``
status is running, and others   started_at          ``SCAN``      ``SCAN``
job_id, and any others          any                 ``LOOKUP``    ``LOOKUP``
error_group, and any others     any                 ``LOOKUP``    ``LOOKUP``
schedule_id, and any others     any                 ``LOOKUP``    ``LOOKUP``
metadata, and any others        any                 ``LOOKUP``    ``SCAN``
any others                      any                 ``SCAN``      ``SCAN``
==============================  ==================  ============  ========

\* If the buckets of a list by ``updated_at`` that is filtered by status, type or priority hold no
more than ``FEW`` jobs, all of these are read and sorted (``SCAN``). Otherwise the ranges by status
are read in the order of change.

``MERGE``: the ranges hold exactly the list. One query reads the first entries of each range, puts
them in order and takes a page. For example, ``status=failed&limit=50`` in a workspace with 20 types
and 3 priorities has at most 60 buckets of failed jobs: 51 entries of each are read, one more than
wanted, to know whether there is a next page; the newest 51 of these 3,060 are taken. With more than
``MAX_MERGED`` buckets, ``SCAN`` is used instead.

``SORT``: SQLite finds the jobs by an index or sorts them all.

``LOOKUP``: an index finds up to ``MAX_COUNTED`` jobs by their ids, error groups, schedules or
metadata, which are filtered and sorted. If there are more, ``SCAN`` is used instead.

``SCAN``: the next ``MAX_SCANNED`` jobs in the order of the list are read and filtered. If the page
is not full then, it ends early, and its cursor continues after the last job that was read. For a
list by ``started_at``, all running jobs are read and sorted: they are few, and each claim would
have to write an index on their start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    false,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
)

from ..errors import ValidationFailed
from ..rules.jobs import JobStatus
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.partitions import is_partitioned
from ..store.records import record_source, records
from ..store.tables import jobs
from ..store.transactions import BY_KEY, IN_ORDER, set_planner
from . import counts
from .job_filters import CREATED, EXPIRES, HAS_FAILED, UPDATED, Filters, between, indexed_metadata
from .job_order import Order
from .job_rows import Scope

MAX_COUNTED = 10_000
"""Matches are counted up to this number if the count table does not have the total."""

MAX_SCANNED = 100_000
"""How many jobs, or entries of an index, are read for one page at most."""

MAX_MERGED = 2_000
"""How many buckets are merged at most."""

MAX_RANGES = 20_000
"""How many ranges are scanned at most."""

MAX_LOOKUPS = 100
"""The metadata index is used for lists of at most this number of workspaces."""

FEW = 2_000
"""Up to this number, all jobs are read and sorted if no index has the order of the list."""

KEY = ("workspace_id", "id")
"""The columns by which a job is fetched."""

Bound = Sequence[Any]
"""A position in a list: see ``Order``."""


class Plan(Enum):
    """How a list is read."""

    MERGE = auto()
    SORT = auto()
    LOOKUP = auto()
    SCAN = auto()


class Index(NamedTuple):
    """An index with a range for each combination of some columns, in the order of a time."""

    columns: tuple[str, ...]
    time: str
    filters: tuple[str, ...]
    """The time filters that bound a range."""


BY_WORKSPACE = Index(("workspace_id",), "created_at", CREATED)
BY_BUCKET = Index(counts.KIND, "created_at", CREATED)
BY_STATUS = Index(("workspace_id", "status"), "updated_at", UPDATED)


class Range(NamedTuple):
    """The values of a range's columns, and how many jobs it holds, whenever they were created."""

    values: tuple[Any, ...]
    n: int


class Merge(NamedTuple):
    """What a statement that merges ranges depends on."""

    source: Index
    order: Order
    times: tuple[str, ...]
    first: int | None = None
    """How many entries are read, if these are the first after the bounds, and only one index has
    their order, so that the plan may be kept; otherwise None, and a parameter says how many."""


class Found(NamedTuple):
    """The jobs of a page: by a merge, by a query (SQLite), or by their keys in ``parameters``."""

    parameters: Mapping[str, Any]
    merge: Merge | None = None
    query: Select[Any] | None = None


class Matches(NamedTuple):
    """Jobs that match, how many of those that were read, and the last job that was read.

    ``stop`` is None if the list was read to its end.
    """

    rows: Sequence[AnyRow]
    n: int
    stop: Any


class Listing:
    """The filters and the order of a list, and the buckets and the index that it is read from.

    ``until`` is for an operation, which walks through the jobs created until then. It changes the
    status of jobs as it goes, so each bucket is assumed to have jobs in all wanted statuses.
    """

    def __init__(
        self,
        session: Executor,
        scope: Scope,
        filters: Filters,
        order: Order,
        *,
        until: datetime | None = None,
    ) -> None:
        self.session = session
        self.filters = filters
        self.order = order
        self.until = until
        self.dialect = dialect_name(session)
        self._scope = scope
        in_bucket = filters.only_job_types is not None or any(
            [filters.status, filters.job_type, filters.priority]
        )
        set_planner(session, IN_ORDER)
        wanted = filters if until is None else replace(filters, status=())
        buckets = counts.kinds(session, scope, wanted)
        self.buckets = buckets if until is None else _in_each_status(buckets, filters.status)
        self.n = sum(bucket.n for bucket in self.buckets)
        self.is_counted = until is None and not filters.rest(self.dialect)
        """Whether the count table has the total."""
        self.index = BY_BUCKET
        if order.sort == "updated_at" and (not in_bucket or self.n > FEW):
            self.index = BY_STATUS
        elif order.sort == "created_at" and not in_bucket:
            self.index = BY_WORKSPACE
        self.times = filters.times(*self.index.filters)

    @property
    def where(self) -> list[ColumnElement[bool]]:
        """The conditions on the workspace and the bucket of a job."""
        return [self._scope(jobs.c), *self.filters.bucket(jobs.c)]

    def ranges(self) -> list[Range]:
        """The ranges of the index that hold jobs of the list."""
        sums: Counter[tuple[Any, ...]] = Counter()
        for bucket in self.buckets:
            sums[tuple(getattr(bucket, name) for name in self.index.columns)] += bucket.n
        return [Range(values, n) for values, n in sorted(sums.items())]

    def in_range(self, table: Any) -> list[ColumnElement[bool]]:
        """The conditions on the jobs of a range of ``table`` that the index can answer."""
        until = [] if self.until is None else [jobs.c.created_at <= self.until]
        same = [jobs.c[name] == table.c[name] for name in self.index.columns]
        return [*same, *until, *between(self.times)]

    def total(self) -> tuple[int, bool]:
        """The total of a ``MERGE`` or ``SORT``, and whether there may be more."""
        if self.is_counted:
            return self.n, False
        table = range_source(self.index)
        each = select(literal(1)).select_from(jobs).where(*self.in_range(table)).lateral("each")
        some = select(literal(1)).select_from(table.join(each, true())).limit(MAX_COUNTED + 1)
        columns = self.index.columns
        rows = [dict(zip(columns, each.values, strict=True)) for each in self.ranges()]
        query = select(func.count()).select_from(some.subquery())
        n = self.session.execute(query, records(self.session, rows)).scalar_one()
        return min(n, MAX_COUNTED), n > MAX_COUNTED


def choose(listing: Listing) -> Plan:
    """The plan for a list, by the table of this module."""
    filters, index = listing.filters, listing.index
    if filters.job_id or filters.error_group or filters.schedule_id:
        return Plan.LOOKUP
    if listing.dialect == "sqlite":
        return Plan.SORT if listing.is_counted else Plan.SCAN
    if filters.metadata and len(_workspaces(listing)) <= MAX_LOOKUPS:
        return Plan.LOOKUP
    others: list[object] = [
        filters.metadata,
        filters.created_by is not None,
        filters.error is not None,
        filters.concurrency_key,
        filters.unique_key,
        filters.times(*EXPIRES),
        listing.order.sort == "started_at",
    ]
    if index is BY_STATUS:
        by_type = filters.job_type or filters.priority or filters.only_job_types is not None
        others += [by_type, filters.times(*CREATED)]
    else:
        others += [filters.times(*UPDATED), listing.order.sort == "updated_at"]
    if any(others) or (index is BY_BUCKET and len(listing.buckets) > MAX_MERGED):
        return Plan.SCAN
    return Plan.MERGE


def _workspaces(listing: Listing) -> list[int]:
    return sorted({bucket.workspace_id for bucket in listing.buckets})


def _in_each_status(buckets: Sequence[Any], statuses: Sequence[JobStatus]) -> list[Any]:
    """Buckets for each type and priority in all wanted statuses (none given: in all)."""
    sums: Counter[tuple[Any, ...]] = Counter()
    for bucket in buckets:
        sums[bucket.workspace_id, bucket.job_type, bucket.priority] += bucket.n
    names = ("workspace_id", "job_type", "priority")
    return [
        SimpleNamespace(**dict(zip(names, values, strict=True)), status=status, n=n)
        for values, n in sorted(sums.items())
        for status in statuses or JobStatus
    ]


def exactly(
    listing: Listing, plan: Plan, after: Bound | None, offset: int, limit: int, total: int
) -> Found:
    """A page of a ``MERGE`` or ``SORT``. Raises ``ValidationFailed`` if it lies too deep."""
    order = listing.order
    if listing.is_counted and after is None and offset > total // 2:
        # Read from the nearer end, so that the last page costs as little as the first.
        limit = min(limit, total - offset)
        offset = total - offset - limit
        order = order.reverse
    if plan is Plan.SORT:
        if order.sort == "started_at":
            _check_few_running(listing)
        if offset > MAX_SCANNED:
            raise too_deep()
        query = _in_order(order, listing.where, after).limit(limit).offset(offset)
        return Found({}, query=query)
    skipped, ranges = 0, listing.ranges()
    if order.is_ranked:
        skipped, ranges = _ranges_of_page(listing, order, ranges, after, offset, limit)
    offset -= skipped
    head = offset + limit
    only = listing.index in (BY_WORKSPACE, BY_STATUS) and not is_partitioned(listing.session)
    first = limit if only and not offset else None
    if offset > 0 and sum(min(head, each.n) for each in ranges) > MAX_SCANNED:
        raise too_deep()
    return Found(
        {
            "head": head,
            "limit": limit,
            "offset": offset,
            **listing.times,
            **records(listing.session, _starts(listing.index, order, ranges, after)),
        },
        Merge(listing.index, order, tuple(listing.times), first),
    )


def _ranges_of_page(
    listing: Listing,
    order: Order,
    ranges: Sequence[Range],
    after: Bound | None,
    offset: int,
    limit: int | None,
) -> tuple[int, list[Range]]:
    """The ranges of the ranks in which a page lies, and how many jobs of earlier ranks it skips.

    For example, the third page of 50 by priority, if 70 jobs have priority high and 900 normal:
    the 70 are skipped, and the page lies in the ranges of the 900. Skipping relies on the counts.
    They do not know the matches of a time filter, so a list with one reads all ranges.
    """
    place = listing.index.columns.index(order.sort)
    needed: list[Range] = []
    skipped = held = 0
    for rank in sorted({each.values[place] for each in ranges}, reverse=order.is_descending):
        if after is not None and (rank > after[0] if order.is_descending else rank < after[0]):
            continue
        of_rank = [each for each in ranges if each.values[place] == rank]
        n = sum(each.n for each in of_rank)
        if listing.is_counted and after is None and not needed and skipped + n <= offset:
            skipped += n
            continue
        needed += of_rank
        # It is unknown how many jobs of the cursor's own rank come after it.
        held += 0 if after is not None and rank == after[0] else n
        if listing.is_counted and limit is not None and held >= offset - skipped + limit:
            break
    return skipped, needed


def _starts(
    index: Index, order: Order, ranges: Sequence[Range], after: Bound | None
) -> list[dict[str, Any]]:
    """Each range with the time and id after which it is read."""
    start: tuple[Any, Any] = ("infinity" if order.is_descending else "-infinity", 0)
    rows = []
    for values, _ in ranges:
        row = dict(zip(index.columns, values, strict=True))
        is_started = after is not None and (len(after) == 2 or row[order.sort] == after[0])
        row["bound_at"], row["bound_id"] = after[-2:] if is_started and after is not None else start
        rows.append(row)
    return rows


def range_source(index: Index) -> Any:
    """The ranges that a statement gets as a parameter, as ``_starts`` makes them."""
    types = {name: jobs.c[name].type for name in index.columns}
    return record_source(
        "postgresql", types | {"bound_at": jobs.c[index.time].type, "bound_id": jobs.c.id.type}
    )


def merged(merge: Merge) -> Any:
    """The keys of a page: the first entries of all ranges in one order."""
    index, order = merge.source, merge.order
    table = range_source(index)
    keys = {c.name: c for c in [jobs.c.workspace_id, *order.keys]}
    by = [jobs.c[index.time], jobs.c.id]
    times = {name: bindparam(name, type_=jobs.c.created_at.type) for name in merge.times}
    # As a constant, or Postgres would expect a kept plan to read a tenth of the range.
    first: Any = None if merge.first is None else literal_column(str(merge.first))
    head = (
        select(*keys.values())
        .where(
            *(jobs.c[name] == table.c[name] for name in index.columns),
            *between(times),
            order.beyond(by, [table.c.bound_at, table.c.bound_id]),
        )
        .order_by(*order.of(by))
        .limit(bindparam("head") if first is None else first)
        .lateral("head")
    )
    found = (
        select(head.c.workspace_id, head.c.id)
        .select_from(table.join(head, true()))
        .order_by(*order.of([head.c[c.name] for c in order.keys]))
    )
    if first is None:
        return found.limit(bindparam("limit")).offset(bindparam("offset")).subquery("found")
    return found.limit(first).subquery("found")


def filtered(
    listing: Listing, plan: Plan, after: Bound | None, offset: int, limit: int
) -> tuple[Matches, int, bool]:
    """A page of a ``LOOKUP`` or ``SCAN``, the list's total, and whether there may be more."""
    found = looked_up(listing, after, offset, limit) if plan is Plan.LOOKUP else None
    if found is not None:
        n, is_capped = found.n, False
    else:
        found = scanned(listing, after, offset, limit, MAX_SCANNED)
        start = found if after is None else scanned(listing, None, 0, 0, MAX_SCANNED)
        n, is_capped = start.n, start.stop is not None
    if listing.is_counted:
        return found, listing.n, False
    return found, min(n, MAX_COUNTED), is_capped or n > MAX_COUNTED


def looked_up(listing: Listing, after: Bound | None, offset: int, limit: int) -> Matches | None:
    """The jobs that an index finds; None if there are more than ``MAX_COUNTED``."""
    filters = listing.filters
    until = [] if listing.until is None else [jobs.c.created_at <= listing.until]
    matches = [*listing.where, *until, *filters.rest(listing.dialect)]
    columns = _columns(listing.order, matches)
    rows: list[dict[str, Any]] | None = None
    if listing.dialect == "sqlite":
        source = select(*columns).where(*_indexed(listing))
    elif filters.job_id:
        ids = sorted(set(filters.job_id))
        rows = [{"workspace_id": w, "job_id": each} for w in _workspaces(listing) for each in ids]
        source = _of_each(("workspace_id", "job_id"), columns)
    elif filters.schedule_id:
        ids = sorted(set(filters.schedule_id))
        rows = [
            {"workspace_id": w, "schedule_id": each} for w in _workspaces(listing) for each in ids
        ]
        made = jobs.c.schedule_id.is_not(None)
        key = ("workspace_id", "schedule_id")
        source = _of_each(key, columns, made, order=(jobs.c.scheduled_for,))
    elif filters.error_group:
        kinds = sorted({(bucket.workspace_id, bucket.job_type) for bucket in listing.buckets})
        names = ("workspace_id", "job_type", "error_group")
        rows = [
            dict(zip(names, (*kind, each), strict=True))
            for kind in kinds
            for each in sorted(set(filters.error_group))
        ]
        source = _of_each(names, columns, HAS_FAILED, order=(jobs.c.completed_at, jobs.c.id))
    else:
        set_planner(listing.session, BY_KEY)
        source = select(*columns).where(_has_indexed_metadata(listing))
    if rows is not None and len(rows) > MAX_RANGES:
        return None
    source = source.add_columns(func.row_number().over().label("place")).limit(MAX_COUNTED + 1)
    given = {} if rows is None else records(listing.session, rows)
    found = _matches(listing, source, given, after, offset, limit, MAX_COUNTED + 1)
    set_planner(listing.session, IN_ORDER)
    return found if found.stop is None else None


def _of_each(
    names: tuple[str, ...],
    columns: Sequence[Any],
    *conditions: ColumnElement[bool],
    order: Sequence[Any] = (),
) -> Select[Any]:
    """The first ``MAX_COUNTED`` jobs, and one more, for each of the records with these columns.

    The values are joined as records. As constants they could make a planner whose statistics do not
    know a new workspace choose an index on the workspace alone, and read all of its jobs.
    """
    wanted = record_source("postgresql", {name: jobs.c[name].type for name in names})
    same = [jobs.c[name] == wanted.c[name] for name in names]
    each = select(*columns).where(*same, *conditions).order_by(*order).limit(MAX_COUNTED + 1)
    found = each.lateral("each")
    return select(*found.c).select_from(wanted.join(found, true()))


def _indexed(listing: Listing) -> list[ColumnElement[bool]]:
    """The conditions of a ``LOOKUP`` on SQLite."""
    filters = listing.filters
    if filters.job_id:
        return [jobs.c.job_id.in_(filters.job_id)]
    if filters.schedule_id:
        return [
            jobs.c.workspace_id.in_(_workspaces(listing)),
            jobs.c.schedule_id.is_not(None),
            jobs.c.schedule_id.in_(filters.schedule_id),
        ]
    return [
        HAS_FAILED,
        jobs.c.workspace_id.in_(_workspaces(listing)),
        jobs.c.job_type.in_(sorted({bucket.job_type for bucket in listing.buckets})),
        jobs.c.error_group.in_(filters.error_group),
    ]


def _has_indexed_metadata(listing: Listing) -> ColumnElement[bool]:
    metadata = listing.filters.metadata
    each = (indexed_metadata(workspace_id, metadata) for workspace_id in _workspaces(listing))
    return and_(jobs.c.metadata.is_not(None), or_(false(), *each))


def scanned(listing: Listing, after: Bound | None, offset: int, limit: int, most: int) -> Matches:
    """The matches among the next ``most`` jobs.

    On Postgres an equal share of ``most`` is read from each range. If a range has more jobs than
    that, the scan ends at the last of them that was read: jobs of other ranges beyond it are left
    for the next page, because unread jobs of this range may come before them.
    """
    order, index = listing.order, listing.index
    matches = [*listing.where, *listing.filters.rest(listing.dialect)]
    if order.sort == "started_at":
        _check_few_running(listing)
    if listing.dialect == "sqlite":
        until = () if listing.until is None else (jobs.c.created_at <= listing.until,)
        place = func.row_number().over(order_by=order.of(order.keys)).label("place")
        source = (
            _in_order(order, [*listing.where, *until], after)
            .with_only_columns(*_columns(order, matches), place)
            .limit(most)
        )
        return _matches(listing, source, {}, None, offset, limit, most)
    ranges = listing.ranges()
    if len(ranges) > MAX_RANGES:
        raise ValidationFailed(
            {"sort": ["There are too many buckets. Filter by workspace, status or job type."]}
        )
    # If the index does not have the list's order, all jobs of the ranges are read and sorted. They
    # are few: see ``FEW``.
    in_order = index.time == order.sort or order.is_ranked
    if order.is_ranked:
        _, ranges = _ranges_of_page(listing, order, ranges, after, 0, None)
    few = MAX_SCANNED if order.sort == "started_at" else FEW
    share = max(most // max(1, len(ranges)), 10) if in_order else few + 1
    table = range_source(index)
    by = [jobs.c[index.time], jobs.c.id]
    place = func.row_number().over(order_by=order.of(by)).label("place")
    head = (
        select(*_columns(order, matches), place)
        .where(*listing.in_range(table), order.beyond(by, [table.c.bound_at, table.c.bound_id]))
        .order_by(*order.of(by))
        .limit(share)
        .lateral("head")
    )
    source = select(*head.c).select_from(table.join(head, true()))
    starts = records(listing.session, _starts(index, order, ranges, after if in_order else None))
    after = None if in_order else after
    return _matches(listing, source, starts, after, offset, limit, share)


def _columns(order: Order, matches: Sequence[ColumnElement[bool]]) -> list[Any]:
    columns = [jobs.c.workspace_id, jobs.c.job_id, *order.keys]
    return [*columns, case((and_(true(), *matches), 1), else_=0).label("matches")]


def _matches(
    listing: Listing,
    source: Select[Any],
    parameters: Mapping[str, Any],
    after: Bound | None,
    offset: int,
    limit: int,
    last: int,
) -> Matches:
    """The matches among the jobs that ``source`` reads, in order.

    Its rows have ``matches``, and ``place``, which numbers the jobs of each range from 1. A job
    with the place ``last`` may be followed by jobs that were not read, so the list stops there.
    """
    order = listing.order
    read = source.cte("read")

    def keys(table: Any) -> list[Any]:
        return [table.c[key.name] for key in order.keys]

    stop = (
        select(*keys(read))
        .where(read.c.place == last)
        .order_by(*order.of(keys(read)))
        .limit(1)
        .cte("stop")
    )
    beyond = order.beyond(keys(read), keys(stop))
    valid = (
        select(read)
        .select_from(read.outerjoin(stop, true()))
        .where(read.c.matches == 1, or_(stop.c.id.is_(None), not_(beyond)))
        .cte("valid")
    )
    shown = select(valid).order_by(*order.of(keys(valid))).limit(limit).offset(offset)
    if after is not None:
        shown = shown.where(order.beyond(keys(valid), after))
    page = shown.subquery("shown")
    n = select(func.count()).select_from(valid).scalar_subquery()
    # One row with the number and the stop, even if the page has no jobs.
    one = select(literal(1).label("one")).subquery("one")
    stops = [column.label(f"stop_{column.name}") for column in stop.c]
    query = (
        select(n.label("n"), *stops, *page.c)
        .select_from(one.outerjoin(stop, true()).outerjoin(page, true()))
        .order_by(*order.of(keys(page)))
    )
    rows = listing.session.execute(query, parameters).all()
    end = {key.name: getattr(rows[0], f"stop_{key.name}") for key in order.keys}
    return Matches(
        [row for row in rows if row.id is not None],
        rows[0].n,
        None if end["id"] is None else SimpleNamespace(**end),
    )


def _in_order(order: Order, where: Sequence[Any], after: Bound | None) -> Select[Any]:
    beyond = [] if after is None else [order.beyond(order.keys, after)]
    query = select(jobs.c.workspace_id, jobs.c.id).where(*where, *beyond)
    return query.order_by(*order.of(order.keys))


def _check_few_running(listing: Listing) -> None:
    """Raise ``ValidationFailed`` if a list by start would have to sort too many jobs."""
    if listing.n > MAX_SCANNED:
        raise ValidationFailed(
            {
                "sort": [
                    f"More than {MAX_SCANNED} jobs are running. Filter by job type or priority, or"
                    " sort by another field."
                ]
            }
        )


def too_deep() -> ValidationFailed:
    """The error for a page that skips more than ``MAX_SCANNED`` jobs."""
    return ValidationFailed(
        {
            "page": [
                f"This page comes after more than {MAX_SCANNED} jobs. Follow next_cursor from the"
                " first page, sort in the opposite order, or add filters."
            ]
        }
    )
