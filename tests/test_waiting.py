"""Waiting for jobs, and what is looked after though nobody asks."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import psycopg
import pytest
from flask import Flask
from sqlalchemy import create_engine

from jobapi.database import normalize_url
from jobapi.models import duties
from jobapi.views.worker import caller_is_gone

from .factories import PASSWORD, Desk, World
from .served import BIN

JOBS = "/workspace/1/jobs"
JOB = {"job_type": "a", "workspace_id": 1}


class Waiter(threading.Thread):
    """Somebody who waits for a job."""

    def __init__(self, client: httpx2.Client, **body: Any) -> None:
        super().__init__()
        self.client, self.body = client, {"wait_seconds": 15, **body}
        self.answer: Any = None
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.answer = self.client.post(f"{JOBS}/claim", json=self.body)
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
    assert client.post(f"{JOBS}/claim", json={"wait_seconds": 15}).json() == {"data": []}
    assert client.get(JOBS).status_code == 200
    assert time.monotonic() - began < 2
    for waiter in waiters:
        assert waiter.got(began)[0] == 0


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


def back_to_pending(client: httpx2.Client, job: Any) -> float:
    """How many seconds it takes until nobody's lease holds the job."""
    began = time.monotonic()
    while client.get(f"{JOBS}/{job['job_id']}").json()["status"] != "pending":
        assert time.monotonic() - began < 15
        time.sleep(0.1)
    return time.monotonic() - began


def test_expired_lease_comes_back_though_the_one_that_looked_was_killed(
    serve: Any, service_env: dict[str, str]
) -> None:
    first, second = serve(), serve()
    client = second.client("boss", PASSWORD)
    client.post(JOBS, json=JOB)
    (job,) = client.post(f"{JOBS}/claim", json={"lease_seconds": 5}).json()["data"]
    time.sleep(2.5)  # Somebody has the duty now.
    first.kill()
    time.sleep(max(0, (datetime.fromisoformat(job["lease_expires_at"]) - now()).total_seconds()))
    back_to_pending(client, job)
    assert client.get(f"{JOBS}/{job['job_id']}").json()["error"] == "lease expired"


def now() -> datetime:
    return datetime.now(UTC)


def test_maintain_command_does_it_where_no_service_does(
    serve: Any, service_env: dict[str, str], service_url: str
) -> None:
    client = serve(JOBAPI_MAINTENANCE_ENABLED="false").client("boss", PASSWORD)
    client.post(JOBS, json=JOB)
    (job,) = client.post(f"{JOBS}/claim", json={"lease_seconds": 5}).json()["data"]
    engine = create_engine(normalize_url(service_url))
    with engine.connect() as connection:
        assert connection.execute(duties.select()).all() == []
    process = subprocess.Popen([BIN / "jobapi", "maintain"], env=service_env, cwd="/")
    try:
        time.sleep(5)
        back_to_pending(client, job)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    with engine.connect() as connection:
        assert connection.execute(duties.select()).all() == []
    engine.dispose()


def test_one_at_a_time_has_the_duty(desk: Desk, world: World) -> None:
    from jobapi.maintenance import drop_duty, take_duty

    with world.state.engine.connect() as connection:
        assert take_duty(connection, "a")
        assert take_duty(connection, "a")
        assert not take_duty(connection, "b")
        assert take_duty(connection, "a", seconds=-1)
        assert take_duty(connection, "b")
        drop_duty(connection, "a")
        assert not take_duty(connection, "a")
        drop_duty(connection, "b")
        assert take_duty(connection, "a")
