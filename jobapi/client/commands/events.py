"""``jobapi jobs events``: lists events, or follows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import click

from ...rules.events import EventKind
from ..client import Client
from ..models import Event, EventFilter
from .base import as_json, job_types, print_answer, service

INTERRUPTED = 130

# What an event's line shows of its data: the first that there is.
_DETAILS = ("error", "reason", "progress_message", "progress_percent", "username", "name")


@click.command("events")
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
            print_answer(event, as_json, _event_line(event))
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
