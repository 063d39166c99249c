"""The commands that talk to a running service: ``jobapi worker`` and ``jobapi jobs``."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from itertools import islice
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from ..errors import JobApiError
from ..rules.events import EventKind
from ..rules.lifecycle import JobStatus, Priority
from ..rules.operations import Action
from .client import Client
from .models import Event, EventFilter, Job, JobFilter, Operation
from .retries import Unreachable
from .shift import ThreadsLost
from .worker import Worker

EXIT_CODES = {"success": 0, "failed": 3, "cancelled": 4}
STILL_ALIVE = 5
INTERRUPTED = 130
_TELLING = ("error", "reason", "progress_message", "progress_percent", "username", "name")
TIME = click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%z"])


def service(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its client and workspace."""

    @click.option(
        "--url",
        envvar="JOBAPI_URL",
        default="http://localhost:8000",
        show_default=True,
        show_envvar=True,
        help="Where the service is.",
    )
    @click.option(
        "--token",
        envvar="JOBAPI_TOKEN",
        required=True,
        show_envvar=True,
        help="An API key, or an access token.",
    )
    @click.option(
        "--workspace",
        "workspace_id",
        envvar="JOBAPI_WORKSPACE",
        default=1,
        show_default=True,
        show_envvar=True,
        type=click.IntRange(1),
    )
    @wraps(command)
    def with_client(url: str, token: str, **kw: Any) -> Any:
        with _messages(), Client(url, token=token) as client:
            return command(client, **kw)

    return with_client


@contextmanager
def _messages() -> Any:
    try:
        yield
    except (JobApiError, Unreachable, ThreadsLost, TimeoutError) as error:
        raise click.ClickException(str(error)) from None


@click.command("worker")
@click.argument("target", metavar="MODULE:WORKER")
@service
@click.option("--concurrency", type=click.IntRange(1), help="How many jobs at a time.")
@click.option("--processes", is_flag=True, help="In processes instead of threads.")
@click.option("--name", help="The worker's name.  [default: host:process]")
@click.option("--lease-seconds", type=click.IntRange(5, 3600))
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
    """Run a worker: do the jobs for which it has tasks, until SIGTERM or Ctrl-C.

    MODULE:WORKER names a jobapi.client.Worker, such as etl:worker in etl.py. What
    runs may finish; a second signal ends it at once. The exit code is 0 after a stop,
    128 + the signal's number after a second one, and 1 for an error that does not
    pass by itself, such as a key that was revoked.
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
        raise click.BadParameter(f"{target} is no jobapi.client.Worker.")
    return found


@click.group("jobs")
def jobs_group() -> None:
    """Create, list, show, watch, cancel, retry and delete jobs of a running service.

    The exit code of create --wait and watch says how the job ended: 0 success,
    3 failed, 4 cancelled, 5 not yet. 1 is an error, 2 a wrong option.
    """


as_json = click.option("--json", "as_json", is_flag=True, help="For a script: JSON.")


def _object(context: Any, parameter: Any, value: str | None) -> Any:
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter("a JSON object is needed")
    return found


def _time(context: Any, parameter: Any, value: datetime | None) -> datetime | None:
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


@jobs_group.command("create")
@click.argument("job_type")
@service
@click.option("--priority", type=click.Choice([p.label for p in Priority]))
@click.option("--metadata", callback=_object, help="A JSON object.")
@click.option(
    "--at",
    "scheduled_at",
    type=TIME,
    callback=_time,
    help="Not before this time, in UTC or with an offset.",
)
@click.option("--estimated-duration", type=click.IntRange(0), help="Seconds.")
@click.option("--max-retries", type=click.IntRange(0, 100))
@click.option("--timeout-seconds", type=click.IntRange(1), help="How long an attempt may run.")
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@as_json
def create(
    client: Client,
    workspace_id: int,
    job_type: str,
    wait: bool,
    as_json: bool,
    scheduled_at: datetime | None,
    **fields: Any,
) -> None:
    """Create a job and print its id."""
    job = client.create(workspace_id, job_type, scheduled_at=scheduled_at, **fields)
    if wait:
        _end(client.wait(job, progress=not as_json), as_json)
    click.echo(_json(job) if as_json else job.job_id)


def _values(context: Any, parameter: Any, given: Sequence[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter("write PATH=VALUE, such as batch_id=3")
    return {path: value for path, _, value in pairs}


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the filters of jobs, as ``JobFilter`` has them."""
    for option in reversed(
        [
            click.option(
                "--status", multiple=True, type=click.Choice([s.label for s in JobStatus])
            ),
            click.option("--type", "job_type", multiple=True, help="Only these types."),
            click.option(
                "--priority", multiple=True, type=click.Choice([p.label for p in Priority])
            ),
            click.option(
                "--created-after", type=TIME, callback=_time, help="At this time or later."
            ),
            click.option("--created-before", type=TIME, callback=_time, help="Before this time."),
            click.option("--updated-after", type=TIME, callback=_time, help="Changed since then."),
            click.option(
                "--created-by", type=click.IntRange(1), help="Only this user's jobs, by id."
            ),
            click.option(
                "--metadata",
                multiple=True,
                callback=_values,
                metavar="PATH=VALUE",
                help="The metadata has this value there; may be repeated.",
            ),
        ]
    ):
        command = option(command)

    @wraps(command)
    def with_filters(*args: Any, **kw: Any) -> Any:
        given = {name: kw.pop(name) for name in JobFilter.__annotations__}
        return command(*args, filters={n: v for n, v in given.items() if v}, **kw)

    return with_filters


