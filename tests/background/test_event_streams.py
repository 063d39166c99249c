"""Streams of events: none is missed or sent twice, and no server thread is held."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import requests
from sqlalchemy import create_engine, delete, select, update
from sqlalchemy.exc import DBAPIError

from jobapi import jobs
from jobapi.background.event_streams import Stream, StreamOptions, Streams, deliver
from jobapi.rules.events import EventKind
from jobapi.rules.roles import Role
from jobapi.services import events
from jobapi.services.events import EventFilters
from jobapi.store.tables import api_keys, memberships
from jobapi.store.tables import events as table
from jobapi.store.transactions import snapshot

from ..conftest import app_on
from ..factories import PASSWORD, Desk, World
from ..postgres import Postgres
from ..served import Service

JOBS = "/workspace/1/jobs"
STREAM = "/workspace/1/events/stream"
JOB = {"job_type": "a", "workspace_id": 1}


class Listener:
    """A client that reads a stream in a thread of its own."""

    def __init__(self, client: httpx2.Client, query: str = "", **headers: str) -> None:
        self.heard: queue.Queue[Any] = queue.Queue()
        self.ids: list[str] = []
        self.last = ""
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.status = 0
        self.thread = threading.Thread(
            target=self._listen, args=(client, f"{STREAM}?{query}", headers), daemon=True
        )
        self.thread.start()
        assert self.begun.wait(10)

    def _listen(self, client: httpx2.Client, url: str, headers: Any) -> None:
        try:
            with client.stream("GET", url, headers=headers, timeout=60) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    self.begun.set()
                    if line.startswith("id: "):
                        self.ids.append(line[4:])
                    if line.startswith("data: "):
                        self.heard.put((self.ids[-1], json.loads(line[6:])))
        except httpx2.TransportError:
            pass
        self.begun.set()
        self.ended.set()

    def next(self, number: int) -> list[dict[str, Any]]:
        """The next events; the ``id`` of the last is in ``last``."""
        found = [self.heard.get(timeout=15) for _ in range(number)]
        self.last = found[-1][0]
        return [event for _, event in found]


def create(client: httpx2.Client, **body: Any) -> str:
    return str(client.post(JOBS, json={**JOB, **body}).json()["job_id"])


def test_changes_arrive_whichever_process_makes_them(serve: Any) -> None:
    one, other = serve("--workers", "2"), serve("--workers", "1")
    here, there = one.client("boss", PASSWORD), other.client("boss", PASSWORD)
    listener = Listener(here)
    begun = time.monotonic()
    ids = [create(client) for client in (here, there) * 3]
    here.post(f"{JOBS}/{ids[0]}/cancel")
    heard = listener.next(7)
    assert time.monotonic() - begun < 5
    assert [event["job_id"] for event in heard] == [*ids, ids[0]]
    assert [event["kind"] for event in heard] == ["created"] * 6 + ["cancelled"]
    listed = here.get("/workspace/1/events?order=asc").json()["data"]
    assert heard == listed


def test_stream_has_only_matching_events(serve: Any) -> None:
    client = serve().client("boss", PASSWORD)
    mine = create(client)
    by_kind = Listener(client, "kind=cancelled&kind=retried")
    by_type = Listener(client, "job_type=b")
    by_job = Listener(client, f"job_id={mine}")
    other = create(client, job_type="b")
    for job_id in (other, mine):
        client.post(f"{JOBS}/{job_id}/cancel")
    client.post(f"{JOBS}/{mine}/retry")
    assert [e["job_id"] for e in by_kind.next(3)] == [other, mine, mine]
    assert [e["kind"] for e in by_type.next(2)] == ["created", "cancelled"]
    assert [e["kind"] for e in by_job.next(2)] == ["cancelled", "retried"]
    for listener in (by_kind, by_type, by_job):
        assert listener.heard.empty()


def test_stream_after_a_break_resumes_without_gap_or_repeat(serve: Any) -> None:
    service = serve("--workers", "2")
    client = service.client("boss", PASSWORD)
    stop = threading.Event()
    made: list[str] = []

    def change(number: int) -> None:
        mine = service.client("boss", PASSWORD)
        while not stop.is_set():
            body = {"jobs": [{"job_type": "a"}] * random.randint(1, 20)}
            answer = mine.post(f"{JOBS}/batch", json=body).json()
            made.extend(job["job_id"] for job in answer["data"])

    first = Listener(client)
    with ThreadPoolExecutor(4) as pool:
        changing = [pool.submit(change, number) for number in range(4)]
        seen = first.next(50)
        for _ in range(3):
            # Another one goes on after the last that the one before has seen.
            first = Listener(client, **{"Last-Event-ID": first.last})
            seen += first.next(50)
        stop.set()
        for future in changing:
            future.result()
    seen += Listener(client, f"last_event_id={first.last}").next(len(made) - len(seen))
    assert len({event["event_id"] for event in seen}) == len(seen) == len(made)
    assert sorted(event["job_id"] for event in seen) == sorted(made)


@contextmanager
def left_open(engine: Any) -> Iterator[None]:
    """An open transaction that has a transaction id."""
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_current_xact_id()")
        yield
        connection.exec_driver_sql("ROLLBACK")


@contextmanager
def elsewhere(engine: Any) -> Iterator[None]:
    """An open transaction in another database of the same server; nothing on SQLite."""
    if engine.dialect.name == "sqlite":
        yield
        return
    other = create_engine(engine.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with left_open(other):
        yield
    other.dispose()


def read_on(engine: Any, workspace_id: int, name: str, most: int = 100) -> list[tuple[Any, str]]:
    """The events after a position, read as a stream reads them, each with its position's name."""
    heard = []
    with engine.connect() as connection:
        more = True
        while more:
            with snapshot(connection):
                position = events.resume(connection, name)
                seen = events.current_snapshot(connection)
                found = events.after(connection, workspace_id, position, seen=seen, most=most)
            heard += [((event.xid, event.id), after.name) for event, after in found.events]
            name, more = found.end.name, found.more
    return heard


