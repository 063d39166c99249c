"""Users and their log-ins."""

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
"""Maximum lifetime of a log-in after the password was entered, however often it is refreshed."""

REFRESH_GRACE = timedelta(seconds=30)
"""How long an exchanged refresh token may be reused, because an answer may have been lost."""

MAX_REPLACED = 100
FORGET_AT_ONCE = 100

# Argon2id with the second of the settings that OWASP's Password Storage Cheat
# Sheet gives as equally strong: 19 MiB, 2 passes, 1 lane; some 30 ms.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@cache
def _nobodys_hash() -> str:
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
    """The id of a host's current user as text; None if no user is logged in.

    ``user`` is the id itself (``str``, ``int``, ``uuid.UUID``) or an object that
    has it as ``get_id()``, as Flask-Login's users do, or as ``id``. Raises
    ``NoUserId`` for anything else, and for a text that is no stable id: it would
    name another user in each request, or the same for all. Exceptions of the host's
    object pass through.
    """
    # Not ``is None``, nor ``type``: it may be a proxy, as Flask-Login's is.
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
            f"the current user is {type(user).__name__}, which is no id: return the id as str, int "
            "or uuid.UUID, an object with get_id() or id, or None if no user is logged in"
        )
    text = str(user)
    if not 1 <= len(text.strip()) <= len(text) <= 200 or "\x00" in text:
        raise NoUserId("the id of the current user must have 1 to 200 characters")
    if text == "None" or _REPR.search(text):
        raise NoUserId(f"the id of the current user is {text!r}, which names an object, not a user")
    return text


def _flag(user: object, name: str) -> object:
    # A method in older versions of Flask-Login.
    value = getattr(user, name, None)
    return value() if callable(value) else value


_ID_TYPES = (str, int, UUID)
_REPR = re.compile(r" at 0x[0-9a-fA-F]+>")


def host_username(user: object) -> str:
    """The name under which a host application's user is known here.

    The colon keeps them apart from users who log in here. ``user`` is what
    ``host_id`` takes; raises ``ValueError`` if no user is logged in.
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
    """The message for a name that no user has."""
    return f"There is no user {username!r}."


def page_users(session: Executor, **paging: Any) -> Page:
    """All users, the oldest first; ``paging`` as ``fetch_page`` has it."""
    return fetch_page(session, [*users.c], users, [], users.c.id, **paging)


@transactional()
def edit_user(session: Executor, user_id: int, changes: Mapping[str, Any]) -> AnyRow:
    """Change ``password``, ``is_admin`` or ``disabled``.

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


@transactional()
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
        .values(password_hash=_hash(new), updated_at=now)
        .returning(users.c.id)
    ).first()
    if changed is None:
        raise ValidationFailed({"current_password": ["It was changed just now."]})
    session.execute(
        delete(sessions).where(sessions.c.user_id == user_id, sessions.c.id != (keep_session or ""))
    )


def _hash(password: str) -> str:
    return _hasher.hash(normal_password(password))


def _verify(password_hash: str | None, password: str) -> bool:
    """Check a password; takes the same time with and without a hash.

    Older hashes were made from the password as typed, in any Unicode form.
    """
    forms = dict.fromkeys([normal_password(password), password])
    return any(_is_right(password_hash, form) for form in forms)


def _is_right(password_hash: str | None, form: str) -> bool:
    try:
        _hasher.verify(password_hash or _nobodys_hash(), form)
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


class Attempts(NamedTuple):
    """How many log-ins may fail in a minute, and from where this one comes.

    ``address`` is what counts as one caller, see ``identity.address_bucket``. The
    limit of a name over all addresses is the loosest: only there can attempts from
    elsewhere lock a user out.
    """

    address: str
    per_name_and_address: int
    per_address: int
    per_name: int


def authenticate(
    session: Executor, username: str, password: str, attempts: Attempts | None
) -> AnyRow:
    """The user with this name and password.

    A wrong name, a wrong password and a disabled user are refused alike
    (``LoginFailed``). Only failures count towards the limits: each try is
    counted before the password is checked, so that tries at the same moment
    count too, and the count is taken back if the password was right. Raises
    ``TooManyRequests``. Not to be called in a transaction, which would undo the
    counting.
    """
    counted = _count_attempt(session, username, attempts) if attempts is not None else {}
    known = re.fullmatch(USERNAME_PATTERN, username) is not None
    user = (
        session.execute(select(users).where(users.c.username == username)).first()
        if known
        else None
    )
    right = _verify(user.password_hash if user is not None else None, password)
    if user is None or not right or user.disabled:
        raise LoginFailed(_WRONG)
    _take_back(session, counted)
    return user


