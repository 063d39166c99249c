"""Long polling: claims that wait, the fair share of workspaces, and announcements."""

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
from sqlalchemy.exc import OperationalError

from jobapi import queue
from jobapi.background import long_polling
from jobapi.background.long_polling import ANNOUNCE_SECONDS, Waiters, topic
from jobapi.background.server_socket import caller_is_gone

from ..factories import PASSWORD, Desk, World, until

JOBS = "/workspace/1/jobs"
JOB = {"job_type": "a", "workspace_id": 1}


class Waiter(threading.Thread):
    """A client whose claim waits for a job."""

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
    server, caller = socket.socketpair()
    environ = {name: wrap(server)}
    with server:
        assert not caller_is_gone(environ)
        caller.send(b"the next request")
        assert not caller_is_gone(environ)
        assert server.recv(100) == b"the next request"
        caller.close()
        assert caller_is_gone(environ)
    assert caller_is_gone(environ)
    assert not caller_is_gone({})


def test_waiter_gets_a_job_created_by_another_node_within_a_second(serve: Any) -> None:
    one, other = serve(), serve()
    waiting, creating = one.client("boss", PASSWORD), other.client("boss", PASSWORD)
    for _ in range(3):
        waiter = Waiter(waiting)
        until(lambda: one.has_waiting(1))
        began = time.monotonic()
        assert creating.post(JOBS, json=JOB).status_code == 201
        count, seconds = waiter.got(began)
        assert count == 1
        assert seconds < 1


def test_waiting_claim_gets_a_due_job_and_a_released_one(serve: Any) -> None:
    service = serve()
    client = service.client("boss", PASSWORD)
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    client.post(JOBS, json={**JOB, "scheduled_at": due.isoformat()})
    waiter = Waiter(client)
    count, _ = waiter.got(0)
    assert count == 1
    assert timedelta(0) <= datetime.now(UTC) - due < timedelta(seconds=1.3)
    (job,) = waiter.answer.json()["data"]
    waiter = Waiter(client)
    until(lambda: service.has_waiting(1))
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
    waiters = [Waiter(client, wait_seconds=6) for _ in range(2)]
    until(lambda: service.has_waiting(2))
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


