"""Workspaces, their members and API keys: ``/workspace``."""

from __future__ import annotations

from typing import Any

from ..errors import AdministratorOnly, RoleTooLow, UserNotFound
from ..rules.roles import Role
from ..schemas import workspaces as schemas
from ..schemas.base import PagingQuery, Reason
from ..services import accounts, counts, keys, workspaces
from .access import Caller, guard
from .base import location, paginated, state
from .blueprints import Blueprint
from .openapi import header

blp = Blueprint("workspaces", "Workspaces", "Workspaces and their members.")
keys_blp = Blueprint("keys", "API keys", "Keys for machines that use one workspace.")

WORKSPACE = "/workspace/<workspace_id>"
MEMBERS = f"{WORKSPACE}/members"
MEMBER = f"{MEMBERS}/<user_id>"
KEYS = f"{WORKSPACE}/keys"
KEY = f"{KEYS}/<key_id>"


def _with_role(row: Any, role: Role | None) -> dict[str, Any]:
    return {**row._mapping, "role": role}


@blp.operation("/workspace", summary="List my workspaces")
@guard()
@blp.arguments(schemas.WorkspaceListQuery, location="query")
@blp.response(200, schemas.WorkspaceList)
def list_workspaces(caller: Caller, query: dict[str, Any]) -> Any:
    """List the workspaces that the caller may read, with the caller's role in each.

    `counts=true` adds the number of pending, running and failed jobs in each. A key that is limited
    to job types counts only these.
    """
    with_counts = query.pop("counts")
    found = workspaces.page(
        caller.connection,
        user_id=caller.user_id,
        is_admin=caller.is_admin,
        only_workspace=caller.key_workspace_id,
        **query,
    )
    items = [_with_role(row, caller.role if caller.key_id else row.role) for row in found.rows]
    if with_counts:
        ids = [row.id for row in found.rows]
        by_id = counts.of_workspaces(caller.connection, ids, caller.job_types)
        items = [{**item, "counts": by_id[item["id"]]} for item in items]
    return paginated(found, query, items)


@blp.operation("/workspace", "POST", summary="Create workspace")
@guard(keys=False)
@blp.arguments(schemas.WorkspaceName)
@blp.response(201, schemas.Workspace, headers=header("Location", "The new workspace's URL."))
def create_workspace(caller: Caller, body: dict[str, Any]) -> Any:
    """Create a workspace; the caller becomes its owner."""
    row = workspaces.create(caller.connection, body["name"], owner_id=caller.user_id)
    headers = location("jobapi-workspaces.get_workspace", workspace_id=row.id)
    return _with_role(row, Role.OWNER), headers


@blp.operation(WORKSPACE, summary="Get workspace", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.Workspace)
def get_workspace(caller: Caller, workspace_id: int) -> Any:
    """Return a workspace, and the caller's role in it."""
    return _with_role(workspaces.get(caller.connection, workspace_id), caller.role)


@blp.operation(WORKSPACE, "PATCH", summary="Update workspace", errors=(404,))
@guard(Role.OWNER)
@blp.arguments(schemas.WorkspaceUpdate)
@blp.response(200, schemas.Workspace)
def update_workspace(caller: Caller, body: dict[str, Any], workspace_id: int) -> Any:
    """Rename a workspace, or change how long it keeps jobs and events, or how priorities age.

    Absent fields stay as they are. In `retention`, `null` means forever, which is the default for
    jobs.
    """
    row = workspaces.change(caller.connection, workspace_id, actor=caller.name, **body)
    return _with_role(row, caller.role)


