"""What the service answers with, typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar, overload

ENDED = frozenset({"success", "failed", "cancelled"})

T = TypeVar("T")


class _Field(Generic[T]):
    """A field of an answer. It is read when somebody asks: most are never asked for."""

    def __init__(self, read: Callable[[Any], Any] | None = None) -> None:
        self.read = read

    def __set_name__(self, owner: type[_Answer], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, answer: None, owner: type[_Answer]) -> Self: ...
    @overload
    def __get__(self, answer: _Answer, owner: type[_Answer]) -> T: ...
    def __get__(self, answer: _Answer | None, owner: type[_Answer]) -> Any:
        if answer is None:
            return self
        try:
            value = answer._said[self.name]
        except KeyError:
            raise AttributeError(
                f"The service did not say the {self.name} of this {owner.__name__}."
            ) from None
        return value if self.read is None or value is None else self.read(value)


class _Time(_Field[T]):
    def __init__(self) -> None:
        super().__init__(datetime.fromisoformat)


class _Answer:
    """What the service said of one thing; what a newer service says besides is left out."""

    __slots__ = ("_said",)
    _said: Mapping[str, Any]
    _names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = [name for name, value in vars(cls).items() if isinstance(value, _Field)]
        cls._names = (*cls._names, *own)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Make one of what the service sent."""
        made = cls.__new__(cls)
        made._said = data
        return made

    def to_json(self) -> dict[str, Any]:
        """What the service sent, where times are texts."""
        return {name: self._said[name] for name in self._names if name in self._said}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        # An object in it, such as a job's metadata, has no hash.
        return hash(tuple(v for v in self.to_json().values() if not isinstance(v, dict)))

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.to_json().items())
        return f"{type(self).__name__}({said})"


class Job(_Answer):
    """A job as it was when it was read. Durations are in seconds."""

    __slots__ = ()

    job_id = _Field[str]()
    job_type = _Field[str]()
    status = _Field[str]()
    priority = _Field[str]()
    workspace_id = _Field[int]()
    created_by = _Field[int]()
    metadata = _Field[dict[str, Any] | None]()
    result = _Field[dict[str, Any] | None]()
    error = _Field[str | None]()
    estimated_duration = _Field[int | None]()
    actual_duration = _Field[int | None]()
    timeout_seconds = _Field[int | None]()
    retry_count = _Field[int]()
    max_retries = _Field[int]()
    created_at = _Time[datetime]()
    updated_at = _Time[datetime]()
    started_at = _Time[datetime | None]()
    completed_at = _Time[datetime | None]()
    scheduled_at = _Time[datetime | None]()
    due_at = _Time[datetime]()

    @property
    def ended(self) -> bool:
        """Whether the job is ``success``, ``failed`` or ``cancelled``."""
        return self.status in ENDED


class ClaimedJob(Job):
    """A job with the lease under which it is to be done."""

    __slots__ = ()

    lease_token = _Field[str]()
    lease_expires_at = _Time[datetime]()
    attempt = _Field[int]()
    begun = _Field[bool]()
    traceparent = _Field[str | None]()


class ClaimedJobs(list[ClaimedJob]):
    """What a claim got: a list.

    ``retry_after`` is how many seconds the service asks to wait before the next claim, or None.
    """

    def __init__(
        self, jobs: Iterable[ClaimedJob] = (), *, retry_after: float | None = None
    ) -> None:
        super().__init__(jobs)
        self.retry_after = retry_after


class Progress(_Answer):
    """How far a job is."""

    __slots__ = ()

    job_id = _Field[str]()
    status = _Field[str]()
    progress_percent = _Field[int]()
    progress_message = _Field[str | None]()
    updated_at = _Time[datetime]()

    @property
    def ended(self) -> bool:
        """Whether the job is ``success``, ``failed`` or ``cancelled``."""
        return self.status in ENDED


class Operation(_Answer):
    """What is being done to many jobs; of a dry run, what would be.

    A dry run has no ``operation_id``, ``status`` or times.
    """

    __slots__ = ()

    operation_id = _Field[int | None]()
    workspace_id = _Field[int]()
    action = _Field[str]()
    filter = _Field[dict[str, Any]]()
    reason = _Field[str | None]()
    status = _Field[str | None]()
    matched = _Field[int]()
    matched_is_capped = _Field[bool]()
    changed = _Field[int]()
    skipped = _Field[int]()
    created_by = _Field[int | None]()
    created_at = _Time[datetime | None]()
    updated_at = _Time[datetime | None]()
    ended_at = _Time[datetime | None]()

    @property
    def ended(self) -> bool:
        """Whether the operation is ``finished`` or ``stopped``."""
        return self.status in ("finished", "stopped")


class Event(_Answer):
    """Something that happened to a job, or to a workspace; ``kind`` says what.

    ``user_id`` or ``key_id`` is who did it; neither: the service itself.
    """

    __slots__ = ()

    event_id = _Field[str]()
    at = _Time[datetime]()
    kind = _Field[str]()
    workspace_id = _Field[int]()
    job_id = _Field[str | None]()
    job_type = _Field[str | None]()
    from_status = _Field[str | None]()
    to_status = _Field[str | None]()
    attempt = _Field[int | None]()
    user_id = _Field[int | None]()
    key_id = _Field[int | None]()
    worker = _Field[str | None]()
    data = _Field[dict[str, Any] | None]()

    @property
    def stream_id(self) -> str | None:
        """Where to go on after it, see ``Client.follow``; None for one that was listed."""
        found: str | None = self._said.get("stream_id")
        return found


class EventFilter(TypedDict, total=False):
    """What events have to be like: all of what is given."""

    kind: str | Sequence[str]
    job_id: str
    job_type: str | Sequence[str]


class JobFilter(TypedDict, total=False):
    """What jobs have to be like: all of what is given.

    ``created_after`` and ``updated_after`` are the first moment that counts,
    ``created_before`` is the first that does not; times need an offset.
    ``metadata`` has paths of keys, such as ``file.name``, with values.
    """

    status: str | Sequence[str]
    job_type: str | Sequence[str]
    priority: str | Sequence[str]
    created_after: datetime
    created_before: datetime
    updated_after: datetime
    created_by: int
    metadata: Mapping[str, str | int | float | bool | None]


class Attempt(_Answer):
    """One attempt at a job; ``outcome`` is None while it is under way."""

    __slots__ = ()

    attempt = _Field[int]()
    worker = _Field[str | None]()
    started_at = _Time[datetime]()
    ended_at = _Time[datetime | None]()
    outcome = _Field[str | None]()
    error = _Field[str | None]()
