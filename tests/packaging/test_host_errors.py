"""Exceptions and responses of a host application's hooks around jobapi's views."""

from __future__ import annotations

import io
import logging
import sqlite3
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, Response, request
from flask_jwt_extended import create_access_token, get_jwt_identity, verify_jwt_in_request
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

from jobapi import JobAPI

from ..host import PREFIX, Thing

PROBLEM = "application/problem+json"
SQLITE = pytest.mark.parametrize("database", ["sqlite"])


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


def test_untrusted_host_header_below_the_prefix_is_a_problem() -> None:
    app = hooked(NotLoggedIn())
    app.config["TRUSTED_HOSTS"] = ["host.example"]
    app.register_error_handler(400, lambda error: ("host page", 400))
    client = app.test_client()
    for path, mimetype in ((f"{PREFIX}/jobs", PROBLEM), ("/me", "text/html")):
        response = client.get(path, headers={"Host": "evil.example"})
        assert (response.status_code, response.mimetype) == (400, mimetype)
    assert client.get("/me", headers={"Host": "host.example"}).text == "me"