@blp.operation(f"{WORKSPACE}/pause", "POST", summary="Pause workspace", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.arguments(Reason, location="optional_json", required=False)
@blp.response(200, schemas.Workspace)
def pause_workspace(caller: Caller, body: dict[str, Any], workspace_id: int) -> Any:
    """Stop handing out jobs. Running jobs continue, and jobs can be created."""
    row = workspaces.pause(caller.connection, workspace_id, body.get("reason"), actor=caller.name)
    return _with_role(row, caller.role)


@blp.operation(f"{WORKSPACE}/resume", "POST", summary="Resume workspace", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.response(200, schemas.Workspace)
def resume_workspace(caller: Caller, workspace_id: int) -> Any:
    """Hand out jobs again."""
    row = workspaces.resume(caller.connection, workspace_id, actor=caller.name)
    state().waiters.announce(caller.connection, workspace_id)
    return _with_role(row, caller.role)


@blp.operation(WORKSPACE, "DELETE", summary="Delete workspace", errors=(404,))
@guard(Role.OWNER, keys=False)
@blp.response(204)
def delete_workspace(caller: Caller, workspace_id: int) -> None:
    """Delete a workspace with all its jobs, keys and members. This cannot be undone."""
    workspaces.remove(caller.connection, workspace_id)


@blp.operation(MEMBERS, summary="List members", errors=(404,))
@guard(Role.VIEWER)
@blp.arguments(PagingQuery, location="query")
@blp.response(200, schemas.MemberList)
def list_members(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the members of a workspace and their roles."""
    found = workspaces.page_members(caller.connection, workspace_id, **query)
    return paginated(found, query)


@blp.operation(MEMBERS, "POST", summary="Add member", errors=(404, 409))
@guard(Role.OWNER, keys=False)
@blp.arguments(schemas.MemberAdd)
@blp.response(201, schemas.Member, headers=header("Location", "The new member's URL."))
def add_member(caller: Caller, body: dict[str, Any], workspace_id: int) -> Any:
    """Add a user, named by the exact `username`, as a member.

    Administrators may send `user_id` instead. For anyone else, `user_id` returns 403, so that
    users cannot be enumerated. For owners, a disabled user returns 404, like an unknown one.
    """
    user = _named(caller, body)
    row = workspaces.add_member(
        caller.connection, workspace_id, user.id, body["role"], actor=caller.name
    )
    headers = location("jobapi-workspaces.get_member", workspace_id=workspace_id, user_id=user.id)
    return row, headers


def _named(caller: Caller, body: dict[str, Any]) -> Any:
    if "username" in body:
        user = accounts.find_user(caller.connection, body["username"])
    elif caller.is_admin:
        user = accounts.get_user(caller.connection, body["user_id"])
    else:
        raise AdministratorOnly(
            "Only an administrator may add a member by user_id; send the exact username instead."
        )
    if user.disabled and not caller.is_admin:
        raise UserNotFound(accounts.unknown_user(user.username))
    return user


@blp.operation(MEMBER, summary="Get member", errors=(404,))
@guard(Role.VIEWER)
@blp.response(200, schemas.Member)
def get_member(caller: Caller, workspace_id: int, user_id: int) -> Any:
    """Return a member."""
    return workspaces.get_member(caller.connection, workspace_id, user_id)


@blp.operation(MEMBER, "PATCH", summary="Change member's role", errors=(404, 409))
@guard(Role.OWNER, keys=False)
@blp.arguments(schemas.MemberUpdate)
@blp.response(200, schemas.Member)
def update_member(caller: Caller, body: dict[str, Any], workspace_id: int, user_id: int) -> Any:
    """Change a member's role, with immediate effect."""
    return workspaces.set_role(
        caller.connection, workspace_id, user_id, body["role"], actor=caller.name
    )


@blp.operation(MEMBER, "DELETE", summary="Remove member", errors=(404, 409))
@guard(Role.VIEWER, keys=False)
@blp.response(204)
def remove_member(caller: Caller, workspace_id: int, user_id: int) -> None:
    """Remove a member. Owners may remove anyone, other members only themselves.

    The last owner cannot leave.
    """
    if user_id != caller.user_id and caller.role is not Role.OWNER:
        raise RoleTooLow("Only an owner can remove another member.")
    workspaces.remove_member(caller.connection, workspace_id, user_id, actor=caller.name)


@keys_blp.operation(KEYS, summary="List API keys", errors=(404,))
@guard(Role.OWNER, keys=False)
@keys_blp.arguments(PagingQuery, location="query")
@keys_blp.response(200, schemas.KeyList)
def list_keys(caller: Caller, query: dict[str, Any], workspace_id: int) -> Any:
    """List the API keys of a workspace, revoked ones included. The secrets are not stored."""
    found = keys.page(caller.connection, workspace_id, **query)
    return paginated(found, query)


@keys_blp.operation(KEYS, "POST", summary="Create API key", errors=(404,))
@guard(Role.OWNER, keys=False)
@keys_blp.arguments(schemas.KeyCreate)
@keys_blp.response(201, schemas.NewKey)
def create_key(caller: Caller, body: dict[str, Any], workspace_id: int) -> Any:
    """Create an API key that acts for the caller. The key is shown only once."""
    row, key = keys.create(
        caller.connection, workspace_id, user_id=caller.user_id, actor=caller.name, **body
    )
    return {**row._mapping, "key": key}, {"Cache-Control": "no-store"}


@keys_blp.operation(KEY, "DELETE", summary="Revoke API key", errors=(404,))
@guard(Role.OWNER, keys=False)
@keys_blp.response(204)
def revoke_key(caller: Caller, workspace_id: int, key_id: int) -> None:
    """Revoke a key, with immediate effect."""
    keys.revoke(caller.connection, workspace_id, key_id, actor=caller.name)
