"""Requests that are safe to repeat: the ``Idempotency-Key`` header."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import orjson
from flask import request
from sqlalchemy import Connection

from ..errors import ValidationFailed
from ..services import idempotency
from ..store.transactions import transaction
from .access import Caller
from .base import to_json

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_KEY_LENGTH},
    "description": "The same key with the same body gets the same answer for 24 hours.",
}
REPLAYED_HEADER = {
    "Idempotency-Replayed": {
        "schema": {"type": "string", "const": "true"},
        "description": "The answer of an earlier request with the same key.",
    }
}
REPLAYED = {"Idempotency-Replayed": "true"}


def idempotency_key() -> str | None:
    """The caller's key for this request. Raises ``ValidationFailed``."""
    key = request.headers.get("Idempotency-Key")
    longest = idempotency.MAX_KEY_LENGTH
    if key is not None and (not 1 <= len(key) <= longest or "\x00" in key):
        raise ValidationFailed(
            {"Idempotency-Key": [f"Use 1 to {longest} characters, and not U+0000."]}
        )
    return key


def replayable(
    caller: Caller,
    workspace_id: int,
    operation: str,
    body: Any,
    act: Callable[[Connection], dict[str, Any]],
    *,
    keep: Callable[[dict[str, Any]], Any] = lambda answer: answer,
    again: Callable[[Any], dict[str, Any]] = lambda kept: kept,
    whole: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Do what is asked for, or give the answer of when it was done before, with its headers.

    Without a key it is done on a connection that commits by itself, unless it is
    ``whole``: in a transaction in any case. ``keep`` says what is to be kept of
    the answer, of which ``again`` makes it anew.
    """
    key = idempotency_key()
    if key is None:
        one = transaction(caller.connection) if whole else nullcontext(caller.connection)
        with one as connection:
            return act(connection), {}
    mark = idempotency.fingerprint(operation, body)
    with transaction(caller.connection) as tx:
        kept = idempotency.recall(tx, workspace_id, caller.name, key, mark)
        if kept is not None:
            return again(orjson.loads(kept)), REPLAYED
        answer = act(tx)
        text = to_json(keep(answer)).decode()
        idempotency.remember(tx, workspace_id, caller.name, key, mark, text, caller.now)
    return answer, {}
