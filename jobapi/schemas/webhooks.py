"""Webhooks, their deliveries, and the messages that they get."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from ..rules.events import EventKind
from ..rules.webhooks import (
    INCLUDABLE,
    MAX_URL_LENGTH,
    MAX_WEBHOOK_JOB_TYPES,
    MESSAGE_TYPES,
    DeliveryStatus,
    Disabled,
)
from .base import MAX_CHOICES, Pagination, PagingQuery, job_type_text, length
from .events import Event
from .fields import Choice, Document, Flag, Text, Time, Word, doc
from .jobs import Job
from .loading import Base
from .rendering import Response

URL = "https://example.com/hooks/jobs"


def _url(**kw: Any) -> Text:
    metadata = doc(
        "Where events are sent: https, without user information and fragment. The host must have "
        "a globally routable address.",
        example=URL,
    )
    return Text(validate=length(1, MAX_URL_LENGTH), metadata=metadata, **kw)


class WebhookUpdate(Base):
    """Changes of a webhook; absent fields stay as they are."""

    url = _url()
    events = fields.List(
        Choice(EventKind),
        allow_none=True,
        validate=length(1, MAX_CHOICES),
        metadata=doc(
            "Kinds of events. null: every event whose `to_status` is an end.", example=None
        ),
    )
    job_types = fields.List(
        job_type_text(),
        allow_none=True,
        validate=length(1, MAX_WEBHOOK_JOB_TYPES),
        metadata=doc("Only events about these job types. null: all.", example=["data_processing"]),
    )
    include = fields.List(
        Word("WebhookInclude", INCLUDABLE, metadata={}),
        allow_none=True,
        validate=length(0, len(INCLUDABLE)),
        metadata=doc(
            "Fields of the job that messages have besides the others.", example=["result"]
        ),
    )
    description = Text(
        allow_none=True, validate=length(1, 1000), metadata=doc("For people.", example="Billing")
    )
    enabled = Flag(
        metadata=doc(
            "Whether events are delivered. A webhook that is enabled again gets the events from "
            "then on.",
            example=True,
        )
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Store labels of kinds, each once; no included field is an empty list."""
        if data.get("events") is not None:
            data["events"] = sorted({kind.label for kind in data["events"]})
        if "include" in data:
            data["include"] = sorted(set(data["include"] or ()))
        return data


class WebhookCreate(WebhookUpdate):
    """A new webhook."""

    url = _url(required=True)


class Webhook(Response):
    """A webhook, without its secret."""

    webhook_id = fields.String(
        attribute="id",
        required=True,
        metadata={"example": "wh_018d0e1c7a4b7c3d9e5f60718293a4b5"},
    )
    workspace_id = fields.Integer(required=True, metadata={"example": 1})
    url = fields.String(required=True, metadata={"example": URL})
    events = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata=doc("Kinds of events. null: every event whose `to_status` is an end."),
    )
    job_types = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata=doc("null: all.", example=["data_processing"]),
    )
    include = fields.List(
        fields.String(),
        required=True,
        metadata=doc("Of `metadata` and `result`.", example=["result"]),
    )
    description = fields.String(required=True, allow_none=True, metadata={"example": "Billing"})
    enabled = fields.Boolean(required=True, metadata={"example": True})
    disabled_reason = Choice(
        Disabled,
        component="DisabledReason",
        grows=True,
        required=True,
        allow_none=True,
        metadata=doc(
            "Why the service has disabled it: the receiver answered 410 (`gone`), or all "
            "deliveries have failed for five days (`failing`)."
        ),
    )
    failing_since = Time(
        required=True,
        allow_none=True,
        metadata=doc("The first failed attempt after the last success."),
    )
    previous_secret_expires_at = Time(
        required=True,
        allow_none=True,
        metadata=doc("Until when messages are also signed with the previous secret."),
    )
    created_by = fields.Integer(required=True, metadata=doc("The creator's user id.", example=123))
    created_at = Time(required=True, metadata={"example": "2024-01-15T10:00:00Z"})
    updated_at = Time(required=True, metadata={"example": "2024-01-15T10:00:00Z"})


