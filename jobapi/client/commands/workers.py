"""``jobapi worker`` runs a worker, ``jobapi workers`` lists them."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click

from ..client import Client
from ..models import WorkerInfo
from ..worker import Worker
from .base import as_json, print_answer, print_table, service


@click.command("worker")
@click.argument("target", metavar="MODULE:WORKER")
@service
@click.option("--concurrency", type=click.IntRange(1), help="How many jobs run at a time.")
@click.option("--processes", is_flag=True, help="Run jobs in processes instead of threads.")
@click.option("--name", help="Name of the worker.  [default: host:process]")
@click.option(
    "--lease-seconds", type=click.IntRange(5, 3600), help="Length of a lease.  [default: 60]"
)
@click.option(
    "--capture-logs",
    is_flag=True,
    help="Send what tasks log with Python's logging to the logs of their jobs.",
)
@click.option("--until-idle", is_flag=True, help="End when no job is due.")
def worker_command(
    client: Client,
    target: str,
    workspace_id: int,
    concurrency: int | None,
    processes: bool,
    name: str | None,
    lease_seconds: int | None,
    capture_logs: bool,
    until_idle: bool,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    MODULE:WORKER names a jobapi.client.Worker, such as etl:worker for the variable worker in
    etl.py. After the first signal, running jobs may finish; a second one ends the worker at
    once. The exit code is 0 after a stop, 128 + the signal's number after a second signal, and
    1 for an error that does not pass by itself, such as a revoked key.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    worker = _load(target)
    worker.client, worker.workspace_id = client, workspace_id
    worker.name = name or worker.name
    worker.concurrency = concurrency or worker.concurrency
    worker.lease_seconds = lease_seconds or worker.lease_seconds
    worker.processes = processes or worker.processes
    worker.capture_logs = capture_logs or worker.capture_logs
    worker.run(until_idle=until_idle)


def _load(target: str) -> Worker:
    module, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name or "worker")
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{target}: {error}") from error
    if not isinstance(found, Worker):
        raise click.BadParameter(f"{target} is not a jobapi.client.Worker.")
    return found


@click.command("workers")
@service
@click.option("--live", is_flag=True, help="Only live workers.")
@as_json
def workers_command(client: Client, workspace_id: int, live: bool, as_json: bool) -> None:
    """List the workers that have claimed jobs within the last day, by name."""
    found = list(client.workers(workspace_id, state="live" if live else None))
    if as_json:
        for each in found:
            print_answer(each, as_json, "")
    else:
        heading = ("WORKER", "ACTOR", "STATE", "RUNNING", "LAST SEEN", "JOB TYPES")
        print_table([heading, *map(_row, found)], colored=2)


def _row(worker: WorkerInfo) -> tuple[str, ...]:
    types = "all" if worker.job_types is None else ", ".join(worker.job_types)
    seen = f"{worker.last_seen_at:%Y-%m-%d %H:%M:%S}"
    return (worker.name, worker.actor, worker.state, str(worker.running), seen, types)
