"""``jobapi workspaces move``: complete, interrupted, undone and refused moves."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from jobapi import accounts
from jobapi.commands.moving import Move, Patience, open_move
from jobapi.services import counts, deliveries, moves
from jobapi.services import workspaces as services
from jobapi.services.events import current_snapshot
from jobapi.services.moves import CannotMove
from jobapi.store.faults import judge
from jobapi.store.tables import (
    api_keys,
    events,
    idempotency_keys,
    job_flow,
    job_log_heads,
    job_logs,
    jobs,
    operations,
    webhook_deliveries,
    webhooks,
    workspaces,
)
from jobapi.store.transactions import snapshot

from ..conftest import SECRET, app_on
from ..factories import Desk, World
from ..served import Command, environment

FIRST = 50_000_000


@pytest.fixture
def target_kind(request: Any, database: str) -> str:
    """The kind of the target's database, if a test wants another one than the source's."""
    return str(getattr(request, "param", database))


@pytest.fixture
def cells(
    new_database: Any, database: str, target_kind: str, tmp_path: Path
) -> Iterator[tuple[World, World, str]]:
    """Two cells, and the URL of the second. The ids of the first start at ``FIRST``."""
    urls = [new_database(database), new_database(target_kind)]
    apps = [app_on(url, tmp_path) for url in urls]
    worlds = [World(app) for app in apps]
    done = init(apps[0])
    assert done.exit_code == 0, (done.output, done.exception)
    yield worlds[0], worlds[1], urls[1]
    for app in apps:
        app.extensions["jobapi"].close()


def init(app: Flask, first: int = FIRST) -> Any:
    return app.test_cli_runner().invoke(args=["jobapi", "init", "--first-id", str(first)])


def move(world: World, url: str, workspace_id: int, *options: str) -> Any:
    runner = world.app.test_cli_runner()
    args = ["jobapi", "workspaces", "move", str(workspace_id), "--to-env", "TARGET", *options]
    return runner.invoke(args=args, env={"TARGET": url})


@contextlib.contextmanager
def moving(source: World, target: World, desk: Desk) -> Iterator[Move]:
    """A move of the desk's workspace, step by step."""
    engines = (source.state.engine, target.state.engine)
    with open_move(*engines, desk.workspace_id, Patience(tries=2, pause=0.05)) as this:
        yield this


def fill(desk: Desk) -> str:
    """Jobs in each status with attempts, a key, a member, an operation; returns the key."""
    for status in ("pending", "running", "success", "failed", "cancelled"):
        desk.job_in(status, metadata={"of": status, "n": [1, 2.5, None, True, "ä"]})
    # A log without its job, until the maintenance deletes it.
    gone = log(desk, "x", "y")
    desk.report(gone, status="success")
    assert desk.call("DELETE", f"{desk.jobs_path}/{gone['job_id']}").status_code == 204
    job = desk.create()
    for n in range(2):
        (claimed,) = desk.claim()
        logs = [{"message": f"ä{n}\n", "level": "error", "seq": 5}]
        desk.report(claimed, status="failed", error="no", retry_after=0, logs=logs)
    desk.patch(job["job_id"], {"priority": "urgent"})
    other = desk.world.user()
    desk.call(
        "POST",
        f"/workspace/{desk.workspace_id}/members",
        json={"user_id": other.id, "role": "viewer"},
    )
    changes = {"retention": {"failed": 30}, "priority_ageing_seconds": 60}
    desk.call("PATCH", f"/workspace/{desk.workspace_id}", json=changes)
    limits = {"max_running": 50, "rate_limit": {"starts": 70, "seconds": 9}, "max_retries": 5}
    path = f"/workspace/{desk.workspace_id}/job-types/data_analysis"
    assert desk.call("PATCH", path, json=limits).status_code == 200
    desk.create(concurrency_key="k", unique_key="u", expires_at="2100-01-01T00:00:00Z")
    desk.claim(worker="w")
    body = {"name": "nightly", "cron": "30 2 * * *", "job": {"job_type": "x", "metadata": {"a": 1}}}
    schedule = desk.call("POST", f"/workspace/{desk.workspace_id}/schedules", json=body).json
    path = f"/workspace/{desk.workspace_id}/schedules/{schedule['schedule_id']}/run"
    assert desk.call("POST", path).status_code == 201
    hooks = f"/workspace/{desk.workspace_id}/webhooks"
    webhook = desk.call("POST", hooks, json={"url": "https://example.com", "include": ["result"]})
    desk.call("POST", f"{hooks}/{webhook.json['webhook_id']}/test")
    made = desk.call(
        "POST", f"/workspace/{desk.workspace_id}/keys", json={"name": "k", "role": "worker"}
    )
    desk.call(
        "POST",
        f"/workspace/{desk.workspace_id}/operations",
        json={"action": "cancel", "filter": {"status": ["pending"]}},
    )
    return str(made.json["key"])


