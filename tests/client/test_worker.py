"""The worker against the application."""

from __future__ import annotations

import json
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any
from unittest.mock import ANY

import pytest

from jobapi import queue
from jobapi.client import (
    ClaimedJob,
    ClaimedJobs,
    Client,
    Job,
    Permanent,
    Task,
    ThreadsLost,
    Unreachable,
    Worker,
    claiming,
)
from jobapi.client.options import Timing
from jobapi.errors import TokenRevoked
from jobapi.rules.jobs import JobStatus
from jobapi.rules.leases import Backoff
from jobapi.store.tables import jobs

from ..factories import Desk, until


@pytest.fixture
def worker(desk: Desk, client: Client) -> Worker:
    return Worker(client, desk.workspace_id, name="w")


def test_task_does_a_job(desk: Desk, client: Client, worker: Worker) -> None:
    @worker.task("add")
    def add(task: Task) -> dict[str, Any]:
        return {"sum": sum(task.metadata["numbers"]), "attempt": task.attempt}

    job = client.create(desk.workspace_id, "add", metadata={"numbers": [1, 2, 3]})
    other = client.create(desk.workspace_id, "other")
    worker.run(until_idle=True)
    assert client.result(desk.workspace_id, job.job_id) == {"sum": 6, "attempt": 1}
    assert client.get(desk.workspace_id, other.job_id).status == "pending"
    (attempt,) = client.attempts(desk.workspace_id, job.job_id)
    assert (attempt.worker, attempt.outcome) == ("w", "success")


def fails(desk: Desk, client: Client, worker: Worker, run: Any) -> Job:
    worker.task("a")(run)
    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    return client.get(desk.workspace_id, job.job_id)


def test_exception_fails_the_attempt_with_its_traceback(
    desk: Desk, client: Client, worker: Worker
) -> None:
    def run(task: Task) -> None:
        raise LookupError("no such file\0 \ud800")

    job = fails(desk, client, worker, run)
    assert (job.status, job.retry_count) == ("pending", 1)
    assert job.error is not None
    assert "Traceback" in job.error
    assert "LookupError: no such file" in job.error


def test_permanent_is_not_retried(desk: Desk, client: Client, worker: Worker) -> None:
    def run(task: Task) -> None:
        raise Permanent("never")

    job = fails(desk, client, worker, run)
    assert (job.status, job.retry_count) == ("failed", 0)


@pytest.mark.parametrize(
    "result",
    [
        17,
        {"x": float("nan")},
        {"x": object()},
        {"x": datetime(2024, 1, 15, tzinfo=UTC)},
        {"x": uuid.UUID(int=0)},
        {"x": "\ud800"},
        {"x": "y" * 2_000_000},
        {"x": "\0"},
    ],
    ids=["number", "nan", "object", "time", "uuid", "half a character", "large", "zero"],
)
def test_return_invalid_result_fails_the_job_for_good(
    desk: Desk, client: Client, worker: Worker, result: Any
) -> None:
    job = fails(desk, client, worker, lambda task: result)
    assert (job.status, job.retry_count) == ("failed", 0)
    assert job.error


def test_progress_is_sent_while_it_runs(desk: Desk, client: Client, worker: Worker) -> None:
    seen = []

    @worker.task("a")
    def run(task: Task) -> dict[str, Any]:
        task.progress(40, "half", result={"rows": 1})
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            status = client.status(desk.workspace_id, task.job_id)
            if status.progress_percent == 40:
                seen.append(status.progress_message)
            time.sleep(0.05)
        task.progress(90, result={"more": 2})
        return {"done": True}

    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert seen == ["half"]
    assert client.result(desk.workspace_id, job.job_id) == {"rows": 1, "more": 2, "done": True}


def test_report_progress_that_is_not_json_raises_in_the_task(
    desk: Desk, client: Client, worker: Worker
) -> None:
    @worker.task("a")
    def run(task: Task) -> dict[str, Any]:
        task.progress(10, result={"rows": 1})
        told = {"path": ["a"]}
        task.progress(20, result=told)
        told["path"].append("b")
        for percent, result in ((float("nan"), None), (30, {"x": {1, 2}}), (30, {"x": "\ud800"})):
            with pytest.raises((TypeError, ValueError)):
                task.progress(percent, result=result)
        return {"done": True}

    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    job = client.get(desk.workspace_id, job.job_id)
    assert (job.status, job.error) == ("success", None)
    assert job.result == {"rows": 1, "path": ["a"], "done": True}


