"""The base of the service's commands: its application, transactions and error messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from flask import current_app
from flask.cli import ScriptInfo
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..config import ConfigError
from ..errors import JobApiError
from ..services.moves import CannotMove
from ..state import State
from ..store.engine import long_transaction
from ..store.faults import judge, lacks_schema
from ..store.partitions import CannotPartition


@contextmanager
def _error_messages() -> Iterator[None]:
    """Show errors that a person can fix as messages, without a traceback."""
    try:
        yield
    except (JobApiError, ConfigError, CannotMove, CannotPartition) as error:
        raise click.ClickException(str(error)) from None
    except UnicodeEncodeError:
        # Do not show the argument: it may be a password.
        raise click.ClickException("An argument is not valid UTF-8.") from None
    except SQLAlchemyError as error:
        fault = judge(error)
        text = str(error.orig if isinstance(error, DBAPIError) else error).strip()
        if lacks_schema(error):
            text += "\nIf the database is not migrated, run: jobapi init"
        raise click.ClickException(
            f"The database refused: {text}" if fault is None else f"{fault.detail}\n{text}"
        ) from None


class Command(click.Command):
    """A command with error messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _error_messages():
            return super().invoke(ctx)


class Group(click.Group):
    """A group of commands with error messages."""

    command_class = Command
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command of the group."""
        with _error_messages():
            return super().invoke(ctx)


def provide_app(ctx: click.Context) -> None:
    """Let commands create the standalone application, unless a host has provided its own."""
    if ctx.find_object(ScriptInfo) is None:
        ctx.obj = ScriptInfo(create_app=create_app, set_debug_flag=False)


def create_app(settings: Mapping[str, Any] | None = None) -> Any:
    """The standalone application, as ``jobapi.create_app`` makes it."""
    # Not at the top: the package imports the commands.
    from .. import create_app

    return create_app(settings)


def state() -> State:
    """The state of the application's Job API."""
    found: State = current_app.extensions["jobapi"]
    return found


@contextmanager
def transaction() -> Iterator[Connection]:
    """A transaction without the time limits of a request."""
    with state().engine.connect() as connection, long_transaction(connection) as tx:
        yield tx


def note(message: str) -> None:
    """Print a message to standard error."""
    click.echo(message, err=True)
