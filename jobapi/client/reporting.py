"""The thread that reports: ends, progress and heartbeats, many in a request."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import orjson

from ..errors import BadRequest, BodyTooLarge, JobApiError, ValidationFailed
from .holding import MAX_AT_ONCE, Holding, Terms, is_over
from .retries import Bounds, Unreachable, asked_pause, backoff, bounded, may_pass
from .tasks import Report, Task

REPORT_SECONDS = 0.25
"""The shortest time between progress reports; a task that runs longer is reported as begun."""

MAX_LOOKS = 3
"""A job that waits for this many rounds of ``REPORT_SECONDS`` is handed back."""

CANCEL_SECONDS = 4.0
"""The interval of heartbeats for a task that reports nothing; answers show cancellations."""

GATHER_SECONDS = 0.005
"""How long an ended job waits for others, to be reported together with them."""

WRONG = frozenset({BadRequest.status, BodyTooLarge.status, ValidationFailed.status})
"""A report that is refused with one of these is wrong in itself; its lease is as it was."""

BEGUN: Report = {"begun": True}
BEAT: Report = {}

logger = logging.getLogger("jobapi.worker")


class Reporter:
    """Reports what the tasks did, and renews their leases.

    Reports that could not be sent are kept and sent again; refused ones are logged.
    """

    def __init__(self, terms: Terms, jobs: Holding) -> None:
        self.terms = terms
        self.jobs = jobs
        # No more reports will come.
        self.over = False
        # When the last must have been sent.
        self.deadline = math.inf
        self.failures = 0

    def finish(self) -> None:
        """Send what there is, and end."""
        with self.jobs.lock:
            self.over = True
            self.jobs.to_report.notify()

    def run(self) -> None:
        """Send what has ended, progress, and heartbeats, until the shift is over."""
        try:
            looked_at = time.monotonic()
            while not (self.over and (self.failures or not self.jobs.reports)):
                looked_at = self._round(looked_at)
        except BaseException as error:
            # Such as a revoked key: nothing more can be reported.
            self.jobs.fail(error)

    def _round(self, looked_at: float) -> float:
        """Send what there is; returns when the running tasks were last looked at."""
        with self.jobs.lock:
            self._gather()
            count = min(len(self.jobs.reports), MAX_AT_ONCE)
            reports = [self.jobs.reports.popleft() for _ in range(count)]
        now = time.monotonic()
        if is_over(now - looked_at, REPORT_SECONDS):
            looked_at = now
            self._hand_back_what_waits()
            reports += self._news(now)
        try:
            for start in range(0, len(reports), MAX_AT_ONCE):
                self._send(reports[start : start + MAX_AT_ONCE])
        except (Unreachable, JobApiError):
            raise
        except Exception:
            logger.exception("reporting failed; retrying in a moment")
            time.sleep(REPORT_SECONDS)
        return looked_at

    def _gather(self) -> None:
        if not self.jobs.reports and not self.over:
            self.jobs.to_report.wait(REPORT_SECONDS)
        if 0 < len(self.jobs.reports) < MAX_AT_ONCE and not (
            self.jobs.waiting.empty() or self.over
        ):
            self.jobs.to_report.wait(GATHER_SECONDS)

    def _hand_back_what_waits(self) -> None:
        """Hand back jobs that no thread takes soon: another worker may do them."""
        with self.jobs.lock:
            waiting = [t for t in self.jobs.held if t.began_at is None and not t.ended]
        for task in waiting:
            task.looks += 1
        if any(task.looks >= MAX_LOOKS for task in waiting):
            self.jobs.hand_back(MAX_LOOKS)

    def _news(self, now: float) -> list[tuple[Task, Report]]:
        """What the running tasks report, and heartbeats.

        A heartbeat is a report of its own, so that it counts though the other one is refused.
        """
        running = [t for t in self.jobs.at_work() if not (t.ended or t.cancelled)]
        # Some are early, so that many tasks share a request.
        every = min(self.terms.lease_seconds / 3, CANCEL_SECONDS)
        due = any(is_over(now - task.heard_at, every) for task in running)
        reports: list[tuple[Task, Report]] = []
        for task in running:
            if not task.begun and is_over(task.seconds_running(now), REPORT_SECONDS):
                reports.append((task, BEGUN))
            elif due and is_over(now - task.heard_at, every / 2):
                reports.append((task, BEAT))
            reports += [(task, news) for news in task.take_news()]
        return reports

    def _send(self, reports: list[tuple[Task, Report]]) -> None:
        """Send up to 100 reports. Raises errors that a retry cannot fix."""
        given = [
            {"job_id": task.job_id, "lease_token": task.job.lease_token, **report}
            for task, report in reports
        ]
        sent_at = time.monotonic()
        try:
            with bounded(self._report_bounds()):
                answers = self.terms.client.report(self.terms.workspace_id, orjson.dumps(given))
            refused = self._settle(reports, answers, sent_at)
        except (BadRequest, BodyTooLarge) as error:
            # One report that cannot be sent must not block the others.
            self._send_smaller(reports, error)
            return
        except (Unreachable, JobApiError) as error:
            if not may_pass(error):
                raise
            logger.warning("cannot report: %s", error)
            self._keep(reports, asked_pause(error))
            return
        except Exception:
            self._keep(reports, 0.0)
            raise
        self.failures = 0
        for task, report, problem in refused:
            logger.warning("report of job %s refused: %s", task.job_id, problem["detail"])
            if problem["status"] in WRONG and "status" in report:
                # It would be refused again, whichever worker does the job.
                self._fail_for_good(task, problem["detail"])

    def _settle(
        self, reports: list[tuple[Task, Report]], answers: list[dict[str, Any]], sent_at: float
    ) -> list[tuple[Task, Report, dict[str, Any]]]:
        """Record the answers to reports; returns the refused reports with their problems."""
        judged = [
            (answer["accepted"], answer["problem"], answer.get("lease_expires_at"))
            for answer in answers
        ]
        refused = []
        with self.jobs.lock:
            for (task, report), (accepted, problem, lease) in zip(reports, judged, strict=True):
                if accepted or lease is not None:
                    task.heard_at = sent_at
                if accepted:
                    task.begun = task.begun or bool(report)
                    if "status" in report:
                        self.jobs.held.discard(task)
                elif problem["status"] in WRONG:
                    refused.append((task, report, problem))
                elif not task.cancelled:
                    refused.append((task, report, problem))
                    task.lose()
                    self.jobs.held.discard(task)
            self.jobs.freed.notify()
        return refused

    def _send_smaller(self, reports: list[tuple[Task, Report]], error: JobApiError) -> None:
        if len(reports) > 1:
            half = len(reports) // 2
            self._send(reports[:half])
            self._send(reports[half:])
            return
        ((task, report),) = reports
        logger.warning("report of job %s cannot be sent: %s", task.job_id, error)
        if "status" in report:
            self._fail_for_good(task, str(error))

    def _fail_for_good(self, task: Task, why: str) -> None:
        error = f"The result was refused: {why}"
        with self.jobs.lock:
            self.jobs.reports.append(
                (task, {"status": "failed", "error": error, "retryable": False})
            )

    def _keep(self, reports: list[tuple[Task, Report]], asked: float) -> None:
        """Keep what could not be sent, and pause. Heartbeats are made again when they are due."""
        with self.jobs.lock:
            self.jobs.reports.extendleft(
                entry
                for entry in reversed(reports)
                if entry[1] is not BEAT and entry[1] is not BEGUN
            )
        self.failures += 1
        longest = 0.5 if self.jobs.closing else self.terms.lease_seconds / 6
        seconds = min(max(backoff(self.failures), asked), longest)
        closing, end = self.jobs.closing, time.monotonic() + seconds
        while closing == self.jobs.closing and 0 < (left := end - time.monotonic()) <= seconds:
            if self.over:
                return
            time.sleep(min(left, 0.1))

    def _report_bounds(self) -> Bounds:
        # A stop interrupts earlier pauses, but not those during the stop.
        closing = self.jobs.closing
        return Bounds(
            self.deadline, self.terms.request_seconds, lambda: self.jobs.closing != closing
        )
