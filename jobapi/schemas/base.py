"""Parts that several schemas share: bounds, job types, paging, errors."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, validate

from ..rules.causes import GROUP_LENGTH
from ..rules.jobs import JOB_TYPE_PATTERN, JOB_TYPE_RULE
from .fields import Pattern, QueryInteger, Text, Whole, Word, doc
from .loading import Base
from .rendering import Response

MAX_ID = 2**31 - 1
"""The largest id of a user, a workspace and the like: what their columns hold."""

MAX_SECONDS = 10 * 365 * 24 * 3600
MAX_PAGE = 10**9
MAX_TEXT = 65_536
MAX_REPEATS = 1000
MAX_CHOICES = 100
"""How often a query parameter may be repeated if its values are an enumeration."""


def length(least: int, most: int) -> validate.Length:
    """Accept ``least`` to ``most`` characters of a text, or items of a list."""
    return validate.Length(min=least, max=most)


def between(least: int, most: int) -> validate.Range:
    """Accept numbers from ``least`` to ``most``."""
    return validate.Range(min=least, max=most)


def job_type_text(**kw: Any) -> Text:
    """A job type."""
    return Text(validate=Pattern(f"^{JOB_TYPE_PATTERN}$", error=JOB_TYPE_RULE), **kw)


def job_ids() -> fields.List[str]:
    """Ids of jobs."""
    return fields.List(
        Text(validate=Pattern(r"^job_[0-9A-Za-z_\-]{1,36}$", error="This is not the id of a job.")),
        validate=length(1, MAX_REPEATS),
        metadata=doc("Only these jobs; may be repeated."),
    )


def error_text() -> Text:
    """A part of the text of errors."""
    return Text(
        validate=length(3, 200),
        metadata=doc("Only jobs whose error contains this text; A to Z match in either case."),
    )


def error_groups() -> fields.List[str]:
    """Groups of errors."""
    pattern = f"^[0-9a-f]{{{GROUP_LENGTH}}}$"
    return fields.List(
        Text(validate=Pattern(pattern, error=f"Use {GROUP_LENGTH} hexadecimal digits.")),
        validate=length(1, 10),
        metadata=doc("Only jobs that have failed with an error of one of these groups."),
    )


def key_text(description: str, **metadata: Any) -> Text:
    """A key of a job, which the creator chooses."""
    return Text(allow_none=True, validate=length(1, 200), metadata=doc(description, **metadata))


def job_keys(description: str) -> fields.List[str]:
    """Keys of jobs."""
    return fields.List(
        Text(validate=length(1, 200)),
        validate=length(1, MAX_CHOICES),
        metadata=doc(description),
    )


def schedule_ids() -> fields.List[str]:
    """Ids of schedules."""
    return fields.List(
        Text(validate=Pattern(r"^sch_[0-9a-f]{1,36}$", error="This is not the id of a schedule.")),
        validate=length(1, MAX_CHOICES),
        metadata=doc("Only jobs of these schedules; may be repeated."),
    )


def seconds(least: int, description: str, **metadata: Any) -> Whole:
    """A number of seconds, at most ten years, or null."""
    return Whole(
        allow_none=True, validate=between(least, MAX_SECONDS), metadata=doc(description, **metadata)
    )


def sort_order(default: str, description: str) -> Word:
    """Ascending or descending."""
    return Word("SortOrder", ["asc", "desc"], load_default=default, metadata=doc(description))


class PagingQuery(Base):
    """The page of a list."""

    # Without a documented default: generated clients would send it with each cursor.
    page = QueryInteger(
        validate=between(1, MAX_PAGE),
        metadata=doc("Page number; the first page is 1. Not together with `cursor`."),
    )
    limit = QueryInteger(load_default=50, validate=between(1, 100), metadata=doc("Items per page."))
    cursor = Text(
        validate=length(1, 500), metadata=doc("The `next_cursor` of a page, instead of `page`.")
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Refuse a cursor together with a page number."""
        if "cursor" in data and "page" in data:
            raise ValidationError("Send either cursor or page, not both.", "cursor")
        return data


class Pagination(Response):
    """The position of a page in its list, and the cursor of the next page."""

    page = fields.Integer(
        required=True, allow_none=True, metadata=doc("`null` if `cursor` was given.")
    )
    limit = fields.Integer(required=True)
    total = fields.Integer(required=True, metadata=doc("Number of items in the list."))
    total_pages = fields.Integer(required=True)
    next_cursor = fields.String(
        required=True, allow_none=True, metadata=doc("`null` on the last page.")
    )


class Reason(Base):
    """Why the caller does it."""

    reason = Text(validate=length(1, 1000), allow_none=True)


def percent() -> Whole:
    """A percentage from 0 to 100, or null."""
    return Whole(allow_none=True, validate=between(0, 100))


class Health(Response):
    """The state of the service."""

    status = fields.String(required=True, metadata=doc("Always `ok`."))


class Problem(Response):
    """An error, as a problem details object (RFC 9457)."""

    type = fields.String(
        required=True,
        metadata=doc("Stable identifier of the kind of error.", format="uri-reference"),
    )
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True, metadata=doc("What is wrong, then what to do."))
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata=doc("For 422: the messages for each invalid field."),
    )
