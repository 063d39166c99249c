"""The verbs of workers: claim, report and release jobs; and what the maintenance does to leases.

Each function takes a session and never commits it. On a connection in autocommit mode it runs in a
transaction of its own, because the end of an attempt is written together with its job. It sets the
planner settings of Postgres that its statements need. The number of statements does not depend on
the number of jobs.
"""

from __future__ import annotations

import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    SmallInteger,
    bindparam,
    desc,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import array

from ..errors import JobApiError, ValidationFailed
from ..rules import leases, lifecycle
from ..rules.documents import limit_documents
from ..rules.flow import UNGOVERNED, urgency
from ..rules.job_logs import LogEntry
from ..rules.jobs import Attempt, CurrentJob, Job, JobStatus, Outcome, Priority, Report
from ..rules.leases import Backoff
from ..rules.lifecycle import TRANSITIONS, Change
from ..store.columns import DbNow, OneOf, SecondsAfter, Texts, is_picked
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.moving import not_moving
from ..store.paging import MAX_BYTES
from ..store.records import record_source, records
from ..store.statement import Statement
from ..store.tables import SLOTS, attempts, jobs
from ..store.transactions import BY_KEY, IN_ORDER, transactional
from . import flow, flow_claims, job_logs, success
from .changing import get as get_job
from .flow_slots import PENDING
from .job_logs import Addition, Appended
from .job_rows import COLUMNS, answer_bytes, fitting, not_found
from .leasing import leased_columns
from .settling import DECIDING, EndedAttempt, Settling, lock
from .success import LEASE_TOKEN

MAX_CLAIMED = 100
"""The most jobs that one claim leases."""

REAP_AT_ONCE = 500
"""How many jobs one round of reaping takes at most."""

Topic = tuple[int, tuple[str, ...] | None]
"""What a claim waits for: jobs of a workspace, of some types or (None) of all."""

_ENDED_BY = {JobStatus.FAILED: (Outcome.FAILED,), JobStatus.PENDING: (Outcome.RELEASED,)}


class Answer(NamedTuple):
    """What became of one report."""

    job: CurrentJob | None = None
    """The job as it is now; None if it is unknown. After the fast path (``success``) it has only
    ``status`` and ``lease_expires_at``."""
    problem: JobApiError | None = None
    """Why the report was refused."""
    ran: timedelta | None = None
    """How long the attempt had run, if the report ended it."""
    renewed: bool = False
    """Whether the report was refused but renewed the lease."""
    frees_slot: bool = False
    """Whether the report ended an attempt that held a slot, so that another job may start."""
    logged: Appended | None = None
    """What became of the report's log entries."""


class Reaped(NamedTuple):
    """What a round of the reaper did."""

    ended: Sequence[EndedAttempt]
    more: bool
    """Whether there may be more to do."""


def new_lease_token() -> str:
    """A token that no other lease has or will have."""
    return secrets.token_hex(16)


