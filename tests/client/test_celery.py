"""Jobs that a Celery application runs: dispatcher, broker and Celery worker are real."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import signals

from jobapi.client import ClaimedJob, Task
from jobapi.client.celery import Dispatcher, _CeleryEngine

from ..factories import until
from .stage import Stage, wait_for_end

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)

# Kombu's writes a message in its place, where another process may read half of it.
BROKER = """
import json, os
from time import monotonic
from uuid import uuid4
from kombu.transport import filesystem

class Channel(filesystem.Channel):
    def _put(self, queue, payload, **kw):
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        new = os.path.join(self.control_folder, name)
        with open(new, "w") as file:
            json.dump(payload, file)
        os.rename(new, os.path.join(self.data_folder_out, name))

class Transport(filesystem.Transport):
    Channel = Channel
"""

# An application as a team has it, and the line that it gets.
APP = """
import functools, logging, os, signal, time
from celery import Celery, Task
from celery.utils.log import get_task_logger
import jobapi.client.celery

here = os.path.dirname(__file__)
app = Celery("images", broker="filesystem://")
app.conf.update(
    broker_transport="broker:Transport",
    broker_transport_options={
        "data_folder_in": here + "/queue", "data_folder_out": here + "/queue",
        "control_folder": here + "/control", "polling_interval": 0.05,
    },
    worker_prefetch_multiplier=1,
)
log = os.open(os.path.join(here, "ran"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(*words):
    os.write(log, (" ".join(map(str, words)) + "\\n").encode())

def decorated(function):
    @functools.wraps(function)
    def calling(*args, **kwargs):
        return function(*args, **kwargs)
    return calling

class Own(Task):
    @decorated
    def __call__(self, *args, **kwargs):
        return {"own": super().__call__(*args, **kwargs)}

@app.task(name="images.resize")
def resize(width, seconds=0):
    note("resize", width)
    time.sleep(seconds)
    return {"width": width}

@app.task(name="images.bound", bind=True, base=Own)
def bound(self, width):
    job = jobapi.client.celery.current_job()
    if job is not None:
        job.progress(40, "almost", result={"seen": job.metadata})
    # Another task, called directly, is part of this one.
    return resize(width)["width"]

@app.task(name="images.other", bind=True, base=Own)
def other(self, width):
    return self.name

@app.task(name="images.fails")
def fails():
    raise LookupError("no file")

@app.task(name="images.retries", bind=True)
def retries(self):
    note("retries", self.request.id)
    jobapi.client.celery.current_job().progress(30, result={"part": 1})
    raise self.retry(countdown=1, max_retries=5)

@app.task(name="images.text")
def text():
    return "done"

@app.task(name="images.logs")
def logs():
    logging.getLogger("plain").info("info")
    get_task_logger("images").warning("of the task")
    jobapi.client.celery.current_job().log("own", level="debug")

@app.task(name="images.object")
def object_():
    return object

@app.task(name="images.long")
def long():
    note("long", os.getpid())
    time.sleep(600)

@app.task(name="images.dies")
def dies(number):
    note("dies", number)
    os.kill(os.getpid(), signal.SIGKILL)
"""

TASKS = """
import os
from images import app
from jobapi.client.celery import Dispatcher

names = ["resize", "bound", "other", "fails", "retries", "text", "object", "long", "dies", "logs"]
worker = Dispatcher(
    app, {name: "images." + name for name in names}, lease_seconds=5,
    requeue_seconds=float(os.environ.get("REQUEUE", "300")), capture_logs=True,
)
"""


class CeleryStage(Stage):
    """A service with a Celery application beside it."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        super().__init__(folder, env, TASKS)
        (folder / "broker.py").write_text(BROKER)
        (folder / "images.py").write_text(APP)
        for name in ("queue", "control"):
            (folder / name).mkdir()

    def start_celery(
        self, pool: str = "prefork", name: str = "celery", **env: str
    ) -> subprocess.Popen[bytes]:
        process = self.start(
            "-m",
            "celery",
            *("-A", "images", "worker", "-n", f"{name}@%h", "--pool", pool, "--concurrency", "2"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            **env,
        )
        # Two processes that make the same exchange at the same moment would break it.
        until((self.folder / "control" / "celery.exchange").exists, 30)
        return process

    def celery(self, code: str) -> None:
        """Run code that has ``app``, as another part of the team's application would."""
        subprocess.run(
            [sys.executable, "-c", f"from images import app\n{code}"],
            env=self.env,
            cwd=self.folder,
            check=True,
        )


@pytest.fixture
def database() -> str:
    """Only one database: differences between the two are tested without an engine."""
    return "postgresql"


@pytest.fixture
def stage(service_env: dict[str, str], tmp_path: Path) -> Any:
    stage = CeleryStage(tmp_path, {**service_env, "JOBAPI_RETRY_BACKOFF_SECONDS": "1"})
    yield stage
    stage.close()


def test_application_runs_jobs_and_its_own_messages(stage: CeleryStage) -> None:
    client = stage.client
    stage.start_celery()
    stage.celery("app.send_task('images.resize', [7])")
    once = {"max_retries": 0}
    many = client.create_many(
        1, [{"job_type": "resize", "metadata": {"width": n}} for n in range(100, 130)]
    )
    bound = client.create(1, "bound", metadata={"width": 3})
    other = client.create(1, "other", metadata={"width": 3})
    failing = client.create(1, "fails", **once)
    retried = client.create(1, "retries", max_retries=1)
    text = client.create(1, "text")
    logs = client.create(1, "logs")
    wrong = client.create(1, "object", **once)
    lacking = client.create(1, "resize", **once)
    stage.start_worker()
    wait_for_end(client)
    ended = {job.job_id: job for job in client.jobs(1)}
    assert [ended[job.job_id].result for job in many] == [{"width": n} for n in range(100, 130)]
    assert ended[bound.job_id].result == {"seen": {"width": 3}, "own": 3}
    assert ended[other.job_id].result == {"own": "images.other"}
    assert "LookupError: no file" in (ended[failing.job_id].error or "")
    assert (ended[retried.job_id].status, ended[retried.job_id].retry_count) == ("failed", 1)
    assert ended[retried.job_id].result == {"part": 1}
    assert ended[text.job_id].result == {"result": "done"}
    assert [(entry.level, entry.message) for entry in client.logs(1, logs.job_id)] == [
        *(("info", "info"), ("warning", "of the task"), ("debug", "own"))
    ]
    assert "cannot be written as JSON" in (ended[wrong.job_id].error or "")
    assert "width" in (ended[lacking.job_id].error or "")
    until(lambda: "resize 7" in stage.ran(), 20)
    resized = [line for line in stage.ran() if line.startswith("resize")]
    assert len(set(resized)) == len(resized) == 32
    # What Celery sends again for its own retry is refused.
    time.sleep(1.5)
    assert len([line for line in stage.ran() if line.startswith("retries")]) == 2


def test_cancel_ends_the_process_of_the_task(stage: CeleryStage) -> None:
    client = stage.client
    stage.start_celery()
    # Celery may lose a message that it has given to the process which it ends.
    stage.start_worker(REQUEUE="5")
    job = client.create(1, "long")
    until(stage.ran, 30)
    # Longer than the lease: the run renews it.
    time.sleep(6)
    assert client.get(1, job.job_id).status == "running"
    pid = int(stage.ran()[0].split()[1])
    client.cancel(1, job.job_id)
    until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    # Celery's prefork pool sometimes hangs after it has ended one of its processes.
    stage.start_celery(name="second")
    client.create(1, "text")
    wait_for_end(client)
    assert sorted(job.status for job in client.jobs(1)) == ["cancelled", "success"]


def test_message_of_a_job_that_was_cancelled_is_not_run(stage: CeleryStage) -> None:
    client = stage.client
    stage.start_worker()
    jobs = client.create_many(1, [{"job_type": "resize", "metadata": {"width": n}} for n in (1, 2)])
    until(lambda: len(list((stage.folder / "queue").iterdir())) == 2, 30)
    client.cancel(1, jobs[0].job_id)
    stage.start_celery()
    wait_for_end(client)
    time.sleep(1)
    assert stage.ran() == ["resize 2"]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_message_that_is_delivered_twice_runs_once(stage: CeleryStage, pool: str) -> None:
    client, queue = stage.client, stage.folder / "queue"
    stage.start_worker()
    made = client.create_many(
        1, [{"job_type": "resize", "metadata": {"width": n, "seconds": 0.3}} for n in range(6)]
    )
    until(lambda: len(list(queue.iterdir())) == 6, 30)
    for message in list(queue.iterdir()):
        shutil.copy(message, message.with_name(f"{message.name.split('.')[0]}-again.celery.msg"))
    stage.start_celery(pool)
    wait_for_end(client)
    until(lambda: not list(queue.iterdir()), 20)
    time.sleep(1)
    assert sorted(stage.ran()) == sorted(f"resize {n}" for n in range(6))
    assert {client.get(1, job.job_id).retry_count for job in made} == {0}


def test_kill_dispatcher_worker_and_broker_loses_no_job(stage: CeleryStage) -> None:
    print(f"again with: CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS}", file=sys.stderr)
    client, chance = stage.client, random.Random(SEED)
    environment = {"REQUEUE": "4"}
    worker, dispatcher = stage.start_celery(), stage.start_worker(**environment)
    made, kills = [], Counter[str]()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        items = [
            {"job_type": "resize", "max_retries": 100, "metadata": {"width": n, "seconds": 0.1}}
            for n in range(len(made), len(made) + 10)
        ]
        made += client.create_many(1, items)
        time.sleep(chance.uniform(0.5, 2))
        victim = chance.choice(["worker", "broker", "dispatcher"])
        kills[victim] += 1
        if victim == "broker":
            for message in (stage.folder / "queue").iterdir():
                message.unlink(missing_ok=True)
        elif victim == "dispatcher":
            os.killpg(dispatcher.pid, signal.SIGKILL)
            dispatcher = stage.start_worker(**environment)
        else:
            os.killpg(worker.pid, signal.SIGKILL)
            worker = stage.start_celery()
    wait_for_end(client)
    ended = [client.get(1, job.job_id) for job in made]
    assert {job.status for job in ended} == {"success"}, kills
    # A run that has begun runs its attempt alone, so each further run has cost a retry.
    ran = Counter(line for line in stage.ran() if line.startswith("resize"))
    for number, job in enumerate(ended):
        assert 1 <= ran[f"resize {number}"] <= 1 + job.retry_count


def test_task_that_kills_its_process_uses_up_its_own_retries(stage: CeleryStage) -> None:
    client = stage.client
    stage.start_celery()
    stage.start_worker()
    poison = client.create(1, "dies", metadata={"number": 1}, max_retries=1)
    others = client.create_many(
        1, [{"job_type": "resize", "metadata": {"width": n}} for n in range(10)]
    )
    wait_for_end(client)
    ended = client.get(1, poison.job_id)
    assert (ended.status, ended.error) == ("failed", "lease expired")
    assert stage.ran().count("dies 1") == 2
    assert {client.get(1, job.job_id).retry_count for job in others} == {0}


def test_stop_of_the_dispatcher_releases_what_waits(stage: CeleryStage) -> None:
    client = stage.client
    client.create_many(1, [{"job_type": "resize", "metadata": {"width": n}} for n in range(5)])
    dispatcher = stage.start_worker()
    until(lambda: len(list((stage.folder / "queue").iterdir())) == 5, 30)
    dispatcher.send_signal(signal.SIGTERM)
    assert dispatcher.wait(20) == 0
    assert {(job.status, job.retry_count) for job in client.jobs(1)} == {("pending", 0)}
    # Their messages come too late.
    stage.start_celery()
    until(lambda: not list((stage.folder / "queue").glob("*celery.msg")), 30)
    time.sleep(1)
    assert stage.ran() == []


def test_tasks_are_prepared_once_however_often_a_worker_starts() -> None:
    app = celery.Celery("twice")

    class Own(celery.Task):
        def __call__(self) -> None:
            return None

    def nothing() -> None:
        return None

    plain = app.task(name="plain")(nothing)
    app.task(name="own", base=Own)(nothing)
    app.finalize()
    sender = type("Sender", (), {"app": app})()
    signals.worker_init.send(sender=sender)
    prepared = plain.run, Own.__call__
    signals.worker_init.send(sender=sender)
    assert (plain.run, Own.__call__) == prepared


def test_dispatcher_claims_again_after_a_job_that_it_could_not_send() -> None:
    # No broker listens there.
    app = celery.Celery("away", broker="amqp://guest@127.0.0.1:1//")
    app.conf.task_publish_retry = False
    dispatcher = Dispatcher(app, {"a": "tasks.a"})
    engine = _CeleryEngine(dispatcher, 1)
    now = datetime.now(UTC)
    job = ClaimedJob(
        **dict.fromkeys(("job_id", "job_type", "status", "priority", "lease_token"), "a"),
        **dict.fromkeys(("workspace_id", "created_by", "retry_count", "max_retries", "attempt"), 1),
        **dict.fromkeys(("created_at", "updated_at", "due_at", "lease_expires_at"), now),
    )
    task = Task(job)
    ended: list[Any] = []
    sending = threading.Thread(target=engine.start, args=(task, lambda *end: ended.append(end)))
    sending.start()
    until(lambda: not engine.available, 20)
    assert task.on_lost is not None
    task.on_lost()
    sending.join(20)
    assert not sending.is_alive()
    assert ended == [(task, [])]
    assert engine.available
