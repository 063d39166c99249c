"""The two databases, and an application on each."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import flask_migrate
import psycopg
import pytest
from argon2 import PasswordHasher
from flask import Flask
from hypothesis import settings
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, event

from jobapi import accounts, create_app
from jobapi.store.partitions import CannotPartition, partition_jobs
from jobapi.store.tables import Base

from .factories import PASSWORD, Desk, World
from .host import Host
from .postgres import Postgres
from .served import Service, environment

DATABASES = ("sqlite", "postgresql")
PARTITIONS = int(os.environ.get("TEST_PARTITIONS", "0"))
"""How many partitions the table of jobs has on Postgres; 0: it is not partitioned."""
SECRET = "only-for-tests-" + "x" * 32
METRICS_TOKEN = "only-for-tests-of-metrics"

# Settings from the developer's shell must not influence the tests.
for _name in [name for name in os.environ if name.startswith(("JOBAPI_", "PROMETHEUS_"))]:
    del os.environ[_name]


# Each new HTTP client loads the certificates that it trusts, which takes 50 ms for the usual set.
# The tests use no TLS.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("trusted.pem"))

# The same examples each time, so that only a change of the code can make a test fail.
# ``make fuzz`` selects a profile that looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("new", deadline=None, database=None)
settings.load_profile("new" if "FUZZ_EXAMPLES" in os.environ else "same")


def pytest_configure(config: Any) -> None:
    """Start one Postgres in the controlling process, for all of pytest's workers."""
    if not hasattr(config, "workerinput"):
        config.stash[_SERVER] = None


_SERVER = pytest.StashKey[Any]()


