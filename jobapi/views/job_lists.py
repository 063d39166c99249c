"""Lists of jobs: ``/workspace/{workspace_id}/jobs``, and the legacy ``/jobs``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from flask import Response, request

from ..rules.roles import Role
from ..schemas import jobs as schemas
from ..schemas.fields import MAX_PATH_VALUE
from ..services import job_errors, job_lists
from ..services.job_filters import Filters
from ..services.job_rows import Scope, in_workspace, readable_by
from ..store.transactions import snapshot
from . import examples
from .access import Caller, guard
from .base import address, json_response, paginated
from .blueprints import Blueprint
from .bodies import query_paths
from .jobs import JOBS
from .openapi import header

blp = Blueprint("job_lists", "Jobs", "")

# The time since which it is deprecated (RFC 9745): the year of the guide, which has only known it
# as deprecated.
DEPRECATION = {"Deprecation": "@1704067200"}

_METADATA_FILTER = {
    "name": "metadata.batch_id",
    "in": "query",
    "schema": {"type": "string", "maxLength": MAX_PATH_VALUE},
    "description": "Only jobs whose metadata has this value; any path of keys may follow.",
}


@blp.operation(JOBS, summary="List jobs in workspace", errors=(404,), parameters=[_METADATA_FILTER])
@guard(Role.VIEWER)
@blp.arguments(schemas.JobListQuery, location="query")
@blp.response(200, schemas.JobList, example=examples.LIST)
def list_jobs(caller: Caller, query: dict[str, Any], workspace_id: int) -> Response:
    """List the jobs that match all given filters; status, type and priority may be repeated.

    `metadata.batch_id=3` finds jobs whose metadata has that value, as a number or as a string.
    A path may be nested: `metadata.file.name=a.csv`. To read the next page, send
    `pagination.next_cursor` as `cursor`: this is fast at any depth, and jobs that are added
    meanwhile do not shift pages.

    Without `page`, a page ends at 8 MiB, and with filters without an index (`created_by`,
    metadata with many matches, `updated_after` in another order) after reading 100,000 jobs. It
    may then have fewer jobs than `limit`, and the cursor continues. With `page`, more than
    8 MiB returns 422 `page-too-large`: use a smaller `limit`, `light=true` or a cursor. A page
    more than 100,000 jobs deep returns 422 `validation-failed`: use a cursor or more filters.

    A light list has an `ETag`. Send it as `If-None-Match`: an unchanged list returns 304.
    """
    return _page(caller, in_workspace(workspace_id), query)


@blp.operation(f"{JOBS}/errors", summary="List errors of failed jobs", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(schemas.JobErrorsQuery, location="query")
@blp.response(200, schemas.JobErrors)
def list_job_errors(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """Group the failed jobs by type and cause, the largest groups first.

    The cause is the line of the error that says why the job failed. Causes that differ only in
    numbers, ids, quoted texts, paths and the like form one group. To list the jobs of a group, or
    to retry them in one operation, filter by `job_type` and `error_group`. Each group is counted
    up to 10,000 jobs, and the largest groups are chosen among the first 1,000.
    """
    job_types = query.get("job_type", ())
    for job_type in job_types:
        caller.check_job_type(job_type)
    with snapshot(caller.connection) as connection:
        found = job_errors.groups(
            connection,
            workspace_id,
            job_types=job_types,
            only_job_types=caller.job_types,
            limit=query["limit"],
        )
    return {"data": found.groups, "is_capped": found.is_capped}


def _page(caller: Caller, scope: Scope, query: dict[str, Any], **headers: str) -> Response:
    where = {name: query.pop(name) for name in _FILTERS & query.keys()}
    filters = Filters(**where, only_job_types=caller.job_types, metadata=query_paths("metadata"))
    with snapshot(caller.connection) as connection:
        found = job_lists.page(connection, scope, filters, **query)
    schema = schemas.LightJobList if query["light"] else schemas.JobList
    response = json_response(schema.render(paginated(found, query)), headers=headers)
    if query["light"]:
        # For pages that read a list again and again, mostly unchanged.
        response.add_etag()
        response.make_conditional(request)
    return response


_FILTERS = {field.name for field in fields(Filters)} - {"only_job_types", "metadata"}


@blp.operation(
    "/jobs", summary="List all user jobs", deprecated=True, parameters=[_METADATA_FILTER]
)
@guard()
@blp.arguments(schemas.LegacyJobListQuery, location="query")
@blp.response(
    200,
    schemas.JobList,
    example=examples.LIST,
    headers={
        **header("Deprecation", "When the operation was deprecated (RFC 9745)."),
        **header("Link", "The operation to use instead."),
    },
)
def list_all_jobs(caller: Caller, query: dict[str, Any]) -> Response:
    """List jobs of all workspaces that the caller may read. Use `/workspace/{id}/jobs` instead."""
    workspace_id = query.pop("workspace_id", None)
    if caller.key_workspace_id is None:
        scope = readable_by(caller.user_id, is_admin=caller.is_admin, workspace_id=workspace_id)
    elif workspace_id in (None, caller.key_workspace_id):
        scope = in_workspace(caller.key_workspace_id)
    else:
        # No workspace has this id.
        scope = in_workspace(0)
    successor = address("jobapi-workspaces.list_workspaces")
    if workspace_id is not None:
        successor = address("jobapi-job_lists.list_jobs", workspace_id=workspace_id)
    return _page(
        caller, scope, query, **DEPRECATION, Link=f'<{successor}>; rel="successor-version"'
    )
