"""Waiting for jobs, and what is looked after though nobody asks."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import psycopg
import pytest
from flask import Flask
from sqlalchemy.exc import OperationalError

from jobapi import queue
from jobapi.background import long_polling as waiting
from jobapi.background.long_polling import WaitingRoom, wish
from jobapi.views.worker import caller_is_gone

from ..factories import PASSWORD, Desk, World, until

JOBS = "/workspace/1/jobs"
JOB = {"job_type": "a", "workspace_id": 1}


class Waiter(threading.Thread):
    """Somebody who waits for a job."""

    def __init__(self, client: httpx2.Client, *, url: str = JOBS, **body: Any) -> None:
        super().__init__()
        self.client, self.url, self.body = client, url, {"wait_seconds": 15, **body}
        self.answer: Any = None
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.answer = self.client.post(f"{self.url}/claim", json=self.body)
        self.ended = time.monotonic()

    def got(self, since: float) -> tuple[int, float]:
        self.join()
        return len(self.answer.json()["data"]), self.ended - since


class Patched:
    """A socket whose ``recv`` waits whatever its flags say, as gevent's does."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner
        self.fileno = inner.fileno

    def recv(self, size: int, flags: int) -> bytes:
        self.inner.settimeout(5)
        return self.inner.recv(size, flags & ~socket.MSG_DONTWAIT)


@pytest.mark.parametrize("wrap", [lambda inner: inner, Patched])
@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
def test_caller_is_gone_when_the_connection_is_closed_and_not_before(wrap: Any, name: str) -> None:
    app = Flask("any")
    server, caller = socket.socketpair()
    with server, app.test_request_context(environ_overrides={name: wrap(server)}):
        assert not caller_is_gone()
        caller.send(b"the next request")
        assert not caller_is_gone()
        assert server.recv(100) == b"the next request"
        caller.close()
        assert caller_is_gone()
    with app.test_request_context(environ_overrides={name: wrap(server)}):
        assert caller_is_gone()


def test_waiter_gets_a_job_created_by_another_node_within_a_second(serve: Any) -> None:
    one, other = serve(), serve()
    waiting, creating = one.client("boss", PASSWORD), other.client("boss", PASSWORD)
    for _ in range(3):
        waiter = Waiter(waiting)
        time.sleep(0.3)
        began = time.monotonic()
        assert creating.post(JOBS, json=JOB).status_code == 201
        count, seconds = waiter.got(began)
        assert count == 1
        assert seconds < 1


def test_waiter_gets_a_job_that_becomes_due_and_one_handed_back(serve: Any) -> None:
    client = serve().client("boss", PASSWORD)
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    client.post(JOBS, json={**JOB, "scheduled_at": due.isoformat()})
    waiter = Waiter(client)
    count, _ = waiter.got(0)
    assert count == 1
    assert timedelta(0) <= datetime.now(UTC) - due < timedelta(seconds=1.3)
    (job,) = waiter.answer.json()["data"]
    waiter = Waiter(client)
    time.sleep(0.3)
    began = time.monotonic()
    report = {"job_id": job["job_id"], "lease_token": job["lease_token"], "status": "pending"}
    client.post(f"{JOBS}/report", json={"reports": [report]})
    count, seconds = waiter.got(began)
    assert count == 1
    assert seconds < 1


def test_waiter_for_another_type_goes_on_waiting(serve: Any) -> None:
    client = serve().client("boss", PASSWORD)
    began = time.monotonic()
    waiter = Waiter(client, job_types=["b"], wait_seconds=2)
    client.post(JOBS, json=JOB)
    count, seconds = waiter.got(began)
    assert count == 0
    assert 2 <= seconds < 4


