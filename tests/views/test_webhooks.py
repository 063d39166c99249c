"""Webhooks over HTTP: their settings, secrets, deliveries and tests."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from jobapi.rules.webhooks import DeliveryStatus, Disabled
from jobapi.services import deliveries
from jobapi.services import webhooks as services
from jobapi.services.events import current_snapshot, position_of, put_restored_first
from jobapi.store.tables import events, idempotency_keys, webhook_deliveries, webhooks
from jobapi.store.transactions import snapshot

from ..factories import Desk

URL = "https://example.com/hooks"


class Hooks:
    """The webhooks of a desk's workspace."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.path = f"/workspace/{desk.workspace_id}/webhooks"

    def call(self, method: str, path: str = "", **kw: Any) -> Any:
        return self.desk.call(method, self.path + path, **kw)

    def create(self, **body: Any) -> dict[str, Any]:
        response = self.call("POST", json={"url": URL, **body})
        assert response.status_code == 201, response.text
        return dict(response.json)

    def read(self) -> None:
        """Make deliveries of the events that happened, as the deliverer does."""
        state = self.desk.world.state
        with state.engine.connect() as connection:
            with snapshot(connection):
                seen = current_snapshot(connection)
                hooks = deliveries.survey(connection)
                found = deliveries.read(connection, hooks, state.message, seen=seen)
            for each in found.read:
                assert deliveries.store(connection, each)

    def deliveries(self, webhook: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
        found = self.call("GET", f"/{webhook['webhook_id']}/deliveries{query}")
        assert found.status_code == 200, found.text
        return list(found.json["data"])

    def kinds(self) -> list[tuple[str, Any]]:
        path = f"/workspace/{self.desk.workspace_id}/events?order=asc"
        listed = self.desk.call("GET", path).json["data"]
        return [(each["kind"], each["data"]) for each in listed]


@pytest.fixture
def hooks(desk: Desk) -> Hooks:
    return Hooks(desk)


def test_create_shows_the_secret_once_and_stores_it_encrypted(hooks: Hooks) -> None:
    answer = hooks.call("POST", json={"url": URL})
    made = answer.json
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{hooks.path}/{made['webhook_id']}"
    assert answer.headers["Cache-Control"] == "no-store"
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    expected = {
        "webhook_id": made["webhook_id"],
        "workspace_id": hooks.desk.workspace_id,
        "url": URL,
        "events": None,
        "job_types": None,
        "include": [],
        "description": None,
        "enabled": True,
        "disabled_reason": None,
        "failing_since": None,
        "previous_secret_expires_at": None,
        "created_by": hooks.desk.user.id,
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    assert made == expected
    assert hooks.call("GET", f"/{made['webhook_id']}").json == expected
    assert hooks.call("GET").json["data"] == [expected]
    with hooks.desk.world.transaction() as tx:
        everything = [tx.execute(select(t)).all() for t in (webhooks, events, idempotency_keys)]
        stored = tx.scalar(select(webhooks.c.secret))
    assert secret.removeprefix("whsec_") not in repr(everything)
    assert hooks.desk.world.state.box.open(stored) == secret


def test_settings_are_changed_and_returned_to_their_defaults(hooks: Hooks) -> None:
    given = {
        "events": ["failed", "created", "created"],
        "job_types": ["a"],
        "include": ["result", "metadata"],
        "description": "Billing",
        "enabled": False,
    }
    made = hooks.create(**given)
    assert made["events"] == ["created", "failed"]
    assert made["include"] == ["metadata", "result"]
    assert (made["enabled"], made["disabled_reason"]) == (False, None)
    path = f"/{made['webhook_id']}"
    nothing = hooks.call("PATCH", path, json={})
    assert (nothing.status_code, nothing.json["updated_at"]) == (200, made["updated_at"])
    defaults = dict.fromkeys(("events", "job_types", "include", "description"))
    patched = hooks.call(
        "PATCH",
        path,
        json={**defaults, "enabled": True, "url": "https://example.org"},
        content_type="application/merge-patch+json",
    )
    assert patched.status_code == 200, patched.text
    shown = patched.json
    assert [shown[name] for name in defaults] == [None, None, [], None]
    assert (shown["url"], shown["enabled"]) == ("https://example.org", True)
    assert hooks.call("DELETE", path).status_code == 204
    assert hooks.call("GET", path).status_code == 404
    # Neither the URL nor the secret is in an event.
    ours = {"webhook_id": made["webhook_id"]}
    fields = ["description", "enabled", "events", "include", "job_types", "url"]
    assert hooks.kinds() == [
        ("webhook_created", ours),
        ("webhook_changed", {**ours, "fields": fields, "enabled": True}),
        ("webhook_deleted", ours),
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": None}, "url"),
        ({"url": "http://example.com"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
        ({"url": "https://user@example.com"}, "url"),
        ({"url": URL + "x" * 2000}, "url"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["job.failed"]}, "events.0"),
        ({"url": URL, "job_types": []}, "job_types"),
        ({"url": URL, "job_types": ["a b"]}, "job_types.0"),
        ({"url": URL, "include": ["error"]}, "include.0"),
        ({"url": URL, "include": ["result"] * 3}, "include"),
        ({"url": URL, "description": "x" * 1001}, "description"),
        ({"url": URL, "enabled": None}, "enabled"),
        ({"url": URL, "secret": "whsec_x"}, "secret"),
    ],
)
def test_invalid_webhook_is_refused(hooks: Hooks, body: Any, field: str) -> None:
    refused = hooks.call("POST", json=body)
    assert refused.status_code == 422, refused.text
    assert list(refused.json["errors"]) == [field]
    made = hooks.create()
    if (body and field != "url") or body.get("url"):
        changed = hooks.call("PATCH", f"/{made['webhook_id']}", json=body)
        assert changed.status_code == 422


@pytest.mark.parametrize("name", ["wh_0", "x%00", "%F0%9F%98%80", "..."])
def test_unknown_webhook_and_delivery_are_404(hooks: Hooks, name: str) -> None:
    known = hooks.create()["webhook_id"]
    for method, path in (
        *(("GET", f"/{name}"), ("PATCH", f"/{name}"), ("DELETE", f"/{name}")),
        *(("POST", f"/{name}/rotate-secret"), ("POST", f"/{name}/test")),
        *(("GET", f"/{name}/deliveries"), ("GET", f"/{name}/deliveries/{name}")),
        *(("GET", f"/{known}/deliveries/{name}"), ("POST", f"/{name}/deliveries/x/redeliver")),
        ("POST", f"/{known}/deliveries/{name}/redeliver"),
    ):
        body = {"json": {}} if method == "PATCH" else {}
        assert hooks.call(method, path, **body).status_code == 404, (method, path)
    elsewhere = Desk(hooks.desk.world)
    path = f"/workspace/{elsewhere.workspace_id}/webhooks/{known}"
    assert elsewhere.call("GET", path).status_code == 404


def test_workspace_has_twenty_webhooks_at_most(hooks: Hooks) -> None:
    made = [hooks.create()["webhook_id"] for _ in range(20)]
    refused = hooks.call("POST", json={"url": URL})
    assert (refused.status_code, refused.json["type"]) == (
        409,
        "urn:jobapi:problem:too-many-webhooks",
    )
    # In pages, by number and by cursor.
    first = hooks.call("GET", "?limit=15").json
    cursor = first["pagination"]["next_cursor"]
    assert first["pagination"]["total"] == 20
    for query in (f"cursor={cursor}", "page=2"):
        rest = hooks.call("GET", f"?limit=15&{query}").json
        assert [each["webhook_id"] for each in first["data"] + rest["data"]] == made
        assert rest["pagination"]["next_cursor"] is None
    assert hooks.call("GET", "?cursor=WzFd").status_code == 422
    hooks.call("DELETE", f"/{made[0]}")
    assert hooks.create()


def test_repeated_create_and_rotation_have_the_same_secret(hooks: Hooks) -> None:
    headers = {"Idempotency-Key": "one"}
    first, again = (hooks.call("POST", json={"url": URL}, headers=headers) for _ in range(2))
    assert again.json == first.json
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Cache-Control"] == "no-store"
    assert hooks.call("GET").json["pagination"]["total"] == 1
    path = f"/{first.json['webhook_id']}/rotate-secret"
    other = {"Idempotency-Key": "two"}
    rotated = [hooks.call("POST", path, headers=other).json for _ in range(2)]
    assert rotated[0] == rotated[1]
    assert rotated[0]["secret"] != first.json["secret"]
    assert hooks.call("POST", path, headers=headers).status_code == 422
    with hooks.desk.world.transaction() as tx:
        stored = repr(tx.execute(select(idempotency_keys)).all())
    assert "whsec" not in stored
    assert first.json["secret"] not in stored


def test_rotation_keeps_the_previous_secret_for_a_day(hooks: Hooks) -> None:
    made = hooks.create()
    path = f"/{made['webhook_id']}"
    rotated = hooks.call("POST", f"{path}/rotate-secret").json
    expires = datetime.fromisoformat(rotated["previous_secret_expires_at"])
    assert abs(expires - datetime.now(UTC) - timedelta(hours=24)) < timedelta(minutes=1)
    box = hooks.desk.world.state.box
    with hooks.desk.world.transaction() as tx:
        row = tx.execute(select(webhooks)).one()
    assert box.open(row.secret) == rotated["secret"]
    assert box.open(row.previous_secret) == made["secret"]
    assert "secret" not in hooks.call("GET", path).json
    assert hooks.kinds()[-1] == (
        "webhook_secret_rotated",
        {"webhook_id": made["webhook_id"]},
    )


def test_ends_of_jobs_are_delivered_by_default(hooks: Hooks) -> None:
    desk = hooks.desk
    desk.job_in("success")
    made, light = hooks.create(include=["metadata"]), hooks.create(job_types=["other"])
    every = hooks.create(events=["created", "deleted", "webhook_changed"])
    job = desk.job_in("failed", metadata={"a": 1})
    desk.create()
    hooks.call("PATCH", f"/{made['webhook_id']}", json={"description": "x"})
    desk.call("DELETE", f"{desk.jobs_path}/{job['job_id']}")
    hooks.read()
    hooks.read()
    (delivery,) = hooks.deliveries(made)
    assert delivery == {
        "delivery_id": delivery["delivery_id"],
        "webhook_id": made["webhook_id"],
        "workspace_id": desk.workspace_id,
        "type": "job.failed",
        "event_id": delivery["event_id"],
        "job_id": job["job_id"],
        "status": "pending",
        "attempts": 0,
        "created_at": delivery["created_at"],
        "next_attempt_at": delivery["next_attempt_at"],
        "last_attempt_at": None,
        "response_status": None,
        "response_body": None,
        "error": None,
    }
    assert hooks.deliveries(light) == []
    assert sorted(each["type"] for each in hooks.deliveries(every)) == [
        *("job.created", "job.created", "job.deleted", "workspace.webhook_changed")
    ]
    one = f"/{made['webhook_id']}/deliveries/{delivery['delivery_id']}"
    assert hooks.call("GET", one).json == delivery


def test_message_has_the_event_and_the_job(hooks: Hooks) -> None:
    desk = hooks.desk
    plain, full = hooks.create(), hooks.create(include=["metadata", "result"])
    job = desk.create(metadata={"a": 1})
    desk.patch(job["job_id"], {"status": "success", "result": {"b": 2}})
    hooks.read()
    shown = desk.get(f"/{job['job_id']}").json
    (event,) = desk.call("GET", f"/workspace/{desk.workspace_id}/events?kind=succeeded").json[
        "data"
    ]
    with desk.world.transaction() as tx:
        bodies = {row.webhook_id: row.body for row in tx.execute(select(webhook_deliveries))}
    whole = {
        "type": "job.succeeded",
        "timestamp": event["at"],
        "data": {"event": event, "job": shown},
    }
    assert json.loads(bodies[full["webhook_id"]]) == whole
    for name in ("metadata", "result"):
        del shown[name]
    assert json.loads(bodies[plain["webhook_id"]]) == whole


def test_deliveries_are_listed_in_pages_and_by_status(hooks: Hooks) -> None:
    made = hooks.create()
    for _ in range(5):
        hooks.desk.job_in("success")
    hooks.read()
    found = hooks.deliveries(made)
    assert len(found) == 5
    times = [each["created_at"] for each in found]
    assert times == sorted(times, reverse=True)
    path = f"/{made['webhook_id']}/deliveries"
    cursor, seen = "", []
    for _ in range(3):
        page = hooks.call("GET", f"{path}?limit=2{cursor}").json
        assert page["pagination"]["total"] == 5
        seen += page["data"]
        cursor = f"&cursor={page['pagination']['next_cursor']}"
    assert seen == found
    assert hooks.call("GET", f"{path}?limit=2&page=3").json["data"] == found[4:]
    set_status(hooks, DeliveryStatus.FAILED, found[0]["delivery_id"])
    assert len(hooks.deliveries(made, "?status=failed")) == 1
    assert len(hooks.deliveries(made, "?status=failed&status=pending")) == 5
    assert hooks.deliveries(made, "?status=success") == []
    for wrong in ("status=x", "cursor=WzFd", "cursor=WyIxIiwieCJd", "limit=0", "x=1"):
        assert hooks.call("GET", f"{path}?{wrong}").status_code == 422, wrong


def set_status(hooks: Hooks, status: DeliveryStatus, delivery_id: str) -> None:
    with hooks.desk.world.transaction() as tx:
        tx.execute(
            update(webhook_deliveries)
            .where(webhook_deliveries.c.id == delivery_id)
            .values(status=status, next_attempt_at=None, attempts=8, body="x")
        )


def test_redelivery_is_pending_again_with_the_same_id_and_body(hooks: Hooks) -> None:
    made = hooks.create()
    hooks.desk.job_in("success")
    hooks.read()
    (delivery,) = hooks.deliveries(made)
    path = f"/{made['webhook_id']}/deliveries/{delivery['delivery_id']}/redeliver"
    for status in (DeliveryStatus.FAILED, DeliveryStatus.SUCCESS, DeliveryStatus.CANCELLED):
        set_status(hooks, status, delivery["delivery_id"])
        again = hooks.call("POST", path)
        assert again.status_code == 200, again.text
        assert (again.json["status"], again.json["attempts"]) == ("pending", 0)
        assert again.json["delivery_id"] == delivery["delivery_id"]
        assert again.json["next_attempt_at"] is not None
    assert hooks.call("POST", path).json["status"] == "pending"
    hooks.call("PATCH", f"/{made['webhook_id']}", json={"enabled": False})
    refused = hooks.call("POST", path)
    assert (refused.status_code, refused.json["type"]) == (
        409,
        "urn:jobapi:problem:webhook-disabled",
    )


def test_webhook_is_tested_ten_times_a_minute_at_most(hooks: Hooks) -> None:
    made = hooks.create()
    path = f"/{made['webhook_id']}/test"
    first = hooks.call("POST", path)
    assert first.status_code == 201
    assert first.headers["Location"].endswith(f"/deliveries/{first.json['delivery_id']}")
    assert (first.json["type"], first.json["status"]) == ("webhook.test", "pending")
    assert (first.json["event_id"], first.json["job_id"]) == (None, None)
    for _ in range(9):
        assert hooks.call("POST", path).status_code == 201
    refused = hooks.call("POST", path)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    # Each webhook has its own.
    other = hooks.create()
    assert hooks.call("POST", f"/{other['webhook_id']}/test").status_code == 201
    with hooks.desk.world.transaction() as tx:
        minute = timedelta(seconds=61)
        tx.execute(update(webhook_deliveries).values(created_at=datetime.now(UTC) - minute))
    assert hooks.call("POST", path).status_code == 201
    hooks.call("PATCH", f"/{made['webhook_id']}", json={"enabled": False})
    assert hooks.call("POST", path).status_code == 409


def test_disabled_webhook_gets_nothing_and_enabled_again_the_events_from_then_on(
    hooks: Hooks,
) -> None:
    made = hooks.create()
    path = f"/{made['webhook_id']}"
    hooks.desk.job_in("success")
    hooks.read()
    hooks.call("PATCH", path, json={"enabled": False})
    assert [each["status"] for each in hooks.deliveries(made)] == ["cancelled"]
    hooks.desk.job_in("failed")
    hooks.read()
    hooks.call("PATCH", path, json={"enabled": True})
    hooks.read()
    assert [each["status"] for each in hooks.deliveries(made)] == ["cancelled"]
    hooks.desk.job_in("cancelled")
    hooks.read()
    newest = hooks.deliveries(made, "?status=pending")
    assert [each["type"] for each in newest] == ["job.cancelled"]


def test_webhook_that_the_service_disabled_says_why_until_it_is_enabled(hooks: Hooks) -> None:
    made = hooks.create()
    with hooks.desk.world.transaction() as tx:
        row = services.get(tx, hooks.desk.workspace_id, made["webhook_id"], lock=True)
        services.disable(tx, row, Disabled.FAILING, datetime.now(UTC))
    path = f"/{made['webhook_id']}"
    assert hooks.call("GET", path).json["disabled_reason"] == "failing"
    assert hooks.kinds()[-1] == (
        "webhook_disabled",
        {"webhook_id": made["webhook_id"], "reason": "failing"},
    )
    assert hooks.call("PATCH", path, json={"enabled": True}).json["disabled_reason"] is None


def test_webhook_outlives_the_membership_of_its_creator(hooks: Hooks) -> None:
    desk = hooks.desk
    made = hooks.create()
    other = desk.world.user()
    members = f"/workspace/{desk.workspace_id}/members"
    desk.call("POST", members, json={"username": other.username, "role": "owner"})
    assert desk.call("DELETE", f"{members}/{desk.user.id}").status_code == 204
    desk.token = desk.world.token(other)
    desk.job_in("success")
    hooks.read()
    assert [each["type"] for each in hooks.deliveries(made)] == ["job.succeeded"]


def test_deleted_workspace_drops_what_is_pending(hooks: Hooks) -> None:
    hooks.create()
    hooks.desk.job_in("success")
    hooks.read()
    assert hooks.desk.call("DELETE", f"/workspace/{hooks.desk.workspace_id}").status_code == 204
    with hooks.desk.world.state.engine.connect() as connection:
        assert deliveries.survey(connection) == []
        hooks.desk.world.maintain("deleted workspaces")
        for table in (webhooks, webhook_deliveries):
            assert connection.execute(select(table)).all() == []


def test_old_deliveries_are_deleted_and_pending_ones_are_not(hooks: Hooks) -> None:
    made = hooks.create()
    for _ in range(6):
        hooks.desk.job_in("success")
    hooks.read()
    found = hooks.deliveries(made)
    for each in found[:5]:
        set_status(hooks, DeliveryStatus.SUCCESS, each["delivery_id"])
    c = webhook_deliveries.c
    with hooks.desk.world.transaction() as tx:
        for number in (4, 5):
            tx.execute(
                update(webhook_deliveries)
                .where(c.id == found[number]["delivery_id"])
                .values(created_at=datetime.now(UTC) - timedelta(days=31))
            )
    hooks.desk.world.maintain("old deliveries")
    left = {each["delivery_id"] for each in hooks.deliveries(made)}
    assert left == {each["delivery_id"] for each in [*found[:4], found[5]]}
    with hooks.desk.world.transaction() as tx:
        times = [
            row.created_at
            for row in tx.execute(
                select(c.created_at).where(c.status != 0).order_by(c.created_at.desc())
            )
        ]
        gone = services.delete_old_deliveries(
            tx, hooks.desk.workspace_id, made["webhook_id"], keep=2
        )
    assert gone == len([at for at in times if at <= times[2]])
    assert len(hooks.deliveries(made)) == len(times) - gone + 1


def test_webhook_goes_on_where_it_was_after_a_restore_into_another_server(
    hooks: Hooks, database: str
) -> None:
    if database == "sqlite":
        return  # all of its events have the number 0
    made = hooks.create()
    for _ in range(2):
        hooks.desk.job_in("success")
    hooks.read()
    unread = [hooks.desk.job_in("failed")["job_id"] for _ in range(2)]
    with hooks.desk.world.transaction() as tx:
        position = position_of(tx.scalar(select(webhooks.c.position)))
        # On the other server, transactions had much higher numbers.
        tx.execute(update(events).values(xid=events.c.xid + 2**60))
        restored = position._replace(xid=position.xid + 2**60)
        tx.execute(update(webhooks).values(position=restored.name))
    hooks.read()
    assert len(hooks.deliveries(made)) == 2
    with hooks.desk.world.transaction() as tx:
        put_restored_first(tx)
    hooks.read()
    new = hooks.desk.job_in("cancelled")["job_id"]
    hooks.read()
    found = [each["job_id"] for each in hooks.deliveries(made)]
    assert sorted(found[:3]) == sorted([*unread, new])
    assert len(found) == 5
