"""Why a job waits, how a running one is doing, and what ended one.

Each answer reads a bounded number of index entries, however many jobs there are.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, literal, or_, select, union_all

from ..rules import causes, lifecycle
from ..rules.events import EventKind
from ..rules.flow import Flow
from ..rules.jobs import CurrentJob, JobStatus, Priority
from ..store.connections import AnyRow, Executor
from ..store.tables import job_types, jobs
from ..store.transactions import IN_ORDER, set_planner
from . import counts, flow, job_lists, throughput, workers
from .flow_turns import bucket_of
from .job_filters import Filters
from .job_rows import in_workspace

MAX_AHEAD = 10_000
"""Jobs ahead are counted up to this number."""

MAX_KEYS = 1_000
"""Keys that take turns are counted up to this number."""

WINDOWS = ((60, 600, 20), (60, 3600, 1))
"""The windows in which starts are counted: the length of a span and of the window, in seconds, and
how many starts there must be. The first window that has enough is used."""

SAMPLE = 100
"""How many of the newest successful jobs of each priority the durations are taken from."""

OVERDUE_SECONDS = 1
"""How much longer than usual a job must have run to be overdue."""

LEAST_SAMPLE = 3
"""With fewer durations than this there is too little history for an estimate."""


@dataclass(frozen=True)
class Reason:
    """One reason for the state of a job: a code, a sentence, and its numbers."""

    code: str
    detail: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The state of a job, and estimates; None: unknown, or not applicable."""

    job: CurrentJob
    reasons: list[Reason]
    ahead: int | None = None
    """How many jobs of its type are likely to start before it."""
    ahead_is_capped: bool = False
    live_workers: int
    estimated_start_at: datetime | None = None
    estimated_completion_at: datetime | None = None
    estimate_basis: str
    """What the estimates are based on, or why there are none."""


def explain(session: Executor, job: CurrentJob, *, flow_version: int | None = None) -> Explanation:
    """Explain the state of a job; call it in a ``snapshot``.

    ``job`` is its row, just read, and ``flow_version`` that of its workspace.
    """
    set_planner(session, IN_ORDER)
    of = job.workspace_id, job.job_type
    live = workers.count_live(session, [of])[of]
    if job.status == JobStatus.PENDING:
        return _pending(session, job, flow.load(session, job.workspace_id, flow_version), live)
    if job.status == JobStatus.RUNNING:
        return _running(session, job, live)
    return Explanation(
        job=job,
        reasons=[_end(job)],
        live_workers=live,
        estimate_basis="The job has ended.",
    )


def _end(job: CurrentJob) -> Reason:
    status = JobStatus(job.status)
    kind = job.last_event if job.last_event_version == job.version else None
    code = status.label
    if kind in (EventKind.LEASE_EXPIRED, EventKind.TIMED_OUT):
        code = EventKind(kind).label.replace("_", "-")
    why = None if job.error is None else causes.cause(job.error)
    if status is JobStatus.CANCELLED:
        given = (job.result or {}).get("cancelled_reason")
        why = given if isinstance(given, str) else None
    by = "the service" if job.changed_by is None else job.changed_by.replace(":", " ")
    worker = "" if job.worker is None else f" (worker {job.worker})"
    what = {
        "success": f"{by}{worker} reported success",
        "failed": f"{by}{worker} reported a failure",
        "cancelled": f"{by} cancelled it",
        "lease-expired": "its worker stopped reporting, and the lease expired",
        "timed-out": f"its attempt ran longer than {_seconds(job.timeout_seconds or 0)}",
    }[code]
    again = ""
    if status is JobStatus.FAILED and job.attempt > 1:
        retries = "1 retry" if job.retry_count == 1 else f"{job.retry_count} retries"
        again = f" It was attempt {job.attempt}, after {retries}."
    detail = f"{what[0].upper()}{what[1:]}{'.' if not why else f': {why[:500]}'}{again}"
    return Reason(code, detail, {"actor": job.changed_by, "at": job.completed_at, "reason": why})