def test_open_transaction_delays_no_events_and_loses_none(desk: Desk) -> None:
    """Transactions that end in another order than they began."""
    engine, w = desk.world.state.engine, desk.workspace_id
    by = {"created_by": desk.user.id, "job_type": "a"}
    desk.create()
    if engine.dialect.name == "sqlite":  # it has one writer at a time
        ((_, name),) = read_on(engine, w, "0-0")
        assert read_on(engine, w, name) == []
        return
    with left_open(engine), elsewhere(engine), desk.world.transaction() as early:
        for _ in range(3):
            jobs.create(early, w, **by)
        with desk.world.transaction() as late:
            jobs.create(late, w, **by)
        heard = read_on(engine, w, "0-0")
        assert len(heard) == 2
        name = heard[-1][1]
        assert name.count(".") >= 3  # which are under way
        assert read_on(engine, w, name) == []
        after = desk.create()
        heard = read_on(engine, w, name)
        assert len(heard) == 1
    # The early one has ended, after two others that were told of.
    with left_open(engine):
        rest = read_on(engine, w, heard[-1][1])
    assert len(rest) == 3
    assert [event[0] for event, _ in rest] == [rest[0][0][0]] * 3
    assert rest[0][0] < heard[0][0]
    # One by one, and from each on.
    assert [each for each, _ in read_on(engine, w, heard[-1][1], most=1)] == [e for e, _ in rest]
    for number, (_, name) in enumerate(rest):
        assert [each for each, _ in read_on(engine, w, name)] == [e for e, _ in rest[number + 1 :]]
    # From before it all, whoever had read neither.
    with_both = read_on(engine, w, name_before := "0-0")
    assert [each for each, _ in with_both] == sorted(each for each, _ in with_both)
    assert len(with_both) == 6
    assert name_before not in {name for _, name in with_both}
    assert desk.get(f"/{after['job_id']}").status_code == 200


def test_positions_have_names_that_are_read_back() -> None:
    rng = random.Random(1)
    for _ in range(300):
        xid = rng.choice([10, 10**6, 2**62])
        gaps = tuple(sorted(rng.sample(range(1, min(xid, 10**6)), rng.choice([0, 1, 5]))))
        sent = (rng.choice(gaps), rng.randrange(2**40)) if gaps and rng.random() < 0.5 else None
        position = events.Position(xid, rng.randrange(2**62), gaps, sent)
        assert events._parse(position.name) == position


def test_more_transactions_than_a_position_can_name_are_waited_for(desk: Desk) -> None:
    engine, w = desk.world.state.engine, desk.workspace_id
    for _ in range(3):
        desk.create()
    with desk.world.transaction() as tx:
        if engine.dialect.name == "postgresql":
            for number, job_id in enumerate(sorted(tx.scalars(select(table.c.id)))):
                place = (table.c.id == job_id, 1000 * (number + 1))
                tx.execute(update(table).where(place[0]).values(xid=place[1]))
    running = tuple(range(1001, 2000))
    with engine.connect() as connection:
        for many, wanted in ((0, 3), (events.MAX_GAPS, 3), (events.MAX_GAPS + 1, 1)):
            seen = events.Snapshot(4000, running[:many])
            found = events.after(connection, w, events.Position(), seen=seen, most=10)
            if engine.dialect.name == "postgresql":
                assert len(found.events) == wanted
                assert len(found.end.name) < 4000
            assert not found.more


