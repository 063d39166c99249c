"""``jobapi jobs``: creates, lists, shows and changes jobs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NoReturn

import click

from ...rules.jobs import OnConflict
from ..client import Client
from ..models import Explanation, Job, JobFilter
from .base import (
    Time,
    as_json,
    filters,
    job_types,
    json_object,
    print_answer,
    print_table,
    priorities,
    service,
)
from .events import events
from .job_logs import logs
from .operations import operate, operations, stop

EXIT_CODES = {"success": 0, "failed": 3, "cancelled": 4}
NOT_ENDED = 5


@click.group("jobs")
def jobs_group() -> None:
    """Create, list, show, watch, cancel, retry and delete jobs of a running service.

    The exit code of create --wait and watch tells how the job ended: 0 success, 3 failed,
    4 cancelled, 5 not ended yet. 1 is an error, 2 a wrong option.
    """


for _command in (events, logs, operate, operations, stop):
    jobs_group.add_command(_command)


@jobs_group.command("create")
@click.argument("job_type")
@service
@click.option("--priority", type=priorities, help="[default: normal]")
@click.option(
    "--metadata", callback=json_object, metavar="JSON", help="The job's metadata, an object."
)
@click.option(
    "--at",
    "scheduled_at",
    type=Time(),
    help="Do not start the job before this time, such as 2030-01-31T10:00:00Z.",
)
@click.option("--estimated-duration", type=click.IntRange(0), help="Estimate, in seconds.")
@click.option("--max-retries", type=click.IntRange(0, 100), help="Limit of automatic retries.")
@click.option(
    "--timeout-seconds", type=click.IntRange(1), help="Time limit of an attempt, in seconds."
)
@click.option(
    "--concurrency-key", help="Jobs of the type with the same key share a limit, and take turns."
)
@click.option("--unique-key", help="At most one pending or running job of the type has this key.")
@click.option(
    "--on-conflict",
    type=click.Choice([each.label for each in OnConflict]),
    help="What to do if a live job has the unique key.  [default: keep]",
)
@click.option("--expires-at", type=Time(), help="Cancel the job if it has not started by then.")
@click.option("--wait", is_flag=True, help="Wait until the job has ended.")
@as_json
def create(
    client: Client, workspace_id: int, job_type: str, wait: bool, as_json: bool, **fields: Any
) -> None:
    """Create a job and print its id.

    With --unique-key, this may be the id of a live job; a message on standard error says so.
    """
    job = client.create(workspace_id, job_type, **fields)
    if job.existing and not as_json:
        click.echo("No job was created: a live job has this unique key.", err=True)
    if wait:
        _end(client.wait(job, progress=not as_json), as_json)
    print_answer(job, as_json, job.job_id)


@jobs_group.command("list")
@service
@filters
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="How many to print."
)
@as_json
def list_jobs(
    client: Client, workspace_id: int, limit: int, as_json: bool, filters: JobFilter
) -> None:
    """List jobs, the newest first. A TIME looks like 2030-01-31T10:00:00Z."""
    found = islice(
        client.jobs(
            workspace_id, order="desc", page_size=min(limit, 100), light=not as_json, **filters
        ),
        limit,
    )
    if as_json:
        for job in found:
            print_answer(job, as_json, "")
    else:
        _print_table(list(found))


def _print_table(jobs: Sequence[Job]) -> None:
    rows = [("JOB", "TYPE", "STATUS", "PRIORITY", "CREATED", "RETRIES")]
    rows += [
        (
            job.job_id,
            job.job_type,
            job.status,
            job.priority,
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
            str(job.retry_count),
        )
        for job in jobs
    ]
    print_table(rows, colored=2)


@jobs_group.command("errors")
@service
@job_types
@click.option(
    "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many to print."
)
@as_json
def list_errors(
    client: Client, workspace_id: int, job_type: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List failed jobs by type and cause, the largest groups first.

    To retry a group: jobapi jobs operate retry --type TYPE --error-group GROUP.
    """
    for group in client.job_errors(workspace_id, job_type=job_type, limit=limit):
        n = f"{group.count}{'+' if group.count_is_capped else ''}"
        print_answer(
            group, as_json, f"{n:>6}  {group.job_type}  {group.error_group}  {group.cause}"
        )


