"""The gunicorn worker of ``jobapi serve``.

It answers ``/health/live`` while all of its threads are busy, and renders what gunicorn itself
refuses as problem details, like every other error.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import orjson
from gunicorn import util
from gunicorn.http import errors as refusals
from gunicorn.http import message
from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, ThreadWorker

from .. import errors
from ..headers import PROBLEM, SECURITY_HEADERS

HEAD_BYTES = 8192
"""How many bytes of a request are examined; a probe has fewer."""

PROBE_THREADS = 2

NEXT_REQUEST_MILLISECONDS = 2
"""How long a thread waits for the next request of a connection, while another thread is free."""

UNREAD_BYTES = 2 * 1024 * 1024
"""How much of a body that was refused unread is read and dropped, to keep the connection."""

MAX_REQUEST_LINE = 16 * 1024

OPTIONS = {
    "limit_request_line": MAX_REQUEST_LINE,
    "limit_request_fields": 100,
    "limit_request_field_size": 8190,
    # The application trusts proxies as JOBAPI_TRUSTED_PROXIES says; gunicorn trusts none.
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "secure_scheme_headers": {},
}
"""gunicorn's settings for requests."""

# The upper bound of ``limit_request_line``; gunicorn's own is less than 8 KiB of query.
vars(message)["MAX_REQUEST_LINE"] = MAX_REQUEST_LINE


class Worker(ThreadWorker):
    """gunicorn's worker with threads, and two more threads for liveness probes.

    All other threads may wait for a slow database. If probes waited with them, a supervisor
    would restart this process and all others, which does not help. Only complete probes go to
    the two threads, so a slow caller cannot block them. A connection that has sent nothing yet
    takes no thread. A thread handles several requests of a connection if they follow at once.
    """

    live_path = "/health/live"

    def init_process(self) -> None:
        """Start, in the process that serves."""
        # The connections that a thread handles, and those that wait for one.
        self._in_threads: set[Any] = set()
        self._probes = ThreadPoolExecutor(PROBE_THREADS, "jobapi-probe")
        path = re.escape(self.live_path.encode())
        self._probe = re.compile(rb"(GET|HEAD) %b[ ?]" % path)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application."""
        super().load_wsgi()
        self.wsgi = partial(_announce_close, self.wsgi)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        # gunicorn reads 64 KiB, and then closes a connection that its response said to keep.
        deadline = time.monotonic() + DEFAULT_WORKER_DATA_TIMEOUT
        return keepalive and bool(conn.parser.finish_body(deadline, UNREAD_BYTES))

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection to a thread as soon as there is something to read."""
        try:
            head = conn.sock.recv(HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if conn.initialized or conn.data_ready:
                self._submit_request(conn)
            else:
                self._wait_for_data(conn)
            return
        except OSError:
            # The thread gets the same error, and closes the connection.
            head = b""
        conn.data_ready = True
        if self._is_probe(head):
            self._submit(self._probes, self.handle, conn)
        else:
            self._submit_request(conn)

    def _is_probe(self, head: bytes) -> bool:
        lines = head.lower()
        return (
            self._probe.match(head) is not None
            and head.endswith(b"\r\n\r\n")
            and b"\r\ncontent-length:" not in lines
            and b"\r\ntransfer-encoding:" not in lines
        )

    def _submit(self, threads: Executor, handle: Callable[[Any], Any], conn: Any) -> None:
        future = threads.submit(handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def _submit_request(self, conn: Any) -> None:
        self._in_threads.add(conn)
        self._submit(self.tpool, self._handle_requests, conn)

    def _handle_requests(self, conn: Any) -> Any:
        """Handle a request, and those that follow it at once on the same connection.

        gunicorn passes each request from its main thread to another and back, which takes longer
        than parsing it.
        """
        try:
            kept = self.handle(conn)
            while kept is True and self._has_next_request(conn):
                kept = self.handle(conn)
            return kept
        finally:
            self._in_threads.discard(conn)

    def _has_next_request(self, conn: Any) -> bool:
        if not self.alive or self.ppid != os.getppid():
            # The process is about to end.
            return False
        if len(self._in_threads) >= self.cfg.threads:
            # No thread is free for other connections.
            return False
        if conn.parser.unreader.buf.getvalue():
            return True
        ready = select.poll()
        ready.register(conn.sock, select.POLLIN)
        return bool(ready.poll(NEXT_REQUEST_MILLISECONDS))

    def _wait_for_data(self, conn: Any) -> None:
        conn.timeout = time.monotonic() + DEFAULT_WORKER_DATA_TIMEOUT
        self.pending_conns.append(conn)
        self.poller.register(
            conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn)
        )

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that did not reach the application."""
        request_id = secrets.token_hex(16)
        refused = _refusal(exc)
        if refused is None:
            self.log.exception("Error handling request %s", request_id)
            refused = errors.InternalError("The server failed; its log has the details.")
        else:
            # Without the request, which may contain a token.
            sender = addr[0] if isinstance(addr, tuple) else addr
            self.log.warning("Refused a request from %s: %s", sender, type(exc).__name__)
        body = orjson.dumps(refused.problem())
        headers = {
            **SECURITY_HEADERS,
            "Cache-Control": "no-store",
            "Connection": "close",
            "Content-Length": len(body),
            "Content-Type": PROBLEM,
            "X-Request-Id": request_id,
        }
        lines = [f"HTTP/1.1 {refused.status} {refused.title()}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            util.write_nonblock(client, "\r\n".join([*lines, "", ""]).encode() + body)
        except OSError:
            self.log.debug("The caller of request %s has closed the connection.", request_id)


def _announce_close(application: Any, environ: dict[str, Any], start_response: Any) -> Any:
    """Call the application, and announce ``Connection: close`` if too much body is unread.

    Otherwise the caller would send its next request on a connection that is being closed.
    """

    def start(*arguments: Any) -> Any:
        body = environ["wsgi.input"]
        if body.failed or getattr(body.reader, "length", 0) > UNREAD_BYTES:
            start_response.__self__.force_close()
        return start_response(*arguments)

    return application(environ, start)


def _refusal(exc: BaseException) -> errors.JobApiError | None:
    """The error for a request that gunicorn refuses; None for a fault of the service."""
    refused: errors.JobApiError
    match exc:
        case refusals.LimitRequestLine():
            return errors.UriTooLong(
                f"The request line may have at most {MAX_REQUEST_LINE:,} bytes: shorten the query."
            )
        case refusals.LimitRequestHeaders():
            return errors.HeadersTooLarge(
                f"Send at most {OPTIONS['limit_request_fields']} header fields, of at most "
                f"{OPTIONS['limit_request_field_size']:,} bytes each."
            )
        case refusals.ConfigurationProblem():
            # The path does not start with the SCRIPT_NAME of the environment.
            return errors.UnknownPath("There is nothing at this path.")
        case refusals.ParseException() if type(exc).__name__.startswith("InvalidResponse"):
            # The response was invalid, not the request.
            return None
        case refusals.UnsupportedTransferCoding():
            refused = errors.BadRequest(
                "This Transfer-Encoding is not supported; send chunked or a Content-Length."
            )
            refused.status = 501
        case refusals.ExpectationFailed():
            refused = errors.BadRequest(
                "This Expect header is not supported; send 100-continue or none."
            )
            refused.status = 417
        case refusals.ParseException():
            refused = errors.BadRequest("This is not a valid HTTP request.")
        case _:
            return None
    return refused
