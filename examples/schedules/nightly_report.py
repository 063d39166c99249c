"""A nightly report of failed jobs, by schedule.

python nightly_report.py                # creates the schedule, or updates it
jobapi worker nightly_report:worker     # writes the reports

``JOBAPI_URL`` and ``JOBAPI_TOKEN`` say for which service; the token needs the role member. Reports
are written to ``REPORT_FOLDER``, by default this one.
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from jobapi.client import Client, Task, Worker

WORKSPACE = int(os.environ.get("JOBAPI_WORKSPACE", "1"))
FOLDER = Path(os.environ.get("REPORT_FOLDER", Path(__file__).parent))
NAME = "nightly report"
TIMES = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}

worker = Worker()


def connect() -> Client:
    """A client of the service that the environment names."""
    url = os.environ.get("JOBAPI_URL", "http://localhost:8000")
    return Client(url, token=os.environ["JOBAPI_TOKEN"])


@worker.task("nightly_report")
def report(job: Task) -> dict[str, Any]:
    """Write how many jobs of each type failed on the day before."""
    # The nominal time, so that a late run and a retry report the same day.
    moment = job.job.scheduled_for or datetime.now(UTC)
    zone = ZoneInfo(TIMES["timezone"])
    today = moment.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = (today - timedelta(days=1)).astimezone(UTC)
    with connect() as client:
        failed = Counter(
            each.job_type
            for each in client.jobs(WORKSPACE, status="failed", updated_after=begin, light=True)
            if each.completed_at is not None and begin <= each.completed_at < today
        )
    day = begin.astimezone(zone).date()
    lines = [f"{n:6} {job_type}" for job_type, n in failed.most_common()]
    (FOLDER / f"failures-{day}.txt").write_text("\n".join([f"Failures on {day}", *lines, ""]))
    return {"day": str(day), "failed": failed.total()}


def main() -> None:
    """Create the schedule; once it exists, give it these times."""
    with connect() as client:
        there = next((each for each in client.schedules(WORKSPACE) if each.name == NAME), None)
        if there is None:
            # One report at a time; after an outage only the last one is made up for.
            found = client.create_schedule(
                WORKSPACE,
                NAME,
                job={"job_type": "nightly_report"},
                overlap="skip",
                catch_up="last",
                **TIMES,
            )
        else:
            found = client.update_schedule(WORKSPACE, there.schedule_id, **TIMES)
        print(f"{found.name}: next run {found.next_run_at}, {found.schedule_id}")


if __name__ == "__main__":
    main()
