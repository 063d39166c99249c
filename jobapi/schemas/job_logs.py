"""Job logs: entries, queries and answers."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from ..rules.job_logs import MAX_ENTRIES, MAX_SEQ, LogLevel
from .base import between, length, sort_order
from .fields import Choice, QueryInteger, Text, Time, Whole, doc
from .loading import Base
from .rendering import Response

MAX_LIMIT = 1000

MAX_ATTEMPT = 2**31 - 1


class NewLogEntry(Base):
    """An entry for the log of a job."""

    message = Text(
        required=True,
        metadata=doc(
            "May have several lines, and ANSI colors. One of more than 8 KiB (as UTF-8) is cut "
            "with a mark; U+0000 and lone surrogates become U+FFFD.",
            example="Read 25,000 rows",
        ),
    )
    level = Choice(LogLevel, allow_none=True, metadata=doc("Default: `info`.", example="warning"))
    at = Time(
        allow_none=True,
        metadata=doc(
            "When it happened, by the worker's clock. Default: now.",
            example="2024-01-15T10:02:00Z",
        ),
    )
    seq = Whole(
        allow_none=True,
        validate=between(0, MAX_SEQ),
        metadata=doc(
            "Makes repeats harmless: an entry that is not above the last stored one of the attempt "
            "is dropped. Entries without it are always stored.",
            example=17,
        ),
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Treat null as absent."""
        return {name: value for name, value in data.items() if value is not None}


def log_entries(least: int = 1, **kw: Any) -> fields.List[Any]:
    """Entries for the log of a job."""
    return fields.List(fields.Nested(NewLogEntry), validate=length(least, MAX_ENTRIES), **kw)


class NewLogEntries(Base):
    """Entries for the log of a running job, in their order."""

    entries = log_entries(required=True)
    lease_token = Text(
        allow_none=True,
        validate=length(1, 64),
        metadata=doc("The token of the job's lease, instead of the header `Lease-Token`."),
    )


class LogsAppended(Response):
    """What became of the entries."""

    stored = fields.Integer(required=True, metadata=doc("How many were stored."))
    repeated = fields.Integer(
        required=True, metadata=doc("How many were dropped because of their `seq`.")
    )
    dropped = fields.Integer(
        required=True, metadata=doc("How many older entries of the log are not kept any more.")
    )


class LogQuery(Base):
    """Filters and page of a job's log."""

    level = Choice(LogLevel, metadata=doc("Only entries of this level and above."))
    attempt = QueryInteger(
        validate=between(1, MAX_ATTEMPT), metadata=doc("Only entries of this attempt.")
    )
    # Without a documented default: as plain text it is another.
    limit = QueryInteger(
        validate=between(1, MAX_LIMIT),
        metadata=doc("Items per page. Default: 100; as `text/plain` all that are kept."),
    )
    order = sort_order("asc", "Oldest or newest first.")
    cursor = Text(
        validate=length(1, 500),
        metadata=doc("The `next_cursor` of the page before, or the `tail_cursor` of any page."),
    )


class LogEntry(Response):
    """An entry of a job's log."""

    number = fields.Integer(
        required=True, metadata=doc("Position in the log; entries count from 1 without gaps.")
    )
    attempt = fields.Integer(required=True, metadata=doc("The attempt that logged it."))
    at = Time(required=True)
    level = Choice(LogLevel, required=True)
    message = fields.String(required=True)
    seq = fields.Integer(required=True, allow_none=True, metadata=doc("As the worker sent it."))


class LogPagination(Response):
    """The size of a log, and where to continue."""

    limit = fields.Integer(required=True)
    total = fields.Integer(required=True, metadata=doc("Number of entries that match."))
    total_is_capped = fields.Boolean(required=True, metadata=doc("Always false."))
    next_cursor = fields.String(
        required=True, allow_none=True, metadata=doc("null on the last page.")
    )
    tail_cursor = fields.String(
        required=True,
        metadata=doc(
            "Continues after the last entry, also if there is no more now: to follow the log, "
            "send it again and again as `cursor` with `order=asc`."
        ),
    )


class JobLog(Response):
    """A page of a job's log."""

    data = fields.List(fields.Nested(LogEntry), required=True)
    pagination = fields.Nested(LogPagination, required=True)
    dropped = fields.Integer(
        required=True,
        metadata=doc(
            "How many older entries are not kept any more: the last 10,000 are, and 4 MiB of "
            "messages."
        ),
    )
