"""``jobapi webhooks``: lists webhooks and their deliveries, creates, edits, deletes, tests them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from itertools import islice
from typing import Any

import click

from ...rules.events import EventKind
from ...rules.webhooks import INCLUDABLE, DeliveryStatus
from ..client import Client
from ..models import Delivery, Webhook
from .base import as_json, print_answer, print_table, service

_OPTIONS = [
    click.option(
        "--event",
        "events",
        multiple=True,
        type=click.Choice([kind.label for kind in EventKind]),
        metavar="KIND",
        help="Kind of events; may be repeated. Default: ends of jobs.",
    ),
    click.option(
        "--type", "job_types", multiple=True, help="Only of jobs of this type; may be repeated."
    ),
    click.option(
        "--include",
        multiple=True,
        type=click.Choice(INCLUDABLE),
        help="Add this field of the job to messages; may be repeated.",
    ),
    click.option("--description", help="A description, for people."),
    click.option("--enable/--disable", "enabled", default=None, help="Whether events are sent."),
]
_DEFAULTS = ("events", "job_types", "include", "description")


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each setting."""
    return reduce(lambda made, option: option(made), reversed(_OPTIONS), command)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of the options that were given."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, ())
    }


@click.group("webhooks")
def webhooks_group() -> None:
    """List, show, create, edit, delete and test the webhooks of a running service."""


@webhooks_group.command("list")
@service
@as_json
def list_webhooks(client: Client, workspace_id: int, as_json: bool) -> None:
    """List the webhooks of a workspace, the oldest first."""
    found = client.webhooks(workspace_id)
    if as_json:
        for each in found:
            print_answer(each, as_json, "")
    else:
        print_table([("WEBHOOK", "STATE", "URL", "DESCRIPTION"), *map(_row, found)])


def _row(found: Webhook) -> tuple[str, ...]:
    description = " ".join((found.description or "").split())
    return (found.webhook_id, _state(found), found.url, description)


def _state(found: Webhook) -> str:
    if not found.enabled:
        return f"disabled ({found.disabled_reason})" if found.disabled_reason else "disabled"
    return "enabled" if found.failing_since is None else "failing"


@webhooks_group.command("show")
@click.argument("webhook_id")
@service
def show(client: Client, workspace_id: int, webhook_id: str) -> None:
    """Print a webhook as JSON."""
    found = client.webhook(workspace_id, webhook_id)
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))


@webhooks_group.command("create")
@click.argument("target", metavar="URL")
@service
@_settings
@as_json
def create(client: Client, workspace_id: int, target: str, as_json: bool, **given: Any) -> None:
    """Create a webhook, and print its secret, which is shown only once."""
    found = client.create_webhook(workspace_id, target, **_given(given))
    print_answer(found, as_json, f"{found.webhook_id}\n{found.secret}")


@webhooks_group.command("edit")
@click.argument("webhook_id")
@service
@click.option("--to", "target", metavar="URL", help="Where events are sent.")
@_settings
@click.option(
    "--default",
    "defaults",
    multiple=True,
    type=click.Choice(_DEFAULTS),
    help="Return this setting to its default; may be repeated.",
)
@as_json
def edit(
    client: Client,
    workspace_id: int,
    webhook_id: str,
    target: str | None,
    defaults: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Change settings of a webhook. Those that are not given stay as they are."""
    changes = {**dict.fromkeys(defaults), **_given(given)}
    if not changes and target is None:
        raise click.UsageError("Give at least one setting, such as --disable.")
    found = client.edit_webhook(workspace_id, webhook_id, url=target, **changes)
    print_answer(found, as_json, f"{found.webhook_id} {_state(found)} {found.url}")


@webhooks_group.command("delete")
@click.argument("webhook_id")
@service
def delete(client: Client, workspace_id: int, webhook_id: str) -> None:
    """Delete a webhook and its deliveries."""
    client.delete_webhook(workspace_id, webhook_id)
    click.echo(f"{webhook_id} deleted")


@webhooks_group.command("rotate-secret")
@click.argument("webhook_id")
@service
@as_json
def rotate_secret(client: Client, workspace_id: int, webhook_id: str, as_json: bool) -> None:
    """Give a webhook a new secret, and print it. The previous one is valid for 24 hours."""
    found = client.rotate_webhook_secret(workspace_id, webhook_id)
    print_answer(found, as_json, str(found.secret))


@webhooks_group.command("test")
@click.argument("webhook_id")
@service
@as_json
def test(client: Client, workspace_id: int, webhook_id: str, as_json: bool) -> None:
    """Send a test message. Its result is in the list of deliveries."""
    found = client.test_webhook(workspace_id, webhook_id)
    print_answer(found, as_json, f"{found.delivery_id} {found.status}")


@webhooks_group.command("deliveries")
@click.argument("webhook_id")
@service
@click.option(
    "--status",
    multiple=True,
    type=click.Choice([status.label for status in DeliveryStatus]),
    help="Only with this status; may be repeated.",
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many to print."
)
@as_json
def deliveries(
    client: Client,
    workspace_id: int,
    webhook_id: str,
    status: tuple[str, ...],
    limit: int,
    as_json: bool,
) -> None:
    """List the deliveries of a webhook, the newest first."""
    found = islice(client.deliveries(workspace_id, webhook_id, status=status), limit)
    if as_json:
        for each in found:
            print_answer(each, as_json, "")
    else:
        heading = ("DELIVERY", "STATUS", "TYPE", "ATTEMPTS", "ANSWER")
        print_table([heading, *map(_delivery_row, found)], colored=1)


def _delivery_row(found: Delivery) -> tuple[str, ...]:
    answer = found.error or str(found.response_status or "-")
    return (found.delivery_id, found.status, found.type, str(found.attempts), answer)


@webhooks_group.command("redeliver")
@click.argument("webhook_id")
@click.argument("delivery_id")
@service
@as_json
def redeliver(
    client: Client, workspace_id: int, webhook_id: str, delivery_id: str, as_json: bool
) -> None:
    """Send a message again, with all retries."""
    found = client.redeliver(workspace_id, webhook_id, delivery_id)
    print_answer(found, as_json, f"{found.delivery_id} {found.status}")
