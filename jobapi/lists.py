"""Lists of jobs: filters, order, pages and cursors, at a cost that their number does not raise.

A list is put together from the heads of an index's ranges: the jobs of one
kind lie there in their order, and which kinds there are, the counts know. So
what is read is what is shown, however many jobs there are and however few
match. Where a filter is none of a kind's, the database finds its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import orjson
from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB

from . import counts
from .database import (
    BY_KEY,
    IN_ORDER,
    AnyRow,
    Executor,
    IsAmong,
    dialect_name,
    plan_without,
    record_source,
    records,
)
from .errors import ValidationFailed
from .jobs import COLUMNS, Scope
from .lifecycle import JobStatus, Priority
from .models import jobs
from .paging import MAX_NUMBER, no_cursor, read_cursor, write_cursor

MAX_COUNTED = 10_000
"""Up to how many matches are counted, where the counts do not know."""

MAX_KINDS = 2_000
"""From how many ranges a list is put together at most."""

FEW = 2_000
"""So many matches are read whole, where no index has them in the order wanted."""

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

    def rest(self, dialect: str) -> list[ColumnElement[bool]]:
        """The other conditions, for which the counts are of no use."""
        conditions: list[ColumnElement[bool]] = []
        if self.created_after is not None:
            conditions.append(jobs.c.created_at >= self.created_after)
        if self.created_before is not None:
            conditions.append(jobs.c.created_at < self.created_before)
        if self.updated_after is not None:
            conditions.append(jobs.c.updated_at >= self.updated_after)
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


_MOMENTS = {"created_after", "created_before", "updated_after"}


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

    It is number ``page``, from 1, or begins after ``cursor``. Equal values are
    put in the order of creation, in the direction of ``order``. ``light``
    leaves out ``metadata`` and ``result``. To be called in a ``snapshot``,
    so that page and total are of the same moment.
    Raises ``ValidationFailed`` for a cursor that is none, or another list's.
    """
    ordered = _Order(sort, order)
    after = None if cursor is None else ordered.read(cursor)
    offset = 0 if page is None else (page - 1) * limit
    columns = _LIGHT if light else COLUMNS
    dialect = dialect_name(session)
    rest = filters.rest(dialect)
    where = _where(scope, filters, rest)
    run = partial(_run, session, columns, ordered, offset=offset, limit=limit)
    if rest:
        total, capped = _counted(session, where, bool(filters.metadata))
        if capped:
            # So many that the next ones in order are never far.
            plan_without(session, IN_ORDER)
            where[0] = scope(jobs.c)
            rows = run(_plain(ordered, where, after))
        else:
            # By the index that found so few when they were counted, then in order.
            rows = run(_found_first(ordered, where, after))
        return _page(rows, total, capped, ordered, limit)
    plan_without(session, IN_ORDER)
    kinds = _kinds(session, scope, filters)
    total = sum(kind.n for kind in kinds)
    if offset >= total:
        return JobPage((), total, False, None)
    by_age = sort == "created_at" and not filters.kind(jobs.c)
    places = sorted({(kind.workspace_id,) for kind in kinds})
    if dialect == "sqlite" or (by_age and not 1 < len(places) <= MAX_KINDS):
        if by_age and after is None and offset > total // 2:
            # Nearer to the other end.
            return _from_the_end(session, columns, ordered, where, total, offset, limit)
        rows = run(_plain(ordered, where, after))
    elif by_age:
        # No index has the jobs of several workspaces in one order.
        rows = run(
            _heads(ordered, ("workspace_id",), "created_at", offset + limit + 1),
            _ranges(("workspace_id",), places, ordered, after),
        )
    elif sort == "updated_at" and total > FEW:
        statuses = sorted({(kind.workspace_id, kind.status) for kind in kinds})
        rows = run(
            _heads(ordered, ("workspace_id", "status"), "updated_at", offset + limit + 1, filters),
            _ranges(("workspace_id", "status"), statuses, ordered, after),
        )
    else:
        needed = _needed(kinds, ordered, after, offset + limit + 1)
        if len(needed) > MAX_KINDS:
            rows = run(_plain(ordered, where, after))
        elif sort == "updated_at":
            # The index has them in another order, so that all are read.
            ranges = _ranges(counts.KIND, needed, ordered, None)
            rows = run(_whole(ordered, counts.KIND, after), ranges)
        else:
            rows = run(
                _heads(ordered, counts.KIND, "created_at", offset + limit + 1),
                _ranges(counts.KIND, needed, ordered, after),
            )
    return _page(rows, total, False, ordered, limit)


def count(session: Executor, scope: Scope, filters: Filters) -> tuple[int, bool]:
    """How many jobs in ``scope`` match, and whether there are more than that.

    To be called in a transaction.
    """
    rest = filters.rest(dialect_name(session))
    if rest:
        return _counted(session, _where(scope, filters, rest), bool(filters.metadata))
    return sum(kind.n for kind in _kinds(session, scope, filters)), False


