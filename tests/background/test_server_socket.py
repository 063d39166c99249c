"""What is assumed of gunicorn when a stream takes a connection over."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import TConn

from jobapi.background.server_socket import give_up, plain_socket, response_head, take_over

from ..served import environment

APP = "tests.background.test_server_socket:application"


def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Respond on a connection that was taken over, after gunicorn considers the request ended."""
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/plain":
        yield b"plain"
        return
    lent = plain_socket(environ)
    assert lent is not None
    with take_over(lent) as connection:
        connection.sendall(response_head("200 OK", [("X", "y")], chunked=False) + b"taken over")
    give_up()


@pytest.fixture(params=["sync", "gthread"])
def gunicorn(request: Any, tmp_path: Path) -> Iterator[Any]:
    """gunicorn with a class of its own workers, as ``wsgi:app`` may be served."""
    log = tmp_path / "log"
    options = ["-k", request.param, "-b", "127.0.0.1:0", "--threads", "2", "--log-level", "debug"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "--no-control-socket", APP],
            stdout=file,
            stderr=file,
            env=environment(),
            cwd=Path(__file__).resolve().parents[2],
        )
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"Listening at: (http://[^ ]+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield found[1], log
    finally:
        process.terminate()
        # Longer than gunicorn gives its processes.
        process.wait(40)


def test_gunicorn_after_a_handover_leaves_the_connection_alone(gunicorn: Any) -> None:
    url, log = gunicorn
    for _ in range(3):
        taken = httpx2.get(f"{url}/", timeout=30)
        assert (taken.text, taken.headers["X"]) == ("taken over", "y")
        assert httpx2.get(f"{url}/plain", timeout=30).text == "plain"
    assert log.read_text().count("Ignoring connection reset") == 3
    assert not re.search(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback", log.read_text())


def test_connection_that_was_taken_over_can_still_be_closed_by_gunicorn() -> None:
    server, client = socket.socketpair()
    lent = TConn(Config(), server, ("127.0.0.1", 1), ("127.0.0.1", 2))
    with client, take_over(server) as connection:
        lent.close(graceful=True)
        connection.sendall(b"still open")
        assert client.recv(100) == b"still open"
        client.sendall(b"both ways")
        assert connection.recv(100) == b"both ways"


@pytest.mark.parametrize("protocol", ["HTTP/2.0", "", "HTTP/1.1"])
def test_only_a_plain_socket_with_one_response_at_a_time_is_taken_over(protocol: str) -> None:
    server, client = socket.socketpair()
    with server, client:
        environ = {"gunicorn.socket": server, "SERVER_PROTOCOL": protocol}
        assert plain_socket(environ) is (server if protocol == "HTTP/1.1" else None)
        assert plain_socket({**environ, "gunicorn.socket": object()}) is None
