"""The dashboard in a real Chromium."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from flask import session
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server

from jobapi import JobAPI
from jobapi.commands.demo import DEMO_PASSWORD, DEMO_USER

from ..host import make_host
from ..served import Service, environment, jobapi
from .pages import (
    AWAY,
    PHONE,
    REFUSED,
    Worker,
    badge,
    expect_no_horizontal_scrolling,
    follow,
    log_in,
    log_out,
    picture,
    watched,
)


def test_watch_job_from_creation_shows_each_change_live(page: Page, demo: Service) -> None:
    streams: list[int] = []
    page.on("response", lambda r: streams.append(r.status) if "/events/stream" in r.url else None)
    worker = Worker(demo)
    log_in(page, demo)
    page.get_by_role("link", name="Demo", exact=True).click()
    expect(page.get_by_text("No jobs yet.")).to_be_visible()

    follow(page, "Create job", "Create job")
    page.get_by_label("Type", exact=True).fill("data_processing")
    page.get_by_label("Priority").select_option("high")
    page.get_by_label("Metadata").fill('{"source_file": "dataset.csv", "big": 9007199254740993}')
    page.get_by_role("button", name="Create job").click()
    expect(badge(page, "pending")).to_be_visible()
    expect(page.locator(".tree").first).to_contain_text('"big": 9007199254740993')

    follow(page, "Jobs", "Jobs")
    row = page.locator("table.jobs tbody tr")
    expect(row).to_have_count(1)
    expect(row.locator(".badge")).to_have_text("pending")
    expect(page.get_by_role("row")).to_have_count(2)

    # From here on the test clicks nothing: the list updates itself.
    page.evaluate("window.same = true")
    (job,) = worker.claim()
    expect(row.locator(".badge")).to_have_text("running")
    worker.report(job, progress_percent=43, progress_message="Rows 1 to 430")
    expect(row).to_contain_text("43 %")
    expect(row).to_contain_text("Rows 1 to 430")
    worker.report(job, progress_percent=47)  # within the same ten percent: no event
    expect(row).to_contain_text("47 %")
    picture(page, "dashboard-list")

    expect(row).to_contain_text("w-1")
    row.get_by_role("link").click()
    expect(page.locator(".job .status")).to_contain_text("47 %")
    expect(page.locator(".facts")).to_contain_text("w-1")
    worker.report(job, progress_percent=80, progress_message="Rows 1 to 800")
    expect(page.locator(".job .status")).to_contain_text("80 %")
    worker.report(job, status="success", result={"rows_processed": 1000})
    expect(badge(page, "success")).to_be_visible()
    expect(page.locator("#said")).to_have_text("The job is success")
    expect(page.locator(".tree").nth(1)).to_contain_text('"rows_processed": 1000')
    expect(page.locator(".timeline .what")).to_have_text(
        ["Succeeded", "Progress: 80 %", "Progress: 43 %", "Claimed", "Created"]
    )
    attempt = page.locator("table tbody tr")
    expect(attempt).to_have_count(1)
    expect(attempt).to_contain_text("w-1")
    expect(attempt.locator(".badge")).to_have_text("success")
    picture(page, "dashboard-job")
    assert page.evaluate("window.same") is True  # the page was never reloaded
    assert streams
    assert set(streams) == {200}

    log_out(page)
    expect(page.get_by_label("Password")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_create_jobs_while_listing_counts_them_and_keeps_the_rows(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    worker.create(3)
    log_in(page, demo, "/1/jobs")
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(3)
    before = rows.all_inner_texts()[0].split("\n")[0]
    worker.create(2, job_type="later")
    hint = page.get_by_role("button", name="2 new")
    expect(hint).to_be_visible()
    expect(page.get_by_text("5 jobs")).to_be_visible()
    assert rows.all_inner_texts()[0].split("\n")[0] == before
    # Jobs that were pushed off the first page are still updated.
    worker.create(60, job_type="many", priority="low")
    expect(page.get_by_role("button", name="50 or more new")).to_be_visible()
    job = next(job for job in worker.claim(5) if job["job_type"] == "etl")
    expect(rows.locator(".running")).to_have_count(3)
    worker.report(job, status="failed", error="It broke", retryable=False)
    expect(rows.locator(".failed")).to_have_count(1)
    expect(rows.filter(has_text="It broke")).to_have_count(1)
    page.get_by_role("button", name="50 or more new").click()
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text("many")
    page.get_by_role("link", name="Next").click()
    expect(rows).to_have_count(15)
    assert page.url.endswith("/1/jobs?page=2")


def test_filter_and_sort_change_the_address_and_back_restores_them(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    worker.create(2, priority="low", metadata={"batch_id": 3, "file": {"name": "a b&c.csv"}})
    worker.create(3, job_type="report", priority="high")
    worker.create(1, job_type="report", priority="urgent")
    log_in(page, demo, "/1/jobs")
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(6)
    page.keyboard.press("f")
    page.keyboard.type("report")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(4)
    assert page.url.endswith("/dashboard/1/jobs?job_type=report")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.get_by_label("urgent").check()
    expect(rows).to_have_count(1)
    page.get_by_label("high").check()
    expect(rows).to_have_count(4)
    page.get_by_label("Sort").select_option("priority desc")
    expect(rows.first).to_contain_text("urgent")
    query = "priority=high&priority=urgent&job_type=report&sort=priority&order=desc"
    assert page.url.endswith(f"?{query}")

    page.go_back()
    expect(page.get_by_label("Sort")).to_have_value("created_at desc")
    page.go_back()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("high")).not_to_be_checked()
    page.go_back()
    page.go_back()
    expect(rows).to_have_count(6)
    expect(page.get_by_label("Type", exact=True)).to_have_value("")
    page.go_forward()
    expect(rows).to_have_count(4)

    page.get_by_role("link", name="Clear filters").click()
    expect(rows).to_have_count(6)
    page.get_by_text("More filters").click()
    page.get_by_label("Metadata", exact=True).fill("batch_id")
    page.keyboard.press("Enter")
    expect(page.locator("#metadata-wrong")).to_contain_text("Write a path")
    page.get_by_label("Metadata", exact=True).fill("batch_id=3")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(2)
    assert page.url.endswith("?metadata.batch_id=3")
    page.reload()
    expect(rows).to_have_count(2)
    expect(page.get_by_label("Metadata", exact=True)).to_have_value("batch_id=3")
    page.get_by_label("Metadata 2").fill("file.name=a b&c.csv")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Metadata 3")).to_be_visible()
    expect(rows).to_have_count(2)
    page.get_by_label("Text of the error").fill("broken")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No jobs match the filters.")).to_be_visible()
    page.goto(f"{demo.url}/dashboard/1/jobs?sort=priority&order=asc&limit=2&page=2")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("high")
    expect(page.get_by_text("Page 2 of 3")).to_be_visible()


def test_open_invalid_filter_shows_the_error_at_the_filters(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/jobs?status=lost&nothing=1")
        wrong = page.locator(".filters .problem").first
        expect(wrong).to_contain_text("nothing")
        expect(wrong).to_contain_text("status")
        page.get_by_role("link", name="Clear filters").click()
        expect(page.get_by_text("No jobs yet.")).to_be_visible()


def test_cancel_all_matching_jobs_asks_with_their_count_first(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(700, job_type="import")
    worker.create(1, job_type="kept")
    log_in(page, demo, "/1/jobs?job_type=import")
    page.get_by_role("button", name="Cancel all…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("job type import")
    expect(dialog).to_contain_text("700 jobs will be cancelled")
    assert worker.call("GET", "/workspace/1/operations")["data"] == []
    picture(page, "dashboard-bulk")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).not_to_be_visible()
    assert worker.call("GET", "/workspace/1/jobs?status=cancelled")["pagination"]["total"] == 0

    page.get_by_role("button", name="Cancel all…").click()
    dialog.get_by_label("Reason").fill("Wrong import")
    dialog.get_by_role("button", name="Cancel 700 jobs").click()
    expect(dialog).to_contain_text("700 cancelled.")
    dialog.get_by_role("button", name="Close").click()
    rows = page.locator("table.jobs tbody tr")
    expect(rows.locator(".cancelled")).to_have_count(50)
    (kept,) = worker.call("GET", "/workspace/1/jobs?job_type=kept")["data"]
    assert kept["status"] == "pending"
    some = worker.call("GET", "/workspace/1/jobs?job_type=import&limit=1")["data"][0]
    assert some["result"] == {"cancelled_reason": "Wrong import"}
    follow(page, "Operations", "Operations")
    expect(page.locator("tbody tr")).to_contain_text("700 of 700 jobs")


def test_cancel_retry_and_delete_one_job_changes_its_status(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_label("Reason").fill("Not today")
    page.get_by_role("button", name="Cancel the job").click()
    expect(badge(page, "cancelled")).to_be_visible()
    expect(page.locator(".tree")).to_contain_text("Not today")
    page.get_by_role("button", name="Retry", exact=True).click()
    page.get_by_role("button", name="Retry the job").click()
    expect(badge(page, "pending")).to_be_visible()
    page.get_by_role("link", name="Create a copy").click()
    expect(page.get_by_label("Type", exact=True)).to_have_value("etl")
    page.go_back()
    worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/cancel")
    expect(badge(page, "cancelled")).to_be_visible()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("button", name="Delete the job")).to_be_disabled()
    page.get_by_label("Delete the job permanently").check()
    page.get_by_role("button", name="Delete the job").click()
    expect(page.get_by_text("No jobs yet.")).to_be_visible()


def test_log_in_with_wrong_password_or_key_shows_the_error(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        page.goto(f"{demo.url}/dashboard/1/jobs")
        page.get_by_label("Username").fill(DEMO_USER)
        page.get_by_label("Password").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").filter(has_text="password")).to_be_visible()
        page.get_by_text("Use an API key instead").click()
        page.get_by_label("API key").fill("jk_nonsense")
        page.get_by_role("button", name="Log in with the key").click()
        expect(page.get_by_text("This API key is not valid")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        page.get_by_label("Password").fill(DEMO_PASSWORD)
        page.keyboard.press("Enter")
        # The address that was opened first is shown after the login.
        expect(page.get_by_text("No jobs yet.")).to_be_visible()
        assert page.url.endswith("/dashboard/1/jobs")


def test_stop_the_service_shows_a_banner_until_it_is_back(
    browser: Any, demo: Service, tmp_path: Path
) -> None:
    worker = Worker(demo)
    worker.create(2)
    with watched(browser, demo.url, AWAY) as page:
        log_in(page, demo, "/1/jobs")
        rows = page.locator("table.jobs tbody tr")
        expect(rows).to_have_count(2)
        demo.stop()
        banner = page.locator("#trouble")
        expect(banner).to_contain_text("The service does not respond.")
        expect(rows).to_have_count(2)
        picture(page, "dashboard-away")
        # A view that is opened now waits for the service.
        page.get_by_role("link", name="Overview").click()
        page.wait_for_timeout(500)
        port = demo.url.rpartition(":")[2]
        again = Service(tmp_path, demo.env, "--port", port)
        try:
            expect(page.locator(".tile.pending")).to_contain_text("2")
            expect(banner).to_be_empty()
            expect(page.locator("#said")).to_have_text("The service is back.")
            page.context.set_offline(True)
            expect(banner).to_contain_text("You are offline.")
            page.context.set_offline(False)
            expect(banner).to_be_empty()
        finally:
            again.close()


def test_show_job_with_markup_displays_it_as_text(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    evil = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
    right_to_left = "\u202e\u05e9\u05dc\u05d5\u05dd \u202eabc"
    long = "x" * 3000
    worker.create(
        metadata={evil: evil, "__proto__": {"a": 1}, "rtl": right_to_left, "long": long},
    )
    (job,) = worker.claim()
    worker.report(job, progress_percent=10, progress_message=evil)
    worker.call("PATCH", "/workspace/1", {"name": evil[:150]})
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/jobs")
        row = page.locator("table.jobs tbody tr")
        expect(row).to_contain_text("<script>window.evil")
        expect_no_horizontal_scrolling(page)
        worker.report(job, status="failed", error=f"{evil}\n{right_to_left}{long}", retryable=False)
        expect(row.locator(".error")).to_contain_text("שלום")
        expect_no_horizontal_scrolling(page)
        row.get_by_role("link").click()
        page.get_by_text("The whole error").click()
        expect(page.locator("pre.error")).to_contain_text("<script>window.evil")
        expect(page.locator(".tree")).to_contain_text("onerror=")
        expect(page.locator(".tree")).to_contain_text("__proto__")
        expect(page.locator(".timeline .error")).to_contain_text("שלום")
        expect_no_horizontal_scrolling(page)
        page.goto(f"{demo.url}/dashboard/1/jobs?job_type=%3Cscript%3Ealert(1)%3C/script%3E")
        expect(page.locator(".filters .problem").first).to_contain_text("job_type")
        assert page.evaluate("window.evil") is None
        page.goto(f"{demo.url}/dashboard/1/%3Cscript%3E")
        expect(page.get_by_text("This page does not exist.")).to_be_visible()
        assert page.evaluate("document.scripts.length") == 2


def test_show_large_result_folds_it_and_saves_it_whole(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create()
    (job,) = worker.claim()
    result = {"rows": ["y" * 50] * 8000}
    worker.report(job, status="success", result=result)
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    expect(page.get_by_role("button", name="Show more of 8000")).to_have_count(0)
    page.locator(".tree summary").nth(1).click()
    expect(page.get_by_role("button", name="Show more of 8000")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert json.loads(Path(download.value.path()).read_text()) == result
    assert download.value.suggested_filename == f"{job['job_id']}-result.json"


def test_open_overview_shows_charts_with_their_numbers(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(12)
    worker.create(5, job_type="report")
    for job in worker.claim(6):
        worker.report(job, status="success")
    log_in(page, demo, "/1?window=hour")
    expect(page.locator(".tile.success strong")).to_have_text("6")
    expect(page.locator("figure")).to_have_count(4)
    expect(page.locator("figure").first.locator("polygon")).to_have_count(5)
    expect(page.locator("figure").nth(1).locator("rect.success")).not_to_have_count(0)
    page.get_by_role("button", name="success").click()
    expect(page.locator("figure").first.locator("polygon")).to_have_count(4)
    page.locator("figure").nth(1).get_by_text("Numbers").click()
    expect(page.locator("figure").nth(1).locator("tbody tr").first).to_contain_text("6")
    worker.create(1)
    expect(page.locator(".tile.pending strong")).to_have_text("12")
    expect(page.locator("figure").nth(1).locator("tbody tr").first).to_be_visible()
    picture(page, "dashboard-overview")
    page.get_by_role("link", name="month").click()
    assert page.url.endswith("/1?window=month")
    expect(page.locator("figure")).to_have_count(4)
    page.get_by_role("link", name="report", exact=True).click()
    expect(page.locator("table.jobs tbody tr")).to_have_count(5)


def test_manage_workspace_as_owner_changes_members_keys_and_settings(
    browser: Any, page: Page, demo: Service
) -> None:
    done = jobapi("users", "create", "anna", "--password", DEMO_PASSWORD, env=demo.env)
    assert done.returncode == 0, done.stderr
    log_in(page, demo, "/1/members")
    page.get_by_label("Username").fill("anna")
    page.get_by_label("Role", exact=True).select_option("viewer")
    page.get_by_role("button", name="Add member").click()
    role = page.get_by_label("Role of anna")
    expect(role).to_have_value("viewer")
    expect(page.get_by_label("Username")).to_have_value("")

    with watched(browser, demo.url) as other:
        log_in(other, demo, "/1/jobs", "anna")
        expect(other.get_by_text("No jobs yet.")).to_be_visible()
        for name in ("Create job", "Keys", "Settings"):
            expect(other.get_by_role("link", name=name)).to_have_count(0)
        expect(other.get_by_role("button", name="Cancel all…")).to_have_count(0)

    role.select_option("member")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#said")).to_have_text("anna is now member")

    follow(page, "Keys", "API keys")
    page.get_by_label("Name").fill("ci")
    page.get_by_label("Role").select_option("viewer")
    page.get_by_role("button", name="Create key").click()
    key = page.get_by_label("The key", exact=True).input_value()
    assert key.startswith("jk_")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("tbody tr")).to_contain_text("ci")
    assert key not in page.content()

    with watched(browser, demo.url) as other:
        other.goto(f"{demo.url}/dashboard")
        other.get_by_text("Use an API key instead").click()
        other.get_by_label("API key").fill(key)
        other.get_by_role("button", name="Log in with the key").click()
        other.get_by_role("link", name="Demo", exact=True).click()
        expect(other.get_by_text("No jobs yet.")).to_be_visible()
        for name in ("Members", "Keys"):
            expect(other.get_by_role("link", name=name)).to_have_count(0)

    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.locator("tbody tr")).to_contain_text("revoked")

    follow(page, "Settings", "Settings")
    page.get_by_label("Succeeded jobs").fill("7")
    page.get_by_label("Name").fill("Renamed")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.locator("#menu-switcher")).to_contain_text("Renamed")
    expect(page.get_by_label("Succeeded jobs")).to_have_value("7")


def test_submit_invalid_form_shows_messages_at_the_fields(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/jobs/new")
        page.get_by_label("Type", exact=True).fill("no spaces, please")
        page.get_by_label("Metadata").fill("{nonsense}")
        page.get_by_role("button", name="Create job").click()
        expect(page.locator(".field", has=page.get_by_label("Metadata"))).to_contain_text(
            "Not valid JSON"
        )
        page.get_by_label("Metadata").fill("")
        page.get_by_text("More options").click()
        page.get_by_label("Automatic retries").fill("many")
        page.get_by_role("button", name="Create job").click()
        invalid = page.locator(".field", has=page.get_by_label("Type", exact=True))
        expect(invalid).to_contain_text("letters, digits")
        expect(page.get_by_label("Type", exact=True)).to_have_attribute("aria-invalid", "true")
        expect(page.locator(".field", has=page.get_by_label("Automatic"))).to_contain_text(
            "integer"
        )
        assert page.evaluate("document.activeElement.name") == "job_type"


def test_log_in_and_create_job_needs_only_the_keyboard(page: Page, demo: Service) -> None:
    page.goto(f"{demo.url}/dashboard")
    expect(page.get_by_label("Username")).to_be_focused()
    page.keyboard.type(DEMO_USER)
    page.keyboard.press("Tab")
    page.keyboard.type(DEMO_PASSWORD)
    page.keyboard.press("Enter")

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()") == name:
                return
        raise AssertionError(f"{name} is not reached")

    expect(page.get_by_role("heading", name="Workspaces")).to_be_focused()
    tab_to("Demo")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Jobs")).to_be_focused()
    tab_to("Create job")
    shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert shown == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Create job")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("from_keyboard")
    page.keyboard.press("Enter")
    expect(badge(page, "pending")).to_be_visible()
    tab_to("Cancel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("done with it")
    tab_to("Cancel the job")
    page.keyboard.press("Enter")
    expect(badge(page, "cancelled")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_open_views_on_a_phone_shows_cards_without_horizontal_scrolling(
    browser: Any, demo: Service, scheme: Any
) -> None:
    worker = Worker(demo)
    worker.create(3, job_type="a_rather_long_type_of_job_" + "x" * 70, metadata={"k": "v" * 500})
    (job, _) = worker.claim(2)
    worker.report(job, progress_percent=30, progress_message="Working on it " * 20)
    with watched(browser, demo.url, color_scheme=scheme, **PHONE) as page:
        log_in(page, demo, "/1/jobs")
        rows = page.locator("table.jobs tbody tr")
        expect(rows).to_have_count(3)
        expect(rows.locator("progress").first).to_be_visible()
        assert page.evaluate("getComputedStyle(document.querySelector('tbody tr')).display") == (
            "grid"
        )
        picture(page, f"dashboard-phone-{scheme}")
        for path in ("", "/1", "/1/jobs", f"/1/jobs/{job['job_id']}", "/1/jobs/new"):
            page.goto(f"{demo.url}/dashboard{path}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            expect_no_horizontal_scrolling(page)
        for path in ("/1/operations", "/1/members", "/1/keys", "/1/settings"):
            page.goto(f"{demo.url}/dashboard{path}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            expect_no_horizontal_scrolling(page)
        follow(page, "Jobs", "Jobs")
        page.get_by_text("Filters and sorting").click()
        expect(page.get_by_label("Type", exact=True)).to_be_visible()
        expect_no_horizontal_scrolling(page)


def test_session_is_refreshed_until_the_user_is_disabled(browser: Any, tmp_path: Path) -> None:
    env = environment(
        JOBAPI_ENV="development",
        JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"),
        JOBAPI_ACCESS_TOKEN_SECONDS="4",
    )
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    try:
        with watched(browser, service.url, REFUSED) as page:
            log_in(page, service, "/1/jobs")
            access = "JSON.parse(sessionStorage.jobapi).access"
            first = page.evaluate(access)
            page.wait_for_timeout(4500)
            follow(page, "Create job", "Create job")
            page.get_by_label("Type", exact=True).fill("later")
            page.get_by_role("button", name="Create job").click()
            expect(badge(page, "pending")).to_be_visible()
            assert page.evaluate(access) != first
            # This view has no stream, which would notice the end of the session by itself.
            follow(page, "Create a copy", "Create job")
            other = ("users", "create", "other", "--admin", "--password", "other-password")
            assert jobapi(*other, env=env).returncode == 0
            assert jobapi("users", "disable", DEMO_USER, env=env).returncode == 0
            # (The stream of the page before may have noticed it already.)
            page.evaluate("document.querySelector('#top nav a').click()")
            expect(page.get_by_label("Password")).to_be_visible()
            expect(page.get_by_role("alert").filter(has_text="Log in again")).to_be_visible()
    finally:
        service.close()


def test_open_dashboard_with_the_login_of_a_host_needs_no_form(
    browser: Any, tmp_path: Path
) -> None:
    app, db = make_host(f"sqlite:///{tmp_path / 'host.sqlite3'}")
    JobAPI(app, url_prefix="/job-api", current_user=lambda: session.get("user"))

    @app.get("/enter")
    def enter() -> str:
        session["user"] = "u-17"
        return "<!doctype html><link rel=icon href=data:,>in"

    with app.extensions["jobapi"].migrating():
        flask_migrate.upgrade()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with watched(browser, url, REFUSED) as page:
            sent: list[str | None] = []
            page.on("request", lambda r: sent.append(r.headers.get("authorization")))
            page.goto(f"{url}/job-api/dashboard")
            expect(page.get_by_text("You are not logged in.")).to_be_visible()
            expect(page.get_by_label("Password")).to_have_count(0)
            page.goto(f"{url}/enter")
            page.goto(f"{url}/job-api/dashboard")
            expect(page.get_by_text("host:u-17")).to_be_visible()
            page.locator("#menu-user").click()
            expect(page.get_by_role("button", name="Keyboard shortcuts")).to_be_visible()
            expect(page.get_by_role("button", name="Log out")).to_have_count(0)
            page.keyboard.press("Escape")
            page.get_by_text("New workspace").click()
            page.get_by_label("Name").fill("Mine")
            page.get_by_role("button", name="Create workspace").click()
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            assert page.url == f"{url}/job-api/dashboard/1"
            follow(page, "Jobs", "Jobs")
            follow(page, "Create job", "Create job")
            page.get_by_label("Type", exact=True).fill("invoice")
            page.get_by_role("button", name="Create job").click()
            expect(badge(page, "pending")).to_be_visible()
            expect(page.get_by_text("by host:u-17").first).to_be_visible()
            assert set(sent) == {None}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        with app.app_context():
            db.engine.dispose()
        app.extensions["jobapi"].close()
