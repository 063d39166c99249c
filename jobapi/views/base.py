"""What all views share: bodies, answers, errors, and their documentation."""

from __future__ import annotations

import http
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, cast

import orjson
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask, Response, current_app, got_request_exception, request, url_for
from flask.globals import request_ctx
from flask_smorest import Api as SmorestApi
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow.fields import Field
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, default_exceptions

from .. import errors
from ..schemas import base as schemas
from ..schemas.fields import Choice, Time
from ..state import State
from ..store.faults import judge, lacks_schema, parent_is_gone
from ..store.tables import MAX_ID
from . import examples
from .bodies import Parser, read_body

BLUEPRINT_PREFIX = "jobapi-"
"""Keeps our blueprints and endpoints apart from a host application's."""

JSON = "application/json"
PROBLEM = "application/problem+json"

_JSON_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS | orjson.OPT_APPEND_NEWLINE

View = Callable[..., Any]

logger = logging.getLogger("jobapi")


def state() -> State:
    """What ``JobAPI`` set up for the app that serves this request."""
    return cast(State, current_app.extensions["jobapi"])


# Answers


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer in JSON; times in UTC and whole seconds."""
    return current_app.response_class(to_json(value), status, headers, mimetype=JSON)


def to_json(value: Any) -> bytes:
    """The body of ``json_response``."""
    return orjson.dumps(value, option=_JSON_OPTIONS)


def paginated(rows: Sequence[Any], found: Any, query: Mapping[str, Any]) -> dict[str, Any]:
    """The envelope of every list: of what was found, these rows are shown.

    A page that a cursor led to has no number.
    """
    limit = query["limit"]
    return {
        "data": rows,
        "pagination": {
            "page": None if "cursor" in query else query.get("page", 1),
            "limit": limit,
            "total": found.total,
            "total_pages": -(-found.total // limit),
            "next_cursor": found.next_cursor,
        },
    }


def location(endpoint: str, **url: Any) -> dict[str, str]:
    """The header that says where what was created is."""
    return {"Location": address(endpoint, **url)}


def address(endpoint: str, **url: Any) -> str:
    """The path of a view of ours, without the query that a host's ``url_defaults`` may add."""
    return url_for(endpoint, **url).partition("?")[0]


def etag(version: int) -> str:
    """The ETag of a job in this version."""
    return f'"{version}"'


def not_modified(version: int) -> Response | None:
    """304, where the caller has this version already (RFC 9110, section 13.1.2)."""
    wanted = "If-None-Match" in request.headers and request.if_none_match
    if wanted and wanted.contains_weak(str(version)):
        return current_app.response_class(status=304, headers={"ETag": etag(version)})
    return None


def version_wanted() -> Callable[[int], bool] | None:
    """What the If-Match header asks of a version; None where there is no header."""
    if "If-Match" not in request.headers:
        return None
    # The weak form too, which proxies that compress make of our tags.
    return lambda version: request.if_match.contains_weak(str(version))


# Errors


def render(error: errors.JobApiError) -> Response:
    """The one body of every error."""
    return current_app.response_class(
        orjson.dumps(error.problem()), error.status, error.headers, mimetype=PROBLEM
    )


_BY_STATUS: Mapping[int, type[errors.JobApiError]] = {
    400: errors.BadRequest,
    401: errors.TokenInvalid,
    403: errors.Forbidden,
    404: errors.UnknownPath,
    405: errors.MethodNotAllowed,
    409: errors.Conflict,
    412: errors.PreconditionFailed,
    413: errors.BodyTooLarge,
    414: errors.UriTooLong,
    415: errors.UnsupportedMediaType,
    431: errors.HeadersTooLarge,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
    507: errors.Unavailable,
}


