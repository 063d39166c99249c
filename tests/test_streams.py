"""Streams of events: nothing missed, nothing twice, and no thread used up."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from sqlalchemy import delete

from jobapi import events, jobs, streams
from jobapi.identity import Role
from jobapi.models import memberships

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
            found = events.after(connection, desk.workspace_id, place, most=10)
        return [(event.xid, event.id) for event in found]

    if engine.dialect.name == "sqlite":
        desk.create()
        assert len(after(events.START)) == 1
        return
    with desk.world.transaction() as early:
        jobs.create(early, desk.workspace_id, **by)
        with desk.world.transaction() as late:
            jobs.create(late, desk.workspace_id, **by)
        # It has committed, and is kept back until the earlier one has ended.
        assert after(events.START) == []
    # Others write to the same server meanwhile.
    deadline = time.monotonic() + 30
    while len(seen := after(events.START)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(seen) == 2
    assert seen == sorted(seen)
    assert after(seen[0]) == seen[1:]
    assert after(seen[1]) == []


@pytest.mark.parametrize("name", ["x", "1", "1-", "-1", "1-x", "1-2-3", "9" * 30 + "-1", "²-1"])
def test_what_is_no_event_is_422(desk: Desk, name: str) -> None:
    path = f"/workspace/{desk.workspace_id}/events/stream?last_event_id={name}"
    response = desk.call("GET", path)
    assert response.status_code == 422
    assert response.json["errors"].keys() == {"last_event_id"}


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
    assert [next(heard) for _ in range(2)] == [":", ":"]
    job = desk.create()
    while not (line := next(heard)).startswith("data:"):
        pass
    assert json.loads(line[6:])["job_id"] == job["job_id"]
    assert len(desk.world.state.streams) == 1
    with desk.world.transaction() as tx:
        tx.execute(delete(memberships).where(memberships.c.user_id == member.id))
    assert "data" not in "".join(heard)
    assert len(desk.world.state.streams) == 0


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
            heard += [line[4:]] if line.startswith("id: ") else []
            if len(heard) == 4000:
                break
    assert set(heard) == ids
