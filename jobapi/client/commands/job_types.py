"""``jobapi job-types``: lists job types, shows, changes, pauses and resumes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import reduce
from typing import Any

import click

from ...rules.jobs import Priority
from ..client import Client
from ..models import JobType, JobTypeSettings, RateLimit
from .base import as_json, print_answer, print_table, service

_NONE = "none"
_SETTINGS = [name for name in JobTypeSettings.__annotations__ if not name.startswith("paused")]


def _setting(name: str, convert: Callable[..., Any], metavar: str, text: str) -> Any:
    """An option for a setting: a value that ``convert`` reads, or ``none`` for the default."""

    def read(context: Any, parameter: Any, given: str | None) -> Any:
        return given if given in (None, _NONE) else convert(given, parameter, context)

    return click.option(name, callback=read, metavar=f"{metavar}|{_NONE}", help=text)


def _rate(given: str, *_: Any) -> RateLimit:
    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", given)
    if numbers is None:
        raise click.BadParameter("write STARTS/SECONDS, such as 100/60, or none")
    return RateLimit(starts=int(numbers[1]), seconds=int(numbers[2]))


_number = click.IntRange(1).convert
_PRIORITIES = [priority.label for priority in Priority]
_OPTIONS = [
    _setting("--max-running", _number, "N", "Limit of running jobs."),
    _setting("--max-running-per-key", _number, "N", "Limit of running jobs per concurrency key."),
    _setting("--rate-limit", _rate, "STARTS/SECONDS", "Limit of starts, such as 100/60."),
    _setting("--max-pending", _number, "N", "Limit of pending jobs; creates beyond it fail."),
    _setting(
        "--start-within-seconds",
        _number,
        "N",
        "Cancel new jobs that have not started N seconds after they are due.",
    ),
    _setting(
        "--priority",
        click.Choice([*_PRIORITIES, _NONE]).convert,
        "|".join(_PRIORITIES),
        "Default priority.",
    ),
    _setting("--max-retries", click.IntRange(0).convert, "N", "Default limit of retries."),
    _setting("--timeout-seconds", _number, "N", "Default time limit of an attempt."),
    _setting("--retry-backoff-seconds", _number, "N", "Delay before the first automatic retry."),
    _setting("--retry-backoff-max-seconds", _number, "N", "Longest delay before a retry."),
]


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each setting."""
    return reduce(lambda made, option: option(made), reversed(_OPTIONS), command)


@click.group("job-types")
def job_types_group() -> None:
    """List, show, change, pause and resume the job types of a running service."""


@job_types_group.command("list")
@service
@as_json
def list_job_types(client: Client, workspace_id: int, as_json: bool) -> None:
    """List the job types that have jobs or settings, by name.

    OLDEST is how many seconds the oldest due job has been due.
    """
    found = client.job_types(workspace_id)
    if as_json:
        for each in found:
            print_answer(each, as_json, "")
    else:
        heading = ("TYPE", "PENDING", "RUNNING", "WORKERS", "OLDEST", "SETTINGS")
        print_table([heading, *map(_row, found)])


def _row(found: JobType) -> tuple[str, ...]:
    oldest = "-" if found.oldest_due_seconds is None else str(found.oldest_due_seconds)
    numbers = (str(found.pending), str(found.running), str(found.live_workers))
    return (found.job_type, *numbers, oldest, _described(found))


def _described(found: JobType) -> str:
    """The settings that differ from their defaults, in one line."""
    reason = " ".join((found.paused_reason or "").split())
    parts = [f"paused ({reason})" if reason else "paused"] if found.paused else []
    for name in _SETTINGS:
        value = getattr(found, name)
        if isinstance(value, RateLimit):
            value = f"{value.starts}/{value.seconds}"
        if value is not None:
            parts.append(f"{name.replace('_', '-')} {value}")
    return ", ".join(parts)


@job_types_group.command("show")
@click.argument("job_type")
@service
def show(client: Client, workspace_id: int, job_type: str) -> None:
    """Print a job type as JSON."""
    found = client.job_type(workspace_id, job_type)
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))


@job_types_group.command("set")
@click.argument("job_type")
@service
@_settings
@as_json
def set_job_type(
    client: Client, workspace_id: int, job_type: str, as_json: bool, **given: Any
) -> None:
    """Change settings of a job type; none returns one to its default.

    Settings that are not given stay as they are:
    jobapi job-types set resize --max-running 5 --rate-limit 100/60 --max-pending none
    """
    changes = {
        name: None if value == _NONE else value
        for name, value in given.items()
        if value is not None
    }
    if not changes:
        raise click.UsageError("Give at least one setting, such as --max-running 5.")
    found = client.set_job_type(workspace_id, job_type, **changes)
    print_answer(found, as_json, f"{found.job_type}: {_described(found) or 'default settings'}")


@job_types_group.command("pause")
@click.argument("job_type")
@service
@click.option("--reason", help="Reason, shown with the job type.")
@as_json
def pause(
    client: Client, workspace_id: int, job_type: str, reason: str | None, as_json: bool
) -> None:
    """Stop handing out jobs of a type. Running jobs continue."""
    found = client.pause_job_type(workspace_id, job_type, reason=reason)
    print_answer(found, as_json, f"{found.job_type} paused")


@job_types_group.command("resume")
@click.argument("job_type")
@service
@as_json
def resume(client: Client, workspace_id: int, job_type: str, as_json: bool) -> None:
    """Hand out jobs of a type again."""
    found = client.resume_job_type(workspace_id, job_type)
    print_answer(found, as_json, f"{found.job_type} resumed")
