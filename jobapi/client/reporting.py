"""The thread that reports: ends, progress and heartbeats, many in one request."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import (
    PROBLEM_TYPE_PREFIX,
    AlreadyBegun,
    BadRequest,
    BodyTooLarge,
    JobApiError,
    ValidationFailed,
)
from .leased_jobs import MAX_BATCH, LeasedJobs, is_over
from .options import Options
from .retries import Bounds, Unreachable, asked_pause, backoff, bounded, is_transient
from .tasks import Report, Task

MAX_ROUNDS_QUEUED = 3
"""A job that no thread has taken after this many rounds is released."""

INVALID = frozenset({BadRequest.status, BodyTooLarge.status, ValidationFailed.status})
"""A report that is refused with one of these is itself wrong; its lease still holds."""

TAKEN = PROBLEM_TYPE_PREFIX + AlreadyBegun.type_name()

FIRST_CHECK = 0.25
"""Seconds after a handover until the first check whether a run has begun; later less often."""

MAX_BYTES = 800_000
"""The size of a request; the service takes 1 MiB unless ``JOBAPI_MAX_BODY_BYTES`` changes it."""

BEGUN: Report = {"begun": True}
HEARTBEAT: Report = {}

logger = logging.getLogger("jobapi.worker")


class Reporter:
    """Reports what the tasks did, and renews their leases.

    Reports that could not be sent are kept and sent again; refused ones are logged.
    """

    def __init__(self, options: Options, jobs: LeasedJobs) -> None:
        self.options = options
        self.timing = options.timing
        self.jobs = jobs
        # Whether no more reports will be added.
        self.finishing = False
        # When the last report must have been sent.
        self.deadline = math.inf
        self.failures = 0

    def finish(self) -> None:
        """Send the remaining reports, and end."""
        with self.jobs.lock:
            self.finishing = True
            self.jobs.reports_added.notify()

    def begin(self, task: Task) -> None:
        """Report that a run begins, before it does; again until the service has answered.

        Afterwards the task is ``begun``, or its lease is lost. If the service does not answer for
        as long as the lease lasts, it is neither. Raises errors that a retry cannot fix.
        """
        deadline = time.monotonic() + self.options.lease_seconds
        while not (task.begun or task.cancelled) and time.monotonic() < deadline:
            self._send([(task, BEGUN)])

    def run(self) -> None:
        """Send ends, progress and heartbeats until the last report is sent."""
        try:
            checked_at = time.monotonic()
            while not (self.finishing and (self.failures or not self.jobs.reports)):
                checked_at = self._round(checked_at)
        except BaseException as error:
            # Such as a revoked key: nothing more can be reported.
            self.jobs.fail(error)

    def _round(self, checked_at: float) -> float:
        """Send all reports. Returns when the running tasks were last checked for reports."""
        with self.jobs.lock:
            self._gather()
            count = min(len(self.jobs.reports), MAX_BATCH)
            reports = [self.jobs.reports.popleft() for _ in range(count)]
        now = time.monotonic()
        if is_over(now - checked_at, self.timing.report):
            checked_at = now
            self._release_queued()
            reports += self._running_reports(now)
        try:
            while reports:
                n = _fitting(reports)
                if not self._send(reports[:n], reports[n:]):
                    break
                reports = reports[n:]
        except (Unreachable, JobApiError):
            raise
        except Exception:
            logger.exception("reporting failed; retrying in a moment")
            time.sleep(self.timing.report)
        return checked_at

    def _gather(self) -> None:
        """Wait for reports, and then a moment for more of them."""
        if not self.jobs.reports and not self.finishing:
            self.jobs.reports_added.wait(self.timing.report)
        if 0 < len(self.jobs.reports) < MAX_BATCH and not (
            self.jobs.queued.empty() or self.finishing
        ):
            self.jobs.reports_added.wait(self.timing.gather)

    def _release_queued(self) -> None:
        """Release jobs that no thread has taken for a while, so that other workers can run them."""
        with self.jobs.lock:
            queued = [t for t in self.jobs.held if t.started_at is None and not t.ended]
        for task in queued:
            task.rounds_queued += 1
        if any(task.rounds_queued >= MAX_ROUNDS_QUEUED for task in queued):
            self.jobs.release_queued(MAX_ROUNDS_QUEUED)

    def _running_reports(self, now: float) -> list[tuple[Task, Report]]:
        """The progress of the running tasks, and heartbeats.

        A heartbeat is a report of its own, so that it counts even if the progress is refused.
        """
        running = [t for t in self.jobs.running_tasks() if not (t.ended or t.cancelled)]
        # Once one heartbeat is due, others are sent early, so that they share a request.
        every = min(self.options.lease_seconds / 3, self.timing.heartbeat)
        due = any(is_over(now - task.renewed_at, every) for task in running)
        reports: list[tuple[Task, Report]] = []
        for task in running:
            if task.handed_over_at is not None:
                # Only until a run has begun, which sends its own heartbeats.
                age = now - task.handed_over_at
                often = min(max(FIRST_CHECK, age / 4), every)
                if not task.taken and is_over(now - task.renewed_at, often):
                    reports.append((task, HEARTBEAT))
                continue
            if not task.begun and is_over(task.seconds_running(now), self.timing.report):
                reports.append((task, BEGUN))
            elif due and is_over(now - task.renewed_at, every / 2):
                reports.append((task, HEARTBEAT))
            # As long as nothing can be sent, log entries stay where there is a limit to them.
            unsent = task.take_reports(logs=not self.failures)
            reports += [(task, report) for report in unsent]
        return reports

    def _send(
        self, reports: list[tuple[Task, Report]], rest: Sequence[tuple[Task, Report]] = ()
    ) -> bool:
        """Send up to 100 reports; returns False if they could not be sent, and are kept.

        ``rest`` are later ones, which are kept with them: the log entries of an attempt must not
        overtake each other. Raises errors that a retry cannot fix.
        """
        body = [{**task.identity, **report} for task, report in reports]
        sent_at = time.monotonic()
        try:
            with bounded(self._report_bounds()):
                answers = self.options.client.report(self.options.workspace_id, orjson.dumps(body))
            refused = self._apply(reports, answers, sent_at)
        except (BadRequest, BodyTooLarge) as error:
            # One report that cannot be sent must not block the others.
            return self._send_in_halves(reports, error, rest)
        except (Unreachable, JobApiError) as error:
            if not is_transient(error):
                raise
            logger.warning("cannot report: %s", error)
            self._keep([*reports, *rest], asked_pause(error))
            return False
        except Exception:
            self._keep([*reports, *rest], 0.0)
            raise
        self.failures = 0
        for task, report, problem in refused:
            logger.warning("report of job %s refused: %s", task.job_id, problem["detail"])
            if problem["status"] in INVALID and "status" in report:
                # It would be refused again, whichever worker does the job.
                self._fail_permanently(task, problem["detail"])
        return True

    def _apply(
        self, reports: list[tuple[Task, Report]], answers: list[dict[str, Any]], sent_at: float
    ) -> list[tuple[Task, Report, dict[str, Any]]]:
        """Apply the answers to the tasks. Returns the refused reports with their problems."""
        results = [
            (answer["accepted"], answer["problem"], answer.get("lease_expires_at"))
            for answer in answers
        ]
        refused = []
        hooks = []
        with self.jobs.lock:
            for (task, report), (accepted, problem, lease) in zip(reports, results, strict=True):
                if accepted or lease is not None:
                    task.renewed_at = sent_at
                if accepted:
                    task.begun = task.begun or bool(report)
                    if "status" in report:
                        self.jobs.held.discard(task)
                elif problem["status"] in INVALID:
                    refused.append((task, report, problem))
                elif problem.get("type") == TAKEN and task.handed_over_at is not None:
                    hooks.append(task.on_taken)
                    self._let_go(task, report)
                elif not task.cancelled:
                    refused.append((task, report, problem))
                    hooks.append(task.on_lost)
                    task.taken = problem.get("type") == TAKEN
                    task.lose_lease()
                    self.jobs.held.discard(task)
            self.jobs.freed.notify()
        # Without the lock, because they may end a task.
        for hook in hooks:
            if hook is not None:
                hook()
        return refused

    def _let_go(self, task: Task, report: Report) -> None:
        """Leave a job to the run that has begun its attempt in the engine."""
        task.taken = True
        if "status" in report and task.if_taken is not None:
            self.jobs.reports.append((task, task.if_taken))
        else:
            self.jobs.held.discard(task)

    def _send_in_halves(
        self,
        reports: list[tuple[Task, Report]],
        error: JobApiError,
        rest: Sequence[tuple[Task, Report]],
    ) -> bool:
        if len(reports) > 1:
            half = len(reports) // 2
            first, second = reports[:half], reports[half:]
            return self._send(first, [*second, *rest]) and self._send(second, rest)
        ((task, report),) = reports
        logger.warning("report of job %s cannot be sent: %s", task.job_id, error)
        if "status" in report:
            self._fail_permanently(task, str(error))
        return True

    def _fail_permanently(self, task: Task, why: str) -> None:
        error = f"The result was refused: {why}"
        with self.jobs.lock:
            self.jobs.reports.append(
                (task, {"status": "failed", "error": error, "retryable": False})
            )

    def _keep(self, reports: list[tuple[Task, Report]], asked: float) -> None:
        """Keep reports that could not be sent, and pause. Heartbeats are made again when due."""
        with self.jobs.lock:
            self.jobs.reports.extendleft(
                entry
                for entry in reversed(reports)
                if entry[1] is not HEARTBEAT and entry[1] is not BEGUN
            )
        self.failures += 1
        longest = 0.5 if self.jobs.closing else self.options.lease_seconds / 6
        seconds = min(max(backoff(self.failures), asked), longest)
        closing, end = self.jobs.closing, time.monotonic() + seconds
        while closing == self.jobs.closing and 0 < (left := end - time.monotonic()) <= seconds:
            if self.finishing:
                return
            time.sleep(min(left, 0.1))

    def _report_bounds(self) -> Bounds:
        # A stop interrupts pauses that began before it, but not those that begin during it.
        closing = self.jobs.closing
        return Bounds(
            self.deadline, self.options.request_seconds, lambda: self.jobs.closing != closing
        )


def _fitting(reports: Sequence[tuple[Task, Report]]) -> int:
    """How many of the reports fit into a request: one at least."""
    size = 0
    for n, (_, report) in enumerate(reports[:MAX_BATCH]):
        if report:
            size += len(orjson.dumps(report)) + 150
        if n and size > MAX_BYTES:
            return n
    return min(len(reports), MAX_BATCH)
