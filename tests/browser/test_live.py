"""Live data of the dashboard: what pages show while jobs change, and while a stream is silent."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from ..served import Service
from .pages import Worker, badge, log_in, rows, watched

TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 3\nValueError: bad row 17\n'


def test_list_without_a_stream_reads_again_after_ten_seconds(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create()
    log_in(page, demo)
    # A stream that is open and says nothing, whatever the reason.
    page.route("**/events/stream", lambda route: None)
    page.goto(f"{demo.url}/dashboard/1/jobs")
    expect(rows(page).locator(".badge")).to_have_text("pending")
    worker.call("POST", f"/workspace/1/jobs/{worker.claim()[0]['job_id']}/cancel")
    expect(rows(page).locator(".badge")).to_have_text("cancelled", timeout=13_000)
    expect(page.locator(".updated")).to_contain_text("Updated")


def test_page_says_when_it_was_last_updated_and_warns_if_that_is_long_ago(
    browser: Any, demo: Service
) -> None:
    Worker(demo).create()
    with watched(browser, demo.url, "Failed to load resource") as page:
        log_in(page, demo, "/1/jobs")
        page.clock.install()
        expect(page.locator(".updated")).to_contain_text("Updated")
        page.context.set_offline(True)
        page.clock.run_for(30_000)
        expect(page.locator(".updated.late")).to_contain_text("Not updated since")
        expect(page.locator("#trouble")).to_contain_text("You are offline.")


def test_row_always_shows_one_consistent_job(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.fail(TRACEBACK)
    log_in(page, demo, "/1/jobs?status=failed")
    row = rows(page)
    expect(row).to_contain_text("ValueError: bad row 17")
    expect(row).not_to_contain_text("Traceback")
    # Note every text that the row has from here on.
    page.evaluate(
        """() => {
        window.texts = [];
        const row = document.querySelector("main tbody tr");
        const note = () => texts.push(row.innerText);
        new MutationObserver(note).observe(row, {
          subtree: true, childList: true, characterData: true,
        });
    }"""
    )
    worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/retry")
    expect(row.locator(".badge")).to_contain_text("pending")
    (again,) = worker.claim()
    expect(row.locator(".badge")).to_contain_text("running")
    worker.report(again, status="success")
    expect(row.locator(".badge")).to_contain_text("success")
    # The job is not failed any more: it stays in its place, and is dimmed.
    expect(page.locator("tr.gone")).to_have_count(1)
    texts: list[str] = page.evaluate("texts")
    assert texts
    for text in texts:
        failed = "failed" in text
        assert ("ValueError" in text) == failed, text


def test_history_of_many_events_is_newest_first_and_goes_on_live(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (created,) = worker.create(max_retries=100)
    (job,) = worker.claim()
    # Each report crosses a multiple of ten percent: an event.
    for n in range(120):
        worker.report(job, progress_percent=10 + 10 * (n % 2))
    log_in(page, demo, f"/1/jobs/{created['job_id']}")
    what = page.locator(".timeline .what")
    expect(what).to_have_count(100)
    expect(what.first).to_have_text("Progress: 20 %")
    worker.report(job, status="failed", error="the newest", retryable=False)
    expect(badge(page, "failed")).to_be_visible()
    expect(what.first).to_have_text("Failed")
    expect(page.locator(".timeline li").first).to_contain_text("the newest")
    page.get_by_role("button", name="Show older events").click()
    expect(what).to_have_count(123)
    expect(what.last).to_have_text("Created")
    expect(page.get_by_role("button", name="Show older events")).to_have_count(0)


def test_job_page_shows_its_cause_once_and_whole_errors_folded(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(max_retries=2)
    (job,) = worker.claim()
    worker.report(job, status="failed", error=TRACEBACK, retry_after=0)
    (job,) = worker.claim()
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    # It runs again: the error is not that of now.
    expect(page.locator(".cause h2")).to_have_text("Error of the last attempt")
    worker.report(job, status="failed", error=TRACEBACK.replace("17", "18"), retryable=False)
    expect(page.locator(".cause h2")).to_have_text("Error")
    expect(page.locator(".cause p").first).to_have_text("ValueError: bad row 18")
    expect(page.locator("pre.error:visible")).to_have_count(0)
    attempts = page.locator(".attempts tbody tr")
    expect(attempts.locator("td:first-child")).to_have_text(["2", "1"])
    attempts.nth(1).locator("summary", has_text="ValueError: bad row 17").click()
    expect(attempts.nth(1).locator("pre")).to_contain_text("Traceback")
    page.get_by_role("link", name="Jobs that failed in the same way").click()
    expect(rows(page)).to_have_count(1)


def test_numbers_of_a_chart_keep_their_place(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.create(3)
    log_in(page, demo, "/1?window=hour")
    page.locator("figure").first.get_by_text("Numbers").click()
    box = page.locator("figure .scroll")
    box.evaluate("(box) => { box.style.maxHeight = '40px'; box.scrollTop = 30; }")
    place = box.evaluate("(box) => box.scrollTop")
    assert place > 0
    worker.create(4)
    expect(page.locator(".tile.pending strong")).to_have_text("7", timeout=10_000)
    assert box.evaluate("(box) => box.scrollTop") == place


def test_bytes_of_a_list_of_running_jobs_are_in_proportion(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    for _ in range(4):
        worker.create(10, metadata={"text": "x" * 60_000})
    worker.create(9)
    claimed = worker.claim(49)
    log_in(page, demo, "/1/jobs")
    expect(rows(page).locator(".badge.running")).to_have_count(49)
    page.wait_for_timeout(1500)
    wire = page.context.new_cdp_session(page)
    wire.send("Network.enable")
    sent: list[int] = []
    wire.on("Network.dataReceived", lambda each: sent.append(int(each["dataLength"])))
    worker.report(claimed[0], progress_percent=55)
    expect(rows(page).filter(has_text="55 %")).to_have_count(1)
    page.wait_for_timeout(7000)
    # Two or three reads of 49 rows without their documents; before, 13.6 MB.
    assert sum(sent) < 150_000


def test_tabs_of_a_workspace_share_one_stream(browser: Any, demo: Service) -> None:
    worker = Worker(demo)
    worker.create()
    with watched(browser, demo.url) as page:
        streams: list[str] = []
        page.context.on(
            "request", lambda r: streams.append(r.url) if r.url.endswith("/stream") else None
        )
        log_in(page, demo, "/1/jobs")
        expect(rows(page)).to_have_count(1)
        pages = [page]
        for _ in range(7):
            pages.append(page.context.new_page())
            pages[-1].goto(f"{demo.url}/dashboard/1/jobs")
            expect(rows(pages[-1])).to_have_count(1)
        page.wait_for_timeout(1000)
        assert len(streams) == 1
        worker.claim()
        for each in pages:
            expect(rows(each).locator(".badge.running")).to_have_count(1, timeout=3000)
        # Another tab takes over when the one with the stream is closed.
        pages.pop(0).close()
        (job,) = worker.create()
        worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/cancel")
        for each in pages:
            expect(each.get_by_role("button", name="1 new")).to_be_visible(timeout=13_000)
        assert len(streams) == 2


def test_no_id_is_shown_while_names_are_read(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.call("POST", "/workspace/1/pause", {"reason": "upgrade"})
    held: list[Any] = []
    page.route("**/workspace/1/members*", lambda route: held.append(route))
    by = rows(page).locator("td[data-label='By']")
    log_in(page, demo, "/1/activity?show=flow")
    expect(by).to_have_text("…")
    held.pop().continue_()
    expect(by).to_have_text("demo")
    # A user who is no longer a member keeps the id.
    page.reload()
    expect(by).to_have_text("…")
    held.pop().fulfill(json={"data": [], "pagination": {"next_cursor": None}})
    expect(by).to_have_text("user 1")


def test_member_who_is_added_later_is_shown_by_name(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    log_in(page, demo, f"/1/jobs/{job['job_id']}")
    expect(page.locator(".timeline li").first).to_contain_text("by demo")
    user = worker.call("POST", "/users", {"username": "later", "password": "a long password"})
    worker.call("POST", "/workspace/1/members", {"username": "later", "role": "member"})
    key = worker.call("POST", "/workspace/1/keys", {"name": "ci key", "role": "member"})["key"]
    page.wait_for_timeout(10_500)
    token = worker.http.post(
        "/auth/login", json={"username": "later", "password": "a long password"}
    ).json()["access_token"]
    path = f"/workspace/1/jobs/{job['job_id']}"
    for bearer in (token, key):
        answer = worker.http.patch(
            path,
            json={"priority": "high" if bearer == token else "low"},
            headers={"Authorization": f"Bearer {bearer}"},
        )
        assert answer.is_success, answer.text
    expect(page.locator(".timeline")).to_contain_text("by later", timeout=15_000)
    expect(page.locator(".timeline")).to_contain_text("by API key ci key", timeout=15_000)
    assert f"user {user['user_id']}" not in page.locator(".timeline").inner_text()


def test_failures_are_grouped_by_cause_and_retried_by_group(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    worker.fail(*(TRACEBACK.replace("17", str(n)) for n in range(5)))
    worker.fail("KeyError: 'a'", job_type="mail")
    log_in(page, demo, "/1/errors")
    groups = rows(page)
    expect(groups).to_have_count(2)
    expect(groups.first).to_contain_text("ValueError: bad row")
    expect(groups.first.locator("strong")).to_have_text("5")
    worker.fail("ValueError: bad row 99")
    expect(groups.first.locator("strong")).to_have_text("6", timeout=13_000)
    groups.first.get_by_role("button", name="Retry all").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("6 jobs will be retried")
    dialog.get_by_role("button", name="Retry 6 jobs").click()
    expect(dialog).to_contain_text("6 retried.")
    dialog.get_by_role("button", name="Close").click()
    expect(groups).to_have_count(1)
    groups.get_by_role("link", name="KeyError").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    expect(rows(page)).to_have_count(1)
    expect(page.locator(".chip")).to_contain_text("One group of errors")


def test_activity_shows_who_did_what_newest_first(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    (job,) = worker.create()
    worker.call("POST", f"/workspace/1/jobs/{job['job_id']}/cancel", {"reason": "wrong file"})
    worker.call("POST", "/workspace/1/keys", {"name": "ci", "role": "viewer"})
    log_in(page, demo, "/1/activity")
    what = rows(page).locator("td:nth-child(2)")
    expect(what.nth(0)).to_have_text("Key created")
    expect(what.nth(1)).to_have_text("Cancelled")
    expect(rows(page).nth(1)).to_contain_text("reason: wrong file")
    expect(rows(page).nth(1)).to_contain_text("demo")
    worker.create()
    page.get_by_role("button", name="1 new").click()
    expect(what.nth(0)).to_have_text("Created")
    page.get_by_label("Show").select_option("people")
    expect(rows(page).first).to_contain_text("Key created")
    assert "show=people" in page.url
