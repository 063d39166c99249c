"""Embedding in a host application: the host stays unchanged, and jobapi works."""

from __future__ import annotations

import io
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import flask_migrate
import pytest
from flask import Flask, Response, request
from flask.cli import routes_command
from flask_jwt_extended import create_access_token, get_jwt_identity, verify_jwt_in_request
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import IntegrityError
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    BadGateway,
    Forbidden,
    GatewayTimeout,
    Gone,
    HTTPException,
    ImATeapot,
    InternalServerError,
    NotImplemented,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    default_exceptions,
)
from werkzeug.local import LocalProxy

from jobapi import JobAPI, accounts, jobs, workspaces
from jobapi.config import ConfigError
from jobapi.rules.roles import Role
from jobapi.store.tables import Base
from jobapi.views import access

from ..factories import PASSWORD, World
from ..host import HTML_404, HTML_405, answers, make_host

PREFIX = "/job-api"
ORIGIN = "https://app.example.com"
PROBLEM = "application/problem+json"


class Host:
    """A host with us in it, on a migrated database."""

    def __init__(self, url: str, prefix: str = PREFIX, current_user: Any = None, **config: Any):
        self.app, self.db = make_host(url, **config)
        JobAPI(self.app, url_prefix=prefix, current_user=current_user)
        with self.app.extensions["jobapi"].private.app_context():
            flask_migrate.upgrade()
        self.world = World(self.app)

    def close(self) -> None:
        with self.app.app_context():
            self.db.session.remove()
            for engine in self.db.engines.values():
                engine.dispose()
        self.app.extensions["jobapi"].close()


@pytest.fixture
def embed(new_database: Any, database: str) -> Iterator[Any]:
    """Makes hosts with us in them."""
    made: list[Host] = []

    def make(*arguments: Any, **kw: Any) -> Host:
        made.append(Host(new_database(database), *arguments, **kw))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.mark.parametrize("prefix", [PREFIX, "/a/b"])
def test_host_answers_as_without_us(
    new_database: Any, database: str, embed: Any, prefix: str
) -> None:
    plain, db = make_host(new_database(database))
    expected = answers(plain)
    with plain.app_context():
        db.session.remove()
        db.engine.dispose()
    host = embed(prefix)
    assert answers(host.app) == expected
    # And after ours was used.
    host.world.call("GET", f"{prefix}/jobs")
    assert answers(host.app) == expected


def test_host_without_a_prefix_keeps_its_pages_and_unknown_paths(embed: Any) -> None:
    host = embed("")
    client = host.app.test_client()
    for path in ("/nowhere", "/workspace", "/workspace/1/nowhere"):
        response = client.get(path)
        if path == "/workspace":
            assert response.status_code == 401
            assert response.mimetype == PROBLEM
        else:
            assert (response.status_code, response.text) == (404, HTML_404)
    assert client.delete("/things").text == HTML_405
    assert client.delete("/workspace").mimetype == PROBLEM


def test_host_configuration_and_extensions_stay(new_database: Any, database: str) -> None:
    app, db = make_host(new_database(database))
    config, extensions = dict(app.config), dict(app.extensions)
    threads = threading.enumerate()
    JobAPI(app, url_prefix=PREFIX)
    assert dict(app.config) == config
    assert {k: v for k, v in app.extensions.items() if k != "jobapi"} == extensions
    assert threading.enumerate() == threads
    with app.app_context():
        db.engine.dispose()


def test_ours_works_below_the_prefix(embed: Any) -> None:
    world = embed().world
    user = world.user("anna", password=PASSWORD)
    workspace = world.workspace(user)
    body = {"username": "anna", "password": PASSWORD}
    token = world.call("POST", f"{PREFIX}/auth/login", json=body).json["access_token"]
    path = f"{PREFIX}/workspace/{workspace}/jobs"
    created = world.call(
        "POST", path, token, json={"job_type": "x", "workspace_id": workspace, "metadata": {"a": 1}}
    )
    assert created.status_code == 201
    assert created.headers["Location"] == f"{path}/{created.json['job_id']}"
    assert created.headers["X-Request-Id"]
    assert world.call("GET", created.headers["Location"], token).json == created.json
    done = world.call("PATCH", created.headers["Location"], token, json={"status": "success"})
    assert done.json["status"] == "success"
    assert world.call("GET", path, token).json["pagination"]["total"] == 1
    assert world.call("GET", f"{PREFIX}/health/ready").status_code == 200
    document = world.call("GET", f"{PREFIX}/openapi.json").json
    assert all(p.startswith(PREFIX) for p in document["paths"])
    assert f'src="{PREFIX}/docs/own/swagger.js"' in world.call("GET", f"{PREFIX}/docs").text


