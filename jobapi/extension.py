"""The only wiring: how the API comes into a Flask application."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.middleware.proxy_fix import ProxyFix

from . import __version__, config, logs
from .background.event_streams import Streams
from .background.long_polling import WaitingRoom
from .background.maintenance import Maintenance
from .commands import main
from .config import NEW_SECRET_COMMAND, SERVED_BY, ConfigError, Settings
from .rules.leases import Backoff
from .services import keys
from .store import readiness
from .store.database import normalize_url
from .store.engine import Limits, engine_options, from_host, prepare_sqlite, set_up
from .store.faults import judge
from .store.tables import Base
from .tokens import TokenMint
from .views import (
    auth,
    dashboard,
    docs,
    events,
    health,
    hooks,
    jobs,
    metrics,
    operations,
    stats,
    users,
    worker,
    workspaces,
)
from .views.base import Api

if TYPE_CHECKING:
    from .metrics import Metrics

VERSION_TABLE = "jobapi_alembic_version"
BIND_KEY = "jobapi"
NOTE_AGAIN_SECONDS = 60.0
MIN_HOST_SECRET_BYTES = 16

logger = logging.getLogger("jobapi")


@dataclass
class State:
    """What the API knows of the application that it serves.

    ``private`` is an application of our own that serves nothing. Our
    flask-jwt-extended, Flask-Migrate and, where the host has no database for
    us, Flask-SQLAlchemy live there, so that a host's own stay as they are.
    """

    app: Flask
    settings: Settings
    private: Flask
    mint: TokenMint
    url_prefix: str
    standalone: bool
    current_user: Callable[[], Any] | None
    api: Api

    maintain: bool = False
    """Whether the processes that serve have the maintenance's thread."""

    wrote_at: float = float("-inf")
    """When ``/health/ready`` last wrote to the database, on ``time.monotonic``'s clock."""

    _note_at: float = float("-inf")
    _engine: Engine | None = None
    _listen_engine: Engine | None = None
    _metrics: Metrics | None = None
    _lock: RLock = field(default_factory=RLock)

    def __post_init__(self) -> None:
        self._measures = self.settings.metrics_token is not None
        self.room = WaitingRoom(
            lambda: self.engine,
            limit=self.settings.server_threads // 2,
            listen=self.settings.listen_enabled,
            listen_engine=lambda: self.listen_engine,
        )
        self.streams = Streams(lambda: self.engine, events.frame, limit=self.settings.max_streams)
        self.streams.count = self._count_streams
        self.maintenance = Maintenance(
            lambda: self.engine, self.backoff, self.tell, self.room.announce
        )

    def close(self) -> None:
        """Close this process's connections to the database, after it has stopped serving.

        The operating system closes what is still open when the process ends.
        """
        self.room.close()
        if self._engine is not None:
            self._engine.dispose()

    @property
    def engine(self) -> Engine:
        """The database, one commit for each statement.

        Found when it is first needed, because a host may set up its database
        after us.
        """
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    engine = self._find_engine()
                    self._engine = engine
                    if self.metrics is not None:
                        self.metrics.watch(engine)
        return self._engine

    @property
    def metrics(self) -> Metrics | None:
        """The metrics; None if they are switched off or not possible.

        Made when it is first needed, because ``jobapi serve`` says after the
        application is made where its processes keep their numbers.
        """
        if self._metrics is None and self._measures:
            from .metrics import new

            with self._lock:
                try:
                    self._metrics = self._metrics or new()
                except Exception:
                    # What only measures must not break what serves.
                    self._measures = False
                    logger.warning("measuring has failed; nothing is measured", exc_info=True)
        return self._metrics

    def note_use(self, connection: Connection, key_id: int, now: datetime) -> None:
        """Record that a key was used; the request goes on if that fails."""
        if time.monotonic() < self._note_at:
            return
        try:
            keys.note_use(connection, key_id, now)
        except DBAPIError as error:
            if judge(error) is None:
                raise
            connection.rollback()
            # Each try may wait for a lock.
            self._note_at = time.monotonic() + NOTE_AGAIN_SECONDS
            logger.warning("cannot write down when API keys were used: %s", error.orig)

    def end_host_reads(self) -> None:
        """Return the connection that the host's session has used to identify the caller.

        Only if its transaction has written nothing; the session begins another one when needed.
        """
        database: Any = self.app.extensions.get("sqlalchemy")
        if self.standalone or not isinstance(database, SQLAlchemy) or len(database.engines) > 1:
            return
        if not database.session.registry.has():
            return
        session = database.session()
        if session.in_transaction() and not _has_written(session):
            session.rollback()

    def tell(self, reaped: Sequence[Any]) -> None:
        """Count the jobs whose leases, or time, had run out."""
        if self.metrics is not None:
            self.metrics.reaped(reaped)

    def _count_streams(self, more: int) -> None:
        if self.metrics is not None:
            self.metrics.streams.inc(more)

    @property
    def backoff(self) -> Backoff:
        """How long automatic retries wait."""
        return Backoff(self.settings.retry_backoff_seconds, self.settings.retry_backoff_max_seconds)

    def _find_engine(self) -> Engine:
        if self.settings.database_url is None and "sqlalchemy" in self.app.extensions:
            with self.app.app_context():
                engines = self.app.extensions["sqlalchemy"].engines
            return from_host(_usable(engines.get(BIND_KEY) or engines[None]), self.limits)
        return _own_engine(self.private, self.settings, self.limits)

    @property
    def listen_engine(self) -> Engine:
        """For the connection that listens, which may have to go past a pooler."""
        if self._listen_engine is None:
            if self.settings.listen_database_url is None:
                return self.engine
            url = normalize_url(self.settings.listen_database_url)
            options = engine_options(url, 1, self.limits, prepare=False)
            engine = create_engine(url, **options)
            set_up(engine, self.limits)
            self._listen_engine = engine
        return self._listen_engine

    @property
    def limits(self) -> Limits:
        """Time limits for waiting on the database."""
        s = self.settings
        return Limits(
            s.database_statement_seconds, s.database_lock_seconds, s.database_connect_seconds
        )

    def schema_problem(self, connection: Connection) -> str | None:
        """What to do where the database does not have this version's migrations, else None."""
        migrate: Any = self.private.extensions["migrate"]
        return readiness.schema_problem(
            connection, migrate.directory, migrate.configure_args["version_table"]
        )


