"""Hooks around the API's requests: request ids, limits, headers, CORS, metrics and the log.

In a host application they leave the requests for the host's own routes alone.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Flask, Request, Response, request
from flask.globals import app_ctx, request_ctx
from werkzeug.exceptions import HTTPException, MethodNotAllowed, SecurityError
from werkzeug.exceptions import NotFound as UnknownRoute
from werkzeug.routing import BaseConverter, Rule

from ..headers import SECURITY_HEADERS
from ..rules.addresses import client_address
from ..state import State
from .base import BLUEPRINT_PREFIX, sent
from .cors import add_cors_headers
from .problems import UNKNOWN, add_error_handlers, allowed_methods, handle, handle_http, handled

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:@/+=\-]{1,128}")

# A host may keep one application context over several requests, as its tests may do. The values
# of the previous request in ``g`` must not mark the next one as ours.
_OF_A_REQUEST = ("jobapi_start", "jobapi_request_id", "jobapi_caller")

logger = logging.getLogger("jobapi")


def register(app: Flask, state: State) -> None:
    """Register the hooks with ``app``."""
    settings = state.settings
    origins = frozenset(settings.origins)

    def begin() -> Response | None:
        g, request = _current()
        for name in _OF_A_REQUEST:
            g.pop(name, None)
        if not (state.standalone or _is_ours(state)):
            return None
        g.jobapi_start = time.perf_counter()
        if state.maintain:
            # Not when the app is created: a server may fork its processes after that.
            state.maintenance.start()
        given = sent("X-Request-Id") or ""
        known = _REQUEST_ID.fullmatch(given)
        g.jobapi_request_id = given if known else secrets.token_hex(16)
        # One byte more than allowed, so that ``read_body`` can tell a larger body from a cut one.
        request.max_content_length = settings.max_body_bytes + 1
        error = request.routing_exception
        if isinstance(error, HTTPException) and not state.standalone:
            return handle_http(error)
        if _is_shadowed(request, shadowed):
            return handle_http(MethodNotAllowed())
        return None

    def finish(response: Response) -> Response:
        g, request = _current()
        started = g.get("jobapi_start")
        if started is None:
            return response
        headers = response.headers
        # Each lookup in ``headers`` would read all of them.
        there = {name.lower() for name, _ in headers}
        if request.method == "OPTIONS" and request.endpoint is not None:
            # Flask would include methods whose only purpose is an error.
            headers["Allow"] = ", ".join(allowed_methods())
            if not headers["Allow"]:
                del headers["Allow"]
        headers["X-Request-Id"] = g.jobapi_request_id
        for name, value in SECURITY_HEADERS.items():
            if name.lower() not in there:
                headers.add(name, value)
        if "cache-control" not in there:
            # A response with an ETag may be cached if it is revalidated each time.
            headers.add("Cache-Control", "private, no-cache" if "etag" in there else "no-store")
        if origins:
            add_cors_headers(response, origins)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            # The request may have written events.
            state.streams.wake()
        metrics = state.metrics
        if metrics is not None:
            rule = request.url_rule
            metrics.answered(
                request.method,
                "unknown" if rule is None or rule.endpoint == UNKNOWN else rule.rule,
                response.status_code,
                time.perf_counter() - started,
            )
        if logger.isEnabledFor(logging.INFO):
            _log(g, request, response.status_code, started)
        return response

    # Before all other hooks: none may read the body before its limit is set.
    app.before_request_funcs.setdefault(None, []).insert(0, begin)
    app.after_request(finish)
    if state.standalone:
        app.register_error_handler(Exception, handle)
    if state.url_prefix:
        _add_unknown(app, state.url_prefix)
    shadowed = _shadowed(app)
    for endpoint, view in app.view_functions.items():
        if endpoint.startswith(BLUEPRINT_PREFIX):
            app.view_functions[endpoint] = handled(view)


def _current() -> tuple[Any, Request]:
    """Flask's ``g`` and ``request`` themselves: the proxies look them up at each use."""
    return app_ctx.g, request_ctx.request


