"""Create jobs, one or many, with the defaults of their types, and at most one per unique key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Required, TypedDict, Unpack, cast
from weakref import WeakKeyDictionary

import uuid_utils
from sqlalchemy import (
    Connection,
    bindparam,
    func,
    insert,
    literal,
    select,
    text,
    true,
)

from ..errors import QueueFull, Unavailable, ValidationFailed
from ..rules import lifecycle
from ..rules.documents import limit_documents
from ..rules.flow import UNGOVERNED, Flow
from ..rules.jobs import (
    FIELDS,
    JOB_TYPE_PATTERN,
    JOB_TYPE_RULE,
    CurrentJob,
    Job,
    JobRequest,
    JobStatus,
    OnConflict,
    SetBy,
    fields_set_by,
)
from ..rules.lifecycle import Change
from ..store.columns import insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import LIVE, jobs
from ..store.transactions import transactional
from . import counts, flow
from .changing import MAX_TRIES, change
from .settling import lock
from .unique_keys import exists, find_live

MAX_JOB_TYPES = 1000
"""How many job types a workspace may have."""

QUEUE_FULL_SECONDS = 5
"""The ``Retry-After`` of a create that a full queue refused."""

_DEFAULTED = ("priority", "max_retries", "timeout_seconds")
# After this due time, adding the longest ``start_within_seconds`` could exceed Python's calendar.
_LATEST_DUE = datetime(9998, 1, 1, tzinfo=UTC)

_UNLESS_LIVE: Any = {
    "index_elements": [column.name for column in LIVE.columns],
    "index_where": LIVE.dialect_options["postgresql"]["where"],
}

# The fields that a creation may set, and the values of a new job.
_GIVEN = fields_set_by(SetBy.CREATE)
_BLANK = {name: field.default for name, field in FIELDS.items() if name != "id"}
_OF_FLOW = ("concurrency_key", "unique_key", "expires_at", "ripe")
_CREATED = (
    *("job_id", "workspace_id", "created_by", *_GIVEN, "status", "version", "retry_count"),
    *("created_at", "updated_at", "queued_at", "due_at", "changed_by", "traceparent", "ripe"),
)
_PLAIN = tuple(name for name in _CREATED if name not in _OF_FLOW)
_SCHEDULED = (*_CREATED, "schedule_id", "scheduled_for")
_INSERT_PLAIN, _INSERT, _INSERT_SCHEDULED = (
    # All other values are known: returning them would cost a quarter of the statement.
    Statement[AnyRow](insert(jobs).returning(jobs.c.id), prepare=True, values=names)
    for names in (_PLAIN, _CREATED, _SCHEDULED)
)

_JOB_TYPE = re.compile(JOB_TYPE_PATTERN)

# https://www.w3.org/TR/trace-context/#traceparent-header; no id is all zeros.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def new_job_id() -> str:
    """``job_`` and a UUID version 7 (RFC 9562): sorts by time, 74 random bits."""
    # Python has uuid7 since 3.14. Written in Python it takes 1.8 µs instead of 0.4 µs.
    return "job_" + uuid_utils.uuid7().hex


class Created(NamedTuple):
    """The outcome of a create."""

    job: Job
    existing: bool = False
    """Whether a live job had the ``unique_key``: this one, and none was created."""


class Creation(TypedDict, total=False):
    """Who creates jobs, and what the caller has just read from the database."""

    created_by: Required[int]
    """``id`` of the user."""
    now: datetime | None
    """The database's time."""
    actor: str | None
    """Who creates them, for the history, such as ``key:1``; by default the creator."""
    traceparent: str | None
    """The creator's W3C trace context, for the worker; an invalid one counts as None."""
    flow_version: int | None
    """The ``flow_version`` of the workspace."""
    schedule_id: str | None
    """The schedule that creates the job; only for ``submit``."""
    scheduled_for: datetime | None
    """The schedule's tick; None for a run by hand."""


class RequestAndCreation(JobRequest, Creation, total=False):
    """The keyword arguments of ``create``."""


