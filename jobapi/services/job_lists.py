"""Lists of jobs: filters, order, pages and cursors, at a cost that their number does not raise.

A list is put together from the heads of an index's ranges: the jobs of one
kind lie there in their order, and which kinds there are, the counts know. So
what is read is what is shown, however many jobs there are and however few
match. Filters that are not of a kind are judged job by job, in the order of
the list, and no more than ``LOOKED_AT`` jobs are looked at for one page: where
few match, it may have fewer jobs than wanted, and a cursor that goes on. On
Postgres an index finds by their metadata the jobs of a workspace that match,
where these are few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cache
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ..errors import PageTooLarge, ValidationFailed
from ..rules.jobs import JobStatus, Priority
from ..store.columns import IsAmong
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.paging import MAX_BYTES, MAX_NUMBER, no_cursor, read_cursor, write_cursor
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import jobs
from ..store.transactions import BY_KEY, IN_ORDER, plan_without
from . import counts
from .job_rows import COLUMNS, Scope, answer_bytes, fitting

MAX_COUNTED = 10_000
"""Up to how many matches are counted if the kept totals do not have the number."""

LOOKED_AT = 100_000
"""How many jobs, or entries of an index, are read for one page at most."""

MAX_KINDS = 2_000
"""The most ranges that a list merges; with more, jobs are checked one by one."""

MAX_RANGES = 20_000
"""How many ranges are looked through at most."""

MAX_PLACES = 100
"""The most workspaces in which the index is used to find metadata."""

FEW = 2_000
"""So many matches are read whole, where no index has them in the order wanted."""

WALKED = 10_000
"""How many jobs one step of a walk reads."""

LARGE = frozenset({"metadata", "result"})
"""The columns that a light list leaves out."""

_SORT_KEYS: Mapping[str, tuple[str, ...]] = {
    "created_at": ("created_at", "id"),
    "updated_at": ("updated_at", "id"),
    "priority": ("priority", "created_at", "id"),
    "status": ("status", "created_at", "id"),
}
_LIGHT = tuple(column for column in COLUMNS if column.name not in LARGE)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What jobs have to be like to be listed: all of what is given.

    ``created_after`` and ``updated_after`` are the first moment that counts,
    ``created_before`` is the first that does not. ``metadata`` has paths of
    keys, ``a.b``, with the text of a value.
    """

    status: Sequence[JobStatus] = ()
    job_type: Sequence[str] = ()
    priority: Sequence[Priority] = ()
    only_job_types: Sequence[str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    created_by: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def kind(self, c: Any) -> list[ColumnElement[bool]]:
        """The conditions on a job's kind; ``c`` are columns that have it."""
        given = [(c.status, self.status), (c.job_type, self.job_type), (c.priority, self.priority)]
        conditions = [column.in_(wanted) for column, wanted in given if wanted]
        if self.only_job_types is not None:
            conditions.append(c.job_type.in_(self.only_job_types))
        return conditions

    def times(self, *names: str) -> dict[str, datetime]:
        """Those of the times named that are given."""
        given = {name: getattr(self, name) for name in names}
        return {name: moment for name, moment in given.items() if moment is not None}

    def rest(self, dialect: str) -> list[ColumnElement[bool]]:
        """The conditions that are not on a job's kind."""
        conditions = _between(self.times(*_MADE, *_CHANGED))
        if self.created_by is not None:
            conditions.append(jobs.c.created_by == self.created_by)
        conditions += [_has(dialect, path, text) for path, text in self.metadata.items()]
        return conditions

    def to_json(self) -> dict[str, Any]:
        """What is given, to be kept as JSON."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: value for name, value in given.items() if value not in (None, (), {})}
        document: dict[str, Any] = orjson.loads(orjson.dumps(kept))
        return document

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """What ``to_json`` kept."""
        moments = {name: datetime.fromisoformat(kept[name]) for name in _MOMENTS & kept.keys()}
        return cls(**{**kept, **moments})


_MADE = ("created_after", "created_before")
_CHANGED = ("updated_after",)
_MOMENTS = {*_MADE, *_CHANGED}


class JobPage(NamedTuple):
    """Some jobs of a list, how many it has, and where it goes on."""

    rows: Sequence[AnyRow]
    total: int
    total_is_capped: bool
    next_cursor: str | None


class _Order(NamedTuple):
    sort: str
    order: str

    @property
    def keys(self) -> list[Any]:
        return [jobs.c[name] for name in _SORT_KEYS[self.sort]]

    def by(self, columns: Sequence[Any]) -> list[Any]:
        return [c.desc() if self.order == "desc" else c.asc() for c in columns]

    @property
    def backwards(self) -> _Order:
        """The other way round."""
        return _Order(self.sort, "asc" if self.order == "desc" else "desc")

    def beyond(self, columns: Sequence[Any], bound: Sequence[Any]) -> ColumnElement[bool]:
        one, other = tuple_(*columns), tuple_(*bound)
        return one < other if self.order == "desc" else one > other

    def cursor(self, row: Any) -> str:
        values = [getattr(row, name) for name in _SORT_KEYS[self.sort]]
        return write_cursor([*self, *values])

    def read(self, cursor: str) -> list[Any]:
        """The values of the sort's keys at which the last page ended."""
        try:
            sort, order, *values = read_cursor(cursor)
            if (sort, order) != (self.sort, self.order) or len(values) != len(self.keys):
                raise ValidationFailed(
                    {"cursor": ["It is of a list with another sort or order; begin anew."]}
                )
            *first, moment, number = values
            moment = datetime.fromisoformat(moment)
            limits = [*(len(JobStatus) for _ in first), MAX_NUMBER]
            whole = all(
                type(value) is int and 0 <= value < limit
                for value, limit in zip([*first, number], limits, strict=True)
            )
            # Not next to the calendar's ends, where a time has no UTC.
            if not whole or moment.tzinfo is None or not 1 < moment.year < 9999:
                raise ValueError(cursor)
        except (ValueError, TypeError):
            raise no_cursor() from None
        return [*first, moment, number]


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

    ``page`` is its number, from 1; otherwise it begins after ``cursor`` or with the
    list. Equal values are put in the order of creation, in the direction of
    ``order``. ``light`` leaves out ``metadata`` and ``result``. A page without a
    number may end early, at ``MAX_BYTES`` or after reading ``LOOKED_AT`` jobs;
    ``next_cursor`` says whether the list continues. Call it in a ``snapshot``, so
    that page and total show the same moment. Raises ``ValidationFailed`` for an
    invalid cursor, one of another list, and a page that is too deep;
    ``PageTooLarge`` for a numbered page over ``MAX_BYTES``.
    """
    ordered = _Order(sort, order)
    after = None if cursor is None else ordered.read(cursor)
    offset = 0 if page is None else (page - 1) * limit
    reading = _Reading(session, scope, filters, ordered)
    stop = None
    if reading.whole:
        total, capped = reading.total()
        if offset >= total and not capped:
            return JobPage((), total, False, None)
        found = _whole(
            reading, ordered, after, offset, limit + 1, total if reading.counted else None
        )
    else:
        picked, total, capped = _looked(reading, ordered, after, offset, limit + 1)
        if offset > 0 and picked.stop is not None and not picked.rows:
            raise _too_deep()
        found, stop = _these(session, picked.rows), picked.stop
    rows, n = _fetch(session, light, ordered, found, limit)
    if page is not None and len(rows) < min(n, limit):
        raise PageTooLarge(
            f"This page is larger than {MAX_BYTES:,} bytes. Use a smaller limit or light=true, or "
            "leave out page and follow next_cursor."
        )
    last = rows[-1] if len(rows) < n else stop
    return JobPage(rows, total, capped, None if last is None else ordered.cursor(last))


def count(session: Executor, scope: Scope, filters: Filters) -> tuple[int, bool]:
    """How many jobs in ``scope`` match, and whether there are more than that.

    To be called in a transaction.
    """
    ordered = _Order("created_at", "desc")
    reading = _Reading(session, scope, filters, ordered)
    if reading.whole:
        return reading.total()
    _, total, capped = _looked(reading, ordered, None, 0, 0)
    return total, capped


class Walked(NamedTuple):
    """Matching jobs in the order of creation, and the cursor to continue from; None at the end."""

    rows: Sequence[AnyRow]
    place: list[Any] | None


def walk(
    session: Executor,
    scope: Scope,
    filters: Filters,
    *,
    after: Sequence[Any] | None,
    until: datetime,
    most: int,
) -> Walked:
    """The next jobs that match, of those created ``until`` then, ``most`` at most.

    Each has ``id``, ``job_id`` and ``created_at``. It looks at ``WALKED`` jobs, however few of
    them match, unless an index finds those that do. ``after`` is the place of the last
    step. To be called in a transaction.
    """
    ordered = _Order("created_at", "asc")
    reading = _Reading(session, scope, filters, ordered, until=until)
    begin = None if after is None else [datetime.fromisoformat(after[0]), after[1]]
    picked = _found(reading, ordered, begin, 0, most)
    if picked is None:
        picked = _look(reading, ordered, begin, 0, most, WALKED)
    last = picked.rows[-1] if len(picked.rows) == most else picked.stop
    place = None if last is None else [last.created_at.isoformat(), last.id]
    return Walked(picked.rows, place)


def newest(session: Executor, kinds: Sequence[Any], most: int) -> Sequence[AnyRow]:
    """When the newest ``most`` jobs of each kind started and ended, with their type."""
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


class _Ranges(NamedTuple):
    """The index whose ranges a list reads, which way, and the times that bound them."""

    names: tuple[str, ...]
    moment: str
    ordered: _Order
    times: tuple[str, ...]


class _Found(NamedTuple):
    """The jobs of a page: in ranges of an index, or by workspace and id; on SQLite by a query."""

    parameters: Mapping[str, Any]
    ranges: _Ranges | None = None
    query: Select[Any] | None = None


class _Picked(NamedTuple):
    """Jobs that match, how many there are among those looked at, and where the looking ended.

    ``stop`` is None where it came to the end.
    """

    rows: Sequence[AnyRow]
    n: int
    stop: Any


class _Range(NamedTuple):
    """A range of an index: the values of its first columns, and how many jobs it has."""

    values: tuple[Any, ...]
    n: int


class _Reading:
    """Which ranges of which index a list reads; with ``until`` for a walk.

    What the walk reads changes all the time, so that a job may have another status by its turn.
    """

    def __init__(
        self,
        session: Executor,
        scope: Scope,
        filters: Filters,
        ordered: _Order,
        *,
        until: datetime | None = None,
    ) -> None:
        self.session = session
        self.filters = filters
        self.until = until
        self.dialect = dialect_name(session)
        self.where = [scope(jobs.c), *filters.kind(jobs.c)]
        plan_without(session, IN_ORDER)
        wanted = filters if until is None else replace(filters, status=())
        kinds = counts.kinds(session, lambda c: [scope(c), *wanted.kind(c)])
        self.kinds = kinds if until is None else _in_any_status(kinds, filters.status)
        self.n = sum(kind.n for kind in self.kinds)
        self.counted = until is None and not filters.rest(self.dialect)
        """Whether the kept totals have the number of matches."""
        self.names: Sequence[str] = counts.KIND
        self.moment = "created_at"
        looks = filters.created_by is not None or bool(filters.metadata)
        if ordered.sort == "updated_at" and (not filters.kind(jobs.c) or self.n > FEW):
            self.names, self.moment = ("workspace_id", "status"), "updated_at"
            of_types = filters.job_type or filters.priority or filters.only_job_types is not None
            looks = looks or bool(of_types or filters.times(*_MADE))
        elif ordered.sort == "created_at" and not filters.kind(jobs.c):
            self.names = ("workspace_id",)
        if self.moment == "created_at":
            # So few may be read in any order; otherwise the index has the one that is wanted.
            looks = looks or filters.updated_after is not None or ordered.sort == "updated_at"
        if self.dialect == "sqlite":
            looks = not self.counted
        elif self.names == counts.KIND and len(self.kinds) > MAX_KINDS:
            looks = True
        by_age = self.moment == "created_at"
        self.times = filters.times(*(_MADE if by_age else _CHANGED))
        self.whole = not looks
        """Whether the ranges are exactly the list, so that no job needs checking."""

    def total(self) -> tuple[int, bool]:
        """How many jobs match, and whether there are more, where the list is ``whole``."""
        if self.counted:
            return self.n, False
        table = _range_source(self.names, self.moment)
        each = select(literal(1)).select_from(jobs).where(*self.within(table)).lateral("each")
        some = select(literal(1)).select_from(table.join(each, true())).limit(MAX_COUNTED + 1)
        rows = [dict(zip(self.names, each.values, strict=True)) for each in self.ranges()]
        query = select(func.count()).select_from(some.subquery())
        n = self.session.execute(query, records(self.session, rows)).scalar_one()
        return min(n, MAX_COUNTED), n > MAX_COUNTED

    def ranges(self) -> list[_Range]:
        """The ranges of the index of which the list is made."""
        sums: Counter[tuple[Any, ...]] = Counter()
        for kind in self.kinds:
            sums[tuple(getattr(kind, name) for name in self.names)] += kind.n
        return [_Range(values, n) for values, n in sorted(sums.items())]

    def within(self, table: Any) -> list[ColumnElement[bool]]:
        """The conditions on the jobs of a range of ``table`` that its index knows."""
        until = [] if self.until is None else [jobs.c.created_at <= self.until]
        same = [jobs.c[name] == table.c[name] for name in self.names]
        return [*same, *until, *_between(self.times)]


def _in_any_status(kinds: Sequence[Any], statuses: Sequence[JobStatus]) -> list[Any]:
    sums: Counter[tuple[Any, ...]] = Counter()
    for kind in kinds:
        sums[kind.workspace_id, kind.job_type, kind.priority] += kind.n
    names = ("workspace_id", "job_type", "priority")
    return [
        SimpleNamespace(**dict(zip(names, values, strict=True)), status=status, n=n)
        for values, n in sorted(sums.items())
        for status in statuses or JobStatus
    ]


def _whole(
    reading: _Reading,
    ordered: _Order,
    after: Sequence[Any] | None,
    offset: int,
    shown: int,
    total: int | None,
) -> _Found:
    """The next ``shown`` jobs of a list that is ``whole``; its ``total`` where that is exact."""
    if total is not None and after is None and offset > total // 2:
        # Nearer to the other end.
        shown = min(shown, total - offset)
        offset = total - offset - shown
        ordered = ordered.backwards
    if reading.dialect == "sqlite":
        if offset > LOOKED_AT:
            raise _too_deep()
        return _Found({}, query=_plain(ordered, reading.where, after).limit(shown).offset(offset))
    passed = 0
    ranges = reading.ranges()
    if ordered.sort in ("status", "priority"):
        place = reading.names.index(ordered.sort)
        # How many jobs of a range a time filter leaves, the counts do not say: all are needed.
        most = shown if reading.counted else None
        exact = reading.counted and after is None
        passed, ranges = _needed(ranges, place, ordered, after, offset if exact else 0, most)
    offset -= passed
    reach = offset + shown
    if offset > 0 and sum(min(reach, each.n) for each in ranges) > LOOKED_AT:
        raise _too_deep()
    given = reading.times
    return _Found(
        {
            "reach": reach,
            "shown": shown,
            "skip": offset,
            **given,
            **records(reading.session, _begins(reading, ranges, ordered, after)),
        },
        _Ranges(tuple(reading.names), reading.moment, ordered, tuple(given)),
    )


def _needed(
    ranges: Sequence[_Range],
    place: int,
    ordered: _Order,
    after: Sequence[Any] | None,
    offset: int,
    shown: int | None,
) -> tuple[int, list[_Range]]:
    """The ranges in which a page lies, and how many jobs before them are skipped.

    All jobs of one status, or priority, come before those of the next: it is the value at
    ``place`` of each range.
    """
    needed: list[_Range] = []
    passed = covered = 0
    descending = ordered.order == "desc"
    for value in sorted({each.values[place] for each in ranges}, reverse=descending):
        if after is not None and (value > after[0] if descending else value < after[0]):
            continue
        mine = [each for each in ranges if each.values[place] == value]
        n = sum(each.n for each in mine)
        if not needed and passed + n <= offset:
            passed += n
            continue
        needed += mine
        # How much is left of the one that the cursor is in, the counts do not know.
        covered += 0 if after is not None and value == after[0] else n
        if shown is not None and covered >= offset - passed + shown:
            break
    return passed, needed


def _begins(
    reading: _Reading,
    ranges: Sequence[_Range],
    ordered: _Order,
    after: Sequence[Any] | None,
) -> list[dict[str, Any]]:
    """Each range with the place in it after which to begin."""
    start: tuple[Any, Any] = ("infinity" if ordered.order == "desc" else "-infinity", 0)
    rows = []
    for values, _ in ranges:
        row = dict(zip(reading.names, values, strict=True))
        begun = after is not None and (len(after) == 2 or row[ordered.sort] == after[0])
        row["bound_at"], row["bound_id"] = after[-2:] if begun and after is not None else start
        rows.append(row)
    return rows


def _range_source(names: Sequence[str], moment: str) -> Any:
    types = {name: jobs.c[name].type for name in names}
    bounds = {"bound_at": jobs.c[moment].type, "bound_id": jobs.c.id.type}
    return record_source("postgresql", types | bounds)


def _looked(
    reading: _Reading, ordered: _Order, after: Sequence[Any] | None, offset: int, most: int
) -> tuple[_Picked, int, bool]:
    """A page of a list whose jobs need checking; its total, and whether there may be more."""
    picked = _found(reading, ordered, after, offset, most)
    n, stopped = (picked.n, False) if picked is not None else (0, False)
    if picked is None:
        picked = _look(reading, ordered, after, offset, most, LOOKED_AT)
        begun = picked if after is None else _look(reading, ordered, None, 0, 0, LOOKED_AT)
        n, stopped = begun.n, begun.stop is not None
    if reading.counted:
        return picked, reading.n, False
    return picked, min(n, MAX_COUNTED), stopped or n > MAX_COUNTED


def _found(
    reading: _Reading, ordered: _Order, after: Sequence[Any] | None, offset: int, most: int
) -> _Picked | None:
    """The jobs that the metadata index finds; None if it finds too many."""
    metadata = reading.filters.metadata
    places = sorted({kind.workspace_id for kind in reading.kinds})
    if reading.dialect == "sqlite" or not metadata or len(places) > MAX_PLACES:
        return None
    plan_without(reading.session, BY_KEY)
    until = [] if reading.until is None else [jobs.c.created_at <= reading.until]
    matches = [*reading.where, *until, *reading.filters.rest(reading.dialect)]
    source = (
        select(*_looked_at(ordered, matches), func.row_number().over().label("place"))
        .where(
            jobs.c.metadata.is_not(None),
            or_(false(), *(_indexed(each, metadata) for each in places)),
        )
        .limit(MAX_COUNTED + 1)
    )
    picked = _pick(reading.session, source, {}, ordered, after, offset, most, MAX_COUNTED + 1)
    plan_without(reading.session, IN_ORDER)
    return picked if picked.stop is None else None


def _look(
    reading: _Reading,
    ordered: _Order,
    after: Sequence[Any] | None,
    offset: int,
    most: int,
    at: int,
) -> _Picked:
    """Look at so many of the jobs that come next, and pick those that match.

    Of each range as many as there are for it; where one ends too early, what others have beyond
    its last one is left for the next time, because jobs of it might come first.
    """
    matches = [*reading.where, *reading.filters.rest(reading.dialect)]
    if reading.dialect == "sqlite":
        source = _plain(ordered, reading.where, after).with_only_columns(
            *_looked_at(ordered, matches),
            func.row_number().over(order_by=ordered.by(ordered.keys)).label("place"),
        )
        until = () if reading.until is None else (jobs.c.created_at <= reading.until,)
        source = source.where(*until).limit(at)
        return _pick(reading.session, source, {}, ordered, None, offset, most, at)
    ranges = reading.ranges()
    if len(ranges) > MAX_RANGES:
        raise ValidationFailed(
            {"sort": ["There are too many kinds of jobs; filter by workspace, status or job type."]}
        )
    in_order = reading.moment == ordered.sort or ordered.sort in ("status", "priority")
    if ordered.sort in ("status", "priority"):
        _, ranges = _needed(ranges, reading.names.index(ordered.sort), ordered, after, 0, None)
    of_each = max(at // max(1, len(ranges)), 10) if in_order else FEW + 1
    table = _range_source(reading.names, reading.moment)
    by = [jobs.c[reading.moment], jobs.c.id]
    head = (
        select(
            *_looked_at(ordered, matches),
            func.row_number().over(order_by=ordered.by(by)).label("place"),
        )
        .where(*reading.within(table), ordered.beyond(by, [table.c.bound_at, table.c.bound_id]))
        .order_by(*ordered.by(by))
        .limit(of_each)
        .lateral("first")
    )
    source = select(*head.c).select_from(table.join(head, true()))
    begins = _begins(reading, ranges, ordered, after if in_order else None)
    return _pick(
        reading.session,
        source,
        records(reading.session, begins),
        ordered,
        None if in_order else after,
        offset,
        most,
        of_each,
    )


def _looked_at(ordered: _Order, matches: Sequence[ColumnElement[bool]]) -> list[Any]:
    columns = [jobs.c.workspace_id, jobs.c.job_id, *ordered.keys]
    return [*columns, case((and_(true(), *matches), 1), else_=0).label("matches")]


def _pick(
    session: Executor,
    source: Select[Any],
    parameters: Mapping[str, Any],
    ordered: _Order,
    after: Sequence[Any] | None,
    offset: int,
    most: int,
    last: int,
) -> _Picked:
    """Those that match of the jobs that a query looks at, in order.

    It has ``matches`` and ``place``, which counts the jobs of each range from 1: that with the
    number ``last`` is not the last one there is.
    """
    looked = source.cte("looked")

    def keys(table: Any) -> list[Any]:
        return [table.c[key.name] for key in ordered.keys]

    stop = (
        select(*keys(looked))
        .where(looked.c.place == last)
        .order_by(*ordered.by(keys(looked)))
        .limit(1)
        .cte("stop")
    )
    beyond = ordered.beyond(keys(looked), keys(stop))
    valid = (
        select(looked)
        .select_from(looked.outerjoin(stop, true()))
        .where(looked.c.matches == 1, or_(stop.c.id.is_(None), not_(beyond)))
        .cte("valid")
    )
    shown = select(valid).order_by(*ordered.by(keys(valid))).limit(most).offset(offset)
    if after is not None:
        bound = [literal(v, c.type) for v, c in zip(after, ordered.keys, strict=True)]
        shown = shown.where(ordered.beyond(keys(valid), bound))
    page = shown.subquery("shown")
    n = select(func.count()).select_from(valid).scalar_subquery()
    one = select(literal(1).label("one")).subquery("one")
    ends = [column.label(f"stop_{column.name}") for column in stop.c]
    query = (
        select(n.label("n"), *ends, *page.c)
        .select_from(one.outerjoin(stop, true()).outerjoin(page, true()))
        .order_by(*ordered.by(keys(page)))
    )
    rows = session.execute(query, parameters).all()
    end = {key.name: getattr(rows[0], f"stop_{key.name}") for key in ordered.keys}
    return _Picked(
        [row for row in rows if row.id is not None],
        rows[0].n,
        None if end["id"] is None else SimpleNamespace(**end),
    )


def _these(session: Executor, rows: Sequence[AnyRow]) -> _Found:
    given = [{name: getattr(row, name) for name in _KEY} for row in rows]
    sent = records(session, given)
    if dialect_name(session) != "sqlite":
        return _Found(sent)
    table = record_source("sqlite", {"id": jobs.c.id.type})
    return _Found(sent, query=select(table.c.id))


def _fetch(
    session: Executor, light: bool, ordered: _Order, found: _Found, most: int
) -> tuple[Sequence[AnyRow], int]:
    """The jobs found, as many as an answer holds, and how many: one more, where there are more."""
    if found.query is None:
        statement = _fetching(light, ordered, found.ranges)
        rows = statement.all(session, {**found.parameters, "most": most})
        rows = sorted(rows, key=attrgetter("place"))
        return rows, len(rows) + (1 if rows and rows[-1].more else 0)
    columns = _LIGHT if light else COLUMNS
    ids = found.query.with_only_columns(found.query.selected_columns.id)
    query = (
        select(*columns, answer_bytes(columns).label("bytes"))
        .where(IsAmong(jobs.c.id, ids.scalar_subquery()))
        .order_by(*ordered.by(ordered.keys))
    )
    shown: list[AnyRow] = []
    size = 0
    # SQLite reads them one by one.
    with closing(session.execute(query, found.parameters)) as read:
        for row in read:
            size += row.bytes
            if len(shown) == most or (shown and size > MAX_BYTES):
                return shown, len(shown) + 1
            shown.append(row)
    return shown, len(shown)


@cache
def _fetching(light: bool, ordered: _Order, ranges: _Ranges | None) -> Statement[AnyRow]:
    if ranges is None:
        found = record_source("postgresql", {name: jobs.c[name].type for name in _KEY})
    else:
        found = _merged(ranges)
    # From each to its row, by the key, however many the planner believes there to be.
    mine = [jobs.c[name] == found.c[name] for name in _KEY]
    row = select(*(_LIGHT if light else COLUMNS)).where(*mine).offset(0).lateral("job")
    query = select(*row.c).select_from(found.join(row, true()))
    order = ordered.by([row.c[key.name] for key in ordered.keys])
    return Statement[AnyRow](fitting(query, order, bindparam("most")))


def _merged(ranges: _Ranges) -> Any:
    """The heads of all ranges in one order, from which a page is taken."""
    table = _range_source(ranges.names, ranges.moment)
    ordered = ranges.ordered
    keys = {c.name: c for c in [jobs.c.workspace_id, *ordered.keys]}
    by = [jobs.c[ranges.moment], jobs.c.id]
    times = {name: bindparam(name, type_=jobs.c.created_at.type) for name in ranges.times}
    head = (
        select(*keys.values())
        .where(
            *(jobs.c[name] == table.c[name] for name in ranges.names),
            *_between(times),
            ordered.beyond(by, [table.c.bound_at, table.c.bound_id]),
        )
        .order_by(*ordered.by(by))
        .limit(bindparam("reach"))
        .lateral("first")
    )
    return (
        select(head.c.workspace_id, head.c.id)
        .select_from(table.join(head, true()))
        .order_by(*ordered.by([head.c[c.name] for c in ordered.keys]))
        .limit(bindparam("shown"))
        .offset(bindparam("skip"))
        .subquery("found")
    )


_KEY = ("workspace_id", "id")


def _between(times: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """The conditions on when a job was created or changed."""
    bounds = {
        "created_after": jobs.c.created_at.__ge__,
        "created_before": jobs.c.created_at.__lt__,
        "updated_after": jobs.c.updated_at.__ge__,
    }
    return [bounds[name](moment) for name, moment in times.items() if moment is not None]


def _plain(ordered: _Order, where: Sequence[Any], after: Sequence[Any] | None) -> Select[Any]:
    conditions = list(where)
    if after is not None:
        bound = [literal(v, c.type) for v, c in zip(after, ordered.keys, strict=True)]
        conditions.append(ordered.beyond(ordered.keys, bound))
    query = select(jobs.c.workspace_id, jobs.c.id).where(*conditions)
    return query.order_by(*ordered.by(ordered.keys))


def _too_deep() -> ValidationFailed:
    return ValidationFailed(
        {
            "page": [
                f"It lies behind more than {LOOKED_AT} jobs. Follow next_cursor from the first"
                " page, sort the other way round, or filter more."
            ]
        }
    )


# As the index has it: within a document under the workspace's id, so that an entry of it is of one
# workspace; and the workspace besides, because entries are hashes, which can be made to collide.
_IN_WORKSPACE: Any = literal_column("(ARRAY[jobapi_jobs.workspace_id])", ARRAY(Integer))
_CONTENT: Any = literal_column(
    "(('{\"' || jobapi_jobs.workspace_id::text || '\":' || jobapi_jobs.metadata::text"
    " || '}')::jsonb)",
    JSONB,
)


def _indexed(workspace_id: int, metadata: Mapping[str, str]) -> ColumnElement[bool]:
    """Whether a job is of a workspace and has this in its metadata, as the index knows it."""
    conditions = [
        or_(
            *(
                _CONTENT.contains(_nest([str(workspace_id), *path.split(".")], value))
                for value in _values(text)
            )
        )
        for path, text in metadata.items()
    ]
    return and_(_IN_WORKSPACE.contains([workspace_id]), *conditions)


def _has(dialect: str, path: str, text: str) -> ColumnElement[bool]:
    """Whether the metadata has a value at a path: a text, or a number, or true, false or null."""
    keys, values = path.split("."), _values(text)
    if dialect == "sqlite":
        place = "$" + "".join(f'."{key}"' for key in keys)
        kind = func.json_type(jobs.c.metadata, place, type_=String)
        value = func.json_extract(jobs.c.metadata, place)
        return or_(*(_is(kind, value, each) for each in values))
    document = cast(jobs.c.metadata, JSONB)
    return and_(
        jobs.c.metadata.is_not(None),
        or_(*(document.contains(_nest(keys, each)) for each in values)),
    )


def _values(text: str) -> list[Any]:
    """What a text in a query may stand for: itself, and a number, true, false or null."""
    values: list[Any] = [text]
    try:
        other = orjson.loads(text)
        # A stored integer has 64 bits; no other is there to be found.
        if (
            other is None
            or isinstance(other, float)
            or (isinstance(other, int) and -(2**63) <= other < 2**63)
        ):
            values.append(other)
    except orjson.JSONDecodeError:
        pass
    return values


def _is(kind: Any, value: Any, wanted: Any) -> ColumnElement[bool]:
    if wanted is None or isinstance(wanted, bool):
        found: ColumnElement[bool] = kind == ("null" if wanted is None else str(wanted).lower())
        return found
    kinds = ("text",) if isinstance(wanted, str) else ("integer", "real")
    return and_(kind.in_(kinds), value == literal(wanted))


def _nest(keys: Sequence[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value
