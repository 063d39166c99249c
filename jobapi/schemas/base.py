"""What all shapes have in common, and those that are everybody's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, ClassVar, cast

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, post_load, validate

from ..rules.jobs import JOB_TYPE_PATTERN, JOB_TYPE_RULE
from .fields import Pattern, QueryInteger, Text, Whole, Word
from .rendering import renderer

MAX_SECONDS = 10 * 365 * 24 * 3600
MAX_PAGE = 10**9
MAX_TEXT = 65_536
MAX_UNKNOWN = 20
MAX_REPEATS = 1000
MAX_CHOICES = 100
"""How often a query parameter may be repeated if its values are an enumeration."""


def length(least: int, most: int) -> validate.Length:
    """A text or list has so many characters or items."""
    return validate.Length(min=least, max=most)


def between(least: int, most: int) -> validate.Range:
    """A number lies there, its ends included."""
    return validate.Range(min=least, max=most)


def job_type_text(**kw: Any) -> Text:
    """A type of job."""
    return Text(
        validate=Pattern(f"^{JOB_TYPE_PATTERN}$", error=JOB_TYPE_RULE),
        **kw,
    )


def seconds(least: int, doc: str) -> Whole:
    """A number of seconds, ten years at most, or null."""
    return Whole(
        allow_none=True,
        validate=between(least, MAX_SECONDS),
        metadata={"description": doc},
    )


class Base(Schema):
    """Part of a request: unknown fields are refused."""

    class Meta:
        unknown = RAISE

    PATHS: ClassVar[str] = ""
    """The name whose paths may be query parameters, too: see ``query_paths``."""

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """What is to be done after the fields have been loaded."""
        return data

    @post_load
    def _complete(self, data: dict[str, Any], **kw: Any) -> dict[str, Any]:
        return self.complete(data)

    def load(self, data: Any, **kw: Any) -> Any:
        """Check how many fields and items there are before checking their content."""
        if isinstance(data, Mapping):
            self._check_bounds(data, kw.get("unknown") or self.unknown)
        return super().load(data, **kw)

    def _check_bounds(self, data: Mapping[str, Any], unknown: str) -> None:
        if unknown == RAISE:
            more = len(data) - sum(name in data for name in self.fields)
            if more > MAX_UNKNOWN:
                raise ValidationError(
                    f"{more:,} fields are unknown; send only fields that the documentation lists."
                )
        wrong: dict[str, Any] = {}
        for name, check in self._lengths.items():
            if name in data:
                try:
                    check(data[name])
                except ValidationError as error:
                    wrong[name] = error.messages
        if wrong:
            raise ValidationError(wrong)

    def load_one(self, data: Any) -> dict[str, Any]:
        """``load`` of one of many: the same, at a fraction of the cost where nothing is wrong.

        For schemas whose fields have no defaults and keep their names.
        """
        take = self._take
        try:
            loaded = {name: take[name](value) for name, value in data.items() if value is not None}
            # Whether a null is in its place is left to ``load``.
            if loaded.keys() >= self._required and len(loaded) == len(data):
                return self.complete(loaded)
        except (AttributeError, KeyError, ValidationError):
            pass
        return cast(dict[str, Any], self.load(data))

    @cached_property
    def _lengths(self) -> dict[str, Callable[[Any], None]]:
        """For each list field: a check of its length."""

        def judge(field: Any) -> Callable[[Any], None]:
            limits = [v for v in field.validators if isinstance(v, validate.Length)]

            def check(value: Any) -> None:
                for limit in limits if isinstance(value, list) else ():
                    limit(value)

            return check

        return {
            name: judge(field)
            for name, field in self.fields.items()
            if isinstance(field, fields.List)
        }

    @cached_property
    def _take(self) -> dict[str, Callable[[Any], Any]]:
        def bounded(name: str, field: Any) -> Callable[[Any], Any]:
            check = self._lengths[name]

            def take(value: Any) -> Any:
                check(value)
                return field.deserialize(value)

            return take

        return {
            name: bounded(name, field)
            if name in self._lengths
            else getattr(field, "take", field.deserialize)
            for name, field in self.fields.items()
        }

    @cached_property
    def _required(self) -> set[str]:
        return {name for name, field in self.fields.items() if field.required}


class Response(Schema):
    """A response body: a later version may add fields, so clients skip what they do not know.

    ``renderer`` says where a field's value comes from.
    """

    class Meta:
        unknown = EXCLUDE

    @classmethod
    def render(cls, row: Any) -> dict[str, Any]:
        """The answer that shows ``row``, ready to be written as JSON."""
        return _compiled(cls)(row)


@cache
def _compiled(schema: type[Schema]) -> Callable[[Any], dict[str, Any]]:
    return renderer(schema())


def sort_order(default: str, doc: str) -> Word:
    """Ascending or descending."""
    return Word("SortOrder", ["asc", "desc"], load_default=default, metadata={"description": doc})


class PagingQuery(Base):
    """Which page of a list."""

    # Without a documented default: generated clients would send it with each cursor.
    page = QueryInteger(
        validate=between(1, MAX_PAGE),
        metadata={"description": "Page number; the first page is 1. Not together with `cursor`."},
    )
    limit = QueryInteger(
        load_default=50, validate=between(1, 100), metadata={"description": "Items per page."}
    )
    cursor = Text(
        validate=length(1, 500),
        metadata={"description": "The `next_cursor` of a page, instead of `page`."},
    )

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page is led to in one way."""
        if "cursor" in data and "page" in data:
            raise ValidationError("Give either cursor or page.", "cursor")
        return data


class Pagination(Response):
    """Where in a list a page lies, and where it goes on."""

    page = fields.Integer(
        required=True, allow_none=True, metadata={"description": "null where a cursor led here."}
    )
    limit = fields.Integer(required=True)
    total = fields.Integer(required=True, metadata={"description": "How many items there are."})
    total_pages = fields.Integer(required=True)
    next_cursor = fields.String(
        required=True, allow_none=True, metadata={"description": "null on the last page."}
    )


def percent() -> Whole:
    """0 to 100, or null."""
    return Whole(allow_none=True, validate=between(0, 100))


class Health(Response):
    """That the service is well."""

    status = fields.String(required=True, metadata={"description": "Always `ok`."})


class Problem(Response):
    """An error, as RFC 9457 has it."""

    type = fields.String(
        required=True,
        metadata={"format": "uri-reference", "description": "The stable name of this kind."},
    )
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True, metadata={"description": "What to do about it."})
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.List(fields.String()),
        metadata={"description": "For 422: what is wrong with each field."},
    )
