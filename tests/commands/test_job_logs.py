"""``jobapi jobs logs``: what it prints, and what a terminal gets."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from jobapi.client import Client, LogEntry
from jobapi.client.commands.job_logs import shown

from .test_client_commands import Terminal, client, terminal

__all__ = ["client", "terminal"]

AT = datetime(2024, 1, 15, 10, tzinfo=UTC)
HEAD = "2024-01-15 10:00:00  info     "


def leased(client: Client, *messages: str, **fields: Any) -> Any:
    """A job that has logged messages, and is still under its lease."""
    client.create(1, "a")
    (job,) = client.claim(1)
    entries: Any = [{"message": message, "at": AT, **fields} for message in messages]
    client.append_logs(1, job.job_id, entries, lease_token=job.lease_token)
    return job


def test_logs_prints_lines_without_colors_outside_of_a_terminal(
    client: Client, terminal: Terminal
) -> None:
    job = leased(client, "\x1b[31mred\x1b[0m", "two\nlines", "\x1b]0;title\x07\r", "")
    assert terminal.lines("jobs", "logs", job.job_id) == [
        f"{HEAD}red",
        f"{HEAD}two",
        "    lines",
        f"{HEAD}␛]0;title␇",
        HEAD,
    ]


def test_logs_filters_by_level_and_attempt(client: Client, terminal: Terminal) -> None:
    job = leased(client, "a")
    warning: Any = [{"message": "b", "level": "warning", "at": AT}]
    client.append_logs(1, job.job_id, warning, lease_token=job.lease_token)
    found = terminal.json("jobs", "logs", job.job_id, "--level", "warning", "--attempt", "1")
    assert found == [
        {
            "number": 2,
            "attempt": 1,
            "at": "2024-01-15T10:00:00Z",
            "level": "warning",
            "message": "b",
            "seq": None,
        }
    ]
    assert terminal.lines("jobs", "logs", job.job_id, "--attempt", "2") == []


def test_logs_of_an_unknown_job_fails_with_a_message(terminal: Terminal) -> None:
    done = terminal.run("jobs", "logs", "job_x")
    assert (done.exit_code, "Job not found" in done.output) == (1, True)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_logs_follow_prints_until_the_job_ends(client: Client, terminal: Terminal) -> None:
    job = leased(client, "first")

    def go_on() -> None:
        for n in range(3):
            time.sleep(0.3)
            report = {
                "job_id": job.job_id,
                "lease_token": job.lease_token,
                "logs": [{"message": f"m{n}", "at": "2024-01-15T10:00:00Z"}],
                "status": "success" if n == 2 else "running",
            }
            client.report(1, [report])

    thread = threading.Thread(target=go_on)
    thread.start()
    lines = terminal.lines("jobs", "logs", job.job_id, "--follow")
    thread.join()
    assert lines == [HEAD + message for message in ("first", "m0", "m1", "m2")]


@pytest.mark.parametrize(
    ("message", "in_terminal", "elsewhere"),
    [
        ("plain", "plain", "plain"),
        ("\x1b[1;31mred\x1b[0m!", "\x1b[1;31mred\x1b[0m!\x1b[0m", "red!"),
        ("\x1b[38:5:1mx", "\x1b[38:5:1mx\x1b[0m", "x"),
        ("\x1b[2Jx\x1b[1A", "␛[2Jx␛[1A", "␛[2Jx␛[1A"),
        ("\x1b]8;;http://x\x1b\\y", "␛]8;;http://x␛\\y", "␛]8;;http://x␛\\y"),
        ("\x9b31mx\x7f\x00\x08", "\ufffd31mx␡␀␈", "\ufffd31mx␡␀␈"),
        ("a\tb\u202ec", "a\tb\ufffdc", "a\tb\ufffdc"),
        ("\x1b[31\x1b[0mm", "␛[31\x1b[0mm\x1b[0m", "␛[31m"),
        ("a\rb", "a\n    b", "a\n    b"),
    ],
)
def test_terminal_gets_colors_and_no_other_control_characters(
    message: str, in_terminal: str, elsewhere: str
) -> None:
    entry = LogEntry(number=1, attempt=1, at=AT, level="info", message=message)
    # The level has a color, too; that of "info" is none.
    assert shown(entry, colors=True) == f"{HEAD.rstrip():<28}\x1b[0m  {in_terminal}"
    assert shown(entry, colors=False) == HEAD + elsewhere
