"""The Python client against the application, without a server between them."""

from __future__ import annotations

import copy
import inspect
import pickle
import time
import uuid
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from jobapi import client as package
from jobapi import errors
from jobapi.client import (
    ClaimedJob,
    Client,
    Explanation,
    Job,
    JobFilter,
    JobType,
    Operation,
    Progress,
    RateLimit,
    Unreachable,
    retries,
)
from jobapi.errors import ScheduleNameTaken, ScheduleNotFound
from jobapi.rules.roles import Role
from jobapi.services import operations

from ..factories import PASSWORD, Desk, World


def connected(desk: Desk, transport: Any = None, **kw: Any) -> Client:
    transport = transport or httpx2.WSGITransport(app=desk.world.app)
    if not kw:
        kw = {"token": desk.token}
    return Client("http://service", transport=transport, **kw)


@pytest.fixture
def client(desk: Desk) -> Any:
    with connected(desk) as client:
        yield client


class Flaky(httpx2.BaseTransport):
    """A network or a service whose first requests fail."""

    def __init__(self, app: Any, failures: list[Any], *, after: bool = False) -> None:
        self.inner = httpx2.WSGITransport(app=app)
        self.failures, self.after = failures, after
        self.requests: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if not self.failures:
            return self.inner.handle_request(request)
        failure = self.failures.pop(0)
        if self.after:
            self.inner.handle_request(request)
        if isinstance(failure, int):
            return httpx2.Response(failure, headers={"Retry-After": "0"})
        raise failure