def walk(
    session: Executor,
    scope: Scope,
    filters: Filters,
    *,
    after: Sequence[Any] | None,
    most: int,
) -> Sequence[AnyRow]:
    """The next ``most`` jobs by their creation of the kinds wanted; the last ones are fewer.

    Each with ``id``, ``job_id``, ``created_at``, and ``matches``: whether the
    other filters match, too. It costs the same however few do. ``after`` is the
    ``created_at`` and ``id`` after which to go on. To be called in a transaction.
    """
    ordered = _Order("created_at", "asc")
    plan_without(session, IN_ORDER)
    ranges = _all_ranges(session, scope, filters)
    if dialect_name(session) == "sqlite" or len(ranges) > MAX_KINDS:
        moment = None if after is None else [datetime.fromisoformat(after[0]), after[1]]
        found = _plain(ordered, [scope(jobs.c), *filters.kind(jobs.c)], moment)
        parameters = {}
    else:
        found = _heads(ordered, counts.KIND, "created_at", most)
        parameters = records(session, _ranges(counts.KIND, ranges, ordered, after))
    rest = filters.rest(dialect_name(session))
    query = (
        select(
            *(jobs.c.id, jobs.c.job_id, jobs.c.created_at),
            case((and_(true(), *rest), 1), else_=0).label("matches"),
        )
        .where(IsAmong(jobs.c.id, found.limit(most).scalar_subquery()))
        .order_by(jobs.c.created_at, jobs.c.id)
    )
    return session.execute(query, parameters).all()


def newest(session: Executor, kinds: Sequence[Any], most: int) -> Sequence[AnyRow]:
    """When the newest ``most`` jobs of each kind started and ended, with their type."""
    columns = (jobs.c.job_type, jobs.c.started_at, jobs.c.completed_at)
    ordered = _Order("created_at", "desc")
    each = [tuple(getattr(kind, name) for name in counts.KIND) for kind in kinds]
    if dialect_name(session) == "sqlite":
        rows: list[AnyRow] = []
        for values in each:
            mine = [jobs.c[name] == value for name, value in zip(counts.KIND, values, strict=True)]
            head = select(*columns).where(*mine).order_by(*ordered.by(ordered.keys)).limit(most)
            rows += session.execute(head).all()
        return rows
    found = _heads(ordered, counts.KIND, "created_at", most)
    query = select(*columns).where(IsAmong(jobs.c.id, found.scalar_subquery()))
    parameters = records(session, _ranges(counts.KIND, each, ordered, None))
    return session.execute(query, parameters).all()


def _all_ranges(session: Executor, scope: Scope, filters: Filters) -> list[tuple[Any, ...]]:
    """Every kind wanted in which there may be jobs by now, when they change all the time."""
    kinds = _kinds(session, scope, replace(filters, status=()))
    others = {(kind.workspace_id, kind.job_type, kind.priority) for kind in kinds}
    return [
        (workspace_id, status, job_type, priority)
        for workspace_id, job_type, priority in sorted(others)
        for status in filters.status or JobStatus
    ]


def _where(
    scope: Scope, filters: Filters, rest: Sequence[ColumnElement[bool]]
) -> list[ColumnElement[bool]]:
    # With metadata by the index on what is in it, and by no other.
    by_content = SimpleNamespace(workspace_id=jobs.c.workspace_id + 0)
    return [scope(by_content if filters.metadata else jobs.c), *filters.kind(jobs.c), *rest]


def _counted(
    session: Executor, where: Sequence[ColumnElement[bool]], by_content: bool
) -> tuple[int, bool]:
    if by_content:
        plan_without(session, BY_KEY)
    some = select(literal(1)).select_from(jobs).where(*where).limit(MAX_COUNTED + 1)
    n = session.execute(select(func.count()).select_from(some.subquery())).scalar_one()
    return min(n, MAX_COUNTED), n > MAX_COUNTED


def _kinds(session: Executor, scope: Scope, filters: Filters) -> list[AnyRow]:
    return counts.kinds(session, lambda c: [scope(c), *filters.kind(c)])


def _run(
    session: Executor,
    columns: Sequence[Any],
    ordered: _Order,
    found: Select[Any],
    ranges: Sequence[Mapping[str, Any]] | None = None,
    *,
    offset: int,
    limit: int,
) -> Sequence[AnyRow]:
    # One more than is shown tells whether there are more. The rows themselves
    # are fetched last, so that what is skipped is skipped in the index.
    wanted = found.limit(limit + 1).offset(offset)
    query = (
        select(*columns)
        .where(IsAmong(jobs.c.id, wanted.scalar_subquery()))
        .order_by(*ordered.by(ordered.keys))
    )
    return session.execute(query, {} if ranges is None else records(session, ranges)).all()


def _page(rows: Sequence[AnyRow], total: int, capped: bool, ordered: _Order, limit: int) -> JobPage:
    more = ordered.cursor(rows[limit - 1]) if len(rows) > limit else None
    return JobPage(rows[:limit], total, capped, more)


def _plain(ordered: _Order, where: Sequence[Any], after: Sequence[Any] | None) -> Select[Any]:
    conditions = list(where)
    if after is not None:
        bound = [literal(v, c.type) for v, c in zip(after, ordered.keys, strict=True)]
        conditions.append(ordered.beyond(ordered.keys, bound))
    return select(jobs.c.id).where(*conditions).order_by(*ordered.by(ordered.keys))


