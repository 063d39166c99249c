"""gunicorn's worker as ``jobapi serve`` has it.

It answers ``/health/live`` while all of its threads are busy, and what gunicorn itself refuses
with the one body of all errors.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import orjson
from gunicorn import util
from gunicorn.http import errors as refusals
from gunicorn.http import message
from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, ThreadWorker

from .. import errors
from ..views.hooks import SECURITY_HEADERS
from ..views.problems import PROBLEM

HEAD_BYTES = 8192
"""How much of a request is looked at; a probe's is smaller."""

PROBE_THREADS = 2

UNREAD_BYTES = 2 * 1024 * 1024
"""So much of a body that was refused unread is read and dropped, to keep the connection."""

MAX_REQUEST_LINE = 16 * 1024

OPTIONS = {
    "limit_request_line": MAX_REQUEST_LINE,
    "limit_request_fields": 100,
    "limit_request_field_size": 8190,
    # What a proxy says is believed as far as JOBAPI_TRUSTED_PROXIES has it, and no header by
    # gunicorn besides.
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "secure_scheme_headers": {},
}
"""gunicorn's settings for what comes in."""

# gunicorn takes no more than this, whatever its setting says: by default less than 8 KiB of query.
vars(message)["MAX_REQUEST_LINE"] = MAX_REQUEST_LINE


class Worker(ThreadWorker):
    """gunicorn's worker with threads, and two threads more for the probe of liveness.

    All others may wait for a slow database; a supervisor that asks whether the process lives
    would restart it for that, and all its like. Only a request that is there as a whole goes to
    these threads, so that a slow caller cannot hold them up. A connection that has sent nothing
    yet takes no thread either.
    """

    live_path = "/health/live"

    def init_process(self) -> None:
        """Begin, in the process that serves."""
        self._probes = ThreadPoolExecutor(PROBE_THREADS, "jobapi-probe")
        path = re.escape(self.live_path.encode())
        self._probe = re.compile(rb"(GET|HEAD) %b[ ?]" % path)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application."""
        super().load_wsgi()
        self.wsgi = partial(_announce_close, self.wsgi)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        # gunicorn itself reads 64 KiB, and then closes a connection that it has said to keep.
        deadline = time.monotonic() + DEFAULT_WORKER_DATA_TIMEOUT
        return keepalive and bool(conn.parser.finish_body(deadline, UNREAD_BYTES))

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection to a thread, when there is something to read."""
        try:
            head = conn.sock.recv(HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if conn.initialized or conn.data_ready:
                super().enqueue_req(conn)
            else:
                self._wait_for_data(conn)
            return
        except OSError:
            # Its thread finds out, too, and closes it.
            head = b""
        conn.data_ready = True
        self._submit(self._probes if self._is_probe(head) else self.tpool, conn)

    def _is_probe(self, head: bytes) -> bool:
        lines = head.lower()
        return (
            self._probe.match(head) is not None
            and head.endswith(b"\r\n\r\n")
            and b"\r\ncontent-length:" not in lines
            and b"\r\ntransfer-encoding:" not in lines
        )

    def _submit(self, threads: Executor, conn: Any) -> None:
        future = threads.submit(self.handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def _wait_for_data(self, conn: Any) -> None:
        conn.timeout = time.monotonic() + DEFAULT_WORKER_DATA_TIMEOUT
        self.pending_conns.append(conn)
        self.poller.register(
            conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn)
        )

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that has not come as far as the application."""
        request_id = uuid4().hex
        refused = _refusal(exc)
        if refused is None:
            self.log.exception("Error handling request %s", request_id)
            refused = errors.InternalError("The server failed; its log has the details.")
        else:
            # Not what was sent: there may be a token in it.
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
            self.log.debug("The caller of request %s has gone.", request_id)


def _announce_close(application: Any, environ: dict[str, Any], start_response: Any) -> Any:
    """Call the application, and say ``Connection: close`` where it cannot be kept.

    Otherwise a caller would send its next request into a connection that is about to be closed.
    """

    def start(*arguments: Any) -> Any:
        body = environ["wsgi.input"]
        if body.failed or getattr(body.reader, "length", 0) > UNREAD_BYTES:
            start_response.__self__.force_close()
        return start_response(*arguments)

    return application(environ, start)


def _refusal(exc: BaseException) -> errors.JobApiError | None:
    """The error for what gunicorn refuses; None for a fault."""
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
            # The path is not below the SCRIPT_NAME that the environment has.
            return errors.UnknownPath("There is nothing at this path.")
        case refusals.ParseException() if type(exc).__name__.startswith("InvalidResponse"):
            # Ours was the answer that is not valid.
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
