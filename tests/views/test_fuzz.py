"""Schemathesis: requests made from the OpenAPI document, answers held to it.

What the document does not have, schemathesis does not send, and says nothing. So
these tests ask the views which parameters they take, and fail where one of these
has not been sent.

``make fuzz`` does the same with many more examples.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from sqlalchemy import select

from jobapi.rules.operations import Action
from jobapi.rules.roles import Role
from jobapi.schemas.fields import wrong_path
from jobapi.services import operations, schedules, webhooks
from jobapi.services.job_filters import Filters
from jobapi.store.tables import Base

from ..conftest import made_once
from ..factories import PASSWORD, Desk, World, until
from .test_access import TABLE
from .test_openapi import (
    document,
    errors_of,
    parameters_of,
    query_schema,
    sent_and_received,
    taken_by,
    views,
)
from .test_openapi import (
    operations as operations_of,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))

OPERATIONS = sorted(
    (method, rule.replace("<", "{").replace(">", "}"))
    for method, rule in TABLE
    if not rule.startswith(("/docs", "/openapi.json", "/dashboard", "/metrics"))
    and not rule.endswith("/stream")
)


CHANGES_NOTHING = {400, 403, 404, 405, 409, 412, 413, 414, 415, 422}
"""Answers after which everything is as before. Of a 401, failed logins are counted."""

STREAM = "/workspace/{workspace_id}/events/stream"


def configuration(of_reports: bool) -> SchemathesisConfig:
    config = SchemathesisConfig()
    checks = config.projects.default.checks
    # A generated If-Match hardly names the job's version; If-None-Match may be `*`.
    accepted = ["2xx", "304", "401", "403", "404", "409", "412", "429"]
    checks.positive_data_acceptance.expected_statuses = accepted
    # What is wrong and too large besides is refused for the one or the other.
    rejected = checks.negative_data_rejection.expected_statuses
    also = ["413", "414"]
    if of_reports:
        # Each report is judged alone: a wrong one is refused inside of a 200.
        also.append("200")
    checks.negative_data_rejection.expected_statuses = [*rejected, *also]
    config.projects.default.generation.allow_x00 = False
    # Who may call is another test's; here a token is always sent.
    config.projects.default.generation.with_security_parameters = False
    return config


def fits(value: Any) -> bool:
    """Whether JSON that the document allows is such that both databases keep it."""
    if isinstance(value, dict):
        return all(fits(k) and fits(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(fits, value))
    if isinstance(value, int):
        return abs(value) < 2**63
    # Times next to the ends of the calendar cannot be read back in every zone.
    return not (isinstance(value, str) and value.startswith(("0001-01-0", "9999-12-3")))


def fit_filter(given: dict[str, Any]) -> None:
    """What the document cannot say: statuses go with the action, keys are paths."""
    given.pop("status", None)
    for path in [p for p in given.get("metadata", {}) if wrong_path(p, "")]:
        del given["metadata"][path]


def fit_schedule(body: dict[str, Any], workspace_id: int, *, is_new: bool) -> None:
    """What the document says in words: one of two times, a known zone, an end after the start."""
    body.pop("ends_at", None)
    if body.get("timezone") is not None:
        body["timezone"] = "Europe/Paris"
    if is_new or not {"cron", "every_seconds"}.isdisjoint(body):
        if body.get("every_seconds") is None:
            body.pop("every_seconds", None)
            body["cron"] = "30 2 * * MON-FRI"
        else:
            body.pop("cron", None)
    if (body.get("job") or {}).get("workspace_id") is not None:
        body["job"]["workspace_id"] = workspace_id


def operation_of(app: Flask, method: str, path: str, *, whole: bool = False) -> Any:
    """An operation of the served document, whose answers may have no fields besides.

    ``whole``: each of its requests has all parameters, which chance alone gives to few.
    """
    key = (whole, path.endswith("/report"))
    if key not in _LOADED:
        _LOADED[key] = _load(app, *key)
    operation = _LOADED[key][path][method]
    operation.app = app
    return operation


_LOADED: dict[tuple[bool, bool], Any] = {}
"""Documents that are loaded; to load one takes longer than to test some operations."""


def _load(app: Flask, whole: bool, of_reports: bool) -> Any:
    served = document(app)
    for schema in sent_and_received(served)[1].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    for method, path, _ in operations_of(served):
        for parameter in parameters_of(served, method, path):
            parameter["required"] = whole or parameter["in"] == "path"
    loaded = schemathesis.openapi.from_dict(served, config=configuration(of_reports))
    loaded.app = app
    return loaded


_NUMBERS = count()


class Scene:
    """An administrator at work, and two of everything; filled in where the path names one."""

    @classmethod
    def of(cls, app: Flask, path: str) -> Scene:
        """The scene, as at the beginning, for requests to one path."""
        # Hashing takes a while.
        password = PASSWORD if path == "/auth/password" else None
        scene: Scene = made_once(app, f"scene {password}", lambda: cls(app, password))
        scene.url = path.format(**scene.ids)
        return scene

    def __init__(self, app: Flask, password: str | None) -> None:
        world = self.world = World(app)
        desk = Desk(world)
        self.tokens = world.tokens(world.user("boss", password=password, is_admin=True))
        job_id = world.job(desk.workspace_id, desk.user)
        self.ids = {
            "workspace_id": desk.workspace_id,
            "job_id": job_id,
            "user_id": desk.user.id,
            "key_id": 1,
            "operation_id": 1,
            "job_type": "data_analysis",
            "schedule_id": self._create_schedule("one", desk.workspace_id, desk.user),
        }
        for _ in range(2):
            self._create_webhook()
        self.url = ""
        self.turns = count()
        world.key(desk.workspace_id, desk.user, Role.VIEWER)
        self._create_operation()

    def _create_operation(self) -> None:
        with self.world.transaction() as tx:
            workspace_id, user_id = self.ids["workspace_id"], self.ids["user_id"]
            operations.create(tx, workspace_id, Action.RETRY, Filters(), created_by=user_id)

    def _create_schedule(self, name: str, workspace_id: int, user: Any) -> str:
        with self.world.transaction() as tx:
            row = schedules.create(
                tx,
                workspace_id,
                name=name,
                job={"job_type": "data_analysis"},
                every_seconds=86_400,
                created_by=user.id,
                most=100,
            )
        return str(row.schedule_id)

    def _create_webhook(self) -> None:
        """A webhook with two deliveries."""
        with self.world.transaction() as tx:
            workspace_id, user_id = self.ids["workspace_id"], self.ids["user_id"]
            values = {"url": "https://example.com"}
            box = self.world.state.box
            row, _ = webhooks.create(tx, workspace_id, box, values, most=2, created_by=user_id)
            for _ in range(2):
                made = webhooks.test(tx, workspace_id, row.id, lambda now: "{}")
            self.ids |= {"webhook_id": row.id, "delivery_id": made.id}

    def fill(self) -> None:
        """Make another of everything, so that each list has a second page."""
        user = self.world.member(self.ids["workspace_id"], Role.MEMBER)
        self.world.workspace(user)
        self.world.key(self.ids["workspace_id"], user, Role.VIEWER)
        self.world.job(self.ids["workspace_id"], user)
        url = "/workspace/{workspace_id}/jobs/{job_id}".format(**self.ids)
        self.call("PATCH", url, json={"status": "running"})
        self.call("POST", f"{url}/logs", json={"entries": [{"message": "x"}] * 2})
        self._create_operation()
        self._create_schedule("two", self.ids["workspace_id"], user)
        self.world.job(self.ids["workspace_id"], user, job_type="other")
        url = "/workspace/{workspace_id}/jobs/claim".format(**self.ids)
        for _ in range(2):
            # One that the process has not just noted.
            self.call("POST", url, json={"worker": f"w-{next(_NUMBERS)}", "job_types": ["none"]})

    def call(self, method: str, url: str, **kw: Any) -> Any:
        return self.world.call(method, url, self.tokens["access_token"], **kw)

    def cursor(self, **query: Any) -> str | None:
        """Where the second page of the path's list begins."""
        page = self.call("GET", self.url, query_string={**query, "limit": 1})
        assert page.status_code == 200, page.text
        cursor: str | None = page.json["pagination"]["next_cursor"]
        return cursor

    def event_id(self) -> str:
        """An event that a stream may go on after."""
        url = "/workspace/{workspace_id}/events".format(**self.ids)
        return str(self.call("GET", url).json["data"][-1]["event_id"])

    def prepare(self, case: Any, positive: bool) -> dict[str, str]:
        """Put what is there into a case; returns its headers."""
        for name in case.path_parameters or {}:
            if positive:
                case.path_parameters[name] = self.ids[name]
        if positive:
            self._prepare_query(case.query or {})
        body = case.body
        if isinstance(body, dict) and positive:
            assume(fits(body))
            for item in [body, *(body.get("jobs") or [])]:
                if "workspace_id" in item:
                    item["workspace_id"] = self.ids["workspace_id"]
            if "current_password" in body:
                body["current_password"] = PASSWORD
            if body.get("status") in ("success", "completed"):
                body.pop("error", None)  # the two contradict each other
            if case.path.endswith("/members") and ("user_id" in body) == ("username" in body):
                # Exactly one of the two, which the document says in words.
                body.pop("user_id", None)
                body["username"] = "nobody"
            if "url" in body:
                body["url"] = "https://example.com"  # the document says in words which are allowed
            if not body.get("paused"):
                body.pop("paused_reason", None)
            if body.get("rate_limit") is not None:
                # A new one has both, which the document says in words.
                body["rate_limit"] = {"starts": 5, "seconds": 1, **body["rate_limit"]}
            if case.path.endswith(("/schedules", "/{schedule_id}")):
                fit_schedule(body, self.ids["workspace_id"], is_new=case.method == "POST")
            if "action" in body:
                fit_filter(body["filter"])
            if "Lease-Token" not in (case.headers or {}) and "lease_token" not in body:
                for name in ("begun", "run_id"):
                    body.pop(name, None)  # only the holder of a lease may send these
            for item in [body, *(body.get("jobs") or [])]:
                expires = item.get("expires_at")
                assume(not expires or _future(expires))
                if expires:
                    # It has to be later, which the document says in words.
                    item.pop("scheduled_at", None)
        path = case.path
        token = self.tokens["refresh_token" if path == "/auth/refresh" else "access_token"]
        return {} if path == "/auth/login" else {"Authorization": f"Bearer {token}"}

    def _prepare_query(self, query: dict[str, Any]) -> None:
        """Only a page knows what is a cursor: of this order and job, and without a page."""
        if query.get("sort") == "started_at":
            # Only running jobs have this order, which the document says in words.
            query["status"] = "running"
        if "cursor" not in query:
            return
        ordered = ("sort", "order", "job_id", *(["status"] if "status" in query else []))
        order = {name: query[name] for name in ordered if name in query}
        cursor = self.cursor(**order)
        if cursor is None and "job_id" in query and next(self.turns) % 2:
            # The events of a job that does not exist have no second page.
            del query["job_id"], order["job_id"]
            cursor = self.cursor(**order)
        if cursor is None or ("page" in query and next(self.turns) % 2):
            del query["cursor"]
        else:
            query.pop("page", None)
            query["cursor"] = cursor