def test_only_half_of_the_threads_wait_and_the_others_serve(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "4")
    client = service.client("boss", PASSWORD)
    waiters = [Waiter(client, wait_seconds=4) for _ in range(2)]
    time.sleep(0.5)
    began = time.monotonic()
    refused = client.post(f"{JOBS}/claim", json={"wait_seconds": 15})
    assert refused.json() == {"data": []}
    assert int(refused.headers["Retry-After"]) >= 1
    assert client.get(JOBS).status_code == 200
    assert time.monotonic() - began < 2
    for waiter in waiters:
        assert waiter.got(began)[0] == 0
        # It had the whole time.
        assert "Retry-After" not in waiter.answer.headers
    assert "Retry-After" not in client.post(f"{JOBS}/claim").headers


def test_waiters_of_one_workspace_leave_a_seat_to_those_of_another(serve: Any) -> None:
    client = serve("--workers", "1", "--threads", "6").client("boss", PASSWORD)
    other = client.post("/workspace", json={"name": "other"}).json()["workspace_id"]
    waiters = [Waiter(client) for _ in range(3)]
    time.sleep(0.5)
    theirs = Waiter(client, url=f"/workspace/{other}/jobs")
    # One of them, that whose request came first, is answered early.
    until(lambda: any(waiter.answer is not None for waiter in waiters))
    waiters.sort(key=lambda waiter: waiter.answer is None)
    early, *waiters = waiters
    assert int(early.answer.headers["Retry-After"]) >= 1
    assert early.got(0)[0] == 0
    for url, job in (
        (f"/workspace/{other}/jobs", {"job_type": "a", "workspace_id": other}),
        *[(JOBS, JOB)] * 2,
    ):
        assert client.post(url, json=job).status_code == 201
    for waiter in (theirs, *waiters):
        assert waiter.got(0)[0] == 1
        assert "Retry-After" not in waiter.answer.headers


def test_claim_that_cannot_wait_says_when_to_come_again(desk: Desk) -> None:
    for threads, wait_seconds, early in ((False, 5, True), (False, 0, False), (True, 0, False)):
        environ = {"wsgi.multithread": threads}
        body = {"wait_seconds": wait_seconds}
        answer = desk.post("/claim", json=body, environ_overrides=environ)
        assert answer.json == {"data": []}
        assert ("Retry-After" in answer.headers) is early
    desk.create()
    answer = desk.post("/claim", json={"wait_seconds": 5})
    assert len(answer.json["data"]) == 1
    assert "Retry-After" not in answer.headers


