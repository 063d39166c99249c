"""Users and their login sessions."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from inspect import iscoroutine
from operator import attrgetter
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import case, delete, insert, literal, select, true, update

from ..errors import (
    LastAdministrator,
    LoginFailed,
    TokenRevoked,
    TooManyRequests,
    UsernameTaken,
    UserNotFound,
    ValidationFailed,
)
from ..rules.roles import (
    MAX_PASSWORD_LENGTH,
    MIN_PASSWORD_LENGTH,
    USERNAME_PATTERN,
    USERNAME_RULE,
    normal_password,
)
from ..store.columns import DbNow, insert_or_ignore
from ..store.connections import AnyRow, Executor, dialect_name
from ..store.paging import Page, fetch_page
from ..store.tables import login_failures, sessions, users
from ..store.transactions import transactional

HOST_USER_PREFIX = "host:"
LOGIN_WINDOW = timedelta(minutes=1)
LOGIN_LIFETIME = timedelta(days=90)
"""Maximum lifetime of a login session, however often it is refreshed."""

REFRESH_GRACE = timedelta(seconds=30)
"""How long an exchanged refresh token may be reused, because its response may have been lost."""

MAX_REPLACED = 100
"""How many exchanged refresh tokens a session remembers."""

EXPIRED_PER_ATTEMPT = 100
"""How many expired counters of failed logins one attempt deletes at most."""

# Argon2id with a setting that OWASP's Password Storage Cheat Sheet recommends:
# 19 MiB, 2 passes, 1 lane. It takes some 30 ms.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@cache
def _dummy_hash() -> str:
    return _hasher.hash(secrets.token_urlsafe())


def check_password_form(password: str, field: str = "password") -> None:
    """Refuse a new password that is too short or too long (``ValidationFailed``).

    Characters are counted in NFC.
    """
    if not MIN_PASSWORD_LENGTH <= len(normal_password(password)) <= MAX_PASSWORD_LENGTH:
        raise ValidationFailed(
            {field: [f"Use {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters."]}
        )


def create_user(
    session: Executor, username: str, *, password: str | None, is_admin: bool = False
) -> AnyRow:
    """Create a user. Without a password the user cannot log in through ``/auth/login``.

    Raises ``UsernameTaken``, or ``ValidationFailed`` for an invalid name or password.
    """
    if not re.fullmatch(USERNAME_PATTERN, username):
        raise ValidationFailed({"username": [USERNAME_RULE]})
    if password is not None:
        check_password_form(password)
    row = _insert_user(session, username, password, is_admin)
    if row is None:
        raise UsernameTaken(f"The username {username!r} is taken. Choose another one.")
    return row


def _insert_user(
    session: Executor, username: str, password: str | None, is_admin: bool
) -> AnyRow | None:
    now = session.execute(select(DbNow())).scalar_one()
    return session.execute(
        insert_or_ignore(dialect_name(session), users)
        .values(
            username=username,
            password_hash=None if password is None else _hash(password),
            is_admin=is_admin,
            disabled=False,
            created_at=now,
            updated_at=now,
        )
        .on_conflict_do_nothing()
        .returning(*users.c)
    ).first()


class NoUserId(ValueError):
    """The host's current user has no stable id."""


