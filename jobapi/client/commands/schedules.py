"""``jobapi schedules``: lists, shows, creates, edits, runs, pauses, resumes and deletes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import reduce
from typing import Any

import click

from ...rules.schedules import CatchUp, Overlap
from ..client import Client
from ..models import Schedule, ScheduleFields
from .base import Time, as_json, json_object, print_answer, print_table, priorities, service

_NONE = "none"


class _TimeOrNone(Time):
    """A time, or ``none`` to remove it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value == _NONE else super().convert(value, param, ctx)


_TIMES = [
    click.option("--cron", metavar="FIELDS", help="Five fields, such as '30 2 * * *'."),
    click.option("--every-seconds", type=click.IntRange(1), help="An interval, instead of --cron."),
    click.option("--timezone", help="IANA name of the time zone of --cron, such as Europe/Berlin."),
    click.option(
        "--overlap",
        type=click.Choice([each.label for each in Overlap]),
        help="What to do while a job of the schedule is live.",
    ),
    click.option(
        "--catch-up",
        type=click.Choice([each.label for each in CatchUp]),
        help="Which runs that an outage has missed to make up for.",
    ),
    click.option("--jitter-seconds", type=click.IntRange(0), help="Delay jobs by up to N seconds."),
    click.option("--starts-at", type=_TimeOrNone(), help="No runs before this time."),
    click.option("--ends-at", type=_TimeOrNone(), help="No runs after this time."),
    click.option("--priority", type=priorities, help="Priority of the jobs."),
    click.option("--metadata", callback=json_object, metavar="JSON", help="Metadata of the jobs."),
    click.option(
        "--job", callback=json_object, metavar="JSON", help="More fields of the jobs, an object."
    ),
]


def _fields(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each field of a schedule."""
    return reduce(lambda made, option: option(made), reversed(_TIMES), command)


def _given(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the schedule, and those of its job, that the options give."""
    fields = {
        name: None if value == _NONE and name in ("starts_at", "ends_at") else value
        for name, value in values.items()
        if value is not None and name in {*ScheduleFields.__annotations__, "name"}
    }
    of_job = ("job_type", "priority", "metadata")
    job = {name: values[name] for name in of_job if values.get(name) is not None}
    return fields, {**(values["job"] or {}), **job}


@click.group("schedules")
def schedules_group() -> None:
    """List, show, create, edit, run, pause, resume and delete the schedules of a workspace."""


_schedule_id = click.argument("schedule_id")


@schedules_group.command("list")
@service
@as_json
def list_schedules(client: Client, workspace_id: int, as_json: bool) -> None:
    """List the schedules of a workspace, the oldest first. Times are in UTC."""
    found = list(client.schedules(workspace_id))
    if as_json:
        for each in found:
            print_answer(each, as_json, "")
    else:
        heading = ("ID", "NAME", "TYPE", "TIMES", "NEXT RUN", "LAST RUN")
        print_table([heading, *map(_row, found)])


def _row(found: Schedule) -> tuple[str, ...]:
    times = f"every {found.every_seconds} s" if found.cron is None else found.cron
    if found.cron is not None and found.timezone != "UTC":
        times += f" {found.timezone}"
    state = "suspended" if found.suspended_reason else "paused" if found.paused else "-"
    upcoming = state if found.next_run_at is None else _time(found.next_run_at)
    last = "-" if found.last_run is None else f"{_time(found.last_run.ran_at)} "
    outcome = "" if found.last_run is None else found.last_run.outcome
    return (
        *(found.schedule_id, found.name, str(found.job["job_type"])),
        *(times, upcoming, last + outcome),
    )


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@schedules_group.command("show")
@_schedule_id
@service
def show(client: Client, workspace_id: int, schedule_id: str) -> None:
    """Print a schedule as JSON, with its next five runs."""
    found = client.schedule(workspace_id, schedule_id)
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))


@schedules_group.command("create")
@click.argument("name")
@service
@click.option("--type", "job_type", required=True, help="Type of the jobs.")
@_fields
@as_json
def create(client: Client, workspace_id: int, as_json: bool, name: str, **given: Any) -> None:
    """Create a schedule and print its id.

    jobapi schedules create nightly --type report --cron '30 2 * * *' --timezone Europe/Berlin
    """
    fields, job = _given(given)
    made = client.create_schedule(workspace_id, name, job=job, **fields)
    print_answer(made, as_json, made.schedule_id)


@schedules_group.command("edit")
@_schedule_id
@service
@click.option("--name", help="New name.")
@click.option("--type", "job_type", help="Type of the jobs.")
@_fields
@as_json
def edit(client: Client, workspace_id: int, schedule_id: str, as_json: bool, **given: Any) -> None:
    """Change fields of a schedule; those that are not given stay as they are.

    --metadata and --job are merged into the job, where null removes a field. With any field of the
    job, the jobs run as the caller from then on. "none" removes --starts-at and --ends-at.
    """
    fields, job = _given(given)
    if job or given["job"] is not None:
        fields["job"] = job
    if not fields:
        raise click.UsageError("Give at least one field, such as --cron '0 3 * * *'.")
    changed = client.update_schedule(workspace_id, schedule_id, **fields)
    print_answer(changed, as_json, f"{changed.name}: next run {_next(changed)}")


def _next(found: Schedule) -> str:
    return "never" if found.next_run_at is None else _time(found.next_run_at)


@schedules_group.command("run")
@_schedule_id
@service
@as_json
def run(client: Client, workspace_id: int, schedule_id: str, as_json: bool) -> None:
    """Create the schedule's job now, and print its id."""
    job = client.run_schedule(workspace_id, schedule_id)
    if job.existing and not as_json:
        click.echo("No job was created: a live job has this unique key.", err=True)
    print_answer(job, as_json, job.job_id)


@schedules_group.command("pause")
@_schedule_id
@service
@click.option("--reason", help="Reason, shown with the schedule.")
@as_json
def pause(
    client: Client, workspace_id: int, schedule_id: str, reason: str | None, as_json: bool
) -> None:
    """Stop the runs of a schedule."""
    found = client.pause_schedule(workspace_id, schedule_id, reason=reason)
    print_answer(found, as_json, f"{found.name} paused")


@schedules_group.command("resume")
@_schedule_id
@service
@as_json
def resume(client: Client, workspace_id: int, schedule_id: str, as_json: bool) -> None:
    """Let a paused or suspended schedule continue from now."""
    found = client.resume_schedule(workspace_id, schedule_id)
    print_answer(found, as_json, f"{found.name}: next run {_next(found)}")


@schedules_group.command("delete")
@_schedule_id
@service
def delete(client: Client, workspace_id: int, schedule_id: str) -> None:
    """Delete a schedule. Its jobs stay."""
    client.delete_schedule(workspace_id, schedule_id)
    click.echo(f"{schedule_id} deleted")
