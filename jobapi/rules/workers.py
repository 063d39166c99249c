"""The presence of workers."""

from __future__ import annotations

from .labels import Labelled


class WorkerState(Labelled):
    """Whether a worker is there."""

    LIVE = 0
    """It is claiming, waiting for jobs, or holding a lease that is alive."""
    GONE = 1