def host_id(user: object) -> str | None:
    """The id of a host application's current user as text; None if no user is logged in.

    ``user`` is the id itself (``str``, ``int``, ``uuid.UUID``) or an object that
    has it as ``get_id()``, as Flask-Login's users do, or as ``id``. Raises
    ``NoUserId`` for anything else, and for a text that cannot be a stable id, such as
    the default ``repr`` of an object: it would be a different user in each request.
    Exceptions of the host's object pass through.
    """
    # isinstance, because the user may be a proxy, such as Flask-Login's ``current_user``.
    if isinstance(user, NoneType):
        return None
    if not isinstance(user, _ID_TYPES):
        if _flag(user, "is_authenticated") is False or _flag(user, "is_anonymous") is True:
            return None
        get_id = getattr(user, "get_id", None)
        user = get_id() if callable(get_id) else getattr(user, "id", user)
        if isinstance(user, NoneType):
            return None
    if isinstance(user, bool) or not isinstance(user, _ID_TYPES):
        if iscoroutine(user):
            user.close()
        raise NoUserId(
            f"the current user is a {type(user).__name__}, which is not an id: return the id as "
            "str, int or uuid.UUID, an object with get_id() or id, or None if no user is logged in"
        )
    text = str(user)
    if not 1 <= len(text.strip()) <= len(text) <= 200 or "\x00" in text:
        raise NoUserId("the id of the current user must have 1 to 200 characters")
    if text == "None" or _REPR.search(text):
        raise NoUserId(f"the id of the current user is {text!r}, which is not a stable id")
    return text


def _flag(user: object, name: str) -> object:
    # In older versions of Flask-Login these are methods.
    value = getattr(user, name, None)
    return value() if callable(value) else value


_ID_TYPES = (str, int, UUID)
_REPR = re.compile(r" at 0x[0-9a-fA-F]+>")


def host_username(user: object) -> str:
    """The name of the user row for a host application's user.

    It contains a colon, which the names of other users cannot. ``user`` is what
    ``host_id`` takes. Raises ``ValueError`` if no user is logged in.
    """
    found = host_id(user)
    if found is None:
        raise ValueError("no user is logged in")
    return HOST_USER_PREFIX + found


def host_user(session: Executor, user: object, *, is_admin: bool = False) -> AnyRow:
    """The user row of a host application's user, created on first use.

    ``user`` is its id, or what ``host_id`` takes.
    """
    name = host_username(user)
    row = session.execute(select(users).where(users.c.username == name)).first()
    row = row or _insert_user(session, name, None, is_admin)
    # Still None if another process created the row between the two statements.
    return row or session.execute(select(users).where(users.c.username == name)).one()


def get_user(session: Executor, user_id: int) -> AnyRow:
    """One user. Raises ``UserNotFound``."""
    row = session.execute(select(users).where(users.c.id == user_id)).first()
    if row is None:
        raise UserNotFound("No user has this id.")
    return row


def find_user(session: Executor, username: str) -> AnyRow:
    """One user by name. Raises ``UserNotFound``."""
    row = session.execute(select(users).where(users.c.username == username)).first()
    if row is None:
        raise UserNotFound(unknown_user(username))
    return row


def unknown_user(username: str) -> str:
    """The message for an unknown username."""
    return f"There is no user {username!r}. Check the spelling; case matters."


def page_users(session: Executor, **paging: Any) -> Page:
    """A page of all users, the oldest first. ``paging``: see ``fetch_page``."""
    return fetch_page(session, [*users.c], users, [], users.c.id, **paging)


@transactional()
def edit_user(session: Executor, user_id: int, changes: Mapping[str, Any]) -> AnyRow:
    """Change ``password``, ``is_admin`` or ``disabled``.

    A new password ends the user's login sessions. ``disabled`` ends them and suspends
    the API keys that act for the user; enabling the user again restores only the keys.
    Raises ``UserNotFound``, ``ValidationFailed``, ``LastAdministrator``.
    """
    values = dict(changes)
    if values.get("disabled") or values.get("is_admin") is False:
        _keep_an_administrator(session, user_id)
    if "password" in values:
        password = values.pop("password")
        check_password_form(password)
        values["password_hash"] = _hash(password)
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
    # The lock serializes two administrators who disable each other at the same moment, so
    # that the second one sees the change of the first. (SQLite has one writer at a time.)
    # With key_share, rows that refer to these users can still be inserted.
    enabled = session.execute(
        select(users.c.id)
        .where(users.c.is_admin, ~users.c.disabled)
        .order_by(users.c.id)
        .with_for_update(key_share=True)
    ).scalars()
    if list(enabled) == [user_id]:
        raise LastAdministrator(
            "This is the last enabled administrator. Make another user an administrator first."
        )


