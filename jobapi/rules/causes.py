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
"""How much of the end of an error, or of its last traceback, is read, in characters."""

_MAX_LINE = 1_000
"""How much of the line with the cause is normalized, in characters.

More than ``MAX_CAUSE``, because a cut through an id or a number would change the group.
"""

_TRACEBACK = "\nTraceback (most recent call last):"
_GROUP_TRACEBACK = "\n  + Exception Group Traceback (most recent call last):"

_LINE_IN_GROUP = re.compile(r"[ |]*\| (\S.*)")
"""A line of an exception group's traceback that is not indented in its own exception."""

_CAUSED_BY = "Caused by: "
"""How Java begins the line of each exception in a chain. The last one is the root."""

# What differs between errors with the same cause, from the most specific to the least.
_PARTS = [
    (re.compile(pattern), placeholder)
    for pattern, placeholder in (
        (r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b", "<uuid>"),
        (r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b", "<email>"),
        # An apostrophe within a word does not begin a quoted text.
        (r"\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)|`[^`]*`|“[^”]*”|«[^»]*»", "<text>"),
        (r"\b[a-z][a-z0-9+.-]*://\S+", "<url>"),
        (r"(?<![\w<])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:,;)]+[\\/])*[^\s\\/:,;)]+", "<path>"),
        (r"\b\w+_[0-9a-fA-F]{16,}\b", "<id>"),
        # Long ids become <n> like numbers, because an id may consist of digits only.
        (r"\b(?:0x[0-9a-fA-F]+|(?=[a-fA-F]*\d)[0-9a-fA-F]{8,})\b", "<n>"),
        (r"\d+(?:[.,:]\d+)*", "<n>"),
    )
]


def error_columns(error: str | None) -> JobColumns:
    """The columns for an error; for None, those of a job without one."""
    return {"error": error, "error_group": None if error is None else group(error)}


def cause(error: str) -> str:
    """The line of an error that says why, of at most ``MAX_CAUSE`` characters.

    Of a Python traceback it is the line after the frames, which names the exception: in a chain,
    the exception that was raised last. Of a Java stack trace it is the last "Caused by:". Of any
    other text, and of a Python exception group, it is the last line.
    """
    return _line(error)[:MAX_CAUSE]


def _line(error: str) -> str:
    lines, is_python = _lines(error)
    if not lines:
        return ""
    unindented = [line for line in lines if not line[0].isspace()]
    roots = [line for line in unindented if line.startswith(_CAUSED_BY)]
    if roots:
        return roots[-1].removeprefix(_CAUSED_BY).strip()
    is_stack = len(lines) > 1 and lines[-1].lstrip().startswith("at ")
    if unindented and (is_python or is_stack):
        # Java and JavaScript write the exception first. In Python the message follows the frames,
        # and its first line says the most.
        return unindented[0].strip()
    return (unindented or lines)[-1].strip()


def _lines(error: str) -> tuple[list[str], bool]:
    """The lines that may be the cause, and whether the exception's own line is the first.

    With a traceback these are the lines after the header of the last one.
    """
    text = "\n" + error
    start, group_start = text.rfind(_TRACEBACK), text.rfind(_GROUP_TRACEBACK)
    if group_start > start:
        found = map(_LINE_IN_GROUP.match, text[group_start:][-_READ:].splitlines())
        return [line[1] for line in found if line is not None], False
    if start >= 0:
        # Without the empty line before the header, and the header.
        lines = text[start : start + _READ].splitlines()[2:]
    else:
        lines = error[-_READ:].splitlines()
    return [line for line in lines if line.strip()], start >= 0


def normalized(text: str) -> str:
    """A cause without what differs between jobs: numbers, ids, quoted texts, paths, addresses."""
    for pattern, placeholder in _PARTS:
        text = pattern.sub(placeholder, text)
    return " ".join(text.split())


def group(error: str) -> str:
    """The error group: the same for errors whose causes differ only in such details.

    It has ``GROUP_LENGTH`` hexadecimal digits. Jobs of different types may share one.
    """
    text = normalized(_line(error)[:_MAX_LINE])[:MAX_CAUSE]
    return sha256(text.encode()).hexdigest()[:GROUP_LENGTH]
