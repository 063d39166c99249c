"""No job is lost or succeeds twice when workers, the service or the database are killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from jobapi.client import Job, Unreachable
from jobapi.errors import JobApiError
from jobapi.store.engine import normalize_url
from jobapi.store.tables import jobs

from ..conftest import furnish, service_settings
from ..postgres import Postgres
from .stage import Stage, wait_for_end

SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)

TASKS = """
import os, random, time
from datetime import UTC, datetime
from jobapi.client import Worker

worker = Worker(lease_seconds=5)
log = os.open("ran", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@worker.task("a")
def a(job):
    os.write(log, f"{job.job_id} {job.attempt}\\n".encode())
    time.sleep(random.random() * job.metadata["seconds"])
    return {"attempt": job.attempt}

@worker.task("b")
def b(job):
    os.write(log, f"{job.job_id} {job.attempt}\\n".encode())
    time.sleep(job.metadata["seconds"])
    return {"clocks": [time.time(), datetime.now(UTC).timestamp()]}
"""

POISON = """
import os, signal
from jobapi.client import Worker

worker = Worker(lease_seconds=5)
worker.task("a")(lambda job: None)
worker.task("poison")(lambda job: os.kill(os.getpid(), signal.SIGKILL))
"""

# Python imports it before anything else.
WRONG_CLOCK = """
import datetime, os, time

HOURS = float(os.environ["WRONG_HOURS"]) * 3600
monotonic, now = time.monotonic, time.time

class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(now() + HOURS, tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)

datetime.datetime = Wrong
time.time = lambda: now() + HOURS
time.time_ns = lambda: int(time.time() * 1e9)
# It jumps there and back every second.
time.monotonic = lambda: monotonic() + HOURS * (int(monotonic()) % 2)
"""


def prepare(url: str, folder: Path) -> dict[str, str]:
    furnish(url, folder)
    return {**service_settings(url, folder), "JOBAPI_RETRY_BACKOFF_SECONDS": "1"}


def assert_each_ran_once(stage: Stage, jobs: list[Job]) -> None:
    # Not in the first attempt, perhaps: what waits for a busy thread is handed back.
    ran = Counter(line.split()[0] for line in stage.ran())
    assert ran == Counter(job.job_id for job in jobs)


def test_eight_workers_do_five_thousand_jobs_once_each(service_env: Any, tmp_path: Path) -> None:
    stage = Stage(tmp_path, service_env, TASKS)
    try:
        items = [{"job_type": "a", "metadata": {"seconds": 0}}] * 5000
        made = stage.client.create_many(1, items)
        # Each is a process of its own. None is killed, so no lease may end on a slow machine.
        workers = stage.start_worker(
            "--concurrency", "8", "--processes", "--until-idle", "--lease-seconds", "60"
        )
        assert workers.wait(180) == 0
        assert_each_ran_once(stage, made)
        assert sum(1 for _ in stage.client.jobs(1, status="success")) == 5000
    finally:
        stage.close()


def test_workers_whose_clocks_are_wrong_do_every_job_once_in_the_database_s_time(
    service_env: Any, service_url: str, tmp_path: Path
) -> None:
    stage = Stage(tmp_path, service_env, TASKS)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "sitecustomize.py").write_text(WRONG_CLOCK)
    engine = create_engine(normalize_url(service_url))
    lasting = select(jobs.c.lease_expires_at).where(jobs.c.lease_token.is_not(None))
    try:
        began = datetime.now(UTC)
        made = stage.client.create_many(1, [{"job_type": "a", "metadata": {"seconds": 0.1}}] * 100)
        # Longer than a lease.
        made += stage.client.create_many(1, [{"job_type": "b", "metadata": {"seconds": 8}}] * 2)
        for hours in ("-9", "9"):
            stage.start_worker("--concurrency", "2", PYTHONPATH=str(wrong), WRONG_HOURS=hours)
        while any(True for _ in stage.client.jobs(1, status=["pending", "running"])):
            before = datetime.now(UTC)
            with engine.connect() as connection:
                expires = connection.scalars(lasting).all()
            ended = datetime.now(UTC)
            assert all(before < at <= ended + timedelta(seconds=5) for at in expires)
            assert ended - began < timedelta(seconds=60)
            time.sleep(0.2)
        ended = datetime.now(UTC)
        assert_each_ran_once(stage, made)
        for job in stage.client.jobs(1):
            *handed_back, attempt = stage.client.attempts(1, job.job_id)
            assert {each.outcome for each in handed_back} <= {"released"}
            assert (job.status, attempt.outcome, job.retry_count) == ("success", "success", 0)
            assert job.started_at is not None
            assert job.completed_at is not None
            # What is answered has whole seconds.
            at = [job.created_at, job.started_at, job.completed_at, job.updated_at]
            at += [attempt.started_at, attempt.ended_at or ended]
            assert began - timedelta(seconds=1) <= min(at)
            assert max(at) <= ended
            assert job.created_at <= job.started_at <= job.completed_at
            for clock in (job.result or {}).get("clocks", []):
                assert abs(clock - ended.timestamp()) > 8 * 3600
    finally:
        engine.dispose()
        stage.close()


def test_job_that_kills_its_worker_ends_alone(service_env: Any, tmp_path: Path) -> None:
    stage = Stage(tmp_path, service_env, TASKS)
    client = stage.client
    (tmp_path / "tasks.py").write_text(POISON)
    try:
        quick = {"job_type": "a", "max_retries": 0}
        client.create_many(1, [quick] * 300)
        # What is killed is replaced.
        stage.start_worker("--processes", "--concurrency", "1")
        wait_for_end(client)
        # Behind it, and fetched with it.
        client.create_many(
            1, [{**quick, "job_type": "poison", "priority": "urgent"}] + [quick] * 99
        )
        wait_for_end(client)
        (poison,) = client.jobs(1, job_type="poison")
        assert (poison.status, poison.error) == ("failed", "lease expired")
        assert sum(1 for _ in client.jobs(1, status="success")) == 399
    finally:
        stage.close()


@pytest.fixture
def mortal(database: str, new_database: Any, tmp_path: Path) -> Any:
    """A database's URL and how to kill it; SQLite has no process to kill."""
    if database == "sqlite":
        yield new_database("sqlite"), None
        return
    server = Postgres(durable=True)

    def crash() -> None:
        server.kill()
        time.sleep(0.3)
        server.start()

    yield server.url("postgres"), crash
    server.stop()


def test_kill_anything_every_job_ends_with_true_attempts(mortal: Any, tmp_path: Path) -> None:
    url, crash_database = mortal
    print(f"again with: CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS}", file=sys.stderr)
    chance = random.Random(SEED)
    stage = Stage(tmp_path, prepare(url, tmp_path), TASKS)
    acknowledged: list[str] = []
    stopping = threading.Event()

    def create() -> None:
        while not stopping.wait(0.05):
            items = [{"job_type": "a", "metadata": {"seconds": 0.1}, "max_retries": 100}] * 5
            with contextlib.suppress(Unreachable, JobApiError):
                acknowledged.extend(job.job_id for job in stage.client.create_many(1, items))

    creator = threading.Thread(target=create)
    try:
        for _ in range(3):
            stage.start_worker("--concurrency", "3")
        creator.start()
        end = time.monotonic() + SECONDS
        kills: Counter[str] = Counter()
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.5, 2))
            what = chance.choice(["worker", "worker", "service", "database"])
            kills[what] += 1
            if what == "worker":
                victim = chance.choice(stage.workers)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(victim.pid, signal.SIGKILL)
                victim.wait()
                stage.workers.remove(victim)
                stage.start_worker("--concurrency", "3")
            elif what == "service":
                stage.restart_service()
            elif crash_database is not None:
                crash_database()
        stopping.set()
        creator.join()
        assert acknowledged, kills
        check(stage, acknowledged)
    finally:
        stopping.set()
        stage.close()


def check(stage: Stage, acknowledged: list[str]) -> None:
    client = stage.client
    wait_for_end(client)
    jobs = {job.job_id: job for job in client.jobs(1)}
    assert set(acknowledged) <= jobs.keys()
    ran = Counter(stage.ran())
    assert max(ran.values()) == 1, "an attempt ran twice"
    for job in jobs.values():
        attempts = client.attempts(1, job.job_id)
        numbers = [attempt.attempt for attempt in attempts]
        outcomes = Counter(attempt.outcome for attempt in attempts)
        assert numbers == list(range(1, len(attempts) + 1))
        assert job.status == "success"
        assert attempts[-1].outcome == "success"
        assert outcomes["success"] == 1
        assert job.result == {"attempt": len(attempts)}
        # One that expired before it had begun costs no retry.
        assert 0 <= job.retry_count - outcomes["failed"] <= outcomes["expired"]
        assert ran[f"{job.job_id} {len(attempts)}"] == 1
        for before, after in pairwise(attempts):
            assert before.ended_at is not None
            assert before.started_at <= before.ended_at <= after.started_at
    assert ran.keys() <= {
        f"{job.job_id} {n}" for job in jobs.values() for n in range(1, job.result["attempt"] + 1)
    }
