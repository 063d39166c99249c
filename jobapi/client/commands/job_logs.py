"""``jobapi jobs logs``: shows the log of a job, or follows it."""

from __future__ import annotations

import re
import sys

import click

from ...rules.job_logs import LogLevel
from ..client import Client
from ..models import LogEntry, LogFilter
from .base import as_json, print_answer, service
from .events import INTERRUPTED

_SGR = re.compile(r"(\x1b\[[0-9;:]*m)")
# All control characters but tabs. Lines have been split before.
_CONTROL = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_RESET = "\x1b[0m"
_STYLES = {"debug": "bright_black", "warning": "yellow", "error": "red"}
_INDENT = "    "


@click.command("logs")
@click.argument("job_id")
@service
@click.option("--follow", is_flag=True, help="Print new entries as they come, until the job ends.")
@click.option(
    "--level",
    type=click.Choice([level.label for level in LogLevel]),
    help="Only entries of this level and above.",
)
@click.option("--attempt", type=click.IntRange(1), help="Only entries of this attempt.")
@as_json
def logs(
    client: Client,
    workspace_id: int,
    job_id: str,
    follow: bool,
    level: str | None,
    attempt: int | None,
    as_json: bool,
) -> None:
    """Print the log of a job, the oldest entry first.

    A terminal gets the colors of the entries; other control characters are replaced.
    """
    read = client.follow_logs if follow else client.logs
    wanted: LogFilter = {"level": level, "attempt": attempt}
    colors = sys.stdout.isatty()
    try:
        for entry in read(workspace_id, job_id, **wanted):
            print_answer(entry, as_json, shown(entry, colors=colors))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def shown(entry: LogEntry, *, colors: bool) -> str:
    """The lines of an entry, with or without colors, and without other control characters."""
    first, *others = entry.message.splitlines() or [""]
    head = f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.level:<7}"
    if colors:
        head = click.style(head, _STYLES.get(entry.level))
    lines = [f"{head}  {_safe(first, colors)}", *(_INDENT + _safe(o, colors) for o in others)]
    return "\n".join(lines)


def _safe(line: str, colors: bool) -> str:
    # Every other part is a color.
    parts = _SGR.split(line)
    kept = [
        (part if colors else "") if n % 2 else _CONTROL.sub(_picture, part)
        for n, part in enumerate(parts)
    ]
    return "".join(kept) + (_RESET if colors and len(parts) > 1 else "")


def _picture(found: re.Match[str]) -> str:
    """The symbol of a control character, such as ␛."""
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
