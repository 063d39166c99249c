"""Navigation in the dashboard: Back, the search, the switcher, shortcuts, themes and titles."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from ..served import Service
from .pages import Worker, follow, log_in, rows, watched


def test_back_restores_the_scroll_position_and_the_focus(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(50)
    log_in(page, demo, "/1/jobs")
    page.set_viewport_size({"width": 1280, "height": 500})
    link = rows(page).nth(35).get_by_role("link")
    link.focus()
    page.evaluate("scrollTo(0, 700)")
    page.keyboard.press("Enter")
    expect(page.locator(".job")).to_be_visible()
    assert page.evaluate("scrollY") == 0
    page.go_back()
    expect(rows(page)).to_have_count(50)
    assert page.evaluate("scrollY") == 700
    expect(link).to_be_focused()
    page.go_forward()
    expect(page.locator(".job")).to_be_visible()
    page.go_back()
    expect(rows(page)).to_have_count(50)
    page.reload()
    expect(rows(page)).to_have_count(50)
    assert page.evaluate("scrollY") == 700


def test_search_finds_a_job_by_id_a_type_and_the_text_of_an_error(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    (job,) = worker.create(job_type="email")
    worker.fail("disk is full", job_type="etl")
    log_in(page, demo, "/1")
    page.keyboard.press("/")
    search = page.get_by_role("combobox", name="Search")
    expect(search).to_be_focused()
    page.keyboard.type("ema")
    expect(page.get_by_role("option")).to_have_text(
        ["email job type, 1", "ema in the text of errors"]
    )
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option").first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    assert page.url.endswith("?job_type=email")
    search.fill(f"  see {job['job_id']} ")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="email")).to_be_visible()
    search.fill("is full")
    page.get_by_role("option", name="is full").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("disk is full")
    search.fill("x")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(search).to_have_value("")


def test_switcher_shows_the_counts_of_workspaces(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.call("POST", "/workspace", {"name": "Billing"})
    worker.fail("a", "b")
    worker.create(3)
    log_in(page, demo)
    demo_row = rows(page).filter(has_text="Demo")
    expect(demo_row.locator(".badge.pending")).to_contain_text("3")
    expect(demo_row.locator(".badge.failed")).to_contain_text("2")
    follow(page, "Demo", "Jobs")
    page.locator("#menu-switcher").click()
    expect(page.locator(".sheet li")).to_have_count(2)
    expect(page.locator(".sheet li").filter(has_text="Demo").locator(".failed")).to_contain_text(
        "2"
    )
    page.keyboard.press("Escape")
    expect(page.locator(".sheet")).to_have_count(0)
    expect(page.locator("#menu-switcher")).to_be_focused()
    page.keyboard.press("Enter")
    page.locator(".sheet").get_by_role("link", name="Billing").click()
    expect(page.get_by_text("No jobs yet.")).to_be_visible()
    expect(page.locator("#menu-switcher")).to_contain_text("Billing")


def test_shortcuts_work_and_are_listed(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(3)
    log_in(page, demo, "/1/jobs")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    for text in ("Next row", "Select the row", "Create a job", "Errors"):
        expect(dialog.get_by_text(text, exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    # At once after a dialog was closed: its close event comes later.
    page.keyboard.press("?")
    expect(dialog).to_be_visible()
    page.evaluate(
        """() => {
          document.querySelector("dialog").close();
          const key = { key: "?", bubbles: true };
          document.body.dispatchEvent(new KeyboardEvent("keydown", key));
        }"""
    )
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.keyboard.press("j")
    expect(rows(page).nth(0).get_by_role("link")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(rows(page).nth(1).get_by_role("checkbox")).to_be_checked()
    page.keyboard.press("k")
    expect(rows(page).nth(0).get_by_role("link")).to_be_focused()
    for keys, heading in (
        ("gt", "Job types"),
        ("gr", "Workers"),
        ("ge", "Errors"),
        ("ga", "Activity"),
        ("go", "Overview"),
        ("gj", "Jobs"),
    ):
        for key in keys:
            page.keyboard.press(key)
        expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()
    page.keyboard.press("c")
    expect(page.get_by_role("heading", name="Create job")).to_be_visible()
    # Not while one types.
    page.get_by_label("Type", exact=True).press("?")
    page.keyboard.type("ge")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_label("Type", exact=True)).to_have_value("?ge")


def test_theme_is_chosen_kept_and_used_by_all_pages(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, color_scheme="light") as page:
        background = "getComputedStyle(document.documentElement).backgroundColor"
        log_in(page, demo)
        light = page.evaluate(background)
        page.locator("#menu-user").click()
        page.locator(".themes label", has_text="dark").click()
        dark = page.evaluate(background)
        assert dark != light
        page.reload()
        expect(page.get_by_role("heading", name="Workspaces")).to_be_visible()
        assert page.evaluate(background) == dark
        page.locator("#menu-user").click()
        page.get_by_role("link", name="API documentation").click()
        expect(page.locator(".info .title")).to_be_visible()
        assert page.evaluate("document.documentElement.className") == "dark-mode"
        page.get_by_role("link", name="Dashboard").click()
        expect(page.get_by_role("heading", name="Workspaces")).to_be_visible()
        page.locator("#menu-user").click()
        page.locator(".themes label", has_text="system").click()
        assert page.evaluate(background) == light


def test_titles_name_the_page_and_the_workspace(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    log_in(page, demo)
    expect(page).to_have_title("Workspaces · jobapi")
    for path, title in (
        ("", "Overview"),
        ("/jobs", "Jobs"),
        (f"/jobs/{job['job_id']}", "pending · etl"),
        ("/errors", "Errors"),
    ):
        page.goto(f"{demo.url}/dashboard/1{path}")
        expect(page).to_have_title(f"{title} · Demo · jobapi")
    assert page.locator("#top").get_by_text("Jobs", exact=True).count() == 1


def test_json_is_folded_searched_and_copied(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    many = {f"key {n}": {"value": n, "list": [n, n + 1]} for n in range(60)}
    (job,) = worker.create(metadata={"many": many, "big": 9007199254740993})
    with watched(browser, demo.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        log_in(page, demo, f"/1/jobs/{job['job_id']}")
        tree = page.get_by_role("region", name="Metadata")
        expect(tree).to_contain_text("60 }")
        expect(tree).not_to_contain_text("key 17")
        tree.locator("summary", has_text="many").click()
        expect(tree).to_contain_text("key 17")
        page.get_by_label("Search in metadata").fill("key 42")
        expect(tree.locator("mark")).to_have_text(["key 42"])
        page.get_by_label("Search in metadata").fill("nowhere")
        expect(page.get_by_text("Not found.")).to_be_visible()
        page.locator(".json").first.get_by_role("button", name="Copy").click()
        expect(page.locator("#said")).to_have_text("Copied")
        assert '"big": 9007199254740993' in page.evaluate("navigator.clipboard.readText()")


def test_running_jobs_are_sorted_by_start_with_the_time_so_far_and_an_estimate(
    page: Page, demo: Service
) -> None:
    worker = Worker(demo)
    worker.create(2, estimated_duration=300)
    first = worker.claim()[0]["job_id"]
    page.wait_for_timeout(1100)
    worker.claim(worker="w-2")
    log_in(page, demo, "/1/jobs")
    page.get_by_label("Sort").select_option("started_at asc")
    expect(page.get_by_role("columnheader", name="Started")).to_be_visible()
    expect(rows(page).first.locator(".id")).to_have_text(first[-8:])
    expect(rows(page).first).to_contain_text("of ~5 min")
    expect(rows(page).first).to_contain_text("w-1")
    expect(rows(page).nth(1)).to_contain_text("w-2")
    took = rows(page).first.locator("td[data-label='Run time']")
    before = took.inner_text()
    expect(took).not_to_have_text(before)
    assert page.url.endswith("?sort=started_at&order=asc&status=running")
    rows(page).first.get_by_role("link").click()
    expect(page.locator(".facts")).to_contain_text("about 4 min")