@pytest.mark.parametrize(
    "name",
    [
        *("x", "1", "1-", "-1", "1-x", "1-2-3", "9" * 30 + "-1", "²-1"),
        *(f"1-{2**63}", f"{2**63}-1", f"{2**62}-1"),  # of another server
        *("9-1.", "9-1.0", "9-1.9", "9-1.g", "9-1.1.9", "9-1.-1", "9-1~8-1", "9-1.1~7-1"),
        *(f"9-1.1~8-{2**63}", "1" * 18 + "-1" + ".1" * 501, "9-1.1~", "9-1~"),
    ],
)
def test_what_is_no_event_is_422(desk: Desk, name: str) -> None:
    path = f"/workspace/{desk.workspace_id}/events/stream?last_event_id={name}"
    response = desk.call("GET", path)
    assert response.status_code == 422
    assert response.json["errors"].keys() == {"last_event_id"}
    path = path.partition("?")[0]
    headers = {"Last-Event-ID": name.encode().decode("latin-1") * 200}
    assert desk.call("GET", path, headers=headers).status_code == 422


def lines(response: Any) -> Iterator[str]:
    rest = b""
    for data in response.iter_encoded():
        rest += data
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            yield line.decode()


def test_stream_under_another_server_sends_heartbeats_and_ends_with_the_access(
    desk: Desk,
) -> None:
    desk.world.set_stream_options(heartbeat_seconds=0.2)
    member = desk.world.member(desk.workspace_id, Role.VIEWER)
    path = f"/workspace/{desk.workspace_id}/events/stream"
    response = desk.world.call("GET", path, desk.world.token(member))
    assert response.status_code == 200
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    heard = lines(response)
    # A heartbeat may also have an id.
    assert [next(heard) for _ in range(3)].count(":") >= 2
    job = desk.create()
    while not (line := next(heard)).startswith("data:"):
        pass
    assert json.loads(line[6:])["job_id"] == job["job_id"]
    assert len(desk.world.state.streams) == 1
    with desk.world.transaction() as tx:
        tx.execute(delete(memberships).where(memberships.c.user_id == member.id))
    assert "data" not in "".join(heard)
    assert len(desk.world.state.streams) == 0


