"""The base of the commands that call a running service: options, messages and output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce, wraps
from typing import Any, Protocol

import click

from ...errors import JobApiError
from ...rules.jobs import JobStatus, Priority
from ..client import Client
from ..models import JobFilter
from ..retries import Unreachable
from ..runner import ThreadsLost
from ..runs import ExecutorClosed


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
        with error_messages(), Client(url, token=token) as client:
            return command(client, **kw)

    return with_client


_ERRORS = (JobApiError, Unreachable, ThreadsLost, TimeoutError, BrokenExecutor, ExecutorClosed)
"""What a command reports as a message, without a traceback."""


@contextmanager
def error_messages() -> Iterator[None]:
    """Show what went wrong as a message."""
    try:
        yield
    except _ERRORS as error:
        raise click.ClickException(str(error)) from None


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
job_types = click.option(
    "--type", "job_type", multiple=True, help="Only jobs of this type; may be repeated."
)
priorities = click.Choice([priority.label for priority in Priority])


class _Answer(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def print_answer(answer: _Answer, as_json: bool, text: str) -> None:
    """Print an answer as JSON, or ``text`` in place of it."""
    click.echo(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else text)


_COLORS = {
    "success": "green",
    "failed": "red",
    "running": "cyan",
    "cancelled": "yellow",
    "live": "green",
    "gone": "yellow",
}


def print_table(rows: Sequence[Sequence[str]], *, colored: int | None = None) -> None:
    """Print rows, of which the first is the heading, in columns.

    ``colored`` is the number of the column with a status.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colored is not None:
            cells[colored] = click.style(cells[colored], _COLORS.get(row[colored]))
        click.echo("  ".join(cells).rstrip())


class Time(click.DateTime):
    """A time in UTC or with an offset."""

    def __init__(self) -> None:
        super().__init__(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%z"])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The word for it in the help."""
        return "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """The time with its offset."""
        time: datetime = super().convert(value, param, ctx)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _pairs(context: Any, parameter: Any, given: Sequence[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter("write PATH=VALUE, such as batch_id=3")
    return {path: value for path, _, value in pairs}


def json_object(context: Any, parameter: Any, value: str | None) -> Any:
    """Read an option that is a JSON object."""
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter('must be a JSON object, such as {"batch_id": 3}')
    return found


FILTERS = [
    click.option("--status", multiple=True, type=click.Choice([s.label for s in JobStatus])),
    job_types,
    click.option("--priority", multiple=True, type=priorities),
    click.option("--created-after", type=Time(), help="Created at this time or later."),
    click.option("--created-before", type=Time(), help="Created before this time."),
    click.option("--updated-after", type=Time(), help="Changed at this time or later."),
    click.option("--created-by", type=click.IntRange(1), help="Created by the user with this id."),
    click.option("--job-id", multiple=True, help="Only this job; may be repeated."),
    click.option("--error", help="The error contains this text."),
    click.option("--error-group", multiple=True, help="Failed with an error of this group."),
    click.option(
        "--concurrency-key", multiple=True, help="The concurrency key is this; may be repeated."
    ),
    click.option("--unique-key", multiple=True, help="The unique key is this; may be repeated."),
    click.option("--schedule-id", multiple=True, help="Created by this schedule; may be repeated."),
    click.option("--expires-after", type=Time(), help="Expires at this time or later."),
    click.option("--expires-before", type=Time(), help="Expires before this time."),
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
