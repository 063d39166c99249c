"""Periodic tasks, the turns they take, and the one process at a time that runs them."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from sqlalchemy import create_engine, select

from jobapi.background import leader_lock
from jobapi.background.maintenance import Maintenance, PeriodicTask, RoundRobin
from jobapi.background.periodic_tasks import InTurns
from jobapi.rules.leases import Backoff
from jobapi.services import operations
from jobapi.store.engine import normalize_url
from jobapi.store.tables import leader_locks

from ..factories import PASSWORD, Desk, World, until
from ..served import Command

JOBS = "/workspace/1/jobs"
JOB = {"job_type": "a", "workspace_id": 1}
NO_CONNECTION: Any = None


class Clock:
    """A clock that only advances when a step takes time."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Steps:
    """The steps of a task with a number of steps, each of which takes some time."""

    def __init__(self, clock: Clock, log: list[str], name: str, *, more: int, takes: float) -> None:
        self.clock, self.log, self.name, self.more, self.takes = clock, log, name, more, takes

    def __call__(self, connection: Any) -> bool:
        self.log.append(self.name)
        self.clock.now += self.takes
        self.more -= 1
        return self.more >= 0


def test_run_of_tasks_with_more_to_do_takes_turns() -> None:
    clock, log = Clock(), list[str]()
    tasks = [
        PeriodicTask(name, 2, Steps(clock, log, name, more=more, takes=0.125))
        for name, more in (("A", 2), ("B", 0), ("C", 1))
    ]
    assert RoundRobin(tasks, clock=clock).run(NO_CONNECTION, 10) == 2 - 6 * 0.125
    assert log == ["A", "B", "C", "A", "C", "A"]


def test_run_over_its_time_continues_with_the_task_that_waits_the_longest() -> None:
    clock, log = Clock(), list[str]()
    tasks = [
        PeriodicTask("long", 60, Steps(clock, log, "long", more=9, takes=0.5)),
        PeriodicTask("short", 2, Steps(clock, log, "short", more=0, takes=0.5)),
    ]
    runner = RoundRobin(tasks, clock=clock)
    for expected in (["long", "short"], ["long", "long"], ["short", "long"]):
        log.clear()
        assert runner.run(NO_CONNECTION, 1) < 0.1
        assert log == expected
        clock.now += 0.25


def test_run_before_a_task_is_due_says_how_long_to_wait() -> None:
    clock, log = Clock(), list[str]()
    tasks = [
        PeriodicTask("often", 2, Steps(clock, log, "often", more=0, takes=0.0)),
        PeriodicTask("rarely", 60, Steps(clock, log, "rarely", more=0, takes=0.0)),
    ]
    runner = RoundRobin(tasks, clock=clock)
    for _ in range(30):
        assert runner.run(NO_CONNECTION, 1) == 2
        clock.now += 1.5
        assert runner.run(NO_CONNECTION, 1) == 0.5
        clock.now += 0.5
    assert log == ["often", "rarely"] + ["often"] * 29


def test_run_tasks_after_a_failure_continues_with_the_others() -> None:
    clock, log = Clock(), list[str]()
    tasks = [
        PeriodicTask("wrong", 2, lambda connection: 1 / 0 > 0),
        PeriodicTask("right", 2, Steps(clock, log, "right", more=0, takes=0.0)),
    ]
    assert RoundRobin(tasks, clock=clock).run(NO_CONNECTION, 1) == 2
    assert log == ["right"]


def test_step_of_items_takes_turns_and_leaves_out_one_that_fails() -> None:
    left = {"a": 3, "wrong": 1, "b": 1}

    def work(connection: Any, item: str) -> bool:
        if item == "wrong":
            raise RuntimeError(item)
        left[item] -= 1
        return left[item] > 0

    step = InTurns(lambda connection: list(left), work)
    assert step(NO_CONNECTION) is True
    with pytest.raises(RuntimeError):
        step(NO_CONNECTION)
    assert [step(NO_CONNECTION) for _ in range(3)] == [True, True, False]
    assert left == {"a": 0, "wrong": 1, "b": 0}


def test_acquire_leader_lock_that_another_holds_fails_until_it_expires(world: World) -> None:
    with world.state.engine.connect() as connection:
        assert leader_lock.acquire(connection, "a")
        assert leader_lock.acquire(connection, "a")
        assert not leader_lock.acquire(connection, "b")
        assert leader_lock.acquire(connection, "a", seconds=-1)
        assert leader_lock.acquire(connection, "b")


def test_release_leader_lock_lets_another_acquire_it(world: World) -> None:
    with world.state.engine.connect() as connection:
        assert leader_lock.acquire(connection, "b")
        leader_lock.release(connection, "a")
        assert not leader_lock.acquire(connection, "a")
        leader_lock.release(connection, "b")
        assert leader_lock.acquire(connection, "a")


