"""Conditional requests: a job's ``ETag``, ``If-Match`` and ``If-None-Match``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import current_app, request

from .base import sent
from .openapi import header, header_parameter

IF_MATCH = header_parameter(
    "If-Match", "The `ETag` that was read; 412 if the job has changed since."
)
IF_NONE_MATCH = header_parameter("If-None-Match", "An `ETag`; 304 if the job is still the same.")
ETAG = header("ETag", "The job's version.")
NOT_MODIFIED = {"304": {"description": "The job has not changed.", "headers": ETAG}}


def etag(version: int) -> dict[str, str]:
    """Return the header ``ETag`` of a version of a job."""
    return {"ETag": f'"{version}"'}


def tagged(job: Any) -> tuple[Any, dict[str, str]]:
    """Return a job and its ``ETag``, as a view does."""
    return job, etag(job.version)


def tagged_unless_known(job: Any) -> Any:
    """Do the same; 304 if the caller has this version already (RFC 9110, section 13.1.2)."""
    wanted = sent("If-None-Match") is not None and request.if_none_match
    if wanted and wanted.contains_weak(str(job.version)):
        return current_app.response_class(status=304, headers=etag(job.version))
    return tagged(job)


def version_wanted() -> Callable[[int], bool] | None:
    """Return the check that ``If-Match`` asks for; None without the header."""
    if sent("If-Match") is None:
        return None
    # Proxies that compress turn strong tags into weak ones, so weak tags match, too.
    return lambda version: request.if_match.contains_weak(str(version))