def test_progress_that_did_not_arrive_is_sent_again_before_the_end(
    desk: Desk, client: Client, worker: Worker
) -> None:
    lost = threading.Event()
    report = client.report
    sent: list[Any] = []

    def unreliable(workspace_id: int, reports: Any) -> Any:
        if not lost.is_set():
            lost.set()
            raise Unreachable("no answer")
        sent.extend(json.loads(reports))
        return report(workspace_id, reports)

    client.report = unreliable

    @worker.task("a")
    def run(task: Task) -> dict[str, Any]:
        task.progress(40, "half", result={"rows": 1})
        assert lost.wait(10)
        return {"done": True}

    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert client.result(desk.workspace_id, job.job_id) == {"rows": 1, "done": True}
    assert [told.get("status") for told in sent] == [None, "success"]


def test_result_is_what_it_was_when_the_task_returned_it(
    desk: Desk, client: Client, worker: Worker
) -> None:
    counts: dict[str, Any] = {"numbers": []}

    @worker.task("a")
    def run(task: Task) -> dict[str, Any]:
        counts["numbers"].append(task.metadata["n"])
        return counts

    items = [{"job_type": "a", "metadata": {"n": n}} for n in range(30)]
    client.create_many(desk.workspace_id, items)
    worker.run(until_idle=True)
    for job in client.jobs(desk.workspace_id):
        assert job.result == {"numbers": list(range(job.metadata["n"] + 1))}


def test_end_is_reported_at_once_though_other_jobs_wait(
    desk: Desk, client: Client, worker: Worker
) -> None:
    # Nothing but the end of a job makes it report for long.
    worker.timing = Timing(report=20)
    noticed = []

    @worker.task("a")
    def run(task: Task) -> None:
        before = task.metadata.get("before")
        began = time.monotonic()
        while before and client.status(desk.workspace_id, before).status != "success":
            assert time.monotonic() - began < 15
            time.sleep(0.005)
        if before:
            noticed.append(time.monotonic() - began)

    # So many at first that the next ones are claimed together.
    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 40)
    for _ in range(3):
        fast = client.create(desk.workspace_id, "a")
        client.create(desk.workspace_id, "a", metadata={"before": fast.job_id})
    worker.run(until_idle=True)
    assert len(noticed) == 3
    assert min(noticed) < 1


def test_leases_are_renewed_though_the_clock_goes_back(
    desk: Desk, client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.lease_seconds = 5
    worker.timing = Timing(report=0.05)
    real, hours = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + hours[0] * 3600)
    beats = []
    report = client.report

    def report_and_note(workspace_id: int, reports: Any) -> Any:
        beats.extend(told for told in json.loads(reports) if "status" not in told)
        return report(workspace_id, reports)

    client.report = report_and_note

    @worker.task("a")
    def run(task: Task) -> None:
        for hours[0] in (-5, 5, -5):
            count, deadline = len(beats), real() + 10
            while len(beats) == count and real() < deadline:
                time.sleep(0.01)

    client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert len(beats) == 3


def test_cancel_reaches_the_task_and_ends_its_reports(
    desk: Desk, client: Client, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    @worker.task("a")
    def run(task: Task) -> None:
        client.cancel(desk.workspace_id, task.job_id)
        deadline = time.monotonic() + 10
        while not task.cancelled and time.monotonic() < deadline:
            task.progress(1)
            time.sleep(0.05)
        told.append(task.cancelled)

    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert told == [True]
    assert client.get(desk.workspace_id, job.job_id).status == "cancelled"
    assert [record.name for record in caplog.records].count("jobapi.worker") == 1


def test_many_small_jobs_take_few_requests(desk: Desk, client: Client, worker: Worker) -> None:
    worker.task("a")(lambda task: {"ok": 1})
    worker.concurrency = 2
    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 300)
    calls = []
    request = client.request
    client.request = lambda *a, **kw: calls.append(a) or request(*a, **kw)
    worker.run(until_idle=True)
    assert sum(1 for _ in client.jobs(desk.workspace_id, status="success")) == 300
    assert len(calls) < 100