def create(session: Executor, workspace_id: int, **given: Unpack[RequestAndCreation]) -> Job:
    """Create a job, due now or when it is scheduled.

    ``given`` has ``created_by``, ``job_type`` and any other fields of ``JobRequest`` and
    ``Creation``, such as ``priority``, ``metadata`` and ``scheduled_at``. Durations are in seconds;
    times need a UTC offset. In a host's own session the job exists once the host commits. If a live
    job has the ``unique_key``, that job is returned instead (``submit`` says which of the two it
    is). Raises ``ValidationFailed``, ``QueueFull``, ``JobExists``.
    """
    return submit(session, workspace_id, **given).job


def submit(session: Executor, workspace_id: int, **given: Unpack[RequestAndCreation]) -> Created:
    """Create a job as ``create`` does, and say whether it is a new one."""
    fields = cast(JobRequest, {n: v for n, v in given.items() if n not in Creation.__annotations__})
    unknown = fields.keys() - {*_GIVEN, "on_conflict"}
    if unknown:
        raise TypeError(f"A new job has no field {', '.join(sorted(unknown))}.")
    who = _Who.of(session, workspace_id, given)
    row = _new_row(new_job_id(), workspace_id, who.flow, fields, who.created_by, who.now)
    _check_job_types(session, workspace_id, [row.job_type], "job_type")
    _let_keys_take_turns(session, workspace_id, who.flow, [row])
    values = {**vars(row), "changed_by": who.actor, "traceparent": who.traceparent}
    is_scheduled = given.get("schedule_id") is not None
    if is_scheduled:
        values |= {name: given.get(name) for name in ("schedule_id", "scheduled_for")}
    if row.unique_key is not None:
        on_conflict = fields.get("on_conflict") or OnConflict.KEEP
        return _insert_unique(
            session, who, values, partial(_resolve, session, row, on_conflict, who)
        )
    _check_room(session, workspace_id, who.flow, {row.job_type: 1})
    if is_scheduled:
        statement, names = _INSERT_SCHEDULED, _SCHEDULED
    elif row.concurrency_key is None and row.expires_at is None:
        statement, names = _INSERT_PLAIN, _PLAIN
    else:
        statement, names = _INSERT, _CREATED
    (made,) = statement.all(session, {name: values[name] for name in names})
    return Created(_created(values, made))


def _created(values: Mapping[str, Any], made: AnyRow) -> Job:
    """A new job: its values, and the ``id`` that the database has given it."""
    return cast(Job, SimpleNamespace(**values, id=made.id))


class _Who(NamedTuple):
    """A ``Creation`` with its defaults filled in, and the workspace's flow control."""

    created_by: int
    now: datetime
    actor: str
    traceparent: str | None
    flow: Flow

    @classmethod
    def of(cls, session: Executor, workspace_id: int, given: Creation) -> _Who:
        now, version = given.get("now"), given.get("flow_version")
        if now is None or version is None:
            now, version = flow.now_in(session, workspace_id)
        created_by = given["created_by"]
        actor = given.get("actor") or f"user:{created_by}"
        context = _trace_context(given.get("traceparent"))
        return cls(created_by, now, actor, context, flow.load(session, workspace_id, version))


@cache
def _insert_if_unique(dialect: str, names: tuple[str, ...]) -> Statement[AnyRow]:
    """Returns nothing if a live job has the ``unique_key``."""
    inserted = insert_or_ignore(dialect, jobs).on_conflict_do_nothing(**_UNLESS_LIVE)
    return Statement[AnyRow](inserted.returning(jobs.c.id), prepare=True, values=names)


def _insert_unique(
    session: Executor, who: _Who, values: Mapping[str, Any], resolve: Callable[[Job], Job]
) -> Created:
    workspace_id, job_type = values["workspace_id"], values["job_type"]
    key = job_type, values["unique_key"]
    for _ in range(MAX_TRIES):
        live = find_live(session, workspace_id, [key])
        if live:
            found = resolve(live[key])
            if not JobStatus(found.status).ended:
                return Created(found, existing=True)
            continue
        _check_room(session, workspace_id, who.flow, {job_type: 1})
        names = _CREATED if values["schedule_id"] is None else _SCHEDULED
        statement = _insert_if_unique(dialect_name(session), names)
        made = statement.first(session, {name: values[name] for name in names})
        if made is not None:
            return Created(_created(values, made))
        # Another create with this key came first. Its job may even have ended by now.
    raise Unavailable("Too many requests are creating jobs with this unique_key. Try again.")