def test_errors_below_the_prefix_are_ours(embed: Any) -> None:
    client = embed().app.test_client()
    for method, path, status in (
        ("GET", f"{PREFIX}/nowhere", 404),
        ("GET", PREFIX, 404),
        ("GET", f"{PREFIX}/", 404),
        ("DELETE", f"{PREFIX}/jobs", 405),
        ("GET", f"{PREFIX}/jobs", 401),
        ("POST", f"{PREFIX}/auth/login", 400),
    ):
        response = client.open(path, method=method)
        assert response.status_code == status
        assert response.mimetype == PROBLEM
        assert response.headers["X-Request-Id"]


def test_fault_of_ours_is_our_problem_and_not_the_hosts_page(embed: Any) -> None:
    host = embed()
    world = host.world
    token = world.token(world.user(is_admin=True))
    with world.transaction() as tx:
        tx.exec_driver_sql("ALTER TABLE jobapi_job_counts RENAME COLUMN n TO zahl")
    response = world.call("GET", f"{PREFIX}/jobs", token)
    assert response.status_code == 500
    assert response.mimetype == PROBLEM


def test_body_limit_is_ours_on_our_routes_and_the_hosts_on_its_own(embed: Any) -> None:
    client = embed(JOBAPI_MAX_BODY_BYTES=2000).app.test_client()
    body = b"x" * 3000
    ours = client.post(f"{PREFIX}/auth/login", data=body, content_type="application/json")
    assert ours.status_code == 413
    assert client.post("/echo", data=body).json == {"length": 3000}


def test_tokens_of_one_are_nothing_to_the_other(embed: Any) -> None:
    host = embed()
    world = host.world
    ours = world.token(world.user())
    theirs = world.call("GET", "/login").text
    assert world.call("GET", "/me", headers={"Authorization": f"Token {theirs}"}).json["id"] == "7"
    assert world.call("GET", "/me", headers={"Authorization": f"Token {ours}"}).status_code == 422
    assert world.call("GET", f"{PREFIX}/auth/me", ours).status_code == 200
    assert world.call("GET", f"{PREFIX}/auth/me", theirs).status_code == 401


def test_tables_of_ours_are_beside_the_hosts(embed: Any) -> None:
    host = embed()
    with host.app.app_context():
        names = set(inspect(host.db.engine).get_table_names())
    ours = {table.name for table in Base.metadata.sorted_tables}
    assert names == ours | {"users", "jobapi_alembic_version"}
    assert not set(host.db.metadata.tables) & ours


# The host's own login


def who() -> str | None:
    return request.headers.get("X-Host-User")


def as_host_user(world: World, method: str, path: str, user: str | None, **kw: Any) -> Any:
    headers = {**kw.pop("headers", {}), **({} if user is None else {"X-Host-User": user})}
    return world.call(method, PREFIX + path, headers=headers, **kw)


def test_current_user_of_the_host_is_ours(embed: Any) -> None:
    world = embed(current_user=who).world
    assert as_host_user(world, "GET", "/workspace", None).status_code == 401
    made = as_host_user(world, "POST", "/workspace", "u-17", json={"name": "Mine"})
    assert made.status_code == 201
    workspace = made.json["workspace_id"]
    body = {"job_type": "x", "workspace_id": workspace}
    job = as_host_user(world, "POST", f"/workspace/{workspace}/jobs", "u-17", json=body)
    assert job.status_code == 201
    me = as_host_user(world, "GET", "/auth/me", "u-17").json
    assert me["username"] == "host:u-17"
    assert job.json["created_by"] == made.json["created_by"] == me["user_id"]
    assert as_host_user(world, "GET", f"/workspace/{workspace}/jobs", "u-18").status_code == 403
    assert as_host_user(world, "GET", "/jobs", "u-18").json["data"] == []
    # A machine comes with a key.
    key = as_host_user(
        world, "POST", f"/workspace/{workspace}/keys", "u-17", json={"name": "k", "role": "viewer"}
    ).json["key"]
    assert world.call("GET", f"{PREFIX}/workspace/{workspace}/jobs", key).status_code == 200


def test_stream_of_a_host_user_ends_so_that_the_host_is_asked_again(
    embed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "HOST_LOGIN_SECONDS", 0.5)
    world = embed(current_user=who).world
    world.set_stream_options(heartbeat_seconds=0.1)
    made = as_host_user(world, "POST", "/workspace", "u-17", json={"name": "Mine"}).json
    path = f"/workspace/{made['workspace_id']}/events/stream"
    response = as_host_user(world, "GET", path, "u-17")
    begun = time.monotonic()
    assert response.status_code == 200
    assert b"data:" not in b"".join(response.iter_encoded())
    assert 0.3 < time.monotonic() - begun < 5
    response.close()


def test_current_user_replaces_our_log_in(embed: Any) -> None:
    world = embed(current_user=who).world
    for path in ("/auth/login", "/auth/refresh", "/auth/logout", "/auth/password"):
        assert as_host_user(world, "POST", path, "u-1", json={}).status_code == 404
    paths = world.call("GET", f"{PREFIX}/openapi.json").json["paths"]
    assert f"{PREFIX}/auth/login" not in paths
    assert f"{PREFIX}/auth/me" in paths