def _is_ours(state: State) -> bool:
    """Whether the request is for one of our routes, or for an unknown path below our prefix."""
    endpoint = request.endpoint
    if endpoint is not None:
        return endpoint.startswith(BLUEPRINT_PREFIX)
    error = request.routing_exception
    if isinstance(error, MethodNotAllowed):
        return _rule_is_ours(error)
    # Paths below the prefix have a rule, but Flask does not match rules for an untrusted Host.
    prefix = state.url_prefix
    return (
        bool(prefix)
        and isinstance(error, UnknownRoute | SecurityError)
        and (request.path == prefix or request.path.startswith(f"{prefix}/"))
    )


def _rule_is_ours(error: MethodNotAllowed) -> bool:
    adapter: Any = request_ctx.url_adapter
    method = next(iter(error.valid_methods or ()), None)
    endpoint, _ = adapter.match(method=method)
    return str(endpoint).startswith(BLUEPRINT_PREFIX)


class _Rest(BaseConverter):
    """The rest of a path, which may be empty."""

    regex = ".*?"
    part_isolating = False
    weight = 1000


class _EveryMethod(set[str]):
    """Contains every method and lists none. Werkzeug uses ``--`` to ask which methods exist."""

    def __contains__(self, method: object) -> bool:
        return method != "--"


class _Unknown(Rule):
    def __init__(self, *arguments: Any, **kw: Any) -> None:
        super().__init__(*arguments, **kw)
        self.methods = _EveryMethod()

    def get_converter(self, *arguments: Any) -> BaseConverter:
        return _Rest(self.map)


def _add_unknown(app: Flask, prefix: str) -> None:
    """Answer unknown paths below our prefix, even if the host has a catch-all route."""
    unknown = Blueprint(UNKNOWN.partition(".")[0], __name__)
    add_error_handlers(unknown)
    app.register_blueprint(unknown)

    def below_prefix(rest: str) -> Response:
        error = MethodNotAllowed() if allowed_methods() else UnknownRoute()
        return handle_http(error)

    app.view_functions[UNKNOWN] = below_prefix
    app.url_map.add(_Unknown(f"{prefix}/<rest>", endpoint=UNKNOWN))


Shadowed = Mapping[str, Sequence[tuple[str, str]]]


def _shadowed(app: Flask) -> Shadowed:
    """By rule: the variables that match the literal part of another rule, with that part.

    ``/jobs/<job_id>`` matches ``GET /jobs/claim``, but ``claim`` is no job: only
    ``POST /jobs/claim`` exists.
    """
    ours = {
        rule.rule: rule.rule.split("/")
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith(BLUEPRINT_PREFIX)
    }
    found: dict[str, list[tuple[str, str]]] = {}
    for rule, parts in ours.items():
        for other in ours.values():
            pairs = [(a, b) for a, b in zip(parts, other, strict=False) if a != b]
            if len(parts) == len(other) and len(pairs) == 1 and pairs[0][0].startswith("<"):
                variable, name = pairs[0]
                found.setdefault(rule, []).append((variable.strip("<>"), name))
    return found


def _is_shadowed(request: Request, shadowed: Shadowed) -> bool:
    rule = request.url_rule
    given = request.view_args or {}
    return rule is not None and any(
        given.get(variable) == name for variable, name in shadowed.get(rule.rule, ())
    )


def _log(g: Any, request: Request, status: int, started: float) -> None:
    # The path is encoded, so that it cannot break the line. The query is left out, because
    # it may contain personal data.
    path = quote(request.path)
    duration = round((time.perf_counter() - started) * 1000, 1)
    logger.info(
        "%s %s %s %s ms",
        request.method,
        path,
        status,
        duration,
        extra={
            "method": request.method,
            "path": path,
            "status": status,
            "duration_ms": duration,
            "caller": g.get("jobapi_caller", "-"),
            "address": client_address(request.remote_addr),
            "request_id": g.jobapi_request_id,
        },
    )
