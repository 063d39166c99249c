"""Fixtures: an installed Chromium, and a service with the demo user."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from ..served import Service, environment, jobapi

expect.set_options(timeout=20_000)

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    assert path, f"Chromium is not installed. Install one of {', '.join(NAMES)}."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Service]:
    """The service as ``make run`` starts it."""
    env = environment(JOBAPI_ENV="development", JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"))
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    yield service
    service.close()


@pytest.fixture
def page(browser: Any, demo: Service) -> Iterator[Page]:
    """A page that fails the test for requests to other hosts and for errors."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    outside: list[str] = []
    errors: list[str] = []

    def note(request: Any) -> None:
        if not request.url.startswith((f"{demo.url}/", "data:", "blob:")):
            outside.append(request.url)

    page.on("request", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    yield page
    context.close()
    assert outside == []
    assert errors == []
