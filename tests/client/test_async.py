"""``async def`` tasks: many at once on one event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from jobapi.client import Client, Permanent, Task, Worker
from jobapi.client.options import Timing

from ..factories import Desk, until


@pytest.fixture
def worker(desk: Desk, client: Client) -> Worker:
    return Worker(client, desk.workspace_id, name="w")


class Running:
    """A worker in a thread; ``stop`` ends it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.thread = threading.Thread(target=worker.run)
        self.thread.start()

    def stop(self) -> None:
        self.worker.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_hundreds_run_at_once_in_one_thread(desk: Desk, client: Client, worker: Worker) -> None:
    worker.concurrency = 250
    running: list[str] = []
    threads = set()
    all_run = asyncio.Event()

    @worker.task("a")
    async def run(task: Task) -> dict[str, Any]:
        threads.add(threading.get_ident())
        running.append(task.job_id)
        if len(running) == 250:
            all_run.set()
        await all_run.wait()
        return {"attempt": task.attempt}

    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 250)
    worker.run(until_idle=True)
    assert len(set(running)) == len(running) == 250
    assert len(threads) == 1
    ended = list(client.jobs(desk.workspace_id, status="success"))
    assert [job.result for job in ended] == [{"attempt": 1}] * 250


def test_no_more_run_at_once_than_the_concurrency(
    desk: Desk, client: Client, worker: Worker
) -> None:
    worker.concurrency = 3
    now, most = 0, 0

    @worker.task("a")
    async def run(task: Task) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1

    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 30)
    worker.run(until_idle=True)
    assert most == 3
    assert len(list(client.jobs(desk.workspace_id, status="success"))) == 30


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (LookupError("no file"), "pending", "LookupError: no file"),
        (Permanent("never"), "failed", "Permanent: never"),
        (asyncio.CancelledError(), "pending", "CancelledError"),
        (SystemExit(3), "pending", "SystemExit: 3"),
    ],
)
def test_exception_ends_the_attempt_and_not_the_loop(
    desk: Desk, client: Client, worker: Worker, error: BaseException, status: str, text: str
) -> None:
    @worker.task("a")
    async def run(task: Task) -> None:
        raise error

    @worker.task("b")
    async def other(task: Task) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"ok": True}

    failing = client.create(desk.workspace_id, "a", priority="high")
    client.create(desk.workspace_id, "b")
    worker.run(until_idle=True)
    job = client.get(desk.workspace_id, failing.job_id)
    assert job.status == status
    assert text in (job.error or "")
    (good,) = client.jobs(desk.workspace_id, status="success")
    assert good.result == {"ok": True}


def test_cancel_cancels_the_coroutine(desk: Desk, client: Client, worker: Worker) -> None:
    worker.timing = Timing(heartbeat=0.2)
    cleaned = []
    started = threading.Event()

    @worker.task("a")
    async def run(task: Task) -> None:
        task.progress(10)
        started.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(task.cancelled)

    job = client.create(desk.workspace_id, "a")
    running = Running(worker)
    assert started.wait(10)
    client.cancel(desk.workspace_id, job.job_id)
    assert until(lambda: cleaned == [True])
    # Its slot is free again.
    second = client.create(desk.workspace_id, "a")
    until(lambda: client.status(desk.workspace_id, second.job_id).status == "running")
    client.cancel(desk.workspace_id, second.job_id)
    assert until(lambda: cleaned == [True, True])
    running.stop()
    assert client.get(desk.workspace_id, job.job_id).status == "cancelled"


def test_plain_functions_run_beside_it(desk: Desk, client: Client, worker: Worker) -> None:
    worker.concurrency = 4
    meeting = threading.Event()

    @worker.task("plain")
    def plain(task: Task) -> dict[str, Any]:
        return {"met": meeting.wait(20)}

    @worker.task("async")
    async def meet(task: Task) -> dict[str, Any]:
        meeting.set()
        return {"met": True}

    client.create_many(desk.workspace_id, [{"job_type": "plain"}] * 3 + [{"job_type": "async"}])
    worker.run(until_idle=True)
    assert [job.result for job in client.jobs(desk.workspace_id)] == [{"met": True}] * 4


def test_stop_cancels_and_releases_tasks_that_do_not_end(
    desk: Desk, client: Client, worker: Worker
) -> None:
    worker.concurrency, worker.grace_seconds = 2, 1
    cancelled = []
    started = []

    @worker.task("long")
    async def long(task: Task) -> None:
        started.append(1)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append(task.job_id)
            raise

    @worker.task("short")
    async def short(task: Task) -> dict[str, Any]:
        started.append(1)
        await asyncio.sleep(0.4)
        return {"done": True}

    long_job = client.create(desk.workspace_id, "long")
    short_job = client.create(desk.workspace_id, "short")
    running = Running(worker)
    until(lambda: len(started) == 2)
    running.stop()
    assert client.result(desk.workspace_id, short_job.job_id) == {"done": True}
    released = client.get(desk.workspace_id, long_job.job_id)
    assert (released.status, released.retry_count) == ("pending", 0)
    assert until(lambda: cancelled == [long_job.job_id])


def test_loop_that_a_task_blocks_keeps_the_leases(
    desk: Desk, client: Client, worker: Worker
) -> None:
    import time

    worker.concurrency, worker.timing = 2, Timing(heartbeat=0.1)
    beats = []
    report = client.report

    def count(workspace_id: int, reports: Any) -> Any:
        beats.append(time.monotonic())
        return report(workspace_id, reports)

    client.report = count

    @worker.task("a")
    async def run(task: Task) -> None:
        time.sleep(0.8)

    client.create_many(desk.workspace_id, [{"job_type": "a"}] * 2)
    worker.run(until_idle=True)
    # Without heartbeats there are the reports of the two ends.
    assert len(beats) > 3
    assert len(list(client.jobs(desk.workspace_id, status="success"))) == 2


@pytest.mark.parametrize("job_type", ["async", "plain"])
def test_end_that_cannot_be_recorded_frees_the_slot(
    desk: Desk, client: Client, worker: Worker, job_type: str
) -> None:
    worker.concurrency = 1

    def spoil(task: Task) -> None:
        def fail(*_: Any) -> Any:
            raise RuntimeError("spoilt")

        if task.metadata["spoilt"]:
            task.take_reports = fail

    @worker.task("async")
    async def run(task: Task) -> None:
        spoil(task)

    worker.task("plain")(spoil)
    spoilt = client.create(desk.workspace_id, job_type, metadata={"spoilt": True}, max_retries=0)
    for name in ("async", "plain"):
        client.create(desk.workspace_id, name, metadata={"spoilt": False})
    worker.run(until_idle=True)
    ended = client.get(desk.workspace_id, spoilt.job_id)
    assert (ended.status, "spoilt" in (ended.error or "")) == ("failed", True)
    assert len(list(client.jobs(desk.workspace_id, status="success"))) == 2


def test_exception_that_cannot_be_shown_fails_its_job(
    desk: Desk, client: Client, worker: Worker
) -> None:
    class Shy(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise RuntimeError("no notes")

    worker.task("a")(lambda task: (_ for _ in ()).throw(Shy()))
    job = client.create(desk.workspace_id, "a", max_retries=0)
    worker.run(until_idle=True)
    assert "Shy" in (client.get(desk.workspace_id, job.job_id).error or "")