def test_scene_is_restored_as_it_was(app: Flask) -> None:
    scene = Scene.of(app, "/workspace/{workspace_id}")

    def rows() -> dict[str, Any]:
        with app.extensions["jobapi"].engine.connect() as connection:
            tables = Base.metadata.sorted_tables
            return {t.name: sorted(map(repr, connection.execute(select(t)).all())) for t in tables}

    before = rows()
    made = scene.call("POST", "/workspace", json={"name": "new"}).json["workspace_id"]
    assert scene.call("DELETE", scene.url).status_code == 204
    assert rows() != before
    assert Scene.of(app, "/workspace/{workspace_id}") is scene
    assert rows() == before
    assert scene.call("POST", "/workspace", json={"name": "new"}).json["workspace_id"] == made


def _future(text: str) -> bool:
    try:
        return datetime.fromisoformat(text.upper()) > datetime.now(UTC)
    except (ValueError, TypeError):
        return False


@pytest.fixture
def apps(_apps: dict[str, Flask]) -> list[Flask]:
    """The standalone application on a database of each kind."""
    return list(_apps.values())


def view_of(app: Flask, method: str, path: str) -> Any:
    """The view behind an operation."""
    (view,) = (each for *where, each in views(app) if where == [method.lower(), path])
    return view


def fuzzed(test: Any, cases: Any, examples: int) -> None:
    """Run a test with generated cases."""
    limits = settings(
        max_examples=examples,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    limits(given(case=cases)(test))()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_generated_requests_get_documented_responses(
    apps: list[Flask], method: str, path: str, mode: GenerationMode
) -> None:
    """Each request is sent to both, because making it takes longer than sending it."""
    app = apps[0]
    taken = {each for each in taken_by(view_of(app, method, path), path) if each[0] != "path"}
    operation = operation_of(app, method, path)
    parameters = list(operation.iter_parameters())
    known = {(each.location, each.name) for each in parameters}
    assert {each for each in known if each[0] != "path"} == taken
    if mode is GenerationMode.NEGATIVE and not (parameters or operation.body):
        mode = GenerationMode.POSITIVE  # there is nothing to get wrong
    positive = mode is GenerationMode.POSITIVE

    scenes = [Scene.of(each, path) for each in apps]
    if ("query", "cursor") in taken:
        for scene in scenes:
            scene.fill()
    sent = set()

    def run(case: Any) -> None:
        for scene in scenes:
            headers = scene.prepare(case, positive)
            sent.update(("query", name) for name in case.query or {})
            sent.update(("header", name) for name in case.headers or {})
            case.operation.app = scene.world.app
            answer = case.call_and_validate(headers=headers)
            if method != "GET" and answer.status_code not in CHANGES_NOTHING:
                Scene.of(scene.world.app, path)

    cases = operation.as_strategy(generation_mode=mode)
    if not (taken and positive):
        fuzzed(run, cases, EXAMPLES)
        return
    whole = operation_of(app, method, path, whole=True).as_strategy(generation_mode=mode)
    fuzzed(run, cases, EXAMPLES - EXAMPLES // 3)
    fuzzed(run, whole, max(2, EXAMPLES // 3))
    assert sent >= taken


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_generated_streams_start_or_are_refused(app: Flask, mode: GenerationMode) -> None:
    """The others' test waits for the end of an answer, which a stream does not have."""
    scene = Scene.of(app, STREAM)
    event_id = scene.event_id()
    positive = mode is GenerationMode.POSITIVE
    sent = set()

    def run(case: Any) -> None:
        query, headers = dict(case.query or {}), dict(case.headers or {})
        for given_id in (query, headers) if positive else ():
            for name in {"last_event_id", "Last-Event-ID"} & given_id.keys():
                given_id[name] = event_id
        sent.update([*query, *headers])
        headers = {k: v for k, v in headers.items() if v.isascii() and v.isprintable()}
        answer = scene.call("GET", scene.url, query_string=query, headers=headers)
        answer.close()
        # The thread of the streams sees that in its own time; until then the stream counts.
        until(lambda: not len(scene.world.state.streams))
        if positive or answer.status_code == 200:
            assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
        else:
            assert answer.mimetype == "application/problem+json"
            # 414: longer than any query may be.
            assert answer.status_code in (414, 422)

    for whole in (False, True):
        operation = operation_of(app, "GET", STREAM, whole=whole)
        fuzzed(run, operation.as_strategy(generation_mode=mode), EXAMPLES)
    taken = taken_by(view_of(app, "GET", STREAM), STREAM)
    assert not positive or sent >= {name for place, name in taken if place != "path"}


WITH_CURSORS = [
    "/jobs",
    "/users",
    "/workspace",
    "/workspace/{workspace_id}/events",
    "/workspace/{workspace_id}/job-types",
    "/workspace/{workspace_id}/jobs",
    "/workspace/{workspace_id}/jobs/{job_id}/events",
    "/workspace/{workspace_id}/jobs/{job_id}/logs",
    "/workspace/{workspace_id}/keys",
    "/workspace/{workspace_id}/members",
    "/workspace/{workspace_id}/operations",
    "/workspace/{workspace_id}/schedules",
    "/workspace/{workspace_id}/webhooks",
    "/workspace/{workspace_id}/webhooks/{webhook_id}/deliveries",
    "/workspace/{workspace_id}/workers",
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=5,
)


@st.composite
def mutated(draw: Any, cursors: list[tuple[dict[str, str], str]]) -> tuple[dict[str, str], str]:
    """A cursor in which something has been changed, inside of it or in its text; with its order."""
    order, cursor = draw(st.sampled_from(cursors))
    if draw(st.booleans()):
        values = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        place = draw(st.integers(0, len(values) - 1))
        change = draw(st.sampled_from(["replace", "remove", "insert"]))
        values[place : place + (change != "insert")] = [] if change == "remove" else [draw(JSON)]
        return order, urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(cursor))] * 2)))
    return order, cursor[:begin] + draw(st.text(max_size=5)) + cursor[end:]