@jobs_group.command("stats")
@job_types
@service
def stats(client: Client, workspace_id: int, job_type: Sequence[str]) -> None:
    """Print the workspace's statistics as JSON."""
    found = client.stats(workspace_id, job_type=job_type)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))


@jobs_group.command("show")
@click.argument("job_id")
@service
def show(client: Client, workspace_id: int, job_id: str) -> None:
    """Print a job with its attempts as JSON."""
    job = client.get(workspace_id, job_id)
    attempts = [attempt.to_json() for attempt in client.attempts(workspace_id, job_id)]
    whole = {**job.to_json(), "attempts": attempts}
    click.echo(json.dumps(whole, indent=2, ensure_ascii=False))


@jobs_group.command("explain")
@click.argument("job_id")
@service
@as_json
def explain(client: Client, workspace_id: int, job_id: str, as_json: bool) -> None:
    """Explain a job's status: what it waits for, or what ended it."""
    found = client.explain(workspace_id, job_id)
    print_answer(found, as_json, _explained(found))


def _explained(found: Explanation) -> str:
    width = max((len(reason.code) for reason in found.reasons), default=0)
    lines = [f"{reason.code.ljust(width)}  {reason.detail}" for reason in found.reasons]
    facts = {
        "jobs ahead": found.ahead,
        "live workers": found.live_workers,
        "estimated start": found.estimated_start_at,
        "estimated completion": found.estimated_completion_at,
        "estimate": found.estimate_basis,
    }
    for name, value in facts.items():
        if isinstance(value, datetime):
            lines.append(f"{name}: {value:%Y-%m-%d %H:%M:%S}")
        elif value is not None:
            more = "+" if name == "jobs ahead" and found.ahead_is_capped else ""
            lines.append(f"{name}: {value}{more}")
    return "\n  ".join([f"{found.job_id} {found.status}", *lines])


@jobs_group.command("watch")
@click.argument("job_id")
@service
@click.option(
    "--timeout", type=click.FloatRange(min=0), help="Stop watching after this many seconds."
)
@as_json
def watch(
    client: Client, workspace_id: int, job_id: str, timeout: float | None, as_json: bool
) -> None:
    """Show a job's progress until it has ended."""
    try:
        job = client.wait(client.get(workspace_id, job_id), timeout=timeout, progress=not as_json)
    except TimeoutError as error:
        click.echo(str(error), err=True)
        sys.exit(NOT_ENDED)
    _end(job, as_json)


def _end(job: Job, as_json: bool) -> NoReturn:
    print_answer(job, as_json, f"{job.job_id} {job.status}")
    if job.error and not as_json:
        click.echo(job.error, err=True)
    sys.exit(EXIT_CODES[job.status])


reason = click.option("--reason", help="Reason, for the job's result.")


@jobs_group.command("cancel")
@click.argument("job_id")
@service
@reason
@as_json
def cancel(
    client: Client, workspace_id: int, job_id: str, reason: str | None, as_json: bool
) -> None:
    """Cancel a pending or running job."""
    job = client.cancel(workspace_id, job_id, reason=reason)
    print_answer(job, as_json, f"{job.job_id} {job.status}")


@jobs_group.command("retry")
@click.argument("job_id")
@service
@reason
@as_json
def retry(
    client: Client, workspace_id: int, job_id: str, reason: str | None, as_json: bool
) -> None:
    """Retry a failed or cancelled job."""
    job = client.retry(workspace_id, job_id, reason=reason)
    print_answer(job, as_json, f"{job.job_id} {job.status}")


@jobs_group.command("delete")
@click.argument("job_id")
@service
def delete(client: Client, workspace_id: int, job_id: str) -> None:
    """Delete a job that has ended."""
    client.delete(workspace_id, job_id)
    click.echo(f"{job_id} deleted")
