"""Which URLs and addresses are allowed, what events are called, and when deliveries are retried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from jobapi.errors import ValidationFailed
from jobapi.rules.events import EventKind
from jobapi.rules.jobs import JobStatus
from jobapi.rules.webhooks import (
    DISABLED_AFTER,
    MAX_URL_LENGTH,
    MESSAGE_TYPES,
    RETRY_SECONDS,
    Answer,
    DeliveryStatus,
    Disabled,
    is_public,
    message_id,
    secret_of,
    signatures,
    target_of,
    type_of,
    verdict,
    wants,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        ("https://EXAMPLE.com:443/a", "example.com", 443, "/a", "example.com"),
        ("https://example.com:8443/a?b=c", "example.com", 8443, "/a?b=c", "example.com:8443"),
        ("https://xn--bcher-kva.example/%C3%A4", "xn--bcher-kva.example", 443, "/%C3%A4", None),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/", "8.8.8.8"),
        ("https://[2606:4700::1111]:444/", "2606:4700::1111", 444, "/", "[2606:4700::1111]:444"),
        ("https://a-b_c.example.com./x", "a-b_c.example.com.", 443, "/x", None),
        ("https://h/a@b:c/;d=e,f", "h", 443, "/a@b:c/;d=e,f", "h"),
        ("HTTPS://h?a=b", "h", 443, "/?a=b", "h"),
    ],
)
def test_url_is_taken_apart(
    url: str, host: str, port: int, path: str, authority: str | None
) -> None:
    target = target_of(url)
    assert target == (True, host, port, path)
    assert target.authority == (authority or host)


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "//example.com/", "https:", "https://", "https:///x", "https:/x"),
        *("ftp://example.com", "javascript:alert(1)", "file:///etc/passwd", "HTTP://example.com"),
        *("http://example.com", "https://user@example.com", "https://user:pw@example.com"),
        *(
            "https://@example.com",
            "https://example.com#x",
            "https://example.com/#",
            "https://é.com",
        ),
        *("https://example.com/ x", "https://example.com/\n", "https://example.com/\x00"),
        *("https://example.com\\@evil.com", "https://example.com/\\x", " https://example.com"),
        *("https://example.com:0", "https://example.com:65536", "https://example.com:x"),
        *("https://example.com:99999999999999999999", "https://ex%61mple.com", "https://a..b"),
        *("https://.a", "https://-a.b", f"https://{'a' * 64}.com", f"https://{'a.' * 130}com"),
        *("https://[::1", "https://::1/", "https://[v1.x]/", "https://[fe80::1%25eth0]/"),
        *("https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://017700000001/"),
        *("https://127.1/", "https://0177.0.0.1/", "https://127.0.0.1./", "https://1.2.3.4.5/"),
        *("https://127.0.0.1", "https://10.0.0.1", "https://169.254.169.254/latest/meta-data"),
        *("https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::10.0.0.1]/"),
        *(
            "https://\uff11\uff12\uff17.0.0.1/",
            "https://\u2460.0.0.1/",
            "https://0/",
            "https://a.0x10/",
        ),
        f"https://example.com/{'x' * MAX_URL_LENGTH}",
    ],
)
def test_url_that_is_not_allowed_is_refused(url: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        target_of(url)
    assert refused.value.errors.keys() == {"url"}


def test_settings_allow_http_and_private_addresses_each() -> None:
    assert target_of("http://h:8000/x", allow_http=True) == (False, "h", 8000, "/x")
    assert target_of("http://h", allow_http=True).port == 80
    assert target_of("https://127.0.0.1", allow_private=True).host == "127.0.0.1"
    for url, allowed in (
        ("http://127.0.0.1", {"allow_http": True}),
        ("http://127.0.0.1", {"allow_private": True}),
        ("https://127.1", {"allow_private": True}),
    ):
        with pytest.raises(ValidationFailed):
            target_of(url, **allowed)


PUBLIC = (
    *("1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255"),
    *("172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2606:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e", "2001:200::1"),
    # With a public IPv4 address inside: mapped, NAT64, 6to4.
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
)
NOT_PUBLIC = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1"),
    *("127.255.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.9"),
    *("192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "::7f00:1", "::8.8.8.8", "fe80::1", "febf::1", "fec0::1", "fc00::1"),
    *("fd00:ec2::254", "ff02::1", "100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1"),
    *("2001:db8::1", "3fff::1", "5f00::1", "4000::1"),
    # With another IPv4 address inside: mapped, translated, NAT64, 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:8.8.8.8"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "64:ff9b:1::8.8.8.8"),
    *("64:ff9b::1:0:808:808", "2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::8.8.8.8"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_globally_routable_address_is_allowed(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_address_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


def event(kind: EventKind, to_status: JobStatus | None = None, **values: Any) -> Any:
    given = {"id": 7, "at": NOW, "job_type": "a", "kind": int(kind), "to_status": to_status}
    return SimpleNamespace(**given | values)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (event(EventKind.SUCCEEDED, JobStatus.SUCCESS), "job.succeeded"),
        (event(EventKind.FAILED, JobStatus.FAILED), "job.failed"),
        (event(EventKind.LEASE_EXPIRED, JobStatus.FAILED), "job.failed"),
        (event(EventKind.TIMED_OUT, JobStatus.FAILED), "job.failed"),
        (event(EventKind.CANCELLED, JobStatus.CANCELLED), "job.cancelled"),
        (event(EventKind.LEASE_EXPIRED, JobStatus.PENDING), "job.lease_expired"),
        (event(EventKind.FAILED, JobStatus.PENDING), "job.failed"),
        (event(EventKind.CREATED, JobStatus.PENDING), "job.created"),
        (event(EventKind.DELETED), "job.deleted"),
        (event(EventKind.MEMBER_ADDED), "workspace.member_added"),
        (event(EventKind.JOB_TYPE_PAUSED), "workspace.job_type_paused"),
        (event(EventKind.WEBHOOK_DISABLED), "workspace.webhook_disabled"),
    ],
)
def test_message_has_the_type_of_its_event(given: Any, name: str) -> None:
    assert type_of(given) == name
    assert name in MESSAGE_TYPES


def test_webhook_wants_ends_by_default_and_otherwise_its_kinds_and_job_types() -> None:
    end = event(EventKind.TIMED_OUT, JobStatus.FAILED)
    retried = event(EventKind.TIMED_OUT, JobStatus.PENDING)
    unknown: Any = SimpleNamespace(kind=99, to_status=JobStatus.SUCCESS, job_type="a")
    member = event(EventKind.MEMBER_ADDED, job_type=None)
    assert [wants(each, None, None) for each in (end, retried, unknown, member)] == [
        *(True, False, True, False)
    ]
    kinds = ["timed_out", "member_added"]
    assert [wants(each, kinds, None) for each in (end, retried, unknown, member)] == [
        *(True, True, False, True)
    ]
    assert [wants(each, kinds, ["b", "a"]) for each in (end, member)] == [True, False]
    assert not wants(end, None, ["b"])


def test_message_id_is_the_same_for_each_attempt_only() -> None:
    first = event(EventKind.CREATED)
    assert message_id("wh_1", first) == message_id("wh_1", event(EventKind.SUCCEEDED))
    others = {
        message_id("wh_2", first),
        message_id("wh_1", event(EventKind.CREATED, id=8)),
        message_id("wh_1", event(EventKind.CREATED, at=NOW + timedelta(seconds=1))),
    }
    assert len(others | {message_id("wh_1", first)}) == 4


def test_signature_is_that_of_the_specification() -> None:
    # The example of https://www.standardwebhooks.com.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    found = signatures([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    both = signatures([secret, secret_of(b"x" * 32)], "msg_1", 1, body).split(" ")
    assert len({*both}) == 2


FAILED = Answer(500)


def judged(answer: Answer, **given: Any) -> Any:
    known = {"attempts": 1, "failing_since": None, "failed_at": None, "now": NOW, "chance": 0.5}
    return verdict(answer, **known | given)


def test_delivery_is_retried_after_growing_delays_and_then_fails() -> None:
    delays = []
    for attempts in range(1, 20):
        found = judged(FAILED, attempts=attempts)
        assert found.failing_since == NOW
        if found.retry_at is None:
            break
        assert found.status is DeliveryStatus.PENDING
        delays.append((found.retry_at - NOW).total_seconds())
    assert delays == [5, 300, 1800, 7200, 18000, 36000, 50400] == list(RETRY_SECONDS)
    assert found.status is DeliveryStatus.FAILED
    assert found.disabled is None


def test_delay_has_jitter() -> None:
    waits = {judged(FAILED, attempts=2, chance=chance).retry_at for chance in (0, 0.5, 0.999)}
    assert len(waits) == 3
    assert all(timedelta(seconds=270) <= wait - NOW <= timedelta(seconds=330) for wait in waits)


@pytest.mark.parametrize(
    ("asked", "seconds"), [(0, 5), (120, 120), (86_400, 86_400), (999_999_999, 86_400)]
)
def test_retry_after_counts_up_to_a_day(asked: int, seconds: int) -> None:
    found = judged(Answer(429, retry_after=timedelta(seconds=asked)))
    assert found.retry_at == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize("status", [100, 300, 301, 302, 307, 400, 404, 409, 429, 500, 503])
def test_other_status_than_2xx_is_a_failure(status: int) -> None:
    assert judged(Answer(status)).status is DeliveryStatus.PENDING
    for accepted in (200, 201, 202, 204, 299):
        assert judged(Answer(accepted)) == (DeliveryStatus.SUCCESS, None, None, None)
    # It was cut off.
    assert judged(Answer(200, "The response is not complete.")).status is DeliveryStatus.PENDING


def test_410_disables_at_once() -> None:
    assert judged(Answer(410)) == (DeliveryStatus.FAILED, None, NOW, Disabled.GONE)


def test_five_days_of_failures_disable() -> None:
    since, hour = NOW - DISABLED_AFTER, timedelta(hours=1)
    found = judged(FAILED, failing_since=since, failed_at=NOW - hour)
    assert found == (DeliveryStatus.FAILED, None, since, Disabled.FAILING)
    almost = judged(FAILED, failing_since=since + hour, failed_at=NOW - hour)
    assert almost.disabled is None
    assert almost.failing_since == since + hour
    # Two failures weeks apart are no series.
    apart = judged(FAILED, failing_since=since, failed_at=NOW - 30 * hour)
    assert (apart.disabled, apart.failing_since) == (None, NOW)
    assert judged(Answer(200), failing_since=since, failed_at=NOW).failing_since is None