class Crew:
    """Workers in threads of this process, stopped at the end."""

    def __init__(self, desk: Desk, client: Client) -> None:
        self.desk, self.client = desk, client
        self.running: list[tuple[Worker, threading.Thread]] = []
        self.errors: list[BaseException] = []
        # A stop waits for a waiting claim.
        self.timing = Timing(claim_wait=1)

    def start(self, name: str, tasks: dict[str, Any], **kw: Any) -> Worker:
        worker = Worker(self.client, self.desk.workspace_id, name=name, **kw)
        worker.timing = self.timing
        for job_type, run in tasks.items():
            worker.task(job_type)(run)
        thread = threading.Thread(target=self._run, args=(worker,))
        thread.start()
        self.running.append((worker, thread))
        return worker

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            self.errors.append(error)

    def count(self, **filters: Any) -> int:
        return sum(1 for _ in self.client.jobs(self.desk.workspace_id, light=True, **filters))

    def close(self) -> None:
        for worker, _ in self.running:
            worker.stop()
        for _, thread in self.running:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def crew(desk: Desk, client: Client) -> Any:
    crew = Crew(desk, client)
    yield crew
    crew.close()


QUICK = [{"job_type": "quick", "max_retries": 0, "timeout_seconds": 1}]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_jobs_behind_a_slow_one_are_done_by_another_worker(
    desk: Desk, client: Client, crew: Crew, concurrency: int
) -> None:
    end = threading.Event()
    tasks = {"quick": lambda task: None, "slow": lambda task: end.wait(60) and None}
    first = crew.start("first", tasks, concurrency=concurrency)
    try:
        client.create_many(desk.workspace_id, QUICK * 300)
        until(lambda: crew.count(status="success") == 300)
        slow = client.create_many(desk.workspace_id, [{"job_type": "slow"}] * concurrency)
        # In one request they are fetched together.
        client.create_many(desk.workspace_id, QUICK * 100)
        until(lambda: crew.count(status="running", job_type="slow") == concurrency)
        crew.start("second", tasks)
        until(lambda: crew.count(status="success") == 400)
        assert first.name == "first"
        for job in slow:
            (attempt,) = client.attempts(desk.workspace_id, job.job_id)
            assert (attempt.worker, attempt.outcome) == ("first", None)
    finally:
        end.set()
    until(lambda: crew.count(status="success") == 400 + concurrency)


def test_jobs_that_were_fetched_and_wait_do_not_time_out(
    desk: Desk, client: Client, crew: Crew
) -> None:
    end = threading.Event()
    tasks = {"quick": lambda task: None, "slow": lambda task: end.wait(60) and None}
    crew.start("only", tasks)
    try:
        client.create_many(desk.workspace_id, QUICK * 300)
        until(lambda: crew.count(status="success") == 300)
        client.create_many(desk.workspace_id, [{"job_type": "slow"}, *QUICK * 100])
        until(lambda: crew.count(status="running", job_type="slow") == 1)
        until(lambda: crew.count(status="pending") == 100)
        time.sleep(1.2)
        with desk.world.transaction() as tx:
            queue.reap(tx, backoff=Backoff(1, 1))
        assert crew.count(status="pending") == 100
        assert crew.count(status="running") == 1
    finally:
        end.set()
    until(lambda: crew.count(status="success") == 401)


def test_claim_of_more_jobs_than_threads_does_not_begin_them(
    desk: Desk, client: Client, worker: Worker
) -> None:
    asked = []
    claim = client.claim

    def note(*arguments: Any, **kw: Any) -> Any:
        asked.append((kw["limit"], kw["begin"]))
        return claim(*arguments, **kw)

    client.claim = note
    worker.concurrency = 2
    worker.task("a")(lambda task: None)
    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 50)
    worker.run(until_idle=True)
    assert asked[0] == (2, True)
    assert all(begin == (limit <= 2) for limit, begin in asked)
    assert max(limit for limit, _ in asked) > 2


