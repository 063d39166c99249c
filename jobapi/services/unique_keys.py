"""At most one live job of a type has a ``unique_key``: find it, and refuse a second one."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from sqlalchemy import bindparam, func, literal_column, select

from ..errors import JobExists, PageTooLarge
from ..rules.jobs import CurrentJob, Job, JobStatus
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.paging import MAX_BYTES
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import jobs
from .job_rows import COLUMNS, answer_bytes

TypeAndKey = tuple[str, str]
"""A job type and a ``unique_key``."""

IS_LIVE = jobs.c.status <= literal_column("1")
"""Pending or running; with a literal, as in the condition of the index on unique keys."""


def find_live(
    session: Executor, workspace_id: int, wanted: Collection[TypeAndKey]
) -> dict[TypeAndKey, CurrentJob]:
    """The live jobs of a workspace with these types and keys, by type and key.

    Raises ``PageTooLarge`` if several together are too large for a response.
    """
    if not wanted:
        return {}
    rows = [{"job_type": job_type, "key": key} for job_type, key in wanted]
    given = {"given_workspace_id": workspace_id, **records(session, rows)}
    dialect = dialect_name(session)
    if len(wanted) > 1:
        (row,) = _size(dialect).all(session, given)
        if row.size > MAX_BYTES:
            raise PageTooLarge(
                "The live jobs with these unique keys are larger than 8 MiB together. Create fewer "
                "jobs in one request."
            )
    found = _live(dialect).all(session, given)
    return {(row.job_type, row.unique_key or ""): row for row in found}


def find_taken(
    session: Executor, workspace_id: int, wanted: Collection[TypeAndKey]
) -> set[TypeAndKey]:
    """Those of the types and keys that a live job has."""
    if not wanted:
        return set()
    rows = [{"job_type": job_type, "key": key} for job_type, key in wanted]
    given = {"given_workspace_id": workspace_id, **records(session, rows)}
    found = _taken(dialect_name(session)).all(session, given)
    return {(row.job_type, row.unique_key) for row in found}


@cache
def _taken(dialect: str) -> Statement[AnyRow]:
    return Statement[AnyRow](
        select(jobs.c.job_type, jobs.c.unique_key).where(*_conditions(dialect))
    )


@cache
def _live(dialect: str) -> Statement[CurrentJob]:
    conditions = _conditions(dialect)
    return Statement[CurrentJob](select(*COLUMNS, DbNow().label("now")).where(*conditions))


@cache
def _size(dialect: str) -> Statement[AnyRow]:
    size = func.coalesce(func.sum(answer_bytes()), 0).label("size")
    return Statement[AnyRow](select(size).where(*_conditions(dialect)))


def _conditions(dialect: str) -> list[Any]:
    c = jobs.c
    of = record_source(dialect, {"job_type": c.job_type.type, "key": c.unique_key.type}).c
    mine = c.workspace_id == bindparam("given_workspace_id")
    return [mine, IS_LIVE, c.job_type == of.job_type, c.unique_key == of.key]


def exists(live: Job) -> JobExists:
    """The error for a second live job with a ``unique_key``."""
    status = JobStatus(live.status).label
    return JobExists(
        f"The job {live.job_id} has this unique_key and is {status}.", job_id=live.job_id
    )
