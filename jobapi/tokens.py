"""Access and refresh tokens: made by flask-jwt-extended, on an app of its own.

That extension keeps one configuration per application. A host application may
have its own, so ours lives on a private application that serves nothing. PyJWT
reads the tokens: unlike the extension it can require claims.
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
# Nodes' clocks differ a little: a token from a node that is ahead must not be
# refused as issued in the future. The expiry is checked without this leeway.
_LEEWAY_SECONDS = 60

_USER_ID = re.compile(r"[1-9][0-9]{0,9}")
_RANDOM_ID = re.compile(r"[0-9a-f]{32}")


class Claims(NamedTuple):
    """What a token of ours says."""

    user_id: int
    session_id: str
    token_id: str
    type: TokenType
    expires: int


class TokenMint:
    """Makes tokens and reads them."""

    def __init__(self, private: Flask, secret: str, access_seconds: int, refresh_seconds: int):
        private.config |= {
            "JWT_SECRET_KEY": secret,
            "JWT_ALGORITHM": _ALGORITHM,
            "JWT_ENCODE_NBF": False,
        }
        JWTManager(private)
        self._private = private
        self._secret = secret
        self._known: OrderedDict[bytes, Claims] = OrderedDict()
        self.access_seconds = access_seconds
        self.refresh_lifetime = timedelta(seconds=refresh_seconds)

    def pair(self, login: Login) -> dict[str, Any]:
        """The answer to a log-in or a refresh. No token outlives its log-in."""
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

    def read(self, token: str, wanted: TokenType) -> Claims:
        """What a token says, if it is ours and has not expired.

        Whether it was revoked, the database knows. The same token comes with
        every request of a client, so a signature found right is remembered (by
        the token's hash) and only the expiry is looked at again.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        claims = self._known.get(digest)
        if claims is None:
            claims = self._decode(token)
            self._known[digest] = claims
            while len(self._known) > _CACHE_SIZE:
                try:
                    self._known.popitem(last=False)
                except KeyError:
                    break  # another thread has emptied it meanwhile
        if claims.expires <= time.time():
            raise TokenExpired("The token has expired; refresh it or log in again.")
        if claims.type != wanted:
            raise TokenInvalid(f"This needs the {wanted} token, not the {claims.type} token.")
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
            raise TokenExpired("The token has expired; refresh it or log in again.") from None
        except (jwt.PyJWTError, *_UNREADABLE):
            raise TokenInvalid("The token is not one of ours; log in to get one.") from None


# What PyJWT lets through for claims of a wrong type or size, and for JSON
# that is nested too deeply.
_UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _claims(claims: Any) -> Claims:
    """The claims of a token whose signature is right; ``ValueError`` if one is invalid."""
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
        raise ValueError("a claim is out of place")
    return Claims(int(user_id), session_id, token_id, kind, expires)
