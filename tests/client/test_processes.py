"""The worker as a process: signals, its own processes and those of its tasks, and outages.

The service is a stand-in that tests control, so that it can hang and refuse requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ..factories import until
from ..served import BIN, environment

TASKS = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jobapi.client import Worker

worker = Worker(grace_seconds=2)
fork = get_context("fork")

@worker.task("quick")
def quick(job):
    return {"pid": os.getpid()}

@worker.task("slow")
def slow(job):
    job.progress(1)
    time.sleep(60)

@worker.task("dies")
def dies(job):
    # It lives on, and holds what it has inherited.
    fork.Process(target=time.sleep, args=(30,)).start()
    os.kill(os.getpid(), signal.SIGKILL)

@worker.task("pools")
def pools(job):
    def report(queue):
        try:
            job.progress(50)
        except RuntimeError as error:
            queue.put(str(error))
    for _ in range(5):
        with fork.Pool(2) as pool:
            assert pool.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
    child = fork.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(30)
    with ProcessPoolExecutor(2, mp_context=fork) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    queue = fork.SimpleQueue()
    fork.Process(target=report, args=(queue,)).start()
    return {"exitcode": child.exitcode, "refused": queue.get(), "reads": reads()}

def reads():
    with fork.Pool(3) as pool:
        return pool.map(read, range(9))

def read(number):
    return worker.client.status(1, f"job_{number}").job_id
"""


class StandIn:
    """A service that returns jobs and accepts reports, and that a test can make unavailable."""

    def __init__(self) -> None:
        self.mode = "well"
        self.retry_after = "3600"
        self.jobs: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.released = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(200, {"job_id": self.path.split("/")[-2], "status": "running"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(*stand_in.act(self.path.rsplit("/", 1)[1], body))

            def answer(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                if status == 503:
                    self.send_header("Retry-After", stand_in.retry_after)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.handler = Handler
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def act(self, verb: str, body: Any) -> tuple[int, Any]:
        if self.mode == "hangs":
            self.released.wait(60)
        if self.mode == "busy":
            return 503, {"type": "urn:jobapi:problem:unavailable", "detail": "Busy."}
        if self.mode == "revoked":
            return 401, {"type": "urn:jobapi:problem:token-revoked", "detail": "Revoked."}
        if verb == "claim":
            self.claims.append(body)
            return 200, {"data": self.give(body["limit"])}
        self.reports += body["reports"]
        answer = {"accepted": True, "status": "running", "problem": None}
        return 200, {"data": [answer] * len(body["reports"])}

    def give(self, limit: int) -> list[Any]:
        given, self.jobs = self.jobs[:limit], self.jobs[limit:]
        if not given:
            time.sleep(0.2)
        return given

    def add(self, job_type: str, count: int = 1) -> None:
        self.jobs += [
            {
                "job_id": f"job_{job_type}_{number}",
                "job_type": job_type,
                "metadata": None,
                "lease_token": "0" * 32,
                "attempt": 1,
                "begun": True,
            }
            for number in range(count)
        ]

    def ended(self, job_type: str) -> list[dict[str, Any]]:
        return [
            report
            for report in self.reports
            if report["job_id"].startswith(f"job_{job_type}_") and "status" in report
        ]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service() -> Any:
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def start(tmp_path: Path, service: StandIn) -> Any:
    (tmp_path / "tasks.py").write_text(TASKS)
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, url: str = service.url) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    [BIN / "jobapi", "worker", "tasks:worker", *arguments],
                    env=environment(JOBAPI_URL=url, JOBAPI_TOKEN="jk_x"),
                    cwd=tmp_path,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], str]:
    return lambda: (tmp_path / "log").read_text()


def seconds_to_stop(process: subprocess.Popen[bytes]) -> float:
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    return time.monotonic() - began


MODES = ["--concurrency=2", "--processes"]


@pytest.mark.parametrize("arguments", MODES)
def test_task_uses_processes_of_its_own_succeeds(
    service: StandIn, start: Any, arguments: str, log: Any
) -> None:
    service.add("pools", 4)
    process = start(arguments)
    until(lambda: len(service.ended("pools")) == 4)
    for report in service.ended("pools"):
        assert report["status"] == "success", report
        assert report["result"] == {
            "exitcode": -signal.SIGTERM,
            "refused": "Only the worker's own process can report progress, not a child.",
            "reads": [f"job_{number}" for number in range(9)],
        }
    seconds_to_stop(process)


