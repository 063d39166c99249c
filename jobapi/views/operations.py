"""Actions on many jobs: ``/workspace/{workspace_id}/operations``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response
from sqlalchemy import Connection

from ..rules.operations import Action, OperationStatus
from ..rules.roles import Role
from ..schemas import operations as schemas
from ..schemas.base import PagingQuery
from ..services import operations
from ..services.job_filters import Filters
from . import examples
from .access import Caller, guard
from .base import json_response, location, paginated, state
from .blueprints import Blueprint
from .openapi import header
from .replay import IDEMPOTENCY_KEY, REPLAYED_HEADER, idempotency_key, replayable

blp = Blueprint(
    "operations", "Operations", "Cancel, retry or delete all jobs that match a filter, in one call."
)

OPERATIONS = "/workspace/<workspace_id>/operations"
OPERATION = f"{OPERATIONS}/<operation_id>"

# A dry run has only the fields of a plan.
_BLANK = dict.fromkeys(["id", *schemas.Operation().fields])


def _shown(operation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the schema renders, with only the given parts of the filter."""
    kept = operation["filter"]
    filters = Filters.from_json(kept)
    return {**_BLANK, **operation, "filter": {name: getattr(filters, name) for name in kept}}


def _only_actor(caller: Caller) -> str | None:
    """Return the only actor whose operations the caller sees: a key with job types sees its own."""
    return caller.name if caller.job_types is not None else None


def _role(action: int) -> Role:
    return Role.OWNER if action == Action.DELETE else Role.MEMBER


@blp.operation(
    OPERATIONS,
    "POST",
    summary="Cancel, retry or delete many jobs",
    errors=(404, 409),
    parameters=[IDEMPOTENCY_KEY],
    responses={
        "200": {
            "description": "A dry run.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Operation"}}},
        }
    },
)
@guard(Role.MEMBER)
@blp.arguments(schemas.OperationCreate, example=examples.OPERATION_CREATE)
@blp.response(
    201,
    schemas.Operation,
    example=examples.OPERATION,
    headers={**REPLAYED_HEADER, **header("Location", "The new operation's URL.")},
)
def create_operation(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Cancel, retry or delete all jobs that match a filter at this moment.

    Up to 500 jobs are changed before the response; the rest are changed in the background, and
    the operation can be read and stopped meanwhile. `dry_run` only counts the matching jobs.
    `delete` needs the role owner.
    """
    action = body["action"]
    caller.check_role(_role(action))
    filters = Filters(**body["filter"], only_job_types=caller.job_types)
    if body["dry_run"]:
        # A dry run needs no key, but an invalid one is refused all the same.
        idempotency_key()
        planned = operations.plan(caller.connection, workspace_id, action, filters)
        return json_response(
            schemas.Operation.render(_shown({**planned, "reason": body.get("reason")}))
        )

    def create(connection: Connection) -> dict[str, Any]:
        row = operations.create(
            connection,
            workspace_id,
            action,
            filters,
            created_by=caller.user_id,
            actor=caller.name,
            reason=body.get("reason"),
        )
        return schemas.Operation.render(_shown(row._asdict()))

    answer, headers = replayable(caller, workspace_id, "create_operation", body, create)
    if action is not Action.DELETE:
        # Retried jobs are due; cancelled ones may have held slots.
        state().waiters.announce(caller.connection, workspace_id)
    url = location(
        "jobapi-operations.get_operation",
        workspace_id=workspace_id,
        operation_id=answer["operation_id"],
    )
    return json_response(answer, 201, {**url, **headers})


@blp.operation(OPERATIONS, summary="List operations", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(PagingQuery, location="query")
@blp.response(200, schemas.OperationList)
def list_operations(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List operations, the newest first. Operations that ended more than 30 days ago are deleted.

    A key that is limited to job types sees only the operations that it created.
    """
    found = operations.page(caller.connection, workspace_id, actor=_only_actor(caller), **query)
    return paginated(found, query, [_shown(row._asdict()) for row in found.rows])


@blp.operation(OPERATION, summary="Get operation", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.Operation, example=examples.OPERATION)
def get_operation(caller: Caller, workspace_id: int, operation_id: int) -> Any:
    """Return an operation and its progress."""
    row = operations.get(caller.connection, workspace_id, operation_id, actor=_only_actor(caller))
    return _shown(row._asdict())


@blp.operation(f"{OPERATION}/stop", "POST", summary="Stop operation", errors=(404, 409))
@guard(Role.MEMBER)
@blp.response(
    200, schemas.Operation, example={**examples.OPERATION, "status": OperationStatus.STOPPED.label}
)
def stop_operation(caller: Caller, workspace_id: int, operation_id: int) -> Any:
    """Stop an operation; jobs already changed stay changed. 409 if it has ended."""
    row = operations.get(caller.connection, workspace_id, operation_id, actor=_only_actor(caller))
    caller.check_role(_role(row.action))
    row = operations.stop(caller.connection, workspace_id, operation_id)
    return _shown(row._asdict())
