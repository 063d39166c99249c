"""The settings: one line each with its default, checked when the app starts.

They come from the host application's ``app.config``, else from the
environment, else from here, always under a name that starts with ``JOBAPI_``.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from .store.engine import normalize_url, unknown_options

PREFIX = "JOBAPI_"
MIN_SECRET_BYTES = 32
MIN_METRICS_TOKEN = 16
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own variable: where processes add up what they measure."""

CLIENT_VARIABLES = frozenset({"JOBAPI_URL", "JOBAPI_TOKEN", "JOBAPI_WORKSPACE"})
"""For the commands that talk to a running service; no settings of the service."""

SERVED_BY = ("sqlite", "postgresql")
NEW_SECRET_COMMAND = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

_ORIGIN = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")

logger = logging.getLogger("jobapi")


class ConfigError(Exception):
    """A setting that the service cannot start with; the message says what to do."""


def _setting(default: Any, doc: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"doc": doc, **metadata})


@dataclass(frozen=True)
class Settings:
    """Every setting. A number of seconds says so in its name."""

    env: str = _setting(
        "production",
        "`production` or `development`. Development makes and keeps a secret by itself and "
        "allows the demo user.",
        choices=("production", "development"),
    )
    database_url: str | None = _setting(
        None,
        "`postgresql://user:password@host/name`, or `sqlite:///file`. Default: a SQLite file in "
        "the instance folder; embedded: the host's own Flask-SQLAlchemy engine.",
    )
    secret_key: str | None = _setting(
        None,
        f"Signs the tokens; at least {MIN_SECRET_BYTES} bytes. Required in production. "
        "Embedded: derived from the host's `SECRET_KEY` where it is not set.",
    )
    instance_path: str | None = _setting(
        None, "The folder for the SQLite file and the development secret. Default: Flask's."
    )
    access_token_seconds: int = _setting(3600, "How long an access token works.", least=1)
    refresh_token_seconds: int = _setting(
        30 * 24 * 3600,
        "Lifetime of a refresh token. A log-in ends 90 days after the password was entered, "
        "however often it is refreshed.",
        least=1,
    )
    ratelimit_enabled: bool = _setting(True, "Whether failed log-ins are limited.")
    login_failures_per_minute: int = _setting(
        20, "How many log-ins may fail in a minute, for one user name from one address.", least=1
    )
    login_failures_per_address: int = _setting(
        30,
        "How many log-ins may fail in a minute from one address, for all user names together. An "
        "IPv6 /64 counts as one address.",
        least=1,
    )
    login_failures_per_name: int = _setting(
        100,
        "How many log-ins may fail in a minute for one user name, from all addresses together. "
        "Above the limit, even the right password is refused for the rest of the minute.",
        least=1,
    )
    retry_backoff_seconds: int = _setting(
        5,
        "The longest wait before the first automatic retry of a job; it doubles with each further "
        "one, and half of it is left to chance.",
        least=1,
    )
    retry_backoff_max_seconds: int = _setting(
        3600, "The longest wait before any automatic retry.", least=1
    )
    max_body_bytes: int = _setting(
        1024 * 1024, "The largest request body; a larger one is answered with 413.", least=1024
    )
    cors_origins: str = _setting(
        "",
        "The origins whose pages may call the API from a browser, separated by commas, such as "
        "`https://app.example.com`; or `*` for all. Patterns are not supported. Empty: none.",
    )
    trusted_proxies: int = _setting(
        0,
        "How many reverse proxies are in front of the service. That many `X-Forwarded-*` hops are "
        "trusted, so each proxy must set these headers. Not used when embedded.",
        least=0,
    )
    database_pool_size: int = _setting(
        10, "Database connections per process. Not used with a host's engine.", least=1
    )
    database_statement_seconds: int = _setting(
        15,
        "How long Postgres may work on one statement of a request. If the server does not answer "
        "at all, the connection is closed 2 seconds later.",
        least=1,
    )
    database_lock_seconds: int = _setting(
        5,
        "How long a statement waits for a lock that another transaction holds; on SQLite, for the "
        "write lock.",
        least=1,
    )
    database_connect_seconds: int = _setting(
        5,
        "How long to wait for a new connection to Postgres; at least 2. Not used with a host's "
        "engine.",
        least=2,
    )
    server_threads: int = _setting(
        8,
        "With how many threads a process serves; half of them may wait for jobs at a time. "
        "`jobapi serve --threads` sets it.",
        least=1,
    )
    prepared_statements_enabled: bool = _setting(
        True,
        "Whether the statements that read one row are prepared on each connection. Set it to "
        "false behind a pooler in transaction mode that keeps no prepared statements. Not used "
        "with a host's engine.",
    )
    listen_enabled: bool = _setting(
        True,
        "Whether those who wait for jobs use Postgres's LISTEN, with one connection per process. "
        "If not, they only look.",
    )
    listen_database_url: str | None = _setting(
        None,
        "The database's own URL for LISTEN, past a pooler in transaction mode, which cannot do it. "
        "Default: a connection of the engine.",
    )
    max_streams: int = _setting(
        1000,
        "How many streams of events a process may have open; never more than half of its limit of "
        "open files. Where streams take threads (any server except gunicorn without TLS), a "
        "quarter of the threads is the limit. 0 switches streams off.",
        least=0,
    )
    maintenance_enabled: bool = _setting(
        True,
        "Whether each process has a thread that may look after leases that have run out. If not, "
        "run `jobapi maintain`. Not used when embedded.",
    )
    docs_enabled: bool = _setting(True, "Whether `/docs` and `/openapi.json` are served.")
    dashboard_enabled: bool = _setting(True, "Whether `/dashboard` is served.")
    metrics_token: str | None = _setting(
        None,
        f"The Bearer token for `/metrics`, for Prometheus; at least {MIN_METRICS_TOKEN} "
        "characters. Not set: nothing is measured, and there is no such page.",
    )
    log_level: str = _setting(
        "INFO",
        "`DEBUG`, `INFO`, `WARNING` or `ERROR`. Not used when embedded.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_format: str = _setting(
        "json",
        "`json`, one object a line, or `text` for a person. Not used when embedded.",
        choices=("json", "text"),
    )

    @property
    def development(self) -> bool:
        """Whether this is a developer's machine."""
        return self.env == "development"

    @property
    def origins(self) -> list[str]:
        """``cors_origins`` as a list."""
        return [o.strip().lower() for o in self.cors_origins.split(",") if o.strip()]


