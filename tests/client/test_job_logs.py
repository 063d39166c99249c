"""Job logs in Python: tasks that log, loggers that are captured, and what the client reads."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from jobapi.client import Client, LogEntry, Task, Worker
from jobapi.client.capture import capturing
from jobapi.client.log_buffer import LogBuffer
from jobapi.errors import JobNotRunning, LeaseRequired
from jobapi.rules.job_logs import CUT, KEPT_BYTES, KEPT_ENTRIES

from ..factories import Desk, until
from .stage import Stage, wait_for_end

logger = logging.getLogger("team.images")


@pytest.fixture
def worker(desk: Desk, client: Client) -> Worker:
    return Worker(client, desk.workspace_id, name="w", capture_logs=True)


def run(desk: Desk, client: Client, worker: Worker, task: Any, **job: Any) -> list[LogEntry]:
    """The log of a job after the worker has run its task."""
    worker.task("a")(task)
    made = client.create(desk.workspace_id, "a", **job)
    worker.run(until_idle=True)
    return list(client.logs(desk.workspace_id, made.job_id))


def texts(entries: list[LogEntry]) -> list[tuple[str, str]]:
    return [(entry.level, entry.message) for entry in entries]


def test_task_logs_into_its_job(desk: Desk, client: Client, worker: Worker) -> None:
    def task(job: Task) -> dict[str, Any]:
        job.log("one")
        job.progress(50)
        job.log("two\nlines \0\ud800", "debug")
        job.log("three", level="error", at=1_700_000_000.25)
        job.log("é" * 9000)
        return {"done": True}

    entries = run(desk, client, worker, task)
    assert texts(entries[:3]) == [
        ("info", "one"),
        ("debug", "two\nlines \ufffd\ufffd"),
        ("error", "three"),
    ]
    assert entries[2].at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert entries[3].message.endswith(CUT)
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]
    assert (datetime.now(UTC) - entries[0].at).total_seconds() < 60


@pytest.mark.parametrize(
    ("arguments", "at", "error"),
    [
        ((5,), None, TypeError),
        (("x", "loud"), None, ValueError),
        (("x", "critical"), None, ValueError),
        (("x",), "2024-01-15T10:00:00Z", TypeError),
        *((("x",), at, ValueError) for at in (math.nan, math.inf, 1e30, -1e11, -62135596800)),
    ],
)
def test_wrong_entry_is_refused_in_the_task(
    desk: Desk, client: Client, worker: Worker, arguments: Any, at: Any, error: Any
) -> None:
    def task(job: Task) -> None:
        job.log("right")
        with pytest.raises(error):
            job.log(*arguments, at=at)

    assert [entry.message for entry in run(desk, client, worker, task)] == ["right"]
    assert [job.status for job in client.jobs(desk.workspace_id)] == ["success"]


def test_many_entries_at_once_all_arrive_in_order(
    desk: Desk, client: Client, worker: Worker
) -> None:
    def task(job: Task) -> None:
        for n in range(KEPT_ENTRIES):
            job.log(f"{n} {'x' * 200}")
            if n == KEPT_ENTRIES // 2:
                time.sleep(0.6)

    entries = run(desk, client, worker, task)
    assert [int(entry.message.split()[0]) for entry in entries] == list(range(KEPT_ENTRIES))


def test_entries_are_sent_while_the_task_runs(desk: Desk, client: Client, worker: Worker) -> None:
    def task(job: Task) -> None:
        job.log("first")
        until(lambda: list(client.logs(desk.workspace_id, job.job_id)), 10)
        job.log("second")

    entries = run(desk, client, worker, task)
    assert [entry.message for entry in entries] == ["first", "second"]


def test_failed_attempt_keeps_its_log(desk: Desk, client: Client, worker: Worker) -> None:
    def task(job: Task) -> None:
        job.log(f"attempt {job.attempt}")
        raise LookupError

    entries = run(desk, client, worker, task, max_retries=0)
    assert [entry.message for entry in entries] == ["attempt 1"]


def test_entries_survive_an_outage_in_order_and_once(desk: Desk, client: Client) -> None:
    class Lossy(httpx2.WSGITransport):
        """Every other report is carried out without an answer, and every third not at all."""

        reports = 0

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if not request.url.path.endswith("/report"):
                return super().handle_request(request)
            self.reports += 1
            if self.reports % 3 == 0:
                raise httpx2.ConnectError("no way")
            response = super().handle_request(request)
            if self.reports % 2 == 0:
                raise httpx2.ReadError("lost")
            return response

    transport = Lossy(app=desk.world.app)
    with Client("http://service", token=desk.token, transport=transport, retries=0) as lossy:
        worker = Worker(lossy, desk.workspace_id)

        def task(job: Task) -> None:
            for n in range(2000):
                job.log(f"{n} {'x' * 300}")
                if n % 400 == 0:
                    time.sleep(0.3)

        entries = run(desk, lossy, worker, task)
    assert [int(entry.message.split()[0]) for entry in entries] == list(range(2000))


def test_buffer_drops_the_oldest_entries_and_says_so() -> None:
    buffer = LogBuffer()
    for n in range(KEPT_ENTRIES + 5):
        buffer.add(f"{n}", "info", float(n))
    reports = buffer.take()
    entries = [entry for report in reports for entry in loaded(report)]
    assert len(entries) == KEPT_ENTRIES + 1
    assert entries[0]["message"].startswith("5 log entries were dropped")
    assert (entries[0]["level"], entries[1]["message"]) == ("warning", "5")
    assert [entry["seq"] for entry in entries] == list(range(1, KEPT_ENTRIES + 2))
    assert max(len(loaded(report)) for report in reports) == 500
    assert buffer.take() == []
    for _ in range(2 * KEPT_BYTES // 8000):
        buffer.add("x" * 8000, "info")
    assert sum(len(loaded(report)) for report in buffer.take()) <= KEPT_BYTES // 8000 + 1


def loaded(report: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = orjson.loads(orjson.dumps(report))["logs"]
    return found


def test_loggers_of_a_task_are_captured_with_their_levels(
    desk: Desk, client: Client, worker: Worker
) -> None:
    def task(job: Task) -> None:
        logging.getLogger("quiet").setLevel(logging.ERROR)
        logging.getLogger("loud").setLevel(logging.DEBUG)
        logger.debug("not at this level")
        logger.info("read %d rows", 5)
        logger.warning("careful")
        logger.critical("worst")
        logging.getLogger("quiet").warning("no")
        logging.getLogger("loud").debug("detail")
        try:
            raise LookupError("no file")
        except LookupError:
            logger.exception("failed")
        job.log("own")
        for name in ("jobapi.worker", "jobapi", "httpx2", "httpx", "httpcore.connection"):
            logging.getLogger(name).error("not the task's own")

    *entries, own = texts(run(desk, client, worker, task))
    assert entries[:4] == [
        ("info", "read 5 rows"),
        ("warning", "careful"),
        ("error", "worst"),
        ("debug", "detail"),
    ]
    level, text = entries[4]
    assert level == "error"
    assert text.startswith("failed\nTraceback")
    assert text.endswith("LookupError: no file")
    assert len(entries) == 5
    assert own == ("info", "own")


def test_worker_captures_only_if_it_is_asked_to(desk: Desk, client: Client) -> None:
    def task(job: Task) -> None:
        logger.warning("x")

    assert run(desk, client, Worker(client, desk.workspace_id), task) == []


def test_each_thread_logs_into_its_own_job(desk: Desk, client: Client, worker: Worker) -> None:
    worker.concurrency = 4
    together = threading.Barrier(4)

    @worker.task("a")
    def task(job: Task) -> None:
        together.wait(20)
        for _ in range(50):
            logger.info("%s", job.job_id)

    jobs = client.create_many(desk.workspace_id, [{"job_type": "a"}] * 4)
    worker.run(until_idle=True)
    for job in jobs:
        messages = [entry.message for entry in client.logs(desk.workspace_id, job.job_id)]
        assert messages == [job.job_id] * 50


def test_each_coroutine_logs_into_its_own_job(desk: Desk, client: Client, worker: Worker) -> None:
    worker.concurrency = 10

    @worker.task("a")
    async def task(job: Task) -> None:
        for _ in range(5):
            logger.info("%s", job.job_id)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(logger.info, "%s", job.job_id)

    jobs = client.create_many(desk.workspace_id, [{"job_type": "a"}] * 10)
    worker.run(until_idle=True)
    for job in jobs:
        messages = [entry.message for entry in client.logs(desk.workspace_id, job.job_id)]
        assert messages == [job.job_id] * 6


def test_logging_outside_of_a_task_is_not_captured_and_prints_no_more(
    desk: Desk, client: Client, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    def task(job: Task) -> None:
        thread = threading.Thread(target=lambda: logger.warning("from another thread"))
        thread.start()
        thread.join()
        logger.info("not printed")

    # The handlers that are there get what they got before.
    entries = run(desk, client, worker, task)
    assert texts(entries) == [("info", "not printed")]
    assert "from another thread" in caplog.messages
    assert "not printed" not in caplog.messages


def test_capturing_twice_adds_each_entry_once_and_leaves_logging_as_it_was() -> None:
    root = logging.getLogger()

    def now() -> Any:
        return root.level, list(root.handlers), [list(each.filters) for each in root.handlers]

    before = now()
    with capturing():
        with capturing(), capturing(False):
            assert len(root.handlers) == len(before[1]) + 1
        assert root.level == logging.INFO
        assert len(root.handlers) == len(before[1]) + 1
    assert now() == before


def test_capturing_keeps_a_level_that_was_set(desk: Desk, client: Client, worker: Worker) -> None:
    def task(job: Task) -> None:
        logger.warning("no")
        logger.error("yes")

    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        assert texts(run(desk, client, worker, task)) == [("error", "yes")]
    finally:
        logging.root.setLevel(before)


def test_logger_that_does_not_propagate_is_captured(
    desk: Desk, client: Client, worker: Worker
) -> None:
    apart = logging.getLogger("apart")
    apart.propagate = False
    apart.setLevel(logging.INFO)

    def task(job: Task) -> None:
        apart.info("x")
        apart.getChild("child").info("y")

    try:
        assert texts(run(desk, client, worker, task)) == [("info", "x"), ("info", "y")]
    finally:
        apart.propagate = True


def test_executor_of_threads_captures(desk: Desk, client: Client, worker: Worker) -> None:
    with ThreadPoolExecutor(2) as executor:
        worker.executor = executor

        def task(job: Task) -> None:
            job.log("own")
            logger.info("captured")

        assert texts(run(desk, client, worker, task)) == [("info", "own"), ("info", "captured")]


TASKS = """
import logging, os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jobapi.client import Worker

