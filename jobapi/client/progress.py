"""A progress bar for a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from . import models


@contextmanager
def bar(job: models.Job) -> Iterator[Callable[[models.Progress], None]]:
    """Draw a job's progress on standard error; call what it gives with each new status."""
    with Progress(
        TextColumn("{task.fields[status]:<9}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("", total=100, status=job.status)

        def show(now: models.Progress) -> None:
            progress.update(
                task,
                completed=now.progress_percent,
                # A message is text and no markup.
                description=(now.progress_message or "").replace("[", "\\["),
                status=now.status,
            )

        yield show
