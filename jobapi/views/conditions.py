"""Conditional requests: a job's ``ETag``, ``If-Match`` and ``If-None-Match``."""

from __future__ import annotations

from collections.abc import Callable

from flask import Response, current_app, request


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