def _running(session: Executor, job: CurrentJob, live: int) -> Explanation:
    now, started_at = job.now, job.started_at or job.updated_at
    who = "It was started without a lease" if job.lease_token is None else "A worker runs it"
    if job.worker is not None:
        who = f"The worker {job.worker} runs it"
    at = {"worker": job.worker, "attempt": job.attempt, "at": started_at}
    begun = "leased, and not begun yet" if job.prefetched else f"attempt {job.attempt}"
    reasons = [Reason("running", f"{who} ({begun}).", at)]
    took = _durations(session, job)
    ran = (now - started_at).total_seconds()
    usual = _rank(took, 0.95) if len(took) >= LEAST_SAMPLE else job.estimated_duration
    # Clocks and rounding must not make a job overdue that took as long as usual.
    if usual is not None and ran > usual + OVERDUE_SECONDS and not job.prefetched:
        reasons.append(
            Reason(
                "overdue",
                f"It has run for {_seconds(ran)}; "
                + (
                    f"95% of the last {len(took)} jobs of this type took at most {_seconds(usual)}."
                    if len(took) >= LEAST_SAMPLE
                    else f"its creator expected {_seconds(usual)}."
                ),
                {"seconds": int(ran)},
            )
        )
    until = job.lease_expires_at
    if until is not None and (until - now).total_seconds() < (job.lease_seconds or 0) / 3:
        reasons.append(
            Reason(
                "lease-late",
                "Its worker should have renewed the lease by now. If it does not, the job is taken "
                "back soon after the lease expires.",
                {"until": until},
            )
        )
    end, basis = None, _too_little(took)
    if len(took) >= LEAST_SAMPLE:
        end = started_at + timedelta(seconds=statistics.median(took))
        basis = f"The median duration of the last {len(took)} jobs of this type."
        if end < now:
            end, basis = None, f"{basis} It has run for longer."
    return Explanation(
        job=job,
        reasons=reasons,
        live_workers=live,
        estimated_start_at=started_at,
        estimated_completion_at=end,
        estimate_basis=basis,
    )


def _pending(session: Executor, job: CurrentJob, settings: Flow, live: int) -> Explanation:
    blocking = list(_blocking(session, job, settings))
    ahead = _ahead(session, job, settings)
    reasons = list(blocking)
    if live == 0:
        reasons.append(
            Reason("no-live-worker", f"No live worker claims jobs of the type {job.job_type}.")
        )
    if ahead:
        number = f"More than {MAX_AHEAD:,}" if ahead > MAX_AHEAD else f"{ahead:,}"
        verb = "job of its type comes" if ahead == 1 else "jobs of its type come"
        reasons.append(
            Reason("behind-others", f"{number} {verb} first.", {"ahead": min(ahead, MAX_AHEAD)})
        )
    if not reasons:
        reasons.append(Reason("ready", "The next claim of its type gets it."))
    start, end, basis = _estimate(session, job, blocking, ahead, live)
    return Explanation(
        job=job,
        reasons=reasons,
        ahead=min(ahead, MAX_AHEAD),
        ahead_is_capped=ahead > MAX_AHEAD,
        live_workers=live,
        estimated_start_at=start,
        estimated_completion_at=end,
        estimate_basis=basis,
    )


def _blocking(session: Executor, job: CurrentJob, settings: Flow) -> Iterator[Reason]:
    """Why it could not start even if it were the only pending job."""
    own = settings.of(job.job_type)
    if job.due_at > job.now:
        at = {"until": job.due_at}
        if job.due_at == lifecycle.due_at(job.queued_at, job.scheduled_at):
            yield Reason("scheduled", f"It is scheduled for {_time(job.due_at)}.", at)
        else:
            retry = f"retry {job.retry_count} of {job.max_retries}"
            waits = f"Its last attempt failed. It waits until {_time(job.due_at)} for {retry}."
            yield Reason("retry-backoff", waits, at)
    if settings.paused:
        yield Reason("workspace-paused", _paused("The workspace", settings.paused_reason))
    if own.paused:
        yield Reason("type-paused", _paused(f"The job type {job.job_type}", own.paused_reason))
    if own.max_running is not None:
        n = _count_running(session, job, None, own.max_running)
        if n >= own.max_running:
            limit = {"limit": own.max_running}
            yield Reason("at-capacity", _full("of its type", own.max_running, "max_running"), limit)
    most = own.max_running_per_key
    if job.concurrency_key is not None and most is not None:
        n = _count_running(session, job, job.concurrency_key, most)
        if n >= most:
            detail = _full("with its concurrency_key", most, "max_running_per_key")
            yield Reason("key-at-capacity", detail, {"limit": most})
    if own.rate_starts is not None:
        row = session.execute(
            select(job_types).where(
                job_types.c.workspace_id == job.workspace_id, job_types.c.job_type == job.job_type
            )
        ).first()
        bucket = None if row is None or row.rate_starts is None else bucket_of(row)
        if bucket is not None and bucket.left(job.now) < 1:
            starts = "1 job" if bucket.starts == 1 else f"{bucket.starts:,} jobs"
            rate = f"At most {starts} of its type may start in {_seconds(bucket.seconds)}"
            until = {"until": bucket.next_at(job.now)}
            yield Reason("rate-limited", f"{rate} (rate_limit); the limit is used up.", until)