@transactional(planner=IN_ORDER, keep_plans=True, repeat_after=SLOTS)
def claim(
    session: Executor,
    workspace_id: int,
    *,
    lease_token: str,
    limit: int = 1,
    lease_seconds: int = 60,
    worker: str | None = None,
    job_types: Sequence[str] | None = None,
    begin: bool = True,
    prefetch: int = 0,
    now: datetime | None = None,
    actor: str | None = None,
    flow_version: int | None = None,
) -> list[Job]:
    """Lease up to ``limit`` due jobs, the most urgent first.

    The jobs become ``running``, and no other worker can claim them until ``lease_seconds`` after
    ``now``, the database's time. One statement finds and leases them; it skips rows that other
    claims have locked. Types with limits or keys are claimed in several steps (``flow_claims``).

    ``job_types`` of None means all types. Attempts begin at once, or with ``begin=False`` when a
    report says so. A suspect job is leased alone, and its attempt always begins at once. The jobs
    of one claim take at most ``MAX_BYTES`` together, unless the first one alone is larger.
    ``prefetch`` is how many of ``limit`` the worker cannot begin yet: none of these is of a type
    with a limit. ``actor`` is who claims: ``user:1``, ``key:1``. ``flow_version`` is that of the
    workspace, if the caller has just read it.
    """
    if now is None or flow_version is None:
        now, flow_version = flow.now_in(session, workspace_id)
    settings = flow.load(session, workspace_id, flow_version)
    if settings.paused:
        return []
    ageing = settings.ageing_seconds
    given = {
        "given_workspace_id": workspace_id,
        "now": now,
        "given_lease_token": lease_token,
        "given_lease_seconds": lease_seconds,
        "given_lease_expires_at": now + timedelta(seconds=lease_seconds),
        "given_worker": worker,
        "actor": actor,
    }
    if settings.governs(job_types):
        wanted = flow_claims.Wanted(workspace_id, job_types, limit, now, prefetch)
        claimed = flow_claims.claim(session, settings, wanted, begin=begin, given=given)
    else:
        statement = _claim(
            dialect_name(session),
            typed=job_types is not None,
            several=limit > 1,
            begin=begin,
            ageing=ageing is not None,
        )
        given["limit"] = limit
        if job_types is not None:
            given["job_types"] = sorted(set(job_types))
        if ageing is not None:
            given["ageing"] = ageing
        claimed = statement.all(session, given)
    return sorted(claimed, key=lambda job: (urgency(job.priority, job.due_at, ageing), job.id))


_HIGHEST_FIRST = sorted(Priority, reverse=True)


@cache
def _claim(
    dialect: str, *, typed: bool, several: bool, begin: bool, ageing: bool
) -> Statement[Job]:
    (status,) = TRANSITIONS["claim"].allowed
    moment: Any = bindparam("now", type_=jobs.c.due_at.type)
    looked_at = [jobs.c.suspect, answer_bytes().label("bytes")] if several else []
    if ageing:
        # ``ageing`` seconds of waiting make up for one level of priority.
        worth = jobs.c.priority * bindparam("ageing", type_=Integer)
        looked_at += [SecondsAfter(jobs.c.due_at, -worth).label("aged"), jobs.c.priority]
    wanted = select(func.unnest(bindparam("job_types", type_=Texts)).label("job_type")).subquery()

    def first_of(priority: Any) -> Select[Any]:
        """The first due jobs with a priority, which is the beginning of a range of an index."""
        return (
            select(jobs.c.id, jobs.c.due_at, *looked_at)
            .where(
                jobs.c.workspace_id == bindparam("given_workspace_id"),
                PENDING,
                jobs.c.priority == priority,
                jobs.c.due_at <= bindparam("now"),
                jobs.c.concurrency_key.is_(None),
                flow_claims.is_alive(moment),
                _has_wanted_type(wanted, dialect) if typed else true(),
            )
            .order_by(jobs.c.due_at, jobs.c.id)
            .limit(bindparam("limit"))
            .with_for_update(skip_locked=True, of=jobs)
        )

    # Priority by priority, so that a claim does not read past jobs that are scheduled for later.
    # Lower priorities are read only as long as the higher ones have too few jobs.
    found: Any
    if dialect == "sqlite":
        heads = [first_of(priority).subquery() for priority in _HIGHEST_FIRST]
        found = union_all(
            *(select(h.c.id, *(h.c[column.name] for column in looked_at)) for h in heads)
        )
    else:
        # A lateral join instead of a union: planning takes longer than the claim itself, and it
        # takes as long as there are subqueries of the table.
        levels = func.unnest(array(_HIGHEST_FIRST, type_=SmallInteger))
        ranked = select(levels.label("priority")).subquery()
        head = first_of(ranked.c.priority).correlate(ranked, wanted).lateral()
        if typed:
            # And type by type, so that a claim does not read past jobs of other types.
            of_types = select(*head.c).select_from(wanted.join(head, true()))
            ordered = of_types.order_by(head.c.due_at, head.c.id).limit(bindparam("limit"))
            head = ordered.correlate(ranked).lateral()
        found = select(head.c.id, *(head.c[column.name] for column in looked_at))
        found = found.select_from(ranked.join(head, true()))
    if ageing:
        # The first in the order of all priorities.
        found = found.order_by("aged", desc("priority"), "id")
    queue = found.limit(bindparam("limit")).subquery()
    picked = select(queue.c.id)
    if several:
        # A suspect job is leased alone: if it comes first, no other job is leased; otherwise it
        # waits for a later claim. So do jobs that would make the response too large.
        place = select(
            queue.c.id,
            queue.c.suspect,
            # All three have the same frame, so that Postgres makes one pass.
            func.row_number().over(rows=(None, 0)).label("number"),
            func.first_value(queue.c.suspect).over(rows=(None, 0)).label("alone"),
            func.sum(queue.c.bytes).over(rows=(None, 0)).label("so_far"),
        ).subquery()
        together = not_(or_(place.c.suspect, place.c.alone)) & (place.c.so_far <= MAX_BYTES)
        picked = select(place.c.id).where(or_(place.c.number == 1, together))
    workspace: Any = bindparam("given_workspace_id", type_=jobs.c.workspace_id.type)
    claim = (
        update(jobs)
        .where(
            is_picked(dialect, jobs, picked, workspace_id=workspace, status=status),
            # Not on Postgres, where the planner would then use the index of pending jobs.
            jobs.c.status == status if dialect == "sqlite" else true(),
        )
        .values(**leased_columns(begin=begin), slot=None, key_slot=None)
        .returning(*COLUMNS)
    )
    return Statement[Job](claim, keep=True)


