"""What happened: ``/workspace/{workspace_id}/events``, and a job's history."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from flask import Response, current_app, request

from ..background.event_streams import Stream, Streams, heartbeat
from ..background.server_socket import give_up, plain_socket, response_head, take_over
from ..errors import TooManyRequests, Unavailable
from ..rules.roles import Role
from ..schemas import events as schemas
from ..services import events
from ..services.events import Position
from ..store.transactions import snapshot
from . import examples
from .access import Caller, guard, identify, may_still
from .base import paginated, sent, state, to_json
from .blueprints import Blueprint
from .openapi import header, header_parameter

blp = Blueprint("events", "Events", "What happened, when, and by whom; as lists and as a stream.")

EVENTS = "/workspace/<workspace_id>/events"


def filters_of(caller: Caller, query: dict[str, Any]) -> events.EventFilters:
    """What of the workspace's events the caller wants, and may see."""
    names = ("kind", "job_id", "job_type")
    given = {name: query[name] for name in names if name in query}
    return events.EventFilters(
        **given, only_job_types=caller.job_types, owner=caller.role is Role.OWNER
    )


def _page(
    caller: Caller, workspace_id: int, filters: events.EventFilters, query: dict[str, Any]
) -> Any:
    paging = {name: query[name] for name in ("limit", "order", "cursor") if name in query}
    with snapshot(caller.connection) as connection:
        found = events.page(connection, workspace_id, filters, **paging)
    return paginated(found, query)


@blp.operation(EVENTS, summary="List events", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(schemas.EventQuery, location="query")
@blp.response(200, schemas.EventList, example=examples.EVENTS)
def list_events(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the events of a workspace, the newest first, for as long as it keeps them.

    Only owners see the events about members, keys and settings. Progress is an event when it
    crosses a multiple of 10.
    """
    return _page(caller, workspace_id, filters_of(caller, query), query)


@blp.operation(
    "/workspace/<workspace_id>/jobs/<job_id>/events", summary="Get job history", errors=(404,)
)
@guard(Role.VIEWER, job_columns="status")
@blp.arguments(schemas.JobEventQuery, location="query")
@blp.response(200, schemas.EventList, example=examples.EVENTS)
def list_job_events(caller: Caller, query: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """List the events of the job, in order."""
    return _page(caller, workspace_id, events.EventFilters(job_id=job_id), query)


@blp.operation(
    f"{EVENTS}/stream",
    summary="Stream events",
    errors=(404, 429),
    parameters=[
        header_parameter(
            "Last-Event-ID", "The last `id` that the client received. The stream resumes after it."
        )
    ],
    responses={
        "200": {
            "description": "An open-ended stream of Server-Sent Events. The schema is that of one "
            "message: its `data` line is an Event as JSON, its `id` is a value for "
            "`Last-Event-ID`, and it has no `event` field. The first message that `EventSource` "
            "gets, with `event: start` and `data: {}`, is not an Event. Lines that begin with a "
            "colon are comments.",
            "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/Event"}}},
            "headers": header(
                "Last-Event-ID",
                "The position at which the stream begins: to resume one that ends before its "
                "first event.",
            ),
        }
    },
)
@guard(Role.VIEWER)
@blp.arguments(schemas.StreamQuery, location="query")
def stream_events(caller: Caller, query: dict[str, Any], workspace_id: int) -> Response:
    """Stream events as Server-Sent Events, from now on or after `Last-Event-ID`.

    Each `data` line is an event as in the list; no event is skipped or sent twice. Its `id` is the
    position after it: the `event_id`, with a suffix while other transactions are open. The first
    lines give the position at which the stream begins: an `id` and a comment, or for
    `EventSource` an event of type `start`. A comment every 15 seconds is a heartbeat.
    """
    streams = state().streams
    given = sent("Last-Event-ID") or query.get("last_event_id")
    with snapshot(caller.connection) as connection:
        position = (
            events.resume(connection, given) if given else events.begin(connection, workspace_id)
        )
    sock = plain_socket(request.environ)
    limit = streams.limit if sock else min(streams.limit, _threads_for_streams())
    if not limit:
        raise Unavailable(
            "This server process has no thread for streams; list the events instead."
            if streams.limit
            else "Streams are switched off (JOBAPI_MAX_STREAMS is 0); list the events instead.",
            retry_after=60,
        )
    stream = Stream(
        workspace_id=workspace_id,
        user_id=caller.user_id,
        filters=filters_of(caller, query),
        position=position,
        frame=_frame,
        is_allowed=may_still(identify(), workspace_id, caller.role, caller.job_types),
        # Clients that read whole blocks pass on what they have at the end of each chunk.
        chunked=sock is not None and request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1",
    )
    if not streams.reserve(stream, limit):
        raise TooManyRequests("Too many streams are open; try again.", retry_after=5)
    response = current_app.response_class(mimetype="text/event-stream")
    response.headers["Last-Event-ID"] = position.name
    # Otherwise nginx buffers the events.
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(lambda: streams.release(stream))
    first = _first(position)
    if sock is None:
        response.response = _relayed(streams, stream, first)
    else:
        response.response = _taken_over(streams, stream, first, response, sock)
    return response


def _threads_for_streams() -> int:
    """How many of the server's threads streams may hold.

    At most a quarter. One thread stays free of streams and waiting claims.
    """
    if not request.environ.get("wsgi.multithread"):
        return 0
    threads = state().server_threads
    return min(max(1, threads // 4), threads - threads // 2 - 1)


def _first(position: Position) -> bytes:
    """The first lines of a stream: the position to resume from if it breaks before an event.

    ``EventSource``, in browsers and in Node, keeps an ``id`` only from an event with data,
    and dispatches events by type. Its requests have ``Sec-Fetch-Mode``, like all
    requests of a browser. Other clients could take that event for one about a job, so
    they get the ``id`` with a comment.
    """
    accepts = "text/event-stream" in (sent("Accept") or "")
    if accepts and sent("Sec-Fetch-Mode") is not None:
        return b"id: %b\nevent: start\ndata: {}\n\n" % position.name.encode()
    return heartbeat(position)


def _relayed(streams: Streams, stream: Stream, first: bytes) -> Iterator[bytes]:
    """The stream's bytes, relayed by this thread of the server."""
    ours, theirs = socket.socketpair()
    with ours:
        streams.add(theirs, stream, first=first, holds_thread=True)
        while data := ours.recv(65536):
            yield data


def _taken_over(
    streams: Streams, stream: Stream, first: bytes, response: Response, sock: socket.socket
) -> Iterator[bytes]:
    """An empty body; when the server asks for it, the stream continues without the server."""
    yield from ()
    head = response_head(response.status, response.headers, chunked=stream.chunked)
    streams.add(take_over(sock), stream, head=head, first=first)
    give_up()


def _frame(row: Any, position: str) -> bytes:
    """An event as a message of a stream; its ``id`` is the name of the position after it."""
    return b"id: %b\ndata: %b\n\n" % (
        position.encode(),
        to_json(schemas.Event.render(row)).rstrip(),
    )