def test_every_call_of_a_job_s_life(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    at = datetime(2024, 1, 15, 10, tzinfo=UTC)
    job = client.create(w, "a", priority="high", metadata={"x": 1}, scheduled_at=at, max_retries=1)
    assert (job.status, job.priority, job.metadata, job.scheduled_at) == (
        "pending",
        "high",
        {"x": 1},
        at,
    )
    assert client.get(w, job.job_id) == job
    assert client.edit(w, job.job_id, {"status": "running"}).status == "running"
    assert client.edit(w, job.job_id, {"progress_percent": 40}).ended is False
    assert client.status(w, job.job_id).progress_percent == 40
    with pytest.raises(errors.JobNotEnded):
        client.result(w, job.job_id)
    assert client.cancel(w, job.job_id, reason="no").result == {"cancelled_reason": "no"}
    assert client.retry(w, job.job_id).retry_count == 1
    assert client.cancel(w, job.job_id).ended
    assert client.result(w, job.job_id) == {
        "retry_reason": "Retried via API",
        "previous_attempts": 1,
        "cancelled_reason": "Cancelled via API",
    }
    assert [a.outcome for a in client.attempts(w, job.job_id)] == ["cancelled"]


def test_many_jobs_are_created_and_listed_over_pages(desk: Desk, client: Client) -> None:
    made = client.create_many(desk.workspace_id, [{"job_type": f"t{n % 2}"} for n in range(1203)])
    assert len(made) == 1203
    assert [job.job_id for job in client.jobs(desk.workspace_id)] == [j.job_id for j in made]
    assert sum(1 for _ in client.jobs(desk.workspace_id, job_type=["t1"], status="pending")) == 601


def large(number: int, size: int) -> dict[str, Any]:
    return {"job_type": "a", "metadata": {"n": number, "text": "x" * size}}


def test_create_many_splits_by_bytes_and_keeps_the_order(desk: Desk, client: Client) -> None:
    items = [large(n, 300_000 if n % 3 == 0 else 10) for n in range(20)]
    made = client.create_many(desk.workspace_id, items)
    assert [job.metadata["n"] for job in made] == list(range(20))
    assert sum(1 for _ in client.jobs(desk.workspace_id)) == 20
    assert client.create_many(desk.workspace_id, []) == []


class Small(Flaky):
    """A proxy that accepts only smaller bodies than the service, with an error page of its own."""

    def __init__(self, app: Any, most: int) -> None:
        super().__init__(app, [])
        self.most = most

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if len(request.read()) > self.most:
            return httpx2.Response(413, html="<h1>413 Request Entity Too Large</h1>")
        return super().handle_request(request)


def test_create_many_splits_further_where_less_is_taken(desk: Desk) -> None:
    network = Small(desk.world.app, 5_000)
    with connected(desk, network) as client:
        made = client.create_many(desk.workspace_id, [large(n, 1000) for n in range(50)])
        assert [job.metadata["n"] for job in made] == list(range(50))
        assert sum(1 for _ in client.jobs(desk.workspace_id)) == 50


def test_create_many_that_fails_on_the_way_says_what_was_created(desk: Desk) -> None:
    network = Small(desk.world.app, 5_000)
    items = [large(n, 6_000 if n == 7 else 1000) for n in range(10)]
    with connected(desk, network) as client:
        with pytest.raises(errors.BodyTooLarge) as caught:
            client.create_many(desk.workspace_id, items, idempotency_key="k" * 255)
        created = caught.value.created
        assert [job.metadata["n"] for job in created] == list(range(7))
        items[7] = large(7, 1000)
        again = client.create_many(desk.workspace_id, items, idempotency_key="other")
        same = client.create_many(desk.workspace_id, items, idempotency_key="other")
        assert [job.metadata["n"] for job in again] == list(range(10))
        assert [job.job_id for job in again] == [job.job_id for job in same]


def test_create_many_whose_answer_is_lost_can_be_repeated_with_its_key(desk: Desk) -> None:
    network = Flaky(desk.world.app, [], after=True)
    items = [{"job_type": "a"}] * 1500
    with connected(desk, network, token=desk.token, retries=0) as client:
        first = client.create_many(desk.workspace_id, items[:1000], idempotency_key="one")
        assert network.requests[-1].headers["Idempotency-Key"] == "one"
        network.failures = [httpx2.ReadError("lost")]
        with pytest.raises(Unreachable) as caught:
            client.create_many(desk.workspace_id, items, idempotency_key="two")
        assert caught.value.created == []
        made = client.create_many(desk.workspace_id, items, idempotency_key="two")
        assert len({job.job_id for job in [*first, *made]}) == 2500
        assert sum(1 for _ in client.jobs(desk.workspace_id)) == 2500


def test_claim_and_report(desk: Desk, client: Client) -> None:
    assert client.claim(desk.workspace_id) == []
    client.create(desk.workspace_id, "a")
    (job,) = client.claim(desk.workspace_id, job_types=["a"], worker="w")
    assert job.attempt == 1
    report = {"job_id": job.job_id, "lease_token": job.lease_token, "status": "success"}
    (answer,) = client.report(desk.workspace_id, [report])
    assert answer["accepted"]
    assert client.wait(job).status == "success"


def test_wait_ends_after_its_time(desk: Desk, client: Client) -> None:
    job = client.create(desk.workspace_id, "a")
    with pytest.raises(TimeoutError, match="pending"):
        client.wait(job, timeout=0.1, poll_seconds=0.05)


def test_wait_draws_a_bar(desk: Desk, client: Client, capsys: Any) -> None:
    job = client.create(desk.workspace_id, "a")
    client.edit(
        desk.workspace_id, job.job_id, {"status": "success", "progress_message": "[red] all"}
    )
    assert client.wait(job, progress=True).status == "success"
    shown = capsys.readouterr().err
    assert "success" in shown
    assert "[red] all" in shown


@pytest.mark.parametrize("kind", sorted(errors.all_errors(), key=lambda kind: kind.type_name()))
def test_every_kind_of_error_becomes_its_exception(kind: Any) -> None:
    problem = {
        "type": f"urn:jobapi:problem:{kind.type_name()}",
        "status": kind.status,
        "detail": "d",
    }
    error = errors.from_problem({**problem, "errors": {"a": ["b"]}}, {})
    assert type(error) is kind
    assert (error.status, error.detail, str(error)) == (kind.status, "d", "d")
    if kind is errors.ValidationFailed:
        assert error.problem()["errors"] == {"a": ["b"]}
    if kind is errors.JobExists:
        assert error.job_id is None
        named = errors.from_problem({**problem, "job_id": "job_x"}, {})
        assert named.problem()["job_id"] == "job_x"


def test_errors_of_the_service_are_raised(desk: Desk, client: Client) -> None:
    with pytest.raises(errors.ValidationFailed) as caught:
        client.create(desk.workspace_id, "a b")
    assert list(caught.value.errors) == ["job_type"]
    with pytest.raises(errors.JobNotFound, match="Job not found in specified workspace"):
        client.get(desk.workspace_id, "job_x")
    with pytest.raises(errors.WorkspaceNotFound):
        client.get(999, "job_x")


def test_error_of_something_else_in_front_is_raised(desk: Desk) -> None:
    network = Flaky(desk.world.app, [501])
    with connected(desk, network) as client, pytest.raises(errors.JobApiError) as caught:
        client.get(desk.workspace_id, "job_x")
    assert caught.value.status == 501


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (413, errors.BodyTooLarge),
        (429, errors.TooManyRequests),
        (503, errors.Unavailable),
        (502, errors.JobApiError),
    ],
)
def test_read_page_of_a_proxy_raises_an_error_that_can_be_read(status: int, kind: Any) -> None:
    page = (
        "<html><head><style>p {color: red}</style><title>Sorry</title></head>\r\n"
        "<body><h1>The site is down &amp; out</h1><hr>nginx</body></html>"
    )
    proxy = httpx2.MockTransport(lambda request: httpx2.Response(status, html=page))
    with (
        Client("http://service", token="x", transport=proxy, retries=0) as client,
        pytest.raises(errors.JobApiError) as caught,
    ):
        client.get(1, "job_x")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert str(caught.value).endswith(": Sorry The site is down & out nginx")


