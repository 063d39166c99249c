"""What the service needs when it has nothing to do: ``make bench-footprint``.

Prints how long the imports and a start take; the memory of each process of ``jobapi serve`` (one
supervisor, two processes with 16 threads) after the start, with 100 waiting workers and 500
streams, and after a time of full load; and the processor time of all while these workers and
streams wait. Memory is the proportional set size: pages that processes share are divided among
them. ``FOOTPRINT_SECONDS`` is the time of full load. ``BENCH_DATABASE_URL`` is as in ``bench.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench import jobapi_serve
from cycle import processes, work
from latency import Run, drain
from soak import create
from streams import open_stream

STARTS = 7
WORKERS = 100
STREAMS = 500
SETTLE_SECONDS = 5
IDLE_SECONDS = 20
LOAD_SECONDS = float(os.environ.get("FOOTPRINT_SECONDS", "60"))
TICK = os.sysconf("SC_CLK_TCK")


def family(process_id: int) -> list[int]:
    """A process and its descendants, the oldest first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process_id]
    for parent in found:
        found += sorted(child for child, of in parents.items() if of == parent)
    return found


def memory(process_id: int) -> str:
    """The MiB of each process of the service."""
    found = []
    for each in family(process_id):
        lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        (kib,) = (int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        found.append(f"{kib / 1024:.1f}")
    return ", ".join(found)


def processor_seconds(process_id: int) -> float:
    """The processor time of the service's processes so far."""
    ticks = 0
    for each in family(process_id):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def import_seconds(statement: str) -> float:
    """The median time of a Python process that runs a statement."""
    took = []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


async def idle_load(run: Run, process_id: int) -> float:
    """The share of a core that the service needs while workers wait."""
    working = [asyncio.create_task(run.work()) for _ in range(WORKERS)]
    await asyncio.sleep(SETTLE_SECONDS)
    before = processor_seconds(process_id)
    await asyncio.sleep(IDLE_SECONDS)
    used = processor_seconds(process_id) - before
    for each in working:
        each.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    return used / IDLE_SECONDS


def main() -> None:
    bare = import_seconds("pass")
    for module in ("jobapi", "jobapi.client"):
        print(f"import {module}: {(import_seconds(f'import {module}') - bare) * 1000:.0f} ms")
    with jobapi_serve(LOAD_SECONDS) as (database, token, workspace_id, start):
        took = []
        for _ in range(STARTS):
            began = time.perf_counter()
            with start():
                took.append(time.perf_counter() - began)
        print(f"from the command to the first answer: {statistics.median(took):.2f} s")
        with start() as server:
            port, process_id = server
            time.sleep(SETTLE_SECONDS)
            print(f"MiB after the start: {memory(process_id)}")
            asyncio.run(drain(Run(port, token, workspace_id)))
            path = f"/workspace/{workspace_id}/events/stream"
            with contextlib.ExitStack() as streams:
                for _ in range(STREAMS):
                    streams.enter_context(open_stream(port, path, token))
                load = asyncio.run(idle_load(Run(port, token, workspace_id), process_id))
                print(
                    f"MiB with {WORKERS} waiting workers, {STREAMS} streams: {memory(process_id)}"
                )
                print(f"their load while nothing happens: {load:.1%} of a core")
            caller = (server.url, token, workspace_id)
            with processes(create, 1, database, *caller), processes(work, 2, *caller):
                time.sleep(LOAD_SECONDS)
            print(f"MiB after {LOAD_SECONDS:.0f} s at full speed: {memory(process_id)}")


if __name__ == "__main__":
    main()
