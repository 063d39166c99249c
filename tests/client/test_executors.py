"""Tasks in an executor: a process pool and Dask, for real."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest

from jobapi.client import Client, Job, Task, Worker
from jobapi.client.commands.base import error_messages
from jobapi.client.models import ClaimedJob
from jobapi.client.runs import ExecutorClosed, Refusal, Run

from ..factories import Desk, until
from .stage import Stage, wait_for_end

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)

TASKS = """
import asyncio, os, signal, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jobapi.client import Permanent, Worker

def make():
    if os.environ.get("ENGINE") == "dask":
        from distributed import Client
        return Client(os.environ["SCHEDULER"]).get_executor()
    return ProcessPoolExecutor(2, mp_context=get_context(os.environ.get("ENGINE", "spawn")))

worker = Worker(executor=make, concurrency=6, lease_seconds=5, grace_seconds=4)
log = os.open(os.path.join(os.path.dirname(__file__), "ran"),
              os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(job):
    os.write(log, f"{job.job_id} {job.attempt}\\n".encode())

@worker.task("a")
def a(job):
    note(job)
    time.sleep(job.metadata.get("seconds", 0))
    return {"attempt": job.attempt, "pid": os.getpid()}

@worker.task("fails")
def fails(job):
    raise LookupError("no file") if not job.metadata else Permanent("never")

@worker.task("long")
def long(job):
    note(job)
    job.progress(25, "a quarter", result={"part": 1})
    while not job.cancelled:
        time.sleep(0.05)
    os.write(log, f"{job.job_id} cancelled\\n".encode())

@worker.task("dies")
def dies(job):
    note(job)
    os.kill(os.getpid(), signal.SIGKILL)

@worker.task("async")
async def in_the_loop(job):
    await asyncio.sleep(0)
    return {"attempt": job.attempt, "pid": os.getpid()}

worker.task("unpicklable")(lambda job, lock=threading.Lock(): None)
"""

SCHEDULER = """
import sys, time
from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None)
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(cluster.scheduler_address)
    import os
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(600)
"""


@pytest.fixture
def database() -> str:
    """Only one database: differences between the two are tested without an engine."""
    return "postgresql"


@pytest.fixture
def stage(service_env: dict[str, str], tmp_path: Path) -> Any:
    stage = Stage(tmp_path, {**service_env, "JOBAPI_RETRY_BACKOFF_SECONDS": "1"}, TASKS)
    yield stage
    stage.close()


@pytest.fixture(params=["spawn", "dask"])
def engine(request: Any, stage: Stage) -> dict[str, str]:
    """The environment of a worker with this kind of executor."""
    if request.param != "dask":
        return {"ENGINE": request.param}
    return {"ENGINE": "dask", "SCHEDULER": start_dask(stage)}


def start_dask(stage: Stage) -> str:
    script, address = stage.folder / "cluster.py", stage.folder / "address"
    script.write_text(SCHEDULER)
    stage.start(script, address)
    until(address.exists, 60)
    return address.read_text()


def test_jobs_run_there_and_report_from_there(stage: Stage, engine: dict[str, str]) -> None:
    client = stage.client
    many = client.create_many(1, [{"job_type": "a"}] * 40 + [{"job_type": "async"}] * 3)
    failing = client.create(1, "fails", max_retries=0)
    permanent = client.create(1, "fails", metadata={"never": True})
    broken = client.create(1, "unpicklable", max_retries=0)
    process = stage.start_worker("--until-idle", **engine)
    assert process.wait(90) == 0
    ended = {job.job_id: job for job in client.jobs(1)}
    results = [ended[job.job_id].result or {} for job in many]
    assert [result["attempt"] for result in results] == [1] * 43
    there = {result["pid"] for result in results[:40]}
    assert process.pid not in there
    assert {result["pid"] for result in results[40:]} == {process.pid}
    assert len(set(stage.ran())) == len(stage.ran()) == 40
    assert "LookupError: no file" in (ended[failing.job_id].error or "")
    assert [ended[each.job_id].status for each in (failing, permanent)] == ["failed"] * 2
    assert ended[permanent.job_id].retry_count == 0
    assert (ended[broken.job_id].status, ended[broken.job_id].retry_count) == ("failed", 0)


def test_cancel_and_progress_work_from_inside(stage: Stage, engine: dict[str, str]) -> None:
    client = stage.client
    job = client.create(1, "long")
    stage.start_worker(**engine)
    until(lambda: client.status(1, job.job_id).progress_percent == 25, 30)
    # Longer than the lease: the run renews it.
    time.sleep(6)
    now = client.get(1, job.job_id)
    assert (now.status, now.retry_count) == ("running", 0)
    assert now.result == {"progress_percent": 25, "progress_message": "a quarter", "part": 1}
    client.cancel(1, job.job_id)
    until(lambda: f"{job.job_id} cancelled" in stage.ran(), 10)
    assert client.get(1, job.job_id).status == "cancelled"


def test_process_that_is_killed_costs_a_retry_of_its_own_job_only(
    stage: Stage, engine: dict[str, str]
) -> None:
    client = stage.client
    poison = client.create(1, "dies", max_retries=1, priority="high")
    others = client.create_many(1, [{"job_type": "a", "max_retries": 0}] * 12)
    for _ in range(8):
        # The pool breaks with its process: the worker ends with an error, and is started again.
        process = stage.start_worker("--until-idle", **engine)
        if process.wait(90) == 0 and not list(client.jobs(1, status=["pending", "running"])):
            break
        time.sleep(1)
    ended = client.get(1, poison.job_id)
    assert (ended.status, ended.retry_count) == ("failed", 1)
    ran = stage.ran()
    assert ran.count(f"{poison.job_id} 1") == 1
    assert len(set(ran)) == len(ran)
    survivors = [client.get(1, job.job_id) for job in others]
    done = [job for job in survivors if job.status == "success"]
    # Each time it may have taken another run with it: of two processes, or two threads.
    taken_along = [job for job in survivors if job.status == "failed"]
    assert len(taken_along) <= 2
    assert len(done) + len(taken_along) == 12


def test_worker_that_is_killed_loses_no_job(stage: Stage, engine: dict[str, str]) -> None:
    client = stage.client
    made = client.create_many(1, [{"job_type": "a", "metadata": {"seconds": 0.3}}] * 30)
    first = stage.start_worker(**engine)
    until(lambda: len(list(client.jobs(1, status="success"))) > 3, 30)
    os.killpg(first.pid, signal.SIGKILL)
    stage.start_worker(**engine)
    wait_for_end(client)
    assert {job.status for job in client.jobs(1)} == {"success"}
    ran = stage.ran()
    assert len(set(ran)) == len(ran), "an attempt ran twice"
    assert {line.split()[0] for line in ran} == {job.job_id for job in made}


def test_kill_dask_workers_and_dispatchers_loses_no_job(stage: Stage) -> None:
    print(f"again with: CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS}", file=sys.stderr)
    client, chance = stage.client, random.Random(SEED)
    environment = {"ENGINE": "dask", "SCHEDULER": start_dask(stage)}
    dispatcher = stage.start_worker(**environment)
    made, kills = [], Counter[str]()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        item = {"job_type": "a", "max_retries": 100, "metadata": {"seconds": 0.2}}
        made += client.create_many(1, [item] * 10)
        time.sleep(chance.uniform(0.5, 2))
        victim = chance.choice(["dask", "dispatcher"])
        kills[victim] += 1
        if victim == "dispatcher":
            os.killpg(dispatcher.pid, signal.SIGKILL)
            dispatcher = stage.start_worker(**environment)
        else:
            # The cluster's nanny starts another one.
            workers = re.findall(r"^(\d+) .*spawn_main", processes(), re.M)
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(chance.choice(workers)), signal.SIGKILL)
    wait_for_end(client)
    ran = Counter(stage.ran())
    assert max(ran.values()) == 1, "an attempt ran twice"
    assert {client.get(1, job.job_id).status for job in made} == {"success"}, kills


def processes() -> str:
    """The processes of this test's cluster: its process group has the cluster's script."""
    listed = subprocess.check_output(["ps", "-eo", "pid,pgid,args"], text=True)
    groups = re.findall(r"^ *\d+ +(\d+) .*cluster\.py", listed, re.M)
    rows = re.findall(r"^ *(\d+) +(\d+) (.*)$", listed, re.M)
    return "\n".join(f"{pid} {args}" for pid, group, args in rows if group in groups)


def test_stop_lets_what_has_begun_end(stage: Stage, engine: dict[str, str]) -> None:
    client = stage.client
    made = client.create_many(1, [{"job_type": "a", "metadata": {"seconds": 2}}] * 8)
    process = stage.start_worker(**engine)
    until(stage.ran, 30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    # Dask's workers go on, and report by themselves.
    until(lambda: not list(client.jobs(1, status="running")), 20)
    jobs = list(client.jobs(1))
    ran = {line.split()[0] for line in stage.ran()}
    assert {job.job_id for job in jobs if job.status == "success"} == ran
    assert {job.retry_count for job in jobs} == {0}
    assert {job.status for job in jobs if job.job_id not in ran} == {"pending"}
    assert len(made) > len(ran) > 0


# Against the application itself


def claimed(client: Client, workspace_id: int) -> tuple[Job, ClaimedJob]:
    job = client.create(workspace_id, "a")
    (leased,) = client.claim(workspace_id, begin=False, lease_seconds=5)
    return job, leased


def test_second_run_of_a_lease_is_refused(desk: Desk, client: Client) -> None:
    job, leased = claimed(client, desk.workspace_id)
    first, second = (Run(client, desk.workspace_id, leased, lease_seconds=5) for _ in range(2))
    assert first.begin() is None
    assert second.begin() is Refusal.ALREADY_BEGUN
    first.end([{"status": "success", "result": {"by": 1}}])
    third = Run(client, desk.workspace_id, leased, lease_seconds=5)
    assert third.begin() is Refusal.LEASE_LOST
    assert client.result(desk.workspace_id, job.job_id) == {"by": 1}


def test_run_of_a_cancelled_job_is_refused(desk: Desk, client: Client) -> None:
    job, leased = claimed(client, desk.workspace_id)
    client.cancel(desk.workspace_id, job.job_id)
    run = Run(client, desk.workspace_id, leased, lease_seconds=5)
    assert run.begin() is Refusal.LEASE_LOST


def test_run_that_loses_its_lease_is_notified(desk: Desk, client: Client) -> None:
    told: list[bool] = []
    job, leased = claimed(client, desk.workspace_id)
    run = Run(client, desk.workspace_id, leased, lease_seconds=5, on_lost=lambda: told.append(True))
    assert run.begin() is None
    client.cancel(desk.workspace_id, job.job_id)
    assert until(lambda: run.task.cancelled)
    run.end([{"status": "success"}])
    assert told == [True]
    assert client.get(desk.workspace_id, job.job_id).status == "cancelled"


def test_executor_may_be_shared_and_is_left_open(desk: Desk, client: Client) -> None:
    with ThreadPoolExecutor(2) as executor:
        worker = Worker(client, desk.workspace_id, executor=executor, concurrency=2)

        @worker.task("a")
        def run(task: Task) -> dict[str, Any]:
            task.progress(50, result={"half": True})
            return {"attempt": task.attempt}

        client.create_many(desk.workspace_id, [{"job_type": "a"}] * 5)
        worker.run(until_idle=True)
        assert executor.submit(abs, -1).result() == 1
    results = [job.result for job in client.jobs(desk.workspace_id, status="success")]
    assert results == [{"half": True, "attempt": 1}] * 5


def test_executor_that_is_shut_down_ends_the_worker(desk: Desk, client: Client) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    worker = Worker(client, desk.workspace_id, executor=executor)
    worker.task("a")(lambda task: None)
    job = client.create(desk.workspace_id, "a")
    with pytest.raises(ExecutorClosed, match="shutdown"):
        worker.run()
    with pytest.raises(click.ClickException, match="takes no more jobs"), error_messages():
        worker.run()
    left = client.get(desk.workspace_id, job.job_id)
    assert (left.status, left.retry_count) == ("pending", 0)


def test_client_is_pickled_with_its_token_only() -> None:
    client = Client("http://service/", token="jk_1", timeout=3, retries=2)
    first, second = (pickle.loads(pickle.dumps(client)) for _ in range(2))
    assert first is second
    assert (first.url, first.retries) == ("http://service", 2)
    for other in (
        Client("http://service", username="a", password="b"),
        Client("http://service", token="t", transport=httpx2.MockTransport(lambda _: None)),
    ):
        with pytest.raises(TypeError, match="token"):
            pickle.dumps(other)


def test_client_that_cannot_be_pickled_is_refused_at_the_start(desk: Desk, client: Client) -> None:
    job = client.create(desk.workspace_id, "a")
    with ProcessPoolExecutor(1) as executor:
        worker = Worker(client, desk.workspace_id, executor=executor)
        worker.task("a")(print)
        with pytest.raises(TypeError, match="cannot be pickled"):
            worker.run(until_idle=True)
    assert client.get(desk.workspace_id, job.job_id).status == "pending"


def test_worker_with_processes_takes_no_executor(client: Client) -> None:
    worker = Worker(client, 1, processes=True, executor=ThreadPoolExecutor(1))
    worker.task("a")(lambda task: None)
    with pytest.raises(ValueError, match="executor"):
        worker.run()
