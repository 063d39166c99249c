"""``jobapi serve``: the service with gunicorn."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy.exc import SQLAlchemyError

from ..state import State
from .base import Command, note, state
from .demo import DEMO_PASSWORD, DEMO_USER, demo_works


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 chooses a free one.",
)
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(1), help="Number of processes."
)
@click.option(
    "--threads",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="Number of threads per process.",
)
@with_appcontext
def serve(host: str, port: int, workers: int, threads: int) -> None:
    """Serve the API with gunicorn. The database must be migrated."""
    # gunicorn needs modules that Windows does not have. The other commands work there.
    from .gunicorn_server import Server

    ours = state()
    ours.server_threads = threads

    def announce(listens_on: Any) -> None:
        if ours.settings.development:
            note(greeting(ours, listens_on))

    options = {"bind": f"{in_url(host)}:{port}", "workers": workers, "threads": threads}
    Server(ours, options, announce).run()


def greeting(ours: State, address: tuple[Any, ...]) -> str:
    """What a developer wants to know about a service that listens on ``address``."""
    host, port = address[:2]
    listens = ip_address(host)
    # A browser cannot open 0.0.0.0, the address that means all of them.
    if listens.is_unspecified or listens.is_loopback:
        host = "localhost"
    url = f"http://{in_url(host)}:{port}{ours.url_prefix}"
    rows = []
    if ours.settings.dashboard_enabled:
        rows.append(("Dashboard", f"{url}/dashboard"))
    if ours.settings.docs_enabled:
        rows.append(("API docs", f"{url}/docs"))
    rows.append(("API", url))
    try:
        with ours.engine.connect() as connection:
            if demo_works(connection):
                rows.append(("Log in", f"user {DEMO_USER}, password {DEMO_PASSWORD}"))
    except SQLAlchemyError:
        rows.append(("Database", "not ready. If it is not migrated, run: jobapi init"))
    rows.append(("Stop", "Ctrl-C"))
    return "\n" + "\n".join(f"  {name:11}{text}" for name, text in rows) + "\n"


def in_url(host: str) -> str:
    """A host name or address as a URL has it: with brackets around an IPv6 address."""
    return f"[{host}]" if ":" in host else host