class JobAPI:
    """Adds the Job API to a Flask application.

    ``url_prefix`` is where in the application it lives, such as ``/job-api``.
    ``current_user`` is for an application that has its own log-in: called in
    each request, it returns the stable id of the user who is logged in (what
    ``accounts.host_id`` takes), or None. Our own log-in is not served then.
    ``maintenance`` gives each serving process a thread for the background work, such
    as expired leases; without it, run ``flask jobapi maintain``.

    The database is ``JOBAPI_DATABASE_URL``; where it is not set, the
    application's own Flask-SQLAlchemy engine (its bind ``jobapi``, if there is
    one); else a SQLite file in the application's instance folder.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        url_prefix: str = "",
        current_user: Callable[[], Any] | None = None,
        maintenance: bool = False,
    ) -> None:
        self.url_prefix = url_prefix
        self.current_user = current_user
        self.maintenance = maintenance
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the API to ``app``.

        Raises ``ConfigError`` for a setting that it cannot work with, and
        ``RuntimeError`` where the application has a Job API already.
        """
        settings = config.load(app.config)
        _install(
            app,
            settings,
            _host_secret(app, settings),
            url_prefix=self.url_prefix,
            current_user=self.current_user,
            standalone=False,
            maintain=self.maintenance,
        )


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """Make an application that is nothing but the Job API.

    ``settings`` are ``JOBAPI_…`` names with their values; they win over the
    environment. Raises ``ConfigError``.
    """
    loaded = config.load(settings or {})
    app = Flask("jobapi", instance_path=_instance_path(loaded), static_folder=None)
    app.config.update(settings or {})
    logs.configure(loaded.log_level, loaded.log_format)
    app.wsgi_app = _below_prefix(app.wsgi_app)
    if loaded.trusted_proxies:
        hops = loaded.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_prefix=hops)
    secret = loaded.secret_key or _development_secret(loaded, Path(app.instance_path))
    _install(
        app,
        loaded,
        secret,
        url_prefix="",
        current_user=None,
        standalone=True,
        maintain=loaded.maintenance_enabled,
    )
    return app


# Decoded, as WSGI has it.
_PATH_PREFIX = re.compile(r"(/[^/\\?#\"<>\x00-\x1f\x7f]+)*/?")


def _below_prefix(wsgi_app: Callable[..., Any]) -> Callable[..., Any]:
    """Accept a prefix of all paths only if it is a valid path.

    With ``//evil.example`` our links would lead to another site.
    """

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        prefix = environ.get("SCRIPT_NAME", "")
        if prefix:
            known = _PATH_PREFIX.fullmatch(prefix)
            environ["SCRIPT_NAME"] = prefix.rstrip("/") if known else ""
        return wsgi_app(environ, start_response)

    return call


