"""Documents (``metadata`` and ``result``): how they are merged, and what limits them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import ValidationFailed

Document = dict[str, Any]
"""A JSON object."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON Merge Patch to a value (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def compose_patches(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any] | None:
    """One merge patch with the effect of two in a row; None if no single patch has it.

    Nulls are kept, because they remove members of the target. There is no single patch
    if ``second`` sets an object where ``first`` sets another kind of value or removes the
    member: a single patch would merge that object with the target's.
    """
    composed = dict(first)
    for name, value in second.items():
        if isinstance(value, Mapping) and name in first:
            before = first[name]
            value = compose_patches(before, value) if isinstance(before, Mapping) else None
            if value is None:
                return None
        composed[name] = value
    return composed


# Matches the escape itself, but not an escaped backslash that is followed by ``u0000``.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
MAX_DOCUMENT_BYTES = 1024 * 1024
"""How large a job's stored ``metadata`` and ``result`` may grow, each, as JSON."""


def limit_documents(values: Mapping[str, Any]) -> None:
    """Refuse documents that cannot be stored (``ValidationFailed``)."""
    for name in ("metadata", "result"):
        document = values.get(name)
        wrong = None if document is None else wrong_document(document)
        if wrong is not None:
            raise ValidationFailed({name: [wrong]})


def wrong_document(document: Any) -> str | None:
    """Why a document cannot be stored; None if it can."""
    text = orjson.dumps(document)
    if len(text) > MAX_DOCUMENT_BYTES:
        return f"It would be larger than {MAX_DOCUMENT_BYTES} bytes as JSON."
    # Postgres stores it in a column of type json, but queries that read the value then fail.
    if b"\\u0000" in text and _NUL.search(text):
        return "It must not contain the character U+0000."
    return None
