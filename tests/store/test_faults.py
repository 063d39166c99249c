"""Faults of the database: 503 while it is away, read-only, slow, locked, full or not migrated."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from jobapi.background import periodic_tasks
from jobapi.background.maintenance import Maintenance, PeriodicTask
from jobapi.rules.roles import Role
from jobapi.services import operations
from jobapi.services.accounts import Login
from jobapi.store.engine import long_transaction
from jobapi.store.transactions import snapshot, transaction

from ..factories import PASSWORD, Desk, World, until
from ..views.test_errors import check

BRIEF = {"JOBAPI_DATABASE_LOCK_SECONDS": 1, "JOBAPI_DATABASE_STATEMENT_SECONDS": 2}


@pytest.fixture
def postgres_url(furnished: Any) -> str:
    """A database for tests of what only Postgres does."""
    return str(furnished("postgresql"))


@pytest.fixture
def on_postgres(make_app: Any, postgres_url: str) -> Desk:
    """The owner of a workspace there."""
    return Desk(World(make_app(postgres_url, migrate=False, **BRIEF)))


@pytest.fixture
def brief(make_app: Any, service_url: str) -> Desk:
    """The owner of a workspace in a database of its own, with short time limits."""
    return Desk(World(make_app(service_url, migrate=False, **BRIEF)))


def said(caplog: Any, words: str) -> int:
    """How often a line with these words was logged."""
    return len({line.created for line in caplog.records if words in line.getMessage()})


def unavailable(response: Any, says: str) -> None:
    """Check that a response is a 503 with this detail and a ``Retry-After``."""
    body = check(response, 503, "unavailable")
    assert says in body["detail"]
    assert int(response.headers["Retry-After"]) >= 1


def admin(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def read_only(desk: Desk, url: str) -> Iterator[None]:
    """A database that refuses to be written to, as one that has been demoted does."""
    if url.startswith("sqlite"):

        def refuse(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA query_only=ON")

        engine = desk.world.state.engine
        event.listen(engine, "connect", refuse)
        engine.dispose()
        yield
        event.remove(engine, "connect", refuse)
        return
    setting = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only={}',"
    setting += " current_database()); END $$"
    admin(url, setting.format("on"))
    desk.world.state.engine.dispose()
    yield
    admin(url, "SET default_transaction_read_only = off", setting.format("off"))


def test_write_to_a_read_only_database_is_503_and_the_next_after_it_succeeds(
    brief: Desk, service_url: str
) -> None:
    world = brief.world
    user = world.user("anna", password=PASSWORD)
    login = {"username": "anna", "password": PASSWORD}
    job = brief.create()
    key = world.key(brief.workspace_id, brief.user, Role.VIEWER)
    refresh = world.tokens(user)["refresh_token"]
    with read_only(brief, service_url):
        says = "read-only"
        unavailable(brief.post(json={"job_type": "x", "workspace_id": brief.workspace_id}), says)
        unavailable(brief.post("/claim", json={}), says)
        unavailable(brief.post(f"/{job['job_id']}/cancel"), says)
        unavailable(world.call("POST", "/auth/login", json=login), says)
        unavailable(world.call("POST", "/auth/refresh", refresh), says)
        unavailable(world.call("GET", "/health/ready"), says)
        assert brief.get().status_code == 200
        assert world.call("GET", brief.jobs_path, key).status_code == 200
        assert world.call("GET", "/health/live").status_code == 200
        # Connections of that time stay in the pool.
        with world.state.engine.connect(), world.state.engine.connect() as another:
            another.execute(text("SELECT 1"))
    assert world.call("POST", "/auth/login", json=login).status_code == 200
    assert [
        brief.post(json={"job_type": "x", "workspace_id": brief.workspace_id}).status_code
        for _ in range(12)
    ] == [201] * 12
    assert world.call("GET", "/health/ready").status_code == 200
    assert world.call("POST", "/auth/refresh", refresh).status_code == 200


def test_key_is_read_with_while_its_use_cannot_be_written_down(
    brief: Desk, service_url: str
) -> None:
    key = brief.world.key(brief.workspace_id, brief.user, Role.VIEWER)
    if service_url.startswith("sqlite"):
        other: Any = sqlite3.connect(service_url.removeprefix("sqlite:///"))
        other.execute("BEGIN IMMEDIATE")
    else:
        other = psycopg.connect(service_url)
        other.execute("SELECT id FROM jobapi_api_keys FOR UPDATE")
    try:
        for _ in range(3):
            assert brief.world.call("GET", brief.jobs_path, key).status_code == 200
    finally:
        other.rollback()
        other.close()


@contextmanager
def row_locked(url: str, job_id: str) -> Iterator[None]:
    """A lock on a job that another session holds; on SQLite it is on everything."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.rollback()
        return
    with psycopg.connect(url) as connection:
        connection.execute("SELECT 1 FROM jobapi_jobs WHERE job_id = %s FOR UPDATE", [job_id])
        yield
        connection.rollback()