class NewWebhook(Webhook):
    """A webhook, and its secret, which is never shown again."""

    secret = fields.String(
        required=True,
        metadata=doc(
            "Verifies messages, see Standard Webhooks.",
            example="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
        ),
    )


class WebhookList(Response):
    """A page of webhooks."""

    data = fields.List(fields.Nested(Webhook), required=True)
    pagination = fields.Nested(Pagination, required=True)


class DeliveryQuery(PagingQuery):
    """The page of the list of deliveries, and a filter."""

    status = fields.List(
        Choice(DeliveryStatus),
        validate=length(1, MAX_CHOICES),
        metadata=doc("Only these statuses; may be repeated."),
    )


class Delivery(Response):
    """The delivery of a message to a webhook, with its last attempt."""

    delivery_id = fields.String(
        attribute="id",
        required=True,
        metadata=doc(
            "The header `webhook-id`, the same for each attempt.",
            example="msg_9f0sk2e7bq4l1d8mc5r6ao3htvgjui2p",
        ),
    )
    webhook_id = fields.String(
        required=True, metadata={"example": "wh_018d0e1c7a4b7c3d9e5f60718293a4b5"}
    )
    workspace_id = fields.Integer(required=True, metadata={"example": 1})
    type = fields.String(
        required=True,
        metadata=doc("The `type` of the message.", example="job.succeeded"),
    )
    event_id = fields.String(
        required=True, allow_none=True, metadata=doc("null: a test.", example="7031-118")
    )
    job_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"example": "job_01hm5vq2k8d7t3n6b1r9c4f0ga"},
    )
    status = Choice(
        DeliveryStatus,
        required=True,
        grows=True,
        metadata=doc(
            "`pending`: an attempt is due or under way. `failed`: there are no more attempts. "
            "`cancelled`: the webhook was disabled before.",
            example="pending",
        ),
    )
    attempts = fields.Integer(
        required=True,
        metadata=doc("Attempts since the event, or since it was sent again.", example=1),
    )
    created_at = Time(
        required=True,
        metadata=doc("The time of the event.", example="2024-01-15T10:04:45Z"),
    )
    next_attempt_at = Time(
        required=True,
        allow_none=True,
        metadata=doc("Only while it is pending.", example="2024-01-15T10:04:51Z"),
    )
    last_attempt_at = Time(
        required=True, allow_none=True, metadata={"example": "2024-01-15T10:04:46Z"}
    )
    response_status = fields.Integer(
        required=True,
        allow_none=True,
        metadata=doc("The HTTP status of the last attempt.", example=500),
    )
    response_body = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("The first KiB of the response.", example="Internal Server Error"),
    )
    error = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("Why the last attempt got no complete response."),
    )


class DeliveryList(Response):
    """A page of deliveries."""

    data = fields.List(fields.Nested(Delivery), required=True)
    pagination = fields.Nested(Pagination, required=True)


class MessageJob(Job):
    """The job of a message: `metadata` and `result` only if the webhook includes them."""

    metadata = Document(allow_none=True)
    result = Document(allow_none=True)


class MessageData(Response):
    """What a message is about."""

    event = fields.Nested(Event, required=True, allow_none=True, metadata=doc("null: a test."))
    job = fields.Nested(
        MessageJob,
        required=True,
        allow_none=True,
        metadata=doc(
            "The job as it was when the message was made. null: it was deleted, or the event is "
            "not about a job."
        ),
    )


class Message(Response):
    """The body of a request to a webhook."""

    type = fields.String(
        required=True,
        validate=validate.OneOf(MESSAGE_TYPES),
        metadata=doc("What has happened.", component="WebhookMessageType", grows=True),
    )
    timestamp = Time(required=True, metadata=doc("When it happened."))
    data = fields.Nested(MessageData, required=True)
