"""The fast path for reports of success: one statement, in which Postgres applies the rules.

All other reports take the general path: ``rules.leases.report`` and ``rules.lifecycle.end`` decide,
and ``settling.Settling`` writes. Both paths must leave the same rows and give the same answers;
``tests/services/test_success.py`` runs one table of cases through both.

It exists for speed. Most reports say that a job succeeded, and nothing else. The rules have to
read and lock the jobs, decide on them in Python and send every column back. Here one UPDATE does
the same: a call with 100 reports takes about half the time, a call with one about two thirds.

Its limits: Postgres only (SQLite has no round trip to save); reports that ``plain`` accepts; jobs
that meet the conditions of the statement. The rules decide on everything else, so all refusals come
from them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypedDict

from sqlalchemy import BigInteger, bindparam, case, cast, extract, func, or_, true, update

from ..rules.causes import error_columns
from ..rules.documents import Document, merge_patch, wrong_document
from ..rules.jobs import JobStatus, Report
from ..rules.lifecycle import NO_LEASE, TRANSITIONS
from ..store.columns import OneOf, Texts
from ..store.connections import AnyRow, Executor
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import jobs

LEASE_TOKEN = re.compile(r"[0-9a-f]{32}")
"""The form of a lease token. Other texts are not sent to the database, which may reject them."""


class PlainSuccess(TypedDict):
    """A report that only says that a job succeeded, as a parameter of the statement."""

    job_id: str
    lease_token: str
    result: Document | None
    """Without the nulls that a merge would remove. None: the job's result stays as it is."""


class Succeeded(NamedTuple):
    """A job that a report of plain success has ended."""

    ran: timedelta
    """How long its attempt had run."""
    frees_slot: bool
    """Whether it held a slot, so that another job may start."""


_PLAIN = {"job_id", "lease_token", "status", "result", "begun"}


def plain(reports: Sequence[Report]) -> dict[str, PlainSuccess]:
    """The reports of plain success, by ``job_id``, for ``settle``.

    A report whose ``result`` is None is not plain: it removes the job's result, which only the
    rules can do. Nor are several reports of one job, which must apply in their order.
    """
    times = Counter(each["job_id"] for each in reports)
    found: dict[str, PlainSuccess] = {}
    for each in reports:
        job_id, result = each["job_id"], each.get("result")
        if (
            each.get("status") is not JobStatus.SUCCESS
            or not each.keys() <= _PLAIN
            or times[job_id] > 1
            or not LEASE_TOKEN.fullmatch(each["lease_token"])
        ):
            continue
        if "result" in each:
            result = merge_patch(None, result)
            if result is None or wrong_document(result):
                continue
        found[job_id] = {"job_id": job_id, "lease_token": each["lease_token"], "result": result}
    return found


def settle(
    session: Executor,
    workspace_id: int,
    plain: Mapping[str, PlainSuccess],
    *,
    only_job_types: Sequence[str] | None,
    actor: str | None,
) -> dict[str, Succeeded]:
    """End the jobs of plain reports with success; returns these jobs, by ``job_id``.

    A job that is missing from the result was left unchanged, and needs the general path.
    """
    # In the order in which every transaction that changes several jobs locks them.
    rows = [{"workspace_id": workspace_id, **plain[job_id]} for job_id in sorted(plain)]
    settled = _success(only_job_types is not None).all(
        session,
        {
            "actor": actor,
            **records(session, rows),
            **({} if only_job_types is None else {"job_types": only_job_types}),
        },
    )
    return {row.job_id: Succeeded(row.ran, row.frees_slot) for row in settled}


@cache
def _success(typed: bool) -> Statement[AnyRow]:
    sent = ("workspace_id", "job_id", "lease_token", "result")
    report = record_source("postgresql", {name: jobs.c[name].type for name in sent})
    now: Any = func.statement_timestamp(type_=jobs.c.updated_at.type)
    since_due = cast(func.floor(extract("epoch", now - jobs.c.due_at)), BigInteger)
    success = (
        update(jobs)
        .where(
            # A column of each report, not a constant: see ``is_picked``.
            jobs.c.workspace_id == report.c.workspace_id,
            jobs.c.job_id == report.c.job_id,
            # ``+ 0`` keeps the planner from using an index on the status. Statistics from a moment
            # at which no job ran would make it look cheap.
            jobs.c.status + 0 == JobStatus.RUNNING,
            jobs.c.lease_token == report.c.lease_token,
            # If both have a result, it has to be merged, which only the rules can do.
            or_(jobs.c.result.is_(None), report.c.result.is_(None)),
            OneOf(jobs.c.job_type, bindparam("job_types", type_=Texts)) if typed else true(),
        )
        .values(
            status=TRANSITIONS["succeed"].target,
            version=jobs.c.version + 1,
            last_event=TRANSITIONS["succeed"].event,
            last_edited=None,
            last_event_version=jobs.c.version + 1,
            result=func.coalesce(report.c.result, jobs.c.result),
            updated_at=now,
            started_at=case((jobs.c.prefetched, now), else_=jobs.c.started_at),
            completed_at=now,
            actual_duration=case((jobs.c.due_at <= now, since_due)),
            succeeded_by=jobs.c.lease_token,
            changed_by=bindparam("actor", type_=jobs.c.changed_by.type),
            **{**NO_LEASE, **error_columns(None)},
        )
        .returning(
            jobs.c.job_id,
            (now - jobs.c.started_at).label("ran"),
            func.coalesce(jobs.c.slot, jobs.c.key_slot).is_not(None).label("frees_slot"),
        )
    )
    return Statement[AnyRow](success, keep=True)
