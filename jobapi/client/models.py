"""What the service answers with, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, Self

ENDED = frozenset({"success", "failed", "cancelled"})


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


@cache
def _times(cls: Any) -> tuple[str, ...]:
    return tuple(name for name in _names(cls) if name.endswith("_at"))


class _FromJson:
    """Made of an answer; what a newer service says besides is left out."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make one of what the service sent; times become aware datetimes."""
        kind: Any = cls
        values = {name: data[name] for name in _names(kind)}
        for name in _times(kind):
            if values[name] is not None:
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Job(_FromJson):
    """A job as it was when it was read. Durations are in seconds."""

    job_id: str
    job_type: str
    status: str
    priority: str
    workspace_id: int
    created_by: int
    metadata: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None
    estimated_duration: int | None
    actual_duration: int | None
    timeout_seconds: int | None
    retry_count: int
    max_retries: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    scheduled_at: datetime | None
    due_at: datetime

    @property
    def ended(self) -> bool:
        """Whether the job is ``success``, ``failed`` or ``cancelled``."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class ClaimedJob(Job):
    """A job with the lease under which it is to be done."""

    lease_token: str
    lease_expires_at: datetime
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Progress(_FromJson):
    """How far a job is."""

    job_id: str
    status: str
    progress_percent: int
    progress_message: str | None
    updated_at: datetime

    @property
    def ended(self) -> bool:
        """Whether the job is ``success``, ``failed`` or ``cancelled``."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class Attempt(_FromJson):
    """One attempt at a job; ``outcome`` is None while it is under way."""

    attempt: int
    worker: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: str | None
