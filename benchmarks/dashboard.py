"""The dashboard with five million jobs in one workspace: ``make bench-dashboard``.

Chromium opens it and one with five thousand jobs in turns, with an empty cache. Measured
are the ms until the first contentful paint and until the view's own content, and the bytes
of all responses. ``SCALE_JOBS`` and ``BENCH_DATABASE_URL`` are as in ``scale.py``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psycopg
from bench import ROOT, SECRET, postgres, prepare, served
from playwright.sync_api import Browser, sync_playwright
from scale import LARGE, SMALL, databases, load

from jobapi import accounts, create_app
from jobapi.store.transactions import transaction

ROUNDS = 9
NAME, PASSWORD = "bench", "only for the benchmark"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
VIEWS = {
    "jobs": ("/{}/jobs", "table.jobs tbody .badge"),
    "jobs that failed": ("/{}/jobs?status=failed", "table.jobs tbody .badge"),
    "workspace with charts": ("/{}", "main svg"),
}


def fill(url: str, jobs: int) -> int:
    """Create jobs and a user who can log in; returns the workspace."""
    _, workspace_id, _ = prepare(url)
    with psycopg.connect(url, autocommit=True) as connection:
        load(connection, workspace_id, jobs, others=0)
        connection.execute("DELETE FROM jobapi_job_flow")
        connection.execute("UPDATE jobapi_users SET username = %s", (NAME,))
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    engine = (
        create_app(
            {
                "JOBAPI_DATABASE_URL": url,
                "JOBAPI_SECRET_KEY": SECRET,
                "JOBAPI_MAINTENANCE_ENABLED": False,
            }
        )
        .extensions["jobapi"]
        .engine
    )
    with engine.connect() as connection, transaction(connection) as tx:
        accounts.edit_user(tx, accounts.find_user(tx, NAME).id, {"password": PASSWORD})
    engine.dispose()
    return workspace_id


def look(browser: Browser, url: str, workspace_id: int) -> dict[str, tuple[float, float, int, int]]:
    """First paint and first content in ms, requests and bytes of each view."""
    found = {}
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    # Within a visit, responses are cached as usual.
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    sent: list[int] = []
    wire.on("Network.loadingFinished", lambda each: sent.append(int(each["encodedDataLength"])))

    def see(name: str, path: str, selector: str) -> None:
        wire.send("Network.clearBrowserCache")
        sent.clear()
        began = time.perf_counter()
        page.goto(f"{url}/dashboard{path}", wait_until="commit")
        page.locator(selector).first.wait_for()
        content = (time.perf_counter() - began) * 1000
        while (painted := page.evaluate(PAINTED)) is None:
            page.wait_for_timeout(5)
        page.wait_for_timeout(300)
        found[name] = (painted, content, len(sent), sum(sent))

    see("login", "", "input[type=password]")
    page.get_by_label("Username").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    page.locator("#menu-user").wait_for()
    for name, (path, selector) in VIEWS.items():
        see(name, path.format(workspace_id), selector)
    context.close()
    return found


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.browser.conftest import FLAGS, NAMES

    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit(f"Chromium was not found; install one of {', '.join(NAMES)}.")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres())
        urls = stack.enter_context(databases(server, "jobapi_seen_small", "jobapi_seen_large"))
        sides = []
        for database, total in zip(urls, (SMALL, LARGE), strict=True):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            os.environ |= {"JOBAPI_INSTANCE_PATH": str(folder), "JOBAPI_LOG_LEVEL": "WARNING"}
            began = time.monotonic()
            workspace_id = fill(database, total)
            print(f"{total:,} jobs in one workspace: {time.monotonic() - began:.0f} s", flush=True)
            port = stack.enter_context(served("wsgi:app", database, folder, 2, 8))
            sides.append((f"http://127.0.0.1:{port}", workspace_id))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=FLAGS
        )
        stack.callback(browser.close)
        seen: dict[str, list[list[Any]]] = defaultdict(lambda: [[], []])
        for number in range(ROUNDS + 1):
            for side, (url, workspace_id) in enumerate(sides):
                for name, values in look(browser, url, workspace_id).items():
                    if number:  # the first round is a warm-up
                        seen[name][side].append(values)
        print(f"{'ms':24}{'paint':>7}{'content':>9}{'paint':>9}{'content':>9}  requests, kB")
        for name, both in seen.items():
            small, large = (
                [statistics.median(values) for values in zip(*side, strict=True)] for side in both
            )
            print(f"{name:24}{small[0]:7.0f}{small[1]:9.0f}{large[0]:9.0f}{large[1]:9.0f}", end="")
            print(f"  {large[2]:.0f}, {large[3] / 1000:.0f}")


if __name__ == "__main__":
    main()