class Clock:
    """What a room takes for the time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def room(desk: Desk, clock: Any, *, limit: int = 4, listen: bool = True) -> WaitingRoom:
    engine = desk.world.state.engine
    return WaitingRoom(lambda: engine, limit=limit, listen=listen, clock=clock)


def test_seats_are_shared_between_workspaces(desk: Desk) -> None:
    clock = Clock()
    here = room(desk, clock)
    a, b, c, d, e = (wish(number, None) for number in range(5))
    seats = {wanted: [] for wanted in (a, b, c, d, e)}

    def enter(wanted: Any) -> bool:
        seat = here.enter(wanted)
        seats[wanted] += [] if seat is None else [seat]
        clock.now += 0.01
        return seat is not None

    assert [enter(a) for _ in range(5)] == [True] * 4 + [False]
    assert [enter(b) for _ in range(3)] == [True, True, False]
    assert [seat.ended for seat in seats[a]] == [True, True, False, False]
    assert [enter(wanted) for wanted in (c, d, e)] == [True, True, False]
    assert [seat.ended for seat in seats[a] + seats[b]] == [True] * 3 + [False, True, False]
    # None has more than one, but those who have none have their turn, too.
    clock.now += 3
    assert enter(e)
    assert seats[a][3].ended
    assert here.wait(seats[a][3], clock.now + 20, lambda: False)  # what it was called for
    assert not here.wait(seats[a][3], clock.now + 20, lambda: False)
    for seat in [each for some in seats.values() for each in some]:
        here.leave(seat)
    assert not here._wishes
    assert not here._seats
    assert room(desk, clock, limit=0).enter(a) is None


def watched(here: WaitingRoom, seconds: float = 0.0) -> Any:
    """Whose turn it is after the watcher has listened and asked."""
    wake, woken = socket.socketpair()
    with wake, woken:
        here._watch(seconds, woken)
    turns = set(here._turns)
    here._turns.clear()
    return turns


def test_announcement_that_is_held_back_is_made_up_for_by_the_listener(desk: Desk) -> None:
    """Many jobs at once are announced once, and none waits for the next poll."""
    engine = desk.world.state.engine
    if engine.dialect.name == "sqlite":
        return  # nothing is announced
    clock = Clock()
    here, there = room(desk, clock), room(desk, clock)
    wanted = wish(desk.workspace_id, None)
    seat = here.enter(wanted)
    assert seat is not None
    assert here.wait(seat, clock.now + 9, lambda: False)
    assert watched(here) == set()  # it begins to listen
    with closing(here._listener), engine.connect() as connection:
        there.announce(connection, desk.workspace_id)
        assert watched(here, 5.0) == {wanted}
        clock.now += 0.03
        desk.world.job(desk.workspace_id, desk.user)
        there.announce(connection, desk.workspace_id)
        assert watched(here) == set()
        clock.now += 0.024
        assert watched(here) == {wanted}
        # Once: then the poll is in charge again.
        clock.now += 0.05
        assert watched(here) == set()
        clock.now += 0.7
        assert watched(here) == {wanted}
        # What a process announces itself has called its own waiters already.
        here.announce(connection, desk.workspace_id)
        here._turns.clear()
        assert watched(here, 0.2) == set()
    here.leave(seat)


def test_announcement_that_failed_does_not_count(desk: Desk) -> None:
    engine = desk.world.state.engine
    here = room(desk, Clock())

    class Broken:
        dialect = engine.dialect

        def execute(self, statement: Any) -> None:
            raise OperationalError("NOTIFY", None, Exception("away"))

    broken: Any = Broken()
    here.announce(broken, 1)
    assert here._announced == {}
    with engine.connect() as connection:
        here.announce(connection, 1)
    assert len(here._announced) == (1 if engine.dialect.name == "postgresql" else 0)


def test_announcements_do_not_keep_the_watcher_from_what_is_due(desk: Desk) -> None:
    clock = Clock()
    here = room(desk, clock)
    one, other = wish(1, None), wish(2, ("a",))
    for wanted in (one, other):
        assert here.enter(wanted) is not None
    asked = []
    for _ in range(10):
        clock.now += 0.1
        asked += here._due([1], clock.now)
    assert other in asked


def test_only_waiter_is_woken_by_its_own_process(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the watcher, which sleeps until the next poll."""
    monkeypatch.setattr(waiting, "POLL_SECONDS", 60)
    here = room(desk, time.monotonic, listen=False)
    wanted = wish(desk.workspace_id, None)
    seat = here.enter(wanted)
    assert seat is not None
    assert here.wait(seat, time.monotonic() + 60, lambda: False)
    found: list[bool] = []
    waiter = threading.Thread(
        target=lambda: found.append(here.wait(seat, time.monotonic() + 60, lambda: False))
    )
    waiter.start()
    deadline = time.monotonic() + 20
    while here._wake is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with desk.world.state.engine.connect() as connection:
        here.announce(connection, desk.workspace_id)
    waiter.join(20)
    assert found == [True]


def test_claimable_says_for_many_wishes_which_have_a_job(desk: Desk) -> None:
    other = Desk(desk.world)
    w, v = desk.workspace_id, other.workspace_id
    with desk.world.state.engine.connect() as connection:
        nothing = [wish(w, None), wish(w, ["a"]), wish(v, None)]
        assert queue.claimable(connection, nothing) == set()
        assert queue.claimable(connection, []) == set()
        desk.create(job_type="a", priority="urgent")
        other.create(job_type="b", priority="low")
        later = datetime.now(UTC) + timedelta(hours=1)
        desk.create(job_type="c", scheduled_at=later.isoformat())
        many = wish(w, [f"t{number}" for number in range(1000)])
        there = [wish(w, None), wish(w, ["a", "x"]), wish(v, None), wish(v, ["b"])]
        missing = [wish(w, ["b", "c"]), wish(v, ["a"]), wish(v + 1, None), many, wish(w, [])]
        assert queue.claimable(connection, [*there, *missing]) == set(there)


