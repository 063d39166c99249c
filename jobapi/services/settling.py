"""Many jobs changed at once: each by the rules, all of them written in a few statements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, select, true, update

from ..rules import leases
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import insert_records, record_source, records
from ..store.statement import Statement
from ..store.tables import attempts, jobs
from .job_rows import COLUMNS

DECIDING = tuple(column for column in COLUMNS if column.name != "metadata")
"""What the rules look at, and what an answer needs. Not the metadata, which may be large."""

# What a report, the reaper or an operation may change.
_SETTLED = (
    "status",
    "version",
    "result",
    "error",
    "progress_percent",
    "progress_message",
    "actual_duration",
    "retry_count",
    "max_retries",
    "updated_at",
    "queued_at",
    "due_at",
    "started_at",
    "completed_at",
    "lease_token",
    "lease_seconds",
    "lease_expires_at",
    "reap_at",
    "succeeded_by",
    "changed_by",
    "prefetched",
    "suspect",
    "run_id",
)
_ATTEMPT = tuple(column.name for column in attempts.c)


def lock(
    session: Executor,
    workspace_id: int,
    job_ids: Collection[str],
    *conditions: ColumnElement[bool],
) -> Sequence[AnyRow]:
    """Lock jobs of a workspace, those that match; each with ``DECIDING`` and the time as ``now``.

    Every transaction that changes several jobs locks them in the order of ``job_id``.
    """
    wanted = [{"workspace_id": workspace_id, "job_id": job_id} for job_id in sorted(job_ids)]
    given = records(session, wanted)
    if conditions:
        return session.execute(_locking(dialect_name(session), conditions), given).all()
    return _lock(dialect_name(session)).all(session, given)


@cache
def _lock(dialect: str) -> Statement[AnyRow]:
    return Statement[AnyRow](_locking(dialect, ()))


def _locking(dialect: str, conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    key = ("workspace_id", "job_id")
    wanted = record_source(dialect, {name: jobs.c[name].type for name in key})
    one = (
        select(*DECIDING, DbNow().label("now"))
        .where(*(jobs.c[name] == wanted.c[name] for name in key), *conditions)
        .with_for_update()
    )
    if dialect == "sqlite":
        return one
    # One after the other, each by its own index, however many the planner believes there to be.
    each = one.lateral("each")
    return select(*each.c).select_from(wanted.join(each, true()))


class Settling:
    """Jobs that were read under a lock, each with the time as ``now``, and what becomes of them.

    ``by`` is who changes them: ``user:1``, ``key:1``, None for the service itself.
    ``jobs`` are the jobs by their ids, as they are after what was applied.
    """

    def __init__(self, rows: Sequence[AnyRow], *, by: str | None) -> None:
        self._by = by
        self._before = {row.job_id: row for row in rows}
        self._ended: list[dict[str, Any]] = []
        self._touched: set[str] = set()
        self.jobs = {row.job_id: SimpleNamespace(**row._asdict()) for row in rows}

    def apply(self, job: Any, values: Mapping[str, Any]) -> None:
        """Change one of the jobs, as a rule says."""
        ended = leases.ended_attempt(job, values, job.now)
        if ended is not None:
            self._ended.append(ended)
        vars(job).update(values)
        if not leases.is_renewal(values):
            vars(job).update(updated_at=job.now, version=job.version + 1, changed_by=self._by)
        self._touched.add(job.job_id)

    @property
    def changed(self) -> list[Any]:
        """The jobs that are not as they were, but for their leases."""
        return [job for job in self.jobs.values() if job.version > self._before[job.job_id].version]

    def settle(self, session: Executor) -> None:
        """Write down what was applied, each to the job as it was read."""
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
        if self._ended:
            session.execute(
                insert_records(session, attempts, _ATTEMPT), records(session, self._ended)
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
        .values({name: source.c[name] for name in _SETTLED})
        .returning(jobs.c.id)
    )
