"""For whoever keeps the service running: ``/health``."""

from __future__ import annotations

from functools import cache
from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, column, inspect, select, table

from ..errors import Unavailable
from ..schemas import base as schemas
from .access import connect, public
from .base import Blueprint, state

blp = Blueprint("health", "Health", "Whether the service lives, and whether it can work.")


@blp.operation("/health/live", summary="Is the process alive")
@public
@blp.response(200, schemas.Health)
def get_live() -> Any:
    """Answers while the process can answer; asks nobody else."""
    return {"status": "ok"}


@blp.operation("/health/ready", summary="Can the service work")
@public
@blp.response(200, schemas.Health)
def get_ready() -> Any:
    """Asks the database, and whether it has the migrations that this version needs."""
    directory, version_table = _migrations()
    with connect() as connection:
        current = _current_version(connection, version_table)
    wanted = _head(directory)
    if current != wanted:
        raise Unavailable(
            f"The database is at migration {current or 'none'}, this version of jobapi needs "
            f"{wanted}; run: jobapi db upgrade"
        )
    return {"status": "ok"}


def _migrations() -> tuple[str, str]:
    migrate: Any = state().private.extensions["migrate"]
    return migrate.directory, migrate.configure_args["version_table"]


@cache
def _head(directory: str) -> str | None:
    return ScriptDirectory(directory).get_current_head()


def _current_version(connection: Connection, version_table: str) -> str | None:
    if not inspect(connection).has_table(version_table):
        return None
    version = table(version_table, column("version_num"))
    return connection.execute(select(version.c.version_num)).scalar()