_WRONG = "The user name or the password is wrong."


class _Limit(NamedTuple):
    failures: int
    where: str


def _count_attempt(session: Executor, username: str, attempts: Attempts) -> dict[str, datetime]:
    """Count an attempt; returns the counted subjects, each with the start of its minute."""
    limits = {
        _subject(attempts.address, username): _Limit(
            attempts.per_name_and_address, "for this user name from your address"
        ),
        _subject(attempts.address, None): _Limit(attempts.per_address, "from your address"),
        _subject(None, username): _Limit(attempts.per_name, "for this user name"),
    }
    c = login_failures.c
    now = session.execute(select(DbNow())).scalar_one()
    old = c.since <= now - LOGIN_WINDOW
    # Refused attempts are not counted: attempts from one address must not use up
    # the limit of a name for all others.
    columns = c.subject, c.count.label("failures"), c.since
    found = session.execute(select(*columns).where(c.subject.in_(limits), ~old)).all()
    _refuse([row for row in found if row.failures >= limits[row.subject].failures], limits, now)
    some = select(c.subject).where(old).limit(FORGET_AT_ONCE).with_for_update(skip_locked=True)
    session.execute(delete(login_failures).where(c.subject.in_(some)))
    # In one order, so that two of these never deadlock.
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
        f"Too many log-ins failed {limits[last.subject].where}; try again in {wait} seconds.",
        retry_after=wait,
    )


def _take_back(session: Executor, counted: Mapping[str, datetime]) -> None:
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
    session: Executor,
    username: str,
    password: str,
    attempts: Attempts | None,
    lifetime: timedelta,
) -> Login:
    """Check a name and a password and start a log-in, see ``authenticate`` and ``open_session``.

    A password that was changed, or a user who was disabled, while it was checked
    gives no log-in.
    """
    user = authenticate(session, username, password, attempts)
    login = _open_session(session, user.id, lifetime, user.password_hash)
    if login is None:
        # Another log-in may have renewed the hash at the same moment.
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
    """A log-in, the id of its refresh token, and the seconds that it has left at most."""

    user_id: int
    session_id: str
    refresh_id: str
    seconds: float


def open_session(session: Executor, user_id: int, lifetime: timedelta) -> Login:
    """Start a log-in that ends when it is not refreshed for ``lifetime``.

    Raises ``LoginFailed`` for a disabled user.
    """
    login = _open_session(session, user_id, lifetime, None)
    if login is None:
        raise LoginFailed("This user is disabled.")
    return login


def _open_session(
    session: Executor, user_id: int, lifetime: timedelta, password_hash: str | None
) -> Login | None:
    now = session.execute(select(DbNow())).scalar_one()
    # Each log-in clears away what has run out, so the table stays as large as
    # the log-ins that live.
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
    # With the lock, a new password or a disabling either comes first, and there is
    # no log-in, or waits, and ends it.
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
    """Exchange a refresh token for the next one of its log-in.

    Within ``REFRESH_GRACE`` a token that was exchanged gives the same next one
    again: an answer may have been lost, and two tabs or processes may ask at the
    same moment. Used again later, it may have been stolen, and ends the log-in
    (RFC 9700, section 4.14.2). Raises ``TokenRevoked``. Not to be called in a
    transaction, which would undo the end.
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
        # Another process has exchanged it meanwhile.
        found = _live(session, session_id)
    if found is None:
        raise TokenRevoked("This log-in has ended; log in again.")
    if refresh_id in _recent(found):
        return _login(found, found.refresh_id)
    close_session(session, session_id)
    raise TokenRevoked(
        "This refresh token was exchanged before and may have been stolen, so its log-in has "
        "ended; log in again."
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
    """End a log-in: neither of its tokens works any more."""
    session.execute(delete(sessions).where(sessions.c.id == session_id))
