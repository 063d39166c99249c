"""Streams of events: nothing missed, nothing twice, and no thread used up."""

from __future__ import annotations

import json
import queue
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx2
import pytest
from sqlalchemy import delete, select, update

from jobapi import events, jobs, streams
from jobapi.events import EventFilters
from jobapi.identity import Role
from jobapi.lifecycle import EventKind
from jobapi.models import api_keys, memberships
from jobapi.models import events as table

from .factories import PASSWORD, Desk
from .served import Service

JOBS = "/workspace/1/jobs"
STREAM = "/workspace/1/events/stream"
JOB = {"job_type": "a", "workspace_id": 1}


class Listener:
    """Somebody who listens to a stream, in a thread of their own."""

    def __init__(self, client: httpx2.Client, query: str = "", **headers: str) -> None:
        self.heard: queue.Queue[Any] = queue.Queue()
        self.ids: list[str] = []
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
                        event = json.loads(line[6:])
                        assert event["event_id"] == self.ids[-1]
                        self.heard.put(event)
        except httpx2.TransportError:
            pass
        self.begun.set()
        self.ended.set()

    def next(self, number: int) -> list[dict[str, Any]]:
        return [self.heard.get(timeout=15) for _ in range(number)]


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


def test_stream_has_what_it_is_asked_for(serve: Any) -> None:
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


def test_stream_goes_on_where_it_was_without_a_gap_or_a_repeat(serve: Any) -> None:
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
            listener = Listener(client, **{"Last-Event-ID": seen[-1]["event_id"]})
            seen += listener.next(50)
        stop.set()
        for future in changing:
            future.result()
    seen += Listener(client, f"last_event_id={seen[-1]['event_id']}").next(len(made) - len(seen))
    assert len({event["event_id"] for event in seen}) == len(seen) == len(made)
    assert sorted(event["job_id"] for event in seen) == sorted(made)


