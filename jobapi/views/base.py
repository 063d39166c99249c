"""What all views share: the state, and answers in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import orjson
from flask import Response, current_app, request, url_for

from ..state import State

BLUEPRINT_PREFIX = "jobapi-"
"""Distinguishes our blueprints and endpoints from those of a host application."""

JSON = "application/json"

_JSON_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS | orjson.OPT_APPEND_NEWLINE

View = Callable[..., Any]


def state() -> State:
    """Return what ``JobAPI`` set up for the app that serves this request."""
    return cast(State, current_app.extensions["jobapi"])


def sent(header: str) -> str | None:
    """Return the value of a header of the request; None without it.

    Unlike ``request.headers.get``, it makes no exception for a missing header.
    """
    value: str | None = request.environ.get(f"HTTP_{header.upper().replace('-', '_')}")
    return value


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer in JSON; times are in UTC and whole seconds."""
    return current_app.response_class(to_json(value), status, headers, mimetype=JSON)


def to_json(value: Any) -> bytes:
    """Return the body of ``json_response``."""
    return orjson.dumps(value, option=_JSON_OPTIONS)


def paginated(
    found: Any, query: Mapping[str, Any], rows: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Return the envelope of a list, from which its schema picks the fields.

    A page that a cursor led to has no number.
    """
    limit = query["limit"]
    return {
        "data": found.rows if rows is None else rows,
        "pagination": {
            "page": None if "cursor" in query else query.get("page", 1),
            "limit": limit,
            "total": found.total,
            "total_is_capped": getattr(found, "total_is_capped", False),
            "total_pages": -(-found.total // limit),
            "next_cursor": found.next_cursor,
        },
    }


def location(endpoint: str, **url: Any) -> dict[str, str]:
    """Return the header ``Location`` of a new resource."""
    return {"Location": address(endpoint, **url)}


def address(endpoint: str, **url: Any) -> str:
    """Return the path of a view, without the query that a host's ``url_defaults`` may add."""
    return url_for(endpoint, **url).partition("?")[0]
