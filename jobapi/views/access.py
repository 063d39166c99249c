"""Authentication and authorization of requests.

``guard`` decorates a view. It identifies the caller, checks the caller's access to
the workspace in the path, and passes a ``Caller`` to the view. One query reads the
user, the membership and, on paths with a job, the job: such a view needs no query
of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, wraps
from typing import Any, Literal, NamedTuple, TypeVar

from flask import g, request
from sqlalchemy import Connection, and_, bindparam, select
from sqlalchemy.exc import DBAPIError

from .. import errors
from ..rules.roles import Role
from ..schemas.jobs import Job
from ..services import accounts
from ..services.job_rows import COLUMNS, not_found
from ..services.keys import KEY_PREFIX, USE_RESOLUTION, digest
from ..services.workspaces import NOT_DELETED
from ..store.columns import DbNow
from ..store.connections import AnyRow
from ..store.faults import judge
from ..store.statement import Statement
from ..store.tables import MAX_ID, api_keys, jobs, memberships, sessions, users, workspaces
from ..store.transactions import once_more
from .base import View, sent, state
from .bodies import read_body
from .problems import RaisedByHost

T = TypeVar("T")

NUMBERS = frozenset({"workspace_id", "user_id", "key_id", "operation_id"})
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_JOB_ID = re.compile(r"job_[0-9a-v]{26,32}")
_DEFAULT_PORT = re.compile(r":(80|443)$")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

HOST_LOGIN_SECONDS = 300.0
"""How long a stream trusts a login of the host, which can be checked only in a request."""

PrefetchedColumns = Literal["all", "shown", "status", "result", "log"]

_ALWAYS = ("job_id", "job_type", "status", "version")
_PROGRESS = ("progress_percent", "progress_message")
_SHOWN = {*Job().fields, *_ALWAYS, *_PROGRESS}

JOB_COLUMNS: dict[PrefetchedColumns, Sequence[Any]] = {
    "all": COLUMNS,
    "shown": tuple(column for column in COLUMNS if column.name in _SHOWN),
    "status": tuple(jobs.c[*_ALWAYS, *_PROGRESS, "updated_at"]),
    "result": tuple(jobs.c[*_ALWAYS, "result", "completed_at"]),
    "log": tuple(jobs.c[*_ALWAYS, "id"]),
}


Credential = Literal["token", "key", "host"]
"""An access token, an API key, or the host application's own login."""


class Identity(NamedTuple):
    """The caller that a request claims to be, before the query that checks it."""

    credential: Credential
    parameters: Mapping[str, Any]
    """Parameters of the query: the key's hash, the user's name, or the ids in the token."""

    expires: float | None = None
    """When the credential itself expires, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of a request, and what the query for it has read."""

    connection: Connection
    """The connection of the request; each statement is committed by itself."""

    now: datetime
    """The database's time."""

    user_id: int
    """The user. For an API key: the user on whose behalf it acts."""

    is_admin: bool
    """Always False for an API key, even if it acts for an administrator."""

    session_id: str | None = None
    """The login session of an access token."""

    key_id: int | None = None
    key_workspace_id: int | None = None
    job_types: Sequence[str] | None = None
    """The job types to which the API key is limited; None: all."""

    role: Role | None = None
    """The role in the workspace of the path, or in the API key's workspace."""

    flow_version: int | None = None
    """The version of the flow control of the workspace in the path: see ``services.flow``."""

    job: AnyRow | None = None
    """The job of the path, with the columns of ``guard(job_columns=…)`` and ``now``."""

    @property
    def name(self) -> str:
        """The actor of changes, also in the log: ``user:1`` or ``key:1``."""
        return f"key:{self.key_id}" if self.key_id is not None else f"user:{self.user_id}"

    def check_role(self, role: Role | None) -> None:
        """Raise ``RoleTooLow`` for a lower role in the workspace."""
        if role is not None and (self.role is None or self.role < role):
            raise errors.RoleTooLow(_required(role, self.role))

    def check_job_type(self, job_type: str) -> None:
        """Raise ``JobTypeNotAllowed`` if the API key is limited to other job types."""
        if self.job_types is not None and job_type not in self.job_types:
            raise errors.JobTypeNotAllowed(
                f"This API key is limited to the job types {', '.join(self.job_types)}. Use one of "
                "these, or another key."
            )


def lease_token() -> str | None:
    """The value of the ``Lease-Token`` header."""
    return sent("Lease-Token")


def public(view: View) -> View:
    """Mark a view that needs no authentication."""
    view.__dict__.setdefault("_apidoc", {})["jobapi"] = {"public": True}
    return view


