"""Fields that marshmallow does not have: times, enumerations, documents, strict scalars."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from marshmallow import ValidationError, fields, validate

from ..rules.jobs import JobStatus
from ..rules.labels import Labelled

# Two days from the ends of what Python can hold, so that a stored time can be
# read back in every time zone.
EARLIEST = datetime(1, 1, 3, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)

# RFC 3339, section 5.6. The ranges of the numbers are checked by datetime.
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:)([0-5]\d|60)(\.\d+)?"
    r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_MAX_TIME_LENGTH = 64


def doc(description: str, **more: Any) -> dict[str, Any]:
    """The metadata of a field: its description, and other properties for OpenAPI."""
    return {"description": description, **more}


class Pattern(validate.Regexp):
    """Accepts a text that matches as a whole. JSON Schema needs ``^`` and ``$`` in the pattern."""

    def __call__(self, value: Any) -> Any:
        """Check a text. Raises ``ValidationError``."""
        if self.regex.fullmatch(value) is None:
            raise ValidationError(self._format_error(value))
        return value


class Time(fields.Field[datetime]):
    """A time: RFC 3339 with an offset on input, UTC in whole seconds in answers.

    It is stored to the microsecond. A leap second (``23:59:60`` at the end of a month) becomes
    the second after it.
    """

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> datetime:
        form = (
            _RFC3339.fullmatch(value)
            if isinstance(value, str) and len(value) <= _MAX_TIME_LENGTH
            else None
        )
        if form is None:
            raise ValidationError(
                "Not a valid time. Use the form 2024-01-15T10:00:00Z, with Z or an offset."
            )
        until_minute, _, second, fraction, offset, _ = form.groups()
        leap = second == "60"
        try:
            # Python knows neither leap seconds nor nanoseconds.
            text = f"{until_minute}{59 if leap else second}{(fraction or '')[:7]}{offset}"
            moment = datetime.fromisoformat(text.upper()).astimezone(UTC)
            # POSIX counts a leap second as the second after it.
            moment += timedelta(seconds=leap)
        except (ValueError, OverflowError):
            raise ValidationError("This time does not exist.") from None
        if leap and (moment.day, moment.hour, moment.minute, moment.second) != (1, 0, 0, 0):
            raise ValidationError("This time does not exist.")
        if not EARLIEST <= moment < LATEST:
            raise ValidationError("Out of range. Use a time from 0001-01-03 to 9999-12-29.")
        return moment


class Choice(fields.Field[Any]):
    """A label of an enumeration.

    ``also`` maps other labels that are accepted on input. ``component`` names the
    enumeration in the OpenAPI document; by default it has the name of its class.
    ``grows`` is for responses: a later version may send labels that are not
    documented, so clients must accept unknown ones.

    ``show`` is the label of a member. During an upgrade the database may have members that only
    the newer version knows: they are shown as ``unknown``, or as null if the enumeration is closed.
    """

    def __init__(
        self,
        enum: type[Labelled] | Sequence[Labelled],
        *,
        also: Mapping[str, Labelled] | None = None,
        component: str | None = None,
        grows: bool = False,
        **kw: Any,
    ) -> None:
        self.labels: dict[int, str] = {member: member.label for member in enum}
        self.accepted = {member.label: member for member in enum} | dict(also or {})
        metadata = {
            "enum": list(self.accepted),
            "component": component or getattr(enum, "__name__", None),
            "grows": grows,
            **kw.pop("metadata", {}),
        }
        super().__init__(metadata=metadata, **kw)
        self.show: Callable[[Any], str | None] = self.labels.__getitem__
        if grows:
            self.show = lambda value: value if value is None else self.labels.get(value, "unknown")
        elif self.allow_none:
            self.show = self.labels.get

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> Any:
        if not isinstance(value, str) or value not in self.accepted:
            raise ValidationError(f"Must be one of: {', '.join(self.labels.values())}.")
        return self.accepted[value]


class StatusInput(Choice):
    """A job's status on input, where ``completed`` also means ``success``."""

    def __init__(self, **kw: Any) -> None:
        super().__init__(
            JobStatus, also={"completed": JobStatus.SUCCESS}, component="JobStatusInput", **kw
        )


class Word(fields.String):
    """One of a few fixed words; ``component`` names their list in the OpenAPI document."""

    def __init__(
        self, component: str, words: Sequence[str], *, metadata: Mapping[str, Any], **kw: Any
    ) -> None:
        super().__init__(
            validate=validate.OneOf(words), metadata={"component": component, **metadata}, **kw
        )


class Whole(fields.Integer):
    """An integer. As in JSON Schema, 5.0 is one; texts and booleans are not."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Document(fields.Dict):
    """A JSON object with any content."""

    def __init__(self, *, metadata: Mapping[str, Any] | None = None, **kw: Any) -> None:
        documented = {"component": "JsonObject", "additionalProperties": True}
        super().__init__(keys=fields.String(), metadata={**documented, **(metadata or {})}, **kw)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> Any:
        # The keys of JSON are texts, so they need no check.
        if not isinstance(value, dict):
            raise self.make_error("invalid")
        return value


class Text(fields.String):
    """A text without U+0000, which Postgres cannot store."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> str:
        if type(value) is not str:
            raise self.make_error("invalid")
        if "\x00" in value:
            raise ValidationError("Must not contain the character U+0000.")
        return value


class Flag(fields.Boolean):
    """A JSON boolean; texts and numbers are refused."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class QueryInteger(fields.Integer):
    """An integer in a query string, written in digits only."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> Any:
        if not re.fullmatch(r"[0-9]{1,18}", str(value)):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kw)


MAX_PATHS = 5
MAX_PATH_VALUE = 200
_PATH = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}")


def wrong_path(path: str, value: str) -> str | None:
    """Say what is wrong with a path of keys, or with the text wanted there, if anything."""
    if not _PATH.fullmatch(path):
        return "Use keys of letters, digits, _ and -, separated by dots."
    if len(value) > MAX_PATH_VALUE or "\x00" in value:
        return f"Use at most {MAX_PATH_VALUE} characters, without U+0000."
    return None


class Paths(fields.Dict):
    """Paths of keys, each with the value wanted there.

    Values are loaded as texts, as a query string has them: 3 and "3" mean the same.
    """

    def __init__(self, *, metadata: Mapping[str, Any], **kw: Any) -> None:
        scalar = {"type": ["string", "number", "boolean", "null"], "maxLength": MAX_PATH_VALUE}
        documented = {"maxProperties": MAX_PATHS, "additionalProperties": scalar}
        super().__init__(metadata={**documented, **metadata}, **kw)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kw: Any) -> Any:
        if not isinstance(value, dict):
            raise self.make_error("invalid")
        if len(value) > MAX_PATHS:
            raise ValidationError(f"Give at most {MAX_PATHS} of these.")
        texts = {}
        wrong = {}
        for path, wanted in value.items():
            texts[path] = wanted if isinstance(wanted, str) else json.dumps(wanted)
            problem = wrong_path(path, texts[path])
            if isinstance(wanted, dict | list):
                problem = "Use a text, a number, true, false or null."
            if problem is not None:
                wrong[path] = [problem]
        if wrong:
            raise ValidationError(cast(Any, wrong))
        return texts


class Unjudged(fields.Nested):
    """Documented as nested, but left as it is: the view loads each object by itself."""

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, partial: Any = None, **kw: Any
    ) -> Any:
        return value
