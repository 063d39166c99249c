"""Classifies database errors: try again, use another connection, or a bug.

They are classified by the code that the database sends (SQLSTATE, or SQLite's error
name), not by the exception's class, so that the result is the same with every driver.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from sqlalchemy import Index
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

logger = logging.getLogger("jobapi")


class Fault(NamedTuple):
    """Why the database cannot do something now."""

    detail: str
    """What is wrong and what to do, for the caller."""

    reconnect: bool = False
    """Whether to drop this connection, because a new one may work."""

    read_only: bool = False
    """Whether the database refused a write because it is read-only."""


_AWAY = Fault("The database does not answer; try again in a moment.", reconnect=True)
_READ_ONLY = Fault(
    "The database is read-only at this moment, as during a fail-over; try again later.",
    reconnect=True,
    read_only=True,
)
_STALE = Fault("The database or its connection has just changed; try again.", reconnect=True)
_FULL = Fault("The database's disk is full; try again later.")
_BUSY = Fault("The database is too busy to do this now; try again in a moment.")
_LOCKED = Fault("Another transaction has held a lock on this for too long; try again in a moment.")
_SLOW = Fault("The database took too long; try again, or ask for less at a time.")
_CONFLICT = Fault("Another transaction changed the same data at the same moment; try again.")
_IO_ERROR = Fault("The database cannot read or write its files; try again later.", reconnect=True)
_MOVING = Fault("The workspace is being moved to another database; try again later.")
_POOL = Fault("All database connections of this process are in use; try again in a moment.")

_BY_STATE = {
    "0A000": _STALE,  # only where a plan is out of date, see _stale
    "25006": _READ_ONLY,
    "25P03": _AWAY,  # idle in a transaction for too long: the connection was closed
    "25P04": _AWAY,
    "26000": _STALE,  # a pooler gave us a connection that lacks a prepared statement,
    "42P05": _STALE,  # or that has it already
    "40003": _AWAY,
    "53100": _FULL,
    "55P03": _LOCKED,
    "57014": _SLOW,
    "JM001": _MOVING,  # raised by the triggers of ``store.moving``
}
_BY_CLASS = {"08": _AWAY, "40": _CONFLICT, "53": _BUSY, "57": _AWAY, "58": _IO_ERROR}

_UNKNOWN_TABLE = frozenset({"42P01", "42703", "42883", "42704", "3F000"})
"""No such table, column, function, type or schema."""

_BY_NAME = {
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_IOERR": _IO_ERROR,
    "SQLITE_CANTOPEN": _IO_ERROR,
    "SQLITE_PROTOCOL": _LOCKED,
    "SQLITE_FULL": _FULL,
    "SQLITE_NOMEM": _BUSY,
    "SQLITE_SCHEMA": _STALE,
}


def judge(error: BaseException) -> Fault | None:
    """Why the database cannot do something now; None for an error that a retry cannot fix.

    Takes SQLAlchemy's errors and the drivers' own.
    """
    if isinstance(error, PoolTimeout):
        return _POOL
    fault = _judge_driver(_driver_error(error))
    if fault is not None:
        return fault
    return _AWAY if isinstance(error, DBAPIError) and error.connection_invalidated else None


def _judge_driver(error: BaseException | None) -> Fault | None:
    name = _sqlite_name(error)
    if name == "SQLITE_CONSTRAINT_TRIGGER":
        return _MOVING
    if name:
        # SQLITE_BUSY_SNAPSHOT and its like are kinds of SQLITE_BUSY.
        return _BY_NAME.get("_".join(name.split("_")[:2]))
    state = sqlstate(error)
    if state is None:
        # Nothing came from the database: the driver says that it cannot be reached.
        return _AWAY if "OperationalError" in _class_names(error) else None
    if state == "0A000" and not _plan_is_stale(error):
        return None
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2])


def is_locked(error: BaseException) -> bool:
    """Whether another transaction held a lock for too long, or both waited for each other."""
    return judge(error) in (_LOCKED, _CONFLICT)


def is_deadlock(error: DBAPIError) -> bool:
    """Whether Postgres ended a transaction to resolve a deadlock."""
    return sqlstate(error.orig) == "40P01"


def parent_is_gone(error: DBAPIError) -> bool:
    """Whether a foreign key refused a row, because the row that it refers to is gone."""
    if not isinstance(error, IntegrityError):
        return False
    return (
        sqlstate(error.orig) == "23503"
        or _sqlite_name(error.orig) == "SQLITE_CONSTRAINT_FOREIGNKEY"
    )


def violates(error: DBAPIError, index: Index) -> bool:
    """Whether an error says that a row violates this unique index."""
    if not isinstance(error, IntegrityError):
        return False
    names = [column.name for column in index.columns]
    diagnostics: Any = getattr(error.orig, "diag", None)
    if diagnostics is None:
        table = index.table.name if index.table is not None else ""
        return str(error.orig).endswith(": " + ", ".join(f"{table}.{name}" for name in names))
    # By its columns, because in a partition the index has another name.
    return sqlstate(error.orig) == "23505" and f"({', '.join(names)})=" in (
        diagnostics.message_detail or ""
    )


def lacks_schema(error: BaseException) -> bool:
    """Whether a table or a column is missing, as in a database that was not migrated."""
    driver_error = _driver_error(error)
    if sqlstate(driver_error) in _UNKNOWN_TABLE:
        return True
    return _sqlite_name(driver_error) == "SQLITE_ERROR" and (
        str(driver_error).startswith(("no such table", "no such column"))
        or " has no column named " in str(driver_error)
    )


def sqlstate(error: BaseException | None) -> str | None:
    """Postgres's code for an error, with any driver; None if it sent none."""
    found: Any = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return found if isinstance(found, str) else None


def _sqlite_name(error: BaseException | None) -> str:
    return str(getattr(error, "sqlite_errorname", ""))


def _driver_error(error: BaseException | None) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _class_names(error: BaseException | None) -> set[str]:
    return {each.__name__ for each in type(error).__mro__}


def _plan_is_stale(error: BaseException | None) -> bool:
    # "cached plan must not change result type", in whatever language the server speaks.
    diagnostics: Any = getattr(error, "diag", None)
    return getattr(diagnostics, "source_function", None) == "RevalidateCachedQuery"


class FaultLog:
    """Logs a fault of the database when it begins and when it ends, not at each attempt."""

    def __init__(self, what: str) -> None:
        """``what`` is the name of what may fail, such as "maintenance"."""
        self._what = what
        self._said: str | None = None

    def failed(self, error: BaseException) -> None:
        """Log the error, unless the same fault has been logged before."""
        fault = judge(error)
        if fault is None:
            logger.error("%s failed; it goes on in a moment", self._what, exc_info=error)
        elif fault.detail != self._said:
            self._said = fault.detail
            logger.warning("%s has to wait: %s", self._what, fault.detail, exc_info=error)

    def worked(self) -> None:
        """Log that the fault is over, if there was one."""
        if self._said is not None:
            self._said = None
            logger.info("%s goes on", self._what)
