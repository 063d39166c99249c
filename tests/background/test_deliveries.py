"""The deliverer: every event at least once, whatever receivers, processes and networks do."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import NullPool, Update, create_engine, delete, func, select, update
from standardwebhooks import Webhook

from jobapi import jobs
from jobapi.background import deliveries as background
from jobapi.background.deliveries import Deliverer
from jobapi.background.sending import Sender
from jobapi.rules.webhooks import Answer, DeliveryStatus
from jobapi.services import deliveries, webhooks
from jobapi.services.events import current_snapshot
from jobapi.store.columns import DbNow
from jobapi.store.connections import AnyRow
from jobapi.store.secret_box import SecretBox
from jobapi.store.tables import leader_locks, webhook_deliveries
from jobapi.store.tables import webhooks as table
from jobapi.store.transactions import snapshot

from ..conftest import SECRET
from ..factories import PASSWORD, Desk, World, until
from ..receivers import Receiver, answer
from ..served import Command

LOOSE = {"JOBAPI_WEBHOOK_ALLOW_HTTP": "true", "JOBAPI_WEBHOOK_PRIVATE_ADDRESSES": "true"}


def hook(desk: Desk, receiver: Receiver, **values: Any) -> tuple[str, str]:
    """The id and the secret of a webhook."""
    with desk.world.transaction() as tx:
        row, secret = webhooks.create(
            tx,
            desk.workspace_id,
            desk.world.state.box,
            {"url": receiver.url, **values},
            most=100,
            created_by=desk.user.id,
        )
    return row.id, secret


@contextlib.contextmanager
def receiver(*arguments: Any, **options: Any) -> Iterator[Receiver]:
    made = Receiver(*arguments, **options)
    yield made
    made.close()


@contextlib.contextmanager
def delivering(world: World, **options: Any) -> Iterator[Deliverer]:
    state = world.state
    kept = {name: options.pop(name) for name in ("box", "on_attempt") if name in options}
    deliverer = Deliverer(
        lambda: state.engine,
        message=state.message,
        sender=lambda: Sender(
            **{"allow_http": True, "allow_private": True, "seconds": 1.0, **options}
        ),
        **{"box": state.box, **kept},
    )
    deliverer.lead(time.monotonic() + 600)
    yield deliverer
    deliverer.stop()


def rows(world: World) -> Sequence[AnyRow]:
    with world.transaction() as tx:
        return tx.execute(select(webhook_deliveries)).all()


def statuses(world: World) -> list[str]:
    return sorted(DeliveryStatus(row.status).label for row in rows(world))


def webhook_row(world: World) -> Any:
    with world.transaction() as tx:
        return tx.execute(select(table)).one()


def make_due(world: World) -> None:
    """Let what waits for its next attempt be due."""
    with world.transaction() as tx:
        tx.execute(_due_now())


def _due_now() -> Update:
    return (
        update(webhook_deliveries)
        .where(webhook_deliveries.c.status == DeliveryStatus.PENDING)
        .values(next_attempt_at=datetime.now(UTC) - timedelta(seconds=1))
    )


def test_events_are_delivered_and_verified(desk: Desk) -> None:
    outcomes: list[tuple[int, str]] = []
    with receiver() as good:
        _, secret = hook(desk, good)
        with delivering(desk.world, on_attempt=lambda *each: outcomes.append(each)):
            ended = {desk.job_in("success")["job_id"] for _ in range(3)}
            until(lambda: statuses(desk.world) == ["success"] * 3)
    for got in good.got:
        body: Any = Webhook(secret).verify(got.body.decode(), dict(got.headers))
        ended.remove(body["data"]["job"]["job_id"])
        assert body["data"]["job"]["status"] == "success"
    assert ended == set()
    assert outcomes == [(desk.workspace_id, "success")] * 3
    found = rows(desk.world)[0]
    assert (found.attempts, found.response_status, found.response_body) == (1, 200, "ok")
    assert found.next_attempt_at is None
    assert {row.id for row in rows(desk.world)} == set(good.ids)


def test_rotated_secrets_verify_both_until_the_previous_one_expires(desk: Desk) -> None:
    with receiver() as good:
        webhook_id, old = hook(desk, good)
        box = desk.world.state.box
        with desk.world.transaction() as tx:
            _, new = webhooks.rotate_secret(tx, desk.workspace_id, webhook_id, box)
        with delivering(desk.world):
            desk.job_in("success")
            until(lambda: len(good.got) == 1)
            for secret in (old, new):
                Webhook(secret).verify(good.got[0].body.decode(), dict(good.got[0].headers))
            with desk.world.transaction() as tx:
                tx.execute(update(table).values(previous_secret_expires_at=datetime.now(UTC)))
            desk.job_in("success")
            until(lambda: len(good.got) == 2)
    assert len(good.got[1].headers["webhook-signature"].split(" ")) == 1
    Webhook(new).verify(good.got[1].body.decode(), dict(good.got[1].headers))


def test_failed_delivery_is_repeated_as_it_was(desk: Desk) -> None:
    with receiver(answer(500, body=b"broken")) as this:
        hook(desk, this, include=["result"])
        with delivering(desk.world):
            job = desk.job_in("success")
            until(lambda: [row.attempts for row in rows(desk.world)] == [1])
            (row,) = rows(desk.world)
            assert (row.status, row.response_status) == (DeliveryStatus.PENDING, 500)
            assert (row.response_body, row.error) == ("broken", None)
            wait = (row.next_attempt_at - row.last_attempt_at).total_seconds()
            assert 4.5 <= wait <= 5.5
            assert webhook_row(desk.world).failing_since is not None
            # What it is about has gone.
            desk.call("DELETE", f"{desk.jobs_path}/{job['job_id']}")
            this.reply = answer(204)
            time.sleep(1.1)
            make_due(desk.world)
            until(lambda: "success" in statuses(desk.world))
    first, second = this.got
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] < second.headers["webhook-timestamp"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    until(lambda: webhook_row(desk.world).failing_since is None)


def test_delivery_fails_after_eight_attempts(desk: Desk) -> None:
    outcomes: list[str] = []
    with receiver(answer(503)) as bad:
        hook(desk, bad)
        with delivering(desk.world, on_attempt=lambda _, each: outcomes.append(each)):
            desk.job_in("success")
            for attempts in range(1, 9):
                until(lambda n=attempts: [row.attempts for row in rows(desk.world)] == [n])
                make_due(desk.world)
            until(lambda: len(outcomes) == 8)
    assert outcomes == ["retried"] * 7 + ["failed"]
    assert statuses(desk.world) == ["failed"]
    assert len(set(bad.ids)) == 1
    assert webhook_row(desk.world).enabled


def test_retry_after_delays_the_next_attempt(desk: Desk) -> None:
    with receiver(answer(429, "Retry-After: 3600")) as busy:
        hook(desk, busy)
        with delivering(desk.world):
            desk.job_in("success")
            until(lambda: [row.attempts for row in rows(desk.world)] == [1])
    (row,) = rows(desk.world)
    assert row.next_attempt_at - row.last_attempt_at == timedelta(hours=1)


def test_410_disables_the_webhook_and_cancels_what_is_pending(desk: Desk) -> None:
    with receiver(answer(500)) as this:
        hook(desk, this)
        with delivering(desk.world):
            desk.job_in("success")
            until(lambda: [row.attempts for row in rows(desk.world)] == [1])
            this.reply = answer(410)
            desk.job_in("failed")
            until(lambda: not webhook_row(desk.world).enabled)
            assert statuses(desk.world) == ["cancelled", "failed"]
            desk.job_in("success")
            time.sleep(0.8)
    assert len(rows(desk.world)) == 2
    newest = desk.call("GET", f"/workspace/{desk.workspace_id}/events?kind=webhook_disabled")
    (event,) = newest.json["data"]
    assert event["data"]["reason"] == "gone"
    assert (event["user_id"], event["key_id"]) == (None, None)


def test_five_days_of_failures_disable_the_webhook(desk: Desk) -> None:
    with receiver(answer(500)) as bad:
        hook(desk, bad)
        with delivering(desk.world):
            desk.job_in("success")
            until(lambda: [row.attempts for row in rows(desk.world)] == [1])
            with desk.world.transaction() as tx:
                since = datetime.now(UTC) - timedelta(days=5, seconds=1)
                tx.execute(update(table).values(failing_since=since))
            make_due(desk.world)
            until(lambda: not webhook_row(desk.world).enabled)
    listed = desk.call("GET", f"/workspace/{desk.workspace_id}/webhooks").json["data"]
    assert listed[0]["disabled_reason"] == "failing"


def test_thousand_deliveries_are_not_delayed_by_ten_bad_receivers(desk: Desk) -> None:
    with contextlib.ExitStack() as stack:
        bad = [stack.enter_context(receiver()) for _ in range(10)]
        for each in bad:
            each.reply = each.hang
            hook(desk, each, job_types=["batch"])
        good = stack.enter_context(receiver())
        hook(desk, good, job_types=["batch"])
        with delivering(desk.world, seconds=15.0):
            made = desk.post("/batch", json={"jobs": [{"job_type": "batch"}] * 1000})
            assert made.status_code == 201
            path = f"/workspace/{desk.workspace_id}/operations"
            began = time.monotonic()
            desk.call("POST", path, json={"action": "cancel", "filter": {}})
            desk.world.maintain("operations")
            until(lambda: len({*good.ids}) == 1000)
            assert time.monotonic() - began < 60
            assert len(good.ids) == 1000
        # What hangs has few requests under way.
        assert max(each.most_open for each in bad) <= background.PER_WEBHOOK


def test_receiver_that_fails_is_asked_one_thing_at_a_time_and_catches_up(desk: Desk) -> None:
    with receiver() as this:
        this.reply = this.hang
        hook(desk, this)
        with delivering(desk.world):
            for _ in range(5):
                desk.job_in("success")
            until(lambda: any(row.attempts for row in rows(desk.world)))
            this.most_open = 0
            for _ in range(20):
                desk.job_in("success")
            time.sleep(1.5)
            assert this.most_open <= 2
            this.reply = answer(200)
            until(lambda: statuses(desk.world).count("success") >= 20)


def test_full_webhook_waits_with_its_position(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "MAX_PENDING", 3)
    with receiver(answer(500)) as this:
        hook(desk, this)
        with delivering(desk.world):
            for _ in range(3):
                desk.job_in("success")
            until(lambda: len(rows(desk.world)) == 3)
            late = desk.job_in("success")["job_id"]
            time.sleep(1)
            assert len(rows(desk.world)) == 3
            this.reply = answer(200)
            make_due(desk.world)
            until(lambda: statuses(desk.world).count("success") == 4)
    assert late in {got.json["data"]["job"]["job_id"] for got in this.got}


def test_test_message_is_delivered(desk: Desk) -> None:
    with receiver() as good:
        webhook_id, secret = hook(desk, good)
        path = f"/workspace/{desk.workspace_id}/webhooks/{webhook_id}/test"
        made = desk.call("POST", path).json
        with delivering(desk.world):
            until(lambda: statuses(desk.world) == ["success"])
    (got,) = good.got
    Webhook(secret).verify(got.body.decode(), dict(got.headers))
    assert got.headers["webhook-id"] == made["delivery_id"]
    assert got.json["type"] == "webhook.test"
    assert got.json["data"] == {"event": None, "job": None}


def test_secret_is_decrypted_with_a_predecessor_of_the_key(desk: Desk) -> None:
    with receiver() as good:
        hook(desk, good)
        desk.job_in("success")
        with delivering(desk.world, box=SecretBox("y" * 32)):
            until(lambda: [row.attempts for row in rows(desk.world)] == [1])
        assert good.got == []
        assert "cannot be decrypted" in rows(desk.world)[0].error
        make_due(desk.world)
        with delivering(desk.world, box=SecretBox("y" * 32, [SECRET])):
            until(lambda: len(good.got) == 1)


def test_transaction_that_commits_late_loses_no_event(desk: Desk, database: str) -> None:
    if database == "sqlite":
        # It has one writer at a time.
        return
    with receiver() as good:
        hook(desk, good, events=["created"])
        with delivering(desk.world):
            with desk.world.transaction() as tx:
                late = jobs.create(
                    tx, desk.workspace_id, created_by=desk.user.id, job_type="late"
                ).job_id
                early = desk.create()["job_id"]
                until(lambda: len(good.got) == 1)
            until(lambda: len(good.got) == 2)
            desk.create()
            until(lambda: len(good.got) == 3)
    assert [got.json["data"]["job"]["job_id"] for got in good.got][:2] == [early, late]
    assert len(set(good.ids)) == 3


def read(world: World, connection: Any) -> Any:
    with snapshot(connection):
        return deliveries.read(
            connection,
            deliveries.survey(connection),
            world.state.message,
            seen=current_snapshot(connection),
        )


def test_two_processes_make_each_delivery_once_and_send_it_once(desk: Desk) -> None:
    with receiver() as good:
        hook(desk, good)
        for _ in range(10):
            desk.job_in("success")
        engine = desk.world.state.engine
        with engine.connect() as one, engine.connect() as other:
            found = [read(desk.world, each).read[0] for each in (one, other)]
            assert [len(each.deliveries) for each in found] == [10, 10]
            stored = [deliveries.store(one, each) for each in found]
            assert stored == [True, False]
            (webhook,) = deliveries.survey(one)
            picked = [deliveries.pick(each, webhook, 6) for each in (one, other, one)]
            assert [len(each) for each in picked] == [6, 4, 0]
            assert len({row.id for each in picked for row in each}) == 10
            # A late result of another attempt changes nothing.
            first = picked[0][0]
            assert deliveries.save(one, first, Answer(500), 0.5) is not None
            assert deliveries.save(one, first, Answer(200), 0.5) is None
            # A webhook that was disabled meanwhile gets nothing.
            webhooks.change(one, desk.workspace_id, webhook.id, {"enabled": False})
            assert deliveries.save(one, picked[0][1], Answer(200), 0.5) is None
            assert not deliveries.store(one, found[0])


def test_delivery_of_a_process_that_died_is_sent_again(desk: Desk) -> None:
    with receiver() as good:
        hook(desk, good)
        desk.job_in("success")
        with desk.world.state.engine.connect() as connection:
            for each in read(desk.world, connection).read:
                deliveries.store(connection, each)
            (webhook,) = deliveries.survey(connection)
            assert len(deliveries.pick(connection, webhook, 10)) == 1
        with delivering(desk.world):
            time.sleep(0.8)
            assert good.got == []
            make_due(desk.world)
            until(lambda: len(good.got) == 1)


def test_process_that_no_longer_leads_picks_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver() as good:
        hook(desk, good)
        with delivering(desk.world) as deliverer:
            deliverer.lead(time.monotonic() - 1)
            step, ended = deliverer.step, threading.Event()

            def noting() -> float:
                pause = step()
                ended.set()
                return pause

            # What has begun while it led may go on.
            monkeypatch.setattr(deliverer, "step", noting)
            assert ended.wait(60)
            desk.job_in("success")
            time.sleep(0.8)
            assert rows(desk.world) == []
            deliverer.lead(time.monotonic() + 60)
            until(lambda: len(good.got) == 1)


def test_every_event_is_delivered_although_processes_are_killed(
    serve: Any, service_env: dict[str, str]
) -> None:
    """Deliverers are killed at random moments; what they had picked is sent by the next."""
    chance = random.Random(7)
    database = create_engine(service_env["JOBAPI_DATABASE_URL"], poolclass=NullPool)
    client = serve(JOBAPI_MAINTENANCE_ENABLED="false", **LOOSE).client("boss", PASSWORD)
    with receiver() as good:
        made = client.post("/workspace/1/webhooks", json={"url": good.url})
        assert made.status_code == 201, made.text
        ended: set[str] = set()
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                job = client.post(
                    "/workspace/1/jobs", json={"job_type": "a", "workspace_id": 1}
                ).json()
                path = f"/workspace/1/jobs/{job['job_id']}"
                client.patch(path, json={"status": "success"})
                ended.add(job["job_id"])

        thread = threading.Thread(target=work)
        thread.start()
        env = {**service_env, **LOOSE}
        try:
            for _ in range(3):
                before = len(good.got)
                process = Command("maintain", env=env)
                until(lambda n=before: len(good.got) > n)
                time.sleep(chance.random() * 0.5)
                process.kill()
                # As if the time had passed for which it holds the lock and what it has picked.
                with database.begin() as connection:
                    connection.execute(delete(leader_locks))
                    connection.execute(_due_now())
        finally:
            stop.set()
            thread.join()
        process = Command("maintain", env=env)
        try:

            def received() -> set[str]:
                return {json.loads(got.body)["data"]["job"]["job_id"] for got in [*good.got]}

            until(lambda: received() >= ended, 120)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    # What was sent twice has the same id.
    by_id = {got.headers["webhook-id"]: got.body for got in good.got}
    assert len(by_id) == len(ended)


def test_workspaces_without_webhooks_cost_the_deliverer_one_query(
    desk: Desk, sent: list[str]
) -> None:
    with delivering(desk.world) as deliverer:
        time.sleep(0.3)
        sent.clear()
        deliverer.step()
        assert len(sent) == 1


def test_redelivery_of_what_is_being_sent_sends_it_once(desk: Desk) -> None:
    go = threading.Event()

    def wait(sock: Any, received: Any) -> None:
        go.wait(10)
        sock.sendall(answer(200))

    with receiver(wait) as slow:
        webhook_id, _ = hook(desk, slow)
        with delivering(desk.world, seconds=10.0):
            desk.job_in("success")
            until(lambda: slow.got)
            (delivery,) = rows(desk.world)
            with desk.world.transaction() as tx:
                webhooks.redeliver(tx, desk.workspace_id, webhook_id, delivery.id)
            # Picked again, which moves its next attempt into the future.
            until(lambda: rows(desk.world)[0].next_attempt_at > datetime.now(UTC))
            # It would be sent at once.
            time.sleep(0.2)
            go.set()
            until(lambda: statuses(desk.world) == ["success"])
        assert len(slow.got) == 1


def test_oldest_undelivered_event_is_measured(desk: Desk) -> None:
    with receiver(answer(500)) as bad:
        hook(desk, bad)

        def age() -> float:
            with desk.world.state.engine.connect() as connection:
                now = connection.execute(select(DbNow())).scalar_one()
                return deliveries.oldest_undelivered(connection, now)[desk.workspace_id]

        # The event that created it.
        created = age()
        desk.job_in("success")
        ended = time.monotonic()
        time.sleep(0.3)
        assert age() >= created + 0.3
        with delivering(desk.world):
            until(lambda: [row.attempts for row in rows(desk.world)] == [1])
            # From the event on, not from its delivery on; SQLite's clock has milliseconds.
            since = time.monotonic() - ended
            assert age() >= since - 0.002
            bad.reply = answer(200)
            make_due(desk.world)
            until(lambda: statuses(desk.world) == ["success"])
            assert age() == 0
    with desk.world.transaction() as tx:
        assert tx.scalar(select(func.count()).select_from(webhook_deliveries)) == 1
