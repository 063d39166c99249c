"""Who calls, which workspace, which role: found and checked once, in one query.

A view behind ``guard`` gets a ``Caller``. Where its path names a job, the same
query has read the job, so that reading one costs one round trip.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar

from flask import g, request
from sqlalchemy import Connection, and_, bindparam, select
from sqlalchemy.exc import DBAPIError

from .. import errors
from ..rules.roles import Role
from ..services import accounts
from ..services.job_rows import COLUMNS, not_found
from ..services.keys import KEY_PREFIX, USE_RESOLUTION, digest
from ..services.workspaces import IS_THERE
from ..store.columns import DbNow
from ..store.connections import AnyRow
from ..store.faults import judge
from ..store.statement import Statement
from ..store.tables import MAX_ID, api_keys, jobs, memberships, sessions, users, workspaces
from ..store.transactions import once_more
from .base import View, state
from .bodies import read_body
from .problems import RaisedByHost

T = TypeVar("T")

NUMBERS = frozenset({"workspace_id", "user_id", "key_id", "operation_id"})
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_JOB_ID = re.compile(r"job_[0-9a-v]{26,32}")
_DEFAULT_PORT = re.compile(r":(80|443)$")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

HOST_SECONDS = 300.0
"""How long a host's log-in holds for a stream."""

JOB_COLUMNS = {
    "job": COLUMNS,
    "status": (
        jobs.c.job_id,
        jobs.c.job_type,
        jobs.c.status,
        jobs.c.version,
        jobs.c.progress_percent,
        jobs.c.progress_message,
        jobs.c.updated_at,
    ),
    "result": (
        jobs.c.job_id,
        jobs.c.job_type,
        jobs.c.status,
        jobs.c.version,
        jobs.c.result,
        jobs.c.completed_at,
    ),
}

logger = logging.getLogger("jobapi")


class Identity(NamedTuple):
    """What a request says of its caller, before the database has been asked."""

    kind: str  # "token", "key" or "host"
    parameters: dict[str, Any]
    until: float | None = None
    """Until when that may be believed without another request, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what the request is about."""

    connection: Connection
    now: datetime
    user_id: int
    is_admin: bool
    session_id: str | None = None
    key_id: int | None = None
    key_workspace_id: int | None = None
    job_types: Sequence[str] | None = None
    role: Role | None = None
    job: AnyRow | None = None

    @property
    def name(self) -> str:
        """For the log: who this is, without anything secret."""
        return f"key:{self.key_id}" if self.key_id is not None else f"user:{self.user_id}"

    def check_role(self, role: Role | None) -> None:
        """Refuse whose role in the workspace is lower (``RoleTooLow``)."""
        if role is not None and (self.role is None or self.role < role):
            raise errors.RoleTooLow(_need(role, self.role))

    def check_job_type(self, job_type: str) -> None:
        """Refuse what is not for this key (``JobTypeNotAllowed``)."""
        if self.job_types is not None and job_type not in self.job_types:
            raise errors.JobTypeNotAllowed(
                f"This API key is for the job types {', '.join(self.job_types)} only."
            )


def lease_token() -> str | None:
    """The lease that the caller says it holds."""
    return request.headers.get("Lease-Token")


def public(view: View) -> View:
    """Mark a view that anybody may call."""
    view.__dict__.setdefault("_apidoc", {})["jobapi"] = {"public": True}
    return view


def guard(
    role: Role | None = None,
    *,
    job: str | None = None,
    admin: bool = False,
    keys: bool = True,
    lease_role: Role | None = None,
) -> Callable[[View], View]:
    """Let a view be called only by whoever may, and tell it who that is.

    ``role`` is the least role in the workspace of the path. ``job`` names the
    columns to read of the path's job. ``admin``: administrators only;
    ``keys=False``: no API keys. ``lease_role`` is the least role of a call with
    a ``Lease-Token`` header. Refused in this order: 401, an unknown
    workspace 404, no member 403, role too low 403, an unknown job 404.
    """

    access = _Access(role, job, admin, keys, lease_role)

    def decorator(view: View) -> View:
        @wraps(view)
        def guarded(**url: Any) -> Any:
            identity = identify()
            # Read the body first: a slow upload must not hold a connection. One that the view
            # ignores has the same limit.
            try:
                read_body()
            except (errors.BadRequest, errors.BodyTooLarge, errors.UnsupportedMediaType):
                # A worker's view reads it again, and renews the lease before it refuses.
                if lease_role is None or lease_token() is None:
                    raise
            for name in NUMBERS & url.keys():
                url[name] = _number(url[name])
            return _with_access(access, identity, url, lambda caller: view(caller, **url))

        apidoc = guarded.__dict__["_apidoc"] = {**view.__dict__.get("_apidoc", {})}
        apidoc["jobapi"] = {
            "guarded": True,
            "role": role,
            "admin": admin,
            "keys": keys,
        }
        return guarded

    return decorator


