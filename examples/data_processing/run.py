"""The guide's scenario in one command: ``make example``, while ``make run`` serves.

Creates raw data and the guide's job, runs the job with the worker in this folder,
and prints the result.
"""

from __future__ import annotations

import csv
import os
import random

from worker import FOLDER, worker

from jobapi.client import Client

REGIONS = ("north", "south", "east", "west")


def make_raw_data(rows: int = 100_000) -> str:
    """Write a CSV file with gaps and duplicates and return its name."""
    chance = random.Random(1)
    with (FOLDER / "raw_data.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["order", "region", "quantity", "price"])
        for order in range(rows):
            quantity = "" if order % 100 == 0 else chance.randrange(1, 10)
            row = [order, chance.choice(REGIONS), quantity, chance.randrange(100, 1000) / 4]
            out.writerow(row)
            if order % 50 == 1:
                out.writerow(row)
    return "raw_data.csv"


def main() -> None:
    """Create the job, run it and print the result."""
    url = os.environ.get("JOBAPI_URL", "http://localhost:8000")
    with Client(url, username="demo", password="demo-password") as client:
        job = client.create(
            1,
            "data_processing",
            priority="high",
            metadata={
                "input_file": make_raw_data(),
                "operations": ["clean", "transform", "aggregate"],
                "output_format": "parquet",
            },
            estimated_duration=1800,
        )
        print(f"Created {job.job_id}")
        worker.client, worker.workspace_id = client, 1
        worker.run(until_idle=True)
        job = client.wait(job, progress=True)
        print(job.status, job.result or job.error)


if __name__ == "__main__":
    main()
