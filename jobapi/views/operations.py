"""One call for many jobs: ``/workspace/{workspace_id}/operations``."""

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
from ..services.job_lists import Filters
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

# A dry run has no more than a plan.
_BLANK = dict.fromkeys(["id", *schemas.Operation().fields])


def _shown(operation: Mapping[str, Any]) -> dict[str, Any]:
    """What the schema renders; of the filter only what was given."""
    kept = operation["filter"]
    filters = Filters.from_json(kept)
    return {**_BLANK, **operation, "filter": {name: getattr(filters, name) for name in kept}}


def _only_by(caller: Caller) -> str | None:
    """Whose operations the caller sees: a key for some job types none but its own."""
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
    headers={
        **REPLAYED_HEADER,
        **header("Location", "Where its progress is read."),
    },
)
def create_operation(caller: Caller, body: dict[str, Any], workspace_id: int) -> Response:
    """Do something to all jobs that match a filter and are there now.

    Few are done with when the answer comes; of more than 500 the rest follows
    in the background, while the operation can be read and stopped. With `dry_run`
    nothing is done but to say how many match. `delete` needs an owner.
    """
    action = body["action"]
    caller.check_role(_role(action))
    filters = Filters(**body["filter"], only_job_types=caller.job_types)
    if body["dry_run"]:
        # Nothing is done that could be repeated; a wrong one is wrong all the same.
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
            by=caller.name,
            reason=body.get("reason"),
        )
        return schemas.Operation.render(_shown(row._asdict()))

    answer, headers = replayable(caller, workspace_id, "create_operation", body, create)
    if action is Action.RETRY:
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
    """The newest first; what ended more than 30 days ago is not there any more.

    A key for some job types sees the operations that it has begun.
    """
    found = operations.page(caller.connection, workspace_id, by=_only_by(caller), **query)
    return paginated(found, query, [_shown(row._asdict()) for row in found.rows])


@blp.operation(OPERATION, summary="Get operation", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.Operation, example=examples.OPERATION)
def get_operation(caller: Caller, workspace_id: int, operation_id: int) -> Any:
    """How far an operation is."""
    row = operations.get(caller.connection, workspace_id, operation_id, by=_only_by(caller))
    return _shown(row._asdict())


@blp.operation(f"{OPERATION}/stop", "POST", summary="Stop operation", errors=(404, 409))
@guard(Role.MEMBER)
@blp.response(
    200,
    schemas.Operation,
    example={**examples.OPERATION, "status": OperationStatus.STOPPED.label},
)
def stop_operation(caller: Caller, workspace_id: int, operation_id: int) -> Any:
    """Leave an operation where it is; what it has done stays. One that has ended is 409."""
    row = operations.get(caller.connection, workspace_id, operation_id, by=_only_by(caller))
    caller.check_role(_role(row.action))
    row = operations.stop(caller.connection, workspace_id, operation_id)
    return _shown(row._asdict())
