"""Idempotency keys: the answer to a request is stored under its key, and returned again.

It is stored in the transaction of the work, so there is an answer if and only if the
work was committed.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import BigInteger, bindparam, delete, func, insert, select, tuple_

from ..errors import IdempotencyKeyReused, RequestInProgress
from ..store.columns import DbNow
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import not_moving
from ..store.statement import Statement
from ..store.tables import idempotency_keys

KEPT = timedelta(hours=24)
"""How long an answer is stored."""

MAX_KEY_LENGTH = 255
FORGET_AT_ONCE = 1000


def fingerprint(operation: str, body: Any) -> str:
    """A hash of a request. It does not depend on how the JSON was formatted."""
    text = orjson.dumps([operation, body], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(text).hexdigest()


def recall(
    session: Executor, workspace_id: int, caller: str, key: str, fingerprint: str
) -> str | None:
    """The answer that is stored for a key; None: do the work, and call ``remember``.

    Call it in the transaction of the work. Raises ``RequestInProgress`` if another
    request with the key is under way (SQLite has one writer at a time, and waits
    instead), and ``IdempotencyKeyReused`` if the key was sent with another request.
    """
    if dialect_name(session) == "postgresql":
        name = hashlib.sha256(f"{workspace_id} {caller} {key}".encode()).digest()
        number = int.from_bytes(name[:8], "big", signed=True)
        (lock,) = _LOCK.all(session, {"number": number})
        if not lock.taken:
            raise RequestInProgress(
                "A request with this Idempotency-Key is in progress. Repeat it in a moment."
            )
    mine = {"workspace_id": workspace_id, "caller": caller, "key": key}
    row = _RECALL.first(session, mine)
    if row is None:
        return None
    if row.created_at <= row.now - KEPT:
        session.execute(delete(idempotency_keys).where(_MINE), mine)
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used for another request; use a new one for each request."
        )
    return str(row.answer)


def remember(
    session: Executor,
    workspace_id: int,
    caller: str,
    key: str,
    fingerprint: str,
    answer: str,
    now: datetime,
) -> None:
    """Store the answer to a key for a day from ``now``, the database's time."""
    _REMEMBER.all(
        session,
        {
            "workspace_id": workspace_id,
            "caller": caller,
            "key": key,
            "fingerprint": fingerprint,
            "answer": answer,
            "created_at": now,
        },
    )


_LOCK = Statement[AnyRow](
    select(func.pg_try_advisory_xact_lock(bindparam("number", type_=BigInteger)).label("taken")),
    prepare=True,
)
_MINE = (
    (idempotency_keys.c.workspace_id == bindparam("workspace_id"))
    & (idempotency_keys.c.caller == bindparam("caller"))
    & (idempotency_keys.c.key == bindparam("key"))
)
_RECALL = Statement[AnyRow](
    select(
        idempotency_keys.c.fingerprint,
        idempotency_keys.c.answer,
        idempotency_keys.c.created_at,
        DbNow().label("now"),
    ).where(_MINE),
    prepare=True,
)
_REMEMBER = Statement[AnyRow](
    insert(idempotency_keys), prepare=True, values=[column.name for column in idempotency_keys.c]
)


def forget(session: Executor) -> int:
    """Delete some of the answers that are older than a day; returns how many."""
    now = session.execute(select(DbNow())).scalar_one()
    key = (idempotency_keys.c.workspace_id, idempotency_keys.c.caller, idempotency_keys.c.key)
    old = (
        select(*key)
        .where(
            idempotency_keys.c.created_at <= now - KEPT, not_moving(idempotency_keys.c.workspace_id)
        )
        .order_by(idempotency_keys.c.created_at)
        .limit(FORGET_AT_ONCE)
    )
    deleted: Any = session.execute(delete(idempotency_keys).where(tuple_(*key).in_(old)))
    return int(deleted.rowcount)
