"""The flow control of a workspace, as claims, creates and reports need it: read once and cached.

``workspaces.flow_version`` gets a new random number with each change, so what a process has read
under a version stays valid for as long as requests find that version. 0 means that the workspace
has never had any settings: then nothing needs to be read.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, bindparam, select, update

from ..rules.flow import UNGOVERNED, Flow, TypeSettings
from ..rules.jobs import Priority
from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.statement import Statement
from ..store.tables import job_types, workspaces
from ..store.transactions import transactional

_SETTINGS = tuple(TypeSettings.__dataclass_fields__)
_VERSION = (
    select(workspaces.c.flow_version).where(workspaces.c.id == bindparam("workspace"))
).scalar_subquery()
_NOW_IN = Statement[AnyRow](select(DbNow().label("now"), _VERSION.label("version")), prepare=True)
_MAX_KEPT = 1000
_kept: WeakKeyDictionary[Any, dict[int, tuple[int, Flow]]] = WeakKeyDictionary()


class Now(NamedTuple):
    """The database's time, and the version of a workspace's flow control."""

    now: Any
    flow_version: int


def now_in(session: Executor, workspace_id: int) -> Now:
    """Read the time and the version, for a caller that has not read them."""
    (row,) = _NOW_IN.all(session, {"workspace": workspace_id})
    return Now(row.now, row.version or 0)


def load(session: Executor, workspace_id: int, version: int | None) -> Flow:
    """The flow control of a workspace. ``version`` is its ``flow_version``; None: look it up."""
    if version is None:
        version = now_in(session, workspace_id).flow_version
    if version == 0:
        return UNGOVERNED
    engine = session.engine if isinstance(session, Connection) else session.get_bind()
    kept = _kept.setdefault(engine, {})
    known = kept.get(workspace_id)
    if known is not None and known[0] == version:
        return known[1]
    flow = _read(session, workspace_id)
    if len(kept) >= _MAX_KEPT:
        kept.clear()
    kept[workspace_id] = version, flow
    return flow


def of_workspaces(session: Executor, ids: Collection[int]) -> dict[int, Flow]:
    """The flow control of several workspaces."""
    if not ids:
        return {}
    rows = session.execute(
        select(workspaces.c.id, workspaces.c.flow_version).where(workspaces.c.id.in_(ids))
    ).all()
    return {row.id: load(session, row.id, row.flow_version) for row in rows}


def _read(session: Executor, workspace_id: int) -> Flow:
    of = session.execute(
        select(
            workspaces.c.paused, workspaces.c.paused_reason, workspaces.c.priority_ageing_seconds
        ).where(workspaces.c.id == workspace_id)
    ).one()
    rows = session.execute(
        select(job_types.c.job_type, *(job_types.c[name] for name in _SETTINGS)).where(
            job_types.c.workspace_id == workspace_id
        )
    )
    return Flow(
        paused=of.paused,
        paused_reason=of.paused_reason,
        ageing_seconds=of.priority_ageing_seconds,
        types={row.job_type: settings_of(row) for row in rows},
    )


def settings_of(row: Any) -> TypeSettings:
    """The settings in a row of the table of job types."""
    values = {name: getattr(row, name) for name in _SETTINGS}
    if row.priority is not None:
        values["priority"] = Priority(row.priority)
    return TypeSettings(**values)


def bump(session: Executor, workspace_id: int) -> None:
    """Give the flow control a new version, in the transaction of its change.

    Call it before anything else: it locks the workspace's row, which serializes the changes.
    """
    session.execute(
        update(workspaces)
        .where(workspaces.c.id == workspace_id)
        .values(flow_version=1 + secrets.randbelow(2**62))
    )


@transactional()
def let_keys_take_turns(session: Executor, workspace_id: int, names: Iterable[str]) -> None:
    """Mark types as having jobs with a ``concurrency_key``, before the first one is created.

    If the caller has a transaction open, other changes of the flow control of the workspace wait
    until it ends.
    """
    dialect = dialect_name(session)
    bump(session, workspace_id)
    for name in sorted(set(names)):
        session.execute(
            insert_or_ignore(dialect, job_types)
            .values(workspace_id=workspace_id, job_type=name, keyed=True, updated_at=DbNow())
            .on_conflict_do_update(
                index_elements=["workspace_id", "job_type"], set_={"keyed": True}
            )
        )