def test_waiters_of_one_workspace_leave_a_place_to_those_of_another(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "6")
    client = service.client("boss", PASSWORD)
    other = client.post("/workspace", json={"name": "other"}).json()["workspace_id"]
    waiters = [Waiter(client) for _ in range(3)]
    until(lambda: service.has_waiting(3))
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
    """The clock of the waiters, which the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def waiters(desk: Desk, clock: Any, *, limit: int = 4, **kw: Any) -> Waiters:
    engine = desk.world.state.engine
    return Waiters(lambda: engine, limit=lambda: limit, clock=clock, **{"listen": True, **kw})


def test_join_with_all_places_taken_shares_them_between_workspaces(desk: Desk) -> None:
    clock = Clock()
    here = waiters(desk, clock)
    a, b, c, d, e = (topic(number, None) for number in range(5))
    joined = {each: [] for each in (a, b, c, d, e)}

    def join(each: Any) -> bool:
        waiter = here.join(each)
        joined[each] += [] if waiter is None else [waiter]
        clock.now += 0.01
        return waiter is not None

    assert [join(a) for _ in range(5)] == [True] * 4 + [False]
    assert [join(b) for _ in range(3)] == [True, True, False]
    assert [waiter.ended for waiter in joined[a]] == [True, True, False, False]
    assert [join(each) for each in (c, d, e)] == [True, True, False]
    assert [waiter.ended for waiter in joined[a] + joined[b]] == [True] * 3 + [False, True, False]
    # None has more than one, but those who have none have their turn, too.
    clock.now += 3
    assert join(e)
    assert joined[a][3].ended
    assert here.wait(joined[a][3], clock.now + 20, lambda: False)  # its topic was ready
    assert not here.wait(joined[a][3], clock.now + 20, lambda: False)
    for waiter in [each for some in joined.values() for each in some]:
        here.leave(waiter)
    assert not here._topics
    assert len(here) == 0
    assert waiters(desk, clock, limit=0).join(a) is None


def test_retry_repeats_the_claim_until_it_gets_a_job(desk: Desk) -> None:
    desk.create()
    changes: list[int] = []
    here = waiters(desk, time.monotonic, listen=False, poll_seconds=0.02, on_change=changes.append)
    wanted = topic(desk.workspace_id, None)
    answers = iter([None, None, "a job"])
    deadline = time.monotonic() + 60
    assert here.retry(wanted, deadline, lambda: False, lambda: next(answers)) == "a job"
    assert changes == [1, -1]
    assert len(here) == 0


def test_retry_that_fails_lets_the_next_waiter_claim(desk: Desk) -> None:
    clock = Clock()
    here = waiters(desk, clock, listen=False)
    wanted = topic(1, None)
    other = here.join(wanted)
    assert other is not None
    with pytest.raises(ZeroDivisionError):
        here.retry(wanted, clock.now + 9, lambda: False, lambda: 1 / 0)
    assert here.wait(other, clock.now, lambda: False)
    assert not here.wait(other, clock.now, lambda: False)
    here.leave(other)


def test_waiters_of_a_process_that_stops_wait_no_longer(desk: Desk) -> None:
    here = waiters(desk, Clock(), is_closing=lambda: True)
    assert here.retry(topic(1, None), 1e9, lambda: False, lambda: "a job") is None


def watched(here: Waiters, seconds: float = 0.0) -> Any:
    """The topics that are ready after the watcher has listened and asked."""
    wake, woken = socket.socketpair()
    with wake, woken:
        here._watch(seconds, woken)
    ready = set(here._ready)
    here._ready.clear()
    return ready


def test_announcement_that_is_held_back_is_made_up_for_by_the_listener(desk: Desk) -> None:
    """Many jobs created at once are announced once, and none waits for the next poll."""
    engine = desk.world.state.engine
    if engine.dialect.name == "sqlite":
        return  # nothing is announced
    clock = Clock()
    here, there = waiters(desk, clock), waiters(desk, clock)
    wanted = topic(desk.workspace_id, None)
    waiter = here.join(wanted)
    assert waiter is not None
    assert here.wait(waiter, clock.now + 9, lambda: False)
    assert watched(here) == set()  # it begins to listen
    with closing(here._listener), engine.connect() as connection:
        there.announce(connection, desk.workspace_id)
        assert watched(here, 5.0) == {wanted}
        clock.now += 0.6 * ANNOUNCE_SECONDS
        desk.world.job(desk.workspace_id, desk.user)
        there.announce(connection, desk.workspace_id)
        assert watched(here) == set()
        clock.now += 0.4 * ANNOUNCE_SECONDS + 0.004
        assert watched(here) == {wanted}
        # Once: then the poll is in charge again.
        clock.now += 0.05
        assert watched(here) == set()
        clock.now += 0.7
        assert watched(here) == {wanted}
        # A process has already woken its own waiters when it announces a job.
        here.announce(connection, desk.workspace_id)
        here._ready.clear()
        assert watched(here, 0.2) == set()
    here.leave(waiter)


def test_announcement_that_failed_does_not_count(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = desk.world.state.engine
    here = waiters(desk, Clock())

    class Broken:
        def all(self, *arguments: Any) -> None:
            raise OperationalError("NOTIFY", None, Exception("away"))

    with engine.connect() as connection:
        with monkeypatch.context() as patched:
            patched.setattr(long_polling, "_NOTIFY", Broken())
            here.announce(connection, 1)
        assert here._announced_at == {}
        here.announce(connection, 1)
    assert len(here._announced_at) == (1 if engine.dialect.name == "postgresql" else 0)


def test_announcements_do_not_keep_the_watcher_from_what_is_due(desk: Desk) -> None:
    clock = Clock()
    here = waiters(desk, clock)
    one, other = topic(1, None), topic(2, ("a",))
    for wanted in (one, other):
        assert here.join(wanted) is not None
    asked = []
    for _ in range(10):
        clock.now += 0.1
        asked += here._to_ask([1], clock.now)
    assert other in asked


def test_only_waiter_is_woken_by_its_own_process(desk: Desk) -> None:
    """It is the watcher, which sleeps until the next poll."""
    here = waiters(desk, time.monotonic, listen=False, poll_seconds=60)
    wanted = topic(desk.workspace_id, None)
    waiter = here.join(wanted)
    assert waiter is not None
    assert here.wait(waiter, time.monotonic() + 60, lambda: False)
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: found.append(here.wait(waiter, time.monotonic() + 60, lambda: False))
    )
    thread.start()
    deadline = time.monotonic() + 20
    while here._wake is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with desk.world.state.engine.connect() as connection:
        here.announce(connection, desk.workspace_id)
    thread.join(20)
    assert found == [True]


def test_claimable_returns_the_topics_that_have_a_job(desk: Desk) -> None:
    other = Desk(desk.world)
    w, v = desk.workspace_id, other.workspace_id
    with desk.world.state.engine.connect() as connection:
        nothing = [topic(w, None), topic(w, ["a"]), topic(v, None)]
        assert queue.claimable(connection, nothing) == set()
        assert queue.claimable(connection, []) == set()
        desk.create(job_type="a", priority="urgent")
        other.create(job_type="b", priority="low")
        later = datetime.now(UTC) + timedelta(hours=1)
        desk.create(job_type="c", scheduled_at=later.isoformat())
        many = topic(w, [f"t{number}" for number in range(1000)])
        there = [topic(w, None), topic(w, ["a", "x"]), topic(v, None), topic(v, ["b"])]
        missing = [topic(w, ["b", "c"]), topic(v, ["a"]), topic(v + 1, None), many, topic(w, [])]
        assert queue.claimable(connection, [*there, *missing]) == set(there)


def test_claim_of_a_disconnected_caller_leases_nothing(serve: Any) -> None:
    service = serve("--workers", "1")
    client = service.client("boss", PASSWORD)
    address = httpx2.URL(str(client.base_url))
    body = b'{"wait_seconds": 15}'
    head = (
        f"POST {JOBS}/claim HTTP/1.1\r\nHost: x\r\nAuthorization: "
        f"{client.headers['Authorization']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: service.has_waiting(1))
    client.post(JOBS, json=JOB)
    time.sleep(1.5)
    assert client.get(JOBS).json()["data"][0]["status"] == "pending"


def test_role_lost_while_waiting_claims_nothing(serve: Any, service_env: dict[str, str]) -> None:
    service = serve()
    client = service.client("boss", PASSWORD)
    made = client.post("/workspace/1/keys", json={"name": "w", "role": "worker"}).json()
    worker = httpx2.Client(
        base_url=client.base_url,
        headers={"Authorization": f"Bearer {made['key']}"},
        timeout=30,
    )
    with worker:
        waiter = Waiter(worker)
        until(lambda: service.has_waiting(1))
        assert client.delete(f"/workspace/1/keys/{made['key_id']}").status_code == 204
        client.post(JOBS, json=JOB)
        waiter.join()
    assert waiter.answer.status_code == 401
    assert client.get(JOBS).json()["data"][0]["status"] == "pending"


def test_stop_service_does_not_wait_for_waiting_claims(serve: Any) -> None:
    service = serve()
    waiters = [Waiter(service.client("boss", PASSWORD)) for _ in range(2)]
    until(lambda: service.has_waiting(2))
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 6
    for waiter in waiters:
        assert waiter.got(began)[0] == 0


def test_waiting_with_a_listener_past_the_pooler_works(
    serve: Any, service_url: str, database: str
) -> None:
    """Only the listener bypasses the pooler; other connections prepare no statements."""
    settings = {"JOBAPI_PREPARED_STATEMENTS_ENABLED": "false"}
    if database == "postgresql":
        settings["JOBAPI_LISTEN_DATABASE_URL"] = f"{service_url}&application_name=listener"
    service = serve(**settings)
    client = service.client("boss", PASSWORD)
    waiter = Waiter(client)
    until(lambda: service.has_waiting(1))
    if database == "postgresql":
        with psycopg.connect(service_url, autocommit=True) as connection:
            query = "SELECT query FROM pg_stat_activity WHERE application_name = 'listener'"
            until(lambda: connection.execute(query).fetchall() == [("LISTEN jobapi_jobs",)])
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
    service = serve(JOBAPI_LISTEN_ENABLED="false")
    client = service.client("boss", PASSWORD)
    waiter = Waiter(client)
    until(lambda: service.has_waiting(1))
    began = time.monotonic()
    client.post(JOBS, json=JOB)
    count, seconds = waiter.got(began)
    assert count == 1
    assert seconds < 1
