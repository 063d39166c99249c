"""Access and refresh tokens (JWT).

flask-jwt-extended issues them. It keeps its configuration on the application, and
a host application may use the extension too, so ours is configured on a private
application that serves nothing. PyJWT verifies tokens, because it can require
claims and the extension cannot.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import jwt
from flask import Flask
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token

from .errors import TokenExpired, TokenInvalid
from .services.accounts import Login
from .store.tables import MAX_ID

TokenType = Literal["access", "refresh"]

_ALGORITHM = "HS256"
_CLAIMS = ["sub", "sid", "type", "exp", "iat", "jti"]
_CACHE_SIZE = 4096
# The clocks of nodes differ a little. A token from a node whose clock is ahead must
# not be refused as issued in the future. The expiry is checked without this leeway.
_LEEWAY_SECONDS = 60

_USER_ID = re.compile(r"[1-9][0-9]{0,9}")
_RANDOM_ID = re.compile(r"[0-9a-f]{32}")


class Claims(NamedTuple):
    """The verified claims of a token."""

    user_id: int
    session_id: str
    token_id: str
    """The id of a refresh token; empty for an access token."""

    type: TokenType
    expires: int
    """In seconds since 1970."""


class TokenIssuer:
    """Issues and verifies tokens."""

    def __init__(self, private: Flask, secret: str, access_seconds: int, refresh_seconds: int):
        private.config |= {
            "JWT_SECRET_KEY": secret,
            "JWT_ALGORITHM": _ALGORITHM,
            "JWT_ENCODE_NBF": False,
        }
        JWTManager(private)
        self._private = private
        self._secret = secret
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()
        self.access_seconds = access_seconds
        self.refresh_lifetime = timedelta(seconds=refresh_seconds)

    def issue(self, login: Login) -> dict[str, Any]:
        """The response to a login or a refresh. No token outlives its login session."""
        claims = {"sid": login.session_id}
        subject = str(login.user_id)
        access = max(1, min(self.access_seconds, int(login.seconds)))
        refresh = max(1, min(self.refresh_lifetime.total_seconds(), login.seconds))
        with self._private.app_context():
            return {
                "access_token": create_access_token(
                    subject, additional_claims=claims, expires_delta=timedelta(seconds=access)
                ),
                "refresh_token": create_refresh_token(
                    subject,
                    additional_claims={**claims, "rid": login.refresh_id},
                    expires_delta=timedelta(seconds=refresh),
                ),
                "token_type": "bearer",
                "expires_in": access,
            }

    def verify(self, token: str, wanted: TokenType) -> Claims:
        """The claims of a token. Raises ``TokenInvalid`` or ``TokenExpired``.

        It does not check whether the login session has ended: that is in the database.
        A client sends the same token with every request, so the claims of verified
        tokens are cached by the hash of the token, and only the expiry is checked again.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._decode(token)
            self._verified[digest] = claims
            while len(self._verified) > _CACHE_SIZE:
                try:
                    self._verified.popitem(last=False)
                except KeyError:
                    break  # another thread has emptied it
        if claims.expires <= time.time():
            raise TokenExpired(_EXPIRED)
        if claims.type != wanted:
            raise TokenInvalid(f"This is the {claims.type} token. Send the {wanted} token.")
        return claims

    def _decode(self, token: str) -> Claims:
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                leeway=_LEEWAY_SECONDS,
                options={"require": _CLAIMS},
            )
            return _claims(claims)
        except jwt.ExpiredSignatureError:
            raise TokenExpired(_EXPIRED) from None
        except (jwt.PyJWTError, *_UNREADABLE):
            raise TokenInvalid("The token is not valid. Log in to get a new one.") from None


_EXPIRED = "The token has expired. Refresh it, or log in again."

# Raised through PyJWT for claims of a wrong type or size, and for JSON that is
# nested too deeply.
_UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _claims(claims: Any) -> Claims:
    """Check the claims of a token with a valid signature. Raises ``ValueError``."""
    user_id, session_id, kind, expires, issued = (
        claims[name] for name in ("sub", "sid", "type", "exp", "iat")
    )
    token_id = claims["rid"] if kind == "refresh" else ""
    if (
        kind not in ("access", "refresh")
        or type(expires) is not int
        or type(issued) is not int
        or not _USER_ID.fullmatch(user_id)
        or int(user_id) > MAX_ID
        or not _RANDOM_ID.fullmatch(session_id)
        or (kind == "refresh" and not _RANDOM_ID.fullmatch(token_id))
    ):
        raise ValueError("invalid claim")
    return Claims(int(user_id), session_id, token_id, kind, expires)
