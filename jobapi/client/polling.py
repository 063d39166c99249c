"""Polling until something has ended, and a progress bar to show in the meantime."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from ..errors import JobApiError
from .models import Job, Progress
from .retries import Bounds, Unreachable, bounded, is_transient

OUTAGE_SECONDS = 300.0
"""How long ``poll`` tolerates a service that does not answer, or only with errors."""

T = TypeVar("T")


def poll(
    read: Callable[[], tuple[T | None, str]], *, timeout: float | None, poll_seconds: float
) -> T:
    """Call ``read`` every ``poll_seconds`` until it returns a result.

    ``read`` returns the result, or None, and the state as a sentence, which is the message
    of the ``TimeoutError`` after ``timeout`` seconds.
    """
    answered_at = time.monotonic()
    deadline = math.inf if timeout is None else answered_at + timeout
    with bounded(Bounds(deadline=deadline)):
        while True:
            try:
                result, state = read()
                answered_at = time.monotonic()
                if result is not None:
                    return result
            except (Unreachable, JobApiError) as error:
                if not is_transient(error) or time.monotonic() - answered_at > OUTAGE_SECONDS:
                    raise
                state = f"The service does not answer: {error}"
            if time.monotonic() + poll_seconds > deadline:
                raise TimeoutError(state)
            time.sleep(poll_seconds)


@contextmanager
def progress_bar(job: Job) -> Iterator[Callable[[Progress], None]]:
    """Draw a job's progress on standard error; call the yielded function with each new progress.

    If standard error is not a terminal, it prints a line for each change of status or message.
    """
    template = "[%(bar)s]  %(info)s  %(label)s"
    with click.progressbar(
        length=100, label=job.status, file=sys.stderr, width=20, bar_template=template
    ) as bar:

        def show(now: Progress) -> None:
            label = " ".join([now.status, *(now.progress_message or "").split()])
            if sys.stderr.isatty():
                # A line that wraps cannot be drawn over.
                label = label[: max(10, shutil.get_terminal_size().columns - 34)]
            bar.pos, bar.label = now.progress_percent, label
            bar.render_progress()

        yield show
