"""Webhooks in the dashboard: created with a secret, tested, watched, sent again, disabled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from standardwebhooks import Webhook

from ..factories import until
from ..receivers import Receiver, answer
from ..served import Service, environment, jobapi
from .pages import REFUSED, Worker, expect_no_horizontal_scrolling, follow, log_in, rows, watched


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Service]:
    """A service whose webhooks may lead to this machine."""
    env = environment(
        JOBAPI_ENV="development",
        JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"),
        JOBAPI_WEBHOOK_ALLOW_HTTP="true",
        JOBAPI_WEBHOOK_PRIVATE_ADDRESSES="true",
    )
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    yield service
    service.close()


def test_webhook_is_created_tested_watched_and_deleted(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    log_in(page, demo, "/1/keys")
    follow(page, "Webhooks", "Webhooks")
    expect(page.get_by_text("No webhooks yet.")).to_be_visible()
    page.get_by_label("URL").fill("https://example.invalid/hooks")
    page.get_by_label("Events (optional)").fill("failed, created")
    page.get_by_label("Include (optional)").fill("result")
    page.get_by_label("Description").fill("Billing")
    page.get_by_role("button", name="Create webhook").click()
    secret = page.get_by_label("The secret", exact=True).input_value()
    assert secret.startswith("whsec_")
    page.get_by_role("button", name="Close").click()
    expect(rows(page)).to_contain_text("created failed")
    expect(rows(page)).to_contain_text("enabled")
    assert secret not in page.content()

    page.get_by_role("link", name="https://example.invalid/hooks").click()
    expect(page.get_by_role("heading", level=1, name="Webhook", exact=True)).to_be_visible()
    expect(page.locator("dl")).to_contain_text("Billing")
    expect(page.get_by_text("No deliveries.")).to_be_visible()
    page.get_by_role("button", name="Send a test").click()
    expect(rows(page)).to_contain_text("webhook.test")
    page.get_by_label("Status").select_option("cancelled")
    expect(page.get_by_text("No deliveries.")).to_be_visible()
    page.get_by_label("Status").select_option("")
    expect(rows(page)).to_have_count(1)

    page.get_by_role("button", name="Edit").click()
    page.get_by_role("dialog").get_by_label("Events (optional)").fill("")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.locator("dl")).to_contain_text("ends of jobs")
    (hook,) = worker.call("GET", "/workspace/1/webhooks")["data"]
    assert (hook["events"], hook["include"]) == (None, ["result"])

    page.get_by_role("button", name="New secret").click()
    page.get_by_role("dialog").get_by_role("button", name="Make a new secret").click()
    other = page.get_by_label("The secret", exact=True).input_value()
    assert other not in ("", secret)
    page.get_by_role("button", name="Close").last.click()
    expect(page.locator("dl")).to_contain_text("Previous secret valid until")

    page.get_by_role("button", name="Disable").click()
    page.get_by_role("dialog").get_by_role("button", name="Disable").click()
    expect(page.locator("dl")).to_contain_text("disabled")
    expect(page.get_by_role("button", name="Send a test")).to_have_count(0)
    page.get_by_role("button", name="Enable").click()
    expect(page.locator("dl")).to_contain_text("enabled")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No webhooks yet.")).to_be_visible()


def test_failed_delivery_is_shown_and_sent_again(page: Page, demo: Service) -> None:
    worker = Worker(demo)
    receiver = Receiver(answer(500, body=b"broken"))
    try:
        made = worker.call("POST", "/workspace/1/webhooks", {"url": receiver.url})
        log_in(page, demo, f"/1/webhooks/{made['webhook_id']}")
        worker.create()
        (job,) = worker.claim()
        worker.report(job, status="success")
        row = rows(page).filter(has_text="job.succeeded")
        expect(row).to_contain_text("500 broken", timeout=15_000)
        expect(page.locator("dl")).to_contain_text("failing since")
        receiver.reply = answer(204)
        row.get_by_role("button", name="Send again").click()
        expect(row.locator(".badge")).to_have_text("success", timeout=15_000)
        until(lambda: len(receiver.got) >= 2)
        got = receiver.got[-1]
        Webhook(made["secret"]).verify(got.body.decode(), dict(got.headers))
        for width in (320, 768, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            expect_no_horizontal_scrolling(page)
    finally:
        receiver.close()


def test_invalid_webhook_shows_messages_at_its_fields(browser: Any, demo: Service) -> None:
    with watched(browser, demo.url, REFUSED) as page:
        log_in(page, demo, "/1/webhooks")
        page.get_by_label("URL").fill("ftp://127.0.0.1/")
        page.get_by_label("Events (optional)").fill("nonsense")
        page.get_by_role("button", name="Create webhook").click()
        field = page.locator(".field", has=page.get_by_label("Events (optional)"))
        expect(field).to_contain_text("Must be one of")
        page.get_by_label("Events (optional)").fill("")
        page.get_by_role("button", name="Create webhook").click()
        url = page.locator(".field", has=page.get_by_label("URL"))
        expect(url).to_contain_text("Use an absolute URL")
