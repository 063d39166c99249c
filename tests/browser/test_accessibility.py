"""Accessibility: axe-core on every page, in both themes, on a desk and on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from ..served import Service
from .pages import PHONE, Worker, log_in, watched
from .test_layout import PATHS

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def findings(page: Page, context: Any = None) -> list[str]:
    """What axe-core finds, but minor things: rule, impact and the elements."""
    options = {"runOnly": {"type": "tag", "values": TAGS}}
    found = Axe().run(page, context=context, options=options).response["violations"]
    return [
        f"{page.url} {each['id']} ({each['impact']}): {node['html'][:200]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]


@pytest.fixture
def filled(demo: Service) -> tuple[Service, list[str]]:
    """A service with something on every page, and the addresses of its jobs."""
    worker = Worker(demo)
    worker.create(3, metadata={"text": "x" * 300, "deep": {"a": [1, None, True]}})
    worker.create(1, scheduled_at="2040-01-01T00:00:00Z")
    success, failed, running = worker.claim(3)
    worker.report(success, status="success", result={"rows": 3})
    error = "Traceback\n" + "  File x\n" * 60 + "ValueError: bad row 17"
    worker.report(failed, status="failed", error=error, retryable=False)
    worker.report(running, progress_percent=30, progress_message="Rows")
    worker.create(1, job_type="other")
    (job,) = worker.call("GET", "/workspace/1/jobs?job_type=other")["data"]
    worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/cancel")
    for name in ("ci", "old"):
        key = worker.call("POST", "/workspace/1/keys", {"name": name, "role": "viewer"})
    worker.call("DELETE", f"/workspace/1/keys/{key['key_id']}")
    worker.call("POST", "/users", {"username": "anna", "password": "anna-password"})
    worker.call(
        "POST", "/workspace/1/operations", {"action": "retry", "filter": {"job_type": ["none"]}}
    )
    worker.call("PATCH", "/workspace/1/job-types/other", {"max_running": 3})
    made = worker.call("POST", "/workspace/1/webhooks", {"url": "https://example.invalid"})
    hook = f"/1/webhooks/{made['webhook_id']}"
    worker.call("POST", f"/workspace{hook}/test")
    worker.call("POST", "/workspace/1/job-types/etl/pause", {"reason": "disk full"})
    schedule = {"name": "nightly", "cron": "30 2 * * *", "timezone": "Asia/Tokyo"}
    worker.call("POST", "/workspace/1/schedules", {**schedule, "job": {"job_type": "etl"}})
    jobs = [f"/1/jobs/{each['job_id']}" for each in (success, failed, running, job)]
    return demo, [*jobs, hook]


@pytest.mark.parametrize(
    ("device", "scheme"), [("desk", "light"), ("desk", "dark"), ("phone", "light")]
)
def test_axe_finds_nothing_on_any_page(
    browser: Any, filled: tuple[Service, list[str]], scheme: Any, device: str
) -> None:
    demo, jobs = filled
    Worker(demo).call("POST", "/workspace/1/pause", {"reason": "upgrade"})
    options = PHONE if device == "phone" else {}
    with watched(browser, demo.url, color_scheme=scheme, **options) as page:
        page.goto(f"{demo.url}/dashboard")
        expect(page.get_by_label("Password")).to_be_visible()
        found = findings(page)
        log_in(page, demo)
        for path in (*PATHS, *jobs, "/1/nowhere", f"{jobs[0]}/edit", "/1/jobs?priority=urgent"):
            page.goto(f"{demo.url}/dashboard{path}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            page.wait_for_timeout(200)
            found += findings(page)
        assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_menus_dialogs_and_open_parts(
    browser: Any, filled: tuple[Service, list[str]], scheme: Any
) -> None:
    demo, jobs = filled
    with watched(browser, demo.url, color_scheme=scheme) as page:
        log_in(page, demo, "/1/jobs")
        expect(page.locator("tbody tr").first).to_be_visible()
        page.locator("tbody input").first.check()
        page.get_by_text("More filters").click()
        found = findings(page)
        for menu in ("#menu-switcher", "#menu-user"):
            page.locator(menu).click()
            expect(page.locator(".sheet")).to_be_visible()
            page.wait_for_timeout(300)
            found += findings(page)
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.keyboard.type("oth")
        expect(page.get_by_role("option").first).to_be_visible()
        found += findings(page)
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.locator("h1").click()
        page.get_by_role("button", name="Clear selection").click()
        for button in ("Cancel all…", "Retry all…", "Delete all…"):
            page.get_by_role("button", name=button).click()
            expect(page.get_by_role("dialog").locator(".matched").first).to_be_visible()
            found += findings(page)
            page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        found += findings(page)
        page.keyboard.press("Escape")
        page.goto(f"{demo.url}/dashboard/1/job-types")
        for button in ("Resume etl", "Edit other", "Add a job type…"):
            page.get_by_role("button", name=button).click()
            expect(page.get_by_role("dialog")).to_be_visible()
            found += findings(page)
            page.keyboard.press("Escape")
        page.goto(f"{demo.url}/dashboard/1/schedules")
        for button in ("Run nightly", "Edit nightly", "Create a schedule…"):
            page.get_by_role("button", name=button).click()
            expect(page.get_by_role("dialog")).to_be_visible()
            found += findings(page)
            page.keyboard.press("Escape")
        page.goto(f"{demo.url}/dashboard{jobs[1]}")
        page.get_by_text("The whole error").click()
        found += findings(page)
        page.goto(f"{demo.url}/dashboard/1?window=hour")
        expect(page.locator("figure")).to_have_count(4)
        for summary in page.get_by_text("Numbers", exact=True).all():
            summary.click()
        found += findings(page)
        assert found == []


def test_focus_is_visible_on_everything_that_the_tab_key_reaches(
    page: Page, filled: tuple[Service, list[str]]
) -> None:
    demo, jobs = filled
    log_in(page, demo, "/1/jobs")
    for path in ("/1/jobs", jobs[1], "/1", "/1/job-types"):
        page.goto(f"{demo.url}/dashboard{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.wait_for_timeout(300)
        for _ in range(45):
            page.keyboard.press("Tab")
            shown = page.evaluate(
                """() => {
                const node = document.activeElement;
                if (node === document.body) return true;
                // A tick box is drawn by the text beside it.
                const box = node.closest(".tick") ? node.nextElementSibling : node;
                return getComputedStyle(box).outlineStyle !== "none" || node.tagName === "BODY";
            }"""
            )
            assert shown, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_more_contrast_is_given_to_who_prefers_it(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, contrast="more") as page:
        log_in(page, demo)
        edge = page.evaluate(
            "getComputedStyle(document.querySelector('#menu-user')).borderTopColor"
        )
        assert edge == "rgb(0, 0, 0)"


def test_nothing_of_ours_adds_findings_to_swagger_ui(browser: Any, demo: Service) -> None:
    for scheme in ("light", "dark"):
        with watched(browser, demo.url, color_scheme=scheme) as page:
            page.goto(f"{demo.url}/docs")
            expect(page.locator(".opblock").first).to_be_visible()
            assert findings(page, {"exclude": [["#swagger-ui > *"]]}) == []
