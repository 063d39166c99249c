"""Errors as answers: every error of a view, and around it, becomes a problem (RFC 9457)."""

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
from ..store.faults import judge, lacks_schema, parent_is_gone
from .base import BLUEPRINT_PREFIX, View, state
from .bodies import read_body

PROBLEM = "application/problem+json"

logger = logging.getLogger("jobapi")


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
