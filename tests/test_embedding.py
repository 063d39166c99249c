"""In somebody's Flask application: theirs unchanged, ours working."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import flask_migrate
import pytest
from flask import Flask, request
from sqlalchemy import inspect

from jobapi import JobAPI, accounts, jobs, streams, workspaces
from jobapi.config import ConfigError
from jobapi.identity import Role
from jobapi.models import Base
from jobapi.views import access

from .factories import PASSWORD, World
from .host import HTML_404, HTML_405, answers, make_host

PREFIX = "/job-api"
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
        self.app.extensions["jobapi"].engine.dispose()


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
    assert f'src="{PREFIX}/docs/start.js"' in world.call("GET", f"{PREFIX}/docs").text


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
    theirs = world.call("GET", "/log-in").text
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


# The host's own log-in


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
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(access, "HOST_SECONDS", 0.5)
    world = embed(current_user=who).world
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
