"""Request bodies and query parameters: JSON that both databases can store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import marshmallow
from flask import current_app, request
from webargs import core
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wsgi import get_content_length

from .. import errors
from ..rules.job_logs import storable
from ..schemas.fields import MAX_PATHS, Time, wrong_path
from ..schemas.worker import MAX_REPORTS, Lease, Report

MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MAX_QUERY_BYTES = 16 * 1024
MERGE_PATCH = "application/merge-patch+json"

_REPORT_FIELDS = Report().fields.keys()
_LEASE_FIELDS = Lease().fields.keys()
_JSON = "application/json"
_Read = Callable[[str], Any]


def parse_json(data: bytes, clean: Callable[[Any], None] | None = None) -> Any:
    """Parse JSON that both databases can store.

    ``clean`` replaces what would be refused in a part of the body. Raises ``MalformedJson`` for
    what is not JSON, and for values that no database column takes: NaN, numbers out of range,
    U+0000, lone surrogates, nesting deeper than ``MAX_DEPTH``.
    """
    try:
        text = data.decode("utf-8")
        value = _loads(text)
    except UnicodeDecodeError:
        raise errors.MalformedJson("The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise errors.MalformedJson(
            f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise errors.MalformedJson(_TOO_DEEP) from None
    # Most bodies need no further check: a bad character needs an escape, and deep nesting needs
    # many brackets.
    if "\\u" in text:
        if clean is not None:
            clean(value)
        _check_values(value)
    elif text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


_TOO_DEEP = f"The body is nested more than {MAX_DEPTH} levels deep."
_CONTAINERS = {dict, list}


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            below
            for item in level
            for below in (item.values() if type(item) is dict else item)
            if type(below) in _CONTAINERS
        ]
    if level:
        raise errors.MalformedJson(_TOO_DEEP)


def parse_logs(data: bytes) -> Any:
    """Parse a body of log entries. What cannot be stored is replaced in their messages."""
    return parse_json(data, lambda body: _clean_entries(body, "entries"))


def _clean_entries(holder: Any, name: str) -> None:
    entries = holder.get(name) if isinstance(holder, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("message"), str):
            entry["message"] = storable(entry["message"])


def _clean_reports(body: Any) -> None:
    reports = body.get("reports") if isinstance(body, dict) else None
    for report in reports if isinstance(reports, list) else ():
        _clean_entries(report, "logs")


class Unkept(dict[str, Any]):
    """A report that cannot be stored: only its lease, and in ``wrong`` the messages per field."""

    wrong: dict[str, list[str]]


def parse_reports(data: bytes) -> Any:
    """Parse a body of reports, so that one that cannot be stored does not refuse the others.

    Such a report becomes ``Unkept``. Raises ``MalformedJson`` if another part of the body is
    invalid.
    """
    try:
        return parse_json(data, _clean_reports)
    except errors.MalformedJson:
        body = _parse_with_errors(data)
        _clean_reports(body)
        reports = body.get("reports") if isinstance(body, dict) else None
        if not isinstance(reports, list) or len(reports) > MAX_REPORTS:
            raise
        _check_values({**body, "reports": None})
        return {**body, "reports": [_kept(report) for report in reports]}


def _parse_with_errors(data: bytes) -> Any:
    """Parse JSON, with an error in place of each number that cannot be stored; None if invalid."""
    try:
        return _loads(data.decode("utf-8"), _or_error)
    except (ValueError, RecursionError):
        return None


def _or_error(read: _Read) -> _Read:
    # One error per reason, because a body may have very many such numbers.
    known: dict[str, errors.MalformedJson] = {}

    def reading(text: str) -> Any:
        try:
            return read(text)
        except errors.MalformedJson as error:
            return known.setdefault(error.detail, error)

    return reading


def _kept(report: Any) -> Any:
    # Checked at the depth that it has in the body.
    why = _why_not_kept({"reports": [report]})
    if why is None:
        return report
    kept = Unkept()
    kept.wrong = {"body": [why]}
    if isinstance(report, dict):
        reasons = {
            name: _why_not_kept({"reports": [{name: report[name]}]})
            for name in _REPORT_FIELDS & report.keys()
        }
        wrong = {name: [reason] for name, reason in reasons.items() if reason is not None}
        kept.wrong = wrong or kept.wrong
        kept.update((name, report[name]) for name in _LEASE_FIELDS & reasons.keys() - wrong.keys())
    return kept


def _why_not_kept(value: Any) -> str | None:
    try:
        _check_values(value)
    except errors.MalformedJson as error:
        return error.detail
    return None


def _loads(text: str, wrap: Callable[[_Read], _Read] = lambda read: read) -> Any:
    return json.loads(
        text, parse_int=wrap(_integer), parse_float=wrap(_number), parse_constant=wrap(_no_constant)
    )


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
            elif isinstance(item, errors.MalformedJson):
                raise item
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
    """Loads bodies and queries for webargs, and raises our errors."""

    # Unknown query parameters are refused, like unknown fields.
    DEFAULT_UNKNOWN_BY_LOCATION = {**FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION, "query": None}
    __location_map__ = {
        **FlaskParser.__location_map__,
        "optional_json": "load_optional_json",
        "patch_json": "load_patch_json",
        "reports_json": "load_reports_json",
        "logs_json": "load_logs_json",
    }

    def load_json(self, req: Any, schema: Any) -> Any:
        """A required body."""
        return _load(req, _JSON)

    def load_patch_json(self, req: Any, schema: Any) -> Any:
        """A required body, which may be declared as a merge patch."""
        return _load(req, _JSON, MERGE_PATCH)

    def load_reports_json(self, req: Any, schema: Any) -> Any:
        """A required body of reports. An invalid report does not refuse the others."""
        return _load(req, _JSON, parse=parse_reports)

    def load_logs_json(self, req: Any, schema: Any) -> Any:
        """A required body of log entries."""
        return _load(req, _JSON, parse=parse_logs)

    def load_optional_json(self, req: Any, schema: Any) -> Any:
        """An optional body; an empty one may have any content type."""
        return _load(req, _JSON) if read_body() else core.missing

    def load_querystring(self, req: Any, schema: Any) -> Any:
        """Query parameters. Only lists may be repeated."""
        if len(req.query_string) > MAX_QUERY_BYTES:
            raise errors.UriTooLong(f"The query may have at most {MAX_QUERY_BYTES:,} bytes.")
        args = req.args
        if schema.PATHS:
            args = MultiDict(
                (name, value)
                for name, value in args.items(multi=True)
                if not name.startswith(f"{schema.PATHS}.")
            )
        if b"+" in req.query_string or b"%20" in req.query_string:
            args = MultiDict(
                (name, _with_plus(value) if isinstance(schema.fields.get(name), Time) else value)
                for name, value in args.items(multi=True)
            )
        twice = {
            name: ["Send this parameter only once."]
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
        """Raise the messages as ``ValidationFailed``."""
        # webargs nests the messages under the location.
        by_location = error.messages_dict
        raise refusal(next(iter(by_location.values())))


def _with_plus(value: str) -> str:
    # If the plus of an offset such as +02:00 is not encoded, it arrives as a space.
    return re.sub(r" (\d\d:\d\d)$", r"+\1", value)


def query_paths(name: str) -> dict[str, str]:
    """Return the query parameters ``name.path=value`` by path. Raises ``ValidationFailed``."""
    found: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    given = [(k, values) for k, values in request.args.lists() if k.startswith(f"{name}.")]
    if len(given) > MAX_PATHS:
        raise errors.ValidationFailed({name: [f"Give at most {MAX_PATHS} of these."]})
    for key, values in given:
        path, value = key.removeprefix(f"{name}."), values[0]
        problem = "Send this parameter only once." if len(values) > 1 else wrong_path(path, value)
        if problem is not None:
            wrong[key] = [problem]
        found[path] = value
    if wrong:
        raise errors.ValidationFailed(wrong)
    return found


_BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})
_ANNOUNCE_BODY = frozenset({"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"})
_REFUSED = "jobapi.body_refused"
_UNREADABLE = "The body could not be read: it is incomplete, or its chunks are malformed."


def read_body() -> bytes:
    """Read the whole body of the request.

    Raises ``BodyTooLarge``; ``BadRequest`` if the server cannot read it;
    ``UnsupportedMediaType`` if a host has already read it as a form.
    """
    environ = request.environ
    if environ["REQUEST_METHOD"] in _BODILESS and environ.keys().isdisjoint(_ANNOUNCE_BODY):
        return b""
    # The rest of a body that could not be read must not be taken for a body.
    if _REFUSED in environ:
        raise environ[_REFUSED]
    try:
        return _read_body(environ)
    except errors.JobApiError as error:
        environ[_REFUSED] = error
        raise


def _read_body(environ: dict[str, Any]) -> bytes:
    limit = current_app.extensions["jobapi"].settings.max_body_bytes
    length = get_content_length(environ)
    if length is None and not environ.get("wsgi.input_terminated"):
        if "HTTP_TRANSFER_ENCODING" in environ:
            raise errors.BadRequest(
                "This server does not accept chunked bodies; send a Content-Length."
            )
        return b""
    try:
        # The hooks have limited it to one byte more than the limit.
        data = request.get_data() if length is None or length <= limit else None
    except RequestEntityTooLarge:
        data = None
    except Exception as error:
        # Each server raises its own exceptions for malformed chunks, timeouts and closed
        # connections.
        raise errors.BadRequest(_UNREADABLE) from error
    if data is None or len(data) > limit:
        raise errors.BodyTooLarge(f"The body may have at most {limit} bytes.")
    if not data and "form" in request.__dict__ and (request.form or request.files):
        # A hook of the host has parsed it as a form, and nothing is left to read.
        _check_content_type(request.mimetype, _JSON)
    if length is not None and len(data) < length:
        raise errors.BadRequest(_UNREADABLE)
    return data


def _load(req: Any, *accepted: str, parse: Callable[[bytes], Any] = parse_json) -> Any:
    data = read_body()
    if not data:
        raise errors.MalformedJson("The request needs a JSON body.")
    _check_content_type(req.mimetype, *accepted)
    codings = req.environ.get("HTTP_CONTENT_ENCODING", "").lower().split(",")
    if any(coding.strip() not in ("", "identity") for coding in codings):
        raise errors.UnsupportedMediaType(
            "Send the body as it is, without a Content-Encoding.",
            headers={"Accept-Encoding": "identity"},
        )
    return parse(data)


def _check_content_type(mimetype: str, *accepted: str) -> None:
    if mimetype not in accepted:
        given = f"not {mimetype}" if mimetype else "and the request names none"
        raise errors.UnsupportedMediaType(f"Send the body as {' or '.join(accepted)}, {given}.")


def refusal(messages: Any) -> errors.ValidationFailed:
    """Turn marshmallow's nested messages into one list per field, named by its dotted path."""
    flat: dict[str, list[str]] = {}
    _flatten(messages, "", flat)
    return errors.ValidationFailed(flat)


def _flatten(messages: Any, path: str, flat: dict[str, list[str]]) -> None:
    if not isinstance(messages, Mapping):
        texts = [messages] if isinstance(messages, str) else map(str, messages)
        flat.setdefault(path or "body", []).extend(texts)
        return
    for key, value in messages.items():
        _flatten(value, path if key == "_schema" else f"{path}.{key}" if path else str(key), flat)
