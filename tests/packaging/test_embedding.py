"""Embedding in a host application: the host stays unchanged, and jobapi works."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.cli import routes_command
from sqlalchemy import create_engine, inspect

from jobapi import JobAPI, accounts, jobs, workspaces
from jobapi.config import ConfigError
from jobapi.rules.roles import Role
from jobapi.store.tables import Base

from ..factories import PASSWORD
from ..host import HTML_404, HTML_405, PREFIX, Host, answers, as_host_user, make_host, who

PROBLEM = "application/problem+json"
SQLITE = pytest.mark.parametrize("database", ["sqlite"])


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