def _has_wanted_type(wanted: Any, dialect: str) -> ColumnElement[bool]:
    if dialect == "postgresql":
        same: ColumnElement[bool] = jobs.c.job_type == wanted.c.job_type
        return same
    return OneOf(jobs.c.job_type, bindparam("job_types", type_=Texts))


def claimable(session: Executor, topics: Collection[Topic]) -> set[Topic]:
    """The topics for which a claim would find a job now. One statement.

    It reads one index entry for each workspace and job type among them, however
    many callers wait for the same topic.
    """
    parts = {each: [(each[0], name) for name in _names(each[1])] for each in topics}
    wanted = set(chain.from_iterable(parts.values()))
    if not wanted:
        return set()
    rows = [{"workspace_id": w, "job_type": job_type} for w, job_type in wanted]
    found = _claimable(dialect_name(session)).all(session, records(session, rows))
    there = {(row.workspace_id, row.job_type) for row in found}
    return {each for each, of_it in parts.items() if not there.isdisjoint(of_it)}


def _names(job_types: tuple[str, ...] | None) -> tuple[str | None, ...]:
    return (None,) if job_types is None else job_types


@cache
def _claimable(dialect: str) -> Statement[AnyRow]:
    (status,) = TRANSITIONS["claim"].allowed
    wanted = record_source(
        dialect, {"workspace_id": jobs.c.workspace_id.type, "job_type": jobs.c.job_type.type}
    )
    if dialect == "sqlite":
        now: Any = DbNow()
    else:
        # Postgres does not use clock_timestamp() as the bound of an index scan.
        now = func.statement_timestamp(type_=jobs.c.due_at.type)
    key = jobs.c.concurrency_key
    parts = []
    # For one type, jobs with a key and without one are in two indexes.
    for typed, which in ((False, true()), (True, key.is_(None)), (True, key.is_not(None))):
        due = select(literal(1).label("one")).where(
            jobs.c.workspace_id == wanted.c.workspace_id,
            jobs.c.status == status,
            # A list of values, so that each is one lookup in the index.
            jobs.c.priority.in_([literal(each, jobs.c.priority.type) for each in Priority]),
            jobs.c.due_at <= now,
            jobs.c.job_type == wanted.c.job_type if typed else true(),
            which,
        )
        columns = select(wanted.c.workspace_id, wanted.c.job_type)
        of_kind = wanted.c.job_type.is_not(None) if typed else wanted.c.job_type.is_(None)
        if dialect == "sqlite":
            parts.append(columns.where(of_kind, due.correlate(wanted).exists()))
        else:
            # Lateral, so that the planner never joins all due jobs, whatever the statistics say.
            first = due.limit(1).lateral()
            parts.append(columns.select_from(wanted.join(first, true())).where(of_kind))
    return Statement[AnyRow](union_all(*parts))


