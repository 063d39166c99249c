"""Schedules: what their ticks do, and what became of them."""

from __future__ import annotations

from .labels import Labelled


class Overlap(Labelled):
    """What a tick does while a job of its schedule is live."""

    ALLOW = 0
    SKIP = 1
    REPLACE = 2


class CatchUp(Labelled):
    """Which of the ticks that an outage has missed make jobs."""

    NONE = 0
    LAST = 1
    ALL = 2


class RunOutcome(Labelled):
    """What has become of a tick, or of a run by hand."""

    CREATED = 0
    EXISTING = 1
    """A live job had its ``unique_key``."""
    OVERLAP = 2
    QUEUE_FULL = 3
    MISSED = 4
