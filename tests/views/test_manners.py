"""HTTP details for production: headers, CORS, HEAD and OPTIONS, proxies, health, logs."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from jobapi import create_app, logs

from ..conftest import SECRET
from ..factories import PASSWORD, Desk, World
from ..served import Service

ORIGIN = "https://app.example.com"


# Headers


@pytest.mark.parametrize("path", ["/health/live", "/jobs", "/nowhere", "/openapi.json"])
def test_every_answer_has_a_request_id_and_security_headers(app: Flask, path: str) -> None:
    headers = app.test_client().get(path).headers
    assert len(headers["X-Request-Id"]) == 32
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "Cache-Control" in headers


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123", True),
        ("0af7651916cd43dd8448eb211c80319c", True),
        ("", False),
        ("x" * 129, False),
        ("two words", False),
        ('"quoted"', False),
        ("\xff", False),
    ],
)
def test_request_id_that_was_sent_is_kept_where_it_is_harmless(
    app: Flask, given: str, kept: bool
) -> None:
    response = app.test_client().get("/health/live", headers={"X-Request-Id": given})
    assert (response.headers["X-Request-Id"] == given) == kept


def test_jobs_are_cached_with_revalidation_and_all_else_is_not_stored(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    assert desk.get(f"/{job_id}").headers["Cache-Control"] == "private, no-cache"
    assert desk.get().headers["Cache-Control"] == "no-store"


# HEAD, OPTIONS and CORS


def test_head_answers_as_get_without_the_body(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    for path in (desk.jobs_path, f"{desk.jobs_path}/{job_id}", "/auth/me", "/workspace"):
        get, head = desk.call("GET", path), desk.call("HEAD", path)
        assert head.status_code == 200
        assert head.data == b""
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert desk.world.call("HEAD", desk.jobs_path).status_code == 401
    assert desk.call("HEAD", "/workspace/999/jobs").status_code == 404


def test_options_of_a_name_beside_a_variable_are_the_names_own(desk: Desk) -> None:
    response = desk.world.call("OPTIONS", f"{desk.jobs_path}/claim")
    assert response.status_code == 200
    assert response.headers["Allow"] == "OPTIONS, POST"


def test_options_says_what_is_allowed_without_a_token(desk: Desk) -> None:
    response = desk.world.call("OPTIONS", desk.jobs_path)
    assert response.status_code == 200
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def preflight(app: Flask, origin: str = ORIGIN, path: str = "/workspace/1/jobs") -> Any:
    return app.test_client().options(
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization, content-type, if-match",
        },
    )


def test_cors_preflight_of_another_method_allows_nothing(make_app: Any, new_database: Any) -> None:
    client = make_app(new_database("sqlite"), JOBAPI_CORS_ORIGINS=ORIGIN).test_client()
    for method, allowed in (("PATCH", True), ("TRACE", False), ("", False)):
        headers = {"Origin": ORIGIN, "Access-Control-Request-Method": method}
        answer = client.options("/jobs", headers=headers)
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        for name in ("Methods", "Headers"):
            assert (f"Access-Control-Allow-{name}" in answer.headers) == allowed, method


def test_cors_is_off_by_default(desk: Desk) -> None:
    app = desk.world.app
    for response in (preflight(app), desk.get(headers={"Origin": ORIGIN})):
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_cors_is_for_the_origins_that_are_set(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"), JOBAPI_CORS_ORIGINS=f"{ORIGIN}, http://localhost:3000")
    asked = preflight(app)
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "PATCH" in asked.headers["Access-Control-Allow-Methods"]
    allowed = asked.headers["Access-Control-Allow-Headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "if-match"))
    assert "Access-Control-Allow-Credentials" not in asked.headers
    assert "Access-Control-Allow-Origin" not in preflight(app, "https://evil.example").headers
    # Errors too, or the page could not read them.
    for path in ("/jobs", "/nowhere"):
        response = app.test_client().get(path, headers={"Origin": ORIGIN})
        assert response.status_code in (401, 404)
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "ETag" in response.headers["Access-Control-Expose-Headers"]
        assert "Origin" in response.headers["Vary"]


def test_cors_compares_origins_as_texts(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"), JOBAPI_CORS_ORIGINS=f"{ORIGIN},http://[::1]:3000")
    for origin, allowed in (
        (ORIGIN, True),
        (ORIGIN.upper(), True),
        ("http://[::1]:3000", True),
        (f"{ORIGIN}.evil.org", False),
        ("https://appXexample.com", False),
        ("http://:", False),
        ("http://1:3000", False),
    ):
        answer = app.test_client().get("/jobs", headers={"Origin": origin})
        assert ("Access-Control-Allow-Origin" in answer.headers) == allowed, origin


def test_cors_with_any_origin_answers_a_star(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"), JOBAPI_CORS_ORIGINS="*")
    assert preflight(app).headers["Access-Control-Allow-Origin"] == "*"


# Proxies

FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "jobs.example.com",
    "X-Forwarded-Prefix": "/api",
}


def test_forwarded_headers_of_trusted_proxies_are_used(make_app: Any, new_database: Any) -> None:
    desk = Desk(World(make_app(new_database("sqlite"), JOBAPI_TRUSTED_PROXIES="1")))
    body = {"job_type": "x", "workspace_id": desk.workspace_id}
    created = desk.post(json=body, headers=FORWARDED)
    assert created.headers["Location"].startswith("/api/workspace/")
    document = desk.call("GET", "/openapi.json", headers=FORWARDED).json
    assert document["servers"] == [{"url": "https://jobs.example.com/api"}]
    page = desk.call("GET", "/docs", headers=FORWARDED).text
    assert 'src="/api/docs/own/swagger.js"' in page
    assert 'data-openapi="/api/openapi.json" data-server="/api"' in page


def test_forwarded_headers_by_default_are_ignored(desk: Desk) -> None:
    """Otherwise any client could evade the limit of failed logins."""
    body = {"username": "anna", "password": "wrong"}
    answers = [
        desk.world.call(
            "POST", "/auth/login", json=body, headers={"X-Forwarded-For": f"203.0.113.{n}"}
        ).status_code
        for n in range(22)
    ]
    assert answers == [401] * 20 + [429] * 2
    created = desk.post(
        json={"job_type": "x", "workspace_id": desk.workspace_id}, headers=FORWARDED
    )
    assert created.headers["Location"].startswith("/workspace/")


@pytest.mark.parametrize(
    ("prefix", "kept"),
    [
        ("/api", "/api"),
        ("/api/", "/api"),
        ("/a/b-c_d.e~1", "/a/b-c_d.e~1"),
        ("//evil.example", ""),
        ("https://evil.example", ""),
        ("/\\evil.example", ""),
        ("evil", ""),
        ("/a//b", ""),
        ('/"><script>', ""),
        ("/\x7fb", ""),
        ("/a?b", ""),
        ("/a#b", ""),
        ("/", ""),
    ],
)
def test_forwarded_prefix_is_used_only_if_valid(prefix: str, kept: str) -> None:
    settings = {"JOBAPI_SECRET_KEY": SECRET, "JOBAPI_MAINTENANCE_ENABLED": False}
    app = create_app({**settings, "JOBAPI_TRUSTED_PROXIES": 1})
    for said in (
        {"headers": {"X-Forwarded-Prefix": prefix}},
        {"environ_overrides": {"SCRIPT_NAME": prefix}},
    ):
        document = app.test_client().get("/openapi.json", **said).json
        assert document["servers"][0]["url"] == f"http://localhost{kept}"
        page = app.test_client().get("/docs", **said).text
        assert f'src="{kept}/docs/own/swagger.js"' in page
        assert "evil" not in page


# Refusals of the server's own


def raw(service: Service, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to what is sent as it is."""
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = {}
            while line := answer.readline().strip():
                name, _, value = line.decode().partition(": ")
                headers[name] = value
            return status, headers, answer.read(int(headers["Content-Length"]))


