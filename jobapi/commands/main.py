"""The ``jobapi`` command; in a host application the same, as ``flask jobapi``.

A command's module is imported when the command is used: those that call a running service need
neither Flask nor the database.
"""

from __future__ import annotations

from importlib import import_module

import click

# Module and name of each command.
_CLIENT = {
    "jobs": "client.commands:jobs_group",
    "worker": "client.commands:worker_command",
}
_SERVICE = {
    "db": "commands.database:db",
    "db-check": "commands.database:db_check",
    "init": "commands.database:init",
    "keys": "commands.accounts:keys_group",
    "maintain": "commands.database:maintain",
    "serve": "commands.serve:serve",
    "users": "commands.accounts:users_group",
    "workspaces": "commands.accounts:workspaces_group",
}


class _Commands(click.Group):
    """Imports commands when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*_CLIENT, *_SERVICE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _SERVICE:
            import_module("jobapi.commands.base").provide_app(ctx)
        elif cmd_name not in _CLIENT:
            return None
        module, _, name = {**_CLIENT, **_SERVICE}[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"jobapi.{module}"), name)
        return command


@click.command("jobapi", cls=_Commands)
@click.version_option(package_name="jobapi")
def main() -> None:
    """Run and administer the Job API."""
