"""The commands that call a running service: ``jobapi worker`` and ``jobapi jobs``."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce, wraps
from itertools import islice
from typing import Any, NoReturn

import click

from ..errors import JobApiError
from ..rules.events import EventKind
from ..rules.jobs import JobStatus, Priority
from ..rules.operations import Action
from .client import Client
from .models import ErrorGroup, Event, EventFilter, Job, JobFilter, Operation
from .retries import Unreachable
from .runner import ThreadsLost
from .runs import ExecutorClosed
from .worker import Worker

EXIT_CODES = {"success": 0, "failed": 3, "cancelled": 4}
NOT_ENDED = 5
INTERRUPTED = 130

_COLORS = {"success": "green", "failed": "red", "running": "cyan", "cancelled": "yellow"}
# What an event's line shows of its data: the first that there is.
_DETAILS = ("error", "reason", "progress_message", "progress_percent", "username", "name")


def service(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for its service, and a client in place of URL and token."""

    @click.option(
        "--url",
        envvar="JOBAPI_URL",
        default="http://localhost:8000",
        show_default=True,
        show_envvar=True,
        help="URL of the service.",
    )
    @click.option(
        "--token",
        envvar="JOBAPI_TOKEN",
        required=True,
        show_envvar=True,
        help="API key or access token.",
    )
    @click.option(
        "--workspace",
        "workspace_id",
        envvar="JOBAPI_WORKSPACE",
        default=1,
        show_default=True,
        show_envvar=True,
        type=click.IntRange(1),
        help="Id of the workspace.",
    )
    @wraps(command)
    def with_client(url: str, token: str, **kw: Any) -> Any:
        with _error_messages(), Client(url, token=token) as client:
            return command(client, **kw)

    return with_client


_ERRORS = (JobApiError, Unreachable, ThreadsLost, TimeoutError, BrokenExecutor, ExecutorClosed)
"""What a command reports as a message, without a traceback."""


@contextmanager
def _error_messages() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise click.ClickException(str(error)) from None


@click.command("worker")
@click.argument("target", metavar="MODULE:WORKER")
@service
@click.option("--concurrency", type=click.IntRange(1), help="How many jobs run at a time.")
@click.option("--processes", is_flag=True, help="Run jobs in processes instead of threads.")
@click.option("--name", help="Name of the worker.  [default: host:process]")
@click.option(
    "--lease-seconds", type=click.IntRange(5, 3600), help="Length of a lease.  [default: 60]"
)
@click.option("--until-idle", is_flag=True, help="End when no job is due.")
def worker_command(
    client: Client,
    target: str,
    workspace_id: int,
    concurrency: int | None,
    processes: bool,
    name: str | None,
    lease_seconds: int | None,
    until_idle: bool,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    MODULE:WORKER names a jobapi.client.Worker, such as etl:worker for the variable worker in
    etl.py. After the first signal, running jobs may finish; a second one ends the worker at
    once. The exit code is 0 after a stop, 128 + the signal's number after a second signal, and
    1 for an error that does not pass by itself, such as a revoked key.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    worker = _load(target)
    worker.client, worker.workspace_id = client, workspace_id
    worker.name = name or worker.name
    worker.concurrency = concurrency or worker.concurrency
    worker.lease_seconds = lease_seconds or worker.lease_seconds
    worker.processes = processes or worker.processes
    worker.run(until_idle=until_idle)


def _load(target: str) -> Worker:
    module, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name or "worker")
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{target}: {error}") from error
    if not isinstance(found, Worker):
        raise click.BadParameter(f"{target} is not a jobapi.client.Worker.")
    return found


@click.group("jobs")
def jobs_group() -> None:
    """Create, list, show, watch, cancel, retry and delete jobs of a running service.

    The exit code of create --wait and watch tells how the job ended: 0 success, 3 failed,
    4 cancelled, 5 not ended yet. 1 is an error, 2 a wrong option.
    """


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
job_types = click.option(
    "--type", "job_type", multiple=True, help="Only jobs of this type; may be repeated."
)
priorities = click.Choice([priority.label for priority in Priority])


