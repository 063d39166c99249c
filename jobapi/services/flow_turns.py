"""The turns of the keys of job types, and the tokens of types with a rate limit.

A job with a key is *ripe* once a claim, or the create or edit that made it so, saw that it is due.
Only ripe jobs are in the index that finds the next key, so a key whose jobs are all scheduled for
later costs claims nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import bindparam, column, exists, func, not_, select, text, true, update

from ..rules.flow import NO_KEY, Bucket, Flow, KeyOf, Lane, Start, turns_after
from ..rules.jobs import Priority
from ..store.columns import OneOf, Texts, is_picked
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import job_types, jobs
from .flow_slots import PENDING, WORKSPACE

RIPENED_AT_ONCE = 500
"""How many jobs with a key that have become due one claim marks as ripe."""

SPARE_KEYS = 4
"""How many more keys than it needs a claim looks for: other claims may have locked some."""

NOW: Any = bindparam("now", type_=jobs.c.due_at.type)


class Standing(NamedTuple):
    """The turns and tokens of types that have keys or a rate limit."""

    rows: Mapping[str, AnyRow]
    """Their rows in the table of job types."""
    buckets: Mapping[str, Bucket]
    """The token buckets, locked. Buckets that other claims have locked are missing."""


def stand(
    session: Executor, workspace_id: int, keyed: list[str], rated: list[str], now: datetime
) -> Standing:
    """Read the turns of ``keyed`` types, and lock the buckets of ``rated`` ones that are free."""
    given = {"given_workspace_id": workspace_id, "now": now}
    dialect = dialect_name(session)
    rows: list[AnyRow] = []
    if rated:
        rows += _standing(dialect, locked=True).all(session, {**given, "names": rated})
    # A limit may have been removed since the settings were read. It waits for the next try.
    buckets = {row.job_type: bucket_of(row) for row in rows if row.rate_starts is not None}
    if others := sorted({*keyed} - buckets.keys()):
        rows += _standing(dialect, locked=False).all(session, {**given, "names": others})
    return Standing({row.job_type: row for row in rows}, buckets)


def bucket_of(row: AnyRow) -> Bucket:
    """The token bucket in a row of the table of job types that has a rate limit."""
    return Bucket(row.rate_starts, row.rate_seconds, row.tokens, row.tokens_at)


@cache
def _standing(dialect: str, *, locked: bool) -> Statement[AnyRow]:
    c = job_types.c
    unripe = exists().where(
        jobs.c.workspace_id == c.workspace_id,
        jobs.c.job_type == c.job_type,
        PENDING,
        jobs.c.concurrency_key.is_not(None),
        not_(jobs.c.ripe),
        jobs.c.due_at <= NOW,
    )
    query = select(
        *(c.job_type, c.turns, c.rate_starts, c.rate_seconds, c.tokens, c.tokens_at),
        unripe.label("has_unripe"),
    ).where(c.workspace_id == WORKSPACE, OneOf(c.job_type, bindparam("names", type_=Texts)))
    if locked:
        query = query.order_by(c.job_type).with_for_update(of=job_types, skip_locked=True)
    return Statement(query, keep=True)


def ripen(session: Executor, workspace_id: int, names: list[str], now: datetime) -> None:
    """Let jobs with a key that have become due take part in turns."""
    given = {"given_workspace_id": workspace_id, "now": now, "names": names}
    _ripening(dialect_name(session)).all(session, given)


@cache
def _ripening(dialect: str) -> Statement[AnyRow]:
    due = (
        select(jobs.c.id)
        .where(
            jobs.c.workspace_id == WORKSPACE,
            OneOf(jobs.c.job_type, bindparam("names", type_=Texts)),
            PENDING,
            jobs.c.concurrency_key.is_not(None),
            not_(jobs.c.ripe),
            jobs.c.due_at <= NOW,
        )
        .order_by(jobs.c.due_at)
        .limit(RIPENED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    picked = is_picked(dialect, jobs, due, workspace_id=WORKSPACE)
    return Statement(update(jobs).where(picked).values(ripe=True), keep=True)


def first_keys(flow: Flow, lanes: Mapping[Lane, Sequence[str]], limit: int) -> list[KeyOf]:
    """The first keys with a limit in the order of priorities and turns, a few more than wanted."""
    places = [
        (-priority, place, job_type, key)
        for (job_type, priority), keys in lanes.items()
        for place, key in enumerate(keys)
        if key != NO_KEY and flow.of(job_type).max_running_per_key is not None
    ]
    first = dict.fromkeys((job_type, key) for _, _, job_type, key in sorted(places))
    return list(first)[: limit + SPARE_KEYS]


_WALK = """
WITH RECURSIVE walk AS (
  SELECT job_type, priority, turn, most_running, most,
    turn AS key, 0 AS step, false AS wrapped, 0 AS found
  FROM ({lanes}) AS lanes
 UNION ALL
  SELECT w.job_type, w.priority, w.turn, w.most_running, w.most,
    CAST(coalesce(
      (SELECT j.concurrency_key FROM jobapi_jobs j
        WHERE j.workspace_id = :given_workspace_id AND j.status = 0 AND j.ripe
          AND j.job_type = w.job_type AND j.priority = w.priority AND j.concurrency_key > w.key
        ORDER BY j.concurrency_key LIMIT 1),
      CASE WHEN NOT (w.wrapped OR (w.step > 0 AND w.key = '')) THEN '' END
    ) AS text),
    w.step + 1,
    w.wrapped OR (w.step > 0 AND w.key = ''),
    w.found + CASE
      WHEN w.step = 0 THEN 0
      WHEN w.key = '' THEN CASE WHEN EXISTS (
        SELECT 1 FROM jobapi_jobs j
        WHERE j.workspace_id = :given_workspace_id AND j.status = 0 AND j.concurrency_key IS NULL
          AND j.job_type = w.job_type AND j.priority = w.priority AND j.due_at <= :now
          AND (j.expires_at IS NULL OR j.expires_at > :now OR j.has_begun)
        LIMIT 1 OFFSET 0
      ) THEN 1 ELSE 0 END
      WHEN EXISTS (
        SELECT 1 FROM jobapi_jobs j
        WHERE j.workspace_id = :given_workspace_id AND j.status = 0 AND j.ripe
          AND j.job_type = w.job_type AND j.priority = w.priority AND j.concurrency_key = w.key
          AND j.due_at <= :now AND (j.expires_at IS NULL OR j.expires_at > :now OR j.has_begun)
        LIMIT 1 OFFSET 0
      ) AND (w.most_running IS NULL OR w.most_running > (
        SELECT count(*) FROM jobapi_jobs j
        WHERE j.workspace_id = :given_workspace_id AND j.status = 1
          AND j.job_type = w.job_type AND j.concurrency_key = w.key
      )) THEN 1
      ELSE 0
    END
  FROM walk w
  WHERE w.key IS NOT NULL AND w.found < w.most AND NOT (w.wrapped AND w.key > w.turn)
)
SELECT job_type, priority, key, step FROM (
  SELECT job_type, priority, key, step,
    lead(found) OVER (PARTITION BY job_type, priority ORDER BY step) - found AS may_start
  FROM walk
) AS seen
WHERE may_start = 1 ORDER BY step
"""
"""Visit keys in turn, one step each, until enough are found that may start a job.

