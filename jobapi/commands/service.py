"""The commands that run and look after the service.

What a command makes is printed alone on standard output, as its id or key;
messages go to standard error.
"""

from __future__ import annotations

import gc
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import click
import flask_migrate
from flask import current_app
from flask.cli import ScriptInfo, with_appcontext
from flask_migrate.cli import db as migrate_group
from marshmallow import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .. import config, logs
from ..errors import JobApiError, UsernameTaken, UserNotFound
from ..rules.jobs import JobStatus, Priority
from ..rules.roles import Role
from ..schemas.fields import Time
from ..services import accounts, counts, events, keys, workspaces
from ..signals import StopSignals
from ..store.engine import long_transaction
from ..store.faults import judge, lacks_schema

_FOLDER = "jobapi-metrics-"
_LOCK = "lock"

DEMO_USER = "demo"
DEMO_PASSWORD = "demo-password"  # public on purpose; refused in production


@contextmanager
def _messages() -> Iterator[None]:
    """Turn what a person can put right into a message instead of a traceback."""
    try:
        yield
    except (JobApiError, config.ConfigError) as error:
        raise click.ClickException(str(error)) from None
    except UnicodeEncodeError:
        # Do not show the argument: it may be a password.
        raise click.ClickException("An argument is not valid UTF-8.") from None
    except SQLAlchemyError as error:
        fault = judge(error)
        said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
        if lacks_schema(error):
            said += "\nIf the database is not migrated, run: jobapi init"
        raise click.ClickException(
            f"The database refused: {said}" if fault is None else f"{fault.detail}\n{said}"
        ) from None


class _Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        with _messages():
            return super().invoke(ctx)


class _Group(click.Group):
    command_class = _Command
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:
        with _messages():
            return super().invoke(ctx)


group = _Group()
"""The commands, to be found by ``cli``."""


def provide_app(ctx: click.Context) -> None:
    """Say to the commands what is their application, where no host has said so."""
    if ctx.find_object(ScriptInfo) is None:
        ctx.obj = ScriptInfo(create_app=_create_app, set_debug_flag=False)


def _create_app() -> Any:
    # The application is the top of all imports; in a host it is there already.
    from .. import create_app

    return create_app()


def _state() -> Any:
    return current_app.extensions["jobapi"]


@contextmanager
def _transaction() -> Iterator[Connection]:
    with _state().engine.connect() as connection, long_transaction(connection) as tx:
        yield tx


def _note(message: str) -> None:
    click.echo(message, err=True)


@group.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option(
    "--threads", default=8, show_default=True, type=click.IntRange(1), help="Threads in each."
)
@with_appcontext
def serve(host: str, port: int, workers: int, threads: int) -> None:
    """Serve the API with gunicorn; the database has to be migrated."""
    import resource

    from gunicorn.app.base import BaseApplication

    from .gunicorn_worker import OPTIONS, Worker

    state = _state()
    app, settings = state.app, state.settings
    state.server_threads = threads

    class ServingWorker(Worker):
        live_path = f"{state.url_prefix}/health/live"

    # A new master creates its own folder for metrics, unless one was given.
    ours = config.METRICS_FOLDER not in os.environ

    def begin(worker: Any) -> None:
        folder = os.environ.get(config.METRICS_FOLDER)
        if settings.metrics_token is not None and folder is not None:
            # A clean-up of temporary files may have removed it.
            with suppress(OSError):
                os.makedirs(folder, 0o700, exist_ok=True)
        # Those who wait for jobs are not waited for when the process shall end.
        state.is_stopping = lambda: not worker.alive
        if state.maintain:
            state.maintenance.start()

    def end(server: Any, worker: Any) -> None:
        state.streams.stop()
        state.maintenance.stop()

    def gone(server: Any, worker: Any) -> None:
        if settings.metrics_token is not None:
            from ..metrics import note_end

            note_end(worker.pid)

    # An IPv6 address needs its brackets.
    address = f"[{host}]" if ":" in host else host
    options = {
        **OPTIONS,
        "bind": f"{address}:{port}",
        "workers": workers,
        "threads": threads,
        "worker_class": ServingWorker,
        "preload_app": True,
        "control_socket_disable": True,
        "post_worker_init": begin,
        "worker_exit": end,
        "child_exit": gone,
        "logconfig_dict": logs.dict_config(settings.log_level, settings.log_format),
    }

    class Server(BaseApplication):
        def load_config(self) -> None:
            if ours:
                # At SIGHUP gunicorn reads the environment again, for the master that may follow.
                self.cfg.env_orig.pop(config.METRICS_FOLDER, None)
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return app

    # A stream is an open file, as is a connection; the usual 1,024 are few.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * settings.max_streams + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    # What has been loaded stays: the collector need not look through it again
    # and again, which costs as much as what a large batch needs.
    gc.collect()
    gc.freeze()
    server = Server()
    # After gunicorn has kept the environment for whom it may start in its place.
    with _metrics_folder(settings):
        server.run()