HEAD = b"Host: x\r\nConnection: close\r\n"
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
LOGIN = b"POST /auth/login HTTP/1.1\r\n" + HEAD + CHUNKED + b"\r\n"
REFUSED = {
    "long line": (b"GET /jobs?x=%b HTTP/1.1\r\n" % (b"x" * 17_000) + HEAD, 414),
    "long header": (b"GET /jobs HTTP/1.1\r\nX-Long: %b\r\n" % (b"x" * 9_000) + HEAD, 431),
    "many headers": (b"GET /jobs HTTP/1.1\r\n" + b"X-One: 1\r\n" * 120 + HEAD, 431),
    "no HTTP": (b"HELLO\r\n" + HEAD, 400),
    "wrong version": (b"GET /jobs HTTP/7.7\r\n" + HEAD, 400),
    "wrong header": (b"GET /jobs HTTP/1.1\r\nbad header: x\r\n" + HEAD, 400),
    "folded header": (b"GET /jobs HTTP/1.1\r\nX-One: 1\r\n  2\r\n" + HEAD, 400),
    "unknown coding": (b"POST /jobs HTTP/1.1\r\nTransfer-Encoding: zip\r\n" + HEAD, 501),
    "expectation": (b"POST /jobs HTTP/1.1\r\nExpect: tea\r\n" + HEAD, 417),
    "prefix by a header": (b"GET /health/live HTTP/1.1\r\nSCRIPT_NAME: /foo\r\n" + HEAD, 200),
    "path by a header": (b"GET /health/live HTTP/1.1\r\nPATH_INFO: /jobs\r\n" + HEAD, 200),
    "scheme": (b"GET /health/live HTTP/1.1\r\nX-Forwarded-Proto: https\r\n" + HEAD, 200),
    "schemes": (
        b"GET /health/live HTTP/1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n" + HEAD,
        200,
    ),
    "8 KiB of query": (
        b"GET /workspace/1/jobs?%b HTTP/1.1\r\n" % b"&".join([b"job_type=" + b"x" * 95] * 80)
        + HEAD,
        401,
    ),
}
MALFORMED = [
    b"-2\r\n{}\r\n",
    b"0x2\r\n{}\r\n",
    b"0_2\r\n{}\r\n",
    b"2;a\n=b\r\n{}\r\n",
    b"2\r\n{}xx",
]


