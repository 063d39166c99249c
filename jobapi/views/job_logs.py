"""The logs of jobs: ``/workspace/{workspace_id}/jobs/{job_id}/logs``."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from flask import Response, current_app, request

from ..rules.job_logs import KEPT_ENTRIES, LogLevel
from ..rules.roles import Role
from ..schemas import job_logs as schemas
from ..services import job_logs, queue
from ..store.paging import MAX_BYTES, write_cursor
from ..store.transactions import snapshot
from . import examples
from .access import Caller, guard, lease_token
from .base import JSON, paginated, state
from .blueprints import Blueprint
from .jobs import JOB, LEASE_TOKEN
from .openapi import header

blp = Blueprint("job-logs", "Job logs", "What workers log about their jobs.")

LOGS = f"{JOB}/logs"
TEXT = "text/plain"

DEFAULT_LIMIT = 100

_INDENT = "    "


@blp.operation(
    LOGS, "POST", summary="Append to a job's log", errors=(404, 409), parameters=[LEASE_TOKEN]
)
@guard(Role.WORKER, job_columns="status")
@blp.arguments(schemas.NewLogEntries, location="logs_json", example=examples.NEW_LOG_ENTRIES)
@blp.response(200, schemas.LogsAppended, example=examples.LOGS_APPENDED)
def append_job_logs(caller: Caller, body: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """Append entries to the log of a running job.

    With the token of its lease this is a report of the worker, and renews the lease. The log of a
    job that runs without a lease takes entries of members. A report may carry entries, too, as
    `logs`.
    """
    token = lease_token() or body.get("lease_token")
    if token is None:
        caller.check_role(Role.MEMBER)
    appended = queue.append_logs(
        caller.connection,
        workspace_id,
        job_id,
        body["entries"],
        lease_token=token,
        backoff=state().backoff,
        actor=caller.name,
    )
    metrics = state().metrics
    if metrics is not None:
        metrics.logged(workspace_id, [appended])
    return appended


@blp.operation(
    LOGS,
    summary="Get a job's log",
    errors=(404,),
    responses={
        "200": {
            "description": "A page of the log.",
            "content": {
                JSON: {"schema": schemas.JobLog, "example": examples.JOB_LOG},
                TEXT: {
                    "schema": {"type": "string"},
                    "example": "2024-01-15T10:02:00Z warning Read 25,000 rows\n",
                },
            },
            "headers": header("Link", 'As `text/plain`: the next page, with `rel="next"`.'),
        }
    },
)
@guard(Role.VIEWER, job_columns="log")
@blp.arguments(schemas.LogQuery, location="query")
@blp.response(200, schemas.JobLog)
def list_job_logs(caller: Caller, query: dict[str, Any], workspace_id: int, job_id: str) -> Any:
    """What the attempts at the job have logged, the oldest entry first.

    With `Accept: text/plain` a line for each entry, with its time, level and message; further
    lines of a message are indented.
    """
    job: Any = caller.job
    is_text = request.accept_mimetypes.best_match([JSON, TEXT]) == TEXT
    query.setdefault("limit", KEPT_ENTRIES if is_text else DEFAULT_LIMIT)
    with snapshot(caller.connection) as connection:
        found = job_logs.page(connection, workspace_id, job.id, **query)
    if is_text:
        return _text(found)
    answer = paginated(found, query)
    answer["pagination"]["tail_cursor"] = found.tail_cursor
    return {**answer, "dropped": found.dropped}, {"Vary": "Accept"}


def _text(found: job_logs.LogPage) -> Response:
    """The entries as lines, up to ``MAX_BYTES``, and where to continue."""
    lines: list[bytes] = []
    size = 0
    for row in found.rows:
        line = _line(row)
        size += len(line)
        if lines and size > MAX_BYTES:
            break
        lines.append(line)
    more = found.next_cursor
    if len(lines) < len(found.rows):
        more = write_cursor([found.rows[len(lines) - 1].number])
    headers = {"Vary": "Accept"}
    if more is not None:
        rest = {name: value for name, value in request.args.items() if name != "cursor"}
        headers["Link"] = f'<?{urlencode({**rest, "cursor": more})}>; rel="next"'
    return current_app.response_class(b"".join(lines), headers=headers, mimetype=TEXT)


def _line(row: Any) -> bytes:
    # Everything that a reader may take for the end of a line, so that no message can look like
    # another entry.
    first, *others = row.message.splitlines() or [""]
    level = LogLevel(row.level).label
    lines = [f"{row.at:%Y-%m-%dT%H:%M:%SZ} {level} {first}", *(_INDENT + other for other in others)]
    return "".join(f"{line}\n" for line in lines).encode()
