"""Change many jobs at once: the rules decide on each, and a few statements write them all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Select, Update, select, true, update

from ..rules import leases
from ..rules.jobs import Attempt, CurrentJob, Outcome, SettledColumns
from ..rules.lifecycle import Change
from ..store.columns import DbNow
from ..store.connections import Executor, dialect_name
from ..store.partitions import is_partitioned
from ..store.records import insert_records, record_source, records
from ..store.statement import Statement
from ..store.tables import attempts, jobs
from .job_rows import COLUMNS

DECIDING = tuple(column for column in COLUMNS if column.name != "metadata")
"""The columns that rules and answers need: all but the metadata, which may be large."""

_SETTLED = (*SettledColumns.__annotations__, "version", "updated_at", "changed_by", "last_event")


def lock(
    session: Executor, workspace_id: int, job_ids: Collection[str], *conditions: ColumnElement[bool]
) -> Sequence[CurrentJob]:
    """Lock jobs of a workspace; returns their ``DECIDING`` columns and ``now``.

    Jobs that do not exist, or do not match ``conditions``, are left out.

    Every transaction that changes several jobs locks them in the order of ``job_id``.
    """
    wanted = [{"workspace_id": workspace_id, "job_id": job_id} for job_id in sorted(job_ids)]
    given = records(session, wanted)
    if conditions:
        locking = _locking(dialect_name(session), is_partitioned(session), conditions)
        return cast(Sequence[CurrentJob], session.execute(locking, given).all())
    return _lock(dialect_name(session), is_partitioned(session)).all(session, given)


@cache
def _lock(dialect: str, partitioned: bool) -> Statement[CurrentJob]:
    return Statement[CurrentJob](_locking(dialect, partitioned, ()), keep=True)


def _locking(
    dialect: str, partitioned: bool, conditions: Sequence[ColumnElement[bool]]
) -> Select[Any]:
    key = ("workspace_id", "job_id")
    wanted = record_source(dialect, {name: jobs.c[name].type for name in key})
    # ``+ 0`` keeps the planner from using an index on the workspace, which looks cheap if the
    # statistics are those of a small table. With partitions, it says which one to search.
    workspace = jobs.c.workspace_id if partitioned else jobs.c.workspace_id + 0
    one = (
        select(*DECIDING, DbNow().label("now"))
        .where(workspace == wanted.c.workspace_id, jobs.c.job_id == wanted.c.job_id, *conditions)
        .with_for_update()
    )
    if dialect == "sqlite":
        return one
    # Lateral: one index lookup per job, however many jobs the planner expects.
    each = one.lateral("each")
    return select(*each.c).select_from(wanted.join(each, true()))


class EndedAttempt(NamedTuple):
    """A job after the change, and how the change ended its attempt."""

    job: CurrentJob
    outcome: Outcome


class Settling:
    """Collects the changes of locked jobs, and writes them in a few statements.

    ``actor`` is who makes the changes: ``user:1``, ``key:1``, None for the service itself.
    ``jobs`` has the jobs by ``job_id``, with the changes applied so far. ``ended`` has the attempts
    that these changes ended.
    """

    def __init__(self, rows: Sequence[CurrentJob], *, actor: str | None) -> None:
        self._actor = actor
        self._before = {row.job_id: row for row in rows}
        self._attempts: list[Attempt] = []
        self._touched: set[str] = set()
        # Copies, which can be changed; a row cannot.
        self.jobs: dict[str, CurrentJob] = {
            row.job_id: cast(CurrentJob, SimpleNamespace(**cast(Any, row)._asdict()))
            for row in rows
        }
        self.ended: list[EndedAttempt] = []

    def apply(self, job: CurrentJob, change: Change) -> None:
        """Apply a change that a rule returned to one of the jobs."""
        attempt = leases.ended_attempt(job, change, job.now)
        if attempt is not None:
            self._attempts.append(attempt)
        if change.outcome is not None:
            self.ended.append(EndedAttempt(job, change.outcome))
        vars(job).update(change.values)
        if not change.is_renewal:
            vars(job).update(
                version=job.version + 1,
                updated_at=job.now,
                changed_by=self._actor,
                last_event=change.event,
            )
        self._touched.add(job.job_id)

    def settle(self, session: Executor) -> None:
        """Write the changes, each to the version of the job that was read."""
        if not self._touched:
            return
        rows = []
        for job_id, job in self.jobs.items():
            if job_id not in self._touched:
                continue
            before = self._before[job_id]
            held = {f"held_{name}": getattr(before, name) for name in _HELD}
            rows.append({name: getattr(job, name) for name in (*_KEY, *_SETTLED)} | held)
        settled = session.execute(_settlement(dialect_name(session)), records(session, rows)).all()
        if len(settled) != len(rows):
            # They were locked when they were read.
            raise RuntimeError("jobs changed although they were locked")
        if self._attempts:
            ended = [attempt._asdict() for attempt in self._attempts]
            session.execute(
                insert_records(session, attempts, Attempt._fields), records(session, ended)
            )


_KEY = ("workspace_id", "id")
_HELD = ("status", "version", "lease_token")


@cache
def _settlement(dialect: str) -> Update:
    source = record_source(
        dialect,
        {name: jobs.c[name].type for name in (*_KEY, *_SETTLED)}
        | {f"held_{name}": jobs.c[name].type for name in _HELD},
    )
    return (
        update(jobs)
        .where(
            *(jobs.c[name] == source.c[name] for name in _KEY),
            *(jobs.c[name].is_not_distinct_from(source.c[f"held_{name}"]) for name in _HELD),
        )
        .values(
            {
                **{name: source.c[name] for name in _SETTLED},
                # None of these changes is an edit of fields.
                "last_edited": None,
                "last_event_version": source.c.version,
            }
        )
        .returning(jobs.c.id)
    )
