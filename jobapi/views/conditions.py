"""Conditional requests: a job's ``ETag``, ``If-Match`` and ``If-None-Match``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import current_app, request

from .openapi import header, header_parameter

IF_MATCH = header_parameter(
    "If-Match", "The `ETag` that was read; 412 if the job has changed since."
)
IF_NONE_MATCH = header_parameter("If-None-Match", "An `ETag`; 304 if the job is still the same.")
ETAG = header("ETag", "The job's version.")
NOT_MODIFIED = {"304": {"description": "Not changed since the version named.", "headers": ETAG}}


def etag(version: int) -> dict[str, str]:
    """The header ``ETag`` of a job in this version."""
    return {"ETag": f'"{version}"'}


def tagged(job: Any) -> tuple[Any, dict[str, str]]:
    """A job and its ``ETag``, as a view returns them."""
    return job, etag(job.version)


def tagged_unless_known(job: Any) -> Any:
    """The same; 304 if the caller has this version already (RFC 9110, section 13.1.2)."""
    wanted = "If-None-Match" in request.headers and request.if_none_match
    if wanted and wanted.contains_weak(str(job.version)):
        return current_app.response_class(status=304, headers=etag(job.version))
    return tagged(job)


def version_wanted() -> Callable[[int], bool] | None:
    """What the If-Match header asks of a version; None where there is no header."""
    if "If-Match" not in request.headers:
        return None
    # The weak form too, which proxies that compress make of our tags.
    return lambda version: request.if_match.contains_weak(str(version))
