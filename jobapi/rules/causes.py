"""Why jobs fail: the cause in the text of an error, and the group of errors with the same cause.

Pure, no I/O. A worker sends the whole text, often a traceback, of which one line says why.
"""

from __future__ import annotations

import re
from hashlib import sha256

from .jobs import JobColumns

MAX_CAUSE = 200
"""Characters of a cause."""

GROUP_LENGTH = 16
"""Hexadecimal digits of an error group."""

_READ = 8_000
"""How much of the end of an error is read, in characters."""

_CAUSED_BY = "Caused by: "
"""How Java begins the line of each exception in a chain. The last one is the root."""

# What differs between errors with the same cause, from the most specific to the least.
_PARTS = [
    (re.compile(pattern), placeholder)
    for pattern, placeholder in (
        (r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b", "<uuid>"),
        (r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b", "<email>"),
        (r"\"[^\"]*\"|'[^']*'|`[^`]*`|“[^”]*”|«[^»]*»", "<text>"),
        (r"\b[a-z][a-z0-9+.-]*://\S+", "<url>"),
        (r"(?<![\w<])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:,;)]+[\\/])*[^\s\\/:,;)]+", "<path>"),
        (r"\b\w+_[0-9a-fA-F]{16,}\b", "<id>"),
        (r"\b(?:0x[0-9a-fA-F]+|(?=[a-fA-F]*\d)[0-9a-fA-F]{8,})\b", "<hex>"),
        (r"\d+(?:[.,:]\d+)*", "<n>"),
    )
]


def error_columns(error: str | None) -> JobColumns:
    """The columns for an error; for None, those of a job without one."""
    return {"error": error, "error_group": None if error is None else group(error)}


def cause(error: str) -> str:
    """The line of an error that says why, of at most ``MAX_CAUSE`` characters.

    Of a Python traceback it is the last line that is not indented: in a chain, the line of the
    exception that was raised last. Of a Java stack trace it is the last "Caused by:". Of any other
    text it is the last line.
    """
    lines = [line for line in error[-_READ:].splitlines() if line.strip()]
    if not lines:
        return ""
    unindented = [line for line in lines if not line[0].isspace()]
    roots = [line for line in unindented if line.startswith(_CAUSED_BY)]
    if roots:
        return roots[-1].removeprefix(_CAUSED_BY).strip()[:MAX_CAUSE]
    is_stack = len(lines) > 1 and lines[-1].lstrip().startswith("at ")
    if is_stack and unindented:
        # Java and JavaScript write the exception first.
        return unindented[0].strip()[:MAX_CAUSE]
    return (unindented or lines)[-1].strip()[:MAX_CAUSE]


def normalized(text: str) -> str:
    """A cause without what differs between jobs: numbers, ids, quoted texts, paths, addresses."""
    for pattern, placeholder in _PARTS:
        text = pattern.sub(placeholder, text)
    return " ".join(text.split())


def group(error: str) -> str:
    """The error group: the same for errors whose causes differ only in such details.

    It has ``GROUP_LENGTH`` hexadecimal digits. Jobs of different types may share one.
    """
    return sha256(normalized(cause(error)).encode()).hexdigest()[:GROUP_LENGTH]
