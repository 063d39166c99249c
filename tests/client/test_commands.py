"""The commands ``jobapi worker`` and ``jobapi jobs`` against a service."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobapi.client import Client

from ..served import BIN, Service, jobapi

TASKS = """
import time
from jobapi.client import Worker

worker = Worker()

@worker.task("a")
def a(job):
    job.progress(1)
    time.sleep(job.metadata.get("seconds", 0))
    return {"n": job.metadata.get("n")}
"""


@pytest.fixture
def start(tmp_path: Path, serve: Any) -> Any:
    (tmp_path / "tasks.py").write_text(TASKS)
    processes: list[subprocess.Popen[bytes]] = []

    def start(service: Service, token: str, *arguments: str) -> subprocess.Popen[bytes]:
        processes.append(
            subprocess.Popen(
                [BIN / "jobapi", "worker", "tasks:worker", "--workspace", "1", *arguments],
                env={**service.env, "JOBAPI_URL": service.url, "JOBAPI_TOKEN": token},
                cwd=tmp_path,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def key(client: httpx2.Client) -> str:
    made = client.post("/workspace/1/keys", json={"name": "w", "role": "member"})
    return str(made.json()["key"])


@pytest.mark.parametrize(
    "arguments", [["--concurrency", "4"], ["--concurrency", "3", "--processes"]]
)
def test_worker_command_does_jobs_and_ends_gracefully(
    serve: Any,
    start: Any,
    arguments: list[str],
) -> None:
    service = serve()
    token = key(service.client("boss", "correct horse battery"))
    with Client(service.url, token=token) as client:
        items = [{"job_type": "a", "metadata": {"n": n}} for n in range(200)]
        made = client.create_many(1, items)
        process = start(service, token, *arguments)
        for job in made:
            assert client.wait(job, timeout=60, poll_seconds=0.1).result == {"n": job.metadata["n"]}
        slow = client.create(1, "a", metadata={"seconds": 2, "n": 1})
        deadline = time.monotonic() + 10
        # Claimed is not begun yet; what has not begun would be handed back.
        while client.status(1, slow.job_id).progress_percent != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert client.get(1, slow.job_id).status == "success"


def run(service: Service, token: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**service.env, "JOBAPI_URL": service.url, "JOBAPI_TOKEN": token}
    return jobapi("jobs", *arguments, env=env)


def test_jobs_commands(serve: Any, start: Any) -> None:
    service = serve()
    token = key(service.client("boss", "correct horse battery"))
    created = run(service, token, "create", "a", "--metadata", '{"n": 5}', "--priority", "high")
    assert created.returncode == 0, created.stderr
    job_id = created.stdout.strip()
    listed = run(service, token, "list", "--status", "pending").stdout
    assert job_id in listed
    (line,) = run(service, token, "list", "--json").stdout.splitlines()
    assert json.loads(line)["job_id"] == job_id
    assert run(service, token, "watch", job_id, "--timeout", "0").returncode == 5
    assert run(service, token, "cancel", job_id, "--reason", "no").returncode == 0
    assert run(service, token, "watch", job_id).returncode == 4
    assert run(service, token, "retry", job_id).stdout.strip() == f"{job_id} pending"
    start(service, token)
    watched = run(service, token, "watch", job_id, "--json")
    assert watched.returncode == 0
    assert json.loads(watched.stdout)["result"]["n"] == 5
    shown = json.loads(run(service, token, "show", job_id).stdout)
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["success"]
    failed = run(
        service,
        token,
        "create",
        "a",
        "--metadata",
        '{"seconds": "x"}',
        "--max-retries",
        "0",
        "--wait",
    )
    assert failed.returncode == 3
    assert "TypeError" in failed.stderr
    errors = run(service, token, "errors", "--type", "a").stdout
    assert re.fullmatch(r" +1  a  [0-9a-f]{16}  TypeError: .+\n", errors)
    (line,) = run(service, token, "errors", "--json").stdout.splitlines()
    group = json.loads(line)["error_group"]
    assert group in errors
    wanted = ("--error-group", group, "--error", "TYPEERROR")
    assert run(service, token, "operate", "retry", "--dry-run", *wanted).stdout == "1 jobs\n"
    assert run(service, token, "show", "job_x").returncode == 1
    assert run(service, token, "create", "a", "--metadata", "[1]").returncode == 2
    assert "Error" in run(service, "jk_wrong", "list").stderr


def test_jobs_commands_on_many_jobs(serve: Any) -> None:
    service = serve()
    client = Client(service.url, username="boss", password="correct horse battery")
    client.create_many(1, [{"job_type": "a", "metadata": {"batch_id": n % 2}} for n in range(1200)])
    client.create(1, "b")
    token = str(client._access_token())
    listed = run(service, token, "list", "--json", "--metadata", "batch_id=1", "--limit", "700")
    assert len(listed.stdout.splitlines()) == 600
    assert len(run(service, token, "list", "--created-before", "2020-01-01T00:00:00Z").stdout) < 200
    some = ("--type", "a", "--metadata", "batch_id=1")
    assert run(service, token, "operate", "cancel", *some, "--dry-run").stdout == "600 jobs\n"
    refused = run(service, token, "operate", "cancel", *some)
    assert refused.returncode == 1
    assert "Cancel 600 jobs?" in refused.stderr
    done = run(service, token, "operate", "cancel", *some, "--yes", "--reason", "wrong")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 cancel finished: 600 of 600 jobs\n"
    assert done.stderr.splitlines()[-1] == "600 of 600"
    asked = run(service, token, "operate", "delete", "--status", "cancelled", "--yes", "--json")
    assert json.loads(asked.stdout)["changed"] == 600
    stats = json.loads(run(service, token, "stats").stdout)
    assert stats["by_type"]["a"]["pending"] == 600
    stats = json.loads(run(service, token, "stats", "--type", "a.b", "--type", "a").stdout)
    assert {name: each["due"] for name, each in stats["by_type"].items()} == {"a": 600, "a.b": 0}
    begun = run(service, token, "operate", "cancel", "--yes", "--no-wait", "--json")
    number = str(json.loads(begun.stdout)["operation_id"])
    stopped = run(service, token, "stop", number)
    assert stopped.returncode in (0, 1)  # it may have ended already
    newest = run(service, token, "operations", "--limit", "1").stdout
    assert newest.startswith(f"{number} cancel ")
    (job, *_) = client.jobs(1, status="cancelled")
    assert run(service, token, "delete", job.job_id).returncode == 0
    assert run(service, token, "delete", job.job_id).returncode == 1
    wrong = run(service, token, "list", "--metadata", "batch_id")
    assert (wrong.returncode, "PATH=VALUE" in wrong.stderr) == (2, True)
    client.close()


def test_events_command_outlives_the_service(serve: Any) -> None:
    service = serve()
    boss = service.client("boss", "correct horse battery")
    token = key(boss)
    client = Client(service.url, token=token)
    job = client.create(1, "a")
    client.cancel(1, job.job_id, reason="not\nthis one")
    listed = run(service, token, "events", job.job_id)
    assert listed.stdout.splitlines()[0].endswith(f"cancelled  {job.job_id}  a  not this one")
    (newest,) = run(service, token, "events", "--json", "--limit", "1").stdout.splitlines()
    assert json.loads(newest)["kind"] == "cancelled"
    assert run(service, token, "events", "--kind", "failed").stdout == ""
    following = subprocess.Popen(
        [BIN / "jobapi", "jobs", "events", "--follow", "--limit", "2", "--kind", "created"],
        env={**service.env, "JOBAPI_URL": service.url, "JOBAPI_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert following.stdout is not None
    deadline = time.monotonic() + 30
    while following.poll() is None and time.monotonic() < deadline:
        # It takes a moment to begin.
        client.create(1, "b")
        if select.select([following.stdout], [], [], 0.5)[0]:
            break
    service.kill()
    serve("--port", service.url.rpartition(":")[2])
    last = client.create(1, "c").job_id
    lines = following.communicate(timeout=30)[0].splitlines()
    assert [line.split()[2:] for line in lines if line.endswith("c")] in (
        [],  # the second was created before the service was killed
        [["created", last, "c"]],
    )
    assert (following.returncode, len(lines)) == (0, 2)
    client.close()