def test_suspect_jobs_are_not_prefetched(desk: Desk, client: Client, worker: Worker) -> None:
    client.create_many(desk.workspace_id, [{"job_type": "a", "priority": "low"}] * 30)
    for job in desk.claim(begin=False, limit=30):
        desk.shift(job, 4000)
    assert desk.reap() == 30
    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 200 + [{"job_type": "kills"}])
    worker.task("a")(lambda task: None)
    waiting = []

    @worker.task("kills")
    def kills(task: Task) -> None:
        # Were its process killed after that, what has begun would lose a retry.
        time.sleep(0.5)
        with desk.world.transaction() as tx:
            begun = jobs.select().where(jobs.c.status == JobStatus.RUNNING, ~jobs.c.prefetched)
            waiting.append(len(tx.execute(begun).all()) - 1)

    worker.run(until_idle=True)
    assert waiting[0] <= 1
    assert sum(1 for _ in client.jobs(desk.workspace_id, status="success")) == 231


def test_prefetched_job_with_a_slow_task_is_begun(
    desk: Desk, client: Client, worker: Worker
) -> None:
    seen = []

    @worker.task("a")
    def run(task: Task) -> None:
        if task.metadata:
            assert not task.job.begun
            until(lambda: task.begun)
            seen.append(client.get(desk.workspace_id, task.job_id).started_at)

    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 20)
    client.create(desk.workspace_id, "a", metadata={"while": True})
    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 20)
    sent: list[Any] = []
    report = client.report

    def note(workspace_id: int, reports: Any) -> Any:
        sent.extend(json.loads(reports))
        return report(workspace_id, reports)

    client.report = note
    worker.run(until_idle=True)
    assert len(seen) == 1
    assert [told for told in sent if "begun" in told] == [
        {"job_id": ANY, "lease_token": ANY, "begun": True}
    ]


def test_lost_threads_are_not_counted_on_and_the_last_one_ends_the_worker(
    desk: Desk, client: Client, crew: Crew, caplog: pytest.LogCaptureFixture
) -> None:
    end = threading.Event()
    hung: list[str] = []

    def hang(task: Task) -> None:
        hung.append(task.job_id)
        task.progress(1)
        end.wait(120)

    crew.timing = Timing(claim_wait=1, lost=0.5, all_lost=2)
    crew.start("w", {"hang": hang, "quick": lambda task: None}, concurrency=2, grace_seconds=2)
    try:
        client.create(desk.workspace_id, "hang")
        until(lambda: len(hung) == 1)
        client.cancel(desk.workspace_id, hung[0])
        until(lambda: "1 of 2 threads are left" in caplog.text)
        # The other thread goes on.
        client.create_many(desk.workspace_id, QUICK * 30)
        until(lambda: crew.count(status="success") == 30)
        client.create(desk.workspace_id, "hang")
        until(lambda: len(hung) == 2)
        client.cancel(desk.workspace_id, hung[1])
        until(lambda: crew.errors)
        assert isinstance(crew.errors[0], ThreadsLost)
        client.create(desk.workspace_id, "quick")
        assert crew.count(status="running") == 0
    finally:
        end.set()


def test_cancel_reaches_a_quiet_task_whatever_its_lease(
    desk: Desk, client: Client, worker: Worker
) -> None:
    worker.lease_seconds = 3600
    told = []

    @worker.task("a")
    def run(task: Task) -> None:
        client.cancel(desk.workspace_id, task.job_id)
        told.append(until(lambda: task.cancelled))

    client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert told == [True]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_progress_does_not_stop_the_heartbeats(
    desk: Desk, client: Client, worker: Worker, status: int
) -> None:
    worker.timing = Timing(heartbeat=0.3, report=0.05)
    beats: list[Any] = []
    report = client.report

    def refuse_progress(workspace_id: int, reports: Any) -> Any:
        answers = []
        for told in json.loads(reports):
            if "progress_percent" in told:
                problem = {"status": status, "detail": "no"}
                answers.append({"accepted": False, "problem": problem})
            else:
                beats.append(told)
                answers += report(workspace_id, [told])
        return answers

    client.report = refuse_progress

    @worker.task("a")
    def run(task: Task) -> None:
        while len(beats) < 3:
            task.progress(50)
            time.sleep(0.01)

    job = client.create(desk.workspace_id, "a", max_retries=0)
    worker.run(until_idle=True)
    assert client.get(desk.workspace_id, job.job_id).status == "success"