def _resolve(session: Executor, wanted: Job, on_conflict: OnConflict, who: _Who, live: Job) -> Job:
    """Apply ``on_conflict`` to the live job that has the ``unique_key`` of a create."""
    if on_conflict is OnConflict.KEEP:
        return live
    if on_conflict is OnConflict.REFUSE or live.status == JobStatus.RUNNING:
        raise exists(live)

    def rule(job: CurrentJob) -> Change:
        if job.status == JobStatus.PENDING:
            return lifecycle.replace(job, vars(wanted), job.now)
        if job.status == JobStatus.RUNNING:
            raise exists(job)
        return Change({})

    return change(session, live.workspace_id, live.job_id, rule, actor=who.actor)


def _let_keys_take_turns(
    session: Executor, workspace_id: int, settings: Flow, rows: Sequence[Job]
) -> None:
    """Mark types that get their first job with a key, so that claims look for such jobs."""
    names = {
        row.job_type
        for row in rows
        if row.concurrency_key is not None and not settings.of(row.job_type).keyed
    }
    if names:
        flow.let_keys_take_turns(session, workspace_id, names)


def _check_room(
    session: Executor, workspace_id: int, settings: Flow, more: Mapping[str, int]
) -> None:
    """Raise ``QueueFull`` if a type would have more pending jobs than it may have."""
    limits = {name: settings.of(name).max_pending for name in more}
    limited = [name for name, limit in limits.items() if limit is not None]
    if not limited:
        return
    pending = counts.pending(session, workspace_id, limited)
    for name in limited:
        limit = limits[name] or 0
        if pending[name] + more[name] > limit:
            raise QueueFull(
                f"The job type {name} has {pending[name]:,} pending jobs; max_pending is "
                f"{limit:,}. Try again later.",
                retry_after=QUEUE_FULL_SECONDS,
            )


def create_many(
    session: Executor, workspace_id: int, items: Sequence[JobRequest], **given: Unpack[Creation]
) -> list[Job]:
    """Create jobs, all or none. Each item has the fields that ``create`` takes.

    Returns the jobs' rows in the same order; new ones have no ``id``. Raises ``ValidationFailed``,
    which names the item (``jobs.0``), ``QueueFull`` and ``JobExists``.
    """
    return [made.job for made in submit_many(session, workspace_id, items, **given)]


def submit_many(
    session: Executor, workspace_id: int, items: Sequence[JobRequest], **given: Unpack[Creation]
) -> list[Created]:
    """Create jobs as ``create_many`` does, and say of each whether it is a new one."""
    who = _Who.of(session, workspace_id, given)
    rows = new_rows(workspace_id, items, created_by=who.created_by, now=who.now, settings=who.flow)
    _check_job_types(session, workspace_id, [row.job_type for row in rows], "jobs.{}.job_type")
    _let_keys_take_turns(session, workspace_id, who.flow, rows)
    if any(row.unique_key is not None for row in rows):
        return _submit_unique(session, workspace_id, who, items, rows)
    _check_room(session, workspace_id, who.flow, Counter(row.job_type for row in rows))
    _insert_all(session, workspace_id, who, rows)
    return [Created(row) for row in rows]


