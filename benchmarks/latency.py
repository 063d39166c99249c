"""From a create's answer to the start in a waiting worker: ``make bench-latency``.

Jobs are created one by one on a ``jobapi serve`` with two processes, while 1, 10 and 100 workers
are idle, and then a hundred a second. Each worker claims one job at a time, waits up to 20 seconds
for it, and reports success at once. A job starts when its claim is answered; if that is before the
answer to the create, the latency counts as 0. ``BENCH_DATABASE_URL`` is as in ``bench.py``.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from typing import Any

from bench import jobapi_serve, new_job, request_bytes

CASES = ((1, 5), (10, 5), (100, 5), (100, 100))
"""Numbers of workers, and of creates a second."""

WARM_UP = 2.0
SECONDS = 10.0
CREATORS = 4
GOALS = (10, 60)
"""The median and the 99th percentile, in ms."""


class Caller:
    """One connection that is kept open, for one request at a time."""

    def __init__(self, port: int, token: str, jobs: str) -> None:
        self.port, self.token, self.jobs = port, token, jobs

    async def ask(self, path: str, body: Any) -> tuple[dict[str, str], Any]:
        """The headers and the JSON of an answer. Raises ``RuntimeError`` for an error."""
        if not hasattr(self, "writer"):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request_bytes("POST", self.jobs + path, self.token, body))
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in head[1:])
        }
        answer = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if not head[0].split()[1].startswith("2"):
            raise RuntimeError(answer.decode())
        return headers, json.loads(answer)


class Run:
    """Creates jobs while workers wait, and keeps the seconds from each answer to its start."""

    def __init__(self, port: int, token: str, workspace_id: int) -> None:
        self.caller = (port, token, f"/workspace/{workspace_id}/jobs")
        self.workspace_id = workspace_id
        self.answered: dict[str, float] = {}
        self.started: dict[str, float] = {}

    async def work(self) -> None:
        caller = Caller(*self.caller)
        while True:
            wanted = {"limit": 1, "wait_seconds": 20, "job_types": [new_job(0)["job_type"]]}
            headers, answer = await caller.ask("/claim", wanted)
            now = time.perf_counter()
            for job in answer["data"]:
                self.started[job["job_id"]] = now
                report = {"job_id": job["job_id"], "lease_token": job["lease_token"]}
                await caller.ask("/report", {"reports": [{**report, "status": "success"}]})
            await asyncio.sleep(0 if answer["data"] else float(headers.get("retry-after", 0)))

    async def create(self, number: int, rate: int, until: float) -> None:
        caller = Caller(*self.caller)
        due = time.perf_counter() + number / rate
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            _, job = await caller.ask("", {**new_job(0), "workspace_id": self.workspace_id})
            self.answered[job["job_id"]] = time.perf_counter()
            # Not in step with what the service does regularly.
            due += random.uniform(0.5, 1.5) * CREATORS / rate

    async def measure(self, workers: int, rate: int) -> list[float]:
        """The latencies in ms, ascending."""
        working = [asyncio.create_task(self.work()) for _ in range(workers)]
        await asyncio.sleep(WARM_UP)
        until = time.perf_counter() + WARM_UP + SECONDS
        await asyncio.gather(*(self.create(n, rate, until) for n in range(CREATORS)))
        deadline = time.perf_counter() + 30
        while self.answered.keys() - self.started.keys():
            if time.perf_counter() > deadline:
                raise RuntimeError("jobs did not start")
            await asyncio.sleep(0.05)
        for each in working:
            each.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        first = min(self.answered.values()) + WARM_UP
        return sorted(
            max(0.0, self.started[job_id] - at) * 1000
            for job_id, at in self.answered.items()
            if at >= first
        )


def main() -> None:
    with jobapi_serve() as (_, token, workspace_id, start), start() as server:
        port = server.port
        # Those that ``prepare`` has created would start first.
        asyncio.run(drain(Run(port, token, workspace_id)))
        names = ("workers", "creates/s", "jobs", "median ms", "99th", "longest")
        print("".join(f"{name:>11}" for name in names))
        for workers, rate in CASES:
            ms = asyncio.run(Run(port, token, workspace_id).measure(workers, rate))
            high = ms[int(len(ms) * 0.99)]
            print(
                f"{workers:11}{rate:11}{len(ms):11}{statistics.median(ms):11.1f}{high:11.1f}"
                f"{ms[-1]:11.1f}",
                flush=True,
            )
        print(f"{'goal':>11}{'':22}{GOALS[0]:11}{GOALS[1]:11}")


async def drain(run: Run) -> None:
    """Run the jobs that are there."""
    caller = Caller(*run.caller)
    while (await caller.ask("/claim", {"limit": 100, "lease_seconds": 3600}))[1]["data"]:
        pass


if __name__ == "__main__":
    main()
