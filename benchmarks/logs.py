"""Job logs: ``make bench-logs``.

What other requests take while 20 jobs log 1,000 lines a second, beside a time without, in turns
within one run; and what pages of a short and a full log take. Median milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import postgres, prepare, served

from jobapi.client import Client

ROUNDS = 5
SECONDS = 4.0
LINES_PER_SECOND = 1_000
JOBS = 20
INTERVAL = 0.25
"""How often each of these jobs reports, as a Python worker does."""

TEXT = "Processed a batch of rows from the source file and wrote it to the target "


class Load:
    """Jobs that log and, in turns, do not: then they only send heartbeats."""

    def __init__(self, client: Client, workspace_id: int) -> None:
        self.client = client
        self.workspace_id = workspace_id
        self.jobs = client.claim(workspace_id, limit=JOBS, lease_seconds=3600)
        self.logs = False
        self.lines = 0
        self.ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        n = int(LINES_PER_SECOND * INTERVAL / JOBS)
        while not self.ended.wait(INTERVAL):
            lines = [{"message": f"{TEXT}{m}"} for m in range(n)]
            more: dict[str, Any] = {"logs": lines} if self.logs else {}
            reports = [
                {"job_id": job.job_id, "lease_token": job.lease_token, **more} for job in self.jobs
            ]
            self.client.report(self.workspace_id, reports)
            self.lines += n * JOBS * self.logs


def median(act: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call."""
    times = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        act()
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)


@contextlib.contextmanager
def service() -> Iterator[tuple[Client, int, str]]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["JOBAPI_INSTANCE_PATH"] = str(folder)
        database = stack.enter_context(postgres())
        token, workspace_id, job_id = prepare(database)
        port = stack.enter_context(served("wsgi:app", database, folder, 2, 8))
        yield Client(f"http://127.0.0.1:{port}", token=token), workspace_id, job_id


def beside(client: Client, workspace_id: int, job_id: str) -> None:
    """Other requests, with and without lines."""
    load = Load(client, workspace_id)

    def cycle() -> None:
        client.create(workspace_id, "other")
        (job,) = client.claim(workspace_id, job_types=["other"])
        end = {"job_id": job.job_id, "lease_token": job.lease_token, "status": "success"}
        client.report(workspace_id, [end])

    acts: dict[str, Callable[[], object]] = {
        "read a job": lambda: client.get(workspace_id, job_id),
        "create, claim and report": cycle,
    }
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(ROUNDS):
        for name, act in acts.items():
            for logs in (False, True):
                load.logs = logs
                times.setdefault((name, logs), []).append(median(act, SECONDS / 2))
    load.ended.set()
    for name in acts:
        without, with_ = (statistics.median(times[name, logs]) for logs in (False, True))
        pairs = zip(times[name, True], times[name, False], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:26} {without:7.2f} {with_:7.2f}   ratio {ratio:.2f}")
    print(f"{load.lines} lines")


def pages(client: Client, workspace_id: int) -> None:
    """Pages of logs of different lengths."""
    for n in (10, 200, 10_000, 20_000):
        client.create(workspace_id, "long")
        (job,) = client.claim(workspace_id, job_types=["long"], lease_seconds=3600)
        entries: Any = [{"message": f"{TEXT}{m}"} for m in range(n)]
        began = time.perf_counter()
        client.append_logs(workspace_id, job.job_id, entries, lease_token=job.lease_token)
        took = (time.perf_counter() - began) * 1000
        path = f"/workspace/{workspace_id}/jobs/{job.job_id}/logs"
        queries = ("order=desc&limit=100", "limit=100", "order=desc&limit=100&level=info")
        shown = [median(partial(client.request, "GET", f"{path}?{each}"), 1.0) for each in queries]
        print(f"{n:6} lines: append {took:8.1f}, " + ", ".join(f"{each:.2f}" for each in shown))


def main() -> None:
    with service() as (client, workspace_id, job_id):
        print("ms                         without  with lines")
        beside(client, workspace_id, job_id)
        print("ms of a page of 100: the last, the first, the last with a filter")
        pages(client, workspace_id)


if __name__ == "__main__":
    main()
