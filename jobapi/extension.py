"""The only wiring: adds the Job API to a Flask application."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from . import __version__, config, logs
from .commands import main
from .config import NEW_SECRET_COMMAND, ConfigError, Settings
from .state import State
from .store.secret_box import SecretBox
from .tokens import TokenIssuer
from .views import (
    auth,
    dashboard,
    docs,
    events,
    health,
    hooks,
    job_lists,
    job_logs,
    job_types,
    jobs,
    metrics,
    operations,
    schedules,
    stats,
    users,
    webhooks,
    worker,
    workspaces,
)
from .views.openapi import Api

MIN_HOST_SECRET_BYTES = 16

logger = logging.getLogger("jobapi")


class JobAPI:
    """Adds the Job API to a Flask application.

    ``url_prefix`` is the path below which it is served, such as ``/job-api``.
    ``current_user`` is for an application with a login of its own: called in each
    request, it returns the stable id of the logged-in user (what ``accounts.host_id``
    takes), or None. The login of jobapi is not served then. With ``maintenance`` each
    serving process has a thread for the background work, such as expired leases;
    without it, run ``flask jobapi maintain``.

    The database is ``JOBAPI_DATABASE_URL``; if that is not set, the application's
    Flask-SQLAlchemy engine (its bind ``jobapi``, if there is one); otherwise a SQLite
    file in the application's instance folder.
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
        ``RuntimeError`` if the application has a Job API already.
        """
        settings = config.load(app.config)
        _install(
            app,
            settings,
            *_host_secrets(app, settings),
            url_prefix=self.url_prefix,
            current_user=self.current_user,
            standalone=False,
            maintain=self.maintenance,
        )


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """Create an application that serves only the Job API.

    ``settings`` maps ``JOBAPI_…`` names to values, which override the environment.
    Raises ``ConfigError``.
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
        loaded.fallbacks,
        url_prefix="",
        current_user=None,
        standalone=True,
        maintain=loaded.maintenance_enabled,
    )
    return app


# Matches a path after WSGI has decoded it.
_PATH_PREFIX = re.compile(r"(/[^/\\?#\"<>\x00-\x1f\x7f]+)*/?")


def _below_prefix(wsgi_app: Callable[..., Any]) -> Callable[..., Any]:
    """Ignore a SCRIPT_NAME that is not a valid path.

    With ``//evil.example`` the links of the API would lead to another site.
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
    fallbacks: Sequence[str],
    *,
    url_prefix: str,
    current_user: Callable[[], Any] | None,
    standalone: bool,
    maintain: bool,
) -> None:
    _check_application(app, url_prefix)
    private = Flask("jobapi", instance_path=app.instance_path, static_folder=None)
    api = Api(app, version=__version__, description=docs.DESCRIPTION)
    state = State(
        app=app,
        settings=settings,
        private=private,
        tokens=TokenIssuer(
            private, secret, settings.access_token_seconds, settings.refresh_token_seconds
        ),
        box=SecretBox(secret, fallbacks),
        message=webhooks.message,
        url_prefix=url_prefix,
        standalone=standalone,
        current_user=current_user,
        document=lambda: api.spec,
        maintain=maintain,
    )
    app.extensions["jobapi"] = private.extensions["jobapi"] = state
    api.describe_security(current_user is not None)
    api.describe_messages()
    for blueprint in _DOCUMENTED:
        if blueprint is not auth.blp or current_user is None:
            api.register_blueprint(blueprint, url_prefix=url_prefix or None)
    undocumented = {
        metrics.blp: settings.metrics_token is not None,
        docs.blp: settings.docs_enabled,
        dashboard.blp: settings.dashboard_enabled,
    }
    for plain, enabled in undocumented.items():
        if enabled:
            app.register_blueprint(plain, url_prefix=url_prefix or None)
    hooks.register(app, state)
    app.cli.add_command(main.main)


_DOCUMENTED = (
    auth.blp,
    job_lists.blp,
    jobs.blp,
    operations.blp,
    stats.blp,
    events.blp,
    worker.blp,
    job_logs.blp,
    job_types.blp,
    schedules.blp,
    webhooks.blp,
    workspaces.blp,
    workspaces.keys_blp,
    auth.own_blp,
    users.blp,
    health.blp,
)
"""The views of the OpenAPI document, in its order."""


def _check_application(app: Flask, url_prefix: str) -> None:
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


def _instance_path(settings: Settings) -> str | None:
    return None if settings.instance_path is None else os.path.abspath(settings.instance_path)


def _host_secrets(app: Flask, settings: Settings) -> tuple[str, list[str]]:
    """The secret, and its predecessors."""
    if settings.secret_key is not None:
        return settings.secret_key, settings.fallbacks
    key = _bytes(app.config.get("SECRET_KEY") or "")
    if len(key) < MIN_HOST_SECRET_BYTES:
        raise ConfigError(
            "Set JOBAPI_SECRET_KEY, or give the application a SECRET_KEY of at least "
            f"{MIN_HOST_SECRET_BYTES} bytes. Make one with: {NEW_SECRET_COMMAND}"
        )
    hosts = [_derived(_bytes(each)) for each in app.config.get("SECRET_KEY_FALLBACKS") or ()]
    return _derived(key), [*settings.fallbacks, *hosts]


def _bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else bytes(key)


def _derived(key: bytes) -> str:
    # So that nothing the host signs passes as one of jobapi's tokens.
    return hmac.new(key, b"jobapi tokens", hashlib.sha256).hexdigest()


def _development_secret(settings: Settings, folder: Path) -> str:
    """The secret in the instance folder, created when it is first needed."""
    if not settings.development:
        raise ConfigError(
            "JOBAPI_SECRET_KEY is not set; it signs the tokens. "
            f"Make one with: {NEW_SECRET_COMMAND} "
            "(On a developer's machine set JOBAPI_ENV=development instead.)"
        )
    path = folder / "development-secret"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written completely before it gets its name, so that two processes that start at
        # the same moment use the same secret.
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
