"""Actions in the dashboard: confirmations, focus, and buttons by role."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from ..served import Service, jobapi
from .pages import REFUSED, Worker, badge, log_in, rows, watched


def total(worker: Worker, query: str = "") -> int:
    found: int = worker.call("GET", f"/workspace/1/jobs?{query}")["pagination"]["total"]
    return found


def test_delete_everything_takes_more_than_pressing_enter(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.fail("a", "b", "c")
    log_in(page, demo, "/1/jobs")
    page.get_by_role("button", name="Delete all…").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("3 jobs will be deleted")
    assert page.evaluate("document.activeElement.tagName") == "H2"
    for _ in range(3):
        page.keyboard.press("Enter")
    run = dialog.get_by_role("button", name="Delete 3 jobs")
    expect(run).to_be_disabled()
    assert total(worker) == 3
    dialog.get_by_label("Delete 3 jobs permanently").check()
    run.click()
    expect(dialog).to_contain_text("3 deleted.")
    assert total(worker) == 0


def test_destructive_dialogs_never_focus_the_button_that_destroys(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    for path, button in (
        ("/1/jobs", "Cancel all…"),
        ("/1/jobs", f"Cancel etl {job['job_id'][-8:]}"),
        (f"/1/jobs/{job['job_id']}", "Cancel"),
        ("/1/settings", "Delete the workspace…"),
        ("/1/members", "Leave"),
    ):
        if page.url == "about:blank":
            log_in(page, demo, path)
        else:
            page.goto(f"{demo.url}/dashboard{path}")
        page.get_by_role("button", name=button, exact=True).press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.wait_for_timeout(400)
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement.matches('[data-destructive]')") is False
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    assert total(worker, "status=pending") == 1


def test_act_from_a_row_changes_that_job_and_keeps_the_focus_there(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    worker.fail("boom")
    log_in(page, demo, "/1/jobs")
    rows(page).get_by_role("button", name="Retry").press("Enter")
    page.get_by_label("Reason").fill("try again")
    page.keyboard.press("Enter")  # does not press the button
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Retry the job").click()
    expect(rows(page).locator(".badge")).to_contain_text("pending")
    expect(rows(page).get_by_role("button", name="Cancel")).to_be_visible()
    page.wait_for_timeout(300)
    # The button is now "Cancel": the focus is on the row, not on that.
    assert page.evaluate("document.activeElement.closest('tr') !== null")
    assert page.evaluate("document.activeElement.matches('[data-destructive]')") is False


def test_act_on_selected_rows_changes_these_jobs(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(4)
    log_in(page, demo, "/1/jobs")
    boxes = rows(page).get_by_role("checkbox")
    boxes.nth(0).check()
    boxes.nth(2).check()
    expect(page.get_by_text("2 selected")).to_be_visible()
    page.get_by_role("button", name="Cancel 2").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 selected jobs")
    dialog.get_by_role("button", name="Cancel 2 jobs").click()
    expect(dialog).to_contain_text("2 cancelled.")
    dialog.get_by_role("button", name="Close").click()
    expect(rows(page).locator(".badge.cancelled")).to_have_count(2)
    expect(rows(page).locator(".badge").nth(0)).to_have_text("cancelled")
    expect(rows(page).locator(".badge").nth(1)).to_have_text("pending")
    page.get_by_label("Select all jobs on this page").check()
    expect(page.get_by_role("button", name="Retry 2")).to_be_enabled()
    expect(page.get_by_role("button", name="Delete 2")).to_be_enabled()
    page.get_by_role("button", name="Clear selection").click()
    expect(page.get_by_role("button", name="Cancel all…")).to_be_visible()


def test_arrow_keys_on_a_role_change_nothing_until_it_is_saved(browser: Any, demo: Service) -> None:
    jobapi("users", "create", "bob", "--password", "bob-password", env=demo.env)
    worker = Worker(demo)
    worker.call("POST", "/workspace/1/members", {"username": "bob", "role": "viewer"})
    with watched(browser, demo.url, REFUSED) as page:
        changes: list[str] = []
        page.on("request", lambda r: changes.append(r.url) if r.method == "PATCH" else None)
        log_in(page, demo, "/1/members")
        page.get_by_label("Role of bob").focus()
        for _ in range(3):
            page.keyboard.press("ArrowDown")
        page.wait_for_timeout(300)
        assert changes == []
        page.get_by_label("Role of demo").select_option("viewer")
        save = page.get_by_role("button", name="Save")
        rows(page).filter(has_text="bob").get_by_role("button", name="Save").click()
        expect(page.locator("#said")).to_have_text("bob is now owner")
        assert len(changes) == 1
        # What was chosen in another row is still there.
        expect(save).to_have_count(1)
        expect(page.get_by_label("Role of demo")).to_have_value("viewer")
        # One's own role asks first, and then the controls of an owner are gone.
        save.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Change your own role?")
        dialog.get_by_role("button", name="Become viewer").click()
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_viewer_gets_no_form_that_only_owners_may_send(browser: Any, demo: Service) -> None:
    jobapi("users", "create", "vera", "--password", "demo-password", env=demo.env)
    worker = Worker(demo)
    worker.call("POST", "/workspace/1/members", {"username": "vera", "role": "viewer"})
    with watched(browser, demo.url) as page:
        log_in(page, demo, "/1/settings", "vera")
        expect(page.get_by_text("require the role owner")).to_be_visible()
        expect(page.get_by_role("button", name="Save")).to_have_count(0)
        for path, text in (
            ("/1/keys", "require the role owner"),
            ("/1/webhooks", "require the role owner"),
            ("/1/jobs/new", "requires the role member"),
            ("/users", "managed by administrators"),
        ):
            page.goto(f"{demo.url}/dashboard{path}")
            expect(page.get_by_text(text)).to_be_visible()
        page.goto(f"{demo.url}/dashboard/1/jobs")
        expect(page.get_by_text("Jobs appear here")).to_be_visible()
        expect(page.get_by_role("checkbox", name="Select all")).to_have_count(0)


def test_edit_a_pending_job_changes_its_fields(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create(metadata={"a": 1, "b": 2}, timeout_seconds=60)
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_role("heading", name="Edit job")).to_be_visible()
    page.get_by_label("Priority").select_option("urgent")
    page.get_by_label("Metadata").fill('{"a": 3}')
    page.get_by_label("Timeout of an attempt").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".facts")).to_contain_text("urgent")
    now = worker.call("GET", f"/workspace/1/jobs/{job['job_id']}")
    assert (now["metadata"], now["timeout_seconds"], now["scheduled_at"]) == ({"a": 3}, None, None)
    expect(page.locator(".timeline .what").first).to_have_text("Edited")


def test_delete_a_workspace_asks_for_its_name(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    made = worker.call("POST", "/workspace", {"name": "Old"})
    log_in(page, demo, f"/{made['workspace_id']}/settings")
    page.get_by_role("button", name="Delete the workspace…").click()
    button = page.get_by_role("dialog").get_by_role("button", name="Delete the workspace")
    expect(button).to_be_disabled()
    page.get_by_label("Enter the name").fill("Old")
    button.click()
    expect(page.get_by_role("heading", name="Workspaces")).to_be_visible()
    expect(page.get_by_role("link", name="Old", exact=True)).to_have_count(0)


def test_change_the_own_password(page: Page, demo: Service) -> None:
    log_in(page, demo, "/account")
    page.get_by_label("Current password").fill("demo-password")
    page.get_by_label("New password", exact=True).fill("a new password")
    page.get_by_label("New password again").fill("another password")
    page.get_by_role("button", name="Change the password").click()
    expect(page.get_by_text("The two passwords differ.")).to_be_visible()
    page.get_by_label("New password again").fill("a new password")
    page.get_by_role("button", name="Change the password").click()
    expect(page.locator("#said")).to_have_text("Password changed")
    page.goto(f"{demo.url}/dashboard/1/jobs")
    expect(page.get_by_text("No jobs yet.")).to_be_visible()


def test_administrator_creates_disables_and_enables_users(page: Page, demo: Service) -> None:
    log_in(page, demo, "/users")
    page.get_by_label("Username").fill("carol")
    page.get_by_label("Password").fill("carol-password")
    page.get_by_role("button", name="Create user").click()
    row = rows(page).filter(has_text="carol")
    expect(row).to_contain_text("active")
    row.get_by_role("button", name="Disable").click()
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    expect(row).to_contain_text("disabled")
    row.get_by_role("button", name="Enable").click()
    page.get_by_role("dialog").get_by_role("button", name="Enable").click()
    expect(row).to_contain_text("active")


def test_create_again_after_a_lost_answer_makes_one_job(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    with watched(browser, demo.url, "Failed to load resource") as page:
        log_in(page, demo, "/1/jobs/new")
        page.get_by_label("Type", exact=True).fill("once")
        lost: list[Any] = []

        def lose(route: Any) -> None:
            if route.request.method != "POST" or lost:
                return route.fallback()
            lost.append(route.fetch())
            return route.abort()

        page.route("**/workspace/1/jobs", lose)
        page.get_by_role("button", name="Create job").click()
        expect(page.get_by_text("The service does not respond.")).to_be_visible()
        page.get_by_role("button", name="Create job").click()
        expect(badge(page, "pending")).to_be_visible()
    assert total(worker, "job_type=once") == 1
