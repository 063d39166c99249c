"""Webhooks: ``/workspace/{workspace_id}/webhooks``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from flask import Response
from sqlalchemy import Connection

from ..errors import IdempotencyKeyReused
from ..rules.events import Event
from ..rules.jobs import Job
from ..rules.roles import Role
from ..rules.webhooks import INCLUDABLE, TEST_TYPE, target_of, type_of
from ..schemas import webhooks as schemas
from ..schemas.base import PagingQuery
from ..schemas.events import Event as EventSchema
from ..services import webhooks
from ..store.secret_box import CannotDecrypt
from ..store.transactions import snapshot
from .access import Caller, guard
from .base import json_response, location, paginated, state, to_json
from .blueprints import Blueprint
from .openapi import header
from .replay import IDEMPOTENCY_KEY, REPLAYED_HEADER, replayable

blp = Blueprint(
    "webhooks", "Webhooks", "Deliver events to HTTP servers, signed as by Standard Webhooks."
)

WEBHOOKS = "/workspace/<workspace_id>/webhooks"
WEBHOOK = f"{WEBHOOKS}/<webhook_id>"
DELIVERIES = f"{WEBHOOK}/deliveries"
DELIVERY = f"{DELIVERIES}/<delivery_id>"


def message(event: Event, job: Job | None, include: Sequence[str]) -> str:
    """Make the body of a message from an event and its job."""
    shown = None if job is None else schemas.MessageJob.render(job)
    if shown is not None:
        for name in set(INCLUDABLE).difference(include):
            del shown[name]
    data = {"event": EventSchema.render(event), "job": shown}
    return _body(type_of(event), event.at, data)


def _test_message(now: datetime) -> str:
    return _body(TEST_TYPE, now, {"event": None, "job": None})


def _body(kind: str, at: datetime, data: Mapping[str, Any]) -> str:
    return to_json({"type": kind, "timestamp": at, "data": data}).decode().rstrip()


def _check_url(body: Mapping[str, Any]) -> None:
    settings = state().settings
    if "url" in body:
        target_of(
            body["url"],
            allow_http=settings.webhook_allow_http,
            allow_private=settings.webhook_private_addresses,
        )


def _sealed(answer: Mapping[str, Any]) -> str:
    return state().box.seal(to_json(answer).decode())


def _opened(kept: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = orjson.loads(state().box.open(kept))
    except CannotDecrypt:
        raise IdempotencyKeyReused(
            "The answer for this Idempotency-Key cannot be decrypted any more. Use a new key."
        ) from None
    return answer


@blp.operation(WEBHOOKS, summary="List webhooks", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.arguments(PagingQuery, location="query")
@blp.response(200, schemas.WebhookList)
def list_webhooks(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the webhooks of a workspace, the oldest first."""
    return paginated(webhooks.page(caller.connection, workspace_id, **query), query)


