"""Webhooks in the Python client."""

from __future__ import annotations

import httpx2
import pytest

from jobapi import errors
from jobapi.client import Client

from ..factories import Desk

URL = "https://example.com/hooks"


def test_webhooks_are_created_edited_tested_and_deleted(desk: Desk) -> None:
    w = desk.workspace_id
    transport = httpx2.WSGITransport(app=desk.world.app)
    with Client("http://service", token=desk.token, transport=transport) as client:
        made = client.create_webhook(w, URL, events=["failed"], include=["result"])
        assert made.secret is not None
        assert made.secret.startswith("whsec_")
        assert made.secret not in repr(made)
        found = client.webhook(w, made.webhook_id)
        assert found.secret is None
        assert found.to_json() == {
            name: value for name, value in made.to_json().items() if name != "secret"
        }
        assert (found.events, found.include, found.enabled) == (["failed"], ["result"], True)
        assert list(client.webhooks(w)) == [found]
        edited = client.edit_webhook(w, made.webhook_id, events=None, url=URL + "2")
        assert (edited.events, edited.url, edited.include) == (None, URL + "2", ["result"])
        rotated = client.rotate_webhook_secret(w, made.webhook_id)
        assert rotated.secret not in (None, made.secret)
        assert rotated.previous_secret_expires_at is not None
        sent = client.test_webhook(w, made.webhook_id)
        assert (sent.status, sent.type, sent.attempts) == ("pending", "webhook.test", 0)
        assert client.delivery(w, made.webhook_id, sent.delivery_id) == sent
        assert list(client.deliveries(w, made.webhook_id)) == [sent]
        assert list(client.deliveries(w, made.webhook_id, status=["failed", "success"])) == []
        again = client.redeliver(w, made.webhook_id, sent.delivery_id)
        assert again.delivery_id == sent.delivery_id
        client.edit_webhook(w, made.webhook_id, enabled=False)
        with pytest.raises(errors.WebhookDisabled):
            client.test_webhook(w, made.webhook_id)
        client.delete_webhook(w, made.webhook_id)
        with pytest.raises(errors.WebhookNotFound):
            client.webhook(w, made.webhook_id)
        with pytest.raises(errors.ValidationFailed):
            client.create_webhook(w, "http://127.0.0.1")
