"""What jobapi knows about the application that it serves."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from threading import RLock
from typing import TYPE_CHECKING, Any

from apispec import APISpec
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .background.deliveries import Deliverer
from .background.event_streams import Streams
from .background.long_polling import Waiters
from .background.maintenance import Maintenance
from .background.periodic_tasks import periodic_tasks
from .background.sending import Sender
from .config import SERVED_BY, ConfigError, Settings
from .rules.leases import Backoff
from .services import keys, workers
from .services.deliveries import Message
from .services.ticks import Ticked
from .store import readiness
from .store.engine import Limits, engine_options, from_host, normalize_url, prepare_sqlite, set_up
from .store.faults import judge
from .store.secret_box import SecretBox
from .store.tables import Base
from .tokens import TokenIssuer

if TYPE_CHECKING:
    from .metrics import Metrics

logger = logging.getLogger("jobapi")

BIND_KEY = "jobapi"
NOTE_AGAIN_SECONDS = 60.0
"""After a failure, how long the use of API keys is not recorded."""

MAX_NOTED_WORKERS = 10_000
"""For how many workers a process remembers when it last recorded their presence."""


@dataclass
class State:
    """What jobapi knows about the application that it serves, and what runs in each process."""

    app: Flask
    """The host's application, or the one that ``create_app`` made."""

    settings: Settings

    private: Flask
    """jobapi's private application, which serves nothing.

    It has our flask-jwt-extended, our Flask-Migrate (see ``migrating``) and, if the host has no
    database for us, our Flask-SQLAlchemy, so that the host's own stay as they are.
    """

    tokens: TokenIssuer

    box: SecretBox
    """Encrypts the secrets of webhooks."""

    message: Message
    """Makes the messages to webhooks."""

    url_prefix: str
    """The path below which the API is served; empty for the root."""

    standalone: bool
    """Whether the application serves only the Job API."""

    current_user: Callable[[], Any] | None
    """Returns the id of the host's user who is logged in; None if jobapi's own login is used."""

    document: Callable[[], APISpec]
    """Returns the OpenAPI document, which is written when it is first asked for."""

    maintain: bool = False
    """Whether each serving process has a thread for the maintenance."""

    is_stopping: Callable[[], bool] = lambda: False
    """Whether this process is about to stop; ``jobapi serve`` asks gunicorn."""

    wrote_at: float = float("-inf")
    """When ``/health/ready`` last wrote to the database, on ``time.monotonic``'s clock."""

    server_threads: int = field(init=False)
    """Threads of each serving process: JOBAPI_SERVER_THREADS, or what ``jobapi serve`` uses."""

    waiters: Waiters = field(init=False)
    streams: Streams = field(init=False)
    deliverer: Deliverer = field(init=False)
    maintenance: Maintenance = field(init=False)

    _note_at: float = float("-inf")
    """Until when, after a failure, the use of API keys is not recorded."""

    _worker_noted_at: dict[tuple[int, str | None, str], float] = field(default_factory=dict)
    """When this process last recorded the presence of a worker, on ``time.monotonic``'s clock."""

    _measures: bool = field(init=False)
    """Whether metrics are switched on."""

    _engine: Engine | None = None
    _listen_engine: Engine | None = None
    _metrics: Metrics | None = None
    _lock: RLock = field(default_factory=RLock)

    def __post_init__(self) -> None:
        self._measures = self.settings.metrics_token is not None
        self.server_threads = self.settings.server_threads
        self.waiters = Waiters(
            lambda: self.engine,
            limit=lambda: self.server_threads // 2,
            listen=self.settings.listen_enabled,
            listen_engine=lambda: self.listen_engine,
            is_closing=lambda: self.is_stopping(),
            on_change=self._count_waiting,
        )
        self.streams = Streams(
            lambda: self.engine,
            limit=self.settings.max_streams,
            is_closing=lambda: self.is_stopping(),
            on_change=self._count_streams,
        )
        self.deliverer = Deliverer(
            lambda: self.engine,
            box=self.box,
            message=self.message,
            sender=self.new_sender,
            on_attempt=self._count_attempt,
        )
        self.maintenance = Maintenance(
            lambda: self.engine,
            periodic_tasks(self.backoff, self.count_reaped, self.count_tick, self.waiters.announce),
            companion=self.deliverer,
        )

    def close(self) -> None:
        """Close this process's connections to the database, after it has stopped serving.

        The operating system closes what is still open when the process ends.
        """
        self.waiters.close()
        if self._engine is not None:
            self._engine.dispose()

    @property
    def engine(self) -> Engine:
        """The database, in autocommit mode.

        It is looked up when it is first needed, because a host may set up its database
        after jobapi.
        """
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = self._find_engine()
        return self._engine

    @property
    def metrics(self) -> Metrics | None:
        """The metrics; None if they are switched off or failed to start.

        Created when first needed: ``jobapi serve`` chooses the folder for the metrics of its
        processes after the application is created, and prometheus-client reads its name when
        it is imported.
        """
        if self._metrics is None and self._measures:
            from .metrics import new

            with self._lock:
                try:
                    self._metrics = self._metrics or new()
                except Exception:
                    # The service works without metrics.
                    self._measures = False
                    logger.warning("cannot collect metrics", exc_info=True)
        return self._metrics

    def record_key_use(self, connection: Connection, key_id: int, now: datetime) -> None:
        """Record that a key was used; the request continues if that fails."""
        if time.monotonic() < self._note_at:
            return
        try:
            keys.record_use(connection, key_id, now)
        except DBAPIError as error:
            if judge(error) is None:
                raise
            connection.rollback()
            # Not with every request, because each attempt may wait for a lock.
            self._note_at = time.monotonic() + NOTE_AGAIN_SECONDS
            logger.warning("cannot record when API keys were used: %s", error.orig)

    def note_worker(
        self,
        connection: Connection,
        workspace_id: int,
        name: str | None,
        actor: str,
        job_types: Sequence[str] | None,
    ) -> None:
        """Record that a worker claims jobs, at most every ``workers.SEEN_EVERY``.

        The claim continues if that fails.
        """
        now = time.monotonic()
        worker = (workspace_id, name, actor)
        if now < self._worker_noted_at.get(worker, -math.inf) + workers.SEEN_EVERY.total_seconds():
            return
        if len(self._worker_noted_at) >= MAX_NOTED_WORKERS:
            self._worker_noted_at.clear()
        self._worker_noted_at[worker] = now
        try:
            workers.seen(connection, workspace_id, name, actor, job_types)
        except DBAPIError as error:
            if judge(error) is None:
                raise
            connection.rollback()
            logger.warning("cannot note that a worker is there: %s", error.orig)

    def end_host_reads(self) -> None:
        """Return to the pool the connection with which the host's session identified the caller.

        This is done only if its transaction has written nothing. The session begins a new
        transaction when needed.
        """
        database: Any = self.app.extensions.get("sqlalchemy")
        if self.standalone or not isinstance(database, SQLAlchemy) or len(database.engines) > 1:
            return
        if not database.session.registry.has():
            return
        session = database.session()
        if session.in_transaction() and not _has_written(session):
            session.rollback()

    def count_reaped(self, reaped: Sequence[Any]) -> None:
        """Count the attempts whose lease or timeout has expired."""
        if self.metrics is not None:
            self.metrics.reaped(reaped)

    def count_tick(self, ticked: Ticked) -> None:
        """Count a tick of a schedule."""
        if self.metrics is not None:
            self.metrics.ticked(ticked)

    def new_sender(self) -> Sender:
        """What sends messages to webhooks."""
        return Sender(
            allow_http=self.settings.webhook_allow_http,
            allow_private=self.settings.webhook_private_addresses,
        )

    def _count_attempt(self, workspace_id: int, outcome: str) -> None:
        if self.metrics is not None:
            self.metrics.attempted(workspace_id, outcome)

    def _count_waiting(self, more: int) -> None:
        if self.metrics is not None:
            self.metrics.waiting.inc(more)

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
            host = _usable(engines.get(BIND_KEY) or engines[None])
            engine = from_host(host, self.limits)
            if engine.pool is host.pool:
                # The host's threads may be using it, so no listeners can be added.
                return engine
        else:
            engine = _own_engine(self.private, self.settings, self.limits)
        if self.metrics is not None:
            self.metrics.watch(engine)
        return engine

    @property
    def listen_engine(self) -> Engine:
        """The engine of the connection that listens, which may have to bypass a pooler."""
        if self.settings.listen_database_url is None:
            return self.engine
        with self._lock:
            if self._listen_engine is None:
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

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """The application context in which Flask-Migrate works on our database."""
        # Imported only here, because importing Alembic is slow.
        from flask_migrate import Migrate

        directory = str(readiness.migrations_folder())
        Migrate().init_app(self.private, directory=directory, version_table=readiness.VERSION_TABLE)
        with self.private.app_context():
            yield


def _has_written(session: Session) -> bool:
    """Whether a session's transaction may have something to commit."""
    if session.new or session.dirty or session.deleted:
        return True
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        return connection.scalar(select(func.txid_current_if_assigned())) is not None
    driver_connection: Any = connection.connection.driver_connection
    return bool(getattr(driver_connection, "in_transaction", True))


def _usable(engine: Any) -> Engine:
    """A host's engine. Raises ``ConfigError`` if jobapi cannot work with it."""
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
            url, settings.database_pool_size, limits, prepare=settings.prepared_statements_enabled
        ),
    }
    try:
        db = SQLAlchemy(private, metadata=Base.metadata)
        with private.app_context():
            engine = db.engine
        prepare_sqlite(engine)
        set_up(engine, limits)
    except BaseException:
        # So that a later attempt can create it.
        private.extensions.pop("sqlalchemy", None)
        raise
    return engine