@blp.operation(
    WEBHOOKS, "POST", summary="Create webhook", errors=(404, 409), parameters=[IDEMPOTENCY_KEY]
)
@guard(Role.OWNER, keys=False)
@blp.arguments(schemas.WebhookCreate)
@blp.response(
    201,
    schemas.NewWebhook,
    headers={**REPLAYED_HEADER, **header("Location", "The new webhook's URL.")},
)
def create_webhook(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Create a webhook, which gets the events from now on. The secret is shown only once.

    It stays when its creator leaves the workspace.
    """
    _check_url(body)

    def create(connection: Connection) -> dict[str, Any]:
        row, secret = webhooks.create(
            connection,
            workspace_id,
            state().box,
            body,
            most=state().settings.webhooks_per_workspace,
            created_by=caller.user_id,
            actor=caller.name,
        )
        return schemas.NewWebhook.render({**row._mapping, "secret": secret})

    return _with_secret(caller, workspace_id, "create_webhook", body, create, 201)


def _with_secret(
    caller: Caller,
    workspace_id: int,
    operation: str,
    body: Any,
    act: Callable[[Connection], dict[str, Any]],
    status: int,
) -> Response:
    """Act, and answer with a secret, which is stored for repetitions of the request encrypted."""
    answer, headers = replayable(
        caller, workspace_id, operation, body, act, keep=_sealed, again=_opened
    )
    url = location(
        "jobapi-webhooks.get_webhook", workspace_id=workspace_id, webhook_id=answer["webhook_id"]
    )
    created = url if status == 201 else {}
    return json_response(answer, status, {"Cache-Control": "no-store", **created, **headers})


@blp.operation(WEBHOOK, summary="Get webhook", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.response(200, schemas.Webhook)
def get_webhook(caller: Caller, workspace_id: int, webhook_id: str) -> Any:
    """Return a webhook, without its secret."""
    return webhooks.get(caller.connection, workspace_id, webhook_id)


@blp.operation(WEBHOOK, "PATCH", summary="Update webhook", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.arguments(schemas.WebhookUpdate, location="patch_json")
@blp.response(200, schemas.Webhook)
def update_webhook(caller: Caller, body: dict[str, Any], workspace_id: int, webhook_id: str) -> Any:
    """Change a webhook. Absent fields stay as they are, and null returns one to its default.

    Disabling it cancels pending deliveries. One that is enabled again gets the events from then on.
    """
    _check_url(body)
    return webhooks.change(caller.connection, workspace_id, webhook_id, body, actor=caller.name)


@blp.operation(WEBHOOK, "DELETE", summary="Delete webhook", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.response(204)
def delete_webhook(caller: Caller, workspace_id: int, webhook_id: str) -> None:
    """Delete a webhook and its deliveries. What is pending is not sent any more."""
    webhooks.remove(caller.connection, workspace_id, webhook_id, actor=caller.name)


@blp.operation(
    f"{WEBHOOK}/rotate-secret",
    "POST",
    summary="Rotate webhook secret",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY],
)
@guard(Role.OWNER, keys=False)
@blp.response(200, schemas.NewWebhook, headers=REPLAYED_HEADER)
def rotate_webhook_secret(caller: Caller, workspace_id: int, webhook_id: str) -> Response:
    """Give a webhook a new secret, which is shown only once.

    For 24 hours messages are signed with both secrets, so that the receiver can change over.
    """

    def rotate(connection: Connection) -> dict[str, Any]:
        row, secret = webhooks.rotate_secret(
            connection, workspace_id, webhook_id, state().box, actor=caller.name
        )
        return schemas.NewWebhook.render({**row._mapping, "secret": secret})

    return _with_secret(
        caller, workspace_id, "rotate_webhook_secret", webhook_id, rotate, status=200
    )


@blp.operation(
    f"{WEBHOOK}/test",
    "POST",
    summary="Test webhook",
    errors=(404, 409, 429),
    parameters=[IDEMPOTENCY_KEY],
)
@guard(Role.OWNER, keys=False)
@blp.response(
    201,
    schemas.Delivery,
    headers={**REPLAYED_HEADER, **header("Location", "The new delivery's URL.")},
)
def test_webhook(caller: Caller, workspace_id: int, webhook_id: str) -> Response:
    """Send a message of the type `webhook.test`, ten times a minute at most.

    The answer is the pending delivery; read it again for the result.
    """

    def send(connection: Connection) -> dict[str, Any]:
        row = webhooks.test(connection, workspace_id, webhook_id, _test_message)
        return schemas.Delivery.render(row)

    answer, headers = replayable(caller, workspace_id, "test_webhook", webhook_id, send)
    url = location(
        "jobapi-webhooks.get_delivery",
        workspace_id=workspace_id,
        webhook_id=webhook_id,
        delivery_id=answer["delivery_id"],
    )
    return json_response(answer, 201, {**url, **headers})


@blp.operation(DELIVERIES, summary="List deliveries", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.arguments(schemas.DeliveryQuery, location="query")
@blp.response(200, schemas.DeliveryList)
def list_deliveries(
    caller: Caller, query: dict[str, Any], workspace_id: int, webhook_id: str
) -> Any:
    """List the deliveries of a webhook, the newest first.

    Of those that have ended, the newest 1,000 of the last 30 days are kept.
    """
    with snapshot(caller.connection) as connection:
        found = webhooks.page_deliveries(connection, workspace_id, webhook_id, **query)
    return paginated(found, query)


@blp.operation(DELIVERY, summary="Get delivery", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.response(200, schemas.Delivery)
def get_delivery(caller: Caller, workspace_id: int, webhook_id: str, delivery_id: str) -> Any:
    """Return a delivery."""
    return webhooks.get_delivery(caller.connection, workspace_id, webhook_id, delivery_id)


@blp.operation(
    f"{DELIVERY}/redeliver",
    "POST",
    summary="Send a message again",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY],
)
@guard(Role.OWNER, keys=False)
@blp.response(200, schemas.Delivery, headers=REPLAYED_HEADER)
def redeliver(caller: Caller, workspace_id: int, webhook_id: str, delivery_id: str) -> Response:
    """Send a message again now, with the same `webhook-id` and body, and with all retries.

    A pending delivery is sent now. 409 if the webhook is disabled.
    """

    def again(connection: Connection) -> dict[str, Any]:
        row = webhooks.redeliver(connection, workspace_id, webhook_id, delivery_id)
        return schemas.Delivery.render(row)

    which = [webhook_id, delivery_id]
    answer, headers = replayable(caller, workspace_id, "redeliver", which, again)
    return json_response(answer, 200, headers)