def guard(
    role: Role | None = None,
    *,
    job_columns: PrefetchedColumns | None = None,
    admin: bool = False,
    keys: bool = True,
    lease_role: Role | None = None,
) -> Callable[[View], View]:
    """Check the caller of a view, and pass it to the view as a ``Caller``.

    ``role`` is the lowest role that is sufficient in the workspace of the path.
    ``lease_role`` replaces it for requests with a ``Lease-Token`` header.
    ``admin=True`` allows administrators only, ``keys=False`` refuses API keys.

    ``job_columns`` is for paths with a job: the columns of the job to read into
    ``Caller.job``. ``shown`` are those that the API shows. Documents may be megabytes; ``status``,
    ``result`` and ``log`` are the few columns that the views of those names need.

    The checks are made in this order: authentication (401), unknown workspace (404),
    not a member (403), role too low (403), unknown job (404).
    """

    access = _Access(role, job_columns, admin, keys, lease_role)

    def decorator(view: View) -> View:
        @wraps(view)
        def guarded(**url: Any) -> Any:
            identity = identify()
            # Read the body first: a slow upload must not hold a connection. The size limit
            # also applies to a body that the view ignores.
            try:
                read_body()
            except (errors.BadRequest, errors.BodyTooLarge, errors.UnsupportedMediaType):
                # The view for reports reads it again, and renews the lease before it refuses.
                if lease_role is None or lease_token() is None:
                    raise
            for name in NUMBERS & url.keys():
                url[name] = _number(url[name])
            return _with_access(access, identity, url, lambda caller: view(caller, **url))

        apidoc = guarded.__dict__["_apidoc"] = {**view.__dict__.get("_apidoc", {})}
        apidoc["jobapi"] = {"guarded": True}
        return guarded

    return decorator


class _Access(NamedTuple):
    """The requirements of a view: the arguments of ``guard``."""

    role: Role | None = None
    job_columns: PrefetchedColumns | None = None
    admin: bool = False
    keys: bool = True
    lease_role: Role | None = None


def with_access(role: Role, workspace_id: int, act: Callable[[Caller], T]) -> T:
    """Check the access of this request's caller again, and call ``act`` on a new connection.

    For a view that has waited: the role may have been revoked. Raises like ``guard``.
    """
    url = {"workspace_id": workspace_id}
    return _with_access(_Access(role), identify(), url, act)


def _with_access(
    access: _Access, identity: Identity, url: Mapping[str, Any], act: Callable[[Caller], T]
) -> T:
    def checked() -> T:
        return act(_check(connection, access, identity, url))

    with connect() as connection:
        return retry_if_read_only(connection, checked)


def _check(
    connection: Connection, access: _Access, identity: Identity, url: Mapping[str, Any]
) -> Caller:
    workspace_id, job_columns = url.get("workspace_id"), access.job_columns
    caller = _look_up(connection, identity, workspace_id, url.get("job_id"), job_columns)
    g.jobapi_caller = caller.name
    if caller.key_id is not None and (access.admin or not access.keys):
        raise errors.KeyNotAllowed("An API key cannot do this. Log in as a user.")
    if access.admin and not caller.is_admin:
        raise errors.AdministratorOnly("Only an administrator may do this. Ask an administrator.")
    caller.check_role(access.lease_role if access.lease_role and lease_token() else access.role)
    if job_columns is not None and (
        caller.job is None
        or caller.job.job_id is None
        or (caller.job_types is not None and caller.job.job_type not in caller.job_types)
    ):
        raise not_found()
    return caller


def _number(text: str) -> int:
    # Ids in the path are text, so an invalid one is treated as unknown, in the same
    # order of checks. No row has the id 0.
    number = int(text) if _NUMBER.fullmatch(text) else 0
    return number if number <= MAX_ID else 0


def _required(role: Role, has: Role | None) -> str:
    or_higher = "" if role is Role.OWNER else " or higher"
    yours = f" Yours is {has.label}." if has is not None else ""
    return (
        f"This requires the role {role.label}{or_higher} in the workspace.{yours} Ask an owner of "
        "the workspace."
    )


def connect(*, ping: bool = False) -> Connection:
    """A connection from the pool, in autocommit mode. The caller closes it.

    ``ping`` tests it with a query first and replaces one that the database has closed.
    """
    connection = state().engine.connect()
    if ping:
        try:
            once_more(connection, lambda: connection.exec_driver_sql("SELECT 1"))
        except BaseException:
            connection.close()
            raise
    return connection