@pytest.mark.parametrize(
    "failure", [httpx2.ReadError("lost"), httpx2.ConnectError("no"), 503, 429, 502, 504]
)
def test_create_whose_answer_is_lost_is_repeated_and_done_once(desk: Desk, failure: Any) -> None:
    network = Flaky(desk.world.app, [failure, failure], after=not isinstance(failure, int))
    with connected(desk, network) as client:
        job = client.create(desk.workspace_id, "a")
        assert [j.job_id for j in client.jobs(desk.workspace_id)] == [job.job_id]
    keys = {request.headers["Idempotency-Key"] for request in network.requests[:3]}
    assert len(keys) == 1


def test_claim_whose_answer_is_lost_gets_the_same_leases(desk: Desk) -> None:
    desk.create()
    desk.create()
    network = Flaky(desk.world.app, [httpx2.ReadError("lost")], after=True)
    with connected(desk, network) as client:
        assert len(client.claim(desk.workspace_id)) == 1
        assert sum(1 for _ in client.jobs(desk.workspace_id, status="running")) == 1


def test_request_that_may_have_been_carried_out_is_not_repeated(desk: Desk) -> None:
    job = desk.create()
    network = Flaky(desk.world.app, [httpx2.ReadError("lost")], after=True)
    with connected(desk, network) as client, pytest.raises(Unreachable):
        client.cancel(desk.workspace_id, job["job_id"])
    network = Flaky(desk.world.app, [httpx2.ConnectError("no")])
    with connected(desk, network) as client:
        assert client.retry(desk.workspace_id, job["job_id"]).status == "pending"


@pytest.mark.parametrize("status", [502, 504])
def test_cancel_that_a_proxy_may_have_passed_on_is_not_repeated(desk: Desk, status: int) -> None:
    job = desk.create()
    network = Flaky(desk.world.app, [status])
    with connected(desk, network) as client, pytest.raises(errors.JobApiError):
        client.cancel(desk.workspace_id, job["job_id"])
    assert len(network.requests) == 1


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"retry-after": " 0 "}, 0),
        ({"Retry-After": "9" * 400}, float("inf")),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT", "date": DATE}, 9),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:09 -0000", "Date": DATE}, 9),
        # Long ago, by the clock here.
        ({"Retry-After": DATE}, 0),
        *[({"Retry-After": text}, None) for text in ("", "-1", "1.5", "soon", "\u00b2")],
    ],
)
def test_retry_after_is_read_as_a_number_or_a_date(headers: Any, seconds: float | None) -> None:
    assert retries.retry_after(headers) == seconds


def answering(status: int, retry_after: str) -> httpx2.MockTransport:
    answers = iter([httpx2.Response(status, headers={"Retry-After": retry_after})])
    well = {"status": "pending"}
    return httpx2.MockTransport(lambda request: next(answers, httpx2.Response(200, json=well)))


def test_request_waits_as_long_as_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with Client("http://service", token="x", transport=answering(503, "7")) as client:
        assert client.get(1, "job_x").status == "pending"
    assert pauses == [7]


def test_request_that_is_asked_to_wait_for_long_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with (
        Client("http://service", token="x", transport=answering(429, "3600")) as client,
        pytest.raises(errors.TooManyRequests) as caught,
    ):
        client.get(1, "job_x")
    assert caught.value.headers["retry-after"] == "3600"
    assert pauses == []


def test_wait_survives_an_outage(desk: Desk) -> None:
    job = desk.create()
    failures = [502, 504, httpx2.ConnectError("no"), 500, 429, httpx2.ReadError("lost")]
    network = Flaky(desk.world.app, failures)
    with connected(desk, network, token=desk.token, retries=0) as client:
        there = Job.from_json(job)
        desk.post(f"/{there.job_id}/cancel")
        assert client.wait(there, poll_seconds=0).status == "cancelled"
        assert network.failures == []
        ended = client.operate(desk.workspace_id, "delete", status="failed")
        network.failures = [500, 502]
        before = Operation.from_json({**ended.to_json(), "status": "running"})
        assert client.wait_for_operation(before, poll_seconds=0) == ended
        assert network.failures == []
        network.failures = [httpx2.ConnectError("no")] * 1000
        with pytest.raises(TimeoutError, match="does not answer"):
            client.wait(there, timeout=0.1, poll_seconds=0.01)


def test_request_without_a_server_raises_unreachable(desk: Desk) -> None:
    network = Flaky(desk.world.app, [httpx2.ConnectError("no")] * 2)
    with connected(desk, network, token="x", retries=1) as client, pytest.raises(Unreachable):
        client.get(1, "job_x")
    assert len(network.requests) == 2