@transactional()
def _submit_unique(
    session: Executor,
    workspace_id: int,
    who: _Who,
    items: Sequence[JobRequest],
    rows: Sequence[Job],
) -> list[Created]:
    """Create jobs of which at least one has a ``unique_key``.

    Of several items with the same type and key, the first creates the job, unless a live job has
    the key already. ``_resolve`` then applies the others to that job.
    """
    made: dict[int, Job] = {}
    for _ in range(MAX_TRIES):
        first: dict[Any, int] = {}
        for number, row in enumerate(rows):
            first.setdefault(_type_and_key(row) or number, number)
        live = find_live(session, workspace_id, [key for key in first if isinstance(key, tuple)])
        missing = [n for key, n in first.items() if n not in made and key not in live]
        new = [rows[number] for number in missing]
        _check_room(session, workspace_id, who.flow, Counter(row.job_type for row in new))
        inserted = _insert_all(session, workspace_id, who, new, unless_live=True) if new else set()
        made |= {number: rows[number] for number in missing if rows[number].job_id in inserted}
        if len(inserted) == len(new):
            break
        # Another create came first with one of the keys.
    else:
        raise Unavailable("Too many requests are creating jobs with these keys. Try again.")
    choices = [item.get("on_conflict") or OnConflict.KEEP for item in items]
    replaced = {
        live[key].job_id
        for row, on_conflict in zip(rows, choices, strict=True)
        if on_conflict is OnConflict.REPLACE and (key := _type_and_key(row)) in live
    }
    if len(replaced) > 1:
        # In one order, whatever the order of the request: or two batches wait for each other.
        lock(session, workspace_id, replaced)
    answers = []
    now_live: dict[Any, Job] = {**live, **{_type_and_key(row): row for row in made.values()}}
    for number, (on_conflict, row) in enumerate(zip(choices, rows, strict=True)):
        if number in made:
            answers.append(Created(row))
            continue
        key = _type_and_key(row)
        now_live[key] = _resolve(session, row, on_conflict, who, now_live[key])
        answers.append(Created(now_live[key], existing=True))
    return answers


def _type_and_key(row: Job) -> tuple[str, str] | None:
    return None if row.unique_key is None else (row.job_type, row.unique_key)


def _insert_all(
    session: Executor,
    workspace_id: int,
    who: _Who,
    rows: Sequence[Job],
    *,
    unless_live: bool = False,
) -> set[str]:
    """Insert jobs in one statement; returns the ids of those that were inserted.

    With ``unless_live``, jobs whose ``unique_key`` a live job has are left out.
    """
    dialect = dialect_name(session)
    # Each item sends only what differs between the jobs.
    varying = [
        {name: value for name in _VARYING if (value := getattr(row, name)) != _BLANK.get(name)}
        for row in rows
    ]
    for item, row in zip(varying, rows, strict=True):
        if row.due_at == who.now:
            del item["due_at"]
    if unless_live and dialect == "postgresql":
        # Concurrent requests must insert the same keys in the same order, or they could deadlock.
        # Explicit ids keep the order of the request.
        numbers = session.execute(_NEXT_IDS, {"n": len(rows)}).scalars()
        for item, number in zip(varying, sorted(numbers), strict=True):
            item["id"] = number
        varying.sort(key=lambda item: (item["job_type"], item.get("unique_key") or ""))
    given = {
        "given_workspace_id": workspace_id,
        "given_created_by": who.created_by,
        "actor": who.actor,
        "given_traceparent": who.traceparent,
        "now": who.now,
        **records(session, varying),
    }
    inserted = _insert_many(dialect, unless_live=unless_live).all(session, given)
    return {row.job_id for row in inserted}


_VARYING = ("job_id", "due_at", *_GIVEN, "ripe")
_NEXT_IDS = text(
    "SELECT nextval(pg_get_serial_sequence('jobapi_jobs', 'id')) FROM generate_series(1, :n)"
)


@cache
def _insert_many(dialect: str, *, unless_live: bool) -> Statement[AnyRow]:
    with_ids = unless_live and dialect == "postgresql"
    names = (*(("id",) if with_ids else ()), *_VARYING)
    source = record_source(dialect, {name: jobs.c[name].type for name in names})
    item = source.c
    now: Any = bindparam("now", type_=jobs.c.created_at.type)

    def given(name: str) -> Any:
        default = _BLANK[name]
        return item[name] if default is None else func.coalesce(item[name], default)

    values = {
        **{name: literal(_BLANK[name], jobs.c[name].type) for name in _CREATED},
        **{name: given(name) for name in ("job_id", *_GIVEN, "ripe")},
        **({"id": item.id} if with_ids else {}),
        "workspace_id": bindparam("given_workspace_id", type_=jobs.c.workspace_id.type),
        "created_by": bindparam("given_created_by", type_=jobs.c.created_by.type),
        "changed_by": bindparam("actor", type_=jobs.c.changed_by.type),
        "traceparent": bindparam("given_traceparent", type_=jobs.c.traceparent.type),
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
        "due_at": func.coalesce(item.due_at, now),
    }
    # Without the WHERE, SQLite would read the ON of ON CONFLICT as that of a join.
    rows = select(*values.values()).where(true())
    if not unless_live:
        return Statement[AnyRow](
            insert(jobs).from_select(list(values), rows).returning(jobs.c.job_id)
        )
    inserted = insert_or_ignore(dialect, jobs).from_select(list(values), rows)
    return Statement[AnyRow](
        inserted.on_conflict_do_nothing(**_UNLESS_LIVE).returning(jobs.c.job_id)
    )