def _install(
    app: Flask,
    settings: Settings,
    secret: str,
    *,
    url_prefix: str,
    current_user: Callable[[], Any] | None,
    standalone: bool,
    maintain: bool,
) -> None:
    if "jobapi" in app.extensions:
        raise RuntimeError("This application has a Job API already; call JobAPI once.")
    if url_prefix and (not url_prefix.startswith("/") or url_prefix.endswith("/")):
        raise ConfigError(
            f"url_prefix must start with a slash and not end with one, unlike {url_prefix!r}."
        )
    if app.url_map.host_matching:
        raise ConfigError(
            "JobAPI does not support an application with host_matching; mount jobapi.create_app() "
            "beside it instead."
        )
    private = Flask("jobapi", instance_path=app.instance_path, static_folder=None)
    Migrate().init_app(private, directory=str(migrations_folder()), version_table=VERSION_TABLE)
    api = Api(app, version=__version__, description=docs.DESCRIPTION)
    state = State(
        app=app,
        settings=settings,
        private=private,
        mint=TokenMint(
            private, secret, settings.access_token_seconds, settings.refresh_token_seconds
        ),
        url_prefix=url_prefix,
        standalone=standalone,
        current_user=current_user,
        api=api,
        maintain=maintain,
    )
    app.extensions["jobapi"] = private.extensions["jobapi"] = state
    api.describe_security(current_user is not None)
    blueprints = [
        jobs.blp,
        operations.blp,
        stats.blp,
        events.blp,
        worker.blp,
        workspaces.blp,
        workspaces.keys_blp,
        auth.own_blp,
        users.blp,
    ]
    if current_user is None:
        blueprints.insert(0, auth.blp)
    for blueprint in [*blueprints, health.blp]:
        api.register_blueprint(blueprint, url_prefix=url_prefix or None)
    if settings.metrics_token is not None:
        app.register_blueprint(metrics.blp, url_prefix=url_prefix or None)
    if settings.docs_enabled:
        app.register_blueprint(docs.blp, url_prefix=url_prefix or None)
    if settings.dashboard_enabled:
        app.register_blueprint(dashboard.blp, url_prefix=url_prefix or None)
    hooks.register(app, state)
    app.cli.add_command(main.main)


def migrations_folder() -> Path:
    """Where the migrations are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _has_written(session: Session) -> bool:
    """Whether a transaction may have something to commit."""
    if session.new or session.dirty or session.deleted:
        return True
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        return connection.scalar(select(func.txid_current_if_assigned())) is not None
    driver_connection: Any = connection.connection.driver_connection
    return bool(getattr(driver_connection, "in_transaction", True))


def _usable(engine: Any) -> Engine:
    """A host's engine. Raises ``ConfigError`` if we cannot work with it."""
    instead = "Set JOBAPI_DATABASE_URL, or add a bind named jobapi to SQLALCHEMY_BINDS."
    if not isinstance(engine, Engine):
        raise ConfigError(
            "The application's database is one connection, perhaps with a test's transaction; "
            f"jobapi needs an engine. {instead}"
        )
    if engine.dialect.name not in SERVED_BY:
        raise ConfigError(
            f"The application's database is {engine.dialect.name}; jobapi works on "
            f"{' and '.join(SERVED_BY)}. {instead}"
        )
    if engine.dialect.is_async:
        raise ConfigError(
            f"The application's database driver {engine.dialect.driver} is for asyncio; jobapi "
            f"needs psycopg or psycopg2. {instead}"
        )
    return engine


def _own_engine(private: Flask, settings: Settings, limits: Limits) -> Engine:
    if settings.database_url is None:
        os.makedirs(private.instance_path, exist_ok=True)
    url = normalize_url(settings.database_url or "sqlite:///jobapi.sqlite3")
    private.config |= {
        "SQLALCHEMY_DATABASE_URI": url,
        "SQLALCHEMY_ENGINE_OPTIONS": engine_options(
            url,
            settings.database_pool_size,
            limits,
            prepare=settings.prepared_statements_enabled,
        ),
    }
    try:
        db = SQLAlchemy(private, metadata=Base.metadata)
        with private.app_context():
            engine = db.engine
        prepare_sqlite(engine)
        set_up(engine, limits)
    except BaseException:
        # So that it can be made later.
        private.extensions.pop("sqlalchemy", None)
        raise
    return engine


def _instance_path(settings: Settings) -> str | None:
    return None if settings.instance_path is None else os.path.abspath(settings.instance_path)


def _host_secret(app: Flask, settings: Settings) -> str:
    if settings.secret_key is not None:
        return settings.secret_key
    host = app.config.get("SECRET_KEY") or ""
    key = host.encode() if isinstance(host, str) else bytes(host)
    if len(key) < MIN_HOST_SECRET_BYTES:
        raise ConfigError(
            "Set JOBAPI_SECRET_KEY, or give the application a SECRET_KEY of at least "
            f"{MIN_HOST_SECRET_BYTES} bytes. Make one with: {NEW_SECRET_COMMAND}"
        )
    # Derived, so that what the host signs with its key is never a token of ours.
    return hmac.new(key, b"jobapi tokens", hashlib.sha256).hexdigest()


def _development_secret(settings: Settings, folder: Path) -> str:
    """The secret kept in the instance folder, made when it is first needed."""
    if not settings.development:
        raise ConfigError(
            "JOBAPI_SECRET_KEY is not set; it signs the tokens. "
            f"Make one with: {NEW_SECRET_COMMAND} "
            "(On a developer's machine set JOBAPI_ENV=development instead.)"
        )
    path = folder / "development-secret"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written whole before it gets its name: of two processes that start at
        # the same moment both end up with the same secret.
        draft = folder / f".development-secret-{os.getpid()}-{secrets.token_hex(4)}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
