"""Settings, with defaults and descriptions; checked when the application starts.

A value comes from the host application's ``app.config``, else from the
environment, else it is the default. Every name starts with ``JOBAPI_``.
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
"""prometheus-client's own variable: the folder in which processes share their metrics."""

CLIENT_VARIABLES = frozenset({"JOBAPI_URL", "JOBAPI_TOKEN", "JOBAPI_WORKSPACE"})
"""Read by the commands that talk to a running service; not settings of the service."""

SERVED_BY = ("sqlite", "postgresql")
NEW_SECRET_COMMAND = "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

_ORIGIN = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")

logger = logging.getLogger("jobapi")


class ConfigError(Exception):
    """A setting has an invalid value; the message says what to do."""


def _setting(default: Any, doc: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"doc": doc, **metadata})


@dataclass(frozen=True)
class Settings:
    """Every setting; ``docs/settings.md`` has the same table. ``…_seconds`` are seconds."""

    env: str = _setting(
        "production",
        "`production` or `development`. In development, a secret is generated and saved in the "
        "instance folder, the demo user is allowed, and logs are text.",
        choices=("production", "development"),
    )
    database_url: str | None = _setting(
        None,
        "`postgresql://user:password@host/name` or `sqlite:///file`. Default: a SQLite file in "
        "the instance folder; embedded: the host's Flask-SQLAlchemy engine.",
    )
    secret_key: str | None = _setting(
        None,
        f"Signs the tokens; at least {MIN_SECRET_BYTES} bytes. Required in production. Embedded, "
        "the default is derived from the host's `SECRET_KEY`.",
    )
    secret_key_fallbacks: str = _setting(
        "",
        "Predecessors of `JOBAPI_SECRET_KEY`, separated by commas. They only decrypt the secrets "
        "of webhooks: keep one until all webhooks have been given new secrets since.",
    )
    instance_path: str | None = _setting(
        None,
        "Folder for the SQLite file and the development secret. Default: Flask's instance folder.",
    )
    access_token_seconds: int = _setting(3600, "Lifetime of an access token.", least=1)
    refresh_token_seconds: int = _setting(
        30 * 24 * 3600,
        "Lifetime of a refresh token. A login session ends 90 days after the password was entered, "
        "however often it is refreshed.",
        least=1,
    )
    ratelimit_enabled: bool = _setting(True, "Whether the number of failed logins is limited.")
    login_failures_per_minute: int = _setting(
        20,
        "Limit of failed logins per minute for one username from one address. Further logins "
        "are refused with 429.",
        least=1,
    )
    login_failures_per_address: int = _setting(
        30,
        "Limit of failed logins per minute from one address, for all usernames together. An "
        "IPv6 /64 counts as one address.",
        least=1,
    )
    login_failures_per_name: int = _setting(
        100,
        "Limit of failed logins per minute for one username, from all addresses together. Above "
        "it, even the right password is refused for the rest of the minute.",
        least=1,
    )
    retry_backoff_seconds: int = _setting(
        5,
        "Longest delay before the first automatic retry. This bound doubles with each further "
        "retry; the delay is random, between half of the bound and the bound.",
        least=1,
    )
    retry_backoff_max_seconds: int = _setting(
        3600, "Upper bound of the delay before any automatic retry.", least=1
    )
    max_schedules: int = _setting(
        100,
        "Largest number of schedules of a workspace. A further one is refused with 409.",
        least=1,
    )
    max_body_bytes: int = _setting(
        1024 * 1024, "Largest request body. A larger one is refused with 413.", least=1024
    )
    cors_origins: str = _setting(
        "",
        "Origins whose pages may call the API from a browser, separated by commas, such as "
        "`https://app.example.com`, or `*` for all. Patterns are not supported. Empty: none.",
    )
    trusted_proxies: int = _setting(
        0,
        "Number of reverse proxies in front of the service. That many `X-Forwarded-*` hops are "
        "trusted, so each proxy must set these headers. Not used when embedded.",
        least=0,
    )
    database_pool_size: int = _setting(
        10, "Database connections per process. Not used with a host's engine.", least=1
    )
    database_statement_seconds: int = _setting(
        15,
        "How long a statement of a request may run on Postgres. If the server does not answer at "
        "all, the connection is closed 2 seconds later.",
        least=1,
    )
    database_lock_seconds: int = _setting(
        5,
        "How long a statement waits for a lock of another transaction; on SQLite, for the write "
        "lock.",
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
        "How many threads per process the server has that runs the application: half of them "
        "may hold waiting claims. `jobapi serve` ignores it and uses `--threads`.",
        least=1,
    )
    prepared_statements_enabled: bool = _setting(
        True,
        "Whether frequent statements are prepared on each connection. Set it to false behind a "
        "pooler in transaction mode that does not support prepared statements. Not used with a "
        "host's engine.",
    )
    listen_enabled: bool = _setting(
        True,
        "Whether waiting claims use Postgres's LISTEN/NOTIFY, with one connection per process. "
        "Otherwise they poll.",
    )
    listen_database_url: str | None = _setting(
        None,
        "URL of the database itself for LISTEN, if `JOBAPI_DATABASE_URL` is a pooler in "
        "transaction mode. Default: a connection of the engine.",
    )
    max_streams: int = _setting(
        1000,
        "Largest number of open event streams per process, at most half of the process's limit "
        "of open files. Under gunicorn without TLS a stream holds no thread; otherwise each "
        "holds one, and at most a quarter of the threads may do so. 0 switches streams off.",
        least=0,
    )
    maintenance_enabled: bool = _setting(
        True,
        "Whether the processes of the service run the maintenance. If false, run `jobapi "
        "maintain`. Not used when embedded.",
    )
    webhooks_per_workspace: int = _setting(
        20, "Largest number of webhooks of a workspace; 0 refuses new ones.", least=0
    )
    webhook_private_addresses: bool = _setting(
        False,
        "Whether webhooks may lead to addresses that are not globally routable, such as "
        "`127.0.0.1`. For development: owners of workspaces could reach internal services.",
    )
    webhook_allow_http: bool = _setting(
        False, "Whether webhooks may use http besides https. For development."
    )
    docs_enabled: bool = _setting(True, "Whether `/docs` and `/openapi.json` are served.")
    dashboard_enabled: bool = _setting(True, "Whether `/dashboard` is served.")
    metrics_token: str | None = _setting(
        None,
        f"Bearer token that Prometheus must send to read `/metrics`; at least {MIN_METRICS_TOKEN} "
        "characters. If it is not set, `/metrics` is 404 and nothing is measured.",
    )
    log_level: str = _setting(
        "INFO",
        "`DEBUG`, `INFO`, `WARNING` or `ERROR`. Not used when embedded.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_format: str = _setting(
        "json",
        "`json` (one object per line) or `text`. In development the default is `text`. Not used "
        "when embedded.",
        choices=("json", "text"),
    )

    @property
    def development(self) -> bool:
        """Whether this is a developer's machine."""
        return self.env == "development"

    @property
    def fallbacks(self) -> list[str]:
        """``secret_key_fallbacks`` as a list."""
        return [key.strip() for key in self.secret_key_fallbacks.split(",") if key.strip()]

    @property
    def origins(self) -> list[str]:
        """``cors_origins`` as a list."""
        return [o.strip().lower() for o in self.cors_origins.split(",") if o.strip()]