def test_sqlite_never_waits_long_by_itself_for_a_lock_that_others_keep_taking(
    make_app: Any, furnished: Any
) -> None:
    """Else it would ask only every 100 ms in the end, and come last among busy writers."""
    url = str(furnished("sqlite"))
    desk = Desk(World(make_app(url, migrate=False, JOBAPI_DATABASE_LOCK_SECONDS=5)))
    job = desk.create()
    with desk.world.state.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() <= 20
    with ThreadPoolExecutor() as pool:
        with row_locked(url, job["job_id"]):
            change = pool.submit(desk.patch, job["job_id"], {"priority": "high"})
            assert not wait([change], timeout=0.5).done
        assert change.result().status_code == 200


@pytest.mark.parametrize("verb", ["cancel", "patch", "delete"])
def test_change_of_a_locked_job_is_503_and_the_next_after_it_succeeds(
    brief: Desk, service_url: str, verb: str
) -> None:
    job = brief.job_in("failed" if verb == "delete" else "pending")
    ask: dict[str, Callable[[], Any]] = {
        "cancel": lambda: brief.post(f"/{job['job_id']}/cancel"),
        "patch": lambda: brief.patch(job["job_id"], {"priority": "high"}),
        "delete": lambda: brief.call("DELETE", f"{brief.jobs_path}/{job['job_id']}"),
    }
    with row_locked(service_url, job["job_id"]):
        unavailable(ask[verb](), "lock")
        assert brief.get(f"/{job['job_id']}").status_code == 200
        assert brief.get().json["pagination"]["total"] == 1
    assert ask[verb]().status_code in (200, 204)


def test_locked_table_is_503_for_those_who_read_it(on_postgres: Desk, postgres_url: str) -> None:
    on_postgres.create()
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE jobapi_jobs")
        unavailable(on_postgres.get(), "lock")
        other.rollback()
    assert on_postgres.get().json["pagination"]["total"] == 1


def test_statement_that_takes_too_long_is_503(on_postgres: Desk, postgres_url: str) -> None:
    admin(
        postgres_url,
        "CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$",
        "CREATE TRIGGER doze BEFORE INSERT ON jobapi_jobs FOR EACH ROW EXECUTE FUNCTION doze()",
    )
    unavailable(
        on_postgres.post(json={"job_type": "x", "workspace_id": on_postgres.workspace_id}),
        "too long",
    )
    admin(postgres_url, "DROP TRIGGER doze ON jobapi_jobs")
    assert on_postgres.create()["status"] == "pending"