def new_rows(
    workspace_id: int,
    items: Sequence[JobRequest],
    *,
    created_by: int,
    now: datetime,
    settings: Flow = UNGOVERNED,
    ids: Sequence[str] | None = None,
) -> list[Job]:
    """The rows that ``create_many`` inserts for ``items``, with the given ``ids`` or new ones.

    Raises ``ValidationFailed``, which names the item (``jobs.0``).
    """
    rows = []
    for number, item in enumerate(items):
        try:
            job_id = new_job_id() if ids is None else ids[number]
            rows.append(_new_row(job_id, workspace_id, settings, item, created_by, now))
        except ValidationFailed as error:
            raise ValidationFailed(
                {f"jobs.{number}.{name}": texts for name, texts in error.errors.items()}
            ) from None
    return rows


def _new_row(
    job_id: str, workspace_id: int, settings: Flow, item: JobRequest, created_by: int, now: datetime
) -> Job:
    if not _JOB_TYPE.fullmatch(item["job_type"]):
        raise ValidationFailed({"job_type": [JOB_TYPE_RULE]})
    limit_documents(item)
    of_type = settings.of(item["job_type"])
    given: dict[str, Any] = {n: v for n, v in item.items() if v is not None and n in _GIVEN}
    if settings is not UNGOVERNED:
        for name in _DEFAULTED:
            if name not in given and getattr(of_type, name) is not None:
                given[name] = getattr(of_type, name)
    scheduled_at = item.get("scheduled_at")
    due_at = lifecycle.due_at(now, scheduled_at)
    if "expires_at" in given:
        lifecycle.check_expiry(given["expires_at"], scheduled_at, now, "expires_at")
    elif of_type.start_within_seconds is not None and due_at < _LATEST_DUE:
        given["expires_at"] = due_at + timedelta(seconds=of_type.start_within_seconds)
    values = {
        **_BLANK,
        **given,
        "job_id": job_id,
        "workspace_id": workspace_id,
        "created_by": created_by,
        "created_at": now,
        "updated_at": now,
        "queued_at": now,
        "due_at": due_at,
        "ripe": "concurrency_key" in given and due_at <= now,
    }
    return cast(Job, SimpleNamespace(**values))


def _trace_context(text: str | None) -> str | None:
    # An invalid trace context is no reason to refuse a job.
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def _check_job_types(
    session: Executor, workspace_id: int, job_types: Sequence[str], field: str
) -> None:
    """Refuse types beyond ``MAX_JOB_TYPES`` (``ValidationFailed``): totals are kept for each."""
    engine = session.engine if isinstance(session, Connection) else session.get_bind()
    known = _known_job_types.setdefault(engine, {}).get(workspace_id, set())
    if known.issuperset(job_types):
        return
    known = counts.job_types(session, workspace_id)
    for number, job_type in enumerate(job_types):
        if job_type not in known and len(known) >= MAX_JOB_TYPES:
            raise ValidationFailed(
                {field.format(number): [f"A workspace can have at most {MAX_JOB_TYPES} job types."]}
            )
        known.add(job_type)
    if len(_known_job_types[engine]) >= _MAX_KNOWN:
        _known_job_types[engine].clear()
    _known_job_types[engine][workspace_id] = known


# A cache of each workspace's types, by engine. Another process may add types in the meantime, so
# the limit can be exceeded a little.
_known_job_types: WeakKeyDictionary[Any, dict[int, set[str]]] = WeakKeyDictionary()
_MAX_KNOWN = 1000