def test_event_of_a_transaction_that_ends_late_is_not_missed(desk: Desk) -> None:
    """Two transactions that end in the other order than they wrote."""
    engine = desk.world.state.engine
    by = {"created_by": desk.user.id, "job_type": "a"}

    def after(place: Any) -> list[Any]:
        with engine.connect() as connection:
            before = events.horizon(connection)
            found = events.after(connection, desk.workspace_id, place, before=before, most=10)
        return [(event.xid, event.id) for event in found]

    if engine.dialect.name == "sqlite":
        desk.create()
        assert len(after((0, 0))) == 1
        return
    with desk.world.transaction() as early:
        jobs.create(early, desk.workspace_id, **by)
        with desk.world.transaction() as late:
            jobs.create(late, desk.workspace_id, **by)
        # It has committed, and is kept back until the earlier one has ended.
        assert after((0, 0)) == []
    # Others write to the same server meanwhile.
    deadline = time.monotonic() + 30
    while len(seen := after((0, 0))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(seen) == 2
    assert seen == sorted(seen)
    assert after(seen[0]) == seen[1:]
    assert after(seen[1]) == []


@pytest.mark.parametrize(
    "name",
    [
        *("x", "1", "1-", "-1", "1-x", "1-2-3", "9" * 30 + "-1", "²-1"),
        *(f"1-{2**63}", f"{2**63}-1", f"{2**62}-1"),  # of another server
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


def test_stream_under_another_server_beats_and_ends_with_the_access(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.2)
    member = desk.world.member(desk.workspace_id, Role.VIEWER)
    path = f"/workspace/{desk.workspace_id}/events/stream"
    response = desk.world.call("GET", path, desk.world.token(member))
    assert response.status_code == 200
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    heard = lines(response)
    # A beat may also say where the stream is.
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
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.2)
    config = desk.world.state.mint._private.config
    monkeypatch.setitem(config, "JWT_ACCESS_TOKEN_EXPIRES", timedelta(seconds=2))
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
    """Both versions serve during an upgrade."""
    path = f"/workspace/{desk.workspace_id}/events"
    response = desk.call("GET", f"{path}/stream")
    desk.create()
    with desk.world.transaction() as tx:
        tx.execute(update(table).values(kind=99, from_status=9))
    heard = first_of(response)
    assert heard["kind"] in ("unknown", "created")  # it may have been sent before
    response.close()
    (listed,) = desk.call("GET", path).json["data"]
    assert (listed["kind"], listed["from_status"]) == ("unknown", None)


def test_failure_ends_the_streams_and_later_ones_work(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "AGAIN_SECONDS", 0.1)
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


def waiting_stream(**filters: Any) -> streams.Stream:
    return streams.Stream(1, 1, EventFilters(**filters), events.Begin((0, 0)), lambda _: True)


def test_who_reads_nothing_gets_no_more_than_waits_for_them() -> None:
    stream = waiting_stream()
    serving = streams.Streams(lambda: None, lambda row: b"x" * 100_000, limit=1)
    found = [Row(n) for n in range(1, 501)]
    serving._give(found, [stream])
    assert len(stream.waiting) == 300_000
    assert stream.place == stream.read_to == (1, 3)
    serving._settle(9, found, [stream])
    assert stream.place == (1, 3)


def test_after_a_crash_of_the_database_a_stream_goes_on_from_what_it_has_read() -> None:
    """Numbers of transactions of which nothing came are given again."""
    stream = waiting_stream(job_id="a")
    serving = streams.Streams(lambda: None, lambda row: b"x", limit=1)
    stream.be_with("one")
    serving._give([Row(1, 7), Row(2, 8, job_id="b")], [stream])
    serving._settle(90, [Row(2, 8)], [stream])
    assert stream.place == (90, 0)
    stream.be_with("one")
    assert stream.place == (90, 0)
    stream.be_with("two")
    assert stream.place == stream.read_to == (8, 2)
    assert stream.told == (7, 1)
    begun = streams.Stream(
        1, 1, EventFilters(), events.Begin((7, 1), 50, frozenset({9}), "one"), lambda _: True
    )
    assert [begun.wants(Row(3, xid)) for xid in (8, 9, 50)] == [False, True, True]
    begun.be_with("two")
    assert begun.wants(Row(3, 8))


def test_beat_says_where_a_stream_is_that_wants_little(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.3)
    path = f"/workspace/{desk.workspace_id}/events"
    response = desk.call("GET", f"{path}/stream?kind=deleted")
    desk.create()
    (event,) = desk.call("GET", path).json["data"]
    heard = lines(response)
    while (line := next(heard)) != f"id: {event['event_id']}":
        assert not line.startswith("data:")
    assert [next(heard) for _ in range(2)] == [":", ":"]  # and says it once
    response.close()


def test_beat_asks_without_writing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose key somebody has locked must not keep the others waiting."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.2)
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


def test_place_of_a_stream_that_never_began_is_given_back(desk: Desk) -> None:
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
    assert not serving._of_user


def test_user_has_half_of_the_streams_and_all_have_half_of_the_files(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve("--workers", "1", JOBAPI_MAX_STREAMS="6").client("boss", PASSWORD)
    body = {"name": "k", "role": "viewer"}
    key = client.post("/workspace/1/keys", json=body).json()["key"]
    listeners = [Listener(client) for _ in range(2)]
    listeners.append(Listener(client, Authorization=f"Bearer {key}"))
    assert {listener.status for listener in listeners} == {200}
    # A key is whose it is.
    assert client.get(STREAM).status_code == 429
    other = {"username": "anna", "password": PASSWORD}
    assert client.post("/users", json=other).status_code == 201
    member = {"username": "anna", "role": "viewer"}
    assert client.post("/workspace/1/members", json=member).status_code == 201
    tokens = client.post("/auth/login", json=other).json()
    theirs = Listener(client, Authorization=f"Bearer {tokens['access_token']}")
    assert theirs.status == 200
    serving = streams.Streams(lambda: None, lambda row: b"", limit=1000)
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
    """Whatever transaction keeps earlier events back then."""
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
    # Where it began, both are still to come.
    again = desk.call("GET", path, headers={"Last-Event-ID": response.headers["Last-Event-ID"]})
    heard = (json.loads(line[6:]) for line in lines(again) if line.startswith("data:"))
    assert [next(heard)["job_id"], next(heard)["job_id"]] == [under_way.job_id, before]
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


def test_streams_and_those_who_wait_use_up_no_threads(serve: Any) -> None:
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


def test_slow_listener_gets_everything_and_holds_nobody_up(
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
    """What a stream of ``Streams`` has sent, read by whoever is quick, or slow."""

    def __init__(self, serving: streams.Streams, stream: streams.Stream, *, slow: bool) -> None:
        self.stream, self.start = stream, stream.begin.place
        self.sock, theirs = socket.socketpair()
        self.slow = slow
        self.text = b""
        assert serving.admit(stream, 1000)
        serving.add(theirs, stream)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while part := self.sock.recv(200 if self.slow else 65536):
            self.text += part
            if self.slow:
                time.sleep(0.005)

    def places(self, *, beats: bool) -> list[Any]:
        """The ids that have come, also those that a beat says, or of events alone."""
        said = self.text.split(b"\n")[:-1]
        return [
            tuple(map(int, line[4:].split(b"-")))
            for line, following in zip(said, [*said[1:], b""], strict=True)
            if line.startswith(b"id: ") and (beats or following not in (b":", b""))
        ]

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.sock.close()


def write_events(engine: Any, workspace_id: int, chance: random.Random, stop: Any) -> None:
    """Transactions that last, end in another order than they wrote, and come to nothing."""
    while not stop.is_set():
        with engine.connect() as connection:
            postgres = connection.dialect.name == "postgresql"
            connection.exec_driver_sql("BEGIN" if postgres else "BEGIN IMMEDIATE")
            for _ in range(chance.randint(1, 8)):
                kind = chance.choice([EventKind.MEMBER_ADDED, EventKind.KEY_CREATED])
                events.note(connection, workspace_id, kind, by=None)
                if chance.random() < 0.3:
                    time.sleep(chance.random() * 0.03)
            connection.exec_driver_sql("ROLLBACK" if chance.random() < 0.2 else "COMMIT")
        time.sleep(chance.random() * 0.02)


def test_random_streams_have_every_event_once_and_in_order(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AT_ONCE", 7), ("MAX_BEHIND", 1500), ("HEARTBEAT_SECONDS", 0.2)):
        monkeypatch.setattr(streams, name, value)
    chance = random.Random(desk.user.id)
    engine = desk.world.state.engine
    serving = streams.Streams(
        lambda: engine, lambda row: b"id: %d-%d\nx%b\n" % (row.xid, row.id, b"x" * 99), limit=1000
    )
    stop = threading.Event()
    heard: list[Overheard] = []
    with ThreadPoolExecutor(4) as pool:
        writing = [
            pool.submit(write_events, engine, desk.workspace_id, random.Random(n), stop)
            for n in range(4)
        ]
        for number in range(30):
            kinds = chance.choice([(), (EventKind.KEY_CREATED,)])
            with engine.connect() as connection:
                before = chance.choice(heard).places(beats=True) if number % 2 else []
                if before:
                    name = events.name_of(chance.choice(before))
                    begin = events.resume(connection, name)
                else:
                    begin = events.begin(connection, desk.workspace_id)
            filters = EventFilters(kind=kinds, owner=True)
            stream = streams.Stream(
                desk.workspace_id, number % 5, filters, begin, lambda connection: True
            )
            heard.append(Overheard(serving, stream, slow=chance.random() < 0.4))
            time.sleep(0.05)
        stop.set()
        for future in writing:
            future.result()
    with engine.connect() as connection:
        every = connection.execute(select(table).order_by(table.c.xid, table.c.id)).all()
    assert len(every) > 50
    for each in heard:
        # What had happened before it began is told by its snapshot, which is tested elsewhere.
        wanted = [
            (event.xid, event.id)
            for event in every
            if (event.xid, event.id) > each.start and each.stream.wants(event)
        ]
        deadline = time.monotonic() + 30
        while len(each.places(beats=False)) < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert each.places(beats=False) == wanted
        each.close()
    deadline = time.monotonic() + 5
    while len(serving) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(serving) == 0