def test_current_user_can_be_an_administrator_and_be_disabled(embed: Any) -> None:
    world = embed(current_user=who).world
    with world.transaction() as tx:
        admin = accounts.host_user(tx, "boss", is_admin=True)
        user = accounts.host_user(tx, 17)
    assert as_host_user(world, "GET", "/users", "17").status_code == 403
    change = as_host_user(world, "PATCH", f"/users/{user.id}", "boss", json={"disabled": True})
    assert change.status_code == 200
    refused = as_host_user(world, "GET", "/workspace", "17")
    assert refused.status_code == 401
    assert "disabled" in refused.json["detail"]
    assert as_host_user(world, "GET", "/auth/me", "boss").json["user_id"] == admin.id


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": "http://localhost"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_current_user_by_cookie_cannot_be_used_by_other_sites(
    embed: Any, headers: Any, status: int
) -> None:
    world = embed(current_user=who).world
    body = {"name": "Mine"}
    response = as_host_user(world, "POST", "/workspace", "u-1", json=body, headers=headers)
    assert response.status_code == status
    read = as_host_user(world, "GET", "/workspace", "u-1", headers=headers)
    assert read.status_code == 200


def test_current_user_seen_first_by_many_at_once_is_one(embed: Any) -> None:
    host = embed(current_user=who)
    ids: list[Any] = []

    def ask() -> None:
        client = host.app.test_client()
        ids.append(client.get(f"{PREFIX}/auth/me", headers={"X-Host-User": "new"}).json["user_id"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1


class Thing:
    """Something with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


async def find_user() -> str:
    return "7"


ID = UUID("0af76519-16cd-43dd-8448-eb211c80319c")


IDS = [
    ("u-17", "u-17"),
    (17, "17"),
    (0, "0"),
    (ID, str(ID)),
    (Thing(id=17), "17"),
    (Thing(id=ID), str(ID)),
    (Thing(get_id=lambda: "u-17", id=5), "u-17"),
    (Thing(get_id=lambda: "u-17", is_authenticated=True, is_anonymous=False), "u-17"),
    (LocalProxy(lambda: "u-17"), "u-17"),
    (LocalProxy(lambda: Thing(get_id=lambda: "u-17", is_authenticated=True)), "u-17"),
]


@pytest.fixture
def embed_user(embed: Any) -> Any:
    """A host whose ``current_user`` returns, or does, what the list has."""
    user: list[Any] = [None]
    host = embed(current_user=lambda: user[0]() if callable(user[0]) else user[0])
    return host.world, user


SQLITE = pytest.mark.parametrize("database", ["sqlite"])


@SQLITE
def test_current_user_is_an_id_or_has_one(embed_user: Any) -> None:
    world, user = embed_user
    for given, name in IDS:
        for _ in range(2):
            user[0] = (lambda found: lambda: found)(given)
            assert world.call("GET", f"{PREFIX}/auth/me").json["username"] == f"host:{name}"
    assert sorted(user_rows(world)) == sorted({f"host:{name}" for _, name in IDS})


def user_rows(world: World) -> list[str]:
    with world.transaction() as tx:
        return list(tx.exec_driver_sql("SELECT username FROM jobapi_users").scalars())


ANONYMOUS = [
    None,
    LocalProxy(lambda: None),
    Thing(get_id=lambda: None, is_authenticated=False, is_anonymous=True),
    LocalProxy(lambda: Thing(get_id=lambda: None, is_authenticated=False)),
    Thing(get_id=lambda: "7", is_authenticated=False),
    Thing(id=7, is_authenticated=lambda: False),
    Thing(id=7, is_anonymous=True),
    Thing(id=None),
]


@SQLITE
def test_current_user_who_has_not_logged_in_is_401(embed_user: Any) -> None:
    world, user = embed_user
    for given in ANONYMOUS:
        user[0] = (lambda found: lambda: found)(given)
        for method, path in (("GET", "/workspace"), ("POST", "/workspace"), ("GET", "/jobs")):
            response = world.call(method, PREFIX + path, json={"name": "Mine"})
            assert response.status_code == 401
            assert response.json["type"].endswith(":token-missing")
    assert user_rows(world) == []


NO_IDS = [
    lambda: False,
    lambda: True,
    lambda: b"7",
    lambda: 7.0,
    lambda: object(),
    lambda: Thing(name="anna"),
    lambda: Thing(id=True),
    lambda: Thing(id=b"7"),
    lambda: Thing(get_id=lambda: object()),
    lambda: {"id": 7},
    lambda: [7],
    lambda: (7,),
    find_user,
    lambda: LocalProxy(object),
    lambda: "",
    lambda: "  ",
    lambda: "x" * 201,
    lambda: "a\x00b",
    lambda: str(None),
    lambda: str(object()),
]


@SQLITE
def test_current_user_without_an_id_is_500_and_logged(
    embed_user: Any, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    world, user = embed_user
    for make in NO_IDS:
        user[0] = make
        caplog.clear()
        response = world.call("POST", f"{PREFIX}/workspace", json={"name": "Mine"})
        assert response.status_code == 500
        assert response.mimetype == PROBLEM
        assert "the current user" in caplog.text
    assert user_rows(world) == []


def test_host_user_takes_what_the_log_in_gives(embed: Any) -> None:
    world = embed(current_user=who).world
    with world.transaction() as tx:
        by_object = accounts.host_user(tx, Thing(id=17))
        assert accounts.host_user(tx, 17).id == by_object.id
        for wrong in (None, b"17", True):
            with pytest.raises(ValueError, match="user"):
                accounts.host_user(tx, wrong)


SITES: list[tuple[dict[str, str], int]] = [
    ({"Origin": ORIGIN}, 201),
    ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, 201),
    ({"Origin": ORIGIN.upper(), "Sec-Fetch-Site": "same-site"}, 201),
    ({"Origin": f"{ORIGIN}.evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
    ({"Origin": "https://evil.example", "Authorization": "Token u-1"}, 201),
    ({"Origin": "https://evil.example", "Authorization": "Basic dTp1"}, 403),
    ({"Origin": "https://evil.example", "Authorization": "Negotiate x"}, 403),
    ({"Origin": "https://evil.example", "Authorization": ""}, 403),
    ({"Origin": "https://evil.example", "Cookie": "session=u-1"}, 403),
    ({"Host": "host.example", "Origin": "https://host.example:8443"}, 201),
    ({"Host": "host.example:443", "Origin": "https://host.example"}, 201),
    ({"Host": "host.example:5000", "Origin": "http://host.example:8080"}, 403),
    ({"Host": "host.example", "Origin": "https://host.example.evil.example"}, 403),
    ({"Host": "host.example", "Origin": "https://evil.example:8443"}, 403),
    ({"Origin": "http://[::1"}, 403),
    ({"Origin": "null"}, 403),
]


@SQLITE
def test_origin_that_is_allowed_and_tokens_of_the_hosts_are_no_other_site(embed: Any) -> None:
    world = embed(current_user=lambda: "u-1", JOBAPI_CORS_ORIGINS=ORIGIN).world
    for headers, status in SITES:
        response = world.call("POST", f"{PREFIX}/workspace", json={"name": "M"}, headers=headers)
        assert response.status_code == status, headers


@SQLITE
def test_cors_for_all_origins_lets_no_cookie_pass(embed: Any) -> None:
    world = embed(current_user=lambda: "u-1", JOBAPI_CORS_ORIGINS="*").world
    headers = {"Origin": "https://evil.example"}
    response = world.call("POST", f"{PREFIX}/workspace", json={"name": "M"}, headers=headers)
    assert response.status_code == 403


# What the host raises around our views


class NotLoggedIn(Exception):
    """One of the host's own."""


class LimitReached(TooManyRequests):
    """As flask-limiter has one."""


def hooked(raised: Exception) -> Flask:
    """A host with a hook that raises on request; no request of it needs a database."""
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32

    @app.before_request
    def check() -> None:
        if "X-Raise" in request.headers:
            raise raised

    app.add_url_rule("/me", "me", lambda: "me")
    JobAPI(app, url_prefix=PREFIX)
    return app


def ask(app: Flask, path: str = f"{PREFIX}/jobs") -> Any:
    """A request that the hook raises in."""
    return app.test_client().get(path, headers={"X-Raise": "yes"})


def test_form_that_a_hook_of_the_hosts_has_read_is_415() -> None:
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32
    app.before_request(lambda: request.values.get("lang") and None)
    JobAPI(app, url_prefix=PREFIX)
    client = app.test_client()
    log_in = f"{PREFIX}/auth/login"
    for sent in (
        {"data": {"username": "anna"}},
        {"data": {"file": (io.BytesIO(b"x"), "name")}},
        {"data": b'{"username": "anna"}', "content_type": "application/x-www-form-urlencoded"},
    ):
        response = client.post(log_in, **sent)
        assert response.status_code == 415
        assert "application/json" in response.json["detail"]
    assert client.post(log_in, json={}).status_code == 422
    assert client.post(log_in, data={}).status_code == 400


def test_exception_of_the_hosts_is_answered_by_the_host() -> None:
    app = hooked(NotLoggedIn())
    app.register_error_handler(NotLoggedIn, lambda error: ("host: log in", 401))
    app.register_error_handler(Exception, lambda error: ("host: everything", 500))
    for path in (f"{PREFIX}/jobs", f"{PREFIX}/nowhere", f"{PREFIX}/docs", "/me"):
        response = ask(app, path)
        assert (response.status_code, response.text) == (401, "host: log in")


def refuse() -> Any:
    """Stands for a query of the host's database that raises."""
    raise NotLoggedIn


class Lazy:
    """A user whose attributes are looked up when they are asked for."""

    def __init__(self, late: str) -> None:
        self.late = late

    def __getattr__(self, name: str) -> Any:
        return refuse() if name == self.late else None


LATE = [
    refuse,
    lambda: LocalProxy(refuse),
    lambda: Lazy("is_authenticated"),
    lambda: Lazy("id"),
    lambda: Thing(get_id=refuse),
]


@pytest.mark.parametrize("current_user", LATE)
def test_exception_of_current_user_is_answered_by_the_host_however_late(current_user: Any) -> None:
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32
    app.register_error_handler(NotLoggedIn, lambda error: ("host: log in", 401))
    JobAPI(app, url_prefix=PREFIX, current_user=current_user)
    client = app.test_client()
    for path in ("/jobs", "/workspace/1/events/stream", "/auth/me"):
        response = client.get(PREFIX + path)
        assert (response.status_code, response.text) == (401, "host: log in")
    claim = client.post(f"{PREFIX}/workspace/1/jobs/claim", json={})
    assert (claim.status_code, claim.text) == (401, "host: log in")


def test_one_application_context_for_many_requests_leaves_the_hosts_answers_alone() -> None:
    app = hooked(NotLoggedIn())
    before = dict(app.test_client().get("/me").headers)
    with app.app_context():
        client = app.test_client()
        assert client.get(f"{PREFIX}/health/live").status_code == 200
        assert dict(client.get("/me").headers) == before


@pytest.mark.parametrize("page", [False, True])
def test_exception_of_the_hosts_without_a_handler_is_a_fault_and_logged(
    page: bool, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    app = hooked(NotLoggedIn())
    if page:
        app.register_error_handler(Exception, lambda error: ("host: everything", 500))
        app.register_error_handler(500, lambda error: ("host: 500", 500))
    response = ask(app)
    assert response.status_code == 500
    assert response.mimetype == PROBLEM
    assert "NotLoggedIn" in caplog.text


def test_limiter_with_a_handler_for_its_own_exception_answers() -> None:
    app = hooked(LimitReached("5 per minute"))
    app.register_error_handler(LimitReached, lambda error: ("host: slow down", 429))
    assert ask(app).text == "host: slow down"


def test_row_that_a_hook_of_the_hosts_may_not_write_is_a_fault() -> None:
    refused = sqlite3.connect(":memory:")
    refused.execute("PRAGMA foreign_keys = on")
    refused.execute("CREATE TABLE a (i INTEGER PRIMARY KEY, b REFERENCES a)")
    with pytest.raises(sqlite3.IntegrityError) as raised:
        refused.execute("INSERT INTO a (b) VALUES (7)")
    response = ask(hooked(IntegrityError("INSERT INTO a", {}, raised.value)))
    assert response.status_code == 500
    assert response.json["type"].endswith(":internal-error")


class InsufficientStorage(HTTPException):
    """Werkzeug has none for 507."""

    code = 507
    description = "Full."


RAISED: list[tuple[HTTPException, str, dict[str, str]]] = [
    (ServiceUnavailable("Noon.", retry_after=120), "unavailable", {"Retry-After": "120"}),
    (ServiceUnavailable("Back soon."), "unavailable", {"Retry-After": "1"}),
    (LimitReached("5 a minute", retry_after=7), "too-many-requests", {"Retry-After": "7"}),
    (LimitReached("5 a minute"), "too-many-requests", {"Retry-After": "1"}),
    (
        Unauthorized("Who?", www_authenticate=WWWAuthenticate("digest", {"realm": "x"})),
        "token-invalid",
        {"WWW-Authenticate": 'Digest realm="x"'},
    ),
    (Forbidden("No."), "forbidden", {}),
    (Gone("It was here."), "bad-request", {}),
    (ImATeapot("Tea."), "bad-request", {}),
    (BadGateway("The other is away."), "unavailable", {}),
    (GatewayTimeout("It is slow."), "unavailable", {}),
    (InsufficientStorage(), "unavailable", {}),
    (NotImplemented("Not yet."), "internal-error", {}),
]


@pytest.mark.parametrize(("raised", "kind", "headers"), RAISED)
def test_http_exception_of_a_hook_keeps_its_status_and_headers(
    raised: HTTPException, kind: str, headers: Any
) -> None:
    app = hooked(raised)
    # What the host shows for a status is for its own routes.
    code = raised.code or 0
    if code in default_exceptions:
        app.register_error_handler(code, lambda error: ("host page", code))
    app.register_error_handler(HTTPException, lambda error: ("host page", code))
    response = ask(app)
    assert response.status_code == raised.code
    assert response.mimetype == PROBLEM
    assert response.json["type"] == f"urn:jobapi:problem:{kind}"
    assert response.json["status"] == raised.code
    assert kind == "internal-error" or response.json["detail"] == raised.description
    for name, value in headers.items():
        assert response.headers.get_all(name) == [value]
    assert ask(app, "/me").text == "host page"


def test_server_error_of_a_hook_is_logged(caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    assert ask(hooked(InternalServerError())).mimetype == PROBLEM
    assert "InternalServerError" in caplog.text


def test_response_that_a_hook_aborts_with_is_kept() -> None:
    app = hooked(HTTPException(response=Response("the host's own", 418)))
    assert (ask(app).status_code, ask(app).text) == (418, "the host's own")


def test_page_of_the_hosts_for_a_status_is_never_on_our_routes() -> None:
    app = hooked(NotLoggedIn())
    for status in default_exceptions:
        app.register_error_handler(status, lambda error: ("host page", error.code))
    client = app.test_client()
    big = b"x" * (1024 * 1024 + 1)
    log_in = f"{PREFIX}/auth/login"
    for response, status in (
        (client.post(log_in, data=big, content_type="application/json"), 413),
        (client.post(log_in, data=b"{", content_type="application/json"), 400),
        (client.post(log_in, data=b"x"), 415),
        (client.post(log_in, json={}), 422),
        (client.get(f"{PREFIX}/docs/files/nothing"), 404),
        (client.get(f"{PREFIX}/dashboard/files/x/nothing"), 404),
        (client.get(f"{PREFIX}/nowhere"), 404),
        (client.put(f"{PREFIX}/jobs"), 405),
        (client.get(f"{PREFIX}/jobs"), 401),
    ):
        assert response.status_code == status
        assert response.mimetype == PROBLEM
    assert client.get("/nowhere").text == "host page"


EXPIRED = timedelta(seconds=-10)


@SQLITE
@pytest.mark.parametrize("optional", [True, False])
def test_flask_jwt_extended_of_the_hosts_answers_for_its_tokens(embed: Any, optional: bool) -> None:
    def current_user() -> Any:
        verify_jwt_in_request(optional=optional)
        return get_jwt_identity()

    host = embed(current_user=current_user)
    client = host.app.test_client()
    with host.app.app_context():
        good, expired = (create_access_token("7", expires_delta=d) for d in (None, EXPIRED))

    def both(token: str | None) -> tuple[Any, Any]:
        headers = {} if token is None else {"Authorization": f"Token {token}"}
        return (client.get(path, headers=headers) for path in (f"{PREFIX}/auth/me", "/me"))

    ours, _ = both(good)
    assert ours.json["username"] == "host:7"
    for token, status in ((expired, 401), ("x", 422), (f"{good}x", 422)):
        ours, theirs = both(token)
        assert (ours.status_code, ours.json) == (theirs.status_code, theirs.json)
        assert ours.status_code == status
    ours, theirs = both(None)
    assert ours.status_code == 401
    assert ours.mimetype == (PROBLEM if optional else theirs.mimetype)


# Routes beside ours


@pytest.mark.parametrize("early", [True, False])
def test_catch_all_of_the_hosts_is_not_below_our_prefix(
    early: bool,
) -> None:
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32

    def page(path: str = "") -> str:
        return f"host: {path}"

    def add() -> None:
        app.add_url_rule("/<path:path>", "page", page, methods=["GET", "POST", "PUT"])
        app.add_url_rule(f"{PREFIX}/mine", "mine", lambda: "mine", methods=["POST"])

    if early:
        add()
    JobAPI(app, url_prefix=PREFIX)
    if not early:
        add()
    client = app.test_client()
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "BREW"):
        for path in ("/nowhere", "/workspaces/1/jobs", "/", "/a/b/c/", "/%2F", "/docs/"):
            response = client.open(PREFIX + path, method=method)
            assert response.status_code == 404, (method, path)
            assert response.mimetype == PROBLEM
    for method, path, allowed in (
        ("GET", "/auth/login", "OPTIONS, POST"),
        ("PUT", "/jobs", "GET, HEAD, OPTIONS"),
        ("DELETE", "/workspace/1/jobs/claim", "OPTIONS, POST"),
        ("BREW", "/workspace/1/jobs/x", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/mine", "OPTIONS, POST"),
    ):
        response = client.open(PREFIX + path, method=method)
        assert response.status_code == 405
        assert response.mimetype == PROBLEM
        assert response.headers["Allow"] == allowed
    assert client.post(f"{PREFIX}/mine").text == "mine"
    assert client.options(f"{PREFIX}/jobs").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "Allow" not in client.options(f"{PREFIX}/nowhere").headers
    # The host may look through all rules, and its own routes stay its own.
    allowed = client.options(f"{PREFIX}/mine").headers["Allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD", "OPTIONS", "POST", "PUT"}
    assert app.test_cli_runner().invoke(routes_command).exit_code == 0
    assert all(rule.methods is not None for rule in app.url_map.iter_rules())
    assert client.get("/nowhere").text == "host: nowhere"
    assert client.get(f"{PREFIX}-like").text == f"host: {PREFIX[1:]}-like"
    assert client.get(PREFIX).text == f"host: {PREFIX[1:]}"


def test_static_files_of_the_hosts_at_the_root_are_not_below_our_prefix(tmp_path: Any) -> None:
    (tmp_path / "page.html").write_text("host")
    app = Flask("host", static_folder=str(tmp_path), static_url_path="")
    app.config["SECRET_KEY"] = "k" * 32
    JobAPI(app, url_prefix=PREFIX)
    client = app.test_client()
    assert client.get("/page.html", buffered=True).text == "host"
    assert client.get(f"{PREFIX}/page.html").mimetype == PROBLEM
    assert client.get(f"{PREFIX}/auth/login").status_code == 405


def test_untrusted_host_header_below_the_prefix_is_a_problem() -> None:
    app = hooked(NotLoggedIn())
    app.config["TRUSTED_HOSTS"] = ["host.example"]
    app.register_error_handler(400, lambda error: ("host page", 400))
    client = app.test_client()
    for path, mimetype in ((f"{PREFIX}/jobs", PROBLEM), ("/me", "text/html")):
        response = client.get(path, headers={"Host": "evil.example"})
        assert (response.status_code, response.mimetype) == (400, mimetype)
    assert client.get("/me", headers={"Host": "host.example"}).text == "me"


@SQLITE
def test_url_defaults_of_the_host_do_not_break_our_pages(embed: Any) -> None:
    host = embed()
    host.app.url_default_functions.setdefault(None, []).append(
        lambda endpoint, values: values.setdefault("lang", "en")
    )
    page = host.world.call("GET", f"{PREFIX}/docs").text
    assert f'src="{PREFIX}/docs/files/swagger-ui-bundle.js"' in page
    page = host.world.call("GET", f"{PREFIX}/dashboard").text
    assert "?lang=" not in page
    token = host.world.token(host.world.user())
    made = host.world.call("POST", f"{PREFIX}/workspace", token, json={"name": "M"})
    assert "?" not in made.headers["Location"]


def test_host_with_host_matching_is_refused_with_what_to_do() -> None:
    app = Flask("host", host_matching=True, static_host="host.example")
    app.config["SECRET_KEY"] = "k" * 32
    with pytest.raises(ConfigError, match="host_matching"):
        JobAPI(app, url_prefix=PREFIX)


# Our services in the host's own transaction


def test_job_is_created_in_the_hosts_own_transaction_or_not_at_all(embed: Any) -> None:
    host = embed(current_user=who)
    with host.app.app_context():
        session = host.db.session
        user = accounts.host_user(session, "u-1")
        workspace = workspaces.create(session, "Mine", owner_id=user.id)
        session.execute(host.db.text("INSERT INTO users (name) VALUES ('kept')"))
        kept = jobs.create(session, workspace.id, created_by=user.id, job_type="kept")
        session.commit()
        session.execute(host.db.text("INSERT INTO users (name) VALUES ('rolled back')"))
        jobs.create(session, workspace.id, created_by=user.id, job_type="rolled_back")
        changed = jobs.cancel(session, workspace.id, kept.job_id)
        assert changed.version == kept.version + 1
        session.rollback()
        names = session.scalars(host.db.text("SELECT name FROM users ORDER BY id")).all()
    assert names == ["host's own user", "kept"]
    listed = as_host_user(host.world, "GET", f"/workspace/{workspace.id}/jobs", "u-1").json
    assert [(job["job_type"], job["status"]) for job in listed["data"]] == [("kept", "pending")]
    assert listed["data"][0]["job_id"] == kept.job_id


def test_bind_of_the_hosts_is_used(new_database: Any, database: str) -> None:
    theirs, ours = new_database(database), new_database(database)
    binds = {"jobapi": ours.replace("postgresql://", "postgresql+psycopg://")}
    host = Host(theirs, SQLALCHEMY_BINDS=binds)
    user = host.world.user()
    workspace = host.world.workspace(user)
    host.world.member(workspace, Role.VIEWER)
    with host.app.app_context():
        assert inspect(host.db.engine).get_table_names() == ["users"]
        assert "jobapi_jobs" in inspect(host.db.engines["jobapi"]).get_table_names()
    host.close()


def test_database_of_our_own_is_used_where_it_is_set(new_database: Any, database: str) -> None:
    theirs, ours = new_database(database), new_database(database)
    host = Host(theirs, JOBAPI_DATABASE_URL=ours)
    host.world.workspace(host.world.user())
    with host.app.app_context():
        assert inspect(host.db.engine).get_table_names() == ["users"]
    host.close()


# Wiring


def test_command_line_is_flasks(embed: Any) -> None:
    host = embed()
    runner = host.app.test_cli_runner()
    done = runner.invoke(args=["jobapi", "users", "create", "anna", "--password", PASSWORD])
    assert done.exit_code == 0, done.output
    done = runner.invoke(args=["jobapi", "db", "check"])
    assert done.exit_code == 0, done.output


def test_application_takes_one_job_api() -> None:
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32
    api = JobAPI(url_prefix="/x")
    api.init_app(app)
    with pytest.raises(RuntimeError, match="call JobAPI once"):
        JobAPI(app)
    other = Flask("other")
    other.config["SECRET_KEY"] = "k" * 32
    api.init_app(other)
    assert other.test_client().get("/x/health/live").status_code == 200


@pytest.mark.parametrize("prefix", ["jobs", "/jobs/", "/"])
def test_prefix_that_cannot_be_is_refused(prefix: str) -> None:
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32
    with pytest.raises(ConfigError, match="url_prefix"):
        JobAPI(app, url_prefix=prefix)


@pytest.mark.parametrize("secret", [None, "", "dev", b"short"])
def test_host_without_a_secret_is_told_what_to_do(secret: Any) -> None:
    app = Flask("host")
    app.config["SECRET_KEY"] = secret
    with pytest.raises(ConfigError, match="JOBAPI_SECRET_KEY"):
        JobAPI(app)


def test_secret_of_the_hosts_is_derived_and_not_used_itself() -> None:
    keys = set()
    for config in ({"SECRET_KEY": "k" * 32}, {"SECRET_KEY": b"k" * 32}):
        app = Flask("host")
        app.config |= config
        JobAPI(app)
        keys.add(app.extensions["jobapi"].private.config["JWT_SECRET_KEY"])
    assert len(keys) == 1
    assert "k" * 32 not in keys


def test_request_never_waits_for_a_second_connection_of_the_host_s_pool(embed: Any) -> None:
    found: list[Any] = []

    def current_user() -> int:
        # The host's session keeps its connection until the request ends.
        return int(found[0].session.scalars(found[0].select(found[0].literal(7))).one())

    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.5}
    host = embed(current_user=current_user, SQLALCHEMY_ENGINE_OPTIONS=options)
    found.append(host.db)
    made = host.world.call("POST", f"{PREFIX}/workspace", json={"name": "W"})
    assert made.status_code == 201
    workspace_id = made.json["workspace_id"]
    path = f"{PREFIX}/workspace/{workspace_id}/jobs"
    body = {"job_type": "x", "workspace_id": workspace_id}
    for _ in range(3):
        assert host.world.call("POST", path, json=body).status_code == 201
    assert host.world.call("GET", path).json["pagination"]["total"] == 3


def test_host_s_connection_is_free_while_a_claim_waits(embed: Any) -> None:
    found: list[Any] = []

    def current_user() -> int:
        found[0].session.execute(found[0].text("SELECT count(*) FROM users")).all()
        return 7

    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    host = embed(
        current_user=current_user,
        SQLALCHEMY_ENGINE_OPTIONS=options,
        JOBAPI_LISTEN_ENABLED=False,
    )
    found.append(host.db)
    workspace_id = host.world.call("POST", f"{PREFIX}/workspace", json={"name": "W"}).json[
        "workspace_id"
    ]
    path = f"{PREFIX}/workspace/{workspace_id}/jobs"
    with host.app.app_context():
        pool = host.db.engine.pool
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(
            host.world.call,
            "POST",
            f"{path}/claim",
            json={"wait_seconds": 10},
            environ_overrides={"wsgi.multithread": True},
        )
        while not len(host.world.state.waiters) and not waiting.done():
            time.sleep(0.02)
        while pool.checkedout() and not waiting.done():
            time.sleep(0.02)
        assert not waiting.done()
        body = {"job_type": "x", "workspace_id": workspace_id}
        assert host.world.call("POST", path, json=body).status_code == 201
        assert len(waiting.result().json["data"]) == 1


def test_what_the_host_has_written_is_kept_while_a_claim_waits(embed: Any) -> None:
    found: list[Any] = []

    def current_user() -> int:
        db = found[0]
        db.session.execute(db.text("INSERT INTO users (name) VALUES ('seen')"))
        return 7

    host = embed(current_user=lambda: 7)
    with host.app.test_request_context():
        found.append(host.db)
        current_user()
        host.world.state.end_host_reads()
        names = host.db.session.scalars(host.db.text("SELECT name FROM users")).all()
        assert "seen" in names
        host.db.session.commit()


def test_database_of_the_host_that_is_unsupported_is_refused_with_what_to_do(
    new_database: Any, database: str
) -> None:
    app, db = make_host(new_database(database))
    JobAPI(app, url_prefix=PREFIX)
    with app.app_context():
        engines = db.engines
        engine = engines[None]
    # As the usual recipe for tests has it; and another database, whose driver is never asked.
    with engine.connect() as connection:
        for found in (connection, create_engine("mysql+mysqldb://h/d", module=sqlite3)):
            engines[None] = found
            with pytest.raises(ConfigError, match="Set JOBAPI_DATABASE_URL"):
                _ = app.extensions["jobapi"].engine
    with app.app_context():
        db.session.remove()
    engine.dispose()
