"""What requests carry: JSON that both databases can keep, and query parameters."""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any, NoReturn

import marshmallow
import orjson
from flask import request
from webargs import core
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import MultiDict

from .. import errors
from ..fields import MAX_PATHS, wrong_path

MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MERGE_PATCH = "application/merge-patch+json"

_JSON = "application/json"


def parse_json(data: bytes) -> Any:
    """Parse a body so strictly that both databases keep what comes out of it.

    Raises ``MalformedJson`` for what is not JSON, and for what is but no
    database column takes: NaN, numbers out of range, U+0000, lone surrogates,
    nesting deeper than ``MAX_DEPTH``.
    """
    # The fast parser refuses all of these but for bad characters, which need an
    # escape, large integers and some depth. What either is in doubt about, the
    # strict one judges, and gives the reason.
    if not _DOUBTFUL.search(data):
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(data)
            if data.count(b"[") + data.count(b"{") <= MAX_DEPTH or not _is_deep(value):
                return value
    return _parse_strictly(data)


_DOUBTFUL = re.compile(rb"\\u|[0-9]{19}")


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            below
            for item in level
            for below in (item.values() if isinstance(item, dict) else item)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True


def _parse_strictly(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, parse_int=_integer, parse_float=_number, parse_constant=_no_constant
        )
        # What cannot be wrong need not be walked through: only an escape can
        # be a bad character, only many brackets can be deep.
        if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
            _check_values(value)
    except UnicodeDecodeError:
        raise errors.MalformedJson("The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise errors.MalformedJson(
            f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise errors.MalformedJson(_TOO_DEEP) from None
    return value


_TOO_DEEP = f"The body is nested more than {MAX_DEPTH} levels deep."


def _integer(text: str) -> int:
    if len(text) <= 20 and abs(number := int(text)) <= MAX_INTEGER:
        return number
    raise errors.MalformedJson("The body has an integer that does not fit into 64 bits.")


def _number(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise errors.MalformedJson("The body has a number that is too large.")


def _no_constant(text: str) -> NoReturn:
    raise errors.MalformedJson(f"{text} is not JSON.")


def _check_values(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_string(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
        if not below:
            return
        level = below
    raise errors.MalformedJson(_TOO_DEEP)


def _check_string(text: str) -> None:
    if "\x00" in text:
        raise errors.MalformedJson("The body has a string with the character U+0000.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.MalformedJson("The body has a string with half a surrogate pair.") from None


class Parser(FlaskParser):
    """Reads what requests carry; an error becomes one of ours."""

    # A query parameter that is not known is refused, like a field.
    DEFAULT_UNKNOWN_BY_LOCATION = {
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": None,
    }
    __location_map__ = {
        **FlaskParser.__location_map__,
        "optional_json": "load_optional_json",
        "patch_json": "load_patch_json",
    }

    def load_json(self, req: Any, schema: Any) -> Any:
        """A body that must be there."""
        data = req.get_data()
        if not data:
            raise errors.MalformedJson("The request needs a JSON body.")
        _check_content_type(req.mimetype, _JSON)
        return parse_json(data)

    def load_patch_json(self, req: Any, schema: Any) -> Any:
        """A body that must be there, and may say that it is a merge patch."""
        data = req.get_data()
        if not data:
            raise errors.MalformedJson("The request needs a JSON body.")
        _check_content_type(req.mimetype, _JSON, MERGE_PATCH)
        return parse_json(data)

    def load_optional_json(self, req: Any, schema: Any) -> Any:
        """A body that may be left out, whatever the content type says."""
        data = req.get_data()
        if not data:
            return core.missing
        _check_content_type(req.mimetype, _JSON)
        return parse_json(data)

    def load_querystring(self, req: Any, schema: Any) -> Any:
        """Query parameters; only those that are lists may be repeated."""
        args = req.args
        if schema.PATHS:
            args = MultiDict(
                (name, value)
                for name, value in args.items(multi=True)
                if not name.startswith(f"{schema.PATHS}.")
            )
        twice = {
            name: ["Give it once."]
            for name, values in args.lists()
            if len(values) > 1
            and name in schema.fields
            and not isinstance(schema.fields[name], marshmallow.fields.List)
        }
        if twice:
            raise errors.ValidationFailed(twice)
        return self._makeproxy(args, schema)

    def handle_error(
        self, error: marshmallow.ValidationError, req: Any, schema: Any, **kw: Any
    ) -> NoReturn:
        """Turn marshmallow's nested messages into one list per field."""
        # webargs puts the location on top.
        by_location = error.messages_dict
        raise errors.ValidationFailed(flatten(next(iter(by_location.values()))))


def query_paths(name: str) -> dict[str, str]:
    """The query parameters ``name.path=value``, by their paths. Raises ``ValidationFailed``."""
    found: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    for key, values in request.args.lists():
        if not key.startswith(f"{name}."):
            continue
        path, value = key.removeprefix(f"{name}."), values[0]
        problem = "Give it once." if len(values) > 1 else wrong_path(path, value)
        if problem is not None:
            wrong[key] = [problem]
        found[path] = value
    if len(found) > MAX_PATHS:
        wrong[name] = [f"Give {MAX_PATHS} of these at most."]
    if wrong:
        raise errors.ValidationFailed(wrong)
    return found


def _check_content_type(mimetype: str, *accepted: str) -> None:
    if mimetype not in accepted:
        given = f"not {mimetype}" if mimetype else "and the request names none"
        raise errors.UnsupportedMediaType(f"Send the body as {' or '.join(accepted)}, {given}.")


def flatten(messages: Any, path: str = "") -> dict[str, list[str]]:
    """Marshmallow's nested messages as one list per field, named by its dotted path."""
    if isinstance(messages, str):
        return {path or "body": [messages]}
    if isinstance(messages, list):
        return {path or "body": [str(m) for m in messages]}
    flat: dict[str, list[str]] = {}
    for key, value in messages.items():
        below = path if key == "_schema" else f"{path}.{key}" if path else str(key)
        for name, texts in flatten(value, below).items():
            flat.setdefault(name, []).extend(texts)
    return flat
