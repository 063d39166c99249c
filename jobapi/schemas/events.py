"""Events: queries and answers."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from ..rules.events import EventKind, name_of
from ..rules.jobs import JobStatus
from .base import MAX_CHOICES, MAX_REPEATS, between, job_type_text, length, sort_order
from .fields import Choice, Document, QueryInteger, Text, Time, doc
from .loading import Base
from .rendering import Response


class JobEventQuery(Base):
    """The page of a list of a job's events."""

    limit = QueryInteger(
        load_default=100, validate=between(1, 100), metadata=doc("Items per page.")
    )
    order = sort_order("asc", "Oldest or newest first.")
    cursor = Text(validate=length(1, 500), metadata=doc("The `next_cursor` of the page before."))


class EventFilter(Base):
    """Filters of a list or a stream of events."""

    kind = fields.List(
        Choice(EventKind),
        validate=length(1, MAX_CHOICES),
        metadata=doc("Only events of these kinds; may be repeated."),
    )
    job_id = Text(validate=length(1, 40), metadata=doc("Only events of this job."))
    job_type = fields.List(
        job_type_text(),
        validate=length(1, MAX_REPEATS),
        metadata=doc("Only events of jobs of these types; may be repeated."),
    )


class EventQuery(EventFilter, JobEventQuery):
    """Filters and page of a list of events."""

    limit = QueryInteger(load_default=50, validate=between(1, 100), metadata=doc("Items per page."))
    order = sort_order("desc", "Oldest or newest first.")


class StreamQuery(EventFilter):
    """Filters of a stream of events, and where it resumes."""

    last_event_id = Text(
        validate=length(1, 8000),
        metadata=doc("For clients that cannot send the header `Last-Event-ID`."),
    )


class Event(Response):
    """An event."""

    event_id = fields.String(required=True)
    at = Time(required=True)
    kind = Choice(
        EventKind,
        required=True,
        grows=True,
        metadata=doc("`unknown` stands for a kind that only a newer version of the service knows."),
    )
    workspace_id = fields.Integer(required=True)
    job_id = fields.String(required=True, allow_none=True)
    job_type = fields.String(required=True, allow_none=True)
    from_status = Choice(JobStatus, required=True, allow_none=True)
    to_status = Choice(JobStatus, required=True, allow_none=True)
    attempt = fields.Integer(required=True, allow_none=True)
    user_id = fields.Integer(required=True, allow_none=True, metadata=doc("The user who acted."))
    key_id = fields.Integer(required=True, allow_none=True, metadata=doc("The API key that acted."))
    worker = fields.String(required=True, allow_none=True)
    data = Document(
        required=True,
        allow_none=True,
        metadata=doc("Details: progress, an error, a reason, the edited fields."),
    )

    @staticmethod
    def get_event_id(event: Any) -> str:
        """The public id."""
        return name_of(event.xid, event.id)

    @staticmethod
    def get_user_id(event: Any) -> int | None:
        """The number of the user who acted, if it was one."""
        return _number(event.actor, "user:")

    @staticmethod
    def get_key_id(event: Any) -> int | None:
        """The number of the API key that acted, if it was one."""
        return _number(event.actor, "key:")


def _number(actor: str | None, prefix: str) -> int | None:
    """The number in an actor such as ``user:1``, if it is of this kind."""
    text = (actor or "").removeprefix(prefix)
    return int(text) if text != actor and text.isascii() and text.isdigit() else None


class EventPagination(Response):
    """The size of a list of events, and the cursor of the next page."""

    limit = fields.Integer(required=True)
    total = fields.Integer(required=True, metadata=doc("Number of events, counted up to 10,000."))
    total_is_capped = fields.Boolean(required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class EventList(Response):
    """A page of events."""

    data = fields.List(fields.Nested(Event), required=True)
    pagination = fields.Nested(EventPagination, required=True)