def log(desk: Desk, *messages: str) -> dict[str, Any]:
    """A leased job that has logged something."""
    desk.create()
    (job,) = desk.claim()
    desk.report(job, logs=[{"message": message} for message in messages])
    return job


def create_many(desk: Desk, n: int) -> None:
    made = desk.post("/batch", json={"jobs": [{"job_type": "x"}] * n})
    assert made.status_code == 201


def seen(world: World, workspace_id: int, token: str) -> dict[str, Any]:
    """All that the API shows of a workspace, without ids that are internal."""
    base = f"/workspace/{workspace_id}"
    listed = world.call("GET", f"{base}/jobs?limit=100&order=asc", token).json
    points = world.call("GET", f"{base}/stats/history?window=day", token).json["data"]
    history = world.call("GET", f"{base}/events?limit=100&order=asc", token).json["data"]
    return {
        "workspace": world.call("GET", base, token).json,
        "job types": [
            {**each, "oldest_due_seconds": None}
            for each in world.call("GET", f"{base}/job-types", token).json["data"]
        ],
        "workers": world.call("GET", f"{base}/workers", token).json,
        "schedules": world.call("GET", f"{base}/schedules", token).json,
        "webhooks": (hooks := world.call("GET", f"{base}/webhooks", token).json["data"]),
        "deliveries": [
            world.call("GET", f"{base}/webhooks/{hook['webhook_id']}/deliveries", token).json
            for hook in hooks
        ],
        "jobs": listed["data"],
        "total": listed["pagination"]["total"],
        "attempts": [
            world.call("GET", f"{base}/jobs/{job['job_id']}/attempts", token).json
            for job in listed["data"]
        ],
        "logs": [
            world.call("GET", f"{base}/jobs/{job['job_id']}/logs", token).json
            for job in listed["data"]
        ],
        "events": [{**event, "event_id": None} for event in history],
        "by_status": world.call("GET", f"{base}/stats", token).json["by_status"],
        "throughput": [sum(point[name] for point in points) for name in ("queued", "failed")],
    }