class _Access(NamedTuple):
    """What is required of a caller; the arguments of ``guard``."""

    role: Role | None = None
    job: str | None = None
    admin: bool = False
    keys: bool = True
    lease_role: Role | None = None


def with_access(role: Role, workspace_id: int, act: Callable[[Caller], T]) -> T:
    """Check the access of this request's caller again, and act on a connection of its own.

    For a view that has waited: the role may have been revoked meanwhile. Raises as ``guard``.
    """
    url = {"workspace_id": workspace_id}
    return _with_access(_Access(role), identify(), url, act)


def _with_access(
    access: _Access, identity: Identity, url: Mapping[str, Any], act: Callable[[Caller], T]
) -> T:
    def checked() -> T:
        return act(_check(connection, access, identity, url))

    with connect() as connection:
        return again_if_read_only(connection, checked)


def _check(
    connection: Connection, access: _Access, identity: Identity, url: Mapping[str, Any]
) -> Caller:
    workspace_id, job = url.get("workspace_id"), access.job
    caller = _look_up(connection, identity, workspace_id, url.get("job_id"), job)
    g.jobapi_caller = caller.name
    if caller.key_id is not None and (access.admin or not access.keys):
        raise errors.KeyNotAllowed("An API key cannot do this; log in as a user.")
    if access.admin and not caller.is_admin:
        raise errors.AdministratorOnly("Only an administrator may do this.")
    caller.check_role(access.lease_role if access.lease_role and lease_token() else access.role)
    if job is not None and (
        caller.job is None
        or caller.job.job_id is None
        or (caller.job_types is not None and caller.job.job_type not in caller.job_types)
    ):
        raise not_found()
    return caller


def _number(text: str) -> int:
    # In the path ids are text, so that one out of range is an unknown one like
    # any other, in this order of refusals. No row has the id 0.
    number = int(text) if _NUMBER.fullmatch(text) else 0
    return number if number <= MAX_ID else 0


def _need(role: Role, has: Role | None) -> str:
    or_higher = "" if role is Role.OWNER else " or higher"
    yours = f"; yours is {has.label}" if has is not None else ""
    return f"This needs the role {role.label}{or_higher} in the workspace{yours}."


def connect(*, sure: bool = False) -> Connection:
    """A connection from the pool, each statement committed by itself; to be closed.

    ``sure`` asks the database first, so that it is none that was closed while it lay in the pool.
    """
    connection = state().engine.connect()
    if sure:
        try:
            once_more(connection, lambda: connection.exec_driver_sql("SELECT 1"))
        except BaseException:
            connection.close()
            raise
    return connection


def again_if_read_only(connection: Connection, ask: Callable[[], T]) -> T:
    """Ask, and again on another connection where the database refused to be written to.

    Nothing was written on the first one, and it has been dropped: the database may be writable
    by now, or another server may have taken over. What has closed the connection is not asked
    again.
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
    """The token that the request carries; empty where there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def identify() -> Identity:
    """Who the request says it is from. Raises ``Unauthorized``."""
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
        # A proxy of the host's, and its user's attributes, may ask and raise like the function.
        host_id = accounts.host_id(current_user())
    except accounts.NoUserId:
        raise
    except Exception as error:
        raise RaisedByHost(error) from None
    if host_id is None:
        raise errors.TokenMissing("Log in first.")
    if request.method not in _SAFE_METHODS and _is_cross_site():
        raise errors.CrossSiteRequest(
            "Requests from pages of other sites are refused; to allow a site, add its origin to "
            "JOBAPI_CORS_ORIGINS."
        )
    # The host is not to be asked without a request.
    until = time.time() + HOST_SECONDS
    return Identity("host", {"username": accounts.host_username(host_id)}, until)


_SENT_BY_ITSELF = frozenset({"", "basic", "digest", "negotiate", "ntlm"})


def _is_cross_site() -> bool:
    """Whether another site's page may have sent this, together with the host's log-in.

    A browser adds cookies, and passwords that it keeps, to requests of any page. Another
    ``Authorization`` header only the page itself can have set, and only where CORS allows it.
    """
    scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
    if scheme not in _SENT_BY_ITSELF:
        return False
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() in state().settings.origins:
        return False
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    if origin is None:
        return False
    # Proxies drop the port from the Host header, or add their own default.
    authority = origin.lower().partition("://")[2]
    host = _DEFAULT_PORT.sub("", request.host.lower())
    return authority != host and authority.rpartition(":")[0] != host