def is_due(job: CurrentJob) -> bool:
    """Whether a job that was just changed can be claimed; ``job`` is as in ``Settling.jobs``."""
    return bool(job.status == JobStatus.PENDING and job.due_at <= job.now)


def holds_slot(job: Job) -> bool:
    """Whether a job that runs, or has just ended, has a slot that another job may wait for."""
    return job.slot is not None or job.key_slot is not None


def leased(session: Executor, workspace_id: int, lease_token: str) -> list[Job]:
    """The jobs that a claim leased and that still have that lease, up to ``MAX_BYTES``.

    The holder may have reported large results in the meantime.
    """
    mine = select(*COLUMNS).where(
        jobs.c.workspace_id == workspace_id,
        jobs.c.lease_token == lease_token,
        # So that an index of the workspace is used, not the reaper's, which has all workspaces.
        jobs.c.status == JobStatus.RUNNING,
    )
    order = (jobs.c.priority.desc(), jobs.c.due_at, jobs.c.id)
    rows = session.execute(fitting(mine, order, MAX_CLAIMED)).all()
    return sorted(cast(Sequence[Job], rows), key=lambda job: (-job.priority, job.due_at, job.id))


@transactional(planner=BY_KEY, keep_plans=True)
def report(
    session: Executor,
    workspace_id: int,
    reports: Sequence[Report],
    *,
    backoff: Backoff,
    only_job_types: Sequence[str] | None = None,
    actor: str | None = None,
    flow_version: int | None = None,
    chance: Callable[[], float] = random.random,
) -> list[Answer]:
    """Apply the reports of lease holders, independently of each other; answers in the same order.

    A report has ``job_id``, ``lease_token`` and what ``leases.report`` takes, or, if it could not
    be read, the error as ``refused``. A report that is refused for its content still renews the
    lease. The log entries of accepted reports are stored. Several reports on one job apply in their
    order. A final report that is repeated with the token of the lease that it ended is accepted and
    changes nothing. ``backoff`` is for types that have none of their own. ``actor`` is who reports.
    """
    answers: dict[int, Answer] = {}

    def by_rules(numbers: Sequence[int], also: Collection[str] = ()) -> None:
        judged = judge(
            session,
            workspace_id,
            [reports[number] for number in numbers],
            also=also,
            backoff=backoff,
            only_job_types=only_job_types,
            actor=actor,
            flow_version=flow_version,
            chance=chance,
        )
        answers.update(zip(numbers, judged, strict=True))

    plain = success.plain(reports) if dialect_name(session) == "postgresql" else {}
    others = [n for n, each in enumerate(reports) if each["job_id"] not in plain]
    if others:
        # These come first, because this locks the jobs of all reports, in the order of their ids.
        by_rules(others, also=plain.keys())
    if plain:
        ran = success.settle(
            session, workspace_id, plain, only_job_types=only_job_types, actor=actor
        )
        for number, each in enumerate(reports):
            if each["job_id"] in ran:
                ended = ran[each["job_id"]]
                answers[number] = Answer(_SUCCEEDED, ran=ended.ran, frees_slot=ended.frees_slot)
        left = [number for number in range(len(reports)) if number not in answers]
        if left:
            by_rules(left)
    return [answers[number] for number in range(len(reports))]


@transactional(planner=BY_KEY, keep_plans=True)
def report_one(
    session: Executor,
    workspace_id: int,
    given: Report,
    *,
    backoff: Backoff,
    actor: str | None = None,
    flow_version: int | None = None,
) -> tuple[Answer, CurrentJob]:
    """Apply one report as ``report`` does; also returns the job's row. Raises ``JobNotFound``."""
    (answer,) = report(
        session, workspace_id, [given], backoff=backoff, actor=actor, flow_version=flow_version
    )
    return answer, get_job(session, workspace_id, given["job_id"])