def translate(error: HTTPException) -> errors.JobApiError:
    """One of our errors for one of Werkzeug's, with its status and its headers."""
    status = error.code or 500
    headers: dict[str, str] = {}
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    detail = error.description or _phrase(status)
    translated: errors.JobApiError
    if status == 405:
        allowed = allowed_methods()
        headers["Allow"] = ", ".join(allowed)
        detail = f"{request.method} is not allowed here; allowed: {headers['Allow']}."
    if status == 404:
        translated = errors.UnknownPath(f"There is nothing at {request.path}.")
    elif status == 413:
        most = state().settings.max_body_bytes
        translated = errors.BodyTooLarge(f"The body may have at most {most} bytes.")
    elif status == 429:
        translated = errors.TooManyRequests(detail, retry_after=1)
    elif status in _BY_STATUS:
        translated = _BY_STATUS[status](detail)
    else:
        translated = errors.BadRequest(detail) if status < 500 else errors.InternalError(_INSIDE)
    translated.status = status
    translated.headers |= headers
    return translated


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return f"The request was answered with {status}."


METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
UNKNOWN = f"{BLUEPRINT_PREFIX}unknown.below_prefix"
"""The endpoint of all that is below the prefix and is not there."""


def allowed_methods() -> list[str]:
    """The methods that the path of this request takes.

    Where a path fits a rule with a name in it and one with a variable in the name's place, as
    ``/jobs/claim`` does, only the former counts.
    """
    adapter: Any = request_ctx.url_adapter
    by_rule: dict[Any, set[str]] = {}
    for method in METHODS:
        try:
            rule, _ = adapter.match(method=method, return_rule=True)
        except HTTPException:
            continue
        if rule.endpoint != UNKNOWN:
            by_rule.setdefault(rule.rule, set()).add(method)
    if not by_rule:
        return []
    # The rule with the fewest variables.
    best = min(by_rule, key=lambda rule: rule.count("<"))
    return sorted(by_rule[best])


_INSIDE = "Something went wrong on our side; the log has the details under this request's id."


def handle_http(error: HTTPException) -> Response:
    """Render an error of Werkzeug's; what carries a response, or redirects, is kept."""
    if error.response is not None or error.code is None or error.code < 400:
        return cast(Response, error.get_response())
    translated = translate(error)
    if translated.status == 500 and getattr(error, "original_exception", None) is None:
        # Flask itself logs what it makes a 500 of.
        _log_fault(error)
    return render(translated)


def handle_database(error: Exception) -> Response:
    """Say what the database cannot do at this moment, and that it is worth trying again."""
    if isinstance(error, DBAPIError) and parent_is_gone(error):
        # It was there when the caller's access was checked; nothing else that
        # rows belong to can be deleted.
        return render(errors.WorkspaceNotFound("The workspace was deleted a moment ago."))
    fault = judge(error)
    detail = fault.detail if fault is not None else _schema_problem(error)
    if detail is None:
        return handle_any(error)
    _log_fault(error)
    return render(errors.Unavailable(detail))


def _schema_problem(error: Exception) -> str | None:
    """What to do where something is missing in the database because it was not migrated."""
    if not lacks_schema(error):
        return None
    try:
        with state().engine.connect() as connection:
            return state().schema_problem(connection)
    except SQLAlchemyError as another:
        fault = judge(another)
        return None if fault is None else fault.detail


def handle_any(error: Exception) -> Response:
    """Log a fault, tell whoever listens to Flask's signal, and show nothing of it."""
    _log_fault(error)
    got_request_exception.send(state().app, exception=error)
    return render(errors.InternalError(_INSIDE))


def handle(error: Exception) -> Response:
    """Render whatever was raised in a view of ours."""
    if isinstance(error, errors.JobApiError):
        return render(error)
    if isinstance(error, HTTPException):
        return handle_http(error)
    if isinstance(error, DBAPIError | PoolTimeout):
        return handle_database(error)
    return handle_any(error)


def handled(view: View) -> View:
    """Render what the view raises here, where no page of the host's can come before ours.

    A body that the view ignores has the same limit as any other.
    """
    guarded = view.__dict__.get("_apidoc", {}).get("jobapi", {}).get("guarded", False)

    @wraps(view)
    def handling(**url: Any) -> Any:
        try:
            if not guarded:
                # What is guarded reads it when it knows the caller.
                read_body()
            return view(**url)
        except RaisedByHost as raised:
            # Flask is to handle it as if a hook of the host's had raised it.
            raise raised.error from None
        except Exception as error:
            return handle(error)

    return handling


