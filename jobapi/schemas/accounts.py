"""Users and logins."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from ..rules.roles import (
    MAX_PASSWORD_LENGTH,
    MIN_PASSWORD_LENGTH,
    USERNAME_PATTERN,
    USERNAME_RULE,
    normal_password,
)
from .base import Pagination
from .fields import Flag, Pattern, Time, doc
from .loading import Base
from .rendering import Response


class _Length(validate.Length):
    def __call__(self, value: Any) -> Any:
        super().__call__(normal_password(value))
        return value


def _new_password(**kw: Any) -> fields.String:
    return fields.String(
        validate=_Length(MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH),
        metadata=doc(
            f"{MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters, counted "
            "and compared in Unicode form NFC.",
            format="password",
        ),
        **kw,
    )


class LoginRequest(Base):
    """A user's name and password."""

    username = fields.String(required=True)
    password = fields.String(required=True, metadata={"format": "password"})


class Tokens(Response):
    """The tokens of a login."""

    access_token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    token_type = fields.String(required=True, metadata=doc("Always `bearer`."))
    expires_in = fields.Integer(
        required=True, metadata=doc("Seconds until the access token expires.")
    )


class PasswordChange(Base):
    """The caller's password, old and new."""

    current_password = fields.String(required=True, metadata={"format": "password"})
    new_password = _new_password(required=True)


class UserCreate(Base):
    """A new user."""

    username = fields.String(
        required=True, validate=Pattern(f"^{USERNAME_PATTERN}$", error=USERNAME_RULE)
    )
    password = _new_password(required=True)
    is_admin = Flag(load_default=False)


class UserUpdate(Base):
    """Changes to a user."""

    password = _new_password()
    is_admin = Flag()
    disabled = Flag()


class User(Response):
    """A user."""

    user_id = fields.Integer(attribute="id", required=True)
    username = fields.String(required=True)
    is_admin = fields.Boolean(required=True)
    disabled = fields.Boolean(required=True)
    created_at = Time(required=True)


class UserList(Response):
    """A page of users."""

    data = fields.List(fields.Nested(User), required=True)
    pagination = fields.Nested(Pagination, required=True)
