"""Causes of errors, and their groups, as tables."""

from __future__ import annotations

import time

import pytest

from jobapi.rules.causes import MAX_CAUSE, cause, error_columns, group, normalized

TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/tasks.py", line 41, in run
    rows = parse(path)
           ^^^^^^^^^^^
ValueError: bad row 17
"""
CHAIN = (
    TRACEBACK
    + """
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/tasks.py", line 50, in run
    raise ImportFailed("a.csv") from error
tasks.ImportFailed: a.csv
"""
)
MULTILINE = (
    TRACEBACK
    + """\
column "a" has no value
  Input should be a number

(Background on this error at: https://example.org/e/20/gkpj)
"""
)
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/srv/tasks.py", line 8, in run
  |     async with TaskGroup() as tasks:
  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/srv/tasks.py", line 7, in one
    | ValueError: bad row 17
    +---------------- 2 ----------------
    | KeyError: 'x'
    +------------------------------------
"""
JAVA = """\
java.lang.RuntimeException: job failed
\tat com.example.Worker.run(Worker.java:17)
Caused by: java.io.IOException: disk full
\tat com.example.Disk.write(Disk.java:5)
\t... 3 more
"""
NODE = """\
TypeError: Cannot read properties of undefined (reading 'id')
    at run (/srv/worker.js:3:11)
    at async main (/srv/worker.js:9:3)
"""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("boom", "boom"),
        ("", ""),
        (" \n\n", ""),
        ("lease expired", "lease expired"),
        ("first line\nlast line\n\n", "last line"),
        ("  indented only", "indented only"),
        (TRACEBACK, "ValueError: bad row 17"),
        (TRACEBACK.replace("\n", "\r\n"), "ValueError: bad row 17"),
        (CHAIN, "tasks.ImportFailed: a.csv"),
        (MULTILINE, "ValueError: bad row 17"),
        (GROUP, "KeyError: 'x'"),
        (f"{GROUP}\nDuring handling of it:\n\n{TRACEBACK}", "ValueError: bad row 17"),
        (f"{TRACEBACK}\nDuring handling of it:\n\n{GROUP}", "KeyError: 'x'"),
        ("Traceback (most recent call last):", ""),
        (JAVA, "java.io.IOException: disk full"),
        (NODE, "TypeError: Cannot read properties of undefined (reading 'id')"),
        ("x" * 500, "x" * MAX_CAUSE),
        ("خطأ\nخطأ في الصف", "خطأ في الصف"),
    ],
)
def test_cause_is_the_line_that_says_why(error: str, expected: str) -> None:
    assert cause(error) == expected


def test_cause_of_a_long_error_is_at_its_end() -> None:
    assert cause("Traceback\n" + "  File x\n" * 100_000 + "KeyError: 'a'") == "KeyError: 'a'"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ValueError: bad row 17", "ValueError: bad row 18"),
        ("KeyError: 'a'", "KeyError: 'b c'"),
        ('no column "a"', 'no column "b"'),
        ("took 1.5 s", "took 22 s"),
        ("at 2024-01-15T10:00:00Z", "at 2025-11-01T22:15:30Z"),
        ("user 0d2f1e5c-7a44-4d3c-9a55-0e1f2a3b4c5d", "user aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"),
        ("object at 0x7ff739dc0b90", "object at 0x10"),
        ("commit deadbeef12", "commit 0123456789abcdef"),
        ("no file /data/in-1.csv", "no file /var/tmp/x/y.parquet"),
        (r"no file C:\in\1.csv", r"no file D:\out\b.csv"),
        ("GET https://a.example/x?y=1 failed", "GET http://b.example/ failed"),
        ("no mailbox a.b@example.com", "no mailbox carol@example.org"),
        ("job job_01a219bbc60a71ea9cd109d26ee8df32", "job job_01a219bbc60a71ea9cd109d26ee8df33"),
        ("could not connect to 10.0.0.1:5432", "could not connect to 10.20.0.7:5432"),
        (TRACEBACK, TRACEBACK.replace("41", "43").replace("17", "99")),
        ("a  b", "a b"),
        ("bad row 17", "bad row 1234567890"),
        ("can't find user 'bob'", "can't find user 'al'"),
        ("it's 'a' or 'b'", "it's 'c' or 'd e'"),
    ],
)
def test_group_of_errors_that_differ_in_details_is_the_same(one: str, other: str) -> None:
    assert normalized(cause(one)) == normalized(cause(other))
    assert group(one) == group(other)


def test_group_of_a_line_that_is_longer_than_a_cause_knows_its_end() -> None:
    for one, other in (("a" * 300, "b" * 400), ("/x" * 100, "/y" * 150)):
        assert group(f"KeyError: '{one}'") == group(f"KeyError: '{other}'")
    assert group(f"{'1' * 190} bad row 17") == group(f"{'2' * 180} bad row 1234567890")
    # What follows does not count.
    assert group("x" * MAX_CAUSE + "a") == group("x" * MAX_CAUSE + "b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ValueError: bad row 17", "TypeError: bad row 17"),
        ("bad row", "bad column"),
        ("KeyError: 'a'", "KeyError"),
        ("no table facade", "no table accede"),
        ("timed out", "lease expired"),
    ],
)
def test_group_of_errors_with_other_causes_differs(one: str, other: str) -> None:
    assert group(one) != group(other)


def test_error_columns_name_the_group_of_the_error() -> None:
    assert error_columns(None) == {"error": None, "error_group": None}
    columns = error_columns(TRACEBACK)
    assert columns["error"] == TRACEBACK
    assert columns["error_group"] == group("ValueError: bad row 1")
    assert len(columns["error_group"] or "") == 16


@pytest.mark.parametrize("part", ["/a" * 4000, "'" * 8000, "a.b@" * 2000, "\\" * 8000, "0" * 8000])
def test_group_of_hostile_text_takes_no_time(part: str) -> None:
    # The line is cut before it is normalized, so no pattern sees more than a thousand characters.
    started = time.process_time()
    group(part)
    group(f"Traceback (most recent call last):\n  File x\n{part}")
    assert time.process_time() - started < 0.2
