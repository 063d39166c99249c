"""Swagger UI at ``/docs`` in a real Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from jobapi.commands.demo import DEMO_PASSWORD, DEMO_USER

from ..served import Service, environment, jobapi
from .pages import picture, watched


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


def test_filter_finds_operations_by_path_name_and_tag(page: Page, demo: Service) -> None:
    page.goto(f"{demo.url}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    # The filter is for what one can call, not for what webhooks get.
    blocks = page.locator(".opblock:not(.webhooks .opblock)")
    box = page.locator(".operation-filter-input")
    for text, names in (
        ("claim_jobs", ["claim_jobs"]),
        ("/jobs/errors", ["list_job_errors"]),
        ("List jobs in workspace", ["list_jobs"]),
    ):
        box.fill(text)
        expect(blocks).to_have_count(len(names))
        for name in names:
            expect(page.locator(f"[id$='-{name}'].opblock")).to_be_visible()
    box.fill("")
    expect(blocks).not_to_have_count(1)


def test_stream_that_is_executed_shows_its_first_events(page: Page, demo: Service) -> None:
    client = demo.client(DEMO_USER, DEMO_PASSWORD)
    token = client.headers["Authorization"].removeprefix("Bearer ")
    page.goto(f"{demo.url}/docs")
    page.locator(".auth-wrapper .authorize").first.click()
    page.locator(".dialog-ux input").fill(token)
    page.get_by_role("button", name="Apply credentials").click()
    page.locator(".dialog-ux").get_by_role("button", name="Close").first.click()
    block = operation(page, "stream_events")
    block.get_by_placeholder("workspace_id").fill("1")
    with page.expect_response("**/events/stream*"):
        block.get_by_role("button", name="Execute").click()
    job = {"job_type": "etl", "workspace_id": 1}
    assert client.post("/workspace/1/jobs", json=job).status_code == 201
    live = block.locator(".live-responses-table .response")
    expect(live).to_contain_text('"kind":"created"')
    expect(live).to_contain_text("These are the first 5 seconds")


def test_dark_theme_is_that_of_the_system(browser: Any, demo: Service) -> None:
    for scheme, expected in (("light", "rgba(0, 0, 0, 0)"), ("dark", "rgb(28, 32, 34)")):
        with watched(browser, demo.url, color_scheme=scheme) as page:
            page.goto(f"{demo.url}/docs")
            expect(page.locator(".opblock").first).to_be_visible()
            background = "getComputedStyle(document.documentElement).backgroundColor"
            assert page.evaluate(background) == expected
            picture(page, f"docs-{scheme}")


def test_page_without_the_dashboard_has_no_link_to_it(browser: Any, tmp_path: Path) -> None:
    env = environment(
        JOBAPI_ENV="development",
        JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"),
        JOBAPI_DASHBOARD_ENABLED="false",
    )
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    try:
        with watched(browser, service.url) as page:
            page.goto(f"{service.url}/docs")
            expect(page.locator(".opblock").first).to_be_visible()
            expect(page.get_by_role("link", name="Dashboard")).to_have_count(0)
    finally:
        service.close()