@transactional(planner=BY_KEY, keep_plans=True)
def append_logs(
    session: Executor,
    workspace_id: int,
    job_id: str,
    entries: Sequence[LogEntry],
    *,
    lease_token: str | None,
    backoff: Backoff,
    actor: str | None = None,
) -> Appended:
    """Append to the log of a running job.

    With the token of its lease this is a report: it also renews the lease. Raises ``JobNotFound``,
    ``JobNotRunning``, ``LeaseRequired``, ``LeaseLost``.
    """
    if lease_token is not None:
        given: Report = {"job_id": job_id, "lease_token": lease_token, "logs": entries}
        (answer,) = report(session, workspace_id, [given], backoff=backoff, actor=actor)
        if answer.problem is not None:
            if answer.job is not None:
                leases.check_log(answer.job, lease_token)
            raise answer.problem
        return answer.logged or Appended()
    found = lock(session, workspace_id, [job_id])
    if not found:
        raise not_found()
    (job,) = found
    leases.check_log(job, None)
    addition = Addition(job.id, job.attempt, entries, job.now)
    return job_logs.append(session, workspace_id, [addition])[0]


_SUCCEEDED = cast(CurrentJob, SimpleNamespace(status=JobStatus.SUCCESS, lease_expires_at=None))


def judge(
    session: Executor,
    workspace_id: int,
    reports: Sequence[Report],
    *,
    also: Collection[str] = (),
    backoff: Backoff,
    only_job_types: Sequence[str] | None,
    actor: str | None,
    chance: Callable[[], float],
    flow_version: int | None = None,
) -> list[Answer]:
    """Apply reports as ``report`` does, but without the fast path of ``success``.

    The jobs of ``also`` are locked together with those of the reports, because the caller changes
    them later in the transaction, and all locks must be taken in one order.
    """
    found = lock(session, workspace_id, {*also, *(each["job_id"] for each in reports)})
    settling = Settling(found, actor=actor)
    after = settling.jobs
    settings = UNGOVERNED
    if any(each.get("status") is JobStatus.FAILED for each in reports):
        settings = flow.load(session, workspace_id, flow_version)
    answers: list[Answer] = []
    additions: dict[int, Addition] = {}
    for each in reports:
        job = after.get(each["job_id"])
        if job is None or (only_job_types is not None and job.job_type not in only_job_types):
            answers.append(Answer(problem=each.get("refused") or not_found()))
            continue
        began_at = (None if job.prefetched else job.started_at) or job.now
        rule = partial(
            leases.report,
            job,
            each["lease_token"],
            backoff=settings.of(job.job_type).backoff(backoff),
            chance=chance(),
            now=job.now,
        )
        refused = each.get("refused")
        try:
            if refused is None:
                change = rule(each)
                refused = _wrong_documents(change)
            if refused is not None:
                change = rule({"run_id": each.get("run_id")})
        except JobApiError as problem:
            answers.append(Answer(job, refused or problem))
            continue
        settling.apply(job, change)
        if refused is None and each.get("logs"):
            additions[len(answers)] = Addition(job.id, job.attempt, each["logs"], job.now)
        ran = None if change.outcome is None else job.now - began_at
        frees = change.outcome is not None and holds_slot(job)
        answers.append(Answer(job, refused, ran, renewed=refused is not None, frees_slot=frees))
    settling.settle(session)
    if additions:
        appended = job_logs.append(session, workspace_id, list(additions.values()))
        for number, logged in zip(additions, appended, strict=True):
            answers[number] = answers[number]._replace(logged=logged)
    return _accept_repeated(session, reports, answers, after)


def _wrong_documents(change: Change) -> JobApiError | None:
    try:
        limit_documents(change.values)
    except ValidationFailed as error:
        return error
    return None