@pytest.mark.parametrize("database", ["sqlite"])
def test_request_refused_by_the_server_is_a_problem(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "2", JOBAPI_LOG_FORMAT="json")
    cases = {name: (head + b"\r\n", status) for name, (head, status) in REFUSED.items()}
    cases |= {repr(chunks): (LOGIN + chunks + b"0\r\n\r\n", 400) for chunks in MALFORMED}
    cases["too large"] = (LOGIN + b"200000\r\n" + b" " * 0x110000, 413)
    for name, (request, wanted) in cases.items():
        status, headers, body = raw(service, request)
        assert status == wanted, name
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert len(headers["X-Request-Id"]) == 32
        if status != 200:
            assert headers["Content-Type"] == "application/problem+json", name
            problem = json.loads(body)
            assert problem["status"] == status
            assert problem["type"].startswith("urn:jobapi:problem:")
            assert problem["detail"]
    assert not [line for line in service.lines() if line["level"] == "ERROR"]


@pytest.mark.parametrize("database", ["sqlite"])
def test_refuse_body_unread_keeps_or_closes_the_connection(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "2")
    address = service.url.removeprefix("http://")
    path = "/workspace/1/jobs"
    for size, kept in ((10, True), (200_000, True), (1_500_000, True), (2_500_000, False)):
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.request("POST", path, b"x" * size, {"Authorization": "Bearer expired"})
        response = connection.getresponse()
        assert response.status == 401
        response.read()
        assert (response.getheader("Connection") == "keep-alive") == kept, size
        if kept:
            # Not on another one that it opens.
            connection.auto_open = 0
            connection.request("GET", "/health/live")
            assert connection.getresponse().status == 200
        connection.close()
    malformed = LOGIN.replace(b"Connection: close\r\n", b"") + b"-2\r\n{}\r\n"
    assert raw(service, malformed)[1]["Connection"] == "close"


# Health


def test_ready_knows_the_migration_version(world: World) -> None:
    client = world.client
    assert client.get("/health/ready").json == {"status": "ok"}
    with world.transaction() as tx:
        known = tx.execute(text("SELECT version_num FROM jobapi_alembic_version")).scalar_one()
        tx.execute(text("UPDATE jobapi_alembic_version SET version_num = 'older'"))
    try:
        behind = client.get("/health/ready")
        assert behind.status_code == 503
        assert "older" in behind.json["detail"]
        assert "jobapi db upgrade" in behind.json["detail"]
        assert client.get("/health/live").status_code == 200
    finally:
        with world.transaction() as tx:
            tx.execute(text("UPDATE jobapi_alembic_version SET version_num = :v"), {"v": known})
    assert client.get("/health/ready").status_code == 200


