"""npm's ``standardwebhooks`` verifies real messages. Run it with ``make test-node``."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from jobapi.background.sending import Message, Sender
from jobapi.rules.webhooks import secret_of

from ..receivers import Receiver

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("verify.mjs")
BODY = '{"type":"job.succeeded","data":{"job":{"job_type":"ä €"}}}'


def verify(secret: str, body: str, headers: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Verify a message with the packages in ``build/node``."""
    return subprocess.run(
        ["node", SCRIPT, ROOT / "build" / "node" / "package.json"],
        input=json.dumps({"secret": secret, "body": body, "headers": headers}),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("size", [24, 32, 64])
def test_message_is_verified_by_the_library_of_npm_with_either_secret(size: int) -> None:
    secrets = [secret_of(bytes(range(size))), secret_of(b"o" * size)]
    receiver = Receiver()
    sender = Sender(allow_http=True, allow_private=True)
    message = Message("msg_1", receiver.url, secrets, int(time.time()), BODY.encode())
    assert sender.send(message).result(20).accepted
    sender.stop()
    receiver.close()
    (got,) = receiver.got
    for secret in secrets:
        done = verify(secret, got.body.decode(), dict(got.headers))
        assert done.stdout == "job.succeeded\n", done.stderr
    forged = verify(secrets[0], got.body.decode() + " ", dict(got.headers))
    assert "No matching signature" in forged.stderr
