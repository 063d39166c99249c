"""Latency of events on 500 streams of one node.

Prints the time from just before a job is created until its event has arrived, over all
streams and changes, in ms: median, 99th percentile and maximum; and the load of idle
streams, as a share of one core.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import statistics
import tempfile
import time
from pathlib import Path

from bench import postgres, prepare, served

from jobapi.client import Client

STREAMS = int(os.environ.get("BENCH_STREAMS", "500"))
CHANGES = 50
PAUSE_SECONDS = (0.1, 0.3)
"""Random pauses, so that changes are not in step with the service's polling."""

IDLE_SECONDS = 10


def processor_seconds() -> float:
    """Processor time of the service's processes so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if b"wsgi:app" in (stat.parent / "cmdline").read_bytes():
                fields = stat.read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def open_stream(port: int, path: str, token: str) -> socket.socket:
    """An open stream, after the head of its response."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    sock.sendall(request.encode())
    head = b""
    while b"\n:\n" not in head:
        head += sock.recv(4096)
    assert b" 200 " in head.split(b"\r\n")[0], head
    sock.setblocking(False)
    return sock


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["JOBAPI_INSTANCE_PATH"] = str(folder)
        database = stack.enter_context(postgres())
        token, workspace_id, _ = prepare(database)
        port = stack.enter_context(served("wsgi:app", database, folder, 2, 8))
        path = f"/workspace/{workspace_id}/events/stream"
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(STREAMS):
            sock = stack.enter_context(open_stream(port, path, token))
            selector.register(sock, selectors.EVENT_READ, data=sock.recv)
        before = processor_seconds()
        time.sleep(IDLE_SECONDS)
        idle = (processor_seconds() - before) / IDLE_SECONDS
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}", token=token))
        took: list[float] = []
        for number in range(CHANGES):
            began = time.perf_counter()
            job_id = client.create(workspace_id, "noop").job_id.encode()
            heard: dict[int, bytes] = {}
            missing = STREAMS
            while missing:
                for key, _ in selector.select(30):
                    heard[key.fd] = heard.get(key.fd, b"") + key.data(65536)
                    if job_id in heard[key.fd] and heard[key.fd].endswith(b"\n\n\r\n"):
                        took.append(time.perf_counter() - began)
                        heard[key.fd] = b""
                        missing -= 1
            if number == 0:
                took.clear()  # a warm-up
            time.sleep(random.uniform(*PAUSE_SECONDS))
        ms = sorted(seconds * 1000 for seconds in took)
        print(f"{STREAMS} streams, {CHANGES - 1} changes: ms from before a create to its arrival")
        print(f"median {statistics.median(ms):.0f}, ", end="")
        print(f"99th {ms[int(len(ms) * 0.99)]:.0f}, longest {ms[-1]:.0f}")
        print(f"idle: {idle:.1%} of a core")


if __name__ == "__main__":
    main()
