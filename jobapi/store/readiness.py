"""Whether the database is ready: migrated, and writable."""

from __future__ import annotations

from functools import cache

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, inspect, select, table, update

from .columns import DbNow, insert_or_ignore
from .connections import dialect_name
from .tables import leader_locks
from .transactions import transaction

_WRITE_CHECK = "write-check"


def schema_problem(connection: Connection, directory: str, version_table: str) -> str | None:
    """What to do if the database lacks migrations of this version; otherwise None."""
    current, wanted = _current(connection, version_table), _head(directory)
    if current == wanted:
        return None
    return (
        f"The database is at migration {current or 'none'}, this version of jobapi needs "
        f"{wanted}; run: jobapi db upgrade"
    )


@cache
def _head(directory: str) -> str | None:
    return ScriptDirectory(directory).get_current_head()


def _current(connection: Connection, version_table: str) -> str | None:
    if not inspect(connection).has_table(version_table):
        return None
    version = table(version_table, column("version_num"))
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
