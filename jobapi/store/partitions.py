"""The table of jobs in partitions, on Postgres."""

from __future__ import annotations

from importlib import resources

from sqlalchemy import Connection, func, select, text

from .connections import dialect_name
from .tables import jobs


class CannotPartition(Exception):
    """The table cannot be partitioned; the message says why."""


def partition_jobs(session: Connection, partitions: int, *, max_jobs: int) -> None:
    """Partition the table of jobs by workspace, in this transaction.

    Raises ``CannotPartition`` on SQLite, if it is partitioned already, and if it has more than
    ``max_jobs`` jobs.
    """
    if dialect_name(session) != "postgresql":
        raise CannotPartition("Only Postgres has partitions.")
    kind = session.scalar(text("SELECT relkind FROM pg_class WHERE oid = 'jobapi_jobs'::regclass"))
    if kind == "p":
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
