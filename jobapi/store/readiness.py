"""Whether the database is ready: migrated, and writable."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table, update

from .columns import DbNow, insert_or_ignore
from .connections import dialect_name
from .tables import leader_locks
from .transactions import transaction

VERSION_TABLE = "jobapi_alembic_version"
"""Where Alembic keeps the number of the last migration."""

_WRITE_CHECK = "write-check"


def migrations_folder() -> Path:
    """The migrations: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def schema_problem(connection: Connection) -> str | None:
    """What to do if the database lacks migrations of this version; otherwise None."""
    current, wanted = _current(connection), newest_migration()
    if current == wanted:
        return None
    return (
        f"The database is at migration {current or 'none'}, this version of jobapi needs "
        f"{wanted}; run: jobapi db upgrade"
    )


@cache
def newest_migration() -> str:
    """The number of the newest migration, from the names of the files.

    Alembic would read them all, and importing it would take a tenth of the start-up time.
    """
    numbered = migrations_folder().glob("versions/[0-9][0-9][0-9][0-9]_*.py")
    return max(path.name[:4] for path in numbered)


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = table(VERSION_TABLE, column("version_num"))
    found: str | None = connection.execute(select(version.c.version_num)).scalar()
    return found


def try_to_write(connection: Connection) -> None:
    """Write a row, to check that the database can be written to. Raises SQLAlchemy's errors."""
    is_sqlite = dialect_name(connection) == "sqlite"
    mark = insert_or_ignore(dialect_name(connection), leader_locks).values(
        # On SQLite, enough that the file needs two more pages. They are freed afterwards.
        name=_WRITE_CHECK,
        holder="x" * 8_000 if is_sqlite else "",
        expires_at=DbNow(),
    )
    mark = mark.on_conflict_do_update(
        index_elements=["name"],
        set_={"holder": mark.excluded.holder, "expires_at": mark.excluded.expires_at},
    )
    with transaction(connection) as tx:
        tx.execute(mark)
        if is_sqlite:
            mine = leader_locks.c.name == _WRITE_CHECK
            tx.execute(update(leader_locks).where(mine).values(holder=""))
