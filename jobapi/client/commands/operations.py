"""``jobapi jobs operate``, ``operations`` and ``stop``: operations on all jobs that match."""

from __future__ import annotations

from itertools import islice

import click

from ...rules.operations import Action
from ..client import Client
from ..models import JobFilter, Operation
from .base import as_json, filters, print_answer, service


@click.command("operate")
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
            print_answer(would, as_json, count)
            return
        click.confirm(f"{action.capitalize()} {count}?", abort=True, err=True)
    operation = client.operate(workspace_id, action, reason=reason, **filters)
    if not no_wait:

        def show(now: Operation) -> None:
            if not as_json:
                click.echo(f"{now.changed} of {now.matched}", err=True)

        operation = client.wait_for_operation(operation, show=show)
    print_answer(operation, as_json, _line(operation))


@click.command("operations")
@service
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many to print."
)
@as_json
def operations(client: Client, workspace_id: int, limit: int, as_json: bool) -> None:
    """List bulk operations, the newest first."""
    for operation in islice(client.operations(workspace_id), limit):
        print_answer(operation, as_json, _line(operation))


@click.command("stop")
@click.argument("operation_id", type=click.IntRange(1))
@service
@as_json
def stop(client: Client, workspace_id: int, operation_id: int, as_json: bool) -> None:
    """Stop a bulk operation. The changes that it has made stay."""
    operation = client.stop_operation(workspace_id, operation_id)
    print_answer(operation, as_json, _line(operation))


def _line(operation: Operation) -> str:
    skipped = f", {operation.skipped} skipped" if operation.skipped else ""
    return (
        f"{operation.operation_id} {operation.action} {operation.status}: "
        f"{operation.changed} of {operation.matched} jobs{skipped}"
    )
