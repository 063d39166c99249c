"""Errors: all are problem details (RFC 9457), and none reveals internals."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask, got_request_exception
from sqlalchemy import text

from jobapi import errors

from ..factories import Desk, World

PROBLEM = "application/problem+json"
MEMBERS = {"type", "title", "status", "detail"}


def check(response: Any, status: int, kind: str) -> Any:
    """Check that a response is a problem of this kind, and return its body."""
    assert response.status_code == status, response.text
    assert response.mimetype == PROBLEM
    body = response.json
    extra = {"errors"} if status == 422 else set()
    assert body.keys() == MEMBERS | extra
    assert body["type"] == f"urn:jobapi:problem:{kind}"
    assert body["status"] == status
    assert isinstance(body["detail"], str)
    assert body["detail"]
    assert response.headers["X-Request-Id"]
    return body


def test_problem_types_are_unique_and_have_titles() -> None:
    names = [error.type_name() for error in errors.all_errors()]
    assert len(names) == len(set(names))
    for error in errors.all_errors():
        assert error.title()
        assert error.title() != error.__name__
        assert 400 <= error.status < 600


def test_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set((errors.__doc__ or "").replace(",", " ").split())
    assert {error.__name__ for error in errors.all_errors()} <= drawn


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/workspace/1/jobs/", "/Jobs", "/auth", "/docs/"]
)
def test_unknown_path_is_a_problem(app: Flask, path: str) -> None:
    body = check(app.test_client().get(path), 404, "unknown-path")
    assert path in body["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/workspace/1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/workspace/1/jobs/x", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/auth/login", "OPTIONS, POST"),
        ("POST", "/docs", "GET, HEAD, OPTIONS"),
        ("TRACE", "/jobs", "GET, HEAD, OPTIONS"),
        ("BREW", "/health/live", "GET, HEAD, OPTIONS"),
        # Names beside a variable: they are no jobs.
        ("GET", "/workspace/1/jobs/claim", "OPTIONS, POST"),
        ("PATCH", "/workspace/1/jobs/batch", "OPTIONS, POST"),
        ("DELETE", "/workspace/1/jobs/report", "OPTIONS, POST"),
        ("PUT", "/workspace/1/jobs/report", "OPTIONS, POST"),
        ("POST", "/workspace/1/events/stream", "GET, HEAD, OPTIONS"),
        ("DELETE", "/auth/me", "GET, HEAD, OPTIONS"),
        ("PATCH", "/dashboard/jobs", "GET, HEAD, OPTIONS"),
    ],
)
def test_call_with_an_unknown_method_is_405_with_allow(
    app: Flask, method: str, path: str, allowed: str
) -> None:
    response = app.test_client().open(path, method=method)
    body = check(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == allowed
    assert method in body["detail"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize(
    ("content_type", "status", "kind"),
    [
        ("application/json", 400, "malformed-json"),
        ("application/json; charset=utf-8", 400, "malformed-json"),
        ("text/plain", 415, "unsupported-media-type"),
        ("application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        ("multipart/form-data; boundary=x", 415, "unsupported-media-type"),
        ("", 415, "unsupported-media-type"),
        ("nonsense", 415, "unsupported-media-type"),
    ],
)
def test_send_invalid_json_or_wrong_content_type_is_refused(
    desk: Desk, method: str, content_type: str, status: int, kind: str
) -> None:
    path = desk.jobs_path
    if method == "PATCH":
        path += f"/{desk.create()['job_id']}"
    headers = {"Content-Type": content_type} if content_type else {}
    check(desk.call(method, path, data=b"job_type=x", headers=headers), status, kind)


def test_validation_names_each_field_with_a_list_of_messages(desk: Desk) -> None:
    body = check(desk.post(json={"job_type": "", "max_retries": "x"}), 422, "validation-failed")
    assert body["errors"].keys() == {"job_type", "max_retries", "workspace_id"}
    for messages in body["errors"].values():
        assert all(isinstance(message, str) for message in messages)
    assert "job_type: Use 1 to 100 letters" in body["detail"]


def test_fault_in_a_view_hides_its_details(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = desk.world.app
    monkeypatch.setattr(__import__("logging").getLogger("jobapi"), "propagate", True)
    heard: list[BaseException] = []

    def hear(sender: Any, exception: BaseException, **kw: Any) -> None:
        heard.append(exception)

    with desk.world.state.engine.connect() as connection:
        connection.execute(text("ALTER TABLE jobapi_jobs RENAME COLUMN traceparent TO trace"))
    try:
        with got_request_exception.connected_to(hear, app):
            response = desk.post(json={"job_type": "tell-nobody", "workspace_id": 1})
    finally:
        with desk.world.state.engine.connect() as connection:
            connection.execute(text("ALTER TABLE jobapi_jobs RENAME COLUMN trace TO traceparent"))
    body = check(response, 500, "internal-error")
    assert "error" not in body["detail"]
    assert "jobapi_jobs" not in response.text
    assert len(heard) == 1
    # The log has it all but what was sent.
    assert "jobapi_jobs" in caplog.text
    assert "tell-nobody" not in caplog.text
    assert desk.get().status_code == 200


def test_database_that_is_busy_is_503_with_retry_after(
    make_app: Any, new_database: Any, database: str
) -> None:
    """A lock that somebody holds; what waits for it gives up."""
    url = new_database(database)
    if database == "sqlite":
        desk = Desk(World(make_app(f"{url}?timeout=0.2")))
        other: Any = sqlite3.connect(url.removeprefix("sqlite:///"))
        other.execute("BEGIN EXCLUSIVE")
    else:
        desk = Desk(World(make_app(f"{url}&options=-c%20lock_timeout%3D200")))
        other = psycopg.connect(url)
        other.execute("LOCK TABLE jobapi_jobs")
    try:
        response = desk.post(json={"job_type": "x", "workspace_id": desk.workspace_id})
        check(response, 503, "unavailable")
        assert response.headers["Retry-After"] == "1"
    finally:
        other.rollback()
        other.close()
    assert desk.get().json["pagination"]["total"] == 0
    assert desk.create()["status"] == "pending"


def test_connections_that_the_database_closed_are_opened_again(
    make_app: Any, new_database: Any
) -> None:
    url = new_database("postgresql")
    desk = Desk(World(make_app(url)))
    for _ in range(3):
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        job = desk.create()
        assert desk.get(f"/{job['job_id']}").json == job


def test_request_without_a_database_is_503_and_the_process_lives(
    make_app: Any, tmp_path: Path
) -> None:
    for url in (
        f"postgresql://nobody@/nothing?host={tmp_path}",
        f"sqlite:///{tmp_path}/no/such/folder/db.sqlite3",
    ):
        app = make_app(url, migrate=False)
        client = app.test_client()
        assert client.get("/health/live").status_code == 200
        check(client.get("/health/ready"), 503, "unavailable")
        body = {"username": "anna", "password": "x"}
        check(client.post("/auth/login", json=body), 503, "unavailable")


def test_pool_that_is_used_up_is_503(make_app: Any, new_database: Any, database: str) -> None:
    app = make_app(new_database(database), JOBAPI_DATABASE_POOL_SIZE="1")
    desk = Desk(World(app))
    engine = desk.world.state.engine
    engine.pool._timeout = 0.2
    with engine.connect():
        check(desk.get(), 503, "unavailable")
    assert desk.get().status_code == 200
