"""Users and their log-ins."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import uuid4

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import case, delete, exists, insert, select, update

from .database import AnyRow, DbNow, Executor, dialect_name, insert_or_ignore
from .errors import (
    LastAdministrator,
    LoginFailed,
    TokenRevoked,
    TooManyRequests,
    UsernameTaken,
    UserNotFound,
    ValidationFailed,
)
from .identity import (
    MAX_PASSWORD_LENGTH,
    MIN_PASSWORD_LENGTH,
    USERNAME_PATTERN,
    USERNAME_RULE,
)
from .models import login_failures, sessions, users
from .paging import Page, fetch_page

HOST_USER_PREFIX = "host:"
LOGIN_WINDOW = timedelta(minutes=1)

# Argon2id with the second of the settings that OWASP's Password Storage Cheat
# Sheet gives as equally strong: 19 MiB, 2 passes, 1 lane; some 30 ms.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@cache
def _nobodys_hash() -> str:
    return _hasher.hash(secrets.token_urlsafe())


def check_password_form(password: str, field: str = "password") -> None:
    """Refuse a new password that is too short or too long (``ValidationFailed``)."""
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise ValidationFailed(
            {field: [f"Use {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters."]}
        )


def create_user(
    session: Executor, username: str, *, password: str | None, is_admin: bool = False
) -> AnyRow:
    """Add a user; without a password nobody can log in as them here.

    Raises ``UsernameTaken``, or ``ValidationFailed`` for the form of either.
    """
    if not re.fullmatch(USERNAME_PATTERN, username):
        raise ValidationFailed({"username": [USERNAME_RULE]})
    if password is not None:
        check_password_form(password)
    row = _insert_user(session, username, password, is_admin)
    if row is None:
        raise UsernameTaken(f"There is a user {username!r} already; choose another name.")
    return row


def _insert_user(
    session: Executor, username: str, password: str | None, is_admin: bool
) -> AnyRow | None:
    now = session.execute(select(DbNow())).scalar_one()
    return session.execute(
        insert_or_ignore(dialect_name(session), users)
        .values(
            username=username,
            password_hash=None if password is None else _hasher.hash(password),
            is_admin=is_admin,
            disabled=False,
            created_at=now,
            updated_at=now,
        )
        .on_conflict_do_nothing()
        .returning(*users.c)
    ).first()


def host_username(host_id: object) -> str:
    """The name under which a host application's user is known here.

    The colon keeps them apart from users who log in here. Raises
    ``ValueError`` for an id that is empty or longer than 200 characters.
    """
    text = str(host_id)
    if not 1 <= len(text) <= 200 or "\x00" in text:
        raise ValueError("the id of the current user must have 1 to 200 characters")
    return HOST_USER_PREFIX + text


def host_user(session: Executor, host_id: object, *, is_admin: bool = False) -> AnyRow:
    """The user row of a host application's user, made when first asked for."""
    name = host_username(host_id)
    row = session.execute(select(users).where(users.c.username == name)).first()
    row = row or _insert_user(session, name, None, is_admin)
    # None again: somebody else made it between the two statements.
    return row or session.execute(select(users).where(users.c.username == name)).one()


def get_user(session: Executor, user_id: int) -> AnyRow:
    """One user. Raises ``UserNotFound``."""
    row = session.execute(select(users).where(users.c.id == user_id)).first()
    if row is None:
        raise UserNotFound("There is no such user.")
    return row


def find_user(session: Executor, username: str) -> AnyRow:
    """One user by name. Raises ``UserNotFound``."""
    row = session.execute(select(users).where(users.c.username == username)).first()
    if row is None:
        raise UserNotFound(unknown_user(username))
    return row


def unknown_user(username: str) -> str:
    """What is said of a name that no user has."""
    return f"There is no user {username!r}."


def page_users(session: Executor, **paging: Any) -> Page:
    """All users, the oldest first; ``paging`` as ``fetch_page`` has it."""
    return fetch_page(session, [*users.c], users, [], users.c.id, **paging)


def edit_user(session: Executor, user_id: int, changes: Mapping[str, Any]) -> AnyRow:
    """Change ``password``, ``is_admin`` or ``disabled``, in a transaction.

    A new password and being disabled end the user's log-ins; being enabled again
    revives the API keys that act for the user, and no log-in. Raises
    ``UserNotFound``, ``ValidationFailed``, ``LastAdministrator``.
    """
    values = dict(changes)
    if values.get("disabled") or values.get("is_admin") is False:
        _keep_an_administrator(session, user_id)
    if "password" in values:
        password = values.pop("password")
        check_password_form(password)
        values["password_hash"] = _hasher.hash(password)
    if values:
        session.execute(
            update(users)
            .where(users.c.id == user_id)
            .values(**values, updated_at=session.execute(select(DbNow())).scalar_one())
        )
    if "password_hash" in values or values.get("disabled"):
        session.execute(delete(sessions).where(sessions.c.user_id == user_id))
    return get_user(session, user_id)


def _keep_an_administrator(session: Executor, user_id: int) -> None:
    # Two administrators who disable each other at the same moment wait here for
    # one another, and the second one sees what the first one did. (SQLite has one
    # writer at a time.) The lock lets others refer to these users meanwhile.
    enabled = session.execute(
        select(users.c.id)
        .where(users.c.is_admin, ~users.c.disabled)
        .order_by(users.c.id)
        .with_for_update(key_share=True)
    ).scalars()
    if list(enabled) == [user_id]:
        raise LastAdministrator(
            "This is the last enabled administrator; make another user an administrator first."
        )


