"""Job types as resources: their settings, and their current load."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import func, insert, select, update

from ..errors import JobTypeNotFound, ValidationFailed
from ..rules.events import EventKind
from ..rules.flow import Bucket, TypeSettings
from ..rules.jobs import JOB_TYPE_PATTERN, JobStatus
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor
from ..store.paging import slice_by_name
from ..store.tables import job_types
from ..store.transactions import IN_ORDER, set_planner, transactional
from . import counts, events, flow, stats, workers
from .creating import MAX_JOB_TYPES
from .flow_turns import bucket_of
from .job_filters import Filters
from .job_rows import in_workspace

SETTINGS = tuple(name for name in TypeSettings.__dataclass_fields__ if name != "keyed")
_DEFAULTS = {name: getattr(TypeSettings(), name) for name in SETTINGS}
_RATE = frozenset({"rate_starts", "rate_seconds"})
_NAME = re.compile(JOB_TYPE_PATTERN)


class JobType(NamedTuple):
    """A job type: its settings, and its current load."""

    job_type: str
    settings: TypeSettings
    pending: int
    running: int
    oldest_due_seconds: int | None
    """For how long the oldest due job has been due; None: no job is due."""
    live_workers: int


class TypePage(NamedTuple):
    """A page of job types in the order of their names."""

    rows: Sequence[JobType]
    total: int
    next_cursor: str | None


def page(
    session: Executor,
    workspace_id: int,
    *,
    only_job_types: Sequence[str] | None = None,
    limit: int,
    page: int | None = None,
    cursor: str | None = None,
) -> TypePage:
    """A page of the types that have jobs or settings. Call it in a ``snapshot``.

    Raises ``ValidationFailed`` for an invalid cursor.
    """
    settings = _settings(session, workspace_id)
    names = sorted(counts.job_types(session, workspace_id) | settings.keys())
    if only_job_types is not None:
        names = [name for name in names if name in only_job_types]
    shown = slice_by_name(names, lambda name: (name,), limit=limit, page=page, cursor=cursor)
    found = _doing(session, workspace_id, shown.rows, settings)
    return TypePage(found, len(names), shown.next_cursor)


def get(session: Executor, workspace_id: int, job_type: str) -> JobType:
    """One type. Call it in a ``snapshot``. Raises ``JobTypeNotFound``."""
    settings = _settings(session, workspace_id, job_type)
    if not settings and job_type not in counts.job_types(session, workspace_id):
        raise not_found(job_type)
    return _doing(session, workspace_id, [job_type], settings)[0]


def current(session: Executor, workspace_id: int, job_type: str) -> JobType:
    """One type as ``get`` returns it, even if it has neither jobs nor settings."""
    settings = _settings(session, workspace_id, job_type)
    return _doing(session, workspace_id, [job_type], settings)[0]


def not_found(job_type: str) -> JobTypeNotFound:
    """The error for a type that has neither jobs nor settings."""
    if not _NAME.fullmatch(job_type):
        return JobTypeNotFound("There is no such job type in this workspace.")
    return JobTypeNotFound(f"The workspace has no jobs and no settings of the type {job_type}.")


def _settings(
    session: Executor, workspace_id: int, job_type: str | None = None
) -> dict[str, TypeSettings]:
    """The types with settings of their own."""
    query = select(job_types).where(job_types.c.workspace_id == workspace_id)
    if job_type is not None:
        query = query.where(job_types.c.job_type == job_type)
    found = {row.job_type: flow.settings_of(row) for row in session.execute(query)}
    return {
        name: each
        for name, each in found.items()
        if any(getattr(each, n) != default for n, default in _DEFAULTS.items())
    }


def _doing(
    session: Executor,
    workspace_id: int,
    names: Sequence[str],
    settings: Mapping[str, TypeSettings],
) -> list[JobType]:
    if not names:
        return []
    pending = dict.fromkeys(names, 0)
    running = dict.fromkeys(names, 0)
    live = Filters(status=[JobStatus.PENDING, JobStatus.RUNNING], job_type=names)
    for kind in counts.kinds(session, in_workspace(workspace_id), live):
        (pending if kind.status == JobStatus.PENDING else running)[kind.job_type] += kind.n
    now: datetime = session.execute(select(DbNow())).scalar_one()
    waiting = [(workspace_id, name) for name in names if pending[name]]
    set_planner(session, IN_ORDER)
    oldest = stats.oldest_due(session, waiting, now)
    live_workers = workers.count_live(session, [(workspace_id, name) for name in names])
    return [
        JobType(
            job_type=name,
            settings=settings.get(name, TypeSettings()),
            pending=pending[name],
            running=running[name],
            oldest_due_seconds=_whole(oldest.get((workspace_id, name))),
            live_workers=live_workers[workspace_id, name],
        )
        for name in names
    ]


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


@transactional()
def change(
    session: Executor,
    workspace_id: int,
    job_type: str,
    changes: Mapping[str, Any],
    *,
    actor: str | None = None,
) -> None:
    """Change settings of a type; a setting of None returns to its default.

    The type need not have settings, or jobs, before. ``changes`` has settings by name, and
    ``rate_limit`` with ``starts`` and ``seconds``. Raises ``JobTypeNotFound`` for an impossible
    name, and ``ValidationFailed``.
    """
    if not _NAME.fullmatch(job_type):
        raise not_found(job_type)
    # Before anything is read, because it serializes the changes of a workspace.
    flow.bump(session, workspace_id)
    mine = (job_types.c.workspace_id == workspace_id) & (job_types.c.job_type == job_type)
    row = session.execute(select(job_types, DbNow().label("now")).where(mine)).first()
    now = row.now if row is not None else session.execute(select(DbNow())).scalar_one()
    before = TypeSettings() if row is None else flow.settings_of(row)
    values = _values(before, changes)
    changed = {name: value for name, value in values.items() if getattr(before, name) != value}
    if not changed:
        return
    if row is None:
        _check_number(session, workspace_id)
    bucket = _bucket(row, before, changed, now)
    written = {**changed, **bucket, "updated_at": now}
    if row is None:
        key = {"workspace_id": workspace_id, "job_type": job_type}
        session.execute(insert(job_types).values(**key, **written))
    else:
        session.execute(update(job_types).where(mine).values(**written))
    data = {name: _shown(value) for name, value in changed.items() if name not in _RATE}
    if not _RATE.isdisjoint(changed):
        rate = {"starts": values["rate_starts"], "seconds": values["rate_seconds"]}
        data["rate_limit"] = None if rate["starts"] is None else rate
    kind = _kind(changed)
    events.note(session, workspace_id, kind, actor=actor, data=data, job_type=job_type)


def _kind(changed: Mapping[str, Any]) -> EventKind:
    """The event of a change, whichever request makes it."""
    if "paused" not in changed:
        return EventKind.JOB_TYPE_CHANGED
    return EventKind.JOB_TYPE_PAUSED if changed["paused"] else EventKind.JOB_TYPE_RESUMED


def pause(
    session: Executor,
    workspace_id: int,
    job_type: str,
    reason: str | None,
    *,
    actor: str | None = None,
) -> None:
    """Stop claims from starting jobs of a type. Raises ``JobTypeNotFound`` as ``change`` does."""
    changes = {"paused": True, "paused_reason": reason}
    change(session, workspace_id, job_type, changes, actor=actor)


def resume(
    session: Executor, workspace_id: int, job_type: str, *, actor: str | None = None
) -> None:
    """Let claims start jobs of a type again. Raises ``JobTypeNotFound`` as ``change`` does."""
    changes = {"paused": False, "paused_reason": None}
    change(session, workspace_id, job_type, changes, actor=actor)


def _values(before: TypeSettings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The new values of the settings that a merge patch contains."""
    values = {
        name: _DEFAULTS[name] if changes[name] is None else changes[name]
        for name in SETTINGS
        if name in changes
    }
    if "rate_limit" in changes:
        rate = changes["rate_limit"] or {"starts": None, "seconds": None}
        values["rate_starts"] = rate.get("starts", before.rate_starts)
        values["rate_seconds"] = rate.get("seconds", before.rate_seconds)
        for name in ("starts", "seconds"):
            if changes["rate_limit"] is not None and values[f"rate_{name}"] is None:
                raise ValidationFailed({f"rate_limit.{name}": ["Missing data for required field."]})
    if not values.get("paused", before.paused):
        # The end of a pause clears its reason.
        if values.get("paused_reason") is not None:
            raise ValidationFailed({"paused_reason": ["Only together with paused."]})
        values["paused_reason"] = None
    return values


def _bucket(
    row: AnyRow | None, before: TypeSettings, changed: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """The columns of the token bucket after a change of the rate limit. A new bucket is full."""
    if _RATE.isdisjoint(changed):
        return {}
    starts = changed.get("rate_starts", before.rate_starts)
    seconds = changed.get("rate_seconds", before.rate_seconds)
    if starts is None:
        return {"tokens": None, "tokens_at": None}
    left = starts if row is None or row.tokens is None else bucket_of(row).left(now)
    bucket = Bucket(starts, seconds, min(left, starts), now)
    return {"tokens": bucket.tokens, "tokens_at": bucket.at}


def _check_number(session: Executor, workspace_id: int) -> None:
    number = session.execute(
        select(func.count()).select_from(job_types).where(job_types.c.workspace_id == workspace_id)
    ).scalar_one()
    if number >= MAX_JOB_TYPES:
        raise ValidationFailed(
            {
                "job_type": [
                    f"A workspace can have settings for at most {MAX_JOB_TYPES:,} job types."
                ]
            }
        )


def _shown(value: Any) -> Any:
    return getattr(value, "label", value)
