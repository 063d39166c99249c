"""Liveness probes and refusals: neither a hung database nor slow callers delay them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gunicorn.workers.gthread import ThreadWorker

from jobapi.commands.gunicorn_worker import Worker

from ..conftest import furnish, service_settings
from ..factories import PASSWORD
from ..postgres import Postgres
from ..served import Service

THREADS = 4


def test_worker_overrides_only_what_gunicorn_has() -> None:
    """Overriding a method that a later gunicorn has renamed would have no effect."""
    ours = {"live_path", "_is_probe", "_wait_for_data"}
    ours |= {"_submit", "_submit_request", "_handle_requests", "_has_next_request"}
    overridden = {name for name in vars(Worker) if not name.startswith("__")} - ours
    for name in (*overridden, "handle", "finish_request", "on_pending_socket_readable"):
        assert callable(getattr(ThreadWorker, name))


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A Postgres of its own, which tests may freeze and kill."""
    server = Postgres()
    yield server
    server.stop()


def test_process_lives_while_the_database_hangs_and_recovers_with_it(
    server: Postgres, tmp_path: Path
) -> None:
    url = server.url("postgres")
    furnish(url, tmp_path)
    env = service_settings(url, tmp_path) | {
        "JOBAPI_DATABASE_STATEMENT_SECONDS": "4",
        "JOBAPI_DATABASE_LOCK_SECONDS": "1",
        "JOBAPI_DATABASE_CONNECT_SECONDS": "2",
    }
    service = Service(tmp_path, env, "--workers", "1", "--threads", str(THREADS))
    try:
        client = service.client("boss", PASSWORD)

        def read(_: Any = None) -> httpx2.Response:
            return client.get("/workspace/1/jobs", timeout=60)

        def live() -> int:
            return service.get("/health/live").status_code

        with ThreadPoolExecutor(3 * THREADS) as callers:
            assert {response.status_code for response in callers.map(read, range(THREADS))} == {200}
            frozen = server.freeze()
            try:
                asked = [callers.submit(read) for _ in range(3 * THREADS)]
                # Until the threads of the service have them.
                time.sleep(0.5)
                assert [live() for _ in range(4)] == [200] * 4
                assert not any(future.done() for future in asked)
                for future in asked:
                    assert future.result().status_code == 503
                    assert future.result().headers["Retry-After"]
                assert "does not answer" in future.result().json()["detail"]
                assert service.get("/health/ready").status_code == 503
                assert live() == 200
            finally:
                server.thaw(frozen)
        deadline = time.monotonic() + 60
        while read().status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        body = {"job_type": "x", "workspace_id": 1}
        created = [client.post("/workspace/1/jobs", json=body) for _ in range(12)]
        assert [response.status_code for response in created] == [201] * 12
    finally:
        service.close()


def test_connections_that_say_nothing_take_no_thread(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "1")
    host, port = service.url.removeprefix("http://").rsplit(":", 1)
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    try:
        client = service.client("boss", PASSWORD)
        assert client.get("/workspace/1/jobs").status_code == 200
        assert client.head("/health/live").status_code == 200
    finally:
        for connection in silent:
            connection.close()


def connected(service: Service) -> http.client.HTTPConnection:
    host, port = service.url.removeprefix("http://").rsplit(":", 1)
    return http.client.HTTPConnection(host, int(port), timeout=20)


def test_connections_that_never_pause_leave_threads_to_others(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "2")
    end = time.monotonic() + 1.5

    def ask(_: int) -> int:
        """Ask again and again on one connection; returns how often it was answered."""
        with contextlib.closing(connected(service)) as connection:
            for n in itertools.count():
                if time.monotonic() >= end:
                    return n
                connection.request("GET", "/health")
                assert connection.getresponse().read()
        raise AssertionError

    with ThreadPoolExecutor(8) as callers:
        answered = list(callers.map(ask, range(8)))
    assert min(answered) > sum(answered) / len(answered) / 4


def test_connection_that_never_pauses_is_closed_when_the_service_stops(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "2")
    with contextlib.closing(connected(service)) as connection, ThreadPoolExecutor(1) as stopping:
        stopped = None
        for n in itertools.count():
            if n == 20:
                stopped = stopping.submit(service.stop)
            connection.request("GET", "/health")
            answer = connection.getresponse()
            assert answer.status == 404
            answer.read()
            if answer.headers["Connection"] == "close":
                break
        assert stopped is not None
        assert stopped.result() == 0


def test_requests_that_are_sent_at_once_are_answered_in_order(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "2")
    host, port = service.url.removeprefix("http://").rsplit(":", 1)
    ids = [f"r{n}" for n in range(30)]
    requests = [f"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id_}\r\n\r\n" for id_ in ids]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("".join(requests).encode())
        got = b""
        while got.count(b"X-Request-Id: ") < len(ids):
            got += connection.recv(65536)
    assert re.findall(r"X-Request-Id: (\w+)", got.decode()) == ids


def test_incomplete_probe_does_not_delay_others(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "4")
    host, port = service.url.removeprefix("http://").rsplit(":", 1)
    halves = [
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
    connections = []
    try:
        for half in halves:
            connections.append(socket.create_connection((host, int(port))))
            connections[-1].sendall(half)
        for query in ("", "?probe=1"):
            response = httpx2.get(f"{service.url}/health/live{query}", timeout=20)
            assert response.json() == {"status": "ok"}
            assert response.headers["X-Request-Id"]
    finally:
        for connection in connections:
            connection.close()
