"""Schedules in the dashboard: their runs in two time zones, the form, and their pause."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ..served import Service
from .pages import (
    PHONE,
    REFUSED,
    Worker,
    expect_no_horizontal_scrolling,
    log_in,
    picture,
    rows,
    watched,
)
from .test_flow import add_user

NIGHTLY = {
    "name": "nightly report",
    "cron": "30 2 * * *",
    "timezone": "Asia/Tokyo",
    "job": {"job_type": "report", "metadata": {"kind": "nightly", "pages": 3}},
}
SCHEDULES = "/workspace/1/schedules"


def only(worker: Worker) -> dict[str, Any]:
    (found,) = worker.call("GET", SCHEDULES)["data"]
    return dict(found)


def test_schedules_show_their_runs_in_both_zones(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    worker.call("POST", SCHEDULES, NIGHTLY)
    worker.call("POST", SCHEDULES, {"name": "s", "every_seconds": 3600, "job": {"job_type": "s"}})
    with watched(browser, demo.url, timezone_id="America/New_York") as page:
        log_in(page, demo, "/1/schedules")
        first, second = rows(page).nth(0), rows(page).nth(1)
        expect(first.locator("td[data-label=Times]")).to_have_text("30 2 * * * Asia/Tokyo")
        upcoming = first.locator("td[data-label='Next run']")
        expect(upcoming).to_contain_text(re.compile(r"1[23]:30"))
        expect(upcoming.locator(".there").first).to_have_text(
            re.compile(r"\d+ \w+,? 02:30 in Asia/Tokyo")
        )
        upcoming.get_by_text("More").click()
        expect(upcoming.locator("li")).to_have_count(4)
        expect(second.locator("td[data-label=Times]")).to_have_text("every 1 h")
        expect(second.locator("td[data-label='Next run'] .there")).to_have_count(0)
        expect(first.locator(".badge")).to_have_text("active")
        expect(first.locator("td[data-label='Last run']")).to_have_text("\N{EN DASH}")
        picture(page, "schedules", full_page=True)
        # What was opened stays open over the next reads.
        page.wait_for_timeout(5500)
        expect(upcoming.locator("li").first).to_be_visible()
        first.get_by_role("link", name="nightly report").click()
        expect(page.get_by_role("heading", level=1, name="Jobs")).to_be_visible()
        expect(page.locator(".chip")).to_contain_text("Of one schedule")


def test_create_edit_and_delete_a_schedule(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    log_in(page, demo, "/1/schedules")
    expect(page.get_by_text("No schedules yet.")).to_be_visible()
    page.get_by_role("button", name="Create a schedule…").click()
    dialog = page.get_by_role("dialog", name="Create a schedule")
    dialog.get_by_label("Name", exact=True).fill("nightly")
    dialog.get_by_label("Cron expression").fill("30 2 *  * *")
    dialog.get_by_label("Time zone", exact=True).fill("Europe/Berlin")
    dialog.get_by_label("Type", exact=True).fill("report")
    dialog.get_by_label("Metadata").fill('{"a": 1, "b": {"c": 2}}')
    dialog.get_by_label("If a job of the schedule").select_option("skip")
    dialog.get_by_text("More options").click()
    dialog.get_by_label("Automatic retries").fill("7")
    dialog.get_by_role("button", name="Create", exact=True).click()
    expect(rows(page)).to_have_count(1)
    found = only(worker)
    assert (found["cron"], found["timezone"]) == ("30 2 * * *", "Europe/Berlin")
    assert (found["overlap"], found["catch_up"]) == ("skip", "last")
    assert found["job"] == {
        "job_type": "report",
        "max_retries": 7,
        "metadata": {"a": 1, "b": {"c": 2}},
    }
    page.get_by_role("button", name="Edit nightly").click()
    dialog = page.get_by_role("dialog", name="Edit nightly")
    dialog.get_by_label("Cron expression").fill("")
    dialog.get_by_label("Or every so many seconds").fill("600")
    dialog.get_by_label("Metadata").fill('{"b": {"c": 3}}')
    dialog.get_by_role("button", name="Save").click()
    expect(rows(page).locator("td[data-label=Times]")).to_have_text("every 10 min")
    changed = only(worker)
    assert changed["job"]["metadata"] == {"b": {"c": 3}}
    assert changed["job"]["max_retries"] == 7
    assert (changed["cron"], changed["every_seconds"]) == (None, 600)
    page.get_by_role("button", name="Edit nightly").click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog", name="Delete nightly?").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No schedules yet.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_mistakes_in_the_form_are_shown_at_their_fields(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/schedules")
        page.get_by_role("button", name="Create a schedule…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name", exact=True).fill("a")
        dialog.get_by_label("Cron expression").fill("0 0 30 2 *")
        dialog.get_by_label("Type", exact=True).fill("report")
        dialog.get_by_role("button", name="Create", exact=True).click()
        expect(dialog.locator("#field-cron-wrong")).to_contain_text("Not a valid cron expression")
        expect(dialog.get_by_label("Cron expression")).to_be_focused()
        dialog.get_by_label("Cron expression").fill("0 0 1 * *")
        dialog.get_by_label("Type", exact=True).fill("a b")
        dialog.get_by_role("button", name="Create", exact=True).click()
        expect(dialog.locator("[id='field-job.job_type-wrong']")).to_be_visible()
        dialog.get_by_label("Metadata").fill("{")
        dialog.get_by_role("button", name="Create", exact=True).click()
        expect(dialog.get_by_text("Not valid JSON")).to_be_visible()


def test_run_pause_and_resume_a_schedule(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.call("POST", SCHEDULES, NIGHTLY)
    log_in(page, demo, "/1/schedules")
    page.get_by_role("button", name="Pause nightly report").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("year end")
    dialog.get_by_role("button", name="Pause", exact=True).click()
    expect(rows(page).locator(".badge")).to_have_text("paused")
    expect(rows(page)).to_contain_text("year end")
    expect(rows(page).locator("td[data-label='Next run']")).to_have_text("\N{EN DASH}")
    page.get_by_role("button", name="Resume nightly report").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume", exact=True).click()
    expect(rows(page).locator(".badge")).to_have_text("active")
    page.get_by_role("button", name="Run nightly report").click()
    page.get_by_role("dialog").get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".job .facts")).to_contain_text("All of its jobs")
    page.go_back()
    last = rows(page).locator("td[data-label='Last run']")
    expect(last.get_by_role("link")).to_be_visible()
    page.goto(f"{demo.url}/dashboard/1/activity?show=schedules")
    expect(rows(page)).to_have_count(3)
    expect(rows(page).first).to_contain_text("Schedule resumed")


@pytest.mark.parametrize(("role", "acts"), [("viewer", False), ("member", True)])
def test_actions_on_schedules_depend_on_the_role(
    browser: Any, demo: Service, role: str, acts: bool
) -> None:
    worker = Worker(demo)
    worker.call("POST", SCHEDULES, NIGHTLY)
    add_user(demo, worker, "mia", role)
    with watched(browser, demo.url) as page:
        log_in(page, demo, "/1/schedules", "mia")
        expect(rows(page)).to_have_count(1)
        for name in ("Run nightly report", "Pause nightly report", "Edit nightly report"):
            expect(page.get_by_role("button", name=name)).to_have_count(int(acts))
        expect(page.get_by_role("button", name="Create a schedule…")).to_have_count(int(acts))


def test_schedules_fit_on_a_phone(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    long = {**NIGHTLY, "name": "n" * 200, "timezone": "America/Argentina/ComodRivadavia"}
    worker.call("POST", SCHEDULES, long)
    worker.call("POST", SCHEDULES, {**NIGHTLY, "cron": "0,5,10,15,20,25,30,35,40,45 1-23 1-31 * *"})
    with watched(browser, demo.url, **PHONE) as page:
        log_in(page, demo, "/1/schedules")
        expect(rows(page)).to_have_count(2)
        rows(page).first.get_by_text("More").click()
        picture(page, "schedules-phone", full_page=True)
        expect_no_horizontal_scrolling(page)
        page.get_by_role("button", name="Create a schedule…").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        expect_no_horizontal_scrolling(page)
        picture(page, "schedules-form-phone")
