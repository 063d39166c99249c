"""No-op jobs with Procrastinate or Celery; ``cycle.py`` runs it in ``benchmarks/.venv``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any


def procrastinate_app() -> Any:
    import procrastinate

    connector = procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_DATABASE"])
    app = procrastinate.App(connector=connector)

    @app.task(name="noop", queue="bench")
    async def noop() -> None:
        pass

    return app


async def procrastinate(verb: str, jobs: int) -> None:
    app = procrastinate_app()
    async with app.open_async():
        run = app.connector.execute_query_one_async
        if verb == "prepare":
            found = await run("SELECT to_regclass('procrastinate_jobs') IS NULL AS new")
            if found["new"]:
                await app.schema_manager.apply_schema_async()
            await app.connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")
        elif verb == "work":
            await app.run_worker_async(queues=["bench"], concurrency=10)
        else:
            began = time.perf_counter()
            task = app.tasks["noop"]
            for start in range(0, jobs, 1000):
                await task.batch_defer_async(*[{}] * min(1000, jobs - start))
            query = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status = 'succeeded'"
            while (await run(query))["n"] < jobs:
                await asyncio.sleep(0.02)
            print(time.perf_counter() - began)


def celery(verb: str, jobs: int) -> None:
    import redis
    from celery import Celery

    url = os.environ["BENCH_REDIS_URL"]
    store = redis.Redis.from_url(url)
    app = Celery("bench", broker=url)
    app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=64)

    @app.task(name="noop")
    def noop() -> None:
        store.incr("bench-done")

    if verb == "prepare":
        store.flushdb()
    elif verb == "work":
        app.worker_main(
            [
                "worker",
                "--pool",
                "solo",
                "--without-gossip",
                "--without-mingle",
                "--hostname",
                f"w{os.getpid()}@bench",
                "--loglevel",
                "WARNING",
            ]
        )
    else:
        began = time.perf_counter()
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(jobs):
                noop.apply_async(producer=producer)
        while int(store.get("bench-done") or 0) < jobs:
            time.sleep(0.02)
        print(time.perf_counter() - began)


def main() -> None:
    name, verb, *rest = sys.argv[1:]
    jobs = int(rest[0]) if rest else 0
    if name == "procrastinate":
        asyncio.run(procrastinate(verb, jobs))
    else:
        celery(verb, jobs)


if __name__ == "__main__":
    main()
