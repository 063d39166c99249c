"""Sends messages to webhooks: one event loop in a thread of its own, for any number of receivers.

A receiver that is slow holds a coroutine and a socket, no thread. A request may take
``SEND_SECONDS`` in all, the lookup of the name included. The name is looked up here, each address
is judged, and the connection goes to the address that was judged, so a name that changes its
address in between gains nothing. TLS verifies the certificate for the name. There are no
redirects, no proxies of the environment, and no more than ``MAX_READ`` bytes of a response.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import h11

from ..errors import ValidationFailed
from ..rules.webhooks import Answer, Target, is_public, signatures, target_of

SEND_SECONDS = 15.0
"""How long a request may take, from the lookup of the name to the end of the response."""

CONNECT_SECONDS = 5.0
"""How long to try one address of several."""

MAX_READ = 64 * 1024
"""How many bytes of a response are read."""

KEPT_BYTES = 1024
"""How much of a response's body is kept."""

MAX_ADDRESSES = 8
"""How many addresses of a name are tried at most."""

Resolve = Callable[[str, int], Sequence[str]]
"""Looks up the addresses of a name, for a port. It may block, and raises ``OSError``."""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the operating system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True)
class Message:
    """A message to send: once, now."""

    id: str
    url: str
    secrets: Sequence[str]
    """The secrets to sign with, the newest first."""

    timestamp: int
    body: bytes


class _Failed(Exception):
    """An attempt has failed; the message says why, without internal addresses."""


class Sender:
    """Sends messages in a thread that it starts.

    ``allow_http`` and ``allow_private`` are for development. ``context`` is the TLS context, by
    default that of the system.
    """

    def __init__(
        self,
        *,
        allow_http: bool = False,
        allow_private: bool = False,
        context: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
        seconds: float = SEND_SECONDS,
    ) -> None:
        self._allow_http = allow_http
        self._allow_private = allow_private
        self._resolve = resolve
        self._seconds = seconds
        self._lookups: dict[tuple[str, int], asyncio.Future[Sequence[str]]] = {}
        self._context = context or ssl.create_default_context()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="jobapi-webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and cancel what it sends."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        sending = asyncio.all_tasks(self._loop)
        for task in sending:
            task.cancel()
        if sending:
            self._loop.run_until_complete(asyncio.wait(sending))
        self._loop.close()

    def send(self, message: Message) -> Future[Answer]:
        """Begin to send a message; whatever the receiver does, the future has an answer."""
        sending: Coroutine[Any, Any, Answer] = self._send(message)
        return asyncio.run_coroutine_threadsafe(sending, self._loop)

    async def _send(self, message: Message) -> Answer:
        try:
            target = target_of(
                message.url, allow_http=self._allow_http, allow_private=self._allow_private
            )
            async with asyncio.timeout(self._seconds):
                return await self._exchange(target, message)
        except ValidationFailed as error:
            return Answer(error=error.detail)
        except _Failed as error:
            return Answer(error=str(error))
        except TimeoutError:
            return Answer(error=f"No complete response within {self._seconds:g} seconds.")
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or "TLS failed"
            return Answer(error=f"No secure connection: {reason}.")
        except h11.RemoteProtocolError:
            return Answer(error="The response is not complete, or not HTTP/1.1.")
        except OSError as error:
            return Answer(error=f"No connection: {error.strerror or 'closed by the receiver'}.")

    async def _exchange(self, target: Target, message: Message) -> Answer:
        addresses = await self._addresses(target)
        reader, writer = await self._connect(target, addresses)
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_READ)
            # The receiver may answer before it has read everything, so nothing waits for that.
            writer.write(_request(connection, target, message))
            return await _read(connection, reader)
        finally:
            writer.transport.abort()

    async def _addresses(self, target: Target) -> list[str]:
        found = await self._look_up(target.host, target.port)
        if not found:
            raise _Failed("The host name cannot be resolved.")
        allowed = list(dict.fromkeys(each for each in found if self._is_allowed(each)))
        if not allowed:
            raise _Failed("The host has no globally routable address.")
        return allowed[:MAX_ADDRESSES]

    def _is_allowed(self, address: str) -> bool:
        # A link-local address comes with its zone.
        return self._allow_private or is_public(ip_address(address.partition("%")[0]))

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        """Look a name up in a thread of its own; requests to the same name share a lookup.

        So a lookup that hangs holds one thread, however many requests wait for it. Threads of a
        pool would run out, and delay the end of the process.
        """
        key = host, port
        lookup = self._lookups.get(key)
        if lookup is None:
            loop = asyncio.get_running_loop()
            lookup = self._lookups[key] = loop.create_future()
            lookup.add_done_callback(lambda _: self._lookups.pop(key))
            threading.Thread(
                target=self._look_up_in_thread, args=(loop, key, lookup), daemon=True
            ).start()
        return await asyncio.shield(lookup)

    def _look_up_in_thread(
        self,
        loop: asyncio.AbstractEventLoop,
        key: tuple[str, int],
        lookup: asyncio.Future[Sequence[str]],
    ) -> None:
        found: Sequence[str]
        try:
            found = self._resolve(*key)
        except (OSError, UnicodeError):
            found = []
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lookup.set_result, found)

    async def _connect(
        self, target: Target, addresses: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure: dict[str, Any] = {}
        if target.secure:
            secure = {"ssl": self._context, "server_hostname": target.host.rstrip(".")}
        for number, address in enumerate(addresses, 1):
            is_last = number == len(addresses)
            try:
                async with asyncio.timeout(None if is_last else CONNECT_SECONDS):
                    return await asyncio.open_connection(
                        address, target.port, limit=MAX_READ, **secure
                    )
            except (OSError, TimeoutError):
                if is_last:
                    raise
        raise AssertionError("There is an address.")


def _request(connection: h11.Connection, target: Target, message: Message) -> bytes:
    headers = {
        "Host": target.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(message.body)),
        "User-Agent": "jobapi",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "webhook-id": message.id,
        "webhook-timestamp": str(message.timestamp),
        "webhook-signature": signatures(
            message.secrets, message.id, message.timestamp, message.body
        ),
    }
    request = h11.Request(method="POST", target=target.path, headers=list(headers.items()))
    parts = (request, h11.Data(data=message.body), h11.EndOfMessage())
    return b"".join(connection.send(part) or b"" for part in parts)


async def _read(connection: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    """Read a response to its end, or ``MAX_READ`` bytes of it."""
    response: h11.Response | None = None
    body = bytearray()
    left = MAX_READ
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if not left and response is not None:
                break
            data = await reader.read(min(left, 16_384))
            left -= len(data)
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data[: KEPT_BYTES - len(body)]
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    if response is None:
        raise _Failed("The receiver has sent no response.")
    headers = dict(response.headers)
    return Answer(
        status=response.status_code,
        # Postgres stores no U+0000.
        body=body.decode(errors="replace").replace("\0", "\ufffd"),
        retry_after=_retry_after(headers.get(b"retry-after", b"").decode("latin-1")),
    )


def _retry_after(text: str) -> timedelta | None:
    """The value of ``Retry-After``: seconds, or a date."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:9]))
    try:
        at = parsedate_to_datetime(text)
        return max(timedelta(), at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC))
    except (ValueError, OverflowError):
        return None