class RaisedByHost(Exception):
    """What a function of the host's raised that a view of ours had called."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def handle_outside(error: Exception) -> Any:
    """Render what was raised around a view of ours: by a hook or an extension of the host's.

    The host answers where it has a handler for this kind of exception. Its pages for a status,
    and for everything, are for its own routes.
    """
    handler = _handler_of_host(error)
    if handler is not None:
        return current_app.ensure_sync(handler)(error)
    # A row of the host's has nothing to do with our workspaces.
    return handle_any(error) if isinstance(error, IntegrityError) else handle(error)


_EVERYTHING = frozenset({Exception, HTTPException, *default_exceptions.values()})


def _handler_of_host(error: Exception) -> Callable[[Any], Any] | None:
    by_code = current_app.error_handler_spec[None]
    status = error.code if isinstance(error, HTTPException) else None
    for code in (status, None):
        for kind in type(error).__mro__:
            handler = by_code.get(code, {}).get(cast(Any, kind))
            if handler is not None and kind not in _EVERYTHING:
                return handler
    return None


def add_error_handlers(blueprint: Any) -> None:
    """Let errors around a blueprint's views be rendered by ``handle_outside``.

    Flask asks an application's handler for a status before a blueprint's for a class, so that
    each status is named.
    """
    for kind in (Exception, *default_exceptions):
        blueprint.register_error_handler(kind, handle_outside)


def _log_fault(error: Exception) -> None:
    # A host's engine may put what was sent into its errors' text.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StatementError):
            cause.hide_parameters = True
        cause = cause.__cause__ or cause.__context__
    logger.error("fault", exc_info=error)


# Documentation


class _Converter(OpenAPIConverter):
    """Writes schemas so that client generators make usable types of them.

    A field with a ``component`` in its metadata refers to that component, which all
    such fields share. Defaults of bodies are part of the description, because some
    generators make fields with a ``default`` required.
    """

    def field2property(self, field: Field[Any]) -> dict[str, Any]:
        prop: dict[str, Any] = super().field2property(field)
        prop.pop("default", None)
        name = field.metadata.get("component")
        if name is None:
            return prop
        shared = {key: prop.pop(key) for key in _SHARED & prop.keys()}
        one: dict[str, Any] = self._component(name, {**shared, "type": _not_null(shared["type"])})
        null = [{"type": "null"}] if field.allow_none else []
        # A union in place is named after its schema and property by some generators.
        # Where that could be the name of another schema, it is a component, too.
        if field.metadata.get("grows"):
            union = [one, {"type": "string"}, *null]
            one = self._component(f"Any{name}", {"anyOf": union, "description": _GROWS})
        elif null and "enum" in shared:
            one = {"anyOf": [one, *null]}
        elif null:
            one = self._component(f"Nullable{name}", {"anyOf": [one, *null]})
        return prop | one

    def _component(self, name: str, schema: dict[str, Any]) -> dict[str, str]:
        components = self.spec.components
        if name not in components.schemas:
            components.schema(name, schema)
        elif components.schemas[name] != schema:
            raise ValueError(f"Two different schemas are named {name}")
        return {"$ref": f"#/components/schemas/{name}"}

    def field2default(self, field: Field[Any], **kw: Any) -> dict[str, Any]:
        return {}

    def _field2parameter(self, field: Field[Any], **kw: Any) -> dict[str, Any]:
        parameter: dict[str, Any] = super()._field2parameter(field, **kw)
        parameter["schema"] |= super().field2default(field)
        return parameter

    def fields2jsonschema(self, fields: Any, **kw: Any) -> dict[str, Any]:
        schema: dict[str, Any] = super().fields2jsonschema(fields, **kw)
        for name, field in fields.items():
            if default := super().field2default(field):
                value = default["default"]
                text = value if isinstance(value, str) else json.dumps(value)
                prop = schema["properties"][field.data_key or name]
                words = (prop.get("description"), f"Default: `{text}`.")
                prop["description"] = " ".join(filter(None, words))
        return schema


_GROWS = "A later version may send other values."
_SHARED = {"type", "enum", "additionalProperties"}


def _not_null(types: Any) -> Any:
    """The type of a nullable field without the null."""
    return types if isinstance(types, str) else next(each for each in types if each != "null")


class _MarshmallowPlugin(MarshmallowPlugin):
    Converter = _Converter


class Api(SmorestApi):
    """flask-smorest's Api, without its error handler, which is app-wide."""

    def __init__(self, app: Flask, *, version: str, description: str) -> None:
        super().__init__(
            app,
            config_prefix="JOBAPI",
            spec_kwargs={
                "title": "Job API",
                "version": version,
                "openapi_version": "3.1.0",
                "info": {"description": description},
                "marshmallow_plugin": _MarshmallowPlugin(),
            },
        )

    def _init_spec(self, **options: Any) -> None:
        super()._init_spec(**options)
        self.register_field(Choice, "string", None)
        self.register_field(Time, "string", "date-time")

    DEFAULT_ERROR_RESPONSE_NAME = cast(str, None)
    ERROR_SCHEMA = schemas.Problem

    def register_blueprint(
        self, blp: SmorestBlueprint, *, parameters: Any = None, **options: Any
    ) -> None:
        """Register a blueprint and document it, under its tag instead of its name."""
        self._app.extensions["flask-smorest"]["blp_name_to_api"][blp.name] = self
        self._app.register_blueprint(blp, **options)
        blp.register_views_in_doc(self, self._app, self.spec, name=blp.name, parameters=parameters)
        if blp.description:
            self.spec.tag({"name": blp.tag, "description": blp.description})

    def describe_security(self, host_login: bool) -> None:
        """Say how a caller shows who they are."""
        by = (
            "An API key" if host_login else "An access token from `POST /auth/login`, or an API key"
        )
        self.spec.components.security_scheme(
            "bearer",
            {
                "type": "http",
                "scheme": "bearer",
                "description": f"{by} (`jk_…`). Without `Bearer` in front, which is added.",
            },
        )

    def _register_error_handlers(self) -> None:
        """Errors are handled on our blueprints, so that a host's own stay as they are."""

    def _register_pagination_header(self) -> None:
        """Pages say in their body where they lie, not in a header."""

    def _register_responses(self) -> None:
        for status, description in ERROR_RESPONSES.items():
            self.spec.components.response(
                _component(status),
                {
                    "description": description,
                    "content": {PROBLEM: {"schema": schemas.Problem}},
                    "headers": ERROR_HEADERS.get(status, {}),
                },
                lazy=True,
            )


