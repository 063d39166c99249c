"""Login sessions of the dashboard: in several tabs, and when one ends in the middle of work."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import expect

from jobapi.commands.demo import DEMO_PASSWORD

from ..served import Service, environment, jobapi
from .pages import REFUSED, Worker, badge, log_in, log_out, rows, watched

TYPED = '{"batch": 7, "files": ["a.csv"]}'


def end_sessions(demo: Service) -> None:
    """End all login sessions, as a change of the password does."""
    done = jobapi("users", "passwd", "demo", "--password", DEMO_PASSWORD, env=demo.env)
    assert done.returncode == 0, done.stderr


def test_session_that_ends_while_a_form_is_filled_in_loses_nothing(
    browser: Any, demo: Service
) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/jobs/new")
        page.get_by_label("Type", exact=True).fill("kept")
        page.get_by_label("Metadata").fill(TYPED)
        end_sessions(demo)
        page.get_by_role("button", name="Create job").click()
        dialog = page.get_by_role("dialog", name="Log in again")
        expect(dialog).to_contain_text("What you have entered on this page is kept.")
        dialog.get_by_label("Username").fill("demo")
        dialog.get_by_label("Password").fill(DEMO_PASSWORD)
        dialog.get_by_role("button", name="Log in", exact=True).click()
        expect(dialog).to_have_count(0)
        expect(page.get_by_label("Metadata")).to_have_value(TYPED)
        page.get_by_role("button", name="Create job").click()
        expect(badge(page, "pending")).to_be_visible()
        expect(page.locator(".tree").first).to_contain_text("a.csv")


def test_session_that_ends_on_a_list_goes_on_after_the_login(browser: Any, demo: Service) -> None:
    Worker(demo).create(2)
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/jobs?status=pending")
        expect(rows(page)).to_have_count(2)
        end_sessions(demo)
        dialog = page.get_by_role("dialog", name="Log in again")
        expect(dialog).to_be_visible(timeout=30_000)
        # Nobody else can read the page meanwhile.
        filtered = "getComputedStyle(document.querySelector('dialog'), '::backdrop').backdropFilter"
        assert "blur" in page.evaluate(filtered)
        dialog.get_by_label("Username").fill("demo")
        dialog.get_by_label("Password").fill(DEMO_PASSWORD)
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        Worker(demo).create()
        expect(page.get_by_role("button", name="1 new")).to_be_visible()
        assert page.url.endswith("?status=pending")


def test_new_tab_is_logged_in_and_a_new_browser_is_not(browser: Any, demo: Service) -> None:
    Worker(demo).create()
    with watched(browser, demo.url) as page:
        log_in(page, demo, "/1/jobs")
        with page.context.expect_page() as opened:
            rows(page).get_by_role("link").click(modifiers=["Control"])
        tab = opened.value
        expect(badge(tab, "pending")).to_be_visible()
        pasted = page.context.new_page()
        pasted.goto(f"{demo.url}/dashboard/1/members")
        expect(rows(pasted)).to_have_count(1)
        # No token is where it would outlive the tabs.
        stored = page.evaluate("[JSON.stringify(localStorage), document.cookie]")
        assert stored == ["{}", ""]
        assert "access" in page.evaluate("sessionStorage.jobapi")
        # Logging out in one tab ends all of them, and leaves nothing on their pages.
        log_out(pasted)
        for each in (page, tab, pasted):
            expect(each.get_by_label("Password")).to_be_visible()
            expect(each.locator("table, .job")).to_have_count(0)
    with watched(browser, demo.url) as other:
        other.goto(f"{demo.url}/dashboard/1/jobs")
        expect(other.get_by_label("Password")).to_be_visible()


def test_login_in_one_tab_is_one_in_the_others(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url) as page:
        page.goto(f"{demo.url}/dashboard/1/jobs")
        expect(page.get_by_label("Password")).to_be_visible()
        tab = page.context.new_page()
        log_in(tab, demo, "/1")
        expect(page.get_by_text("No jobs yet.")).to_be_visible()


def test_other_user_who_logs_in_again_does_not_see_the_page_of_the_first(
    browser: Any, demo: Service
) -> None:
    jobapi("users", "create", "eve", "--password", "demo-password", env=demo.env)
    worker = Worker(demo)
    (job,) = worker.create(metadata={"secret": "of demo"})
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, f"/1/jobs/{job['job_id']}")
        expect(page.get_by_text("of demo")).to_be_visible()
        end_sessions(demo)
        dialog = page.get_by_role("dialog", name="Log in again")
        expect(dialog).to_be_visible(timeout=30_000)
        dialog.get_by_label("Username").fill("eve")
        dialog.get_by_label("Password").fill("demo-password")
        page.keyboard.press("Enter")
        expect(page.get_by_text("You have no access to this workspace.")).to_be_visible()
        expect(page.get_by_text("of demo")).to_have_count(0)


def test_tabs_refresh_their_session_together(browser: Any, tmp_path: Any) -> None:
    env = environment(
        JOBAPI_ENV="development",
        JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"),
        JOBAPI_ACCESS_TOKEN_SECONDS="25",
    )
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    try:
        with watched(browser, service.url) as page:
            refreshed: list[int] = []
            page.context.on(
                "response",
                lambda r: refreshed.append(r.status) if r.url.endswith("/refresh") else None,
            )
            log_in(page, service, "/1/jobs")
            tab = page.context.new_page()
            tab.goto(f"{service.url}/dashboard/1/jobs")
            expect(tab.get_by_text("No jobs yet.")).to_be_visible()
            # From five seconds after the login on, the token is about to expire.
            page.wait_for_timeout(6_000)
            Worker(service).create()
            for each in (page, tab):
                expect(rows(each)).to_have_count(1)
            expect(tab.locator(".updated")).to_be_visible()
            page.wait_for_timeout(1_000)
            sessions = [json.loads(p.evaluate("sessionStorage.jobapi")) for p in (page, tab)]
            assert sessions[0] == sessions[1]
            assert refreshed
            assert set(refreshed) == {200}
    finally:
        service.close()