logger = logging.getLogger("tasks")

def make():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))

worker = Worker(executor=make if os.environ.get("ENGINE") else None, concurrency=2, lease_seconds=5)

@worker.task("a")
def a(job):
    logger.info("info of %s", job.job_id)
    job.log("own", level="warning")
    if os.fork() == 0:
        logger.error("a forked child has no job")
        os._exit(0)
    os.wait()
    return {"pid": os.getpid()}
"""


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("how", ["executor", "processes"])
def test_tasks_in_other_processes_are_captured(
    service_env: dict[str, str], tmp_path: Path, how: str
) -> None:
    stage = Stage(tmp_path, service_env, TASKS)
    try:
        options = ["--processes"] if how == "processes" else []
        env = {"ENGINE": "pool"} if how == "executor" else {}
        stage.start_worker("--capture-logs", "--concurrency", "2", *options, **env)
        jobs = stage.client.create_many(1, [{"job_type": "a"}] * 5)
        wait_for_end(stage.client)
        for job in jobs:
            entries = list(stage.client.logs(1, job.job_id))
            assert texts(entries) == [
                ("info", f"info of {job.job_id}"),
                ("warning", "own"),
            ], (stage.folder / "errors").read_text()
    finally:
        stage.close()


def test_client_appends_and_reads(desk: Desk, client: Client) -> None:
    job = client.create(desk.workspace_id, "a")
    with pytest.raises(JobNotRunning):
        client.append_logs(desk.workspace_id, job.job_id, [{"message": "x"}])
    (claimed,) = client.claim(desk.workspace_id)
    with pytest.raises(LeaseRequired):
        client.append_logs(desk.workspace_id, job.job_id, [{"message": "x"}])
    at = datetime(2024, 1, 15, 10, tzinfo=UTC)
    entries: list[Any] = [
        {"message": f"{n} \ud800" + "x" * 9000 * (n % 3), "level": "error", "at": at, "seq": n}
        for n in range(600)
    ]
    token = claimed.lease_token
    ids = (desk.workspace_id, job.job_id)
    assert client.append_logs(*ids, entries, lease_token=token) == 600
    assert client.append_logs(*ids, entries, lease_token=token) == 0
    assert client.append_logs(*ids, [{"message": "last"}], lease_token=token) == 1
    assert client.append_logs(*ids, [], lease_token=token) == 0
    found = list(client.logs(*ids, page_size=100))
    assert [entry.seq for entry in found] == [*range(600), None]
    assert found[0] == LogEntry(
        number=1, attempt=1, at=at, level="error", message="0 \ufffd", seq=0
    )
    assert next(client.logs(*ids, level="info", order="desc")).message == "last"
    assert len(list(client.logs(*ids, level="error"))) == 600
    assert list(client.logs(*ids, attempt=2)) == []


def test_follow_logs_yields_new_entries_until_the_job_ends(desk: Desk, client: Client) -> None:
    job = client.create(desk.workspace_id, "a")
    ids = (desk.workspace_id, job.job_id)
    found = client.follow_logs(*ids, poll_seconds=0.05)
    (claimed,) = client.claim(desk.workspace_id)
    report = {"job_id": job.job_id, "lease_token": claimed.lease_token}
    client.append_logs(*ids, [{"message": "a"}, {"message": "b"}], lease_token=claimed.lease_token)
    assert [next(found).message for _ in range(2)] == ["a", "b"]

    def later() -> None:
        time.sleep(0.2)
        client.report(desk.workspace_id, [{**report, "logs": [{"message": "c"}]}])
        time.sleep(0.2)
        end = {**report, "status": "success", "logs": [{"message": "d"}]}
        client.report(desk.workspace_id, [end])

    thread = threading.Thread(target=later)
    thread.start()
    assert [entry.message for entry in found] == ["c", "d"]
    thread.join()


WRITER = """
import sys
from jobapi.client import Client
url, token, job_id, lease_token, name = sys.argv[1:]
client = Client(url, token=token)
for n in range(20):
    entries = [{"message": f"{name} {n} {m}"} for m in range(50)]
    assert client.append_logs(1, job_id, entries, lease_token=lease_token) == 50
"""


def test_two_processes_append_to_one_log_at_once(
    service_env: dict[str, str], tmp_path: Path
) -> None:
    stage = Stage(tmp_path, service_env, WRITER)
    try:
        stage.client.create(1, "a")
        (job,) = stage.client.claim(1)
        given = (stage.service.url, stage.token, job.job_id, job.lease_token)
        writers = [stage.start("tasks.py", *given, name) for name in "ab"]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        found = list(stage.client.logs(1, job.job_id))
        assert [entry.number for entry in found] == list(range(1, 2001))
        for name in "ab":
            own = [entry.message for entry in found if entry.message.startswith(name)]
            assert own == [f"{name} {n} {m}" for n in range(20) for m in range(50)]
    finally:
        stage.close()