@contextmanager
def _metrics_folder(settings: config.Settings) -> Iterator[None]:
    """A folder in which the processes to come add up what they measure, where there is none."""
    # prometheus-client looks for it once, and what it does for a host stays as it is.
    if (
        settings.metrics_token is None
        or config.METRICS_FOLDER in os.environ
        or "prometheus_client" in sys.modules
    ):
        yield
        return
    import fcntl

    _remove_folders_left_behind()
    folder = os.environ[config.METRICS_FOLDER] = tempfile.mkdtemp(prefix=_FOLDER)
    process = os.getpid()
    with open(os.path.join(folder, _LOCK), "w") as lock:
        # Held by this process and those that it forks, however they end.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # The processes that serve end here, too.
            if os.getpid() == process:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_folders_left_behind() -> None:
    """Remove the folders of services that were killed."""
    import fcntl

    for folder in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_FOLDER}*")):
        # It belongs to another program, is in use, or is just being created.
        with suppress(OSError), open(os.path.join(folder, _LOCK), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@group.command()
@with_appcontext
def maintain() -> None:
    """Look after leases that have run out, until stopped; any number of these may run."""
    maintenance = _state().maintenance
    with StopSignals() as signals:
        _note("Looking after leases.")
        maintenance.start()
        while not signals.asked:
            time.sleep(0.2)
        maintenance.stop()


@group.command("db-check")
@with_appcontext
def db_check() -> None:
    """Recount all jobs, and put totals right; it ends with 1 where some were wrong."""
    wrong = 0
    with _state().engine.connect() as connection:
        for workspace_id in workspaces.ids(connection):
            with long_transaction(connection) as tx:
                found = counts.check(tx, workspace_id)
            for kind in found:
                wrong += 1
                status, priority = JobStatus(kind.status).label, Priority(kind.priority).label
                _note(f"workspace {workspace_id}: {status} {kind.job_type} {priority}: {kind.n:+}")
    _note(f"{wrong} totals were wrong, and are right now." if wrong else "All totals are right.")
    if wrong:
        raise SystemExit(1)


@group.command()
@click.option("--demo", is_flag=True, help="Add a demo user and workspace 1 (development only).")
@with_appcontext
def init(demo: bool) -> None:
    """Migrate the database to what this version needs."""
    settings = _state().settings
    if demo and not settings.development:
        raise click.ClickException(
            "--demo makes a user whose password everybody knows; it needs JOBAPI_ENV=development."
        )
    with _state().private.app_context():
        flask_migrate.upgrade()
    with _transaction() as tx:
        events.begin_anew(tx)
    _note("The database is up to date.")
    if demo:
        _make_demo()


def _make_demo() -> None:
    with _transaction() as tx:
        try:
            user = accounts.find_user(tx, DEMO_USER)
        except UserNotFound:
            try:
                user = accounts.create_user(tx, DEMO_USER, password=DEMO_PASSWORD, is_admin=True)
            except UsernameTaken:
                # Another process has just made it, with its workspace.
                user = accounts.find_user(tx, DEMO_USER)
        mine = workspaces.page(tx, user_id=user.id, page=1, limit=1).rows
        workspace_id = (mine[0] if mine else workspaces.create(tx, "Demo", owner_id=user.id)).id
    _note(
        f"Demo user {DEMO_USER!r} (an administrator), password {DEMO_PASSWORD!r}, "
        f"workspace {workspace_id}. To start with:\n"
    )
    click.echo(demo_lines(workspace_id))
    _note("\nAll operations, to read and try: http://localhost:8000/docs\n")


def demo_lines(workspace_id: int) -> str:
    """Three lines of curl: log in, create a job, list jobs."""
    url = "http://localhost:8000"
    jobs = f"{url}/workspace/{workspace_id}/jobs"
    login = f'{{"username": "{DEMO_USER}", "password": "{DEMO_PASSWORD}"}}'
    job = f'{{"job_type": "data_processing", "workspace_id": {workspace_id}}}'
    json = "-H 'Content-Type: application/json'"
    token = '-H "Authorization: Bearer $TOKEN"'
    return "\n".join(
        [
            f"TOKEN=$(curl -s {url}/auth/login {json} -d '{login}' "
            '| sed \'s/.*"access_token":"\\([^"]*\\)".*/\\1/\')',
            f"curl -s {jobs} {token} {json} -d '{job}'",
            f"curl -s {jobs} {token}",
        ]
    )


@group.group()
@click.pass_context
@with_appcontext
def db(ctx: click.Context) -> None:
    """Migrations (Flask-Migrate)."""
    # They run on the application that has our database, and a host's own
    # migrations never see it.
    ctx.with_resource(_state().private.app_context())
    ctx.invoke(migrate_group)


for _name, _command in migrate_group.commands.items():
    # The others make a new set of migrations, which is for nobody but us.
    if _name not in ("init", "list-templates"):
        db.add_command(_command)


@group.group("users")
def users_group() -> None:
    """Who may log in."""


@users_group.command("create")
@click.argument("name")
@click.option("--password", help="Prompted for where it is not given.")
@click.option("--admin", is_flag=True, help="Make the user an administrator.")
@with_appcontext
def create_user(name: str, password: str | None, admin: bool) -> None:
    """Create a user and print the user's id."""
    password = _password(password)
    with _transaction() as tx:
        user = accounts.create_user(tx, name, password=password, is_admin=admin)
    _note(f"Created user {name!r}{' (administrator)' if admin else ''}.")
    click.echo(user.id)


@users_group.command("passwd")
@click.argument("name")
@click.option("--password", help="Prompted for where it is not given.")
@with_appcontext
def set_password(name: str, password: str | None) -> None:
    """Set a user's password; all log-ins of the user end."""
    password = _password(password)
    with _transaction() as tx:
        accounts.edit_user(tx, accounts.find_user(tx, name).id, {"password": password})
    _note(f"Set the password of {name!r}.")


@users_group.command("disable")
@click.argument("name")
@with_appcontext
def disable_user(name: str) -> None:
    """Disable a user, whose log-ins end and whose keys stop working at once."""
    with _transaction() as tx:
        accounts.edit_user(tx, accounts.find_user(tx, name).id, {"disabled": True})
    _note(f"Disabled {name!r}.")


@users_group.command("enable")
@click.argument("name")
@with_appcontext
def enable_user(name: str) -> None:
    """Enable a user again: API keys work again, and the user has to log in again."""
    with _transaction() as tx:
        accounts.edit_user(tx, accounts.find_user(tx, name).id, {"disabled": False})
    _note(f"Enabled {name!r}.")


def _password(given: str | None) -> str:
    if given is None:
        given = str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    accounts.check_password_form(given)
    return given


@group.group("workspaces")
def workspaces_group() -> None:
    """Where jobs live."""


@workspaces_group.command("create")
@click.argument("name")
@click.option("--owner", required=True, help="The user who owns it.")
@with_appcontext
def create_workspace(name: str, owner: str) -> None:
    """Create a workspace and print its id."""
    with _transaction() as tx:
        user = accounts.find_user(tx, owner)
        workspace = workspaces.create(tx, name, owner_id=user.id)
    _note(f"Created workspace {name!r}; {owner!r} owns it.")
    click.echo(workspace.id)


@group.group("keys")
def keys_group() -> None:
    """API keys, with which machines use one workspace."""


@keys_group.command("create")
@click.option("--workspace", "workspace_id", required=True, type=click.IntRange(1, 2**31 - 1))
@click.option(
    "--role",
    required=True,
    type=click.Choice([role.label for role in Role if role is not Role.OWNER]),
)
@click.option("--name", required=True, help="What it is for.")
@click.option("--user", help="For whom it acts.  [default: the workspace's first owner]")
@click.option(
    "--job-type",
    "job_types",
    multiple=True,
    help="Limit the key to this job type; repeat it for more types.  [default: all]",
)
@click.option(
    "--expires",
    metavar="TIME",
    help="When the key expires: 2030-01-31T00:00:00Z.  [default: never]",
)
@with_appcontext
def create_key(
    workspace_id: int,
    role: str,
    name: str,
    user: str | None,
    job_types: tuple[str, ...],
    expires: str | None,
) -> None:
    """Create an API key and print it. It is not shown again."""
    expires_at = None if expires is None else _time(expires, "--expires")
    with _transaction() as tx:
        workspaces.get(tx, workspace_id)
        if user is None:
            user_id = workspaces.first_owner(tx, workspace_id)
        else:
            user_id = accounts.find_user(tx, user).id
        _, key = keys.create(
            tx,
            workspace_id,
            user_id=user_id,
            name=name,
            role=Role[role.upper()],
            job_types=job_types or None,
            expires_at=expires_at,
        )
    _note(f"Created the key {name!r} for workspace {workspace_id}. It is not shown again:")
    click.echo(key)


def _time(text: str, option: str) -> datetime:
    try:
        moment: datetime = Time().deserialize(text)
    except ValidationError as error:
        raise click.BadParameter(" ".join(error.messages), param_hint=option) from None
    return moment
