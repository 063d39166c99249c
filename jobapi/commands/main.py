"""The ``jobapi`` command; in a host application the same, as ``flask jobapi``.

A command's module is imported when the command is used: ``--help`` is quick, and those that call
a running service need neither Flask nor the database. The wheel ``jobapi-client`` has only them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import click

import jobapi


class _Command(NamedTuple):
    target: str
    """Module and name."""
    help: str
    """The first sentence of its help, so that a list of commands imports none of them."""

    @property
    def of_client(self) -> bool:
        return self.target.startswith("client.")


COMMANDS = {
    "db": _Command("commands.database:db", "Run the migrations (Flask-Migrate)."),
    "db-check": _Command(
        "commands.database:db_check", "Recount all jobs and correct wrong totals."
    ),
    "init": _Command("commands.database:init", "Migrate the database to the installed version."),
    "job-types": _Command(
        "client.commands.job_types:job_types_group",
        "List, show, change, pause and resume the job types of a running service.",
    ),
    "jobs": _Command(
        "client.commands.jobs:jobs_group",
        "Create, list, show, watch, cancel, retry and delete jobs of a running service.",
    ),
    "keys": _Command(
        "commands.accounts:keys_group", "API keys, the credentials of machines for one workspace."
    ),
    "maintain": _Command(
        "commands.database:maintain",
        "Run the maintenance until stopped; any number of these may run.",
    ),
    "schedules": _Command(
        "client.commands.schedules:schedules_group",
        "List, show, create, edit, run, pause, resume and delete the schedules of a workspace.",
    ),
    "serve": _Command("commands.serve:serve", "Serve the API with gunicorn."),
    "users": _Command("commands.accounts:users_group", "Users, who may log in."),
    "webhooks": _Command(
        "client.commands.webhooks:webhooks_group",
        "List, show, create, edit, delete and test the webhooks of a running service.",
    ),
    "worker": _Command(
        "client.commands.workers:worker_command", "Run a worker until SIGTERM or Ctrl-C."
    ),
    "workers": _Command(
        "client.commands.workers:workers_command",
        "List the workers that have claimed jobs within the last day, by name.",
    ),
    "workspaces": _Command("commands.accounts:workspaces_group", "Workspaces, which contain jobs."),
}


class _Commands(click.Group):
    """Imports commands when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        whole = find_spec("jobapi.commands.base") is not None
        return [name for name, command in COMMANDS.items() if whole or command.of_client]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = COMMANDS[cmd_name]
        if not found.of_client:
            import_module("jobapi.commands.base").provide_app(ctx)
        module, _, name = found.target.partition(":")
        command: click.Command = getattr(import_module(f"jobapi.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.command("jobapi", cls=_Commands)
@click.version_option(jobapi.__version__)
def main() -> None:
    """Run and administer the Job API."""