@pytest.mark.parametrize("what", ["create", "claim", "batch"])
def test_full_disk_is_503_and_nothing_is_lost(brief: Desk, service_url: str, what: str) -> None:
    brief.post("/batch", json={"jobs": [{"job_type": "x"}] * 100})
    big = {"job_type": "x", "workspace_id": brief.workspace_id, "metadata": {"a": "x" * 50_000}}
    ask: dict[str, Callable[[], Any]] = {
        "create": lambda: brief.post(json=big),
        "batch": lambda: brief.post("/batch", json={"jobs": [big] * 3}),
        "claim": lambda: brief.post("/claim", json={"limit": 100}),
    }
    operation = "UPDATE" if what == "claim" else "INSERT"
    if service_url.startswith("sqlite"):
        with full(brief.world):
            for _ in range(2):
                unavailable(ask[what](), "full")
            brief.world.state.wrote_at = float("-inf")
            unavailable(brief.world.call("GET", "/health/ready"), "full")
    else:
        admin(
            service_url,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'No space left' USING ERRCODE = '53100'; END $$",
            f"CREATE TRIGGER full_disk BEFORE {operation} ON jobapi_jobs"
            " FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        for _ in range(2):
            unavailable(ask[what](), "full")
        admin(service_url, "DROP TRIGGER full_disk ON jobapi_jobs")
    assert brief.get("?status=pending").json["pagination"]["total"] == 100
    assert ask[what]().status_code in (200, 201)


@contextmanager
def full(world: World) -> Iterator[None]:
    """A SQLite file that must not become larger."""
    engine = world.state.engine

    def limit(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA max_page_count=1")

    with engine.connect() as connection:
        # What is free in it would be used up first.
        connection.exec_driver_sql("VACUUM")
    event.listen(engine, "connect", limit)
    engine.dispose()
    yield
    event.remove(engine, "connect", limit)
    engine.dispose()


def fail_in(begun: Any, connection: Any) -> None:
    with begun:
        # The transaction is gone, as after SQLITE_FULL.
        connection.exec_driver_sql("ROLLBACK")
        raise ZeroDivisionError


def test_clean_up_never_hides_what_went_wrong(brief: Desk) -> None:
    engine = brief.world.state.engine
    for begin in (transaction, snapshot):
        with engine.connect() as connection:
            with pytest.raises(ZeroDivisionError):
                fail_in(begin(connection), connection)
            # And the connection can be used.
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_database_that_was_not_migrated_is_503_and_says_what_to_run(
    make_app: Any, new_database: Any, database: str
) -> None:
    app = make_app(new_database(database), migrate=False, JOBAPI_METRICS_TOKEN="x" * 16)
    world = World(app)
    issuer = world.state.tokens
    token = issuer.issue(Login(1, "a" * 32, "b" * 32, 3600))
    says = "run: jobapi db upgrade"
    login = {"username": "anna", "password": "x"}
    unavailable(world.call("POST", "/auth/login", json=login), says)
    for path in ("/workspace", "/workspace/1/jobs", "/jobs", "/auth/me"):
        for caller in (token["access_token"], "jk_x"):
            if not (caller == "jk_x" and path == "/auth/me"):
                unavailable(world.call("GET", path, caller), says)
    unavailable(world.call("GET", "/health/ready"), says)
    assert world.call("GET", "/health/live").status_code == 200
    metrics = world.call("GET", "/metrics", "x" * 16)
    assert "jobapi_database_up 0.0" in metrics.text


def test_migration_under_a_running_service_costs_no_more_than_one_503(
    brief: Desk, service_url: str
) -> None:
    """Postgres refuses a prepared statement whose columns have changed their type."""
    job = brief.create()
    path = f"/{job['job_id']}"
    assert brief.get(path).status_code == 200
    if service_url.startswith("postgresql"):
        admin(service_url, "ALTER TABLE jobapi_jobs ALTER COLUMN job_type TYPE text")
    else:
        with closing(sqlite3.connect(service_url.removeprefix("sqlite:///"))) as other:
            other.execute("ALTER TABLE jobapi_jobs ADD COLUMN later TEXT")
    assert brief.get(path).status_code == 200
    assert brief.create()["status"] == "pending"


def test_requests_after_a_restart_are_asked_again(on_postgres: Desk, postgres_url: str) -> None:
    world = on_postgres.world
    world.user("anna", password=PASSWORD)
    login = {"username": "anna", "password": PASSWORD}
    refresh = world.tokens(on_postgres.user)["refresh_token"]
    asks: list[Callable[[], Any]] = [
        lambda: world.call("GET", "/health/ready"),
        lambda: world.call("POST", "/auth/login", json=login),
        lambda: world.call("POST", "/auth/refresh", refresh),
        lambda: on_postgres.get(),
        lambda: on_postgres.post(json={"job_type": "x", "workspace_id": on_postgres.workspace_id}),
    ]
    for ask in asks:
        # Several, so that not only the first of them is thrown away.
        with world.state.engine.connect() as a, world.state.engine.connect() as b:
            for connection in (a, b):
                connection.execute(text("SELECT 1"))
        admin(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()",
        )
        assert ask().status_code in (200, 201)


def test_connect_with_serializable_as_default_uses_read_committed(
    on_postgres: Desk, postgres_url: str
) -> None:
    admin(
        postgres_url,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation"
        " = serializable', current_database());"
        " EXECUTE format('ALTER DATABASE %I SET DateStyle = German', current_database());"
        " EXECUTE format('ALTER DATABASE %I SET IntervalStyle = sql_standard',"
        " current_database()); END $$",
    )
    on_postgres.world.state.engine.dispose()
    for _ in range(40):
        on_postgres.create()
    statuses: list[int] = []
    jobs: list[str] = []

    def claim() -> None:
        while True:
            response = on_postgres.post("/claim", json={"limit": 2})
            statuses.append(response.status_code)
            data = response.json.get("data", [])
            jobs.extend(job["job_id"] for job in data)
            for job in data:
                on_postgres.report(job, status="success")
            if response.status_code == 200 and not data:
                return

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert len(jobs) == len(set(jobs)) == 40
    first = on_postgres.get(f"/{jobs[0]}").json
    assert first["status"] == "success"
    assert first["actual_duration"] is not None


STATES = {
    **dict.fromkeys(["08006", "25006", "40001", "40P01", "53200", "55P03", "57014"], 503),
    **dict.fromkeys(["57P01", "58030"], 503),
    **dict.fromkeys(["0A000", "42501", "22012", "P0001", "XX000"], 500),
}


def test_judge_postgres_error_goes_by_its_sqlstate(on_postgres: Desk, postgres_url: str) -> None:
    admin(
        postgres_url,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = NEW.job_type; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON jobapi_jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    for state, status in STATES.items():
        body = {"job_type": state, "workspace_id": on_postgres.workspace_id}
        response = on_postgres.post(json=body)
        check(response, status, "unavailable" if status == 503 else "internal-error")
        assert ("Retry-After" in response.headers) == (status == 503)
    admin(postgres_url, "DROP TRIGGER refuse ON jobapi_jobs")
    assert on_postgres.create()["status"] == "pending"


def test_request_with_an_exhausted_pool_is_503(make_app: Any, service_url: str) -> None:
    desk = Desk(World(make_app(service_url, migrate=False, JOBAPI_DATABASE_POOL_SIZE=1)))
    engine = desk.world.state.engine
    engine.pool._timeout = 0.2
    with engine.connect():
        unavailable(desk.get(), "connections")
        unavailable(desk.world.call("GET", "/health/ready"), "connections")


def test_migration_takes_as_long_as_it_needs(on_postgres: Desk, postgres_url: str) -> None:
    with (
        on_postgres.world.state.engine.connect() as connection,
        long_transaction(connection) as tx,
    ):
        assert tx.exec_driver_sql("SHOW statement_timeout").scalar() == "0"
    with on_postgres.world.state.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "2s"
        with pytest.raises(DBAPIError, match="statement timeout"):
            connection.exec_driver_sql("SELECT pg_sleep(20)")


def test_operation_on_a_locked_job_keeps_nothing_else_from_the_maintenance(
    on_postgres: Desk, postgres_url: str, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    desk = on_postgres
    monkeypatch.setattr(operations, "AT_ONCE", 1)
    _, locked = (desk.create(job_type="a") for _ in range(2))
    for _ in range(2):
        desk.create(job_type="b")
    for job_type in ("a", "b"):
        path = f"/workspace/{desk.workspace_id}/operations"
        body = {"action": "cancel", "filter": {"job_type": [job_type]}}
        assert desk.call("POST", path, json=body).status_code in (201, 202)
    late = desk.create(job_type="c", max_retries=0)
    desk.claim(job_types=["c"], lease_seconds=5)
    desk.shift(late, 3600)
    maintained = desk.world.state.maintenance
    with row_locked(postgres_url, locked["job_id"]):
        maintained.start()
        try:
            until(lambda: desk.get(f"/{late['job_id']}").json["status"] == "failed")
            until(lambda: desk.get("?job_type=b&status=cancelled").json["pagination"]["total"] == 2)
            until(lambda: "is tried again" in caplog.text)
            assert desk.get(f"/{locked['job_id']}").json["status"] == "pending"
        finally:
            maintained.stop()


def test_maintenance_with_a_locked_table_continues_and_logs_once(
    on_postgres: Desk, postgres_url: str, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    desk, state = on_postgres, on_postgres.world.state
    late = desk.create(max_retries=0)
    desk.claim(lease_seconds=5)
    desk.shift(late, 3600)
    tries: list[float] = []

    def delete_old_answers(connection: Any) -> bool:
        tries.append(time.monotonic())
        connection.exec_driver_sql("SET lock_timeout = 50")
        return periodic_tasks.delete_old_answers(connection)

    tasks = [
        PeriodicTask("idempotency keys", 0.05, delete_old_answers),
        *periodic_tasks.periodic_tasks(
            state.backoff, state.count_reaped, state.count_tick, state.waiters.announce
        ),
    ]
    maintained = Maintenance(lambda: state.engine, tasks, poll_seconds=0.05)
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE jobapi_idempotency_keys")
        maintained.start()
        until(lambda: desk.get(f"/{late['job_id']}").json["status"] == "failed")
        until(lambda: len(tries) >= 4)
        other.rollback()
    until(lambda: "goes on" in caplog.text)
    maintained.stop()
    assert said(caplog, "has to wait") == 1


def test_maintenance_after_a_read_only_database_continues(
    brief: Desk, service_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    state = brief.world.state
    tasks = periodic_tasks.periodic_tasks(
        state.backoff, state.count_reaped, state.count_tick, state.waiters.announce
    )
    maintained = Maintenance(lambda: state.engine, tasks, poll_seconds=0.05)
    late = brief.create(max_retries=0)
    brief.claim(lease_seconds=5)
    brief.shift(late, 3600)
    with read_only(brief, service_url):
        maintained.start()
        until(lambda: "read-only" in caplog.text)
    until(lambda: brief.get(f"/{late['job_id']}").json["status"] == "failed")
    maintained.stop()
    assert said(caplog, "has to wait") == 1