def test_log_in_and_refresh_by_itself(world: World) -> None:
    desk = Desk(world)
    user = world.user("anna", password=PASSWORD)
    with world.transaction() as tx:
        from jobapi import workspaces

        workspaces.add_member(tx, desk.workspace_id, user.id, Role.MEMBER)
    with connected(desk, username="anna", password=PASSWORD) as client:
        client.create(desk.workspace_id, "a")
        tokens = client._token, client._refresh_token
        client._token = "stale"
        client.create(desk.workspace_id, "a")
        assert client._token not in tokens
        world.call("POST", "/auth/logout", client._token)
        client.create(desk.workspace_id, "a")
    wrong = connected(desk, username="anna", password="wrong password")
    with wrong as client, pytest.raises(errors.LoginFailed):
        client.get(1, "job_x")
    with connected(desk, token="jk_wrong") as client, pytest.raises(errors.TokenRevoked):
        client.get(1, "job_x")


@pytest.mark.parametrize("kw", [{}, {"token": "x", "username": "y"}, {"username": "y"}])
def test_client_needs_one_way_to_log_in(kw: Any) -> None:
    with pytest.raises(ValueError, match="either token"):
        Client("http://service", **kw)


def test_everything_public_is_documented() -> None:
    for name in package.__all__:
        thing = getattr(package, name)
        assert inspect.getdoc(thing), name
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and callable(value):
                assert inspect.getdoc(value), f"{name}.{attribute}"


NO_JSON = [
    pytest.param(float("nan"), id="nan"),
    pytest.param(datetime(2024, 1, 15, tzinfo=UTC), id="time"),
    pytest.param(uuid.uuid4(), id="uuid"),
    pytest.param({1, 2}, id="set"),
    pytest.param("\ud800", id="half a character"),
]


@pytest.mark.parametrize("value", NO_JSON)
def test_send_invalid_json_is_refused_by_the_client(value: Any) -> None:
    network = Flaky(None, [])
    with Client("http://service", token="x", transport=network) as client:
        for call in (
            lambda: client.create(1, "a", metadata={"x": value}),
            lambda: client.create_many(1, [{"job_type": "a", "metadata": {"x": value}}]),
            lambda: client.edit(1, "job_x", {"result": {"x": value}}),
            lambda: client.report(1, [{"job_id": "job_x", "result": {"x": value}}]),
        ):
            with pytest.raises((TypeError, ValueError)):
                call()
    assert network.requests == []


# What the service answers with


STATUS = {
    "job_id": "job_x",
    "status": "running",
    "progress_percent": 40,
    "progress_message": None,
    "updated_at": "2024-01-15T10:00:00Z",
}


def test_read_answer_has_times_and_cannot_be_changed() -> None:
    progress = Progress.from_json(STATUS)
    assert (progress.progress_percent, progress.progress_message) == (40, None)
    assert progress.updated_at == datetime(2024, 1, 15, 10, tzinfo=UTC)
    assert not progress.ended
    assert progress.to_json() == STATUS
    assert repr(progress).startswith("Progress(job_id='job_x', status='running', ")
    with pytest.raises(AttributeError):
        progress.status = "success"


def test_read_answer_of_a_newer_service_ignores_its_new_fields() -> None:
    one, newer = Progress.from_json(STATUS), Progress.from_json({**STATUS, "node": "a"})
    assert one == newer
    assert len({one, newer, replace(one, status="success")}) == 2
    assert "node" not in newer.to_json()


# What only light lists have.
LIGHT = ("error_cause", "error_group", "worker", "progress_percent", "progress_message")


def test_job_made_by_its_constructor_equals_the_one_of_the_service(
    desk: Desk, client: Client
) -> None:
    desk.create(metadata={"x": [1]})
    (job,) = client.claim(desk.workspace_id)
    made = ClaimedJob(**{f.name: getattr(job, f.name) for f in fields(job)})
    assert made == job == pickle.loads(pickle.dumps(job)) == copy.deepcopy(job)
    assert hash(made) == hash(job)
    assert made.to_json() == job.to_json() | dict.fromkeys(LIGHT) | {"existing": False}
    assert replace(job, status="success").ended


def test_request_answered_without_json_raises_unreachable() -> None:
    proxy = httpx2.MockTransport(lambda request: httpx2.Response(200, text="<html>"))
    with (
        Client("http://service", token="x", transport=proxy) as client,
        pytest.raises(Unreachable, match="not JSON"),
    ):
        client.get(1, "job_x")


