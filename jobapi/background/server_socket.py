"""The connection of a request, which the server lends to the application in the WSGI environ.

WSGI does not define sockets. gunicorn puts the connection of a request into the environ as
``gunicorn.socket``, and Werkzeug's development server as ``werkzeug.socket``. Two features
need it:

- **A waiting claim** (``caller_is_gone``) must not lease a job to a worker that has closed its
  connection meanwhile. The state of the connection is read without taking bytes from it. If the
  server lends no socket, the caller counts as connected.

- **A stream of events** (``take_over``) must not hold a thread of the server for as long as it
  lasts: five hundred dashboards would need five hundred threads. So the stream takes the
  connection away from gunicorn and gives it to the one thread of ``event_streams``.

How ``take_over`` works, and what it assumes of gunicorn 27:

1. The view returns a response whose body is an iterator. gunicorn writes the head of a response
   with the first bytes of the body. Until the iterator has yielded something, nothing was sent,
   and the head can be written by us (``response_head``).
2. In its first step the iterator calls ``take_over``, which duplicates the file descriptor of
   the connection, and then puts the end of a closed socket pair in the place of the original.
   gunicorn keeps a socket object that it can shut down and close as always, without an effect
   on the connection. Taking the descriptor away (``detach``) would not do: gunicorn fails to
   close such an object, and then counts the connection as closed twice.
3. The iterator then calls ``give_up``, which raises ``ConnectionResetError``, as if the client
   had closed the connection. gunicorn's workers log that at level debug and close their socket.
   As no response was started, they write nothing.

A connection can be taken over only if it is a plain socket with one response at a time: under
TLS gunicorn has an ``SSLSocket``, whose state cannot be moved, and HTTP/2 shares a connection
between requests. There, and under other servers, a stream holds a thread of the server.
``tests/background/test_server_socket.py`` runs gunicorn and fails if a version of it no longer
behaves like this.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

TAKEN_OVER = "the stream has taken the connection over"


def plain_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """The connection of a request, if it can be taken over; else None."""
    lent = environ.get("gunicorn.socket")
    one_at_a_time = environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1.")
    return lent if type(lent) is socket.socket and one_at_a_time else None


def take_over(lent: socket.socket) -> socket.socket:
    """Take a connection away from the server; ``give_up`` has to follow."""
    connection = lent.dup()
    closed, other_end = socket.socketpair()
    with closed, other_end:
        os.dup2(closed.fileno(), lent.fileno(), inheritable=False)
    return connection


def give_up() -> NoReturn:
    """Let the server believe that the client has closed the connection that was taken over."""
    raise ConnectionResetError(errno.ECONNRESET, TAKEN_OVER)


def response_head(status: str, headers: Iterable[tuple[str, str]], *, chunked: bool) -> bytes:
    """The head of a response that is written without the server; the connection ends with it."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def caller_is_gone(environ: Mapping[str, Any]) -> bool:
    """Whether the sender of a request has closed its connection, as far as that can be known."""
    lent: Any = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if lent is None:
        return False
    try:
        poll = select.poll()
        poll.register(lent, select.POLLIN)
        # gevent's sockets wait for something to read in spite of MSG_DONTWAIT.
        if not poll.poll(0):
            return False
        return not lent.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        # A TLS socket takes no flags, so its state is unknown; a closed one has no descriptor.
        return not isinstance(error, ValueError) or lent.fileno() < 0