def _found_first(ordered: _Order, where: Sequence[Any], after: Sequence[Any] | None) -> Select[Any]:
    # An OFFSET keeps the planner from going through an order to find them.
    matches = select(*ordered.keys).where(*where).offset(0).subquery()
    keys = [matches.c[key.name] for key in ordered.keys]
    found = select(matches.c.id).order_by(*ordered.by(keys))
    if after is not None:
        bound = [literal(v, c.type) for v, c in zip(after, ordered.keys, strict=True)]
        found = found.where(ordered.beyond(keys, bound))
    return found


def _from_the_end(
    session: Executor,
    columns: Sequence[Any],
    ordered: _Order,
    where: Sequence[Any],
    total: int,
    offset: int,
    limit: int,
) -> JobPage:
    other = _Order(ordered.sort, "asc" if ordered.order == "desc" else "desc")
    shown = min(limit, total - offset)
    skip = total - offset - shown
    found = _plain(other, where, None).limit(shown).offset(skip)
    rows = session.execute(
        select(*columns)
        .where(IsAmong(jobs.c.id, found.scalar_subquery()))
        .order_by(*ordered.by(ordered.keys))
    ).all()
    return JobPage(rows, total, False, ordered.cursor(rows[-1]) if skip and rows else None)


def _needed(
    kinds: Sequence[Any], ordered: _Order, after: Sequence[Any] | None, most: int
) -> list[tuple[Any, ...]]:
    """The kinds in which the page may lie, of those that there are."""
    group: Callable[[Any], int] = (
        (lambda kind: int(getattr(kind, ordered.sort)))
        if ordered.sort in ("status", "priority")
        else lambda kind: 0
    )
    needed: list[tuple[Any, ...]] = []
    covered = 0
    for number in sorted({group(kind) for kind in kinds}, reverse=ordered.order == "desc"):
        begun = after is not None and len(after) == 3 and number == after[0]
        if after is not None and len(after) == 3 and not begun:
            passed = number > after[0] if ordered.order == "desc" else number < after[0]
            if passed:
                continue
        mine = [kind for kind in kinds if group(kind) == number]
        needed += [tuple(getattr(kind, name) for name in counts.KIND) for kind in mine]
        # Of a group that the cursor is in, nobody knows how much is left.
        covered += 0 if begun else sum(kind.n for kind in mine)
        if covered >= most:
            break
    return needed


def _ranges(
    names: Sequence[str],
    ranges: Sequence[tuple[Any, ...]],
    ordered: _Order,
    after: Sequence[Any] | None,
) -> list[dict[str, Any]]:
    """Each range of the index with where in it to begin."""
    start: tuple[Any, Any] = ("infinity" if ordered.order == "desc" else "-infinity", 0)
    rows = []
    for values in ranges:
        row = dict(zip(names, values, strict=True))
        begun = after is not None and (len(after) == 2 or row[ordered.sort] == after[0])
        row["bound_at"], row["bound_id"] = after[-2:] if begun and after is not None else start
        rows.append(row)
    return rows


def _heads(
    ordered: _Order,
    names: Sequence[str],
    moment: str,
    most: int,
    filters: Filters | None = None,
) -> Select[Any]:
    """The ids of the first ``most`` jobs of each range, all in order."""
    kind = _range_source(names, moment)
    by = [jobs.c[moment], jobs.c.id]
    head = (
        select(*{c.name: c for c in [*ordered.keys, *by]}.values())
        .where(
            *(jobs.c[name] == kind.c[name] for name in names),
            ordered.beyond(by, [kind.c.bound_at, kind.c.bound_id]),
            *(() if filters is None else filters.kind(jobs.c)),
        )
        .order_by(*ordered.by(by))
        .limit(most)
    )
    return _merged(ordered, kind, head)


def _whole(ordered: _Order, names: Sequence[str], after: Sequence[Any] | None) -> Select[Any]:
    """The ids of all jobs of each range, in order."""
    kind = _range_source(names, "created_at")
    conditions = [jobs.c[name] == kind.c[name] for name in names]
    if after is not None:
        bound = [literal(v, c.type) for v, c in zip(after, ordered.keys, strict=True)]
        conditions.append(ordered.beyond(ordered.keys, bound))
    return _merged(ordered, kind, select(*ordered.keys).where(*conditions))


def _range_source(names: Sequence[str], moment: str) -> Any:
    types = {name: jobs.c[name].type for name in names}
    bounds = {"bound_at": jobs.c[moment].type, "bound_id": jobs.c.id.type}
    return record_source("postgresql", types | bounds)


def _merged(ordered: _Order, kind: Any, head: Select[Any]) -> Select[Any]:
    first = head.lateral("first")
    return (
        select(first.c.id)
        .select_from(kind.join(first, true()))
        .order_by(*ordered.by([first.c[c.name] for c in ordered.keys]))
    )


def _has(dialect: str, path: str, text: str) -> ColumnElement[bool]:
    """Whether the metadata has a value at a path: a text, or a number, or true, false or null."""
    keys = path.split(".")
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