def _paused(what: str, reason: str | None) -> str:
    return f"{what} is paused" + ("." if reason is None else f": {reason}")


def _full(which: str, limit: int, setting: str) -> str:
    jobs_run = "1 job" if limit == 1 else f"{limit:,} jobs"
    return f"At most {jobs_run} {which} may run at the same time ({setting}); the limit is reached."


def _count_running(session: Executor, job: CurrentJob, key: str | None, most: int) -> int:
    running = select(literal(1).label("one")).where(
        jobs.c.workspace_id == job.workspace_id,
        jobs.c.status == JobStatus.RUNNING,
        jobs.c.job_type == job.job_type,
    )
    if key is not None:
        running = running.where(jobs.c.concurrency_key == key)
    number = select(func.count()).select_from(running.limit(most).subquery())
    return int(session.execute(number).scalar_one())


def _ahead(session: Executor, job: CurrentJob, settings: Flow) -> int:
    """How many jobs of its type are likely to start first, up to one more than ``MAX_AHEAD``.

    They come before it in the order of claims. If keys take turns and n jobs of its own key come
    first, it starts in round n + 1: until then each key starts n + 1 jobs of its priority at most.
    """
    ageing = settings.ageing_seconds
    same = _before(session, job, job.priority, job.due_at)
    if job.concurrency_key is not None:
        own = _before(session, job, job.priority, job.due_at, key=job.concurrency_key)
        # Jobs of other keys may be younger and still have their turn first.
        keys = _number_of_keys(session, job, settings.of(job.job_type).max_running_per_key)
        same = min(_of_priority(session, job), (own + 1) * keys - 1)
    ahead = same
    for priority in Priority:
        levels = priority - job.priority
        if levels == 0 or (levels < 0 and ageing is None):
            continue
        due = max(job.now, job.due_at)
        if ageing is not None:
            due = min(due, job.due_at + timedelta(seconds=levels * ageing))
        ahead += _before(session, job, priority, due)
    return min(ahead, MAX_AHEAD + 1)


def _before(
    session: Executor,
    job: CurrentJob,
    priority: int,
    due_at: datetime,
    *,
    key: str | None = None,
) -> int:
    """How many pending jobs of its type and a priority are due before ``due_at``.

    Of those due at that moment, the ones created before it count.
    """
    c = jobs.c
    before = or_(c.due_at < due_at, and_(c.due_at == due_at, c.id < job.id))
    which = [c.due_at <= due_at, before]
    if key is not None:
        which.append(c.concurrency_key == key)
    return _count_pending(session, job, priority, which)


def _of_priority(session: Executor, job: CurrentJob) -> int:
    """How many other pending jobs with its priority are due by the time it is."""
    when = jobs.c.due_at <= max(job.now, job.due_at)
    return _count_pending(session, job, job.priority, [when, jobs.c.id != job.id])


def _count_pending(
    session: Executor, job: CurrentJob, priority: int, which: list[ColumnElement[bool]]
) -> int:
    c = jobs.c
    pending = select(literal(1).label("one")).where(
        c.workspace_id == job.workspace_id,
        c.status == JobStatus.PENDING,
        c.job_type == job.job_type,
        c.priority == priority,
        *which,
    )
    # Jobs with a key and without one are in two indexes.
    parts = [
        pending.where(has_key).order_by(c.due_at).limit(MAX_AHEAD + 1).subquery().select()
        for has_key in (c.concurrency_key.is_(None), c.concurrency_key.is_not(None))
    ]
    number = select(func.count()).select_from(union_all(*parts).subquery())
    return int(session.execute(number).scalar_one())


def _number_of_keys(session: Executor, job: CurrentJob, most: int | None) -> int:
    """How many keys take turns, including its own, up to ``MAX_KEYS``: one index lookup for each.

    These keys have due jobs with its priority, and fewer than ``most`` running jobs.
    """
    c = jobs.c
    first = (
        select(c.concurrency_key)
        .where(
            c.workspace_id == job.workspace_id,
            c.status == JobStatus.PENDING,
            c.ripe,
            c.job_type == job.job_type,
            c.priority == job.priority,
        )
        .order_by(c.concurrency_key)
        .limit(1)
    )
    keys = select(first.scalar_subquery().label("key"), literal(1).label("n")).cte(recursive=True)
    after = first.where(c.concurrency_key > keys.c.key).correlate(keys).scalar_subquery()
    keys = keys.union_all(
        select(after, keys.c.n + 1).where(keys.c.key.is_not(None), keys.c.n < MAX_KEYS)
    )
    number = select(func.count()).select_from(keys).where(keys.c.key.is_not(None))
    if most is not None:
        running = select(func.count()).where(
            c.workspace_id == job.workspace_id,
            c.status == JobStatus.RUNNING,
            c.job_type == job.job_type,
            c.concurrency_key == keys.c.key,
        )
        number = number.where(running.correlate(keys).scalar_subquery() < most)
    return max(1, session.execute(number).scalar_one())


