"""Login, logout, and the caller's own account: ``/auth``."""

from __future__ import annotations

from typing import Any

from flask import request

from ..errors import TokenMissing
from ..rules.addresses import address_bucket
from ..schemas import accounts as schemas
from ..services import accounts
from . import examples
from .access import Caller, bearer, connect, guard, public, retry_if_read_only
from .base import state
from .blueprints import Blueprint

blp = Blueprint("auth", "Auth", "Login, logout, and the caller's own account.")
own_blp = Blueprint("me", "Auth", "")

_NO_STORE = {"Cache-Control": "no-store"}


@blp.operation("/auth/login", "POST", summary="Log in", errors=(401, 429))
@public
@blp.arguments(schemas.LoginRequest, example=examples.LOGIN)
@blp.response(200, schemas.Tokens, example=examples.TOKENS)
def login(body: dict[str, Any]) -> Any:
    """Exchange a username and a password for an access token and a refresh token."""
    with connect(ping=True) as connection:
        session = retry_if_read_only(
            connection,
            lambda: accounts.log_in(
                connection,
                body["username"],
                body["password"],
                _attempts(),
                state().tokens.refresh_lifetime,
            ),
        )
    return state().tokens.issue(session), _NO_STORE


@blp.operation(
    "/auth/refresh",
    "POST",
    summary="Refresh tokens",
    errors=(401,),
    description="Send the refresh token as the Bearer token, without a body. For 30 seconds the "
    "old token may be reused and returns an equivalent pair, because a response may be lost. "
    "Reusing it later ends the login session. A login session ends 90 days after the login at the "
    "latest.",
    security=[{"bearer": []}],
)
@public
@blp.response(200, schemas.Tokens, example=examples.TOKENS)
def refresh() -> Any:
    """Exchange the refresh token for new tokens."""
    token = bearer()
    if not token:
        raise TokenMissing("Send the refresh token: Authorization: Bearer REFRESH_TOKEN")
    issuer = state().tokens
    claims = issuer.verify(token, "refresh")
    with connect(ping=True) as connection:
        session = retry_if_read_only(
            connection,
            lambda: accounts.refresh_session(
                connection, claims.session_id, claims.token_id, issuer.refresh_lifetime
            ),
        )
    return issuer.issue(session), _NO_STORE


@blp.operation("/auth/logout", "POST", summary="Log out")
@guard(keys=False)
@blp.response(204)
def logout(caller: Caller) -> None:
    """End the login session. Its access token and refresh token stop working."""
    accounts.close_session(caller.connection, caller.session_id or "")


@blp.operation("/auth/password", "POST", summary="Change own password", errors=(429,))
@guard(keys=False)
@blp.arguments(schemas.PasswordChange)
@blp.response(204)
def change_password(caller: Caller, body: dict[str, Any]) -> None:
    """Change the caller's password. All other login sessions of the user end."""
    old_hash = accounts.check_current_password(
        caller.connection, caller.user_id, body["current_password"], _attempts()
    )
    accounts.replace_password(
        caller.connection,
        caller.user_id,
        old_hash,
        body["new_password"],
        keep_session=caller.session_id,
    )


def _attempts() -> accounts.Attempts | None:
    settings = state().settings
    if not settings.ratelimit_enabled:
        return None
    return accounts.Attempts(
        address_bucket(request.remote_addr),
        settings.login_failures_per_minute,
        settings.login_failures_per_address,
        settings.login_failures_per_name,
    )


@own_blp.operation("/auth/me", summary="Get current user")
@guard(keys=False)
@own_blp.response(200, schemas.User)
def get_me(caller: Caller) -> Any:
    """Return the user who is logged in."""
    return accounts.get_user(caller.connection, caller.user_id)