def retry_if_read_only(connection: Connection, ask: Callable[[], T]) -> T:
    """Call ``ask``, and again on a new connection if the database was read-only.

    That is safe, because nothing was written. After a failover the pool may still hold
    connections to the former primary; such a connection has been invalidated here. If
    ``ask`` has closed the connection, it is not called again.
    """
    try:
        return ask()
    except DBAPIError as error:
        fault = judge(error)
        again = fault is not None and fault.read_only and error.connection_invalidated
        if not again or connection.closed:
            raise
    connection.rollback()
    return ask()


def bearer() -> str:
    """The token in the ``Authorization`` header, or an empty text."""
    scheme, _, token = (sent("Authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def identify() -> Identity:
    """Read the credential of the request. Raises ``Unauthorized``."""
    token = bearer()
    if token.startswith(KEY_PREFIX):
        return Identity("key", {"key_hash": digest(token)})
    host_user = state().current_user
    if host_user is not None:
        return _identify_by_host(host_user)
    if not token:
        raise errors.TokenMissing("Send the header: Authorization: Bearer TOKEN")
    claims = state().tokens.verify(token, "access")
    parameters = {"user_id": claims.user_id, "session_id": claims.session_id}
    return Identity("token", parameters, claims.expires)


def _identify_by_host(current_user: Callable[[], Any]) -> Identity:
    try:
        # The result may be a proxy whose attributes run code of the host, and raise, too.
        host_id = accounts.host_id(current_user())
    except accounts.NoUserId:
        raise
    except Exception as error:
        raise RaisedByHost(error) from None
    if host_id is None:
        raise errors.TokenMissing("You are not logged in. Log in to the application first.")
    if request.method not in _SAFE_METHODS and _is_cross_site():
        raise errors.CrossSiteRequest(
            "The request comes from a page of another site. To allow that site, add its origin to "
            "JOBAPI_CORS_ORIGINS."
        )
    expires = time.time() + HOST_LOGIN_SECONDS
    return Identity("host", {"username": accounts.host_username(host_id)}, expires)


_SENT_BY_BROWSERS = frozenset({"", "basic", "digest", "negotiate", "ntlm"})


def _is_cross_site() -> bool:
    """Whether a page of another site may have sent this request (CSRF).

    A browser adds cookies and saved passwords to requests from any page. Any other
    ``Authorization`` header was set by the page's own script, which CORS must allow.
    """
    scheme = (sent("Authorization") or "").partition(" ")[0].lower()
    if scheme not in _SENT_BY_BROWSERS:
        return False
    origin = sent("Origin")
    if origin is not None and origin.lower() in state().settings.origins:
        return False
    site = sent("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    if origin is None:
        return False
    # Proxies may drop the port from the Host header, or add a default one.
    authority = origin.lower().partition("://")[2]
    host = _DEFAULT_PORT.sub("", request.host.lower())
    return authority != host and authority.rpartition(":")[0] != host


@cache
def _lookup(
    credential: Credential, in_workspace: bool, job_columns: PrefetchedColumns | None
) -> Statement[AnyRow]:
    """The query for a caller, joined with the workspace and the job of the path."""
    columns: list[Any] = [
        users.c.id.label("caller_id"),
        users.c.is_admin.label("caller_is_admin"),
        DbNow().label("now"),
    ]
    if credential == "key":
        source: Any = api_keys.join(users, users.c.id == api_keys.c.user_id)
        columns += [
            api_keys.c.id.label("key_id"),
            api_keys.c.workspace_id.label("key_workspace_id"),
            api_keys.c.role.label("key_role"),
            api_keys.c.job_types.label("key_job_types"),
            api_keys.c.expires_at.label("key_expires_at"),
            api_keys.c.revoked_at.label("key_revoked_at"),
            api_keys.c.last_used_at.label("key_last_used_at"),
        ]
        where = api_keys.c.key_hash == bindparam("key_hash")
    elif credential == "token":
        source = users.join(sessions, sessions.c.user_id == users.c.id)
        where = and_(users.c.id == bindparam("user_id"), sessions.c.id == bindparam("session_id"))
    else:
        source = users
        where = users.c.username == bindparam("username")
    if in_workspace:
        columns += [
            workspaces.c.id.label("caller_workspace_id"),
            workspaces.c.move.label("caller_move"),
            workspaces.c.flow_version.label("caller_flow_version"),
        ]
        source = source.outerjoin(
            workspaces, and_(workspaces.c.id == bindparam("workspace_id"), NOT_DELETED)
        )
    if in_workspace or credential == "key":
        of = api_keys.c.workspace_id if credential == "key" else workspaces.c.id
        columns.append(memberships.c.role.label("caller_role"))
        source = source.outerjoin(
            memberships, and_(memberships.c.workspace_id == of, memberships.c.user_id == users.c.id)
        )
    if job_columns is not None:
        columns += JOB_COLUMNS[job_columns]
        source = source.outerjoin(
            jobs, and_(jobs.c.workspace_id == workspaces.c.id, jobs.c.job_id == bindparam("job_id"))
        )
    query = select(*columns).select_from(source).where(where, ~users.c.disabled)
    return Statement[AnyRow](query, prepare=True)


def _look_up(
    connection: Connection,
    identity: Identity,
    workspace_id: int | None,
    job_id: str | None,
    job_columns: PrefetchedColumns | None,
    *,
    write: bool = True,
) -> Caller:
    credential, parameters = identity.credential, identity.parameters
    in_workspace = workspace_id is not None
    if in_workspace:
        parameters = {**parameters, "workspace_id": workspace_id}
    if job_columns is not None:
        # The database may refuse a malformed id, such as one with U+0000. No job has the id "".
        well_formed = job_id is not None and _JOB_ID.fullmatch(job_id)
        parameters = {**parameters, "job_id": job_id if well_formed else ""}
    lookup = _lookup(credential, in_workspace, job_columns)
    row = once_more(connection, lambda: lookup.first(connection, parameters))
    if row is None and credential == "host" and write:
        # A new user of the host, or one who is disabled.
        name = parameters["username"]
        accounts.host_user(connection, name.removeprefix(accounts.HOST_USER_PREFIX))
        row = lookup.first(connection, parameters)
    if row is None:
        raise errors.TokenRevoked(_REVOKED[credential])
    return _caller(connection, identity, row, in_workspace, job_columns, write=write)


def may_still(
    identity: Identity, workspace_id: int, role: Role | None, job_types: Sequence[str] | None
) -> Callable[[Connection], bool]:
    """A function that says, when called later, whether the caller's access is still the same.

    It only reads, so it never waits for a lock.
    """

    def may(connection: Connection) -> bool:
        if identity.expires is not None and time.time() >= identity.expires:
            return False
        try:
            caller = _look_up(connection, identity, workspace_id, None, None, write=False)
        except errors.JobApiError:
            return False
        return caller.role == role and caller.job_types == job_types

    return may


_REVOKED: dict[Credential, str] = {
    "token": "The login session of this token has ended. Log in again.",
    "key": "This API key is not valid; it may have been revoked. Ask a workspace owner for a new "
    "one.",
    "host": "This user is disabled. Ask an administrator.",
}


def _caller(
    connection: Connection,
    identity: Identity,
    row: AnyRow,
    in_workspace: bool,
    job_columns: PrefetchedColumns | None,
    *,
    write: bool,
) -> Caller:
    by_key = identity.credential == "key"
    if by_key:
        _check_key(connection, row, write=write)
    if in_workspace and row.caller_workspace_id is None:
        raise errors.WorkspaceNotFound("No workspace has this id.")
    role = None
    if in_workspace or by_key:
        role = Role.OWNER if row.caller_is_admin else row.caller_role
        elsewhere = by_key and in_workspace and row.key_workspace_id != row.caller_workspace_id
        if role is None or elsewhere:
            raise errors.NotAMember("You have no access to this workspace. Ask one of its owners.")
        # A key can do no more than the user on whose behalf it acts.
        role = Role(min(role, row.key_role) if by_key else role)
    if in_workspace and write and row.caller_move is not None and _writes():
        raise errors.Unavailable(
            "The workspace is being moved to another database; try again later.", retry_after=10
        )
    return Caller(
        connection=connection,
        now=row.now,
        user_id=row.caller_id,
        is_admin=row.caller_is_admin and not by_key,
        session_id=identity.parameters.get("session_id"),
        key_id=row.key_id if by_key else None,
        key_workspace_id=row.key_workspace_id if by_key else None,
        job_types=row.key_job_types if by_key else None,
        role=role,
        flow_version=row.caller_flow_version if in_workspace else None,
        job=row if job_columns is not None else None,
    )


def _writes() -> bool:
    return request.method not in _SAFE_METHODS


def _check_key(connection: Connection, row: AnyRow, *, write: bool) -> None:
    if row.key_revoked_at is not None:
        raise errors.TokenRevoked("This API key was revoked. Ask a workspace owner for a new one.")
    if row.key_expires_at is not None and row.key_expires_at <= row.now:
        raise errors.TokenExpired("This API key has expired. Ask a workspace owner for a new one.")
    last = row.key_last_used_at
    if write and (last is None or last <= row.now - USE_RESOLUTION):
        state().record_key_use(connection, row.key_id, row.now)
