"""What happens around each request of ours, and of nobody else's."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from flask import Flask, Response, g, request
from flask_cors.core import serialize_options, set_cors_headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.exceptions import NotFound as UnknownRoute

from ..identity import client_address
from .base import BLUEPRINT_PREFIX, error_handlers, render, translate

if TYPE_CHECKING:
    from ..extension import State

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:@/+=\-]{1,128}")

logger = logging.getLogger("jobapi")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
REQUEST_HEADERS = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Lease-Token",
    "traceparent",
    "X-Request-Id",
]
RESPONSE_HEADERS = [
    "Deprecation",
    "ETag",
    "Idempotency-Replayed",
    "Last-Event-ID",
    "Link",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
]


def register(app: Flask, state: State) -> None:
    """Hook into ``app``: request ids, limits, headers, CORS and the request log."""
    settings = state.settings
    cors = None
    if settings.origins:
        # flask-cors has hooks for a whole app or for blueprints, not for
        # errors of routing, so its one function is called from ours.
        cors = serialize_options(
            {
                "origins": settings.origins,
                "methods": ["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"],
                "allow_headers": REQUEST_HEADERS,
                "expose_headers": RESPONSE_HEADERS,
                "supports_credentials": False,
                "send_wildcard": True,
                "vary_header": True,
                "max_age": 600,
                "intercept_exceptions": True,
                "automatic_options": True,
                "always_send": False,
                "allow_private_network": False,
            }
        )

    def begin() -> Response | None:
        if not (state.standalone or _is_ours(state)):
            return None
        g.jobapi_start = time.perf_counter()
        if state.maintain:
            # Not earlier: a server may fork its processes after the app is made.
            state.maintenance.start()
        given = request.headers.get("X-Request-Id", "")
        g.jobapi_request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        request.max_content_length = settings.max_body_bytes
        error = request.routing_exception
        if isinstance(error, HTTPException) and not state.standalone:
            return render(translate(error))
        return None

    def finish(response: Response) -> Response:
        started = g.get("jobapi_start")
        if started is None:
            return response
        headers = response.headers
        headers["X-Request-Id"] = g.jobapi_request_id
        for name, value in SECURITY_HEADERS.items():
            if name not in headers:
                headers[name] = value
        if "Cache-Control" not in headers:
            # What has an ETag may be kept, and asked about each time.
            headers["Cache-Control"] = "private, no-cache" if "ETag" in headers else "no-store"
        if cors is not None:
            set_cors_headers(response, cors)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            # There may be events of it.
            state.streams.wake()
        metrics = state.metrics
        if metrics is not None:
            rule = request.url_rule
            metrics.answered(
                request.method,
                "unknown" if rule is None else rule.rule,
                response.status_code,
                time.perf_counter() - started,
            )
        if logger.isEnabledFor(logging.INFO):
            _log(response.status_code, started)
        return response

    # First of all hooks: nothing else may look at the body before its limit.
    app.before_request_funcs.setdefault(None, []).insert(0, begin)
    app.after_request(finish)
    if state.standalone:
        for kind, handler in error_handlers():
            app.register_error_handler(kind, handler)


def _is_ours(state: State) -> bool:
    """Whether the request is for a route of ours, or for none below our prefix."""
    endpoint = request.endpoint
    if endpoint is not None:
        return endpoint.startswith(BLUEPRINT_PREFIX)
    error = request.routing_exception
    if isinstance(error, MethodNotAllowed):
        return _rule_is_ours(error)
    prefix = state.url_prefix
    return (
        bool(prefix)
        and isinstance(error, UnknownRoute)
        and (request.path == prefix or request.path.startswith(f"{prefix}/"))
    )


def _rule_is_ours(error: MethodNotAllowed) -> bool:
    from flask.globals import request_ctx

    adapter: Any = request_ctx.url_adapter
    method = next(iter(error.valid_methods or ()), None)
    endpoint, _ = adapter.match(method=method)
    return str(endpoint).startswith(BLUEPRINT_PREFIX)


def _log(status: int, started: float) -> None:
    # The path as it was sent, encoded, so that it cannot break the line. Not
    # the query, which may hold anything.
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
