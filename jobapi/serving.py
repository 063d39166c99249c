"""How ``jobapi serve`` answers ``/health/live`` while all of its threads are busy."""

from __future__ import annotations

import re
import selectors
import socket
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, ThreadWorker

HEAD_BYTES = 8192
"""How much of a request is looked at; a probe's is smaller."""

PROBE_THREADS = 2


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
