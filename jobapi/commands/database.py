"""``jobapi init``, ``jobapi db``, ``jobapi db-check`` and ``jobapi maintain``."""

from __future__ import annotations

import time

import click
import flask_migrate
from flask.cli import with_appcontext
from flask_migrate.cli import db as migrate_group

from ..rules.jobs import JobStatus, Priority
from ..services import counts, events, moves, workspaces
from ..signals import StopSignals
from ..store.engine import long_transaction
from ..store.partitions import partition_jobs
from ..store.tables import MAX_ID
from .base import Command, Group, note, state, transaction
from .demo import DEMO_PASSWORD, DEMO_USER, create_demo, demo_lines


@click.command(cls=Command)
@click.option("--demo", is_flag=True, help="Create a demo user and workspace 1 (development only).")
@click.option("--quiet", is_flag=True, help="Print only errors.")
@click.option(
    "--first-id",
    type=click.IntRange(1, MAX_ID),
    help="The first id of users, workspaces, keys and operations in a new database.",
)
@with_appcontext
def init(demo: bool, quiet: bool, first_id: int | None) -> None:
    """Migrate the database to the installed version."""
    if demo and not state().settings.development:
        raise click.ClickException(
            "--demo creates a user with a public password. Set JOBAPI_ENV=development to allow it."
        )
    with state().migrating():
        flask_migrate.upgrade()
    with transaction() as tx:
        events.put_restored_first(tx)
        if first_id is not None:
            moves.start_ids(tx, first_id)
    if not quiet:
        note("The database is up to date.")
    if demo:
        with transaction() as tx:
            workspace_id = create_demo(tx)
        if not quiet:
            note(
                f"The user {DEMO_USER!r} with the password {DEMO_PASSWORD!r} is an administrator "
                f"and owns workspace {workspace_id}. To try it while jobapi serve runs:\n"
            )
            click.echo(demo_lines(workspace_id))


@click.command(cls=Command)
@with_appcontext
def maintain() -> None:
    """Run the maintenance until stopped; any number of these may run."""
    maintenance = state().maintenance
    with StopSignals() as signals:
        note("Running the maintenance.")
        maintenance.start()
        while not signals.asked:
            time.sleep(0.2)
        maintenance.stop()


@click.command("db-check", cls=Command)
@with_appcontext
def db_check() -> None:
    """Recount all jobs and correct wrong totals. The exit code is 1 if any was wrong."""
    wrong = 0
    with state().engine.connect() as connection:
        for workspace_id in workspaces.ids(connection):
            with long_transaction(connection) as tx:
                found = counts.check(tx, workspace_id)
            for error in found:
                wrong += 1
                status, priority = JobStatus(error.status).label, Priority(error.priority).label
                note(f"workspace {workspace_id}: {status} {error.job_type} {priority}: {error.n:+}")
    note(f"Corrected {wrong} wrong totals." if wrong else "All totals are right.")
    if wrong:
        raise SystemExit(1)


@click.group(cls=Group)
@click.pass_context
@with_appcontext
def db(ctx: click.Context) -> None:
    """Run the migrations (Flask-Migrate)."""
    # On the private application: a host's own migrations must not see our database.
    ctx.with_resource(state().migrating())
    ctx.invoke(migrate_group)


@db.command("partition")
@click.option("--by", type=click.Choice(["workspace"]), required=True, help="What to partition by.")
@click.option(
    "--partitions",
    type=click.IntRange(2, 1024),
    default=4,
    show_default=True,
    help="Number of partitions. Each one slows down the statements that change jobs.",
)
@click.option(
    "--max-jobs",
    type=click.IntRange(0),
    default=100_000,
    show_default=True,
    help="Refuse a table with more jobs than this, because all are copied.",
)
def partition(by: str, partitions: int, max_jobs: int) -> None:
    """Partition the table of jobs (Postgres). Stop the service first."""
    with transaction() as tx:
        partition_jobs(tx, partitions, max_jobs=max_jobs)
    note(f"The table of jobs has {partitions} partitions by {by}.")


for _name, _command in migrate_group.commands.items():
    # The others would start a new set of migrations.
    if _name not in ("init", "list-templates"):
        db.add_command(_command)