def check_current_password(
    session: Executor, user_id: int, password: str, attempts: Attempts | None
) -> str:
    """Verify a user's current password before a change of it; returns the stored hash.

    Failures count towards the limits of logins, so these cannot be bypassed here.
    Raises ``ValidationFailed``, ``TooManyRequests``.
    """
    user = get_user(session, user_id)
    try:
        return str(authenticate(session, user.username, password, attempts).password_hash)
    except LoginFailed:
        raise ValidationFailed({"current_password": ["Wrong password."]}) from None


@transactional()
def replace_password(
    session: Executor, user_id: int, old_hash: str, new: str, *, keep_session: str | None
) -> None:
    """Set a new password and end the user's login sessions, except ``keep_session``.

    Raises ``ValidationFailed`` for an invalid password, and if ``old_hash`` is no longer
    the current one because of a concurrent change.
    """
    check_password_form(new, "new_password")
    now = session.execute(select(DbNow())).scalar_one()
    changed = session.execute(
        update(users)
        .where(users.c.id == user_id, users.c.password_hash == old_hash)
        .values(password_hash=_hash(new), updated_at=now)
        .returning(users.c.id)
    ).first()
    if changed is None:
        raise ValidationFailed(
            {"current_password": ["The password was changed a moment ago. Log in again."]}
        )
    session.execute(
        delete(sessions).where(sessions.c.user_id == user_id, sessions.c.id != (keep_session or ""))
    )


def _hash(password: str) -> str:
    return _hasher.hash(normal_password(password))


def _verify(password_hash: str | None, password: str) -> bool:
    """Whether a password matches a hash.

    Without a hash the check takes as long, so that the time does not reveal whether the user
    exists.

    Older hashes were made from the password as it was typed, in any Unicode form.
    """
    forms = dict.fromkeys([normal_password(password), password])
    return any(_is_right(password_hash, form) for form in forms)


def _is_right(password_hash: str | None, form: str) -> bool:
    try:
        _hasher.verify(password_hash or _dummy_hash(), form)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


class Attempts(NamedTuple):
    """Where a login attempt comes from, and how many may fail per minute."""

    address: str
    """The addresses that count as one caller, see ``addresses.address_bucket``."""

    per_name_and_address: int
    per_address: int
    per_name: int
    """Over all addresses. It is the loosest, because others can use it up and lock a user out."""


def authenticate(
    session: Executor, username: str, password: str, attempts: Attempts | None
) -> AnyRow:
    """The user with this name and password.

    An unknown name, a wrong password and a disabled user raise the same ``LoginFailed``,
    so that it does not tell whether the user exists. Raises ``TooManyRequests`` after too
    many failures. Each attempt is counted before the password is verified, because
    concurrent attempts must count too; a success takes its count back. Do not call it in
    a transaction: a rollback would undo the counting.
    """
    counted = _count_attempt(session, username, attempts) if attempts is not None else {}
    well_formed = re.fullmatch(USERNAME_PATTERN, username) is not None
    user = (
        session.execute(select(users).where(users.c.username == username)).first()
        if well_formed
        else None
    )
    right = _verify(user.password_hash if user is not None else None, password)
    if user is None or not right or user.disabled:
        raise LoginFailed(_WRONG)
    _take_back(session, counted)
    return user


_WRONG = "Wrong username or password. Check both and try again."


class _Limit(NamedTuple):
    failures: int
    where: str