@cache
def _lookup(kind: str, in_workspace: bool, job: str | None) -> Statement[AnyRow]:
    """The query for a caller, with workspace and job where the path names them."""
    columns: list[Any] = [
        users.c.id.label("caller_id"),
        users.c.is_admin.label("caller_is_admin"),
        DbNow().label("now"),
    ]
    if kind == "key":
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
    elif kind == "token":
        source = users.join(sessions, sessions.c.user_id == users.c.id)
        where = and_(users.c.id == bindparam("user_id"), sessions.c.id == bindparam("session_id"))
    else:
        source = users
        where = users.c.username == bindparam("username")
    if in_workspace:
        columns.append(workspaces.c.id.label("caller_workspace_id"))
        source = source.outerjoin(
            workspaces, and_(workspaces.c.id == bindparam("workspace_id"), IS_THERE)
        )
    if in_workspace or kind == "key":
        of = api_keys.c.workspace_id if kind == "key" else workspaces.c.id
        columns.append(memberships.c.role.label("caller_role"))
        source = source.outerjoin(
            memberships,
            and_(memberships.c.workspace_id == of, memberships.c.user_id == users.c.id),
        )
    if job is not None:
        columns += JOB_COLUMNS[job]
        source = source.outerjoin(
            jobs,
            and_(jobs.c.workspace_id == workspaces.c.id, jobs.c.job_id == bindparam("job_id")),
        )
    query = select(*columns).select_from(source).where(where, ~users.c.disabled)
    return Statement[AnyRow](query, prepare=True)


def _look_up(
    connection: Connection,
    identity: Identity,
    workspace_id: int | None,
    job_id: str | None,
    job: str | None,
    *,
    write: bool = True,
) -> Caller:
    kind, parameters = identity.kind, identity.parameters
    in_workspace = workspace_id is not None
    if in_workspace:
        parameters = {**parameters, "workspace_id": workspace_id}
    if job is not None:
        # What cannot be an id is looked for as nothing, not sent as it is.
        known_form = job_id is not None and _JOB_ID.fullmatch(job_id)
        parameters = {**parameters, "job_id": job_id if known_form else ""}
    lookup = _lookup(kind, in_workspace, job)
    row = once_more(connection, lambda: lookup.first(connection, parameters))
    if row is None and kind == "host" and write:
        # Nobody has seen this user here before, or they are disabled.
        accounts.host_user(
            connection, parameters["username"].removeprefix(accounts.HOST_USER_PREFIX)
        )
        row = lookup.first(connection, parameters)
    if row is None:
        raise errors.TokenRevoked(_REVOKED[kind])
    return _caller(connection, identity, row, in_workspace, job, write=write)


def may_still(
    identity: Identity, workspace_id: int, role: Role | None, job_types: Sequence[str] | None
) -> Callable[[Connection], bool]:
    """Asks, later, whether a caller still may what they may in this request.

    It only reads, so that it never waits for anybody's lock.
    """

    def may(connection: Connection) -> bool:
        if identity.until is not None and time.time() >= identity.until:
            return False
        try:
            caller = _look_up(connection, identity, workspace_id, None, None, write=False)
        except errors.JobApiError:
            return False
        return caller.role == role and caller.job_types == job_types

    return may


_REVOKED = {
    "token": "The log-in of this token has ended; log in again.",
    "key": "This API key does not work, or no longer; ask the workspace's owner for another.",
    "host": "This user is disabled; ask an administrator.",
}


def _caller(
    connection: Connection,
    identity: Identity,
    row: AnyRow,
    in_workspace: bool,
    job: str | None,
    *,
    write: bool,
) -> Caller:
    key = _check_key(connection, row, write=write) if identity.kind == "key" else {}
    if in_workspace and row.caller_workspace_id is None:
        raise errors.WorkspaceNotFound("There is no such workspace.")
    role = None
    if in_workspace or key:
        role = Role.OWNER if row.caller_is_admin else row.caller_role
        elsewhere = key and in_workspace and row.key_workspace_id != row.caller_workspace_id
        if role is None or elsewhere:
            raise errors.NotAMember("No access to this workspace; ask one of its owners.")
        # A key can do no more than the user for whom it acts.
        role = Role(min(role, row.key_role) if key else role)
    return Caller(
        connection=connection,
        now=row.now,
        user_id=row.caller_id,
        is_admin=row.caller_is_admin and not key,
        session_id=identity.parameters.get("session_id"),
        role=role,
        job=row if job is not None else None,
        **key,
    )


def _check_key(connection: Connection, row: AnyRow, *, write: bool) -> dict[str, Any]:
    if row.key_revoked_at is not None:
        raise errors.TokenRevoked("This API key was revoked.")
    if row.key_expires_at is not None and row.key_expires_at <= row.now:
        raise errors.TokenExpired("This API key has expired.")
    last = row.key_last_used_at
    if write and (last is None or last <= row.now - USE_RESOLUTION):
        state().note_use(connection, row.key_id, row.now)
    return {
        "key_id": row.key_id,
        "key_workspace_id": row.key_workspace_id,
        "job_types": row.key_job_types,
    }
