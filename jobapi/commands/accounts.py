"""``jobapi users``, ``jobapi workspaces`` and ``jobapi keys``.

A new id or key is printed alone on standard output; messages go to standard error.
"""

from __future__ import annotations

import os
from datetime import datetime

import click
from flask.cli import with_appcontext
from marshmallow import ValidationError

from ..rules.roles import Role
from ..schemas.fields import Time
from ..services import accounts, keys, workspaces
from ..store.tables import MAX_ID
from .base import Group, note, state, transaction
from .moving import open_move, target_state


@click.group("users", cls=Group)
def users_group() -> None:
    """Users, who may log in."""


@users_group.command("create")
@click.argument("name")
@click.option("--password", help="The password. Prompted for if it is missing.")
@click.option("--admin", is_flag=True, help="Make the user an administrator.")
@with_appcontext
def create_user(name: str, password: str | None, admin: bool) -> None:
    """Create a user and print the user's id."""
    password = _password(password)
    with transaction() as tx:
        user = accounts.create_user(tx, name, password=password, is_admin=admin)
    note(f"Created user {name!r}{' (administrator)' if admin else ''}.")
    click.echo(user.id)


@users_group.command("passwd")
@click.argument("name")
@click.option("--password", help="The password. Prompted for if it is missing.")
@with_appcontext
def set_password(name: str, password: str | None) -> None:
    """Set a new password and end all login sessions of the user."""
    password = _password(password)
    with transaction() as tx:
        accounts.edit_user(tx, accounts.find_user(tx, name).id, {"password": password})
    note(f"Set the password of {name!r}.")


@users_group.command("disable")
@click.argument("name")
@with_appcontext
def disable_user(name: str) -> None:
    """Disable a user: login sessions end and API keys stop working at once."""
    with transaction() as tx:
        accounts.edit_user(tx, accounts.find_user(tx, name).id, {"disabled": True})
    note(f"Disabled {name!r}.")


@users_group.command("enable")
@click.argument("name")
@with_appcontext
def enable_user(name: str) -> None:
    """Enable a user: API keys work again, and the user can log in again."""
    with transaction() as tx:
        accounts.edit_user(tx, accounts.find_user(tx, name).id, {"disabled": False})
    note(f"Enabled {name!r}.")


def _password(given: str | None) -> str:
    if given is None:
        given = str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    accounts.check_password_form(given)
    return given


@click.group("workspaces", cls=Group)
def workspaces_group() -> None:
    """Workspaces, which contain jobs."""


@workspaces_group.command("create")
@click.argument("name")
@click.option("--owner", required=True, help="Name of the user who owns it.")
@with_appcontext
def create_workspace(name: str, owner: str) -> None:
    """Create a workspace and print its id."""
    with transaction() as tx:
        user = accounts.find_user(tx, owner)
        workspace = workspaces.create(tx, name, owner_id=user.id)
    note(f"Created workspace {name!r} with the owner {owner!r}.")
    click.echo(workspace.id)


@workspaces_group.command("move")
@click.argument("workspace_id", type=click.IntRange(1, MAX_ID), metavar="ID")
@click.option(
    "--to-env",
    "variable",
    required=True,
    metavar="NAME",
    help="Environment variable with the URL of the target database.",
)
@click.option("--undo", is_flag=True, help="End an unfinished move: the workspace stays here.")
@with_appcontext
def move_workspace(workspace_id: int, variable: str, undo: bool) -> None:
    """Move a workspace to another database; start it again if it was interrupted."""
    url = os.environ.get(variable)
    if not url:
        raise click.UsageError(f"The environment variable {variable} is not set.")
    with (
        target_state(url, variable) as target,
        open_move(state().engine, target.engine, workspace_id) as move,
    ):
        if undo:
            move.undo()
        else:
            move.run()


@click.group("keys", cls=Group)
def keys_group() -> None:
    """API keys, the credentials of machines for one workspace."""


@keys_group.command("create")
@click.option(
    "--workspace",
    "workspace_id",
    required=True,
    type=click.IntRange(1, MAX_ID),
    help="Id of the workspace.",
)
@click.option(
    "--role",
    required=True,
    type=click.Choice([role.label for role in Role if role is not Role.OWNER]),
    help="Role of the key.",
)
@click.option("--name", required=True, help="What the key is for.")
@click.option("--user", help="User for whom the key acts.  [default: the workspace's first owner]")
@click.option(
    "--job-type",
    "job_types",
    multiple=True,
    help="Limit the key to this job type; may be repeated.  [default: all]",
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
    with transaction() as tx:
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
    note(f"Created the key {name!r} for workspace {workspace_id}. It is not shown again:")
    click.echo(key)


def _time(text: str, option: str) -> datetime:
    try:
        moment: datetime = Time().deserialize(text)
    except ValidationError as error:
        raise click.BadParameter(" ".join(error.messages), param_hint=option) from None
    return moment
