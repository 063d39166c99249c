"""The sender: real receivers, good and bad."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from jobapi.background.sending import Message, Sender
from jobapi.rules.webhooks import Answer, secret_of

from ..receivers import OK, Authority, Received, Receiver, answer, drip, flood

SECRETS = [secret_of(bytes(range(32))), secret_of(b"o" * 32)]
BODY = '{"type":"job.succeeded","data":{"job":{"job_type":"ä"}}}'.encode()


def message(url: str, body: bytes = BODY) -> Message:
    return Message("msg_1", url, SECRETS, int(time.time()), body)


@contextlib.contextmanager
def sender(**options: Any) -> Iterator[Sender]:
    made = Sender(**{"allow_http": True, "allow_private": True, "seconds": 20.0, **options})
    yield made
    made.stop()


@contextlib.contextmanager
def receiver(*arguments: Any, **options: Any) -> Iterator[Receiver]:
    made = Receiver(*arguments, **options)
    yield made
    made.close()


def send(url: str, body: bytes = BODY, **options: Any) -> Answer:
    with sender(**options) as this:
        return this.send(message(url, body)).result(20)


def test_message_is_verified_by_standard_webhooks_with_either_secret() -> None:
    with receiver() as good:
        assert send(good.url + "?a=b&c=%20").accepted
    (got,) = good.got
    assert got.path == "/hook?a=b&c=%20"
    assert got.headers["host"] == f"127.0.0.1:{good.port}"
    assert got.headers["content-type"] == "application/json"
    for secret in SECRETS:
        verified: Any = Webhook(secret).verify(got.body.decode(), dict(got.headers))
        assert verified["type"] == "job.succeeded"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (OK, Answer(200, None, "ok")),
        (answer(204), Answer(204, None, "")),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, Answer(200, None, "ok")),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", Answer(200, None, "to the end")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            Answer(200, None, "abc"),
        ),
        (answer(500, body=b"\xff\x00" + b"x" * 5000), Answer(500, None, "��" + "x" * 1022)),
        (answer(302, "Location: http://127.0.0.1:1/"), Answer(302, None, "")),
        (answer(410), Answer(410, None, "")),
        (answer(429, "Retry-After: 120"), Answer(429, None, "", timedelta(seconds=120))),
        (
            answer(503, f"Retry-After: {'9' * 30}"),
            Answer(503, None, "", timedelta(seconds=999_999_999)),
        ),
        (answer(429, "Retry-After: soon"), Answer(429, None, "")),
        (answer(429, f"Retry-After: Oct 0 07:28:00 {'9' * 30}"), Answer(429, None, "")),
    ],
)
def test_response_is_read(reply: bytes, expected: Answer) -> None:
    with receiver(reply) as this:
        assert send(this.url) == expected
        # No redirect was followed, and nothing sent twice.
        assert len(this.got) == 1


def test_date_in_retry_after_is_a_delay() -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    for text in (format_datetime(at, usegmt=True), at.strftime("%a %b %e %H:%M:%S %Y")):
        with receiver(answer(503, f"Retry-After: {text}")) as this:
            wanted = send(this.url).retry_after
        assert wanted is not None
        assert timedelta(minutes=59) < wanted <= timedelta(hours=1)


def half(sock: socket.socket, received: Received) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


def endless_head(sock: socket.socket, received: Received) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)


def drip_head(sock: socket.socket, received: Received) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
        sock.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", "not complete"),
        (half, "not complete"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1.1"),
        (endless_head, "not HTTP/1.1"),
        (drip, "within 1 seconds"),
        (drip_head, "within 1 seconds"),
    ],
)
def test_incomplete_response_is_a_failure(
    reply: bytes | Callable[[socket.socket, Received], None], error: str
) -> None:
    began = time.monotonic()
    with receiver(reply) as this:
        failed = send(this.url, seconds=1.0 if error.startswith("within") else 20.0)
    assert not failed.accepted
    assert error in str(failed.error)
    assert time.monotonic() - began < 5


def test_receiver_that_hangs_fails_in_time() -> None:
    with receiver() as this:
        this.reply = this.hang
        assert "within 1 seconds" in str(send(this.url, seconds=1.0).error)


def test_receiver_that_never_accepts_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        port = server.getsockname()[1]
        failed = send(f"http://127.0.0.1:{port}/", seconds=1.0)
        assert "within 1 seconds" in str(failed.error)


def test_receiver_that_refuses_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "No connection" in str(send(f"http://127.0.0.1:{port}/").error)


def test_large_response_is_not_read_to_its_end() -> None:
    began = time.monotonic()
    with receiver(flood) as this:
        assert send(this.url, seconds=15) == Answer(200, None, "x" * 1024)
    assert time.monotonic() - began < 5


def test_answer_before_a_large_message_was_read_counts() -> None:
    with receiver(answer(413), reads=False) as this:
        assert send(this.url, b"x" * 4_000_000).status in (413, None)


def test_certificate_is_verified_for_the_name(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    context = ours.client()
    with receiver(context=ours.server()) as good:
        assert send(good.url, context=context, allow_http=False).accepted
        rooted = good.url.replace("localhost", "localhost.")
        assert send(rooted, context=context, resolve=lambda *name: ["127.0.0.1"]).accepted
    for wrong, reason in (
        (other.server(), "certificate"),
        (ours.server("elsewhere.example"), "Hostname mismatch"),
        (ours.server(days=-1), "expired"),
    ):
        with receiver(context=wrong) as bad:
            failed = send(bad.url, context=context)
        assert reason in str(failed.error), failed
        assert bad.got == []


def test_environment_and_its_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as good, receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(good.url).accepted
        assert proxy.got == []


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"),
        *("[2002:7f00:1::]", "169.254.169.254", "[fd00:ec2::254]", "localhost."),
    ],
)
def test_address_that_is_not_public_is_never_contacted(host: str) -> None:
    with receiver() as this:
        failed = send(f"http://{host}:{this.port}/", allow_private=False)
        assert failed.error
        assert this.got == []
        assert this.most_open == 0


def test_name_that_changes_its_address_is_judged_by_the_address_that_is_connected_to() -> None:
    answers = [["127.0.0.1"], ["8.8.8.8"], ["127.0.0.1"]]
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1] if len(asked) <= len(answers) else ["127.0.0.1"]

    with receiver() as this:
        url = f"http://rebinding.example:{this.port}/"
        for _ in range(3):
            assert not send(url, allow_private=False, resolve=resolve, seconds=0.5).accepted
        assert this.most_open == 0
    # One lookup for each attempt: none between the judgement and the connection.
    assert len(asked) == 3


def test_name_with_public_and_private_addresses_is_contacted_at_public_ones_only() -> None:
    def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "::1", "fe80::1%eth0"]

    with receiver() as this:
        url = f"http://mixed.example:{this.port}/"
        assert send(url, resolve=resolve).accepted
        refused = send(url, resolve=resolve, allow_private=False)
        assert refused.error == "The host has no globally routable address."


def test_address_that_does_not_answer_is_followed_by_the_next() -> None:
    with receiver() as this, socket.create_server(("127.0.0.2", 0)) as closed:
        closed.close()
        url = f"http://two.example:{this.port}/"
        addresses = ["127.0.0.2", "127.0.0.1"]
        assert send(url, resolve=lambda host, port: addresses, seconds=1.0).accepted


def test_lookup_that_hangs_counts_and_delays_no_other() -> None:
    free = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        if host == "slow.example":
            free.wait(120)
        return ["127.0.0.1"]

    with receiver() as this, sender(resolve=resolve, seconds=3.0) as ours:
        slow = [ours.send(message(f"http://slow.example:{this.port}/")) for _ in range(100)]
        assert ours.send(message(this.url)).result(60).accepted
        assert all("within 3 seconds" in str(each.result(60).error) for each in slow)
        free.set()
    with sender(resolve=lambda host, port: []) as ours:
        failed = ours.send(message("http://none.example/")).result(5)
        assert failed.error == "The host name cannot be resolved."


def test_plain_http_is_refused_unless_it_is_allowed() -> None:
    with receiver() as this:
        assert send(this.url, allow_http=False).error == "url: Only https is allowed."
        assert this.got == []
