"""Users, for administrators: ``/users``."""

from __future__ import annotations

from typing import Any

from ..schemas import accounts as schemas
from ..schemas.base import PagingQuery
from ..services import accounts
from .access import Caller, guard
from .base import location, paginated
from .blueprints import Blueprint
from .openapi import header

blp = Blueprint("users", "Users", "User accounts, for administrators.")

USER = "/users/<user_id>"


@blp.operation("/users", summary="List users")
@guard(admin=True)
@blp.arguments(PagingQuery, location="query")
@blp.response(200, schemas.UserList)
def list_users(caller: Caller, query: dict[str, Any]) -> Any:
    """List all users, the oldest first."""
    found = accounts.page_users(caller.connection, **query)
    return paginated(found, query)


@blp.operation("/users", "POST", summary="Create user", errors=(409,))
@guard(admin=True)
@blp.arguments(schemas.UserCreate)
@blp.response(201, schemas.User, headers=header("Location", "The new user's URL."))
def create_user(caller: Caller, body: dict[str, Any]) -> Any:
    """Create a user who can log in."""
    row = accounts.create_user(caller.connection, **body)
    return row, location("jobapi-users.get_user", user_id=row.id)


@blp.operation(USER, summary="Get user", errors=(404,))
@guard(admin=True)
@blp.response(200, schemas.User)
def get_user(caller: Caller, user_id: int) -> Any:
    """Return a user."""
    return accounts.get_user(caller.connection, user_id)


@blp.operation(USER, "PATCH", summary="Update user", errors=(404, 409))
@guard(admin=True)
@blp.arguments(schemas.UserUpdate)
@blp.response(200, schemas.User)
def update_user(caller: Caller, body: dict[str, Any], user_id: int) -> Any:
    """Disable or enable a user, set a new password, or grant or revoke the administrator right.

    Disabling a user, or setting a new password, ends the user's login sessions at once. While a
    user is disabled, the API keys that act for the user do not work. The last enabled
    administrator cannot be disabled or demoted.
    """
    return accounts.edit_user(caller.connection, user_id, body)