def test_ready_on_an_empty_database_says_what_to_run(
    make_app: Any, new_database: Any, database: str
) -> None:
    app = make_app(new_database(database), migrate=False)
    response = app.test_client().get("/health/ready")
    assert response.status_code == 503
    assert "migration none" in response.json["detail"]


# Logs


def test_log_has_one_object_per_request_and_no_secret(serve: Any, service_url: str) -> None:
    service = serve(JOBAPI_LOG_FORMAT="json")
    secrets = [SECRET, PASSWORD, "wr0ng-guess", "n3w-password", "$argon2id$"]
    client = service.client("boss", PASSWORD)
    wrong = {"username": "boss", "password": "wr0ng-guess"}
    assert client.post("/auth/login", json=wrong).status_code == 401
    right = {"username": "boss", "password": PASSWORD}
    tokens = client.post("/auth/login", json=right).json()
    key = client.post("/workspace/1/keys", json={"name": "k", "role": "member"}).json()["key"]
    secrets += [tokens["access_token"], tokens["refresh_token"], key]
    secrets.append(client.headers["Authorization"].removeprefix("Bearer "))
    # Where they do not belong: in the query, in a broken body, as a name.
    client.get("/jobs", params={"token": key, "access_token": tokens["access_token"]})
    client.post("/auth/login", content=f'{{"password": "{PASSWORD}"')
    client.post("/auth/login", json={"username": "boss", "password": [PASSWORD]})
    change = {"current_password": PASSWORD, "new_password": "n3w-password"}
    assert client.post("/auth/password", json=change).status_code == 204
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "mine-17"}
    assert client.get("/workspace/1/jobs", headers=headers).status_code == 200
    headers = {"Authorization": f"Bearer {tokens['refresh_token']}"}
    assert client.get("/jobs", headers=headers).status_code == 401
    # A fault, whose traceback is logged.
    engine = _engine(service_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobapi_users RENAME COLUMN username TO named"))
    engine.dispose()
    fault = client.post("/auth/login", json={**right, "password": "wr0ng-guess"})
    assert fault.status_code == 500
    service.stop()
    log = service.log.read_text()
    for secret in secrets:
        assert secret not in log
    lines = service.lines()
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    mine = [line for line in lines if line["request_id"] == "mine-17"]
    assert len(mine) == 1
    assert mine[0]["method"] == "GET"
    assert mine[0]["path"] == "/workspace/1/jobs"
    assert mine[0]["status"] == 200
    assert mine[0]["caller"] == "key:1"
    assert mine[0]["address"] == "127.0.0.1"
    assert isinstance(mine[0]["duration_ms"], float)
    errors = [line for line in lines if line["level"] == "ERROR"]
    assert "jobapi_users" in errors[0]["exc_info"]
    assert errors[0]["request_id"] == fault.headers["X-Request-Id"]


def _engine(url: str) -> Any:
    from sqlalchemy import create_engine

    from jobapi.store.engine import normalize_url

    return create_engine(normalize_url(url))


def test_log_path_cannot_break_the_line(app: Flask, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    with caplog.at_level("INFO", "jobapi"):
        app.test_client().get("/a%0aINFO%20forged%1b[31m?password=secret")
    message = caplog.records[-1].getMessage()
    assert "\n" not in message
    assert "\x1b" not in message
    assert "secret" not in message
    assert "/a%0AINFO%20forged" in message


def test_log_as_text_is_for_a_person(capsys: Any) -> None:
    config = logs.dict_config("INFO", "text")
    text = config["formatters"]["text"]
    record = logging.LogRecord("jobapi", logging.INFO, "x", 1, "said %s", ("this",), None)
    assert logs.RequestIdFilter().filter(record)
    line = logging.Formatter(text["format"], text["datefmt"]).format(record)
    assert re.fullmatch(r"[-0-9]+ [0-9:]+ INFO said this \[-\]", line)


def test_log_objects_are_json_though_the_message_is_odd() -> None:
    import logging.config

    from pythonjsonlogger.orjson import OrjsonFormatter

    form = dict(logs.dict_config("INFO", "json")["formatters"]["json"])
    form.pop("()")
    formatter = OrjsonFormatter(
        form.pop("fmt"), datefmt=form.pop("datefmt"), rename_fields=form.pop("rename_fields")
    )
    record = logging.LogRecord("jobapi", logging.INFO, "x", 1, 'a "quote"\n%s', ("ü",), None)
    assert json.loads(formatter.format(record))["message"] == 'a "quote"\nü'
