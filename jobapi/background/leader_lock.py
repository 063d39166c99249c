"""The leader lock: a row that one process at a time holds, for a few seconds.

The leader renews it again and again. If the leader dies, the row expires and another
process takes it. It is a row and not a lock of the database's own, because a pooler
may give each transaction another connection.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, delete, or_, select

from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import dialect_name
from ..store.tables import leader_locks

LEASE_SECONDS = 7
"""How long the lock is held without a renewal."""

_NAME = "maintenance"


def acquire(connection: Connection, holder: str, *, seconds: int = LEASE_SECONDS) -> bool:
    """Take the lock, or renew it; False if another process holds it."""
    now = connection.execute(select(DbNow())).scalar_one()
    mine = insert_or_ignore(dialect_name(connection), leader_locks).values(
        name=_NAME, holder=holder, expires_at=now + timedelta(seconds=seconds)
    )
    taken = connection.execute(
        mine.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": mine.excluded.holder, "expires_at": mine.excluded.expires_at},
            where=or_(leader_locks.c.holder == holder, leader_locks.c.expires_at <= now),
        ).returning(leader_locks.c.name)
    ).first()
    return taken is not None


def release(connection: Connection, holder: str) -> None:
    """Let another process take over at once."""
    mine = (leader_locks.c.name == _NAME, leader_locks.c.holder == holder)
    connection.execute(delete(leader_locks).where(*mine))
