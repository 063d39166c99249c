"""``async def`` tasks: hundreds of jobs that wait for the network, in one process.

jobapi worker async_tasks:worker
"""

import asyncio

from jobapi.client import Task, Worker

worker = Worker(concurrency=500)


@worker.task("call_service")
async def call_service(job: Task) -> dict[str, object]:
    """Wait as long as a remote service would take. A cancelled job cancels the wait."""
    await asyncio.sleep(job.metadata.get("seconds", 1))
    return {"answer": "done"}
