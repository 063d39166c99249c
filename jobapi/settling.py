"""Many jobs changed at once: each by the rules, all of them written in a few statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Update, update

from . import leases
from .database import AnyRow, Executor, dialect_name, insert_records, record_source, records
from .jobs import COLUMNS
from .models import attempts, jobs

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
            rows.append({name: getattr(job, name) for name in ("id", *_SETTLED)} | held)
        settled = session.execute(_settlement(dialect_name(session)), records(session, rows)).all()
        if len(settled) != len(rows):
            # They were locked when they were read.
            raise RuntimeError("jobs changed although they were locked")
        if self._ended:
            session.execute(
                insert_records(session, attempts, _ATTEMPT), records(session, self._ended)
            )


_HELD = ("status", "version", "lease_token")


@cache
def _settlement(dialect: str) -> Update:
    source = record_source(
        dialect,
        {name: jobs.c[name].type for name in ("id", *_SETTLED)}
        | {f"held_{name}": jobs.c[name].type for name in _HELD},
    )
    return (
        update(jobs)
        .where(
            jobs.c.id == source.c.id,
            *(jobs.c[name].is_not_distinct_from(source.c[f"held_{name}"]) for name in _HELD),
        )
        .values({name: source.c[name] for name in _SETTLED})
        .returning(jobs.c.id)
    )