def test_caller_that_has_gone_away_claims_nothing(serve: Any) -> None:
    client = serve("--workers", "1").client("boss", PASSWORD)
    address = httpx2.URL(str(client.base_url))
    body = b'{"wait_seconds": 15}'
    head = (
        f"POST {JOBS}/claim HTTP/1.1\r\nHost: x\r\nAuthorization: "
        f"{client.headers['Authorization']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.5)
    client.post(JOBS, json=JOB)
    time.sleep(1.5)
    assert client.get(JOBS).json()["data"][0]["status"] == "pending"


def test_role_lost_while_waiting_claims_nothing(serve: Any, service_env: dict[str, str]) -> None:
    client = serve().client("boss", PASSWORD)
    made = client.post("/workspace/1/keys", json={"name": "w", "role": "worker"}).json()
    worker = httpx2.Client(
        base_url=client.base_url,
        headers={"Authorization": f"Bearer {made['key']}"},
        timeout=30,
    )
    with worker:
        waiter = Waiter(worker)
        time.sleep(0.3)
        assert client.delete(f"/workspace/1/keys/{made['key_id']}").status_code == 204
        client.post(JOBS, json=JOB)
        waiter.join()
    assert waiter.answer.status_code == 401
    assert client.get(JOBS).json()["data"][0]["status"] == "pending"


def test_service_that_stops_does_not_wait_for_those_who_wait(serve: Any) -> None:
    service = serve()
    waiters = [Waiter(service.client("boss", PASSWORD)) for _ in range(2)]
    time.sleep(0.5)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 6
    for waiter in waiters:
        assert waiter.got(began)[0] == 0


def test_waiting_with_a_listener_past_the_pooler_works(
    serve: Any, service_url: str, database: str
) -> None:
    """The listener goes its own way; nothing is prepared on the other connections."""
    settings = {"JOBAPI_PREPARED_STATEMENTS_ENABLED": "false"}
    if database == "postgresql":
        settings["JOBAPI_LISTEN_DATABASE_URL"] = f"{service_url}&application_name=listener"
    client = serve(**settings).client("boss", PASSWORD)
    waiter = Waiter(client)
    time.sleep(1)
    if database == "postgresql":
        with psycopg.connect(service_url, autocommit=True) as connection:
            query = "SELECT query FROM pg_stat_activity WHERE application_name = 'listener'"
            assert connection.execute(query).fetchall() == [("LISTEN jobapi_jobs",)]
    begun = time.monotonic()
    assert client.post(JOBS, json=JOB).status_code == 201
    number, seconds = waiter.got(begun)
    assert number == 1
    assert seconds < 5


def test_statements_are_prepared_unless_forbidden(make_app: Any, new_database: Any) -> None:
    url = new_database("postgresql")
    for prepare in (True, False):
        desk = Desk(World(make_app(url, JOBAPI_PREPARED_STATEMENTS_ENABLED=prepare)))
        desk.create()
        with desk.world.state.engine.connect() as connection:
            prepared = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements")
            assert (prepared.scalar_one() > 0) is prepare


def test_waiting_without_listening_works(serve: Any) -> None:
    client = serve(JOBAPI_LISTEN_ENABLED="false").client("boss", PASSWORD)
    waiter = Waiter(client)
    time.sleep(0.2)
    began = time.monotonic()
    client.post(JOBS, json=JOB)
    count, seconds = waiter.got(began)
    assert count == 1
    assert seconds < 1
