"""The slots of job types and keys with limits: which are free, and locks on them.

Limits are enforced twice. A start first locks a slot and the key, and then, in another statement,
reads which jobs are running: a statement that both locks and reads would see the state from before
it got the lock. And unique indexes on the slots of running jobs reject a start without these locks.
SQLite has one writer at a time, and needs no locks.

A job holds its slot only while its status is ``running``, so slots need not be freed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    String,
    bindparam,
    column,
    literal_column,
    select,
    text,
)

from ..rules.flow import Flow, KeyOf, free_numbers
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.for_each import ForEach
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import jobs

# The statuses as literals, as in the conditions of the partial indexes. With a parameter, Postgres
# would not use such an index for a prepared statement, and SQLite for none.
PENDING: ColumnElement[bool] = jobs.c.status == literal_column("0")
RUNNING: ColumnElement[bool] = jobs.c.status == literal_column("1")

WORKSPACE: Any = bindparam("given_workspace_id", type_=Integer)


def free_slots(
    session: Executor, workspace_id: int, limits: Mapping[str, int | None], most: int
) -> dict[str, list[int]]:
    """The free slots of the types that have a limit; types without one are left out."""
    limited = {name: limit for name, limit in limits.items() if limit is not None}
    rows = [{"name": name, "max_running": limit} for name, limit in limited.items()]
    running: dict[str, list[int | None]] = {name: [] for name in limited}
    for found in _RUNNING_SLOTS.all(session, rows, {"given_workspace_id": workspace_id}):
        running[found.job_type].append(found.slot)
    return {name: free_numbers(limit, running[name]) for name, limit in limited.items()}


_RUNNING_SLOTS = ForEach(
    {"name": jobs.c.job_type.type, "max_running": Integer()},
    lambda type_: (
        select(jobs.c.job_type, jobs.c.slot)
        .where(jobs.c.workspace_id == WORKSPACE, RUNNING, jobs.c.job_type == type_.name)
        # Only the index by job type has this order. Claims switch sorting off, so Postgres uses
        # that index, and does not read running jobs of other types.
        .order_by(jobs.c.priority, jobs.c.created_at, jobs.c.id)
        .limit(type_.max_running)
    ),
)


class Locked(NamedTuple):
    """What a transaction has locked: slots by type, and keys."""

    slots: dict[str, list[int]]
    keys: list[KeyOf]


def lock(
    session: Executor,
    workspace_id: int,
    slots: Mapping[str, Sequence[int]],
    keys: Sequence[KeyOf],
    limit: int,
) -> tuple[Locked, bool]:
    """Lock up to ``limit`` slots of each type, and ``limit`` keys of each type.

    The locks are advisory, and last until the transaction ends. Also returns whether others held
    some of them. On SQLite nothing needs to be locked.
    """
    if dialect_name(session) == "sqlite":
        return Locked({name: list(numbers) for name, numbers in slots.items()}, [*keys]), False
    locked = Locked({name: [] for name in slots}, [])
    rows: list[dict[str, Any]] = [
        {"name": name, "space": _number("slot", workspace_id, name), "numbers": numbers}
        for name, numbers in slots.items()
    ]
    spaces: dict[str, dict[int, KeyOf]] = {}
    for job_type, key in keys:
        # Keys with the same hash share a lock. At worst, one of them waits for the next claim.
        number = _number("key", workspace_id, job_type, key)
        spaces.setdefault(f"key {job_type}", {})[number] = job_type, key
    rows += [
        {"name": name, "space": _number(name, workspace_id), "numbers": list(numbers)}
        for name, numbers in spaces.items()
    ]
    if not rows:
        return locked, False
    given = {"limit": limit, **records(session, rows)}
    taken: defaultdict[str, list[int]] = defaultdict(list)
    for got in _LOCKING.all(session, given):
        taken[got.name].append(got.number)
    missed = False
    for row in rows:
        name, numbers = row["name"], taken[row["name"]]
        missed = missed or len(numbers) < min(limit, len(row["numbers"]))
        if name in spaces:
            locked.keys.extend(spaces[name][number] for number in numbers)
        else:
            locked.slots[name] = numbers
    return locked, missed


def _number(*names: Any) -> int:
    """A hash of names as the 32-bit number of an advisory lock of Postgres."""
    digest = hashlib.blake2b("\0".join(map(str, names)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big", signed=True)


# The function locks each row that it is called for. LIMIT stops at the number that is wanted.
_LOCKING = Statement[AnyRow](
    text(
        """
        SELECT of.name, locked.number
        FROM json_to_recordset(CAST(:records AS json)) AS of
            (name text, space integer, numbers integer[]),
          LATERAL (
            SELECT number FROM unnest(of.numbers) AS number
            WHERE pg_try_advisory_xact_lock(of.space, number) LIMIT :limit
          ) AS locked
        """
    )
    .bindparams(bindparam("limit", type_=BigInteger))
    .columns(column("name"), column("number")),
    prepare=True,
)


def free_key_slots(
    session: Executor, flow: Flow, workspace_id: int, keys: Sequence[KeyOf]
) -> dict[KeyOf, list[int]]:
    """The free slots of keys that have a limit. The caller has locked the keys."""
    if not keys:
        return {}
    rows = [{"job_type": job_type, "key": key} for job_type, key in keys]
    given = {"given_workspace_id": workspace_id, **records(session, rows)}
    running: dict[KeyOf, list[int | None]] = {key: [] for key in keys}
    for row in _running_of_keys(dialect_name(session)).all(session, given):
        running[row.job_type, row.concurrency_key].append(row.key_slot)
    return {
        (job_type, key): free_numbers(flow.of(job_type).max_running_per_key or 0, numbers)
        for (job_type, key), numbers in running.items()
    }


@cache
def _running_of_keys(dialect: str) -> Statement[AnyRow]:
    of = record_source(dialect, {"job_type": String(), "key": String()}).c
    c = jobs.c
    return Statement(
        select(c.job_type, c.concurrency_key, c.key_slot).where(
            c.workspace_id == WORKSPACE,
            RUNNING,
            c.job_type == of.job_type,
            c.concurrency_key == of.key,
        ),
        keep=True,
    )
