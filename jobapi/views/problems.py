"""Error answers: each error in or around a view becomes a problem details object (RFC 9457)."""

from __future__ import annotations

import http
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, cast

import orjson
from flask import Response, current_app, got_request_exception, request
from flask.globals import request_ctx
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, default_exceptions

from .. import errors
from ..headers import PROBLEM
from ..store.faults import judge, lacks_schema, parent_is_gone
from ..store.readiness import schema_problem
from .base import BLUEPRINT_PREFIX, View, state
from .bodies import read_body

logger = logging.getLogger("jobapi")


def render(error: errors.JobApiError) -> Response:
    """Render an error. All errors have this body."""
    return current_app.response_class(
        orjson.dumps(error.problem()), error.status, error.headers, mimetype=PROBLEM
    )


_BY_STATUS: Mapping[int, type[errors.JobApiError]] = {
    400: errors.BadRequest,
    401: errors.TokenInvalid,
    403: errors.Forbidden,
    405: errors.MethodNotAllowed,
    409: errors.Conflict,
    412: errors.PreconditionFailed,
    414: errors.UriTooLong,
    415: errors.UnsupportedMediaType,
    431: errors.HeadersTooLarge,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
    507: errors.Unavailable,
}


def translate(error: HTTPException) -> errors.JobApiError:
    """Turn an exception of Werkzeug into one of our errors, with its status and headers."""
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
"""The endpoint of all unknown paths below the prefix."""


def allowed_methods() -> list[str]:
    """Return the methods that the path of this request takes.

    A path may match a rule with a fixed part and one with a variable in its place, as
    ``/jobs/claim`` does. Then only the former counts.
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
    # The rule with the fewest variables is the most specific one.
    best = min(by_rule, key=lambda rule: rule.count("<"))
    return sorted(by_rule[best])


_INSIDE = "The server failed. Its log has the details under the id of this request."


def handle_http(error: HTTPException) -> Response:
    """Render an exception of Werkzeug, unless it carries a response or redirects."""
    if error.response is not None or error.code is None or error.code < 400:
        return cast(Response, error.get_response())
    translated = translate(error)
    if translated.status == 500 and getattr(error, "original_exception", None) is None:
        # Flask has already logged an exception that it turned into a 500.
        _log_fault(error)
    return render(translated)


def handle_database(error: Exception) -> Response:
    """Render an error of the database: 503 if it may work later."""
    if isinstance(error, DBAPIError) and parent_is_gone(error):
        # The workspace existed when the caller's access was checked. Nothing else that rows refer
        # to can be deleted.
        return render(errors.WorkspaceNotFound("The workspace was deleted a moment ago."))
    fault = judge(error)
    detail = fault.detail if fault is not None else _schema_problem(error)
    if detail is None:
        return handle_any(error)
    _log_fault(error)
    return render(errors.Unavailable(detail))


def _schema_problem(error: Exception) -> str | None:
    """Say how to migrate the database if the error comes from a missing migration."""
    if not lacks_schema(error):
        return None
    try:
        with state().engine.connect() as connection:
            return schema_problem(connection)
    except SQLAlchemyError as another:
        fault = judge(another)
        return None if fault is None else fault.detail


def handle_any(error: Exception) -> Response:
    """Log a fault, send Flask's signal, and answer 500 without details."""
    _log_fault(error)
    got_request_exception.send(state().app, exception=error)
    return render(errors.InternalError(_INSIDE))


def handle(error: Exception) -> Response:
    """Render any exception that one of jobapi's views raised."""
    if isinstance(error, errors.JobApiError):
        return render(error)
    if isinstance(error, HTTPException):
        return handle_http(error)
    if isinstance(error, DBAPIError | PoolTimeout):
        return handle_database(error)
    return handle_any(error)


def handled(view: View) -> View:
    """Render the exceptions of a view before any error page of the host.

    The body is read even if the view ignores it, so that its limit always holds.
    """
    guarded = view.__dict__.get("_apidoc", {}).get("jobapi", {}).get("guarded", False)

    @wraps(view)
    def handling(**url: Any) -> Any:
        try:
            if not guarded:
                # A guarded view reads it after it has identified the caller.
                read_body()
            return view(**url)
        except RaisedByHost as raised:
            # Flask handles it as if a hook of the host had raised it.
            raise raised.error from None
        except Exception as error:
            return handle(error)

    return handling


class RaisedByHost(Exception):
    """Wraps an exception that a function of the host raised inside one of jobapi's views."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def handle_outside(error: Exception) -> Any:
    """Render an exception raised around a view, by a hook or an extension of the host.

    The host answers if it has a handler for this class of exceptions. Its handlers for a status,
    or for all exceptions, are for its own routes.
    """
    handler = _handler_of_host(error)
    if handler is not None:
        return current_app.ensure_sync(handler)(error)
    # An integrity error here concerns a row of the host, not a workspace.
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
    """Let ``handle_outside`` render the errors around a blueprint's views.

    It is registered for each status, because Flask prefers an application's handler for a status
    to a blueprint's handler for a class.
    """
    for kind in (Exception, *default_exceptions):
        blueprint.register_error_handler(kind, handle_outside)


def _log_fault(error: Exception) -> None:
    # A host's engine may include the parameters in the texts of its errors.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StatementError):
            cause.hide_parameters = True
        cause = cause.__cause__ or cause.__context__
    logger.error("fault", exc_info=error)