def load(config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings.

    Logs a warning for an unknown name, with the nearest known one. Raises
    ``ConfigError`` for an invalid value.
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
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else "; see docs/settings.md."
        logger.warning("Unknown setting %s%s", name, hint)
    values = {
        known[name].name: _convert(name, known[name], value)
        for name, value in given.items()
        # An empty variable counts as not set.
        if name in known and value is not None and value != ""
    }
    if values.get("env") == "development":
        values.setdefault("log_format", "text")
    settings = Settings(**values)
    _check(settings)
    folder = environ.get(METRICS_FOLDER)
    if settings.metrics_token is not None and folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"{METRICS_FOLDER} must be an existing directory, not {folder!r}.")
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
        # The text may contain a password, so it is not repeated.
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
    if any(len(key.encode()) < MIN_SECRET_BYTES for key in settings.fallbacks):
        raise ConfigError(
            f"JOBAPI_SECRET_KEY_FALLBACKS has a key with less than {MIN_SECRET_BYTES} bytes; "
            "separate the keys by commas."
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
                f"JOBAPI_LISTEN_DATABASE_URL is for {url.get_backend_name()}; only Postgres has "
                "LISTEN."
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
                "JOBAPI_DATABASE_URL is a SQLite database in memory, which processes cannot share; "
                "name a file: sqlite:///file."
            )
    for origin in settings.origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"JOBAPI_CORS_ORIGINS has {origin!r}, which is not an origin; write each in full, "
                "such as https://app.example.com or http://localhost:3000, without a trailing "
                "slash, a path, a wildcard or a pattern."
            )