def _server_url(config: Any) -> str:
    """The server's URL, with ``{}`` for the database; started when first asked for."""
    if hasattr(config, "workerinput"):
        return str(config.workerinput["postgres"])
    if config.stash[_SERVER] is None:
        config.stash[_SERVER] = Postgres()
    return str(config.stash[_SERVER].url("{}"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where the server is."""
    node.workerinput["postgres"] = _server_url(node.config)


def pytest_unconfigure(config: Any) -> None:
    """Stop what was started."""
    if not hasattr(config, "workerinput") and config.stash[_SERVER] is not None:
        config.stash[_SERVER].stop()


@pytest.fixture(scope="session")
def new_postgres(request: Any, worker_id: str) -> Any:
    """Makes an empty database on the tests' server and returns its URL."""
    server = _server_url(request.config)
    made = iter(range(10_000))

    def make() -> str:
        name = f"{worker_id}_{next(made)}"
        with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return server.format(name)

    return make


@pytest.fixture(scope="session")
def new_database(new_postgres: Any, tmp_path_factory: Any) -> Any:
    """Makes an empty database of either kind and returns its URL."""

    def make(kind: str) -> str:
        if kind == "postgresql":
            return str(new_postgres())
        folder: Path = tmp_path_factory.mktemp("sqlite")
        return f"sqlite:///{folder / 'jobapi.sqlite3'}"

    return make


def app_on(url: str, folder: Path, *, migrate: bool = True, **settings: Any) -> Flask:
    """A standalone application with the settings given."""
    app = create_app(
        {
            "JOBAPI_DATABASE_URL": url,
            "JOBAPI_SECRET_KEY": SECRET,
            "JOBAPI_INSTANCE_PATH": str(folder),
            # Tests run the periodic tasks themselves (``World.maintain``, ``Desk.reap``).
            "JOBAPI_MAINTENANCE_ENABLED": False,
            **settings,
        }
    )
    if migrate:
        with app.extensions["jobapi"].migrating():
            flask_migrate.upgrade()
        if PARTITIONS and url.startswith("postgresql"):
            with (
                contextlib.suppress(CannotPartition),
                app.extensions["jobapi"].engine.begin() as connection,
            ):
                partition_jobs(connection, PARTITIONS, max_jobs=0)
    return app


HASHER = accounts._hasher
"""What hashes passwords outside of tests."""


@pytest.fixture(scope="session", autouse=True)
def _hash_quickly() -> Any:
    """Hash passwords with the least effort: thousands of tests have users with one."""
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    yield
    accounts._hasher = HASHER


@pytest.fixture
def make_app(tmp_path: Path) -> Any:
    """Makes applications with settings of their own, on a migrated database."""
    made: list[Flask] = []

    def make(url: str, **settings: Any) -> Flask:
        made.append(app_on(url, tmp_path, **settings))
        return made[-1]

    yield make
    for app in made:
        app.extensions["jobapi"].close()


@pytest.fixture(scope="session")
def _apps(new_database: Any, tmp_path_factory: Any) -> Any:
    apps = {
        kind: app_on(
            new_database(kind),
            tmp_path_factory.mktemp("instance"),
            JOBAPI_METRICS_TOKEN=METRICS_TOKEN,
        )
        for kind in DATABASES
    }
    yield apps
    for app in apps.values():
        app.extensions["jobapi"].close()


@pytest.fixture(params=DATABASES)
def database(request: Any) -> str:
    """Each test runs once on each database."""
    return str(request.param)


@pytest.fixture
def app(_apps: dict[str, Flask], database: str) -> Any:
    """The standalone application on an empty database."""
    app = _apps[database]
    empty(app)
    state = app.extensions["jobapi"]
    streams = state.streams
    yield app
    # A test may have replaced them.
    state.streams = streams


TABLES = [table.name for table in reversed(Base.metadata.sorted_tables)]


def empty(app: Flask) -> None:
    """Delete everything in an app's database and count ids from 1 again."""
    delete = [f"DELETE FROM {name}" for name in TABLES]
    with app.extensions["jobapi"].engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            for statement in [*delete, "DELETE FROM sqlite_sequence"]:
                connection.exec_driver_sql(statement)
        elif connection.exec_driver_sql(_IS_LARGE).scalar():
            connection.exec_driver_sql(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY")
        else:
            # TRUNCATE creates new files for each table and index. With few rows it is thirty times
            # slower than this.
            _without_triggers(connection, *delete, _RESTART)


def keep(app: Flask) -> Callable[[], None]:
    """Keep the few rows of an app's database; call what is returned to have them again."""
    engine = app.extensions["jobapi"].engine
    if engine.dialect.name == "sqlite":
        copy = f"{engine.url.database}-copy-{next(_COPIES)}"
        with engine.connect() as connection, closing(sqlite3.connect(copy)) as other:
            _raw(connection).backup(other)

        def read_copy() -> None:
            with engine.connect() as connection, closing(sqlite3.connect(copy)) as other:
                other.backup(_raw(connection))

        return read_copy

    with engine.connect() as connection:
        script = [f"DELETE FROM {name}" for name in TABLES]
        for sql in (*(_ROWS.replace("{}", name) for name in TABLES), _SEQUENCES):
            script += [statement for (statement,) in _raw(connection).execute(sql)]

    def insert() -> None:
        with engine.connect() as connection:
            _without_triggers(connection, *script)

    return insert


def made_once(app: Flask, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` makes in an empty database: made by the first call, then put back by each.

    Making it takes longer than many a test. Logins in it end some time, so it is made anew before.
    """
    began, made, again = _MADE.get((app, name), (-math.inf, None, None))
    if again is not None and time.monotonic() - began < MADE_SECONDS:
        again()
        return made
    empty(app)
    made = make()
    _MADE[app, name] = time.monotonic(), made, keep(app)
    return made


MADE_SECONDS = 300
_MADE: dict[tuple[Flask, str], tuple[float, Any, Callable[[], None] | None]] = {}
_COPIES = count()


def _raw(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _without_triggers(connection: Connection, *statements: str) -> None:
    """Run statements in a transaction on Postgres."""
    no_triggers = "SET LOCAL session_replication_role = replica"
    _raw(connection).execute("; ".join(["BEGIN", no_triggers, *statements, "COMMIT"]))


_ROWS = (
    "SELECT format('INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM unnest(%L::{}[])',"
    " array_agg({})::text) FROM {} HAVING count(*) > 0"
)
_SEQUENCES = (
    "SELECT format('SELECT setval(%L, %s, %L)', sequencename, coalesce(last_value, 1),"
    " last_value IS NOT NULL) FROM pg_sequences"
)
_IS_LARGE = "SELECT pg_relation_size('jobapi_jobs') + pg_relation_size('jobapi_events') > 1000000"
_RESTART = "SELECT setval(sequencename::text::regclass, 1, false) FROM pg_sequences"


@pytest.fixture
def world(app: Flask) -> World:
    """Makes users, workspaces and jobs."""
    return World(app)


class Statements(list[str]):
    """The SQL that is sent to the database, in order; a test can make it ``refuse`` statements."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: Callable[[str], bool] = lambda sql: False

    def note(self, sql: str) -> None:
        """Note a statement before it is sent."""
        self.append(sql)
        if self.refuse(sql):
            raise InterruptedError


@pytest.fixture
def sent(app: Flask, database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The SQL that the application sends, including prepared statements and BEGIN."""
    statements = Statements()
    if database == "postgresql":
        execute: Any = psycopg.Cursor.execute

        def noting(cursor: Any, query: Any, *arguments: Any, **kw: Any) -> Any:
            statements.note(str(query))
            return execute(cursor, query, *arguments, **kw)

        monkeypatch.setattr(psycopg.Cursor, "execute", noting)
        yield statements
        return

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.note(statement)

    engine = app.extensions["jobapi"].engine
    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def desk(world: World) -> Desk:
    """The owner of a new workspace."""
    return Desk(world)


def furnish(url: str, folder: Path) -> None:
    """Migrate a database, and make an administrator and workspace 1."""
    app = app_on(url, folder)
    world = World(app)
    world.workspace(world.user("boss", password=PASSWORD, is_admin=True), "W")
    app.extensions["jobapi"].close()


@pytest.fixture(scope="session")
def furnished(new_database: Any, tmp_path_factory: Any) -> Any:
    """Makes a database as ``furnish`` does, as a copy of one, and returns its URL."""
    originals: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in originals:
            originals[kind] = new_database(kind)
            furnish(originals[kind], tmp_path_factory.mktemp("instance"))
        copy_database(originals[kind], url := new_database(kind))
        return str(url)

    return make


def copy_database(original: str, copy: str) -> None:
    """Copy a database, to which there must be no connections, into an empty one."""
    if original.startswith("sqlite"):
        shutil.copy(original.removeprefix("sqlite:///"), copy.removeprefix("sqlite:///"))
        return
    names = [conninfo_to_dict(url)["dbname"] for url in (original, copy)]
    with psycopg.connect(original, dbname="postgres", autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{names[1]}"')
        connection.execute(f'CREATE DATABASE "{names[1]}" TEMPLATE "{names[0]}"')


@pytest.fixture
def service_url(furnished: Any, database: str) -> str:
    """A database for a service of its own, with an administrator and workspace 1."""
    return str(furnished(database))


def service_settings(url: str, folder: Path) -> dict[str, str]:
    """The environment of services on a database."""
    return environment(
        JOBAPI_DATABASE_URL=url,
        JOBAPI_SECRET_KEY=SECRET,
        JOBAPI_INSTANCE_PATH=str(folder),
        JOBAPI_LOG_FORMAT="text",
        JOBAPI_METRICS_TOKEN=METRICS_TOKEN,
    )


@pytest.fixture
def service_env(service_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of services on one database with an administrator and workspace 1."""
    return service_settings(service_url, tmp_path)


@pytest.fixture
def serve(service_env: dict[str, str], tmp_path: Path) -> Any:
    """Starts services, any number of them."""
    services: list[Service] = []

    def start(*arguments: str, **settings: str) -> Service:
        services.append(Service(tmp_path, {**service_env, **settings}, *arguments))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture
def embed(new_database: Any, database: str) -> Any:
    """Makes host applications with jobapi in them."""
    made: list[Host] = []

    def make(*arguments: Any, **kw: Any) -> Host:
        made.append(Host(new_database(database), *arguments, **kw))
        return made[-1]

    yield make
    for host in made:
        host.close()
