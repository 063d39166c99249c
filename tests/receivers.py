"""Receivers of webhooks on this machine: good ones, and each kind of bad one."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Received(NamedTuple):
    """A request."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """A response to send."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Receiver:
    """Keeps what it receives in ``got``. ``reply`` answers on the socket; it may do anything.

    Each connection has a thread, so that slow answers are slow for their sender only.
    """

    def __init__(
        self,
        reply: bytes | Callable[[socket.socket, Received], None] = OK,
        *,
        context: ssl.SSLContext | None = None,
        reads: bool = True,
    ) -> None:
        self.reply = reply
        self.got: list[Received] = []
        self.open = 0
        self.most_open = 0
        self._reads = reads
        self._context = context
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._server.getsockname()[1]
        scheme = "https" if context else "http"
        self.url = f"{scheme}://{'localhost' if context else '127.0.0.1'}:{self.port}/hook"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def ids(self) -> list[str]:
        """The ``webhook-id`` of each request."""
        return [each.headers["webhook-id"] for each in self.got]

    def hang(self, sock: socket.socket, received: Received) -> None:
        """Answer nothing until the sender or this receiver closes the connection."""
        sock.settimeout(0.1)
        while not self._closed.is_set():
            try:
                if not sock.recv(1):
                    return
            except TimeoutError:
                continue

    def close(self) -> None:
        """Stop."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self.open += 1
            self.most_open = max(self.open, self.most_open)
        with contextlib.suppress(OSError), sock:
            sock.settimeout(60)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            received = self._read(sock) if self._reads else Received("", {}, b"", time.time())
            if received is not None:
                self.got.append(received)
                if isinstance(self.reply, bytes):
                    sock.sendall(self.reply)
                else:
                    self.reply(sock, received)
            sock.close()
        with self._lock:
            self.open -= 1

    def _read(self, sock: socket.socket) -> Received | None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        while len(body) < int(headers.get("content-length", "0")):
            body += sock.recv(65536)
        return Received(first.split(" ")[1], headers, body, time.time())


def drip(sock: socket.socket, received: Received) -> None:
    """Send a response a byte at a time, without an end."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        sock.sendall(b"x")
        time.sleep(0.05)


def flood(sock: socket.socket, received: Received) -> None:
    """Send 1 GB, as far as the sender reads it."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 1_000_000_000:
            sent += sock.send(b"x" * 65536)


class Authority:
    """A certificate authority of its own, and servers' contexts with its certificates."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tests")])
        self._certificate = self._sign(self._name, self._key.public_key(), ca=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, name: x509.Name, key: Any, *, ca: bool = False, dns: str = "tests", days: int = 1
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        end = now + timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - timedelta(days=1))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def server(self, dns: str = "localhost", *, days: int = 1) -> ssl.SSLContext:
        """A context with a certificate for a name, valid for so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns)])
        certificate = self._sign(name, key.public_key(), dns=dns, days=days)
        file = self._folder / f"{dns}{days}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def client(self) -> ssl.SSLContext:
        """A context that trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.file))