@jobs_group.command("list")
@service
@filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@as_json
def list_jobs(
    client: Client, workspace_id: int, limit: int, as_json: bool, filters: JobFilter
) -> None:
    """List jobs, the newest first. Times are in UTC, or with an offset."""
    found = client.jobs(
        workspace_id, order="desc", page_size=min(limit, 100), light=not as_json, **filters
    )
    _table(islice(found, limit), as_json)


@jobs_group.command("operate")
@click.argument("action", type=click.Choice([action.label for action in Action]))
@service
@filters
@click.option("--reason", help="For cancel and retry.")
@click.option("--dry-run", is_flag=True, help="Only say how many jobs match.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Do not wait for its end.")
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
    """Cancel, retry or delete all jobs that match, in one call.

    It says how many there are and asks; then it waits for the end. Stopped with
    Ctrl-C, the operation goes on in the service: see jobapi jobs operations.
    """
    if dry_run or not yes:
        would = client.operate(workspace_id, action, dry_run=True, **filters)
        many = f"{'more than ' if would.matched_is_capped else ''}{would.matched} jobs"
        if dry_run:
            click.echo(_json(would) if as_json else many)
            return
        click.confirm(f"{action.capitalize()} {many}?", abort=True, err=True)
    operation = client.operate(workspace_id, action, reason=reason, **filters)
    if not no_wait:

        def show(now: Operation) -> None:
            click.echo(f"{now.changed} of {now.matched}", err=True)

        operation = client.wait_for_operation(operation, show=(lambda _: None) if as_json else show)
    click.echo(_json(operation) if as_json else _line(operation))


@jobs_group.command("operations")
@service
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@as_json
def operations(client: Client, workspace_id: int, limit: int, as_json: bool) -> None:
    """List operations on many jobs, the newest first."""
    for operation in islice(client.operations(workspace_id), limit):
        click.echo(_json(operation) if as_json else _line(operation))


@jobs_group.command("stop")
@click.argument("operation_id", type=click.IntRange(1))
@service
@as_json
def stop(client: Client, workspace_id: int, operation_id: int, as_json: bool) -> None:
    """Stop an operation on many jobs; what it has done stays."""
    operation = client.stop_operation(workspace_id, operation_id)
    click.echo(_json(operation) if as_json else _line(operation))


def _line(operation: Operation) -> str:
    skipped = f", {operation.skipped} skipped" if operation.skipped else ""
    return (
        f"{operation.operation_id} {operation.action} {operation.status}: "
        f"{operation.changed} of {operation.matched} jobs{skipped}"
    )