def test_every_filter_of_lists_and_operations(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    wanted = client.create(w, "a", priority="high", metadata={"batch_id": 3, "flag": True})
    client.create(w, "b", metadata={"batch_id": 4})
    then = datetime(2000, 1, 1, tzinfo=UTC)
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    keyed = client.create(w, "c", concurrency_key="k", unique_key="u", expires_at=later)
    assert (keyed.concurrency_key, keyed.unique_key, keyed.expires_at) == ("k", "u", later)
    for by_key in (
        JobFilter(concurrency_key="k", created_by=desk.user.id),
        JobFilter(unique_key=["u", "v"], created_by=desk.user.id),
        JobFilter(expires_after=later, created_by=desk.user.id),
        JobFilter(expires_before=later + timedelta(seconds=1), created_by=desk.user.id),
        JobFilter(job_id=keyed.job_id),
    ):
        assert [job.job_id for job in client.jobs(w, **by_key)] == [keyed.job_id], by_key
        assert client.operate(w, "cancel", dry_run=True, **by_key).matched == 1, by_key
    assert client.cancel(w, keyed.job_id).ended
    filters: list[JobFilter] = [
        {"status": "pending", "job_type": "a"},
        {"status": ["pending", "running"], "priority": ["high", "urgent"]},
        {"metadata": {"batch_id": 3}, "created_after": then},
        {"metadata": {"flag": True}, "updated_after": then},
        {"job_type": ["a"], "created_by": desk.user.id},
    ]
    for each in filters:
        assert [job.job_id for job in client.jobs(w, **each)] == [wanted.job_id], each
        assert client.operate(w, "cancel", dry_run=True, **each).matched == 1, each
    assert list(client.jobs(w, created_before=then)) == []
    (light,) = client.jobs(w, job_type="a", light=True)
    assert (light.job_id, light.metadata, light.result) == (wanted.job_id, None, None)


def test_create_with_the_unique_key_of_a_live_job_does_what_on_conflict_says(
    desk: Desk, client: Client
) -> None:
    w = desk.workspace_id
    first = client.create(w, "a", unique_key="u", metadata={"n": 1})
    assert not first.existing
    kept = client.create(w, "a", unique_key="u", metadata={"n": 2})
    assert (kept.job_id, kept.existing, kept.metadata) == (first.job_id, True, {"n": 1})
    assert kept.to_json()["existing"] is True
    replaced = client.create(w, "a", unique_key="u", on_conflict="replace", metadata={"n": 3})
    assert (replaced.job_id, replaced.existing) == (first.job_id, True)
    assert client.get(w, first.job_id).metadata == {"n": 3}
    with pytest.raises(errors.JobExists) as caught:
        client.create(w, "a", unique_key="u", on_conflict="refuse")
    assert caught.value.job_id == first.job_id
    items = [{"job_type": "a", "unique_key": "u"}, {"job_type": "a"}]
    assert [job.existing for job in client.create_many(w, items)] == [True, False]
    with pytest.raises(errors.ValidationFailed) as invalid:
        client.create(w, "a", unique_key="u", on_conflict="ignore")
    assert list(invalid.value.errors) == ["on_conflict"]


def test_set_job_type_changes_settings_and_none_resets_them(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    made = client.set_job_type(
        w,
        "etl.daily:v2",
        max_running=5,
        max_running_per_key=1,
        rate_limit=RateLimit(starts=100, seconds=60),
        max_pending=1000,
        start_within_seconds=3600,
        priority="high",
        max_retries=0,
        timeout_seconds=30,
        retry_backoff_seconds=2,
        retry_backoff_max_seconds=60,
    )
    assert (made.job_type, made.paused, made.max_running) == ("etl.daily:v2", False, 5)
    assert made.rate_limit == RateLimit(starts=100, seconds=60)
    assert made == client.job_type(w, "etl.daily:v2")
    assert made == JobType(**{f.name: getattr(made, f.name) for f in fields(made)})
    assert made.to_json()["rate_limit"] == {"starts": 100, "seconds": 60}
    assert JobType.from_json(made.to_json()) == made
    changed = client.set_job_type(
        w, "etl.daily:v2", max_running=None, rate_limit={"starts": 50, "seconds": 30}, priority=None
    )
    assert (changed.max_running, changed.max_running_per_key, changed.priority) == (None, 1, None)
    assert changed.rate_limit == RateLimit(starts=50, seconds=30)
    assert client.set_job_type(w, "etl.daily:v2", rate_limit=None).rate_limit is None
    job = client.create(w, "etl.daily:v2")
    assert (job.max_retries, job.timeout_seconds) == (0, 30)
    assert job.expires_at == job.due_at + timedelta(hours=1)


def test_set_job_type_with_an_invalid_value_is_refused(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    for settings, field in (
        ({"max_running": 0}, "max_running"),
        ({"rate_limit": {"starts": 1}}, "rate_limit.seconds"),
        ({"paused_reason": "no"}, "paused_reason"),
        ({"unknown": 1}, "unknown"),
    ):
        with pytest.raises(errors.ValidationFailed) as caught:
            client.set_job_type(w, "a", **settings)
        assert list(caught.value.errors) == [field]
    for name in ("a", "a b", "a/b", "a?x", "\u00e4"):
        with pytest.raises(errors.NotFound):
            client.job_type(w, name)
    with pytest.raises(errors.JobTypeNotFound):
        client.set_job_type(w, "a b", max_running=1)


def test_job_types_are_listed_over_pages_with_their_numbers(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    assert list(client.job_types(w)) == []
    client.create_many(w, [{"job_type": f"t{n:03}"} for n in range(150)])
    client.set_job_type(w, "s", max_running=1)
    client.claim(w, job_types=["t000"])
    first, second, *others = client.job_types(w)
    assert (first.job_type, first.pending, first.oldest_due_seconds) == ("s", 0, None)
    assert (second.job_type, second.pending, second.running) == ("t000", 0, 1)
    assert second.live_workers == 1
    assert [each.pending for each in others] == [1] * 149


def test_paused_job_type_and_workspace_hand_out_no_jobs(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    client.create(w, "a")
    paused = client.pause_job_type(w, "a", reason="bad release")
    assert (paused.paused, paused.paused_reason) == (True, "bad release")
    assert client.claim(w) == []
    resumed = client.resume_job_type(w, "a")
    assert (resumed.paused, resumed.paused_reason) == (False, None)
    whole = client.pause_workspace(w, reason="upgrade")
    assert (whole.workspace_id, whole.role) == (w, "owner")
    assert (whole.paused, whole.paused_reason) == (True, "upgrade")
    assert client.claim(w) == []
    assert not client.resume_workspace(w).paused
    assert len(client.claim(w)) == 1
    assert client.pause_job_type(w, "a").paused_reason is None
    key = desk.world.key(w, desk.user, Role.MEMBER)
    with connected(desk, token=key) as by_key:
        assert not by_key.resume_job_type(w, "a").paused
        with pytest.raises(errors.KeyNotAllowed):
            by_key.pause_workspace(w)
        with pytest.raises(errors.RoleTooLow):
            by_key.set_job_type(w, "a", max_running=1)


def test_create_beyond_max_pending_is_refused(desk: Desk) -> None:
    w = desk.workspace_id
    with connected(desk, token=desk.token, retries=0) as client:
        client.set_job_type(w, "a", max_pending=1)
        client.create(w, "a")
        with pytest.raises(errors.QueueFull) as caught:
            client.create(w, "a")
        assert int(caught.value.headers["retry-after"]) > 0


def test_workers_are_listed_with_what_they_run(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    assert list(client.workers(w)) == []
    client.create(w, "a")
    client.claim(w, job_types=["a", "b"], worker="w1")
    client.claim(w, worker="w2")
    one, two = client.workers(w, state="live")
    assert list(client.workers(w, state="gone")) == []
    assert (one.name, one.state, one.running) == ("w1", "live", 1)
    assert (one.job_types, two.job_types) == (["a", "b"], None)
    assert one.actor == f"user:{desk.user.id}"
    assert one.first_seen_at <= one.last_seen_at


def test_explanation_has_reasons_with_the_fields_of_their_code(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    client.set_job_type(w, "a", max_running=1)
    client.create_many(w, [{"job_type": "a"}] * 3)
    client.claim(w, worker="w1")
    *_, last = client.jobs(w, status="pending", sort="created_at", order="asc")
    found = client.explain(w, last.job_id)
    assert [(reason.code, reason.data) for reason in found.reasons] == [
        ("at-capacity", {"limit": 1}),
        ("behind-others", {"ahead": 1}),
    ]
    assert (found.status, found.ahead, found.ahead_is_capped) == ("pending", 1, False)
    assert found.live_workers == 1
    assert found.estimated_completion_at is None
    answer = desk.get(f"/{last.job_id}/explain").json
    assert {**found.to_json(), "estimated_start_at": None} == {**answer, "estimated_start_at": None}
    assert found == Explanation(**{f.name: getattr(found, f.name) for f in fields(found)})
    with pytest.raises(errors.JobNotFound):
        client.explain(w, "job_x")


def test_errors_of_failed_jobs_and_a_retry_of_their_group(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    made = client.create_many(w, [{"job_type": "a"}] * 2 + [{"job_type": "b"}])
    for n, job in enumerate(made):
        client.edit(w, job.job_id, {"status": "failed", "error": f"bad row {n}"})
    (found,) = client.job_errors(w, job_type="a")
    assert (found.cause, found.count, found.count_is_capped) == ("bad row 1", 2, False)
    assert found.job_ids == [made[1].job_id, made[0].job_id]
    assert found.first_failed_at <= found.last_failed_at
    assert [group.job_type for group in client.job_errors(w, limit=1)] == ["a"]
    (light, _) = client.jobs(w, job_type="a", error_group=[found.error_group], light=True)
    assert (light.error_cause, light.error_group) == ("bad row 0", found.error_group)
    filters: JobFilter = {"job_type": ["a"], "error_group": [found.error_group]}
    assert client.operate(w, "retry", dry_run=True, status="failed", **filters).matched == 2
    assert client.operate(w, "retry", status="failed", **filters).changed == 2
    assert [group.job_type for group in client.job_errors(w)] == ["b"]


def test_operations(desk: Desk, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "AT_ONCE", 2)
    w = desk.workspace_id
    client.create_many(w, [{"job_type": "a"}] * 5)
    dry = client.operate(w, "cancel", dry_run=True)
    assert (dry.operation_id, dry.status, dry.created_at, dry.matched) == (None, None, None, 5)
    assert client.wait_for_operation(dry) == dry
    begun = client.operate(w, "cancel", reason="no", job_type="a")
    assert (begun.status, begun.changed, begun.ended) == ("running", 2, False)
    assert begun.filter == {"job_type": ["a"]}
    with pytest.raises(TimeoutError):
        client.wait_for_operation(begun, timeout=0)
    seen = []

    def show(operation: Operation) -> None:
        seen.append(operation.changed)
        with desk.world.transaction() as tx:
            operations.advance(tx, begun.operation_id or 0)

    done = client.wait_for_operation(begun, show=show, poll_seconds=0.01)
    assert (done.status, done.changed) == ("finished", 5)
    assert seen == [2, 4, 5]
    assert client.operation(w, done.operation_id or 0) == done
    again = client.operate(w, "retry")
    assert client.stop_operation(w, again.operation_id or 0).status == "stopped"
    with pytest.raises(errors.OperationEnded):
        client.stop_operation(w, again.operation_id or 0)
    assert [o.operation_id for o in client.operations(w)] == [
        again.operation_id,
        done.operation_id,
    ]
    (job, *_) = client.jobs(w, status="cancelled")
    assert job.result == {"cancelled_reason": "no"}
    client.delete(w, job.job_id)
    with pytest.raises(errors.JobNotFound):
        client.delete(w, job.job_id)
    assert client.stats(w)["by_status"]["cancelled"] == 2
    assert client.stats(w, job_type=["none"])["due"] == 0


def test_events_and_their_history(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    one, two = client.create(w, "a"), client.create(w, "b")
    client.cancel(w, one.job_id, reason="no")
    found = list(client.events(w, page_size=1))
    assert [(e.kind, e.job_id) for e in found] == [
        ("cancelled", one.job_id),
        ("created", two.job_id),
        ("created", one.job_id),
    ]
    assert found[0].data == {"reason": "no"}
    assert (found[0].from_status, found[0].to_status) == ("pending", "cancelled")
    assert (found[0].user_id, found[0].key_id) == (desk.user.id, None)
    assert found[0].at.tzinfo is not None
    history = client.events(w, job_id=one.job_id, order="asc")
    assert [e.kind for e in history] == ["created", "cancelled"]
    assert [e.job_id for e in client.events(w, kind="created", job_type="b")] == [two.job_id]


class Breaking(httpx2.BaseTransport):
    """A network that breaks every stream after a number of events."""

    def __init__(self, app: Any, events: int) -> None:
        self.inner = httpx2.WSGITransport(app=app)
        self.events = events
        self.begun: list[str | None] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self.inner.handle_request(request)
        if not request.url.path.endswith("/stream") or response.status_code != 200:
            return response
        self.begun.append(request.headers.get("Last-Event-ID"))
        stream: Any = response.stream
        return httpx2.Response(
            200, headers=response.headers, stream=Broken(stream, self.events), request=request
        )


class Broken(httpx2.SyncByteStream):
    def __init__(self, stream: Any, events: int) -> None:
        self.stream, self.left = stream, events

    def __iter__(self) -> Any:
        text = b""
        for part in self.stream:
            text += part
            while b"\n\n" in text:
                if not self.left:
                    raise httpx2.ReadError("broken")
                event, _, text = text.partition(b"\n\n")
                self.left -= 1
                # In pieces, however they are cut.
                yield event[:7]
                yield event[7:] + b"\n\n"
            if not self.left:
                raise httpx2.ReadError("broken")

    def close(self) -> None:
        self.stream.close()


def test_follow_after_a_break_resumes_there(desk: Desk) -> None:
    w = desk.workspace_id
    network = Breaking(desk.world.app, 2)
    with connected(desk, network) as client:
        following = client.follow(w, kind=["created", "failed"])
        ids = [client.create(w, "a").job_id for _ in range(5)]
        client.cancel(w, ids[0])
        client.edit(w, ids[1], {"status": "running"})
        client.edit(w, ids[1], {"status": "failed", "error": "one\u2028two\u0085three"})
        heard = [next(following) for _ in range(6)]
        following.close()
        assert [(e.kind, e.job_id) for e in heard] == [
            *(("created", job_id) for job_id in ids),
            ("failed", ids[1]),
        ]
        assert heard[5].data == {"error": "one\u2028two\u0085three"}
        # Where other transactions are under way on the server, it says more than the event's id.
        assert network.begun == [None, heard[1].stream_id, heard[3].stream_id]
        again = client.follow(w, after=heard[3].stream_id)
        assert next(again).event_id == heard[4].event_id
        again.close()


def test_follow_broken_before_the_first_event_resumes_at_its_start(desk: Desk) -> None:
    w = desk.workspace_id
    network = Breaking(desk.world.app, 0)
    with connected(desk, network) as client:
        following = client.follow(w)
        job = client.create(w, "a")
        network.events = 1
        assert next(following).job_id == job.job_id
        following.close()
    assert network.begun[0] is None
    assert network.begun[1] is not None


def test_follow_without_access_or_after_an_invalid_position_is_an_error(
    desk: Desk, client: Client
) -> None:
    with pytest.raises(errors.NotFound):
        client.follow(desk.workspace_id + 1)
    with pytest.raises(errors.ValidationFailed):
        client.follow(desk.workspace_id, after="x")


class Scripted(httpx2.BaseTransport):
    """Sends each of the scripted streams once, and then the last one again and again."""

    def __init__(self, *answers: tuple[str, bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[str | None] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.headers.get("Last-Event-ID"))
        kind, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx2.Response(200, headers={"Content-Type": kind}, content=text, request=request)


def sent(number: int) -> bytes:
    return f'id: 1-{number}\ndata: {{"event_id": "1-{number}"}}\n\n'.encode()


def test_follow_after_a_break_resumes_after_the_last_whole_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    stream = "text/event-stream; charset=utf-8"
    network = Scripted(
        (stream, sent(1) + b"id: 1-2\n"),  # broken before its event
        (stream, b":\n" + sent(2) + b"id: 1-5\n:\n"),
        (stream, b"data: {broken\n\n"),
        ("text/html", b"<p>moved</p>"),
        (stream, b""),
        (stream, b""),
        (stream, sent(6)),
    )
    with Client("http://service", token="t", transport=network) as client:
        following = client.follow(1)
        assert [next(following).event_id for _ in range(3)] == ["1-1", "1-2", "1-6"]
        following.close()
    assert network.asked == [None, "1-1", *["1-5"] * 5]
    # Ever longer ones, while nothing comes.
    assert max(pauses[:2]) <= 0.2 < min(pauses[4:])


def test_follow_a_response_that_is_not_a_stream_is_unreachable() -> None:
    network = Scripted(("text/html", b"<p>log in</p>"))
    with (
        Client("http://service", token="t", transport=network) as client,
        pytest.raises(Unreachable, match="not a stream"),
    ):
        client.follow(1)


def test_follow_abandoned_closes_its_connection(desk: Desk, client: Client) -> None:
    for _ in range(5):
        client.follow(desk.workspace_id).close()
    serving = desk.world.state.streams
    deadline = time.monotonic() + 5
    while len(serving) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(serving) == 0


def test_schedules_are_created_changed_run_and_deleted(desk: Desk, client: Client) -> None:
    w = desk.workspace_id
    start = datetime(2030, 1, 1, tzinfo=UTC)
    made = client.create_schedule(
        w,
        "nightly",
        job={"job_type": "report", "metadata": {"a": 1}},
        cron="30 2 * * *",
        timezone="Europe/Berlin",
        starts_at=start,
    )
    assert made.starts_at == start
    assert made.upcoming[0] == made.next_run_at == datetime(2030, 1, 1, 1, 30, tzinfo=UTC)
    assert made.last_run is None
    assert client.schedule(w, made.schedule_id) == made
    assert list(client.schedules(w)) == [made]
    changed = client.update_schedule(
        w, made.schedule_id, starts_at=None, timezone=None, job={"priority": "high"}
    )
    assert (changed.starts_at, changed.timezone) == (None, "UTC")
    assert changed.job == {"job_type": "report", "priority": "high", "metadata": {"a": 1}}
    paused = client.pause_schedule(w, made.schedule_id, reason="deploy")
    assert (paused.paused, paused.paused_reason, paused.next_run_at) == (True, "deploy", None)
    assert client.resume_schedule(w, made.schedule_id).next_run_at == changed.next_run_at
    job = client.run_schedule(w, made.schedule_id)
    assert (job.schedule_id, job.scheduled_for, job.priority) == (made.schedule_id, None, "high")
    assert [each.job_id for each in client.jobs(w, schedule_id=made.schedule_id)] == [job.job_id]
    last = client.schedule(w, made.schedule_id).last_run
    assert last is not None
    assert (last.outcome, last.job_id) == ("created", job.job_id)
    operation = client.operate(w, "cancel", schedule_id=made.schedule_id)
    assert operation.changed == 1
    with pytest.raises(ScheduleNameTaken):
        client.create_schedule(w, "nightly", job={"job_type": "a"}, every_seconds=5)
    client.delete_schedule(w, made.schedule_id)
    with pytest.raises(ScheduleNotFound):
        client.schedule(w, made.schedule_id)
