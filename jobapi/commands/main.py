"""The ``jobapi`` command; in a host application the same, as ``flask jobapi``.

The commands themselves are loaded when they are asked for: those that talk to
a running service need neither Flask nor the database.
"""

from __future__ import annotations

import click

_OF_THE_CLIENT = ("jobs", "worker")


class _Commands(click.Group):
    """Finds a command where it belongs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from . import service

        return sorted([*service.group.commands, *_OF_THE_CLIENT])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OF_THE_CLIENT:
            from ..client.commands import jobs_group, worker_command

            return jobs_group if cmd_name == "jobs" else worker_command
        from . import service

        service.provide_app(ctx)
        return service.group.get_command(ctx, cmd_name)


@click.command("jobapi", cls=_Commands)
@click.version_option(package_name="jobapi")
def main() -> None:
    """Run and look after the Job API."""
