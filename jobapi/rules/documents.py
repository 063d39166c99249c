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
    """JSON Merge Patch of one value by another (RFC 7396, section 2)."""
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
    """One merge patch that does what two do one after the other; None if no single one does.

    A null stays in it, for it removes what the target has. None: ``second`` puts an
    object where ``first`` puts something else, or removes it. In a single patch that
    object would be merged with the target's.
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


# The escape, and not a backslash before a text that looks like it.
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
    """Why a document cannot be stored; None where it can."""
    text = orjson.dumps(document)
    if len(text) > MAX_DOCUMENT_BYTES:
        return f"It would be larger than {MAX_DOCUMENT_BYTES} bytes as JSON."
    # Postgres keeps it, and then cannot read it.
    if b"\\u0000" in text and _NUL.search(text):
        return "It must not contain the character U+0000."
    return None
