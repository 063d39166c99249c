"""What the browser tests share: a watched page, logins, and a worker that acts step by step."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from jobapi.commands.demo import DEMO_PASSWORD, DEMO_USER

from ..served import Service

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
AWAY = r"Failed to load resource: net::ERR_"
REFUSED = r"Failed to load resource: the server responded with a status of 4\d\d"

SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""A folder for screenshots; none are taken if it is not set."""


def picture(page: Page, name: str, *, full_page: bool = False) -> None:
    """Take a screenshot, if they are wanted."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=full_page)


@contextmanager
def watched(browser: Any, url: str, allow: str = "^$", **options: Any) -> Iterator[Page]:
    """A page that fails the test for requests to other hosts and for errors on its console.

    Messages that match ``allow`` are accepted. A violation of the content security policy
    is an error, too. All pages of the browser context are watched.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    faults: list[str] = []

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and not re.match(allow, message.text):
            faults.append(message.text)

    def ask(request: Any) -> None:
        if not request.url.startswith((f"{url}/", "data:", "blob:")):
            faults.append(request.url)

    context.on("console", note)
    context.on("request", ask)
    context.on("weberror", lambda error: faults.append(str(error.error)))
    try:
        yield context.new_page()
    finally:
        context.close()
    assert faults == []


def log_in(page: Page, service: Service, path: str = "", user: str = DEMO_USER) -> None:
    """Log in at an address, and wait for its page."""
    page.goto(f"{service.url}/dashboard{path}")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(DEMO_PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator("#menu-user")).to_be_visible()
    expect(page.locator("main h1")).not_to_have_text("Log in")


def log_out(page: Page) -> None:
    """Log out in the user's menu."""
    page.locator("#menu-user").click()
    page.get_by_role("button", name="Log out").click()


def follow(page: Page, link: str, heading: str) -> None:
    """Click a link and wait for its page; until then the page before it is shown."""
    page.locator("#top nav, main").get_by_role("link", name=link, exact=True).first.click()
    expect(page.get_by_role("heading", level=1, name=heading, exact=True)).to_be_visible()


def rows(page: Page) -> Locator:
    """The rows of the page's table."""
    return page.locator("main table tbody tr")


def badge(page: Page, status: str) -> Locator:
    """The status of a job's page."""
    return page.locator(".job .status .badge", has_text=status)


def expect_no_horizontal_scrolling(page: Page) -> None:
    """Nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url


class Worker:
    """Runs jobs over HTTP, step by step as the test needs it."""

    def __init__(self, service: Service) -> None:
        self.http = service.client(DEMO_USER, DEMO_PASSWORD)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        response = self.http.request(method, path, json=body)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def create(self, n: int = 1, **job: Any) -> list[dict[str, Any]]:
        """Create jobs, all alike."""
        jobs = [{"job_type": "etl", **job}] * n
        return list(self.call("POST", "/workspace/1/jobs/batch", {"jobs": jobs})["data"])

    def claim(self, limit: int = 1, **body: Any) -> list[dict[str, Any]]:
        """Claim jobs."""
        body = {"worker": "w-1", "limit": limit, "lease_seconds": 600, **body}
        return list(self.call("POST", "/workspace/1/jobs/claim", body)["data"])

    def report(self, job: Any, **report: Any) -> None:
        """Report on a job."""
        report |= {"job_id": job["job_id"], "lease_token": job["lease_token"]}
        (answer,) = self.call("POST", "/workspace/1/jobs/report", {"reports": [report]})["data"]
        assert answer["accepted"], answer

    def fail(self, *errors: str, **job: Any) -> list[dict[str, Any]]:
        """Jobs that fail with these errors."""
        self.create(len(errors), **job)
        claimed = self.claim(len(errors))
        for each, error in zip(claimed, errors, strict=True):
            self.report(each, status="failed", error=error, retryable=False)
        return claimed
