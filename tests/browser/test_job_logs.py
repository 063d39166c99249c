"""The log of a job in the dashboard: opened on demand, followed, colored, filtered."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from ..served import Service
from .pages import Worker, expect_no_horizontal_scrolling, log_in, picture

COLORED = (
    "\x1b[31mred\x1b[0m \x1b[1;38;5;46mbright\x1b[m \x1b[44mon blue\x1b[49m <b>not bold</b>\x1b[2J"
)


def logged(worker: Worker, *messages: str, **fields: Any) -> dict[str, Any]:
    """A job under a lease with these entries."""
    worker.create()
    (job,) = worker.claim()
    log(worker, job, *messages, **fields)
    return job


def log(worker: Worker, job: Any, *messages: str, **fields: Any) -> None:
    worker.report(job, logs=[{"message": message, **fields} for message in messages])


def test_log_is_shown_on_demand_and_followed(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    job = logged(worker, COLORED, "two\n  lines\twith a tab", "<img src=x onerror=alert(1)>")
    asked: list[str] = []
    page.on("request", lambda request: "/logs" in request.url and asked.append(request.url))
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    expect(page.get_by_text("Show the log")).to_be_visible()
    assert asked == []
    page.get_by_text("Show the log").click()
    lines = page.locator(".log .line")
    expect(lines).to_have_count(3)
    text = lines.nth(0).locator(".text")
    expect(text).to_have_text("red bright on blue <b>not bold</b>␛[2J")
    expect(text.locator(".ansi-fore-red")).to_have_text("red")
    expect(text.locator(".ansi-bold.ansi-fore-green")).to_have_text("bright")
    expect(text.locator(".ansi-back-blue")).to_have_text("on blue")
    assert text.locator("b").count() == 0
    assert lines.nth(1).locator(".text").inner_text() == "two\n  lines\twith a tab"
    expect(lines.nth(2)).to_contain_text("<img src=x onerror=alert(1)>")
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        picture(page, f"job-log-{theme}")
    # New entries come by themselves, and so do those of the end.
    log(worker, job, "live", level="error")
    expect(lines).to_have_count(4, timeout=2_000)
    expect(lines.nth(3)).to_contain_text("error")
    worker.report(job, status="success", logs=[{"message": "the end"}])
    expect(lines).to_have_count(5)
    expect(lines.nth(4)).to_contain_text("the end")
    # Once the job has ended and all is read, nothing more is asked.
    page.wait_for_timeout(2_500)
    before = len(asked)
    page.wait_for_timeout(2_500)
    assert len(asked) == before
    page.get_by_label("Level", exact=True).select_option("error")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("live")
    page.set_viewport_size({"width": 390, "height": 844})
    expect_no_horizontal_scrolling(page)


def test_long_log_shows_its_end_first_and_earlier_entries_on_demand(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    job = logged(worker)
    for start in range(0, 10_500, 500):
        log(worker, job, *(f"entry {n}" for n in range(start, start + 500)))
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    page.get_by_text("Show the log").click()
    lines = page.locator(".log .line")
    expect(lines).to_have_count(200)
    expect(lines.last).to_contain_text("entry 10499")
    page.wait_for_function(
        "() => { const box = document.querySelector('.log .lines');"
        " return box.scrollTop > 100 && box.scrollHeight - box.scrollTop - box.clientHeight < 5; }"
    )
    page.get_by_role("button", name="Show earlier entries").click()
    expect(lines).to_have_count(1_200)
    # What was read stays in view.
    expect(lines.nth(1_199)).to_contain_text("entry 10499")
    for _ in range(9):
        n = lines.count()
        page.get_by_role("button", name="Show earlier entries").click()
        expect(lines).not_to_have_count(n)
    expect(lines).to_have_count(10_000)
    expect(page.get_by_text("500 older entries are no longer kept.")).to_be_visible()
    expect(lines.first).to_contain_text("entry 500")
    log(worker, job, "one more")
    expect(lines.last).to_contain_text("one more")
    expect(lines).to_have_count(10_000)