def test_reporter_survives_an_answer_that_makes_no_sense(
    desk: Desk, client: Client, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    report = client.report
    answers: list[Any] = [[], [{}], [{"accepted": False, "problem": None}]]
    client.report = lambda *arguments: answers.pop() if answers else report(*arguments)
    worker.task("a")(lambda task: {"ok": 1})
    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert client.result(desk.workspace_id, job.job_id) == {"ok": 1}
    assert caplog.text.count("reporting failed") == 3


@pytest.mark.parametrize("pause", [0, 0.8])
def test_partial_results_are_the_same_at_any_speed(
    desk: Desk, client: Client, worker: Worker, pause: float
) -> None:
    @worker.task("a")
    def run(task: Task) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [
            {"stats": {"a": 1}, "old": {"x": 1}, "gone": 1},
            {"stats": {"b": 2}, "old": None, "gone": None},
            {"old": {"y": 2}, "list": [1]},
        ]
        for step in steps:
            task.progress(1, result=step)
            time.sleep(pause)
        return {"stats": {"c": 3}, "list": {"z": None, "k": 1}}

    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert client.result(desk.workspace_id, job.job_id) == {
        "stats": {"a": 1, "b": 2, "c": 3},
        "old": {"y": 2},
        "list": {"k": 1},
    }


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"x": value}
    return value


GOOD_PROGRESS: list[Any] = [
    (0, None, None),
    (100.0, "x" * 2000, {}),
    (True + 1, "\u2028", {"progress_percent": 7, "progress_message": None}),
    (50, "", {"x": 2**63 - 1, "y": -(2**63) + 1, "z": "\\u0000", "n": None}),
    (50, None, deep(61)),
    (50, None, {"x": "\u00e9" * 500_000}),
]


@pytest.mark.parametrize("progress", GOOD_PROGRESS, ids=range(len(GOOD_PROGRESS)))
def test_progress_that_is_well_is_accepted_by_the_service(
    desk: Desk,
    client: Client,
    worker: Worker,
    caplog: pytest.LogCaptureFixture,
    progress: Any,
) -> None:
    percent, message, result = progress

    @worker.task("a")
    def run(task: Task) -> None:
        task.progress(percent, message, result=result)

    job = client.create(desk.workspace_id, "a")
    worker.run(until_idle=True)
    assert client.get(desk.workspace_id, job.job_id).status == "success"
    assert "refused" not in caplog.text


