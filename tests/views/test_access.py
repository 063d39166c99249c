"""Access: a table of every route with the callers that may use it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from flask import Flask
from flask_jwt_extended import create_access_token
from sqlalchemy import delete, select, update

from jobapi import accounts, keys
from jobapi.rules.operations import Action
from jobapi.rules.roles import Role
from jobapi.services import operations, schedules, webhooks
from jobapi.services.job_filters import Filters
from jobapi.store.tables import Base, api_keys, memberships, users

from ..conftest import METRICS_TOKEN, made_once
from ..factories import PASSWORD, World

# Everybody who is refused with 401 wherever a login is asked for.
STRANGERS = {
    "no token",
    "nonsense",
    "another secret's token",
    "expired token",
    "logged out",
    "refresh token",
    "disabled user",
    "unknown key",
    "revoked key",
    "expired key",
    "disabled user's key",
    "metrics token",
}
USERS = {"outsider", "viewer", "worker", "member", "owner", "admin"}
KEYS = {"viewer key", "worker key", "member key", "key of another workspace"}
# What is left of a key whose user has left the workspace.
ORPHANS = {"former member's key"}
EVERYBODY = STRANGERS | USERS | KEYS | ORPHANS

VIEWERS = {"viewer", "worker", "member", "owner", "admin", "viewer key", "worker key", "member key"}
MEMBERS = {"member", "owner", "admin", "member key"}
WORKERS = MEMBERS | {"worker", "worker key"}
OWNERS = {"owner", "admin"}
ADMINS = {"admin"}

NEW_USER = {"username": "new", "password": PASSWORD}
JOB = {"job_type": "data_analysis", "workspace_id": 1}
KEY = {"name": "new", "role": "viewer"}
SCHEDULE = {"name": "new", "every_seconds": 60, "job": {"job_type": "data_analysis"}}
CANCEL_ALL = {"action": "cancel", "filter": {}}


class Route(NamedTuple):
    """What a call needs, and who may make it."""

    may: set[str] | None  # None: no login is asked for
    success: int
    body: Any = None


W = "/workspace/<workspace_id>"
J = f"{W}/jobs/<job_id>"
HOOK = f"{W}/webhooks/<webhook_id>"

TABLE = {
    ("GET", "/health/live"): Route(None, 200),
    ("GET", "/health/ready"): Route(None, 200),
    ("GET", "/docs"): Route(None, 200),
    ("GET", "/docs/own/<name>"): Route(None, 200),
    ("GET", "/docs/files/<path:name>"): Route(None, 200),
    ("GET", "/openapi.json"): Route(None, 200),
    ("GET", "/dashboard"): Route(None, 200),
    ("GET", "/dashboard/<path:view>"): Route(None, 200),
    ("GET", "/dashboard/files/<path:file>"): Route(None, 200),
    ("GET", "/metrics"): Route({"metrics token"}, 200),
    ("POST", "/auth/login"): Route(None, 200, {"username": "boss", "password": PASSWORD}),
    ("POST", "/auth/refresh"): Route({"refresh token"}, 200),
    ("POST", "/auth/logout"): Route(USERS, 204),
    ("GET", "/auth/me"): Route(USERS, 200),
    ("POST", "/auth/password"): Route(
        USERS, 204, {"current_password": PASSWORD, "new_password": "another password"}
    ),
    ("GET", "/users"): Route(ADMINS, 200),
    ("POST", "/users"): Route(ADMINS, 201, NEW_USER),
    ("GET", "/users/<user_id>"): Route(ADMINS, 200),
    ("PATCH", "/users/<user_id>"): Route(ADMINS, 200, {"disabled": True}),
    ("GET", "/workspace"): Route(USERS | KEYS, 200),
    ("POST", "/workspace"): Route(USERS, 201, {"name": "New"}),
    ("GET", W): Route(VIEWERS, 200),
    ("PATCH", W): Route(OWNERS, 200, {"name": "Renamed"}),
    ("DELETE", W): Route(OWNERS, 204),
    ("GET", f"{W}/members"): Route(VIEWERS, 200),
    ("POST", f"{W}/members"): Route(OWNERS, 201, {"username": "outsider", "role": "viewer"}),
    ("GET", f"{W}/members/<user_id>"): Route(VIEWERS, 200),
    ("PATCH", f"{W}/members/<user_id>"): Route(OWNERS, 200, {"role": "worker"}),
    ("DELETE", f"{W}/members/<user_id>"): Route(OWNERS, 204),
    ("GET", f"{W}/keys"): Route(OWNERS, 200),
    ("POST", f"{W}/keys"): Route(OWNERS, 201, KEY),
    ("DELETE", f"{W}/keys/<key_id>"): Route(OWNERS, 204),
    ("GET", f"{W}/jobs"): Route(VIEWERS, 200),
    ("POST", f"{W}/jobs"): Route(MEMBERS, 201, JOB),
    ("POST", f"{W}/jobs/batch"): Route(MEMBERS, 201, {"jobs": [JOB]}),
    ("POST", f"{W}/jobs/claim"): Route(WORKERS, 200),
    ("POST", f"{W}/jobs/report"): Route(
        WORKERS, 200, {"reports": [{"job_id": "job_x", "lease_token": "x"}]}
    ),
    ("GET", J): Route(VIEWERS, 200),
    ("GET", f"{W}/jobs/errors"): Route(VIEWERS, 200),
    ("GET", f"{J}/attempts"): Route(VIEWERS, 200),
    ("GET", f"{J}/explain"): Route(VIEWERS, 200),
    ("GET", f"{J}/logs"): Route(VIEWERS, 200),
    # It does not run.
    ("POST", f"{J}/logs"): Route(MEMBERS, 409, {"entries": [{"message": "x"}]}),
    ("GET", f"{W}/job-types"): Route(VIEWERS, 200),
    ("GET", f"{W}/job-types/<job_type>"): Route(VIEWERS, 200),
    ("PATCH", f"{W}/job-types/<job_type>"): Route(OWNERS, 200, {"max_running": 5}),
    ("POST", f"{W}/job-types/<job_type>/pause"): Route(MEMBERS, 200),
    ("POST", f"{W}/job-types/<job_type>/resume"): Route(MEMBERS, 200),
    ("GET", f"{W}/workers"): Route(VIEWERS, 200),
    ("GET", f"{W}/schedules"): Route(VIEWERS, 200),
    ("POST", f"{W}/schedules"): Route(MEMBERS, 201, SCHEDULE),
    ("GET", f"{W}/schedules/<schedule_id>"): Route(VIEWERS, 200),
    ("PATCH", f"{W}/schedules/<schedule_id>"): Route(MEMBERS, 200, {"name": "renamed"}),
    ("DELETE", f"{W}/schedules/<schedule_id>"): Route(MEMBERS, 204),
    ("POST", f"{W}/schedules/<schedule_id>/run"): Route(MEMBERS, 201),
    ("POST", f"{W}/schedules/<schedule_id>/pause"): Route(MEMBERS, 200),
    ("POST", f"{W}/schedules/<schedule_id>/resume"): Route(MEMBERS, 200),
    ("GET", f"{W}/webhooks"): Route(OWNERS, 200),
    ("POST", f"{W}/webhooks"): Route(OWNERS, 201, {"url": "https://example.com"}),
    ("GET", HOOK): Route(OWNERS, 200),
    ("PATCH", HOOK): Route(OWNERS, 200, {"description": "x"}),
    ("DELETE", HOOK): Route(OWNERS, 204),
    ("POST", f"{HOOK}/rotate-secret"): Route(OWNERS, 200),
    ("POST", f"{HOOK}/test"): Route(OWNERS, 201),
    ("GET", f"{HOOK}/deliveries"): Route(OWNERS, 200),
    ("GET", f"{HOOK}/deliveries/<delivery_id>"): Route(OWNERS, 200),
    ("POST", f"{HOOK}/deliveries/<delivery_id>/redeliver"): Route(OWNERS, 200),
    ("POST", f"{W}/pause"): Route(OWNERS, 200),
    ("POST", f"{W}/resume"): Route(OWNERS, 200),
    ("GET", f"{J}/status"): Route(VIEWERS, 200),
    ("GET", f"{J}/result"): Route(VIEWERS, 409),  # it has not ended
    ("PATCH", J): Route(MEMBERS, 200, {"status": "running"}),
    ("DELETE", J): Route(OWNERS, 409),  # it has not ended
    ("POST", f"{J}/cancel"): Route(MEMBERS, 200),
    ("POST", f"{J}/retry"): Route(MEMBERS, 409),  # it has not failed
    ("GET", f"{W}/stats"): Route(VIEWERS, 200),
    ("GET", f"{W}/stats/history"): Route(VIEWERS, 200),
    ("POST", f"{W}/operations"): Route(MEMBERS, 201, CANCEL_ALL),
    ("GET", f"{W}/operations"): Route(VIEWERS, 200),
    ("GET", f"{W}/operations/<operation_id>"): Route(VIEWERS, 200),
    ("POST", f"{W}/operations/<operation_id>/stop"): Route(MEMBERS, 409),  # it has ended
    ("GET", f"{W}/events"): Route(VIEWERS, 200),
    ("GET", f"{W}/events/stream"): Route(VIEWERS, 200),
    ("GET", f"{J}/events"): Route(VIEWERS, 200),
    ("GET", "/jobs"): Route(USERS | KEYS, 200),
}


class Cast:
    """A workspace with a job, callers with every role, and the credentials that they send."""

    def __init__(self, world: World, *, hashed: bool = False) -> None:
        self.world = world
        # Hashing takes a while, so only whose password is looked at has one.
        password = PASSWORD if hashed else None
        people: dict[str, Any] = {
            name: world.user(name, password=password)
            for name in ("owner", "outsider", "viewer", "worker", "member", "gone", "former")
        }
        people["admin"] = world.user("boss", password=PASSWORD, is_admin=True)
        self.workspace = world.workspace(people["owner"])
        assert self.workspace == 1
        self.elsewhere = world.workspace(people["owner"], "Elsewhere")
        with world.transaction() as tx:
            for name in ("viewer", "worker", "member", "gone", "former"):
                role = Role[name.upper()] if name.upper() in Role.__members__ else Role.MEMBER
                tx.execute(
                    memberships.insert().values(
                        workspace_id=1,
                        user_id=people[name].id,
                        role=role,
                        created_at=datetime.now(UTC),
                    )
                )
        self.bystander = world.member(1, Role.VIEWER)
        self.job = world.job(1, people["owner"])
        self.job_elsewhere = world.job(self.elsewhere, people["owner"])

        with world.transaction() as tx:
            operations.create(tx, 1, Action.RETRY, Filters(), created_by=people["owner"].id)
            self.schedule = schedules.create(
                tx,
                1,
                name="nightly",
                job={"job_type": "data_analysis"},
                every_seconds=86_400,
                created_by=people["owner"].id,
                most=100,
            )
            self.webhook = webhooks.create(
                tx,
                1,
                world.state.box,
                {"url": "https://example.com"},
                most=1,
                created_by=people["owner"].id,
            )[0].id
            self.delivery = webhooks.test(tx, 1, self.webhook, lambda now: "{}").id

        def key(name: str, role: Role, workspace: int = 1) -> str:
            return world.key(workspace, people[name], role)

        tokens = {name: world.tokens(people[name]) for name in people}
        self.sends: dict[str, str | None] = {
            name: tokens[name]["access_token"] for name in USERS & tokens.keys()
        }
        self.sends |= {
            "no token": None,
            "nonsense": "nonsense",
            "another secret's token": self._token(people["owner"], "y" * 32),
            "expired token": self._expired(people["owner"]),
            "logged out": world.token(people["owner"]),
            "refresh token": tokens["owner"]["refresh_token"],
            "disabled user": tokens["gone"]["access_token"],
            "unknown key": "jk_" + "x" * 43,
            "revoked key": key("owner", Role.MEMBER),
            "expired key": key("owner", Role.MEMBER),
            "disabled user's key": key("gone", Role.MEMBER),
            "viewer key": key("owner", Role.VIEWER),
            "worker key": key("owner", Role.WORKER),
            "member key": key("owner", Role.MEMBER),
            "key of another workspace": key("owner", Role.MEMBER, self.elsewhere),
            "former member's key": key("former", Role.MEMBER),
            "metrics token": METRICS_TOKEN,
        }
        assert self.sends.keys() == EVERYBODY
        self._end(people)

    @classmethod
    def of(cls, app: Flask, *, hashed: bool = False) -> Cast:
        """The cast, as at the beginning."""
        cast: Cast = made_once(app, f"cast {hashed}", lambda: cls(World(app), hashed=hashed))
        return cast

    def _token(self, user: Any, secret: str) -> str:
        private = self.world.state.private
        with private.app_context():
            known = private.config["JWT_SECRET_KEY"]
            private.config["JWT_SECRET_KEY"] = secret
            try:
                return self.world.token(user)
            finally:
                private.config["JWT_SECRET_KEY"] = known

    def _expired(self, user: Any) -> str:
        with self.world.transaction() as tx:
            login = accounts.open_session(tx, user.id, timedelta(days=1))
        with self.world.state.private.app_context():
            return str(
                create_access_token(
                    str(user.id),
                    additional_claims={"sid": login.session_id},
                    expires_delta=timedelta(seconds=-1),
                )
            )

    def _end(self, people: dict[str, Any]) -> None:
        assert self.call("logged out", "POST", "/auth/logout").status_code == 204
        with self.world.transaction() as tx:
            by_hash = {
                name: api_keys.c.key_hash == keys.digest(self.sends[name] or "")
                for name in ("revoked key", "expired key")
            }
            then = datetime(2020, 1, 1, tzinfo=UTC)
            tx.execute(update(api_keys).where(by_hash["revoked key"]).values(revoked_at=then))
            tx.execute(update(api_keys).where(by_hash["expired key"]).values(expires_at=then))
            # Not through the service, which would end the logins, too.
            tx.execute(update(users).where(users.c.id == people["gone"].id).values(disabled=True))
            tx.execute(delete(memberships).where(memberships.c.user_id == people["former"].id))

    def call(self, who: str, method: str, path: str, body: Any = None) -> Any:
        """Make a call as somebody."""
        kw = {} if body is None else {"json": body}
        return self.world.call(method, path, self.sends[who], **kw)

    def path(self, rule: str, *, workspace: int = 1, job: str | None = None) -> str:
        """The rule filled in with what is there."""
        fill = {
            "<workspace_id>": str(workspace),
            "<job_id>": job or self.job,
            "<user_id>": str(self.bystander.id),
            "<key_id>": "4",
            "<operation_id>": "1",
            "<schedule_id>": self.schedule.schedule_id,
            "<webhook_id>": self.webhook,
            "<delivery_id>": self.delivery,
            "<job_type>": "data_analysis",
            "<path:name>": "swagger-ui.css",
            "<name>": "theme.js",
            "<path:view>": "1/jobs",
            "<path:file>": "any/style.css",
        }
        return re.sub(r"<[^>]+>", lambda match: fill[match.group()], rule)


def everything(world: World) -> dict[str, list[Any]]:
    """All rows of the database, without the times when keys were last used."""
    with world.state.engine.connect() as connection:
        return {
            table.name: sorted(
                map(repr, connection.execute(select(*[c for c in table.c if c.name != LAST_USE])))
            )
            for table in Base.metadata.sorted_tables
        }


LAST_USE = "last_used_at"


def routes(app: Flask) -> set[tuple[str, str]]:
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_table_has_every_route(app: Flask) -> None:
    assert routes(app) == TABLE.keys()


def test_views_are_guarded_unless_the_table_says_otherwise(app: Flask) -> None:
    pages = ("/docs", "/openapi.json", "/dashboard")
    for rule in app.url_map.iter_rules():
        ours = getattr(app.view_functions[rule.endpoint], "_apidoc", {}).get("jobapi", {})
        public = all(
            TABLE[method, rule.rule].may is None or rule.rule == "/auth/refresh"
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        )
        # What has a token of its own looks at it itself.
        if rule.rule.startswith(pages) or rule.rule == "/metrics":
            assert not ours, rule.rule
        else:
            assert ours.get("public", False) == public, rule.rule
            assert ours.get("guarded", False) != public, rule.rule


@pytest.mark.parametrize(("method", "rule"), sorted(TABLE))
def test_call_without_permission_is_refused_and_changes_nothing(
    app: Flask, method: str, rule: str
) -> None:
    route = TABLE[method, rule]
    if route.may is None:
        route = route._replace(may=EVERYBODY)
    cast = Cast.of(app)
    before = everything(cast.world)
    for who in sorted(EVERYBODY - (route.may or set())):
        response = cast.call(who, method, cast.path(rule), route.body)
        expected = 403
        if who in STRANGERS or rule in ("/auth/refresh", "/metrics"):
            expected = 401
        assert response.status_code == expected, f"{who}: {response.text}"
        assert response.mimetype == "application/problem+json"
        if expected == 401:
            assert response.headers["WWW-Authenticate"].startswith("Bearer"), who
    assert everything(cast.world) == before


@pytest.mark.parametrize(("method", "rule"), sorted(TABLE))
def test_call_with_permission_succeeds(app: Flask, method: str, rule: str) -> None:
    route = TABLE[method, rule]
    hashed = rule == "/auth/password"
    cast = Cast.of(app, hashed=hashed)
    for who in sorted(EVERYBODY if route.may is None else route.may):
        response = cast.call(who, method, cast.path(rule), route.body)
        if response.status_code != route.success:
            # An earlier call may have changed what this one needs.
            cast = Cast.of(app, hashed=hashed)
            response = cast.call(who, method, cast.path(rule), route.body)
        assert response.status_code == route.success, f"{who}: {response.text}"
        # A stream would stay open.
        response.close()


@pytest.mark.parametrize(("method", "rule"), sorted(r for r in TABLE if W in r[1]))
def test_call_in_unknown_workspace_is_404(app: Flask, method: str, rule: str) -> None:
    cast = Cast.of(app)
    for who in sorted(USERS | KEYS | ORPHANS):
        for unknown in (999, 2**31 - 1, 2**31, 10**30, 0):
            path = cast.path(rule).replace("/workspace/1", f"/workspace/{unknown}")
            response = cast.call(who, method, path, TABLE[method, rule].body)
            expected = 403 if who in ORPHANS and response.status_code == 403 else 404
            assert response.status_code == expected, f"{who}, {unknown}: {response.text}"
            if expected == 404:
                assert response.json["type"].endswith(":workspace-not-found")


@pytest.mark.parametrize(("method", "rule"), sorted(r for r in TABLE if J in r[1]))
def test_call_for_job_of_another_workspace_is_404(app: Flask, method: str, rule: str) -> None:
    cast = Cast.of(app)
    before = everything(cast.world)
    for who in sorted(TABLE[method, rule].may or ()):
        for job in (cast.job_elsewhere, "job_abc123", "job_" + "0" * 26, "x", "%00"):
            path = cast.path(rule, job=job)
            response = cast.call(who, method, path, TABLE[method, rule].body)
            assert response.status_code == 404, f"{who}, {job}: {response.text}"
            assert response.json["detail"] == "Job not found in specified workspace"
    assert everything(cast.world) == before


def test_refusal_of_a_role_says_which_role_may(world: World) -> None:
    cast = Cast(world)
    response = cast.call("viewer", "POST", "/workspace/1/jobs", JOB)
    assert response.json["type"].endswith(":role-too-low")
    assert response.json["detail"] == (
        "This requires the role member or higher in the workspace. Yours is viewer. "
        "Ask an owner of the workspace."
    )
    detail = cast.call("member", "DELETE", "/workspace/1").json["detail"]
    assert detail.startswith("This requires the role owner in the workspace. Yours is member.")


def test_role_and_disabling_take_effect_at_once(world: World) -> None:
    cast = Cast(world)
    member = f"/workspace/1/members/{cast.call('member', 'GET', '/auth/me').json['user_id']}"
    assert cast.call("member", "POST", "/workspace/1/jobs", JOB).status_code == 201
    assert cast.call("owner", "PATCH", member, {"role": "viewer"}).status_code == 200
    assert cast.call("member", "POST", "/workspace/1/jobs", JOB).status_code == 403
    assert cast.call("owner", "DELETE", member).status_code == 204
    assert cast.call("member", "GET", "/workspace/1/jobs").status_code == 403
    owner = cast.call("owner", "GET", "/auth/me").json["user_id"]
    assert cast.call("member key", "GET", "/workspace/1/jobs").status_code == 200
    assert cast.call("admin", "PATCH", f"/users/{owner}", {"disabled": True}).status_code == 200
    assert cast.call("owner", "GET", "/auth/me").status_code == 401
    assert cast.call("member key", "GET", "/workspace/1/jobs").status_code == 401


def test_key_can_do_no_more_than_its_user(world: World) -> None:
    cast = Cast(world)
    user = world.member(1, Role.MEMBER)
    key = world.key(1, user, Role.MEMBER)
    assert world.call("POST", "/workspace/1/jobs", key, json=JOB).status_code == 201
    path = f"/workspace/1/members/{user.id}"
    assert cast.call("owner", "PATCH", path, {"role": "viewer"}).status_code == 200
    assert world.call("POST", "/workspace/1/jobs", key, json=JOB).status_code == 403
    assert world.call("GET", "/workspace/1/jobs", key).status_code == 200