def test_stream_ends_when_its_token_expires(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.world.set_stream_options(heartbeat_seconds=0.2)
    monkeypatch.setattr(desk.world.state.tokens, "access_seconds", 2)
    token = desk.world.token(desk.user)
    path = f"/workspace/{desk.workspace_id}/events/stream"
    response = desk.world.call("GET", path, token)
    assert response.status_code == 200
    begun = time.monotonic()
    assert ":" in (said := set(lines(response)))
    assert not any(line.startswith("data:") for line in said)
    assert time.monotonic() - begun < 5
    assert desk.world.call("GET", path, token).status_code == 401
    response.close()


def test_event_that_only_a_newer_version_knows_is_passed_on(desk: Desk) -> None:
    """During an upgrade, both versions serve."""
    path = f"/workspace/{desk.workspace_id}/events"
    response = desk.call("GET", f"{path}/stream")
    with desk.world.transaction() as tx:
        jobs.create(tx, desk.workspace_id, created_by=desk.user.id, job_type="a")
        tx.execute(update(table).values(kind=99, from_status=9))
    assert first_of(response)["kind"] == "unknown"
    response.close()
    (listed,) = desk.call("GET", path).json["data"]
    assert (listed["kind"], listed["from_status"]) == ("unknown", None)


def test_failure_ends_the_streams_and_later_ones_work(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.world.set_stream_options(retry_seconds=0.1)
    path = f"/workspace/{desk.workspace_id}/events/stream"
    response = desk.call("GET", path)
    with monkeypatch.context() as broken:
        broken.setattr(events, "after", lambda *_, **__: 1 / 0)
        assert not any(line.startswith("data:") for line in lines(response))
    response.close()
    response = desk.call("GET", path)
    mine = desk.create()["job_id"]
    assert first_of(response)["job_id"] == mine
    response.close()


class Row(NamedTuple):
    id: int
    xid: int = 1
    kind: int = 0
    job_id: str = "a"


def stream_of(workspace_id: int, position: events.Position, **kw: Any) -> Stream:
    kw = {"user_id": 1, "filters": EventFilters(), **kw}
    return Stream(workspace_id, position=position, is_allowed=lambda _: True, **kw)


def test_deliver_stops_when_too_much_is_unsent() -> None:
    def frame(row: Any, name: str) -> bytes:
        return b"x" * 100_000

    for chunked, length in ((False, 300_000), (True, 300_027)):
        stream = stream_of(1, events.Position(), frame=frame, chunked=chunked)
        found = [(Row(n), events.Position(1, n)) for n in range(1, 501)]
        end = events.Position(1, 500)
        deliver(events.Found(found, end, more=True), [stream], max_unsent=256 * 1024)
        assert len(stream.unsent) == length
        assert stream.position == (1, 3, (), None)


def test_stream_of_a_server_that_has_lost_events_ends(desk: Desk) -> None:
    """After a failover or a crash that lost commits, transaction ids are used again."""
    engine = desk.world.state.engine
    serving = Streams(lambda: engine, limit=10)
    lost = stream_of(1, events.Position(2**62, 1), frame=lambda row, name: b"x")
    heard = Overheard(serving, lost, slow=False)
    if engine.dialect.name == "postgresql":
        heard.thread.join(10)
        assert not heard.thread.is_alive()
        assert len(serving) == 0
    heard.close()


def test_heartbeat_of_a_stream_whose_filters_match_little_has_a_position(desk: Desk) -> None:
    desk.world.set_stream_options(heartbeat_seconds=0.3)
    path = f"/workspace/{desk.workspace_id}/events"
    response = desk.call("GET", f"{path}/stream?kind=deleted")
    desk.create()
    (event,) = desk.call("GET", path).json["data"]
    heard = lines(response)
    # With a suffix, if another test's transaction is open on the same server.
    while not (line := next(heard)).startswith(f"id: {event['event_id']}"):
        assert not line.startswith("data:")
    assert [next(heard) for _ in range(2)] == [":", ":"]  # and says it once
    response.close()


def test_heartbeat_checks_the_access_without_writing(desk: Desk) -> None:
    """A key that another transaction has locked must not delay the other streams."""
    desk.world.set_stream_options(heartbeat_seconds=0.2)
    key = desk.world.key(desk.workspace_id, desk.user, Role.VIEWER)
    response = desk.world.call("GET", f"/workspace/{desk.workspace_id}/events/stream", key)
    with desk.world.transaction() as tx:
        tx.execute(update(api_keys).values(last_used_at=datetime.now(UTC) - timedelta(days=1)))
    heard = lines(response)
    assert [next(heard) for _ in range(8)].count(":") >= 4
    response.close()
    with desk.world.transaction() as tx:
        last = tx.execute(select(api_keys.c.last_used_at)).scalar_one()
    assert last < datetime.now(UTC) - timedelta(hours=20)


def test_stream_that_never_began_does_not_count(desk: Desk) -> None:
    serving = desk.world.state.streams
    path = f"/workspace/{desk.workspace_id}/events/stream"
    for _ in range(20):
        for method in ("HEAD", "GET"):
            response = desk.call(method, path)
            assert response.status_code == 200
            response.close()
    deadline = time.monotonic() + 5
    while len(serving) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(serving) == 0
    assert not serving._process.by_user


def test_user_has_half_of_the_streams_and_all_have_half_of_the_files(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve("--workers", "1", JOBAPI_MAX_STREAMS="6").client("boss", PASSWORD)
    body = {"name": "k", "role": "viewer"}
    key = client.post("/workspace/1/keys", json=body).json()["key"]
    listeners = [Listener(client) for _ in range(2)]
    listeners.append(Listener(client, Authorization=f"Bearer {key}"))
    assert {listener.status for listener in listeners} == {200}
    # A key counts towards the limit of its user.
    assert client.get(STREAM).status_code == 429
    other = {"username": "anna", "password": PASSWORD}
    assert client.post("/users", json=other).status_code == 201
    member = {"username": "anna", "role": "viewer"}
    assert client.post("/workspace/1/members", json=member).status_code == 201
    tokens = client.post("/auth/login", json=other).json()
    theirs = Listener(client, Authorization=f"Bearer {tokens['access_token']}")
    assert theirs.status == 200
    serving = Streams(lambda: None, limit=1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert serving.limit == 512
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 4096))
    assert serving.limit == 1000


def first_of(response: Any) -> Any:
    return json.loads(next(line for line in lines(response) if line.startswith("data:"))[6:])


def test_members_and_keys_are_in_the_streams_of_owners_alone(desk: Desk) -> None:
    viewer = desk.world.token(desk.world.member(desk.workspace_id, Role.VIEWER))
    path = f"/workspace/{desk.workspace_id}/events/stream"
    heard = {}
    for name, token in (("owner", desk.token), ("viewer", viewer)):
        heard[name] = desk.world.call("GET", path, token)
    desk.call("POST", f"/workspace/{desk.workspace_id}/keys", json={"name": "ci", "role": "viewer"})
    desk.create()
    first = {}
    for name, response in heard.items():
        first[name] = first_of(response)["kind"]
        response.close()
    assert first == {"owner": "key_created", "viewer": "created"}


def test_stream_begins_with_what_had_not_happened_when_it_was_opened(desk: Desk) -> None:
    """Even if an open transaction holds back earlier events at that moment."""
    path = f"/workspace/{desk.workspace_id}/events/stream"
    by = {"created_by": desk.user.id, "job_type": "a"}
    if desk.world.state.engine.dialect.name == "sqlite":
        desk.create()
        response = desk.call("GET", path)
        mine = desk.create()["job_id"]
        assert first_of(response)["job_id"] == mine
        again = desk.call("GET", path, headers={"Last-Event-ID": response.headers["Last-Event-ID"]})
        assert first_of(again)["job_id"] == mine
        response.close()
        again.close()
        return
    with desk.world.transaction() as early:
        under_way = jobs.create(early, desk.workspace_id, **by)
        before = desk.create()["job_id"]
        response = desk.call("GET", path)
    assert first_of(response)["job_id"] == under_way.job_id
    # Resuming from where it began gives the same events: all earlier ones count as seen.
    again = desk.call("GET", path, headers={"Last-Event-ID": response.headers["Last-Event-ID"]})
    after = desk.create()["job_id"]
    heard = (json.loads(line[6:]) for line in lines(again) if line.startswith("data:"))
    assert [next(heard)["job_id"], next(heard)["job_id"]] == [under_way.job_id, after]
    assert before not in (under_way.job_id, after)
    response.close()
    again.close()


def test_too_many_streams_are_429(serve: Any) -> None:
    client = serve("--workers", "1", JOBAPI_MAX_STREAMS="2").client("boss", PASSWORD)
    listeners = [Listener(client) for _ in range(2)]
    refused = client.get(STREAM)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.json()["type"].endswith(":too-many-requests")
    assert {listener.status for listener in listeners} == {200}


def test_streams_and_waiting_claims_use_up_no_threads(serve: Any) -> None:
    service: Service = serve("--workers", "1", "--threads", "4")
    client = service.client("boss", PASSWORD)
    with ExitStack() as stack:
        limits = httpx2.Limits(max_connections=300)
        many = stack.enter_context(
            httpx2.Client(base_url=service.url, headers=client.headers, limits=limits, timeout=60)
        )
        opened = [stack.enter_context(many.stream("GET", STREAM)) for _ in range(200)]
        assert {response.status_code for response in opened} == {200}
        pool = stack.enter_context(ThreadPoolExecutor(10))
        body = {"wait_seconds": 3, "job_types": ["none"]}
        waiting = [pool.submit(client.post, f"{JOBS}/claim", json=body) for _ in range(10)]
        begun = time.monotonic()
        for _ in range(20):
            assert client.get("/health/ready").status_code == 200
        assert time.monotonic() - begun < 3
        job_id = create(client)
        for response in opened:
            heard = next(line for line in response.iter_lines() if line.startswith("data:"))
            assert json.loads(heard[6:])["job_id"] == job_id
        assert {future.result().status_code for future in waiting} == {200}


def test_stop_of_the_service_ends_streams_at_once(serve: Any) -> None:
    service: Service = serve("--workers", "2")
    client = service.client("boss", PASSWORD)
    listeners = [Listener(client) for _ in range(4)]
    begun = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - begun < 5
    for listener in listeners:
        assert listener.ended.wait(2)


def test_listener_who_goes_is_forgotten(serve: Any) -> None:
    service: Service = serve("--workers", "1", JOBAPI_MAX_STREAMS="1")
    client = service.client("boss", PASSWORD)
    for _ in range(5):
        deadline = time.monotonic() + 5
        while True:
            with (
                httpx2.Client(base_url=service.url, headers=client.headers) as mine,
                mine.stream("GET", STREAM) as response,
            ):
                if response.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_slow_listener_gets_everything_and_delays_no_other(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve("--workers", "1").client("boss", PASSWORD)
    quick = Listener(client)
    with client.stream("GET", STREAM, timeout=60) as slow:
        assert slow.status_code == 200
        body = {"jobs": [{"job_type": "a" * 100}] * 1000}
        for _ in range(4):
            assert client.post(f"{JOBS}/batch", json=body).status_code == 201
        ids = {event["event_id"] for event in quick.next(4000)}
        heard = []
        for line in slow.iter_lines():
            heard += [json.loads(line[6:])["event_id"]] if line.startswith("data: ") else []
            if len(heard) == 4000:
                break
    assert set(heard) == ids


class Overheard:
    """What a stream of ``Streams`` has sent, read by a fast or a slow client."""

    def __init__(self, serving: Streams, stream: Stream, *, slow: bool) -> None:
        self.stream, self.start = stream, stream.position
        self.sock, theirs = socket.socketpair()
        self.slow = slow
        self.text = b""
        assert serving.reserve(stream, 1000)
        serving.add(theirs, stream)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while part := self.sock.recv(200 if self.slow else 65536):
            self.text += part
            if self.slow:
                time.sleep(0.005)

    def names(self) -> list[str]:
        """The ids that have come, also those of heartbeats."""
        return [line[4:].decode() for line in self.text.split(b"\n")[:-1] if line[:4] == b"id: "]

    def events(self) -> list[tuple[str, tuple[int, int]]]:
        """The events that have come, each with the id before it."""
        found, name = [], ""
        for line in self.text.decode().split("\n")[:-1]:
            if line.startswith("id: "):
                name = line[4:]
            elif line.startswith("data: "):
                xid, number = line.split()[1].split("-")
                found.append((name, (int(xid), int(number))))
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.sock.close()


def unread(position: events.Position, every: list[Any]) -> list[Any]:
    """The events that are unread at a position, by the definition of a position."""
    return [
        event
        for event in every
        if (event.xid, event.id) > position[:2]
        or (
            event.xid in position.gaps
            and (
                position.sent is None
                or event.xid != position.sent[0]
                or event.id > position.sent[1]
            )
        )
    ]


def write_events(engine: Any, workspace_id: int, chance: random.Random, stop: Any) -> None:
    """Run transactions that last a while, commit in another order than they wrote, or roll back."""
    while not stop.is_set():
        # It may fail, because the server may crash.
        with contextlib.suppress(DBAPIError), engine.connect() as connection:
            postgres = connection.dialect.name == "postgresql"
            connection.exec_driver_sql("BEGIN" if postgres else "BEGIN IMMEDIATE")
            for _ in range(chance.randint(1, 8)):
                kind = chance.choice([EventKind.MEMBER_ADDED, EventKind.KEY_CREATED])
                events.note(connection, workspace_id, kind, actor=None)
                if chance.random() < 0.3:
                    time.sleep(chance.random() * 0.03)
            connection.exec_driver_sql("ROLLBACK" if chance.random() < 0.2 else "COMMIT")
        time.sleep(chance.random() * 0.02)


def where_to_begin(engine: Any, workspace_id: int, name: str | None) -> Any:
    """A position to begin at, and, for a stream that begins now, the existing events."""
    while True:
        # After a crash the pool's connections are found out one by one.
        with contextlib.suppress(DBAPIError), engine.connect() as connection, snapshot(connection):
            if name is not None:
                return events.resume(connection, name), None
            every = connection.execute(select(table.c.xid, table.c.id))
            read = {tuple(row) for row in every}
            return events.begin(connection, workspace_id), read


def listen_at_random(
    engine: Any, workspace_id: int, seed: int, crash: Any, *, number: int
) -> list[Any]:
    """Run streams that begin or resume during random transactions, and check what they sent.

    Returns all events. ``crash`` is called once in the middle.
    """
    chance = random.Random(seed)

    def frame(row: Any, name: str) -> bytes:
        return b"id: %b\ndata: %d-%d %b\n\n" % (name.encode(), row.xid, row.id, b"x" * 99)

    serving = Streams(
        lambda: engine,
        limit=1000,
        # Small limits, so that batches and streams end often.
        options=StreamOptions(batch=7, max_unsent=1500, heartbeat_seconds=0.2, retry_seconds=0.1),
    )
    stop = threading.Event()
    heard: list[Overheard] = []
    before: list[set[Any] | None] = []
    with ThreadPoolExecutor(4) as pool:
        writing = [
            pool.submit(write_events, engine, workspace_id, random.Random(n), stop)
            for n in range(4)
        ]
        for count in range(number):
            if count == number // 2:
                crash()
            names = chance.choice(heard).names() if count % 2 else []
            position, read = where_to_begin(
                engine, workspace_id, chance.choice(names) if names else None
            )
            filters = EventFilters(kind=chance.choice([(), (EventKind.KEY_CREATED,)]), owner=True)
            stream = stream_of(
                workspace_id, position, frame=frame, user_id=count % 5, filters=filters
            )
            heard.append(Overheard(serving, stream, slow=chance.random() < 0.4))
            before.append(read)
            time.sleep(0.05)
        stop.set()
        for future in writing:
            future.result()
    with engine.connect() as connection:
        every = list(connection.execute(select(table).order_by(table.c.xid, table.c.id)))
    at = {(event.xid, event.id): event for event in every}

    @cache
    def rest(name: str) -> frozenset[Any]:
        """The events that have to follow an id."""
        return frozenset((e.xid, e.id) for e in unread(events._parse(name), every))

    for each, read in zip(heard, before, strict=True):
        if read is not None:
            # A stream that begins now has no event from before, and all others.
            assert rest(each.start.name) == at.keys() - read
        matching = {key for key, event in at.items() if each.stream.filters.matches(event)}
        wanted = rest(each.start.name) & matching
        deadline = time.monotonic() + 30
        while len(each.events()) < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        came = each.events()
        assert len(came) == len(wanted)
        coming = set(wanted)
        last: dict[int, int] = {}
        for name, (xid, number) in came:
            coming.remove((xid, number))
            # Exactly the events that have not been sent follow each id.
            assert rest(name) & matching == coming
            assert last.get(xid, 0) < number
            last[xid] = number
        assert coming == set()
        for name in set(chance.choices(each.names(), k=2)):
            found = [event for event, _ in read_on(engine, workspace_id, name, most=7)]
            assert len(found) == len(rest(name))
            assert set(found) == rest(name)
        each.close()
    deadline = time.monotonic() + 5
    while len(serving) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(serving) == 0
    return every


def test_random_streams_have_every_event_once(desk: Desk) -> None:
    """With transactions open all the time, in this database and in another one."""
    engine, w = desk.world.state.engine, desk.workspace_id
    postgres = engine.dialect.name == "postgresql"
    with left_open(engine) if postgres else nullcontext(), elsewhere(engine):
        every = listen_at_random(engine, w, desk.user.id, lambda: None, number=30)
    assert len(every) > 50


def test_random_streams_have_every_event_once_across_a_crash(tmp_path: Path) -> None:
    server = Postgres(durable=True)
    world = World(app_on(server.url("postgres"), tmp_path))
    workspace_id = world.workspace(world.user())
    engine = world.state.engine

    def crash() -> None:
        server.kill()
        time.sleep(0.2)
        server.start()

    try:
        every = listen_at_random(engine, workspace_id, 1, crash, number=20)
        assert len(every) > 30
    finally:
        engine.dispose()
        server.stop()


def raw_stream(service: Service, client: httpx2.Client, version: str, query: str = "") -> Any:
    """The connection of a stream, and its head."""
    address = httpx2.URL(service.url)
    sock = socket.create_connection((address.host, address.port or 80), timeout=10)
    sock.sendall(
        f"GET {STREAM}{query} HTTP/{version}\r\nHost: x\r\n"
        f"Authorization: {client.headers['Authorization']}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return sock, head.decode().lower().split("\r\n")


def test_stream_is_framed_for_http_1_1_and_ends_with_the_connection_for_1_0(serve: Any) -> None:
    service: Service = serve("--workers", "1")
    client = service.client("boss", PASSWORD)
    (new, new_head), (old, old_head) = (raw_stream(service, client, v) for v in ("1.1", "1.0"))
    assert "transfer-encoding: chunked" in new_head
    assert not [line for line in old_head if line.startswith("transfer-encoding")]
    for head in (new_head, old_head):
        assert "connection: close" in head
    job_id = create(client)
    texts = [b"", b""]
    for number, sock in enumerate((new, old)):
        while job_id.encode() not in texts[number]:
            texts[number] += sock.recv(65536)
    assert service.stop() == 0
    for number, sock in enumerate((new, old)):
        while part := sock.recv(65536):
            texts[number] += part
        sock.close()
    framed, plain = texts
    parts = []
    while framed:
        length, _, framed = framed.partition(b"\r\n")
        size = int(length, 16)
        parts.append(framed[:size])
        assert framed[size : size + 2] == b"\r\n"
        framed = framed[size + 2 :]
    # The response is complete, not cut off; each event is a chunk.
    assert parts[-1] == b""
    (event,) = (part for part in parts if job_id.encode() in part)
    assert event.startswith(b"id: ")
    assert event.endswith(b"\n\n")
    assert b"".join(parts) == plain


def test_readers_of_whole_blocks_get_each_event_at_once(serve: Any) -> None:
    service: Service = serve("--workers", "1")
    client = service.client("boss", PASSWORD)
    with requests.get(
        service.url + STREAM, headers=dict(client.headers), stream=True, timeout=10
    ) as response:
        told = response.iter_lines()
        assert next(told).startswith(b"id: ")
        for _ in range(3):
            job_id = create(client)
            # Without frames the next event would be needed to push this one out.
            assert job_id in next(line for line in told if line.startswith(b"data: ")).decode()


EVENT_SOURCE = {"Accept": "text/event-stream", "Sec-Fetch-Mode": "cors"}


def test_stream_says_where_it_begins(desk: Desk) -> None:
    path = f"/workspace/{desk.workspace_id}/events/stream"
    desk.create()
    response = desk.call("GET", path, headers=EVENT_SOURCE)
    heard = lines(response)
    place = response.headers["Last-Event-ID"]
    first = [next(heard) for _ in range(4)]
    assert first == [f"id: {place}", "event: start", "data: {}", ""]
    response.close()
    # Other clients do not get an event.
    for headers in ({}, {"Accept": "text/event-stream"}):
        response = desk.call("GET", path, headers=headers)
        heard = lines(response)
        assert [next(heard) for _ in range(2)] == [f"id: {response.headers['Last-Event-ID']}", ":"]
        response.close()
    mine = desk.create()["job_id"]
    again = desk.call("GET", path, headers={"Last-Event-ID": place})
    assert first_of(again)["job_id"] == mine
    again.close()


def test_stream_that_had_no_event_has_no_gap_across_a_restart_of_the_service(serve: Any) -> None:
    service: Service = serve()
    client = service.client("boss", PASSWORD)
    create(client)
    listener = Listener(client, **EVENT_SOURCE)
    assert listener.next(1) == [{}]
    other = serve()
    assert service.stop() == 0
    assert listener.ended.wait(5)
    client = other.client("boss", PASSWORD)
    missed = create(client)
    again = Listener(client, **{"Last-Event-ID": listener.last})
    assert [event["job_id"] for event in again.next(1)] == [missed]


@pytest.mark.parametrize(
    ("threads", "multithread", "most"),
    [(1, True, 0), (2, True, 0), (3, True, 1), (8, True, 2), (8, False, 0)],
)
def test_streams_leave_a_server_a_thread_beside_those_who_wait(
    make_app: Any, new_database: Any, threads: int, multithread: bool, most: int
) -> None:
    desk = Desk(World(make_app(new_database("sqlite"), JOBAPI_SERVER_THREADS=threads)))
    path = f"/workspace/{desk.workspace_id}/events/stream"
    environ = {"wsgi.multithread": multithread}
    opened = [desk.call("GET", path, environ_overrides=environ) for _ in range(most + 1)]
    assert {response.status_code for response in opened[:most]} <= {200}
    assert opened[-1].status_code == (429 if most else 503)
    assert int(opened[-1].headers["Retry-After"]) >= 1
    for response in opened:
        response.close()


def test_streams_can_be_switched_off(serve: Any) -> None:
    client = serve("--workers", "1", JOBAPI_MAX_STREAMS="0").client("boss", PASSWORD)
    answer = client.get(STREAM)
    assert answer.status_code == 503
    assert "JOBAPI_MAX_STREAMS" in answer.json()["detail"]


def test_stream_that_holds_a_thread_ends_after_a_while_and_can_be_resumed(desk: Desk) -> None:
    desk.world.set_stream_options(heartbeat_seconds=0.2, thread_seconds=0.2)
    path = f"/workspace/{desk.workspace_id}/events/stream"
    response = desk.call("GET", path)
    # The client does not read on. The stream ends, and no longer counts towards the limit.
    begun = next(line for line in lines(response) if line.startswith("id: "))
    deadline = time.monotonic() + 10
    while len(desk.world.state.streams) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(desk.world.state.streams) == 0
    mine = desk.create()["job_id"]
    again = desk.call("GET", path, headers={"Last-Event-ID": begun[4:]})
    assert first_of(again)["job_id"] == mine
    for each in (response, again):
        each.close()