def check_current_password(
    session: Executor, user_id: int, password: str, attempts: Attempts | None
) -> str:
    """Check one's own password before it is changed; returns its hash.

    Failures count towards the same limit as those of log-ins, so this is no
    other way to guess. Raises ``ValidationFailed``, ``TooManyRequests``.
    """
    user = get_user(session, user_id)
    try:
        return str(authenticate(session, user.username, password, attempts).password_hash)
    except LoginFailed:
        raise ValidationFailed({"current_password": ["It is wrong."]}) from None


def replace_password(
    session: Executor, user_id: int, old_hash: str, new: str, *, keep_session: str | None
) -> None:
    """Set a new password; all log-ins of the user but one end.

    Raises ``ValidationFailed`` for its form, or where ``old_hash`` is not the
    current one any more: of two changes at once, one comes too late.
    """
    check_password_form(new, "new_password")
    now = session.execute(select(DbNow())).scalar_one()
    changed = session.execute(
        update(users)
        .where(users.c.id == user_id, users.c.password_hash == old_hash)
        .values(password_hash=_hasher.hash(new), updated_at=now)
        .returning(users.c.id)
    ).first()
    if changed is None:
        raise ValidationFailed({"current_password": ["It was changed just now."]})
    session.execute(
        delete(sessions).where(sessions.c.user_id == user_id, sessions.c.id != (keep_session or ""))
    )


def _verify(password_hash: str | None, password: str) -> bool:
    """Check a password, in the same time whether there is a hash or not."""
    try:
        _hasher.verify(password_hash or _nobodys_hash(), password)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


class Attempts(NamedTuple):
    """How many log-ins may fail in a minute, for one name from one address."""

    limit: int
    address: str


def authenticate(
    session: Executor, username: str, password: str, attempts: Attempts | None
) -> AnyRow:
    """The user with this name and password.

    A wrong name, a wrong password and a disabled user are refused alike
    (``LoginFailed``). Only failures count towards the limit: each try is
    counted before the password is looked at, so that tries at the same moment
    count too, and taken back if it was right. Raises ``TooManyRequests``.
    """
    subject = None
    if attempts is not None:
        subject = hashlib.sha256(f"{attempts.address} {username}".encode()).hexdigest()
        _count_attempt(session, subject, attempts.limit)
    known = re.fullmatch(USERNAME_PATTERN, username) is not None
    user = (
        session.execute(select(users).where(users.c.username == username)).first()
        if known
        else None
    )
    right = _verify(user.password_hash if user is not None else None, password)
    if user is None or not right or user.disabled:
        raise LoginFailed("The user name or the password is wrong.")
    if subject is not None:
        session.execute(
            update(login_failures)
            .where(login_failures.c.subject == subject, login_failures.c.count > 0)
            .values(count=login_failures.c.count - 1)
        )
    if _hasher.check_needs_rehash(user.password_hash):
        session.execute(
            update(users)
            .where(users.c.id == user.id, users.c.password_hash == user.password_hash)
            .values(password_hash=_hasher.hash(password))
        )
    return user


def _count_attempt(session: Executor, subject: str, limit: int) -> None:
    now = session.execute(select(DbNow())).scalar_one()
    session.execute(delete(login_failures).where(login_failures.c.since <= now - LOGIN_WINDOW))
    attempt = insert_or_ignore(dialect_name(session), login_failures).values(
        subject=subject, count=1, since=now
    )
    # At the limit the count stays, and so does the end of the window.
    row = session.execute(
        attempt.on_conflict_do_update(
            index_elements=[login_failures.c.subject],
            set_={
                "count": case(
                    (login_failures.c.count > limit, login_failures.c.count),
                    else_=login_failures.c.count + 1,
                )
            },
        ).returning(login_failures.c.count.label("failures"), login_failures.c.since)
    ).one()
    if row.failures > limit:
        wait = max(1, -int((now - row.since - LOGIN_WINDOW).total_seconds() // 1))
        raise TooManyRequests(
            f"Too many log-ins failed for this name from your address; "
            f"try again in {wait} seconds.",
            retry_after=wait,
        )


class Login(NamedTuple):
    """A log-in and the id of its one living refresh token."""

    user_id: int
    session_id: str
    refresh_id: str


def open_session(session: Executor, user_id: int, lifetime: timedelta) -> Login:
    """Start a log-in that can be refreshed for ``lifetime``."""
    now = session.execute(select(DbNow())).scalar_one()
    # Each log-in clears away what has run out, so the table stays as large as
    # the log-ins that live.
    session.execute(delete(sessions).where(sessions.c.expires_at <= now))
    login = Login(user_id, uuid4().hex, uuid4().hex)
    session.execute(
        insert(sessions).values(
            id=login.session_id,
            user_id=user_id,
            refresh_id=login.refresh_id,
            created_at=now,
            expires_at=now + lifetime,
        )
    )
    return login


def refresh_session(
    session: Executor, session_id: str, refresh_id: str, lifetime: timedelta
) -> Login:
    """Exchange a refresh token for a new one; the old one stops working.

    Raises ``TokenRevoked``.
    """
    now = session.execute(select(DbNow())).scalar_one()
    new = uuid4().hex
    row = session.execute(
        update(sessions)
        .where(
            sessions.c.id == session_id,
            sessions.c.refresh_id == refresh_id,
            sessions.c.expires_at > now,
            exists().where(users.c.id == sessions.c.user_id, ~users.c.disabled),
        )
        .values(refresh_id=new, expires_at=now + lifetime)
        .returning(sessions.c.user_id)
    ).first()
    if row is None:
        raise TokenRevoked("This refresh token was used before or revoked; log in again.")
    return Login(row.user_id, session_id, new)


def close_session(session: Executor, session_id: str) -> None:
    """End a log-in: neither of its tokens works any more."""
    session.execute(delete(sessions).where(sessions.c.id == session_id))
