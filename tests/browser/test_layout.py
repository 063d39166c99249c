"""How the dashboard is laid out, from a phone to a wide screen."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..served import Service
from .pages import PHONE, Worker, expect_no_horizontal_scrolling, log_in, picture, rows, watched

LONG = "a_rather_long_type_of_job_" + "x" * 70
PATHS = (
    "",
    "/1",
    "/1/jobs",
    "/1/jobs/new",
    "/1/job-types",
    "/1/schedules",
    "/1/workers",
    "/1/errors",
    "/1/activity",
    "/1/operations",
    "/1/members",
    "/1/keys",
    "/1/webhooks",
    "/1/settings",
    "/account",
    "/users",
)


@pytest.fixture
def busy(demo: Service) -> Worker:
    """A workspace with jobs of all statuses, long names and long errors."""
    worker = Worker(demo)
    worker.create(8, job_type=LONG, metadata={"k": "v" * 500})
    worker.create(20)
    for n, job in enumerate(worker.claim(12, worker="a-worker-with-a-long-name.example.com")):
        if n < 3:
            worker.report(job, status="failed", error=f"ValueError: {'y' * 300}", retryable=False)
        elif n < 6:
            worker.report(job, status="success", result={"rows": n})
        else:
            worker.report(job, progress_percent=n, progress_message="Working on it " * 20)
    return worker


def test_list_on_a_tablet_gives_each_job_its_name(page: Page, demo: Service, busy: Worker) -> None:
    log_in(page, demo, "/1/jobs")
    expect(rows(page)).to_have_count(28)
    for width in (641, 700, 768, 820, 901, 1024):
        page.set_viewport_size({"width": width, "height": 1000})
        expect_no_horizontal_scrolling(page)
        boxes = page.evaluate(
            "[...document.querySelectorAll('a.row .type')].map((node) => node.clientWidth)"
        )
        heights = page.evaluate(
            "[...document.querySelectorAll('main tbody tr')].map((node) => node.clientHeight)"
        )
        # The short name is whole, the long one has room for a good part of it.
        assert min(boxes) > 15
        assert max(boxes) > 90
        assert max(heights) < 130


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_of_any_width_do_not_scroll_sideways(
    browser: Any, demo: Service, busy: Worker, scheme: Any
) -> None:
    busy.call("PATCH", f"/workspace/1/job-types/{LONG}", {"max_running": 20, "max_retries": 0})
    busy.call("POST", "/workspace/1/job-types/etl/pause", {"reason": "z" * 300})
    busy.call("POST", "/workspace/1/pause", {"reason": "upgrade " * 20 + "z" * 100})
    url = f"https://example.invalid/{'x' * 300}"
    body = {"url": url, "description": "y" * 300, "job_types": [LONG], "include": ["result"]}
    hook = f"/1/webhooks/{busy.call('POST', '/workspace/1/webhooks', body)['webhook_id']}"
    busy.call("POST", f"/workspace{hook}/test")
    with watched(browser, demo.url, color_scheme=scheme) as page:
        log_in(page, demo)
        (failed, *_) = busy.call("GET", "/workspace/1/jobs?status=failed")["data"]
        (running, *_) = busy.call("GET", "/workspace/1/jobs?status=running")["data"]
        for path in (*PATHS, hook, *(f"/1/jobs/{job['job_id']}" for job in (failed, running))):
            page.goto(f"{demo.url}/dashboard{path}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            page.wait_for_timeout(150)
            for width in (320, 390, 640, 768, 1280, 2560, 3840):
                page.set_viewport_size({"width": width, "height": 900})
                expect_no_horizontal_scrolling(page)
                name = path.strip("/").replace("/", "-") or "workspaces"
                picture(page, f"{name}-{width}-{scheme}")


def test_filters_and_twenty_jobs_fit_on_a_laptop(page: Page, demo: Service, busy: Worker) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    log_in(page, demo, "/1/jobs?limit=20")
    last = rows(page).nth(19).bounding_box()
    assert last["y"] + last["height"] <= 900
    for label in ("Type", "Sort"):
        expect(page.get_by_label(label, exact=True)).to_be_visible()
    # Errors are not cut on a wide screen.
    page.set_viewport_size({"width": 3840, "height": 900})
    page.goto(f"{demo.url}/dashboard/1/jobs?status=failed")
    error = page.locator("td > .error").first
    assert error.bounding_box()["width"] > 600


def test_list_on_a_phone_shows_jobs_without_scrolling(
    browser: Any, demo: Service, busy: Worker
) -> None:
    with watched(browser, demo.url, **PHONE) as page:
        log_in(page, demo, "/1/jobs?status=failed")
        expect(rows(page)).to_have_count(3)
        box = rows(page).first.bounding_box()
        assert box["y"] + box["height"] < 844
        assert box["height"] < 130
        page.get_by_text("Filters and sorting (1)").click()
        expect(page.get_by_label("Type", exact=True)).to_be_visible()


def test_charts_have_whole_labels_in_units_of_time(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create()
    log_in(page, demo)

    def history(route: Any) -> None:
        response = route.fetch()
        body = response.json()
        for n, point in enumerate(body["data"]):
            point["wait_seconds"] = 500.0 + n
            point["run_seconds"] = 30.0
        route.fulfill(response=response, json=body)

    page.route("**/stats/history*", history)
    page.goto(f"{demo.url}/dashboard/1")
    chart = page.locator("figure", has_text="Queue time and run time")
    labels = chart.locator("text.tick-y")
    expect(labels).to_have_text(["0 s", "5 min", "10 min", "15 min"])
    left = chart.locator("svg").bounding_box()["x"]
    for n in range(labels.count()):
        assert labels.nth(n).bounding_box()["x"] >= left
    # A chart without data says so.
    expect(page.locator("figure", has_text="Throughput")).to_contain_text("Nothing in this period.")


def test_words_are_not_broken_beside_long_names(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(2, job_type=LONG)
    for job in worker.claim(2):
        worker.report(job, status="success")
    log_in(page, demo, "/1")
    for text in ("Median", "95th percentile", "2 jobs"):
        cell = page.locator("section", has_text="Run times").get_by_text(text, exact=True)
        assert cell.bounding_box()["height"] < 45, text


def test_text_of_a_row_can_be_selected_and_its_tooltips_reached(
    page: Page, demo: Service, busy: Worker
) -> None:
    log_in(page, demo, "/1/jobs?status=failed")
    error = page.locator("td > .error").first
    box = error.bounding_box()
    found = page.evaluate(
        "([x, y]) => document.elementFromPoint(x, y).title", [box["x"] + 20, box["y"] + 8]
    )
    assert found.startswith("ValueError: yyy")
    error.click(click_count=3)
    assert "ValueError" in page.evaluate("getSelection().toString()")
    # And it stays selected while the page is updated each second.
    page.wait_for_timeout(2500)
    assert "ValueError" in page.evaluate("getSelection().toString()")
    times = page.locator("td time").first
    assert "UTC" in (times.get_attribute("title") or "")
    assert "UTC" in page.get_by_role("columnheader", name="Created").inner_text()