@pytest.mark.parametrize(
    ("arguments", "mode", "retry_after"),
    [
        (MODES[0], "hangs", ""),
        (MODES[0], "busy", "3600"),
        (MODES[0], "busy", "50"),
        (MODES[1], "hangs", ""),
    ],
)
def test_stop_while_the_service_is_away_ends_in_time(
    service: StandIn, start: Any, arguments: str, mode: str, retry_after: str
) -> None:
    process = start(arguments)
    until(lambda: service.claims)
    service.add("slow")
    until(lambda: service.reports)
    service.mode, service.retry_after = mode, retry_after
    # More than the grace of two seconds by what a busy machine needs.
    assert seconds_to_stop(process) < 20


def test_stop_without_a_listener_ends_in_time(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    process = start(url=f"http://127.0.0.1:{port}")
    time.sleep(2)
    assert seconds_to_stop(process) < 20


@pytest.mark.parametrize("arguments", MODES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_send_a_second_signal_ends_all_at_once(
    service: StandIn, start: Any, arguments: str, number: signal.Signals
) -> None:
    service.add("slow")
    process = start(arguments)
    until(lambda: service.reports)
    # Ctrl-C reaches all of a group, as a container's end does.
    os.killpg(process.pid, number)
    time.sleep(0.5)
    assert process.poll() is None
    os.killpg(process.pid, number)
    assert process.wait(20) == 128 + number
    until(lambda: not group(process))
    assert service.ended("slow") == []


def test_send_one_signal_to_a_whole_group_stops_it_gracefully(
    service: StandIn, start: Any, log: Any
) -> None:
    service.add("slow")
    process = start("--processes")
    until(lambda: service.reports)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == 0
    assert [report["status"] for report in service.ended("slow")] == ["pending"]


def group(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of a worker, except for its parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(")")
            state, _, pgid = rest.split()[:3]
            pid = int(name.split()[0])
            if int(pgid) == process.pid and state != "Z" and pid != process.pid:
                found.append(pid)
    return found


def test_kill_one_process_replaces_it_and_logs_it(service: StandIn, start: Any, log: Any) -> None:
    process = start("--processes", "--concurrency=2")
    first = until(lambda: len(found := group(process)) == 2 and found)
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(found := group(process)) == 2 and first[0] not in found)
    assert f"process {first[0]} was killed by SIGKILL" in log()
    # Ended by itself is no less gone.
    os.kill(first[1], signal.SIGTERM)
    until(lambda: len(found := group(process)) == 2 and first[1] not in found)
    service.add("quick", 20)
    until(lambda: len(service.ended("quick")) == 20)
    seconds_to_stop(process)
    assert group(process) == []


def test_process_that_dies_is_replaced_though_its_own_children_live(
    service: StandIn, start: Any, log: Any
) -> None:
    service.add("dies")
    process = start("--processes")
    until(lambda: "was killed by SIGKILL" in log())
    service.add("quick")
    until(lambda: service.ended("quick"))
    seconds_to_stop(process)


def test_kill_the_parent_ends_its_processes(service: StandIn, start: Any) -> None:
    service.add("slow")
    process = start("--processes", "--concurrency=2")
    until(lambda: service.reports and len(group(process)) == 2)
    process.kill()
    process.wait()
    until(lambda: not group(process))
    assert [report["status"] for report in service.ended("slow")] == ["pending"]


@pytest.mark.parametrize("arguments", MODES)
@pytest.mark.parametrize("at_work", [False, True])
def test_revoke_the_key_ends_the_worker_with_an_error(
    service: StandIn, start: Any, arguments: str, at_work: bool, log: Any
) -> None:
    if at_work:
        service.add("slow")
    else:
        service.mode = "revoked"
    process = start(arguments)
    if at_work:
        until(lambda: service.reports)
        service.mode = "revoked"
    assert process.wait(60) == 1
    assert "Error: Revoked." in log()


@pytest.mark.parametrize("arguments", MODES)
def test_run_until_idle_ends_without_an_error(service: StandIn, start: Any, arguments: str) -> None:
    service.add("quick", 20)
    process = start(arguments, "--until-idle")
    assert process.wait(60) == 0
    assert len(service.ended("quick")) == 20
