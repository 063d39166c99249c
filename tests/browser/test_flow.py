"""Flow control in the dashboard: job types, workers, pauses, keys, and why a job waits."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from ..served import Service, jobapi
from .pages import REFUSED, Worker, badge, log_in, picture, rows, watched

EXPLAINED = {
    "reasons": [
        {"code": "type-paused", "detail": "The job type etl is paused: disk full"},
        {"code": "behind-others", "detail": "3 jobs of its type come first.", "ahead": 3},
    ],
    "ahead": 3,
    "ahead_is_capped": False,
    "live_workers": 2,
    "estimated_start_at": "2040-01-01T00:00:00Z",
    "estimated_completion_at": None,
    "estimate_basis": "Too little history: no job of this type has succeeded.",
}


def explain(page: Page, **changes: Any) -> list[str]:
    """Answer for the service with ``EXPLAINED`` while a job is pending; notes the requests."""
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        path = route.request.url.removesuffix("/explain")
        headers = {"Authorization": route.request.headers["authorization"]}
        job = page.request.get(path, headers=headers).json()
        status = job["status"]
        body = {**EXPLAINED, **changes, "job_id": job["job_id"], "status": status}
        if status != "pending":
            body["reasons"] = [
                {"code": status, "detail": f"User 1 made it {status}.", "actor": "user:1"}
            ]
            body |= {"ahead": None, "estimated_start_at": None}
        route.fulfill(json=body)

    page.route("**/explain", answer)
    return asked


def field(page: Page, label: str) -> Locator:
    """The field with this label, with its hint and message."""
    return page.locator(".field", has=page.get_by_label(label, exact=True))


def set_up(worker: Worker, job_type: str, **settings: Any) -> None:
    """Change the settings of a type."""
    worker.call("PATCH", f"/workspace/1/job-types/{job_type}", settings)


def settings_of(worker: Worker, job_type: str) -> dict[str, Any]:
    found: dict[str, Any] = worker.call("GET", f"/workspace/1/job-types/{job_type}")
    return found


def add_user(demo: Service, worker: Worker, name: str, role: str) -> None:
    """A user with the demo password, as a member."""
    jobapi("users", "create", name, "--password", "demo-password", env=demo.env)
    worker.call("POST", "/workspace/1/members", {"username": name, "role": role})


def test_job_types_show_live_counts_limits_and_workers(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(3)
    set_up(
        worker,
        "mail",
        max_running=20,
        rate_limit={"starts": 100, "seconds": 60},
        max_retries=0,
        start_within_seconds=3600,
    )
    log_in(page, demo, "/1/job-types")
    etl, mail = rows(page).nth(0), rows(page).nth(1)
    expect(etl.locator("td[data-label=Pending]")).to_have_text("3")
    expect(etl.locator("td[data-label=Running]")).to_have_text("0")
    expect(etl.locator("td[data-label='Limits and defaults']")).to_have_text("\N{EN DASH}")
    expect(mail.locator("td[data-label=Running]")).to_have_text("0 of 20")
    expect(mail.locator("td[data-label='Oldest due']")).to_have_text("\N{EN DASH}")
    expect(mail.locator("td[data-label='Limits and defaults']")).to_have_text(
        "100 starts per 1 min, start within 1 h, 0 retries"
    )
    worker.claim(2, job_types=["etl"])
    expect(etl.locator("td[data-label=Running]")).to_have_text("2", timeout=9000)
    expect(etl.locator("td[data-label=Pending]")).to_have_text("1")
    expect(etl.locator("td[data-label='Live workers']")).to_have_text("1")
    etl.get_by_role("link", name="1 pending").click()
    expect(rows(page)).to_have_count(1)
    assert page.url.endswith("?job_type=etl&status=pending")


def test_pause_and_resume_a_type_from_its_row_with_the_keyboard(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(1)
    log_in(page, demo, "/1/job-types")
    row = rows(page)
    row.get_by_role("button", name="Pause etl").press("Enter")
    dialog = page.get_by_role("dialog", name="Pause etl?")
    expect(dialog.get_by_role("heading")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("disk full")
    dialog.get_by_role("button", name="Pause", exact=True).press("Enter")
    expect(row.locator(".badge")).to_have_text("paused")
    expect(row).to_contain_text("disk full")
    expect(page.locator("#said")).to_have_text("etl is paused")
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.closest('tr') !== null")
    assert worker.claim() == []
    row.get_by_role("button", name="Resume etl").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Resume", exact=True).click()
    expect(row.locator(".badge")).to_have_text("active")
    expect(row).not_to_contain_text("disk full")
    assert len(worker.claim()) == 1
    assert settings_of(worker, "etl")["paused_reason"] is None


def test_pause_that_is_refused_shows_the_error_in_the_dialog(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(1)
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/job-types")
        problem = {"status": 409, "detail": "Not now."}
        page.route("**/pause", lambda route: route.fulfill(status=409, json=problem))
        page.get_by_role("button", name="Pause etl").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Pause", exact=True).click()
        expect(dialog.get_by_role("alert")).to_have_text("Not now.")
        expect(rows(page).locator(".badge")).to_have_text("active")


def test_edit_a_type_changes_what_was_changed_and_empty_returns_to_the_default(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    worker.create(1)
    set_up(worker, "etl", max_running=5, max_pending=100, priority="high", timeout_seconds=60)
    log_in(page, demo, "/1/job-types")
    page.get_by_role("button", name="Edit etl").click()
    dialog = page.get_by_role("dialog", name="Settings of etl")
    expect(dialog.get_by_label("Running jobs", exact=True)).to_have_value("5")
    picture(page, "job-type-dialog")
    # What another owner changes meanwhile stays.
    set_up(worker, "etl", max_retries=7)
    dialog.get_by_label("Running jobs", exact=True).fill("")
    dialog.get_by_label("Running jobs per concurrency key").fill("1")
    dialog.get_by_label("Rate limit: starts").fill("10")
    dialog.get_by_label("Rate limit: period in seconds").fill("60")
    dialog.get_by_label("Priority").select_option("")
    dialog.get_by_label("Start within, in seconds").fill("600")
    dialog.get_by_label("Backoff before the first retry").fill("2")
    dialog.get_by_label("Longest backoff").fill("30")
    dialog.get_by_label("Paused:").check()
    dialog.get_by_label("Reason of the pause").fill("later")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(rows(page).locator(".badge")).to_have_text("paused")
    expect(rows(page)).to_contain_text("max 1 running per key, 10 starts per 1 min")
    found = settings_of(worker, "etl")
    assert {name: found[name] for name in found if name not in ("oldest_due_seconds",)} == {
        "job_type": "etl",
        "paused": True,
        "paused_reason": "later",
        "max_running": None,
        "max_running_per_key": 1,
        "rate_limit": {"starts": 10, "seconds": 60},
        "max_pending": 100,
        "start_within_seconds": 600,
        "priority": None,
        "max_retries": 7,
        "timeout_seconds": 60,
        "retry_backoff_seconds": 2,
        "retry_backoff_max_seconds": 30,
        "pending": 1,
        "running": 0,
        "live_workers": 0,
    }


def test_edit_a_type_shows_errors_at_the_fields(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(1)
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/job-types")
        page.get_by_role("button", name="Edit etl").click()
        save = page.get_by_role("dialog").get_by_role("button", name="Save")
        page.get_by_label("Rate limit: starts").fill("5")
        save.click()
        expect(field(page, "Rate limit: period in seconds")).to_contain_text("both numbers")
        page.get_by_label("Rate limit: period in seconds").fill("0")
        page.get_by_label("Running jobs", exact=True).fill("5000")
        page.get_by_label("Reason of the pause").fill("why")
        save.click()
        expect(field(page, "Running jobs")).to_contain_text("1000")
        expect(field(page, "Rate limit: period in seconds")).to_contain_text("86400")
        assert page.evaluate("document.activeElement.name") == "max_running"
        page.get_by_label("Rate limit: period in seconds").fill("1")
        page.get_by_label("Running jobs", exact=True).fill("")
        save.click()
        expect(field(page, "Reason of the pause")).to_contain_text("Only together with paused")
    assert settings_of(worker, "etl")["rate_limit"] is None


def test_add_a_type_sets_it_up_before_its_first_job(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    log_in(page, demo, "/1/job-types")
    expect(page.get_by_text("No job types yet.")).to_be_visible()
    page.get_by_role("button", name="Add a job type…").click()
    dialog = page.get_by_role("dialog", name="Add a job type")
    save = dialog.get_by_role("button", name="Save")
    dialog.get_by_label("Type", exact=True).fill("no spaces")
    save.click()
    expect(field(page, "Type")).to_contain_text("1 to 100 letters")
    dialog.get_by_label("Type", exact=True).fill("report")
    save.click()
    expect(dialog.get_by_role("alert")).to_contain_text("at least one")
    dialog.get_by_label("Running jobs", exact=True).fill("2")
    save.click()
    expect(rows(page)).to_contain_text("0 of 2")
    assert settings_of(worker, "report")["max_running"] == 2


def test_type_that_a_url_cannot_name_has_no_actions(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(1)
    names = {"dot": ".", "dots": ".."}
    for name in names:
        worker.create(1, job_type=name)

    def rename(route: Any) -> None:
        # Jobs of such types may be there from before they were refused.
        answer = route.fetch()
        types = answer.json()
        for each in types["data"]:
            each["job_type"] = names.get(each["job_type"], each["job_type"])
        route.fulfill(response=answer, json=types)

    page.route(re.compile(r"/workspace/1/job-types(\?|$)"), rename)
    log_in(page, demo, "/1/job-types")
    expect(rows(page)).to_have_count(3)
    # A browser would send POST /workspace/1/job-types/../pause to /workspace/1/pause.
    expect(page.get_by_role("button", name="Pause")).to_have_count(1)
    expect(page.get_by_role("button", name="Edit")).to_have_count(1)
    page.get_by_role("button", name="Add a job type…").click()
    page.get_by_role("dialog").get_by_label("Type", exact=True).fill("..")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(field(page, "Type")).to_contain_text("cannot have settings")


def test_job_page_explains_in_the_words_of_the_service(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    worker.call("POST", "/workspace/1/job-types/etl/pause", {"reason": "disk full"})
    (scheduled,) = worker.create(job_type="later", scheduled_at="2040-01-01T00:00:00Z")
    (failed,) = worker.fail("Traceback:\n  x\nValueError: bad row", job_type="mail")
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    reasons = page.locator(".explained").get_by_role("listitem")
    expect(reasons.first).to_contain_text("etl is paused: disk full")
    worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/cancel", {"reason": "wrong file"})
    expect(reasons).to_have_text("demo cancelled it: wrong file")
    page.goto(f"{demo.url}/dashboard/1/jobs/{scheduled['job_id']}")
    expect(reasons.first).to_have_text("It is scheduled for 1 Jan 2040, 00:00:00 UTC.")
    page.goto(f"{demo.url}/dashboard/1/jobs/{failed['job_id']}")
    expect(reasons).to_have_text("demo (worker w-1) reported a failure.")


@pytest.mark.parametrize(("role", "pauses"), [("viewer", False), ("member", True)])
def test_actions_on_types_depend_on_the_role(
    browser: Any, demo: Service, role: str, pauses: bool
) -> None:
    worker = Worker(demo)
    worker.create(1)
    add_user(demo, worker, "mia", role)
    with watched(browser, demo.url) as page:
        log_in(page, demo, "/1/job-types", "mia")
        expect(rows(page)).to_have_count(1)
        expect(page.get_by_role("button", name="Pause etl")).to_have_count(int(pauses))
        for name in ("Edit etl", "Add a job type…"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)
        page.goto(f"{demo.url}/dashboard/1/workers")
        expect(page.get_by_text("No worker has claimed jobs")).to_be_visible()


def test_workers_show_who_claims_what_and_how_much_runs(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(4)
    key = worker.call("POST", "/workspace/1/keys", {"name": "ci key", "role": "worker"})["key"]
    worker.claim(2, worker="w-1", job_types=["etl", "mail"])
    # However long the page takes, the worker was seen just now.
    page.clock.set_fixed_time(datetime.now(UTC))
    log_in(page, demo, "/1/workers")
    first = rows(page)
    expect(first).to_have_count(1)
    for label, text in (
        ("Name", "w-1"),
        ("State", "live"),
        ("Job types", "etl, mail"),
        ("Running", "2"),
        ("Actor", "demo"),
    ):
        expect(first.locator(f"td[data-label='{label}']")).to_have_text(text)
    expect(first.locator("td[data-label='Last seen'] .hint")).to_contain_text("now")
    # Without a name it is called as its key.
    answer = worker.http.post(
        "/workspace/1/jobs/claim", json={}, headers={"Authorization": f"Bearer {key}"}
    )
    assert answer.is_success
    expect(rows(page)).to_have_count(2, timeout=10_000)
    expect(rows(page).first.locator("td[data-label=Name]")).to_have_text("ci key")
    expect(rows(page).first.locator("td[data-label=Actor]")).to_have_text("API key ci key")
    expect(rows(page).first.locator("td[data-label='Job types']")).to_have_text("all")


def test_pause_the_workspace_shows_a_banner_on_every_page(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create(1)
    add_user(demo, worker, "vera", "viewer")
    with watched(browser, demo.url) as page, watched(browser, demo.url) as other:
        log_in(other, demo, "/1/members", "vera")
        banner = page.locator("#paused")
        log_in(page, demo, "/1/settings")
        expect(banner).to_be_empty()
        page.get_by_label("Name").fill("Not saved yet")
        page.get_by_role("button", name="Pause the workspace…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("database upgrade")
        dialog.get_by_role("button", name="Pause the workspace").click()
        expect(banner).to_contain_text("Reason: database upgrade")
        expect(page.get_by_label("Name")).to_have_value("Not saved yet")
        assert worker.claim() == []
        explain(page)
        for path in ("/1", "/1/jobs", f"/1/jobs/{job['job_id']}", "/1/workers", "/1/keys"):
            page.goto(f"{demo.url}/dashboard{path}")
            expect(banner).to_contain_text("database upgrade")
        # A page that is open already notices it, too; only owners can resume.
        expect(other.locator("#paused")).to_contain_text("database upgrade")
        expect(other.locator("#paused").get_by_role("link")).to_have_count(0)
        page.goto(f"{demo.url}/dashboard")
        expect(page.get_by_role("heading", name="Workspaces")).to_be_visible()
        expect(banner).to_be_empty()
        page.goto(f"{demo.url}/dashboard/1/jobs")
        banner.get_by_role("link", name="settings").click()
        page.get_by_role("button", name="Resume the workspace…").click()
        dialog.get_by_role("button", name="Resume the workspace").click()
        expect(banner).to_be_empty()
        expect(other.locator("#paused")).to_be_empty()
    assert len(worker.claim()) == 1


def test_page_that_follows_events_shows_a_pause_at_once(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(1)
    streams: list[str] = []
    page.on("response", lambda r: streams.append(r.url) if r.url.endswith("/stream") else None)
    log_in(page, demo, "/1/jobs")
    expect(rows(page)).to_have_count(1)
    while not streams:
        page.wait_for_timeout(100)
    worker.call("POST", "/workspace/1/pause", {"reason": "upgrade"})
    expect(page.locator("#paused")).to_contain_text("upgrade", timeout=4000)
    worker.call("POST", "/workspace/1/resume")
    expect(page.locator("#paused")).to_be_empty(timeout=4000)


def test_priority_ageing_is_saved_and_its_errors_are_at_the_field(
    browser: Any, demo: Service
) -> None:
    worker = Worker(demo)
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/settings")
        ageing = page.get_by_label("Priority ageing, in seconds")
        save = page.get_by_role("button", name="Save")
        ageing.fill("0")
        save.click()
        expect(field(page, "Priority ageing, in seconds").locator(".wrong")).to_contain_text(
            "604800"
        )
        ageing.fill("600")
        save.click()
        expect(page.locator("#said")).to_have_text("Saved")
        assert worker.call("GET", "/workspace/1")["priority_ageing_seconds"] == 600
        ageing.fill("")
        with page.expect_response(lambda answer: answer.request.method == "PATCH"):
            save.click()
        page.reload()
        expect(ageing).to_have_value("")
        assert worker.call("GET", "/workspace/1")["priority_ageing_seconds"] is None


def test_activity_shows_pauses_and_changed_settings(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.call("POST", "/workspace/1/pause", {"reason": "upgrade"})
    worker.call("POST", "/workspace/1/resume")
    set_up(worker, "etl", max_running=3)
    set_up(worker, "etl", max_running=None)
    worker.call("POST", "/workspace/1/job-types/etl/pause", {"reason": "disk full"})
    worker.call("POST", "/workspace/1/job-types/etl/resume")
    log_in(page, demo, "/1/activity")
    page.get_by_label("Show").select_option("flow")
    expect(rows(page)).to_have_count(6)

    def expect_column(label: str, *texts: str) -> None:
        expect(rows(page).locator(f"td[data-label='{label}']")).to_have_text(texts)

    expect_column(
        "What",
        "Job type resumed",
        "Job type paused",
        "Job type changed",
        "Job type changed",
        "Workspace resumed",
        "Workspace paused",
    )
    expect_column("On", *["etl"] * 4, *["the workspace"] * 2)
    expect_column(
        "Details",
        "",
        "reason: disk full",
        "max running: default",
        "max running: 3",
        "",
        "reason: upgrade",
    )
    expect_column("By", *["demo"] * 6)


def test_job_page_says_why_it_waits_and_asks_every_few_seconds(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    asked = explain(page)
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    section = page.locator(".explained")
    expect(section.get_by_role("heading")).to_have_text("Why is it waiting?")
    expect(section.get_by_role("listitem")).to_have_text(
        ["The job type etl is paused: disk full Go to job types", "3 jobs of its type come first."]
    )
    expect(section).to_contain_text("Jobs ahead3")
    expect(section).to_contain_text("Estimated start1 Jan 2040")
    expect(section).to_contain_text("Too little history")
    page.wait_for_timeout(7000)
    assert 2 <= len(asked) <= 3
    worker.claim()
    expect(badge(page, "running")).to_be_visible()
    expect(section.get_by_role("heading")).to_have_text("How it is running")
    expect(section.get_by_role("listitem")).to_have_text("demo made it running.")
    worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/cancel")
    expect(section.get_by_role("heading")).to_have_text("How it ended")
    # Nothing is asked about an ended job.
    number = len(asked)
    page.wait_for_timeout(6000)
    assert len(asked) == number


def test_job_page_of_a_service_that_cannot_explain_shows_the_rest(
    browser: Any, demo: Service
) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    with watched(browser, demo.url, REFUSED) as page:
        page.route("**/explain", lambda route: route.fulfill(status=404, json={"status": 404}))
        log_in(page, demo, f"/1/jobs/{job['job_id']}")
        expect(page.locator(".facts")).to_contain_text("Retries")
        expect(page.locator(".explained")).to_have_count(0)
        worker.claim()
        expect(badge(page, "running")).to_be_visible()
        expect(page.locator(".explained")).to_have_count(0)


def test_keys_and_expiry_are_set_in_the_form_shown_and_edited(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    explain(page)
    log_in(page, demo, "/1/jobs/new")
    page.get_by_label("Type", exact=True).fill("etl")
    page.get_by_text("More options").click()
    page.get_by_label("Concurrency key").fill("customer & co")
    page.get_by_label("Unique key", exact=True).fill("nightly")
    page.get_by_label("Expires").fill("2040-01-01T10:00:00")
    page.get_by_role("button", name="Create job").click()
    facts = page.locator(".facts")
    expect(facts).to_contain_text("Expires1 Jan 2040, 10:00:00")
    expect(facts).to_contain_text("Unique keynightly")
    (job,) = worker.call("GET", "/workspace/1/jobs?unique_key=nightly")["data"]
    assert (job["concurrency_key"], job["priority"]) == ("customer & co", "normal")
    worker.create(2)
    facts.get_by_role("link", name="customer & co").click()
    expect(page.locator(".chip")).to_contain_text("Concurrency key customer & co")
    expect(rows(page)).to_have_count(1)
    # An action on all matching jobs keeps to the key.
    page.get_by_role("button", name="Cancel all…").click()
    expect(page.get_by_role("dialog")).to_contain_text("1 job will be cancelled")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove this filter").click()
    expect(rows(page)).to_have_count(3)
    page.goto(f"{demo.url}/dashboard/1/jobs/{job['job_id']}/edit")
    page.get_by_label("Concurrency key").fill("")
    page.get_by_label("Unique key", exact=True).fill("hourly")
    page.get_by_label("Expires").fill("")
    page.get_by_role("button", name="Save").click()
    expect(facts).to_contain_text("Unique keyhourly")
    expect(facts).not_to_contain_text("Expires")
    now = worker.call("GET", f"/workspace/1/jobs/{job['job_id']}")
    assert (now["concurrency_key"], now["unique_key"], now["expires_at"]) == (None, "hourly", None)


def test_create_with_the_unique_key_of_a_live_job_says_so(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create(unique_key="once", metadata={"n": 1})

    def create(page: Page, conflict: str) -> None:
        page.goto(f"{demo.url}/dashboard/1/jobs/new")
        page.get_by_label("Type", exact=True).fill("etl")
        page.get_by_label("Metadata").fill('{"n": 2}')
        page.get_by_text("More options").click()
        page.get_by_label("Unique key", exact=True).fill("once")
        page.get_by_label("If a live job").select_option(conflict)
        page.get_by_role("button", name="Create job").click()

    with watched(browser, demo.url, REFUSED) as page:
        explain(page)
        log_in(page, demo, "/1/jobs")
        create(page, "refuse")
        expect(page.get_by_role("alert").filter(has_text="unique_key")).to_be_visible()
        for conflict, text, n in (("keep", "was not changed", 1), ("replace", "new metadata", 2)):
            create(page, conflict)
            expect(page.get_by_role("dialog", name="No job was created")).to_contain_text(text)
            page.get_by_role("dialog").get_by_role("button", name="Close").click()
            assert page.url.endswith(job["job_id"])
            found = worker.call("GET", f"/workspace/1/jobs/{job['job_id']}")
            assert found["metadata"] == {"n": n}


def test_expiry_in_the_past_is_refused_at_its_field(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/jobs/new")
        page.get_by_label("Type", exact=True).fill("etl")
        page.get_by_text("More options").click()
        page.get_by_label("Expires").fill("2020-01-01T10:00:00")
        page.get_by_role("button", name="Create job").click()
        expect(field(page, "Expires").locator(".wrong")).to_be_visible()
        assert page.evaluate("document.activeElement.name") == "expires_at"