@pytest.mark.parametrize("target_kind", ["sqlite", "postgresql"], indirect=True)
def test_workspace_moves_with_all_that_is_in_it(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk, neighbour = Desk(source), Desk(source)
    neighbour.create()
    key = fill(desk)
    desk.create()
    (held,) = desk.claim(lease_seconds=600)
    before = seen(source, desk.workspace_id, desk.token)
    done = move(source, url, desk.workspace_id)
    assert done.exit_code == 0, (done.output, done.exception)
    # The same key works there, and the password too.
    assert source.call("GET", desk.jobs_path, desk.token).status_code == 404
    with target.transaction() as tx:
        owner = accounts.find_user(tx, desk.user.username)
        assert owner.id == desk.user.id >= FIRST
        assert counts.check(tx, desk.workspace_id) == []
    after = seen(target, desk.workspace_id, target.token(owner))
    assert after == before
    answer = target.call(
        "POST",
        f"{desk.jobs_path}/report",
        key,
        json={
            "reports": [
                {"job_id": held["job_id"], "lease_token": held["lease_token"], "status": "success"}
            ]
        },
    )
    assert answer.json["data"][0]["accepted"] is True
    made = target.call(
        "POST",
        desk.jobs_path,
        target.token(owner),
        json={"job_type": "x", "workspace_id": desk.workspace_id},
    )
    assert made.status_code == 201
    newest = target.call(
        "GET", f"/workspace/{desk.workspace_id}/events?limit=1", target.token(owner)
    ).json["data"][0]
    assert (newest["kind"], newest["job_id"]) == ("created", made.json["job_id"])
    # Nothing of it stays, nothing else is gone.
    with source.state.engine.connect() as connection:
        while services.clear(connection):
            pass
        assert connection.scalar(select(func.count()).select_from(jobs)) == 1
        for table in (
            *(events, idempotency_keys, operations, job_flow, api_keys),
            *(job_logs, job_log_heads),
        ):
            left = select(func.count()).where(table.c.workspace_id == desk.workspace_id)
            assert connection.scalar(left) == 0, table.name
    assert neighbour.get().json["pagination"]["total"] == 1
    # Once more there is nothing to do.
    again = move(source, url, desk.workspace_id)
    assert (again.exit_code, "in the target already" in again.output) == (0, True)
    unknown = move(source, url, desk.workspace_id + 100)
    assert (unknown.exit_code, "There is no workspace" in unknown.output) == (1, True)


def make_deliveries(world: World) -> list[str | None]:
    """Make deliveries of the events that webhooks have not read; returns the ids of their jobs."""
    with world.state.engine.connect() as connection:
        with snapshot(connection):
            seen = current_snapshot(connection)
            hooks = deliveries.survey(connection)
            found = deliveries.read(connection, hooks, world.state.message, seen=seen)
        for each in found.read:
            assert deliveries.store(connection, each)
        return [made["job_id"] for each in found.read for made in each.deliveries]


@pytest.mark.parametrize("target_kind", ["sqlite", "postgresql"], indirect=True)
def test_webhook_goes_on_after_the_last_event_that_it_has_read(
    cells: tuple[World, World, str],
) -> None:
    source, target, url = cells
    desk = Desk(source)
    desk.job_in("success")
    path = f"/workspace/{desk.workspace_id}/webhooks"
    made = desk.call("POST", path, json={"url": "https://example.com"}).json
    read = desk.job_in("success")["job_id"]
    assert make_deliveries(source) == [read]
    unread = [desk.job_in("failed")["job_id"] for _ in range(3)]
    done = move(source, url, desk.workspace_id)
    assert done.exit_code == 0, (done.output, done.exception)
    assert made["secret"] not in done.output
    assert make_deliveries(target) == unread
    with target.transaction() as tx:
        owner = accounts.find_user(tx, desk.user.username)
        row = tx.execute(select(webhooks)).one()
        # Both services have the same secret key.
        assert target.state.box.open(row.secret) == made["secret"]
        statuses = tx.execute(select(webhook_deliveries.c.status)).scalars().all()
    assert statuses == [0] * 4
    desk.token, desk.world = target.token(owner), target
    new = desk.job_in("cancelled")["job_id"]
    assert make_deliveries(target) == [new]
    assert make_deliveries(target) == []


def test_users_of_both_cells_are_matched_by_name(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk = Desk(source)
    desk.create()
    with target.transaction() as tx:
        here = accounts.create_user(tx, desk.user.username, password="another-password")
    assert move(source, url, desk.workspace_id).exit_code == 0
    (job,) = target.call("GET", desk.jobs_path, target.token(here)).json["data"]
    assert job["created_by"] == here.id < FIRST
    (event,) = target.call(
        "GET", f"/workspace/{desk.workspace_id}/events", target.token(here)
    ).json["data"]
    assert event["user_id"] == here.id


def test_move_to_a_cell_with_the_same_ids_is_refused_and_undone(
    cells: tuple[World, World, str], new_database: Any, database: str, tmp_path: Path
) -> None:
    _, target, _ = cells
    desk, other = Desk(target), app_on(new_database("postgresql"), tmp_path)
    url = other.extensions["jobapi"].engine.url.render_as_string(hide_password=False)
    # (SQLite gives out ids above the largest one only.)
    done = move(target, url, desk.workspace_id)
    assert (done.exit_code, "--first-id" in done.output) == (1, True), done.output
    # It can be written to again.
    assert desk.create()
    other.extensions["jobapi"].close()
    unready = move(target, new_database(database), desk.workspace_id)
    assert (unready.exit_code, "not ready" in unready.output) == (1, True), unready.output
    assert desk.create()


def test_first_id_of_a_database_with_rows_is_refused(cells: tuple[World, World, str]) -> None:
    source, target, _ = cells
    Desk(target)
    done = init(target.app)
    assert (done.exit_code, "only a new database" in done.output) == (1, True)
    # A second time nothing has to be done.
    assert init(source.app).exit_code == 0
    assert source.user().id == FIRST


def test_writes_are_refused_while_it_moves_and_reads_are_not(
    cells: tuple[World, World, str],
) -> None:
    source, target, url = cells
    desk, neighbour = Desk(source), Desk(source)
    job = desk.create()
    with moving(source, target, desk) as this:
        this.freeze()
    for method, path in (
        ("POST", ""),
        ("POST", "/claim"),
        ("PATCH", f"/{job['job_id']}"),
        ("POST", f"/{job['job_id']}/cancel"),
        ("DELETE", f"/{job['job_id']}"),
    ):
        refused = desk.call(
            method, desk.jobs_path + path, json={"job_type": "x", "workspace_id": desk.workspace_id}
        )
        assert refused.status_code == 503, path
        assert refused.headers["Retry-After"] == "10"
        assert "moved" in refused.json["detail"]
    for path in ("/keys", "/members", "/operations"):
        assert (
            desk.call("POST", f"/workspace/{desk.workspace_id}{path}", json={}).status_code == 503
        )
    assert desk.get(f"/{job['job_id']}").json == job
    assert neighbour.post(json={"job_type": "x", "workspace_id": neighbour.workspace_id})
    # This includes writes that do not go through a view, such as those of a host.
    for statement in (
        workspaces.update().where(workspaces.c.id == desk.workspace_id).values(name="x"),
        jobs.update().values(version=7),
        jobs.delete(),
        api_keys.insert().values(
            workspace_id=desk.workspace_id,
            user_id=desk.user.id,
            name="k",
            role=0,
            key_hash="x",
            created_at=func.now(),
        ),
    ):
        with pytest.raises(DBAPIError) as error, source.transaction() as tx:
            tx.execute(statement)
        fault = judge(error.value)
        assert fault is not None
        assert "moved" in fault.detail
    undone = move(source, url, desk.workspace_id, "--undo")
    assert undone.exit_code == 0, (undone.output, undone.exception)
    assert desk.patch(job["job_id"], {"priority": "low"}).status_code == 200
    assert move(source, url, desk.workspace_id).exit_code == 0
    assert target.state is not source.state


def test_move_with_a_running_operation_is_refused(cells: tuple[World, World, str]) -> None:
    source, _, url = cells
    desk = Desk(source)
    create_many(desk, 600)
    begun = desk.call(
        "POST",
        f"/workspace/{desk.workspace_id}/operations",
        json={"action": "cancel", "filter": {"status": ["pending"]}},
    )
    assert begun.json["status"] == "running"
    done = move(source, url, desk.workspace_id)
    assert (done.exit_code, "operation is running" in done.output) == (1, True)
    assert desk.create()


def test_maintenance_passes_over_a_workspace_that_moves(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk, neighbour = Desk(source), Desk(source)
    for each in (desk, neighbour):
        fill(each)
        each.post(
            json={"job_type": "x", "workspace_id": each.workspace_id},
            headers={"Idempotency-Key": "k"},
        )
        each.create(max_retries=0)
        (leased,) = each.claim(lease_seconds=60)
        each.shift(leased, 3600)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    with source.transaction() as tx:
        while counts.fold(tx):
            pass
        tx.execute(idempotency_keys.update().values(created_at=long_ago))
        tx.execute(operations.update().values(ended_at=long_ago))
        # One row each: those of two minutes would become the same one.
        flow = {row.workspace_id: row._asdict() for row in tx.execute(select(job_flow))}
        tx.execute(job_flow.delete())
        tx.execute(job_flow.insert(), [{**row, "at": long_ago} for row in flow.values()])
        tx.execute(workspaces.update().values(keep_events=1, keep_failed=1))
        tx.execute(events.update().values(at=long_ago))
    tables = (jobs, events, idempotency_keys, operations, job_flow)

    def rows(of: Desk) -> dict[str, list[str]]:
        with source.transaction() as tx:
            return {
                table.name: sorted(
                    map(
                        str,
                        tx.execute(select(table).where(table.c.workspace_id == of.workspace_id)),
                    )
                )
                for table in tables
            }

    with moving(source, target, desk) as this:
        this.freeze()
    before, others = rows(desk), rows(neighbour)
    source.maintain()
    assert rows(desk) == before
    after = rows(neighbour)
    assert all(after[name] != others[name] for name in others), after
    assert move(source, url, desk.workspace_id).exit_code == 0


def test_key_may_be_used_for_reading_while_it_moves(cells: tuple[World, World, str]) -> None:
    source, target, _ = cells
    desk = Desk(source)
    key = fill(desk)
    with moving(source, target, desk) as this:
        this.freeze()
        this.prepare()
        # Again, as after an interruption: nothing is there twice.
        for _ in range(2):
            this.copy()
        assert source.call("GET", desk.jobs_path, key).status_code == 200
        with source.transaction() as tx:
            tx.execute(api_keys.update().values(last_used_at=func.now()))
        this.show()
        this.leave()
    assert target.call("GET", desk.jobs_path, key).status_code == 200


def test_workspace_moves_back_to_where_it_came_from(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk = Desk(source)
    fill(desk)
    before = seen(source, desk.workspace_id, desk.token)
    assert move(source, url, desk.workspace_id).exit_code == 0
    here = source.state.engine.url.render_as_string(hide_password=False)
    early = move(target, here, desk.workspace_id)
    assert (early.exit_code, "still deleting" in early.output) == (1, True), early.output
    with source.state.engine.connect() as connection:
        while services.clear(connection):
            pass
    back = move(target, here, desk.workspace_id)
    assert back.exit_code == 0, (back.output, back.exception)
    assert seen(source, desk.workspace_id, desk.token) == before


def test_actors_of_a_host_stay_as_they_are(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk = Desk(source)
    desk.create()
    with source.transaction() as tx:
        tx.execute(events.update().values(actor="robot: seven"))
        tx.execute(operations.update().values(actor="user:x"))
    done = move(source, url, desk.workspace_id)
    assert done.exit_code == 0, (done.output, done.exception)
    with target.transaction() as tx:
        assert set(tx.scalars(select(events.c.actor))) == {"robot: seven"}


def test_wrong_url_is_named_by_its_variable(cells: tuple[World, World, str]) -> None:
    source, _, _ = cells
    desk = Desk(source)
    done = move(source, "mysql://nowhere", desk.workspace_id)
    assert done.exit_code == 1
    assert "TARGET" in done.output
    assert "JOBAPI_DATABASE_URL" not in done.output
    assert desk.create()


def test_move_killed_before_its_last_step_is_completed(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk = Desk(source)
    fill(desk)
    with moving(source, target, desk) as this:
        this.freeze()
        this.prepare()
        this.copy()
        this.show()
    with source.transaction() as tx:
        moves.hide(tx, desk.workspace_id)
    done = move(source, url, desk.workspace_id)
    assert done.exit_code == 0, (done.output, done.exception)
    with source.state.engine.connect() as connection:
        row = moves.find(connection, desk.workspace_id)
        assert row is not None
        assert (row.move, row.deleted_at is None) == (None, False)
        while services.clear(connection):
            pass
        assert moves.find(connection, desk.workspace_id) is None


def test_of_two_processes_one_moves_the_workspace(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk = Desk(source)
    fill(desk)
    with moving(source, target, desk) as first:
        first.freeze()
        first.prepare()
        done = move(source, url, desk.workspace_id)
        assert done.exit_code == 0, (done.output, done.exception)
        with target.transaction() as tx:
            owner = accounts.find_user(tx, desk.user.username)
        before = seen(target, desk.workspace_id, target.token(owner))
        for step in (first.copy, first.show, first.prepare):
            with pytest.raises(CannotMove):
                step()
    undone = move(source, url, desk.workspace_id, "--undo")
    assert undone.exit_code == 1, undone.output
    assert seen(target, desk.workspace_id, target.token(owner)) == before


def test_undo_while_another_process_copies_stops_it(cells: tuple[World, World, str]) -> None:
    source, target, url = cells
    desk = Desk(source)
    fill(desk)
    with moving(source, target, desk) as first:
        first.freeze()
        first.prepare()
        assert move(source, url, desk.workspace_id, "--undo").exit_code == 0
        assert desk.create()
        with pytest.raises(CannotMove):
            first.copy()
        with pytest.raises(CannotMove):
            first.show()
    assert desk.get().status_code == 200


def test_long_transaction_ends_the_wait_and_blocks_writers_shortly(
    new_database: Any, tmp_path: Path
) -> None:
    urls = [new_database("postgresql") for _ in range(2)]
    apps = [app_on(url, tmp_path) for url in urls]
    source, target = (World(app) for app in apps)
    assert init(apps[0]).exit_code == 0
    desk, neighbour = Desk(source), Desk(source)
    held = neighbour.create()
    slowest = [0.0]
    stopping = threading.Event()

    def write() -> None:
        while not stopping.wait(0.01):
            began = time.monotonic()
            neighbour.create()
            slowest[0] = max(slowest[0], time.monotonic() - began)

    writer = threading.Thread(target=write)
    with source.transaction() as tx:
        tx.execute(jobs.update().where(jobs.c.job_id == held["job_id"]).values(version=9))
        writer.start()
        with moving(source, target, desk) as this, pytest.raises(CannotMove, match="in the way"):
            this.freeze()
        stopping.set()
        writer.join()
    # One try, of a second, at a time: not for as long as the transaction lasts.
    assert slowest[0] < 5
    assert desk.create()
    for app in apps:
        app.extensions["jobapi"].close()


def test_move_that_is_killed_is_continued_while_clients_write(
    new_database: Any, database: str, tmp_path: Path
) -> None:
    urls = [new_database(database), new_database(database)]
    apps = [app_on(url, tmp_path) for url in urls]
    source, target = (World(app) for app in apps)
    assert init(apps[0]).exit_code == 0
    desk = Desk(source)
    for _ in range(6):
        create_many(desk, 500)
    env = environment(
        JOBAPI_DATABASE_URL=urls[0],
        JOBAPI_SECRET_KEY=SECRET,
        TARGET=urls[1],
        JOBAPI_INSTANCE_PATH=str(tmp_path),
    )
    move = "workspaces", "move", str(desk.workspace_id), "--to-env", "TARGET"
    said = tmp_path / "said"
    created: list[str] = []
    stopping = threading.Event()

    def write() -> None:
        while not stopping.wait(0.01):
            answer = desk.post(json={"job_type": "x", "workspace_id": desk.workspace_id})
            if answer.status_code == 201:
                created.append(answer.json["job_id"])
            else:
                assert answer.status_code in (404, 503)

    writer = threading.Thread(target=write)
    writer.start()
    chance = random.Random(os.environ.get("CHAOS_SEED", "7"))
    try:
        kills = 0
        for _ in range(30):
            said.unlink(missing_ok=True)
            process = Command(*move, env=env, stderr=said)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2 + chance.random() * kills / 2)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
                kills += 1
                time.sleep(0.1)
                continue
            assert process.poll() == 0, said.read_text()
            break
    finally:
        stopping.set()
        writer.join()
    assert process.poll() == 0
    assert kills > 0
    with target.transaction() as tx:
        there = set(
            tx.scalars(select(jobs.c.job_id).where(jobs.c.workspace_id == desk.workspace_id))
        )
        assert counts.check(tx, desk.workspace_id) == []
        noted = tx.scalar(select(func.count()).select_from(events))
    assert len(there) == 3000 + len(created)
    assert set(created) <= there
    assert noted == len(there)
    assert desk.get().status_code == 404
    for app in apps:
        app.extensions["jobapi"].close()
