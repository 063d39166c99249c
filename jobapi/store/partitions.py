"""The table of jobs in partitions, on Postgres."""

from __future__ import annotations

from importlib import resources
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, func, select, text

from .connections import Executor, dialect_name
from .tables import jobs

_KNOWN: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()


def is_partitioned(session: Executor) -> bool:
    """Whether the table of jobs has partitions, as it was when this process first asked.

    If it has not, a row is found by its ``id`` alone, so that a plan needs no statistics to be
    right, and may be kept. Such a plan is right for a table that was partitioned meanwhile, too,
    but looks into every partition.
    """
    connection = session if isinstance(session, Connection) else session.connection()
    engine = connection.engine
    if engine not in _KNOWN:
        _KNOWN[engine] = _kind(connection) == "p"
    return _KNOWN[engine]


def _kind(connection: Connection) -> str | None:
    if dialect_name(connection) != "postgresql":
        return None
    kind: str | None = connection.scalar(
        text("SELECT relkind FROM pg_class WHERE oid = 'jobapi_jobs'::regclass")
    )
    return kind


class CannotPartition(Exception):
    """The table cannot be partitioned; the message says why."""


def partition_jobs(session: Connection, partitions: int, *, max_jobs: int) -> None:
    """Partition the table of jobs by workspace, in this transaction.

    Raises ``CannotPartition`` on SQLite, if it is partitioned already, and if it has more than
    ``max_jobs`` jobs.
    """
    if dialect_name(session) != "postgresql":
        raise CannotPartition("Only Postgres has partitions.")
    if _kind(session) == "p":
        raise CannotPartition("The table of jobs is partitioned already.")
    some = select(jobs.c.id).limit(max_jobs + 1).subquery()
    if (session.scalar(select(func.count()).select_from(some)) or 0) > max_jobs:
        raise CannotPartition(
            f"There are more than {max_jobs:,} jobs. docs/scaling.md says how to partition a large "
            "table: see --max-jobs."
        )
    script = resources.files("jobapi.migrations").joinpath("partition_jobs.sql").read_text("utf-8")
    # Escape colons, which would begin a parameter.
    session.execute(text(script.replace("{partitions}", str(partitions)).replace(":", r"\:")))
