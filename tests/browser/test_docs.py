"""Swagger UI at ``/docs`` in a real Chromium."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Locator, Page, expect

from jobapi.commands.demo import DEMO_PASSWORD, DEMO_USER

from ..served import Service
from .pages import picture


def operation(page: Page, name: str) -> Locator:
    """The block of an operation, expanded."""
    block = page.locator(f"[id$='-{name}'].opblock")
    if "is-open" not in (block.get_attribute("class") or ""):
        block.locator(".opblock-summary-control").click()
    return block


def execute(block: Locator) -> tuple[int, Any]:
    """Click Execute; returns the status and the body of the response."""
    block.get_by_role("button", name="Execute").click()
    live = block.locator(".live-responses-table .response")
    expect(live).to_be_visible()
    status = int((live.locator(".response-col_status").inner_text()).split()[0])
    body = live.locator(".highlight-code code, .microlight").first.inner_text()
    return status, json.loads(body)


def test_try_operations_after_login_shows_their_responses(page: Page, demo: Service) -> None:
    page.goto(f"{demo.url}/docs")
    expect(page.locator(".info .title")).to_contain_text("Job API")
    expect(page.locator(".opblock").first).to_be_visible()
    # The page calls its own origin, whatever absolute URL the document names.
    expect(page.locator(".servers option")).to_have_text("/")
    picture(page, "docs", full_page=True)

    login = operation(page, "login")
    body = {"username": DEMO_USER, "password": DEMO_PASSWORD}
    login.locator("textarea.body-param__text").fill(json.dumps(body))
    status, tokens = execute(login)
    assert status == 200
    picture(page, "login")

    page.locator(".auth-wrapper .authorize").first.click()
    dialog = page.locator(".dialog-ux")
    dialog.locator("input").fill(tokens["access_token"])
    picture(page, "authorize")
    dialog.get_by_role("button", name="Apply credentials").click()
    dialog.get_by_role("button", name="Close").first.click()

    create = operation(page, "create_job")
    create.get_by_placeholder("workspace_id").fill("1")
    status, job = execute(create)
    assert status == 201
    assert job["job_type"] == "data_processing"  # the example of the guide, unchanged
    picture(page, "create")

    listing = operation(page, "list_jobs")
    listing.get_by_placeholder("workspace_id").fill("1")
    status, jobs = execute(listing)
    assert status == 200
    assert jobs["data"] == [job]

    read = operation(page, "get_job")
    read.get_by_placeholder("workspace_id").fill("1")
    read.get_by_placeholder("job_id").fill(job["job_id"])
    status, again = execute(read)
    assert (status, again) == (200, job)
    picture(page, "read")
