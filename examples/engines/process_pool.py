"""Tasks in a pool of processes, for work that needs the processor.

jobapi worker process_pool:worker
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from jobapi.client import Task, Worker

worker = Worker(
    concurrency=2, executor=lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn"))
)


@worker.task("count_primes")
def count_primes(job: Task) -> dict[str, object]:
    """Count the primes below a number, and report progress from the pool's process."""
    limit = job.metadata.get("below", 10_000)
    found = 0
    for number in range(2, limit):
        if number % 1000 == 0:
            job.progress(100 * number // limit)
            if job.cancelled:
                return {}
        found += all(number % divisor for divisor in range(2, int(number**0.5) + 1))
    return {"primes": found}