ERROR_RESPONSES = {
    400: "The body cannot be read, is not JSON, or has values that cannot be stored.",
    401: "No token, or one that is malformed, expired or revoked.",
    403: "No access to the workspace, or the role does not allow this.",
    404: "The job, or the workspace, does not exist.",
    409: "The request is right, but the state does not allow it.",
    412: "The job has changed since the version that `If-Match` names.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body is of a type that is not accepted.",
    422: "The data is not valid; `errors` says for each field what is wrong.",
    429: "Too many requests; `Retry-After` says in how many seconds to try again.",
    431: "There are too many header fields, or they are too large.",
    500: "A fault in the service; the log has the details under `X-Request-Id`.",
    503: "The database is away; try again.",
}


def header(name: str, description: str) -> dict[str, Any]:
    """The documentation of a response header."""
    return {name: {"schema": {"type": "string"}, "description": description}}


_RETRY_AFTER = header("Retry-After", "Seconds to wait before trying again.")
ERROR_HEADERS = {
    401: header("WWW-Authenticate", "`Bearer`, with an `error` for an invalid token (RFC 6750)."),
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


_ID = {"type": "integer", "minimum": 1, "maximum": MAX_ID}
PATH_PARAMETERS = [
    {"name": name, "in": "path", "description": description, "schema": schema, "example": example}
    for name, description, schema, example in (
        ("workspace_id", "The workspace.", _ID, 1),
        ("job_id", "The job, as its creation named it.", {"type": "string"}, examples.JOB_ID),
        ("user_id", "The user.", _ID, 123),
        ("key_id", "The API key.", _ID, 1),
        ("operation_id", "The operation.", _ID, 1),
    )
]


def _component(status: int) -> str:
    return "Problem" + http.HTTPStatus(status).phrase.replace(" ", "").replace("-", "")


class Blueprint(SmorestBlueprint):
    """A blueprint whose errors are problems and whose operations document them."""

    ARGUMENTS_PARSER = Parser()
    DEFAULT_LOCATION_CONTENT_TYPE_MAPPING = {
        **SmorestBlueprint.DEFAULT_LOCATION_CONTENT_TYPE_MAPPING,
        "optional_json": JSON,
        "patch_json": JSON,
        "reports_json": JSON,
    }

    def __init__(self, name: str, tag: str, description: str) -> None:
        super().__init__(f"{BLUEPRINT_PREFIX}{name}", __name__, description=description)
        self.tag = tag
        self._prepare_doc_cbks += [_document_parameters, _document_errors]
        add_error_handlers(self)

    def arguments(self, schema: Any, **kw: Any) -> Callable[[View], View]:
        """Load what the request carries by a schema; the view gets it after the caller."""
        # One schema for all requests: making one anew costs more than loading.
        return cast(Callable[[View], View], super().arguments(schema(), **kw))

    def response(self, status: int, schema: Any = None, **kw: Any) -> Callable[[View], View]:
        """Dump what the view returns by a schema; a whole response is left as it is."""
        return cast(Callable[[View], View], super().response(status, schema, **kw))

    def operation(
        self,
        rule: str,
        method: str = "GET",
        *,
        errors: tuple[int, ...] = (),
        parameters: Sequence[Mapping[str, Any]] = (),
        **doc: Any,
    ) -> Callable[[View], View]:
        """Route a view and document it.

        ``errors`` are the statuses of its own errors, ``parameters`` are those that
        no schema loads: headers, and query parameters with names of the caller's.
        """

        def decorator(view: View) -> View:
            apidoc: dict[str, Any] = view.__dict__.setdefault("_apidoc", {})
            apidoc["jobapi"] = {
                **apidoc.get("jobapi", {}),
                "errors": errors,
                "parameters": parameters,
            }
            apidoc["manual_doc"] = {
                "operationId": view.__name__,
                "description": inspect.getdoc(view) or "",
                **doc,
            }
            self.add_url_rule(
                rule,
                view.__name__,
                view,
                methods=[method],
                tags=[self.tag],
                parameters=[p for p in PATH_PARAMETERS if f"{p['name']}>" in rule],
            )
            return view

        return decorator


def _document_parameters(doc: Any, info: Any, **kw: Any) -> Any:
    """Add to an operation the parameters that no schema loads.

    They cannot be among what flask-smorest merges in last: it replaces lists, and
    those of the query's schema would be lost.
    """
    declared = [dict(parameter) for parameter in info["jobapi"]["parameters"]]
    if declared:
        doc.setdefault("parameters", []).extend(declared)
    return doc


def _document_errors(doc: Any, info: Any, *, method: str, **kw: Any) -> Any:
    """Add to an operation the errors that it can answer with, and its security."""
    ours = info.get("jobapi", {})
    statuses = {414, 431, 500, 503, *ours["errors"]}
    if ours.get("guarded"):
        statuses |= {401, 403}
        doc["security"] = [{"bearer": []}]
    else:
        doc["security"] = []
    if method != "get":
        statuses |= {400, 413}
    if "requestBody" in doc:
        statuses |= {415, 422}
    if any(isinstance(p, dict) and p.get("in") == "query" for p in doc.get("parameters", ())):
        statuses.add(422)
    for status in sorted(statuses):
        doc["responses"].setdefault(str(status), _component(status))
    return doc
