"""CORS: which pages of other origins may call the API from a browser."""

from __future__ import annotations

from collections.abc import Collection

from flask import Response, request

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST")
EXPOSED_HEADERS = (
    "Deprecation, ETag, Idempotency-Replayed, Last-Event-ID, Link, Location, Retry-After, "
    "WWW-Authenticate, X-Request-Id"
)
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, "
        "Lease-Token, traceparent, X-Request-Id"
    ),
    "Access-Control-Allow-Methods": ", ".join(METHODS),
    "Access-Control-Max-Age": "600",
}


def add_cors_headers(response: Response, origins: Collection[str]) -> None:
    """Add the headers if the request's origin is in ``origins`` (lower case, or ``*`` for all)."""
    origin = request.headers.get("Origin", "")
    headers = response.headers
    if origin and "*" in origins:
        headers["Access-Control-Allow-Origin"] = "*"
    elif origin.lower() in origins:
        headers["Access-Control-Allow-Origin"] = origin
        headers.add("Vary", "Origin")
    else:
        return
    headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    wanted = request.headers.get("Access-Control-Request-Method", "")
    if request.method == "OPTIONS" and wanted.upper() in METHODS:
        headers.update(PREFLIGHT_HEADERS)
