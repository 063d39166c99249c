"""``curl`` and ``jq`` for machines without them, with the options that the guide uses."""

from __future__ import annotations

import argparse
import stat
import sys
import urllib.error
import urllib.request
from pathlib import Path


def install(folder: Path, names: tuple[str, ...]) -> None:
    """Create commands with these names in a folder, for ``PATH``."""
    for name in names:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)


def curl(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("curl")
    parser.add_argument("-X")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-w", default="")
    parser.add_argument("-o")
    parser.add_argument("url")
    given = parser.parse_args(arguments)
    data = None if given.d is None else given.d.encode()
    request = urllib.request.Request(
        given.url, data, method=given.X or ("GET" if data is None else "POST")
    )
    for header in given.H:
        name, _, value = header.partition(":")
        request.add_header(name, value.strip())
    try:
        with urllib.request.urlopen(request) as response:
            status, body = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read()
    if given.o:
        Path(given.o).write_bytes(body)
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.flush()
    sys.stdout.write(given.w.replace("%{http_code}", str(status)))


def jq(arguments: list[str]) -> None:
    import json

    import jq as library

    parser = argparse.ArgumentParser("jq")
    parser.add_argument("-r", action="store_true")
    parser.add_argument("filter")
    parser.add_argument("file", nargs="?")
    given = parser.parse_args(arguments)
    text = Path(given.file).read_text() if given.file else sys.stdin.read()
    for value in library.compile(given.filter).input_text(text):
        print(value if given.r and isinstance(value, str) else json.dumps(value))


if __name__ == "__main__":
    {"curl": curl, "jq": jq}[sys.argv[1]](sys.argv[2:])
