"""What all views share: the state, and answers in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import orjson
from flask import Response, current_app, url_for

from ..state import State

BLUEPRINT_PREFIX = "jobapi-"
"""Keeps our blueprints and endpoints apart from a host application's."""

JSON = "application/json"

_JSON_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS | orjson.OPT_APPEND_NEWLINE

View = Callable[..., Any]


def state() -> State:
    """What ``JobAPI`` set up for the app that serves this request."""
    return cast(State, current_app.extensions["jobapi"])


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer in JSON; times in UTC and whole seconds."""
    return current_app.response_class(to_json(value), status, headers, mimetype=JSON)


def to_json(value: Any) -> bytes:
    """The body of ``json_response``."""
    return orjson.dumps(value, option=_JSON_OPTIONS)


def paginated(
    found: Any, query: Mapping[str, Any], rows: Sequence[Any] | None = None
) -> dict[str, Any]:
    """The envelope of every list; schemas pick what their list has.

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
    """The header that says where what was created is."""
    return {"Location": address(endpoint, **url)}


def address(endpoint: str, **url: Any) -> str:
    """The path of a view of ours, without the query that a host's ``url_defaults`` may add."""
    return url_for(endpoint, **url).partition("?")[0]