def _print(answer: Job | Operation | Event | ErrorGroup, as_json: bool, text: str) -> None:
    click.echo(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else text)


def _object(context: Any, parameter: Any, value: str | None) -> Any:
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter('must be a JSON object, such as {"batch_id": 3}')
    return found


class _Time(click.DateTime):
    def __init__(self) -> None:
        super().__init__(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%z"])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        time: datetime = super().convert(value, param, ctx)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


@jobs_group.command("create")
@click.argument("job_type")
@service
@click.option("--priority", type=priorities, help="[default: normal]")
@click.option("--metadata", callback=_object, metavar="JSON", help="The job's metadata, an object.")
@click.option(
    "--at",
    "scheduled_at",
    type=_Time(),
    help="Do not start the job before this time, such as 2030-01-31T10:00:00Z.",
)
@click.option("--estimated-duration", type=click.IntRange(0), help="Estimate, in seconds.")
@click.option("--max-retries", type=click.IntRange(0, 100), help="Limit of automatic retries.")
@click.option(
    "--timeout-seconds", type=click.IntRange(1), help="Time limit of an attempt, in seconds."
)
@click.option("--wait", is_flag=True, help="Wait until the job has ended.")
@as_json
def create(
    client: Client, workspace_id: int, job_type: str, wait: bool, as_json: bool, **fields: Any
) -> None:
    """Create a job and print its id."""
    job = client.create(workspace_id, job_type, **fields)
    if wait:
        _end(client.wait(job, progress=not as_json), as_json)
    _print(job, as_json, job.job_id)


def _pairs(context: Any, parameter: Any, given: Sequence[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter("write PATH=VALUE, such as batch_id=3")
    return {path: value for path, _, value in pairs}


FILTERS = [
    click.option("--status", multiple=True, type=click.Choice([s.label for s in JobStatus])),
    job_types,
    click.option("--priority", multiple=True, type=priorities),
    click.option("--created-after", type=_Time(), help="Created at this time or later."),
    click.option("--created-before", type=_Time(), help="Created before this time."),
    click.option("--updated-after", type=_Time(), help="Changed at this time or later."),
    click.option("--created-by", type=click.IntRange(1), help="Created by the user with this id."),
    click.option("--job-id", multiple=True, help="Only this job; may be repeated."),
    click.option("--error", help="The error contains this text."),
    click.option("--error-group", multiple=True, help="Failed with an error of this group."),
    click.option(
        "--metadata",
        multiple=True,
        callback=_pairs,
        metavar="PATH=VALUE",
        help="The metadata has this value; may be repeated.",
    ),
]


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each field of ``JobFilter``."""

    @wraps(command)
    def with_filters(*args: Any, **kw: Any) -> Any:
        given = {name: kw.pop(name) for name in JobFilter.__annotations__}
        return command(*args, filters={n: v for n, v in given.items() if v}, **kw)

    return reduce(lambda made, option: option(made), reversed(FILTERS), with_filters)


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
            _print(job, as_json, "")
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[2] = click.style(cells[2], _COLORS.get(row[2]))
        click.echo("  ".join(cells).rstrip())


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
        _print(group, as_json, f"{n:>6}  {group.job_type}  {group.error_group}  {group.cause}")


@jobs_group.command("operate")
@click.argument("action", type=click.Choice([action.label for action in Action]))
@service
@filters
@click.option("--reason", help="Reason of a cancel or retry, for the jobs' results.")
@click.option("--dry-run", is_flag=True, help="Only print how many jobs match.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the operation has ended.")
@as_json
def operate(
    client: Client,
    workspace_id: int,
    action: str,
    filters: JobFilter,
    reason: str | None,
    dry_run: bool,
    yes: bool,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Cancel, retry or delete all jobs that match the filters, in one call.

    Prints how many jobs match, asks for confirmation, and waits until the operation has ended.
    Ctrl-C ends only the waiting, not the operation: see jobapi jobs stop.
    """
    if dry_run or not yes:
        would = client.operate(workspace_id, action, dry_run=True, **filters)
        count = f"{'more than ' if would.matched_is_capped else ''}{would.matched} jobs"
        if dry_run:
            _print(would, as_json, count)
            return
        click.confirm(f"{action.capitalize()} {count}?", abort=True, err=True)
    operation = client.operate(workspace_id, action, reason=reason, **filters)
    if not no_wait:

        def show(now: Operation) -> None:
            if not as_json:
                click.echo(f"{now.changed} of {now.matched}", err=True)

        operation = client.wait_for_operation(operation, show=show)
    _print(operation, as_json, _line(operation))


@jobs_group.command("operations")
@service
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many to print."
)
@as_json
def operations(client: Client, workspace_id: int, limit: int, as_json: bool) -> None:
    """List bulk operations, the newest first."""
    for operation in islice(client.operations(workspace_id), limit):
        _print(operation, as_json, _line(operation))


@jobs_group.command("stop")
@click.argument("operation_id", type=click.IntRange(1))
@service
@as_json
def stop(client: Client, workspace_id: int, operation_id: int, as_json: bool) -> None:
    """Stop a bulk operation. The changes that it has made stay."""
    operation = client.stop_operation(workspace_id, operation_id)
    _print(operation, as_json, _line(operation))


def _line(operation: Operation) -> str:
    skipped = f", {operation.skipped} skipped" if operation.skipped else ""
    return (
        f"{operation.operation_id} {operation.action} {operation.status}: "
        f"{operation.changed} of {operation.matched} jobs{skipped}"
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
    _print(job, as_json, f"{job.job_id} {job.status}")
    if job.error and not as_json:
        click.echo(job.error, err=True)
    sys.exit(EXIT_CODES[job.status])


@jobs_group.command("events")
@click.argument("job_id", required=False)
@service
@click.option(
    "--kind",
    multiple=True,
    type=click.Choice([kind.label for kind in EventKind]),
    help="Only events of this kind; may be repeated.",
)
@job_types
@click.option("--follow", is_flag=True, help="Print new events as they happen, until Ctrl-C.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="How many to print.  [default: 50; with --follow no limit]",
)
@as_json
def events(
    client: Client,
    workspace_id: int,
    job_id: str | None,
    kind: Sequence[str],
    job_type: Sequence[str],
    follow: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the events of a job or of the workspace, the newest first."""
    wanted: EventFilter = {"kind": kind, "job_type": job_type}
    if job_id is not None:
        wanted["job_id"] = job_id
    found: Iterator[Event]
    if follow:
        found = client.follow(workspace_id, **wanted)
    else:
        limit = limit or 50
        found = client.events(workspace_id, page_size=min(limit, 100), **wanted)
    try:
        for event in islice(found, limit):
            _print(event, as_json, _event_line(event))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _event_line(event: Event) -> str:
    data = event.data or {}
    detail = next((data[name] for name in _DETAILS if data.get(name) is not None), None)
    parts = [
        f"{event.at:%Y-%m-%d %H:%M:%S}",
        event.kind,
        event.job_id,
        event.job_type,
        event.worker,
        # In one line, whatever an error contains.
        None if detail is None else " ".join(str(detail).split())[:100],
    ]
    return "  ".join(part for part in parts if part)


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
    _print(job, as_json, f"{job.job_id} {job.status}")


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
    _print(job, as_json, f"{job.job_id} {job.status}")


@jobs_group.command("delete")
@click.argument("job_id")
@service
def delete(client: Client, workspace_id: int, job_id: str) -> None:
    """Delete a job that has ended."""
    client.delete(workspace_id, job_id)
    click.echo(f"{job_id} deleted")