@pytest.mark.parametrize(
    ("percent", "message", "result"),
    [
        (33.3, None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (-1, None, None),
        (101, None, None),
        (100.5, None, None),
        ("50", None, None),
        (True, None, None),
        (None, None, None),
        (1, "x" * 2001, None),
        (1, "a\0b", None),
        (1, "\ud800", None),
        (1, 17, None),
        (1, None, [1]),
        (1, None, {"x": "a\0b"}),
        (1, None, {"a\0b": 1}),
        (1, None, {"x": 2**63}),
        (1, None, {"x": [-(2**64)]}),
        (1, None, deep(62)),
        (1, None, deep(5000)),
        (1, None, {"x": "y" * 1_100_000}),
        (1, None, {"progress_percent": 33.3}),
        (1, None, {"progress_message": "x" * 2001}),
    ],
)
def test_progress_that_the_service_would_refuse_raises(
    percent: Any, message: Any, result: Any
) -> None:
    task = Task(ClaimedJob.from_json({"job_id": "job_x", "lease_token": "t", "begun": True}))
    with pytest.raises((TypeError, ValueError)):
        task.progress(percent, message, result=result)
    assert task.take_reports() == []


def test_worker_of_a_thousand_types_does_their_jobs(
    desk: Desk, client: Client, worker: Worker
) -> None:
    for number in range(1000):
        worker.task(f"t{number}")(lambda task: None)
    types = [f"t{number}" for number in range(0, 1000, 9)]
    client.create_many(desk.workspace_id, [{"job_type": each} for each in types])
    would = client.operate(desk.workspace_id, "cancel", dry_run=True, job_type=sorted(worker.tasks))
    assert would.matched == len(types)
    worker.run(until_idle=True)
    assert sum(1 for _ in client.jobs(desk.workspace_id, status="success")) == len(types)


def test_worker_with_too_many_job_types_is_refused(desk: Desk, worker: Worker) -> None:
    for number in range(1001):
        worker.task(f"t{number}")(lambda task: None)
    with pytest.raises(ValueError, match="1001 tasks; a claim takes at most 1000"):
        worker.run()


def test_run_until_idle_with_a_service_that_is_away_raises(desk: Desk, worker: Worker) -> None:
    worker.timing = Timing(outage=1)
    worker.task("a")(lambda task: None)
    worker.client = Client("http://127.0.0.1:9", token="x")
    with pytest.raises(Unreachable):
        worker.run(until_idle=True)


def test_idle_worker_claims_less_and_less_often(
    desk: Desk, client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [None] * 6 + [7.0, 1000.0]
    rests: list[float] = []

    def claim(*arguments: Any, **kw: Any) -> ClaimedJobs:
        if len(answers) == 1:
            worker.stop()
        return ClaimedJobs([], retry_after=answers.pop(0))

    client.claim = claim
    monkeypatch.setattr(claiming.Claimer, "_sleep", lambda self, seconds: rests.append(seconds))
    worker.task("a")(lambda task: None)
    worker.run()
    middles = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 7.0, 60.0]
    for rest, middle in zip(rests, middles, strict=True):
        assert 0.75 * middle <= rest <= 1.25 * middle


def test_stop_finishes_what_runs_and_hands_back_the_rest(
    desk: Desk, client: Client, worker: Worker
) -> None:
    began = threading.Event()

    @worker.task("a")
    def run(task: Task) -> dict[str, Any]:
        began.set()
        time.sleep(0.5)
        return {"ok": 1}

    worker.concurrency = 2
    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 10)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert began.wait(10)
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()
    states = [job.status for job in client.jobs(desk.workspace_id)]
    assert states.count("running") == 0
    assert 1 <= states.count("success") <= 4
    assert states.count("pending") == 10 - states.count("success")


def test_stop_hands_back_what_takes_too_long(desk: Desk, client: Client, worker: Worker) -> None:
    began, end = threading.Event(), threading.Event()

    @worker.task("a")
    def run(task: Task) -> None:
        began.set()
        end.wait(20)

    worker.grace_seconds = 0.2
    job = client.create(desk.workspace_id, "a")
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert began.wait(10)
    worker.stop()
    thread.join(20)
    end.set()
    assert client.get(desk.workspace_id, job.job_id).status == "pending"
    assert [a.outcome for a in client.attempts(desk.workspace_id, job.job_id)] == ["released"]


def test_stop_with_a_task_that_lost_its_job_does_not_wait(
    desk: Desk, client: Client, worker: Worker
) -> None:
    lost, end = threading.Event(), threading.Event()

    @worker.task("a")
    def run(task: Task) -> None:
        client.cancel(desk.workspace_id, task.job_id)
        while not task.cancelled:
            task.progress(1)
            time.sleep(0.05)
        lost.set()
        end.wait(20)

    worker.grace_seconds = 0.2
    job = client.create(desk.workspace_id, "a")
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert lost.wait(10)
    began = time.monotonic()
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - began < 8
    end.set()
    assert client.get(desk.workspace_id, job.job_id).status == "cancelled"


def test_worker_whose_key_was_revoked_ends_with_the_error(
    desk: Desk, client: Client, worker: Worker
) -> None:
    worker.task("a")(lambda task: None)
    client._token = "jk_wrong"
    with pytest.raises(TokenRevoked):
        worker.run()


def test_worker_that_cannot_work_says_why(desk: Desk, client: Client, worker: Worker) -> None:
    with pytest.raises(ValueError, match="no task"):
        worker.run()
    worker.task("a")(lambda task: None)
    with pytest.raises(ValueError, match="already"):
        worker.task("a")(lambda task: None)
    with pytest.raises(ValueError, match="client"):
        Worker().run()
