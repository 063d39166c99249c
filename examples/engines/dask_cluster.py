"""Tasks on a Dask cluster; its workers need jobapi, this module and a way to the service.

DASK_SCHEDULER=tcp://scheduler:8786 jobapi worker dask_cluster:worker
"""

import os
from concurrent.futures import Executor

from distributed import Client

from jobapi.client import Task, Worker


def connect() -> Executor:
    """Connect when the worker starts, because Dask's workers import this module, too."""
    return Client(os.environ["DASK_SCHEDULER"]).get_executor()


worker = Worker(concurrency=8, executor=connect)


@worker.task("sum_squares")
def sum_squares(job: Task) -> dict[str, object]:
    """Run on one of Dask's workers."""
    job.progress(50, "half of it")
    return {"sum": sum(n * n for n in range(job.metadata.get("below", 1000)))}