def load(config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings.

    A name that is not known is warned of, with the nearest one that is.
    Raises ``ConfigError`` for a value that cannot be used.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {}
    for source in (environ, config):
        given |= {k: v for k, v in source.items() if k.startswith(PREFIX)}
    known = {PREFIX + f.name.upper(): f for f in fields(Settings)}
    for name in sorted(given.keys() - known.keys() - CLIENT_VARIABLES):
        near = difflib.get_close_matches(
            name.removeprefix(PREFIX), [f.name.upper() for f in known.values()], 1
        )
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else "; the README lists all."
        logger.warning("There is no setting %s%s", name, hint)
    values = {
        known[name].name: _convert(name, known[name], value)
        for name, value in given.items()
        # An empty variable is one that somebody has not filled in.
        if name in known and value is not None and value != ""
    }
    settings = Settings(**values)
    _check(settings)
    folder = environ.get(METRICS_FOLDER)
    if settings.metrics_token is not None and folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"{METRICS_FOLDER} must be a folder that there is, unlike {folder!r}.")
    return settings


def _convert(name: str, setting: Any, value: Any) -> Any:
    if setting.type == "bool":
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text in ("true", "1", "yes", "on"):
            return True
        if text in ("false", "0", "no", "off"):
            return False
        raise ConfigError(f"{name} must be true or false, not {value!r}.")
    if setting.type == "int":
        least = setting.metadata["least"]
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = least - 1
        if not least <= number < 2**31:
            raise ConfigError(f"{name} must be a whole number from {least}, not {value!r}.")
        return number
    text = value.decode() if isinstance(value, bytes) else str(value)
    choices = setting.metadata.get("choices")
    if choices and text not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {text!r}.")
    return text


def _url(name: str, text: str) -> URL:
    try:
        return normalize_url(text)
    except ArgumentError:
        # The text may hold a password, so it is not repeated.
        raise ConfigError(
            f"{name} is not a database URL; "
            "write postgresql://user:password@host/name or sqlite:///file."
        ) from None


def _check_options(name: str, url: URL) -> None:
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(
            f"{name} names the driver {url.drivername!r}, which jobapi does not use; write "
            "postgresql:// or sqlite://."
        )
    if url.get_backend_name() == "postgresql" and (unknown := unknown_options(url)):
        raise ConfigError(
            f"{name} has options that libpq does not know: {', '.join(unknown)}. Use libpq's "
            "names, such as ?sslmode=require, or remove them."
        )


def _check(settings: Settings) -> None:
    if settings.secret_key is not None and len(settings.secret_key.encode()) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"JOBAPI_SECRET_KEY must have at least {MIN_SECRET_BYTES} bytes. "
            f"Make one with: {NEW_SECRET_COMMAND}"
        )
    if settings.metrics_token is not None and len(settings.metrics_token) < MIN_METRICS_TOKEN:
        raise ConfigError(
            f"JOBAPI_METRICS_TOKEN must have at least {MIN_METRICS_TOKEN} characters. "
            f"Make one with: {NEW_SECRET_COMMAND}"
        )
    if settings.listen_database_url is not None:
        url = _url("JOBAPI_LISTEN_DATABASE_URL", settings.listen_database_url)
        if url.get_backend_name() != "postgresql":
            raise ConfigError(
                f"JOBAPI_LISTEN_DATABASE_URL is for {url.get_backend_name()}; only Postgres can "
                "be listened to."
            )
        _check_options("JOBAPI_LISTEN_DATABASE_URL", url)
    if settings.database_url is not None:
        url = _url("JOBAPI_DATABASE_URL", settings.database_url)
        backend = url.get_backend_name()
        if backend not in SERVED_BY:
            raise ConfigError(
                f"JOBAPI_DATABASE_URL is for {backend}; jobapi works on {' and '.join(SERVED_BY)}."
            )
        _check_options("JOBAPI_DATABASE_URL", url)
        if backend == "sqlite" and url.database in (None, "", ":memory:"):
            raise ConfigError(
                "JOBAPI_DATABASE_URL is a SQLite database in memory, which each process would "
                "have for itself; name a file: sqlite:///file."
            )
    for origin in settings.origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"JOBAPI_CORS_ORIGINS has {origin!r}, which is not an origin; write each in full, "
                "such as https://app.example.com or http://localhost:3000, without a trailing "
                "slash, a path, a wildcard or a pattern."
            )
