"""What happened: ``/workspace/{workspace_id}/events``, and a job's history."""

from __future__ import annotations

from typing import Any

from flask import Response

from .. import events, schemas
from ..database import snapshot
from ..identity import Role
from ..lifecycle import EventKind, JobStatus
from . import examples
from .access import Caller, guard
from .base import Blueprint, json_response

blp = Blueprint("events", "Events", "What happened, when, and by whom; as lists and as a stream.")

EVENTS = "/workspace/<workspace_id>/events"

_KINDS = {kind: kind.label for kind in EventKind}
_STATUSES = {status: status.label for status in JobStatus} | {None: None}


def event_object(row: Any) -> dict[str, Any]:
    """An event as ``schemas.Event`` has it, from a row."""
    who, _, number = (row.actor or "").partition(":")
    return {
        "event_id": events.name_of((row.xid, row.id)),
        "at": row.at,
        "kind": _KINDS[row.kind],
        "workspace_id": row.workspace_id,
        "job_id": row.job_id,
        "job_type": row.job_type,
        "from_status": _STATUSES[row.from_status],
        "to_status": _STATUSES[row.to_status],
        "attempt": row.attempt,
        "user_id": int(number) if who == "user" else None,
        "key_id": int(number) if who == "key" else None,
        "worker": row.worker,
        "data": row.data,
    }


def filters_of(caller: Caller, query: dict[str, Any]) -> events.EventFilters:
    """What of the workspace's events the caller wants, and may see."""
    names = ("kind", "job_id", "job_type")
    given = {name: query[name] for name in names if name in query}
    return events.EventFilters(
        **given, only_job_types=caller.job_types, owner=caller.role is Role.OWNER
    )


def _page(
    caller: Caller, workspace_id: int, filters: events.EventFilters, query: dict[str, Any]
) -> Response:
    paging = {name: query[name] for name in ("limit", "order", "cursor") if name in query}
    with snapshot(caller.connection) as connection:
        found = events.page(connection, workspace_id, filters, **paging)
    return json_response(
        {
            "data": [event_object(row) for row in found.rows],
            "pagination": {
                "limit": query["limit"],
                "total": found.total,
                "total_is_capped": found.total_is_capped,
                "next_cursor": found.next_cursor,
            },
        }
    )


@blp.operation(EVENTS, summary="List events", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(schemas.EventQuery, location="query")
@blp.response(200, schemas.EventList, example=examples.EVENTS)
def list_events(caller: Caller, query: dict[str, Any], workspace_id: int) -> Response:
    """What happened in the workspace, the newest first, for as long as it keeps events.

    What happened to members and keys is for owners. Progress is an event when it
    comes into another tenth.
    """
    return _page(caller, workspace_id, filters_of(caller, query), query)


@blp.operation(
    "/workspace/<workspace_id>/jobs/<job_id>/events", summary="Get job history", errors=(404,)
)
@guard(Role.VIEWER, job="status")
@blp.arguments(schemas.JobEventQuery, location="query")
@blp.response(200, schemas.EventList, example=examples.EVENTS)
def list_job_events(
    caller: Caller, query: dict[str, Any], workspace_id: int, job_id: str
) -> Response:
    """What happened to the job, in its order."""
    return _page(caller, workspace_id, events.EventFilters(job_id=job_id), query)