@jobs_group.command("stats")
@click.option(
    "--type", "job_type", multiple=True, help="Only jobs of this type; repeat it for more types."
)
@service
def stats(client: Client, workspace_id: int, job_type: Sequence[str]) -> None:
    """Print how the workspace is doing, as JSON."""
    found = client.stats(workspace_id, job_type=job_type)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _table(jobs: Iterable[Job], as_json: bool) -> None:
    if as_json:
        for job in jobs:
            click.echo(_json(job))
        return
    table = Table("job", "type", "status", "priority", "created", "tries", box=None)
    for job in jobs:
        created = job.created_at.strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            job.job_id, job.job_type, job.status, job.priority, created, str(job.retry_count)
        )
    # A script that reads the table gets whole ids, however narrow it is.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


@jobs_group.command("show")
@click.argument("job_id")
@service
def show(client: Client, workspace_id: int, job_id: str) -> None:
    """Print everything about a job, with its attempts, as JSON."""
    job = client.get(workspace_id, job_id)
    attempts = [attempt.to_json() for attempt in client.attempts(workspace_id, job_id)]
    whole = {**job.to_json(), "attempts": attempts}
    click.echo(json.dumps(whole, indent=2, ensure_ascii=False))


@jobs_group.command("watch")
@click.argument("job_id")
@service
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds; then the exit code is 5.")
@as_json
def watch(
    client: Client, workspace_id: int, job_id: str, timeout: float | None, as_json: bool
) -> None:
    """Watch a job until it has ended."""
    try:
        job = client.wait(client.get(workspace_id, job_id), timeout=timeout, progress=not as_json)
    except TimeoutError as error:
        click.echo(str(error), err=True)
        sys.exit(STILL_ALIVE)
    _end(job, as_json)


def _end(job: Job, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(_json(job))
    else:
        click.echo(f"{job.job_id} {job.status}")
        if job.error:
            click.echo(job.error, err=True)
    sys.exit(EXIT_CODES[job.status])


@jobs_group.command("events")
@click.argument("job_id", required=False)
@service
@click.option("--kind", multiple=True, type=click.Choice([kind.label for kind in EventKind]))
@click.option(
    "--type", "job_type", multiple=True, help="Only jobs of this type; repeat it for more types."
)
@click.option("--follow", is_flag=True, help="What happens from now on, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(1), help="[default: 50; with --follow none]")
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
    """List what has happened to a job, or in the workspace, the newest first."""
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
            click.echo(_json(event) if as_json else _event_line(event))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _event_line(event: Event) -> str:
    said = event.data or {}
    detail = next((said[name] for name in _TELLING if said.get(name) is not None), None)
    parts = [
        event.at.strftime("%Y-%m-%d %H:%M:%S"),
        event.kind,
        event.job_id,
        event.job_type,
        event.worker,
        # One line for each, whatever is in an error.
        None if detail is None else " ".join(str(detail).split())[:100],
    ]
    return "  ".join(part for part in parts if part)


@jobs_group.command("cancel")
@click.argument("job_id")
@service
@click.option("--reason")
@as_json
def cancel(
    client: Client, workspace_id: int, job_id: str, reason: str | None, as_json: bool
) -> None:
    """Cancel a pending or running job."""
    job = client.cancel(workspace_id, job_id, reason=reason)
    click.echo(_json(job) if as_json else f"{job.job_id} {job.status}")


@jobs_group.command("retry")
@click.argument("job_id")
@service
@click.option("--reason")
@as_json
def retry(
    client: Client, workspace_id: int, job_id: str, reason: str | None, as_json: bool
) -> None:
    """Put a failed or cancelled job back."""
    job = client.retry(workspace_id, job_id, reason=reason)
    click.echo(_json(job) if as_json else f"{job.job_id} {job.status}")


@jobs_group.command("delete")
@click.argument("job_id")
@service
def delete(client: Client, workspace_id: int, job_id: str) -> None:
    """Delete a job that has ended."""
    client.delete(workspace_id, job_id)
    click.echo(f"{job_id} deleted")


def _json(answer: Job | Operation | Event) -> str:
    return json.dumps(answer.to_json(), ensure_ascii=False)
