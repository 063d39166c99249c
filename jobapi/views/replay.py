"""Requests that are safe to repeat: the ``Idempotency-Key`` header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from sqlalchemy import Connection

from ..errors import ValidationFailed
from ..services import idempotency
from ..store.transactions import atomic
from .access import Caller
from .base import sent, to_json
from .openapi import header, header_parameter

IDEMPOTENCY_KEY = header_parameter(
    "Idempotency-Key",
    "Makes the request safe to repeat: for 24 hours, the same key and body get the same response.",
    minLength=1,
    maxLength=idempotency.MAX_KEY_LENGTH,
)
REPLAYED_HEADER = header(
    "Idempotency-Replayed",
    "The response is that of an earlier request with the same key.",
    const="true",
)
REPLAYED = {"Idempotency-Replayed": "true"}


def idempotency_key() -> str | None:
    """Return the idempotency key of this request. Raises ``ValidationFailed``."""
    key = sent("Idempotency-Key")
    longest = idempotency.MAX_KEY_LENGTH
    if key is not None and (not 1 <= len(key) <= longest or "\x00" in key):
        raise ValidationFailed(
            {"Idempotency-Key": [f"Use 1 to {longest} characters, without U+0000."]}
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
) -> tuple[dict[str, Any], dict[str, str]]:
    """Act, or return the stored answer to an earlier request with the same key; and headers.

    ``keep`` returns the part of the answer to store, and ``again`` restores the answer from it.
    """
    key = idempotency_key()
    if key is None:
        return act(caller.connection), {}
    mark = idempotency.fingerprint(operation, body)
    with atomic(caller.connection):
        kept = idempotency.recall(caller.connection, workspace_id, caller.name, key, mark)
        if kept is not None:
            return again(orjson.loads(kept)), REPLAYED
        answer = act(caller.connection)
        text = to_json(keep(answer)).decode()
        idempotency.remember(
            caller.connection, workspace_id, caller.name, key, mark, text, caller.now
        )
    return answer, {}