def _count_attempt(session: Executor, username: str, attempts: Attempts) -> dict[str, datetime]:
    """Count an attempt; returns the subjects that were counted, each with the start of its minute.

    A subject is the hash of a username, an address, or both. Raises ``TooManyRequests``.
    """
    limits = {
        _subject(attempts.address, username): _Limit(
            attempts.per_name_and_address, "for this username from your address"
        ),
        _subject(attempts.address, None): _Limit(attempts.per_address, "from your address"),
        _subject(None, username): _Limit(attempts.per_name, "for this username"),
    }
    c = login_failures.c
    now = session.execute(select(DbNow())).scalar_one()
    old = c.since <= now - LOGIN_WINDOW
    # Refused attempts are not counted: one address must not use up the limit of a name
    # for all other addresses.
    columns = c.subject, c.count.label("failures"), c.since
    found = session.execute(select(*columns).where(c.subject.in_(limits), ~old)).all()
    _refuse([row for row in found if row.failures >= limits[row.subject].failures], limits, now)
    some = select(c.subject).where(old).limit(EXPIRED_PER_ATTEMPT).with_for_update(skip_locked=True)
    session.execute(delete(login_failures).where(c.subject.in_(some)))
    # Always in the same order, so that concurrent attempts cannot deadlock.
    attempt = insert_or_ignore(dialect_name(session), login_failures).values(
        [{"subject": subject, "count": 1, "since": now} for subject in sorted(limits)]
    )
    rows = session.execute(
        attempt.on_conflict_do_update(
            index_elements=[c.subject],
            set_={
                "count": case((old, 1), else_=c.count + 1),
                "since": case((old, attempt.excluded.since), else_=c.since),
            },
        ).returning(*columns)
    ).all()
    counted = {row.subject: row.since for row in rows}
    over = [row for row in rows if row.failures > limits[row.subject].failures]
    if over:
        _take_back(session, counted)
        _refuse(over, limits, now)
    return counted


def _subject(address: str | None, username: str | None) -> str:
    return hashlib.sha256(repr((address, username)).encode()).hexdigest()


def _refuse(over: Sequence[AnyRow], limits: Mapping[str, _Limit], now: datetime) -> None:
    if not over:
        return
    last = max(over, key=attrgetter("since"))
    wait = max(1, math.ceil((last.since + LOGIN_WINDOW - now).total_seconds()))
    raise TooManyRequests(
        f"Too many failed logins {limits[last.subject].where}. Try again in {wait} seconds.",
        retry_after=wait,
    )


def _take_back(session: Executor, counted: Mapping[str, datetime]) -> None:
    """Undo ``_count_attempt``, except for counters that have begun a new minute since."""
    if not counted:
        return
    c = login_failures.c
    same = insert_or_ignore(dialect_name(session), login_failures).values(
        [{"subject": s, "count": 0, "since": since} for s, since in sorted(counted.items())]
    )
    session.execute(
        same.on_conflict_do_update(
            index_elements=[c.subject],
            set_={"count": c.count - 1},
            where=(c.since == same.excluded.since) & (c.count > 0),
        )
    )


def log_in(
    session: Executor, username: str, password: str, attempts: Attempts | None, lifetime: timedelta
) -> Login:
    """Verify a name and a password and start a login session.

    See ``authenticate`` and ``open_session``. No session is started if the password was
    changed or the user was disabled during the verification.
    """
    user = authenticate(session, username, password, attempts)
    login = _open_session(session, user.id, lifetime, user.password_hash)
    if login is None:
        # A concurrent login may have renewed the hash.
        user = authenticate(session, username, password, attempts)
        login = _open_session(session, user.id, lifetime, user.password_hash)
    if login is None:
        raise LoginFailed(_WRONG)
    normal = normal_password(password)
    if _hasher.check_needs_rehash(user.password_hash) or (
        normal != password and not _is_right(user.password_hash, normal)
    ):
        session.execute(
            update(users)
            .where(users.c.id == user.id, users.c.password_hash == user.password_hash)
            .values(password_hash=_hasher.hash(normal))
        )
    return login


class Login(NamedTuple):
    """A login session for which tokens are to be issued."""

    user_id: int
    session_id: str
    refresh_id: str
    """The id of its current refresh token."""

    seconds: float
    """Seconds until the maximum lifetime of the session ends."""


def open_session(session: Executor, user_id: int, lifetime: timedelta) -> Login:
    """Start a login session that expires if it is not refreshed for ``lifetime``.

    Raises ``LoginFailed`` for a disabled user.
    """
    login = _open_session(session, user_id, lifetime, None)
    if login is None:
        raise LoginFailed("This user is disabled. Ask an administrator to enable it.")
    return login