def test_two_processes_run_tasks_one_after_the_other(world: World) -> None:
    ran: list[str] = []

    def maintained(name: str) -> Maintenance:
        def step(connection: Any) -> bool:
            ran.append(name)
            return False

        tasks = [PeriodicTask("test", 0.01, step)]
        return Maintenance(lambda: world.state.engine, tasks, poll_seconds=0.01)

    first, second = maintained("first"), maintained("second")
    first.start()
    until(lambda: len(ran) >= 3)
    second.start()
    until(lambda: len(ran) >= 6)
    first.stop()
    until(lambda: "second" in ran)
    second.stop()
    assert ran == sorted(ran)
    with world.state.engine.connect() as connection:
        assert connection.execute(leader_locks.select()).all() == []


def test_jobs_that_become_due_in_the_background_are_announced(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[int] = []

    def announce(connection: Any, workspace_id: int) -> None:
        assert connection.execute(select(1)).scalar() == 1
        announced.append(workspace_id)

    job = desk.create(max_retries=5)
    for backoff, wanted in ((Backoff(60, 60), []), (Backoff(0, 0), [desk.workspace_id])):
        desk.shift(job, 3600)
        desk.claim()
        desk.shift(job, 3600)
        desk.world.maintain("expired leases", backoff=backoff, announce=announce)
        assert announced == wanted
    desk.post(f"/{job['job_id']}/cancel")
    monkeypatch.setattr(operations, "AT_ONCE", 1)
    for _ in range(3):
        desk.job_in("cancelled")
    announced.clear()
    path = f"/workspace/{desk.workspace_id}/operations"
    assert desk.call("POST", path, json={"action": "retry", "filter": {}}).status_code == 201
    desk.world.maintain("operations", announce=announce)
    assert len(announced) >= 3
    assert set(announced) == {desk.workspace_id}


def wait_for_expiry(client: httpx2.Client, job: Any) -> None:
    """Wait until the job's lease has expired and the job has been pending again in time."""
    expires_at = datetime.fromisoformat(job["lease_expires_at"])
    time.sleep(max(0, (expires_at - datetime.now(UTC)).total_seconds()))
    until(lambda: client.get(f"{JOBS}/{job['job_id']}").json()["status"] == "pending", 15)
    assert client.get(f"{JOBS}/{job['job_id']}").json()["error"] == "lease expired"


def leaders(url: str) -> list[Any]:
    engine = create_engine(normalize_url(url))
    with engine.connect() as connection:
        found = list(connection.execute(leader_locks.select()))
    engine.dispose()
    return found


def test_lease_that_expires_after_the_leader_was_killed_is_reaped_by_another_process(
    serve: Any, service_url: str
) -> None:
    first = serve()
    until(lambda: leaders(service_url))
    client = serve().client("boss", PASSWORD)
    client.post(JOBS, json=JOB)
    (job,) = client.post(f"{JOBS}/claim", json={"lease_seconds": 5}).json()["data"]
    first.kill()
    wait_for_expiry(client, job)


def test_ticks_do_not_wait_for_another_leader(serve: Any, service_url: str) -> None:
    first = serve()
    until(lambda: leaders(service_url))
    client = serve().client("boss", PASSWORD)
    body = {"name": "s", "every_seconds": 1, "catch_up": "none", "job": {"job_type": "a"}}
    schedule = client.post("/workspace/1/schedules", json=body).json()

    def ticks() -> list[datetime]:
        query = {"schedule_id": schedule["schedule_id"], "order": "asc", "limit": 100}
        found = client.get(JOBS, params=query).json()["data"]
        return [datetime.fromisoformat(job["scheduled_for"]) for job in found]

    until(lambda: len(ticks()) >= 2)
    first.kill()
    before = len(ticks())
    until(lambda: len(ticks()) >= before + 4)
    # A tick that had to wait for the end of the lease of 7 seconds would have been missed.
    found = ticks()
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(seconds=1)}
    assert len(found) == len(set(found))


def test_maintain_command_reaps_where_no_service_does(
    serve: Any, service_env: dict[str, str], service_url: str
) -> None:
    client = serve(JOBAPI_MAINTENANCE_ENABLED="false").client("boss", PASSWORD)
    client.post(JOBS, json=JOB)
    (job,) = client.post(f"{JOBS}/claim", json={"lease_seconds": 5}).json()["data"]
    assert leaders(service_url) == []
    process = Command("maintain", env=service_env)
    try:
        wait_for_expiry(client, job)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert leaders(service_url) == []
