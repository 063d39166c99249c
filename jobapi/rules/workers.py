"""The presence of workers."""

from __future__ import annotations

from .labels import Labelled


class WorkerState(Labelled):
    """Whether a worker is alive."""

    LIVE = 0
    """It is claiming, waiting for jobs, or holding a lease that has not expired."""
    GONE = 1