def _open_session(
    session: Executor, user_id: int, lifetime: timedelta, password_hash: str | None
) -> Login | None:
    now = session.execute(select(DbNow())).scalar_one()
    # Each login deletes the expired sessions, so that the table contains only live ones.
    session.execute(delete(sessions).where(sessions.c.expires_at <= now))
    login = Login(user_id, uuid4().hex, uuid4().hex, LOGIN_LIFETIME.total_seconds())
    row = {
        "id": login.session_id,
        "refresh_id": login.refresh_id,
        "created_at": now,
        "expires_at": now + min(lifetime, LOGIN_LIFETIME),
    }
    values = [literal(value, sessions.c[name].type) for name, value in row.items()]
    same = true() if password_hash is None else users.c.password_hash == password_hash
    # The lock orders this against a change of the password and against disabling the user. If
    # such a change comes first, no session is opened; otherwise it waits, and ends the session.
    opened = session.execute(
        insert(sessions)
        .from_select(
            [*row, "user_id"],
            select(*values, users.c.id)
            .where(users.c.id == user_id, ~users.c.disabled, same)
            .with_for_update(read=True),
        )
        .returning(sessions.c.id)
    ).first()
    return None if opened is None else login


def refresh_session(
    session: Executor, session_id: str, refresh_id: str, lifetime: timedelta
) -> Login:
    """Exchange a refresh token for the next one of its session (refresh token rotation).

    Within ``REFRESH_GRACE`` an exchanged token gives the same next one again, because a
    response may have been lost, and two tabs or processes may refresh at the same moment.
    Reuse after that means that the token may have been stolen, and ends the session (RFC
    9700, section 4.14.2). Raises ``TokenRevoked``. Do not call it in a transaction: the
    rollback after the exception would undo the end of the session.
    """
    found = _live(session, session_id)
    if found is not None and found.refresh_id == refresh_id:
        replaced = _recent(found) | {refresh_id: found.now.timestamp()}
        login = _login(found, uuid4().hex)
        rotated = session.execute(
            update(sessions)
            .where(sessions.c.id == session_id, sessions.c.refresh_id == refresh_id)
            .values(
                refresh_id=login.refresh_id,
                replaced=dict(list(replaced.items())[-MAX_REPLACED:]),
                expires_at=found.now + min(lifetime, timedelta(seconds=login.seconds)),
            )
            .returning(sessions.c.id)
        ).first()
        if rotated is not None:
            return login
        # A concurrent request has exchanged it.
        found = _live(session, session_id)
    if found is None:
        raise TokenRevoked("The login session of this token has ended. Log in again.")
    if refresh_id in _recent(found):
        return _login(found, found.refresh_id)
    close_session(session, session_id)
    raise TokenRevoked(
        "This refresh token was already used and may have been stolen, so its login session was "
        "ended. Log in again."
    )


def _live(session: Executor, session_id: str) -> AnyRow | None:
    now = DbNow()
    row = session.execute(
        select(sessions, now.label("now"))
        .join_from(sessions, users, users.c.id == sessions.c.user_id)
        .where(sessions.c.id == session_id, sessions.c.expires_at > now, ~users.c.disabled)
    ).first()
    return None if row is None or row.now >= row.created_at + LOGIN_LIFETIME else row


def _recent(found: AnyRow) -> dict[str, float]:
    since = (found.now - REFRESH_GRACE).timestamp()
    return {token: at for token, at in (found.replaced or {}).items() if at > since}


def _login(found: AnyRow, refresh_id: str) -> Login:
    ends_at = found.created_at + LOGIN_LIFETIME
    seconds = (ends_at - found.now).total_seconds()
    return Login(found.user_id, found.id, refresh_id, seconds)


def close_session(session: Executor, session_id: str) -> None:
    """End a login session, so that its tokens stop working."""
    session.execute(delete(sessions).where(sessions.c.id == session_id))