def _accept_repeated(
    session: Executor,
    reports: Sequence[Report],
    answers: list[Answer],
    after: Mapping[str, CurrentJob],
) -> list[Answer]:
    """Accept a final report that was accepted before: its answer may have been lost."""
    for number, (each, answer) in enumerate(zip(reports, answers, strict=True)):
        if (
            answer.problem is not None
            and answer.job is not None
            and each.get("status") is JobStatus.SUCCESS
            and answer.job.succeeded_by == each["lease_token"]
        ):
            answers[number] = Answer(answer.job)
    refused = {
        number: (after[each["job_id"]].id, each["lease_token"])
        for number, (each, answer) in enumerate(zip(reports, answers, strict=True))
        if answer.problem is not None
        and answer.job is not None
        and each.get("status") in _ENDED_BY
        and LEASE_TOKEN.fullmatch(each["lease_token"])
    }
    if not refused:
        return answers
    known = defaultdict(set)
    for row in session.execute(
        select(attempts.c.job, attempts.c.lease_token, attempts.c.outcome).where(
            tuple_(attempts.c.job, attempts.c.lease_token).in_(list(refused.values()))
        )
    ):
        known[row.job, row.lease_token].add(row.outcome)
    for number, held in refused.items():
        if known[held].intersection(_ENDED_BY[reports[number]["status"]]):
            answers[number] = Answer(answers[number].job)
    return answers


@transactional()
def reap(
    session: Executor,
    *,
    backoff: Backoff,
    limit: int = REAP_AT_ONCE,
    chance: Callable[[], float] = random.random,
) -> Reaped:
    """End attempts whose lease or timeout has expired, up to ``limit`` of them.

    Jobs that are locked by another transaction are left for the next time.
    """
    found = session.execute(
        select(*DECIDING, DbNow().label("now"))
        .where(
            jobs.c.reap_at <= select(DbNow()).scalar_subquery(),
            not_moving(jobs.c.workspace_id),
        )
        .order_by(jobs.c.reap_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    settling = Settling(cast(Sequence[CurrentJob], found), actor=None)
    of = flow.of_workspaces(session, {job.workspace_id for job in found})
    for job in settling.jobs.values():
        own = of[job.workspace_id].of(job.job_type).backoff(backoff)
        change = leases.expire(job, backoff=own, chance=chance(), now=job.now)
        if change.values:
            settling.apply(job, change)
    settling.settle(session)
    return Reaped(settling.ended, len(found) == limit)


@transactional()
def expire(session: Executor, *, limit: int = REAP_AT_ONCE) -> bool:
    """Cancel up to ``limit`` jobs that have expired; returns whether there may be more.

    Jobs that are locked by another transaction are left for the next time.
    """
    found = session.execute(
        select(*DECIDING, DbNow().label("now"))
        .where(
            PENDING,
            jobs.c.expires_at <= select(DbNow()).scalar_subquery(),
            not_(jobs.c.has_begun),
            not_moving(jobs.c.workspace_id),
        )
        .order_by(jobs.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    settling = Settling(cast(Sequence[CurrentJob], found), actor=None)
    for job in settling.jobs.values():
        change = lifecycle.expire(job, job.now)
        if change.values:
            settling.apply(job, change)
    settling.settle(session)
    return len(found) == limit


def list_attempts(session: Executor, job: Job) -> list[Attempt]:
    """All attempts at a job in order, the current one last. ``job`` is its row, just read."""
    rows = session.execute(
        select(*(attempts.c[name] for name in Attempt._fields))
        .where(attempts.c.job == job.id, attempts.c.attempt <= job.attempt)
        .order_by(attempts.c.attempt)
    )
    listed = [Attempt(*row) for row in rows]
    succeeded = job.status == JobStatus.SUCCESS
    if (succeeded or job.status == JobStatus.RUNNING) and all(
        each.attempt != job.attempt for each in listed
    ):
        current = Attempt(
            job=job.id,
            attempt=job.attempt,
            outcome=Outcome.SUCCESS if succeeded else None,
            worker=job.worker,
            lease_token=job.succeeded_by if succeeded else job.lease_token,
            error=None,
            started_at=job.started_at or job.updated_at,
            ended_at=job.completed_at,
        )
        listed.append(current)
    return listed