def _estimate(
    session: Executor, job: CurrentJob, blocking: Collection[Reason], ahead: int, live: int
) -> tuple[datetime | None, datetime | None, str]:
    """When it will start and end, and what this is based on."""
    codes = {reason.code for reason in blocking}
    if codes & {"workspace-paused", "type-paused"}:
        return None, None, "None, because it is unknown when the pause will end."
    if live == 0:
        return None, None, "None, because no live worker claims this type."
    if ahead > MAX_AHEAD:
        return None, None, f"None, because more than {MAX_AHEAD:,} jobs come first."
    took = _durations(session, job)
    start = max([job.now, *(r.more["until"] for r in blocking if "until" in r.more)])
    basis = ""
    turn = ahead + (1 if codes & {"at-capacity", "key-at-capacity"} else 0)
    if turn:
        rate, basis = _rate(session, job, took)
        if rate is None:
            return None, None, basis
        start += timedelta(seconds=turn / rate)
    if len(took) < LEAST_SAMPLE:
        return start, None, f"{basis} {_too_little(took)}".strip()
    durations = f"The median duration of the last {len(took)} jobs of this type."
    end = start + timedelta(seconds=statistics.median(took))
    return start, end, f"{basis} {durations}".strip()


def _rate(session: Executor, job: CurrentJob, took: list[float]) -> tuple[float | None, str]:
    """How many jobs of the type start per second (None: unknown), and what this is based on."""
    found, basis = 0.0, ""
    for span, length, least in WINDOWS:
        since = throughput.begin_of(job.now - timedelta(seconds=length), span)
        came = throughput.read(
            session, job.workspace_id, span, since, only_job_types=[job.job_type]
        )
        begun = [each for each in came if each.status == JobStatus.RUNNING and each.n > 0]
        number = sum(each.n for each in begun)
        if number >= least:
            first = min(each.at for each in begun)
            found = number / max(1.0, (job.now - first).total_seconds())
            starts = "1 start" if number == 1 else f"{number:,} starts"
            basis = f"{starts} of this type within {length // 60} minutes."
            break
    if len(took) >= LEAST_SAMPLE:
        # If workers were idle, they could have started more.
        running = _running_now(session, job)
        by_running = running / max(0.001, statistics.fmean(took))
        if by_running > found:
            found = by_running
            which = "1 running job" if running == 1 else f"{running:,} running jobs"
            basis = f"{which} of this type, and how long the last ones took."
    if not found:
        return None, "Too little history: no job of this type has started within an hour."
    return found, basis


def _running_now(session: Executor, job: CurrentJob) -> int:
    return sum(kind.n for kind in _kinds(session, job, JobStatus.RUNNING))


def _kinds(session: Executor, job: CurrentJob, status: JobStatus) -> Sequence[AnyRow]:
    filters = Filters(status=[status], job_type=[job.job_type])
    return counts.kinds(session, in_workspace(job.workspace_id), filters)


def _durations(session: Executor, job: CurrentJob) -> list[float]:
    """How long the newest jobs of its type that succeeded have run, in seconds, ascending."""

    rows = job_lists.newest(session, _kinds(session, job, JobStatus.SUCCESS), SAMPLE)
    return sorted((row.completed_at - row.started_at).total_seconds() for row in rows)


def _rank(took: list[float], share: float) -> float:
    return took[min(len(took) - 1, int(share * len(took)))]


def _too_little(took: list[float]) -> str:
    number = "no job" if not took else "1 job" if len(took) == 1 else f"{len(took)} jobs"
    have = "has" if len(took) < 2 else "have"
    return f"Too little history: {number} of this type {have} succeeded."


def _seconds(seconds: float) -> str:
    if seconds == 1:
        return "1 second"
    exact = seconds >= 10 or seconds == int(seconds)
    return f"{seconds:,.0f} seconds" if exact else f"{seconds:.1f} seconds"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