It begins after the key that was served last (``turn``). After the last key come the jobs without
a key (the key ''), then the first key, and so on up to ``turn``. ``found`` counts the keys before
a row's own that may start a job, so whether a key may start one shows in the next row. All other
keys that are visited have only expired jobs, or are at their limit: there are no more of these than
running jobs. OFFSET keeps Postgres from making joins of the subqueries, which would read all due
jobs of the workspace first.
"""

_LANES = {
    "postgresql": """
      SELECT job_type, priority, turn COLLATE "C" AS turn, most_running, most
      FROM json_to_recordset(CAST(:records AS json)) AS lane
        (job_type text, priority integer, turn text, most_running integer, most integer)""",
    "sqlite": """
      SELECT value ->> 'job_type' AS job_type, value ->> 'priority' AS priority,
        value ->> 'turn' AS turn, value ->> 'most_running' AS most_running, value ->> 'most' AS most
      FROM json_each(:records)""",
}


@cache
def _walking(dialect: str) -> Statement[AnyRow]:
    walk = text(_WALK.format(lanes=_LANES[dialect])).bindparams(WORKSPACE, NOW)
    names = ("job_type", "priority", "key", "step")
    return Statement(walk.columns(*(column(name) for name in names)), keep=True)


def walk(
    session: Executor,
    flow: Flow,
    workspace_id: int,
    standing: Mapping[str, AnyRow],
    names: Sequence[str],
    *,
    limit: int,
    now: datetime,
) -> dict[Lane, list[str]]:
    """The keys that may start jobs, in the order of their turns, for each type and priority."""
    rows = [
        {
            "job_type": name,
            "priority": priority,
            "turn": (standing[name].turns or {}).get(str(int(priority)), NO_KEY),
            "most_running": flow.of(name).max_running_per_key,
            "most": limit + SPARE_KEYS,
        }
        for name in names
        for priority in Priority
    ]
    given = {"given_workspace_id": workspace_id, "now": now}
    lanes: defaultdict[Lane, list[str]] = defaultdict(list)
    walked = _walking(dialect_name(session)).all(session, {**given, **records(session, rows)})
    for row in walked:
        lanes[row.job_type, row.priority].append(row.key)
    return lanes


def note(
    session: Executor, workspace_id: int, standing: Standing, starts: Sequence[Start], now: datetime
) -> None:
    """Record the keys that were served last, and take the tokens of the starts."""
    served: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for (job_type, priority), key in turns_after(starts).items():
        served[job_type][str(int(priority))] = key
    number = Counter(each.job.job_type for each in starts)
    rows = []
    for name, row in standing.rows.items():
        if not number[name]:
            continue
        bucket = standing.buckets.get(name)
        if bucket is not None:
            bucket = bucket.take(number[name], now)
        rows.append(
            {
                "job_type": name,
                "turns": {**(row.turns or {}), **served[name]},
                "tokens": None if bucket is None else bucket.tokens,
                "tokens_at": None if bucket is None else bucket.at,
            }
        )
    if rows:
        given = {"given_workspace_id": workspace_id, **records(session, rows)}
        _noting(dialect_name(session)).all(session, given)


@cache
def _noting(dialect: str) -> Statement[AnyRow]:
    c = job_types.c
    names = ("job_type", "turns", "tokens", "tokens_at")
    source = record_source(dialect, {name: c[name].type for name in names})
    noted: Any = source
    if dialect == "postgresql":
        at = job_types.alias("at")
        # If another claim is recording its own turns at this moment, those do as well.
        lockable = (
            select(at.c.job_type)
            .where(at.c.workspace_id == WORKSPACE, at.c.job_type == source.c.job_type)
            .with_for_update(of=at, skip_locked=True)
            .lateral("lockable")
        )
        noted = (
            select(*source.c).select_from(source.join(lockable, true())).offset(0).subquery("noted")
        )
    of = noted.c
    return Statement(
        update(job_types)
        .where(c.workspace_id == WORKSPACE, c.job_type == of.job_type)
        .values(
            turns=of.turns,
            tokens=func.coalesce(of.tokens, c.tokens),
            tokens_at=func.coalesce(of.tokens_at, c.tokens_at),
        ),
        keep=True,
    )