@pytest.mark.parametrize("path", WITH_CURSORS)
def test_mutated_cursors_lead_to_a_page_or_are_refused(app: Flask, path: str) -> None:
    scene = Scene.of(app, path)
    scene.fill()
    served = document(app)
    content = served["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    orders: list[dict[str, str]] = [{}]
    if "sort" in query_schema(view_of(app, "GET", path)).fields:
        orders = [
            {"sort": s, "order": o} for s in ("priority", "updated_at") for o in ("asc", "desc")
        ]
    cursors = [(order, cursor) for order in orders if (cursor := scene.cursor(**order))]
    assert len(cursors) == len(orders)

    def run(case: tuple[dict[str, str], str]) -> None:
        order, cursor = case
        answer = scene.call("GET", scene.url, query_string={**order, "cursor": cursor})
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 422:
            assert answer.json["errors"].keys() == {"cursor"}
        else:
            assert errors_of(served, content["schema"], answer.json) == []

    fuzzed(run, mutated(cursors), EXAMPLES)


def test_lists_with_cursors_are_those_whose_cursors_are_mutated(app: Flask) -> None:
    found = [
        path
        for _, path, view in views(app)
        if (schema := query_schema(view)) is not None and "cursor" in schema.fields
    ]
    assert sorted(found) == WITH_CURSORS
