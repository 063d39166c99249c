"""Schemathesis: requests made from the OpenAPI document, answers held to it.

``make fuzz`` does the same with many more examples.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from jobapi import operations
from jobapi.fields import wrong_path
from jobapi.identity import Role
from jobapi.lifecycle import Action
from jobapi.lists import Filters

from .conftest import empty
from .factories import PASSWORD, Desk, World
from .test_access import TABLE

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))

OPERATIONS = sorted(
    (method, rule.replace("<", "{").replace(">", "}"))
    for method, rule in TABLE
    if not rule.startswith(("/docs", "/openapi.json", "/dashboard", "/metrics"))
    and not rule.endswith("/stream")
)


def configuration(path: str) -> SchemathesisConfig:
    config = SchemathesisConfig()
    checks = config.projects.default.checks
    # A generated If-Match hardly names the job's version; If-None-Match may be `*`.
    accepted = ["2xx", "304", "401", "403", "404", "409", "412", "429"]
    checks.positive_data_acceptance.expected_statuses = accepted
    # What is wrong and too large besides is refused for the one or the other.
    rejected = checks.negative_data_rejection.expected_statuses
    also = ["413", "414"]
    if path.endswith("/report"):
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


class Scene:
    """An administrator at work, a job, a member, a key; filled in where the path names one."""

    def __init__(self, app: Flask, path: str) -> None:
        world = World(app)
        empty(app)
        desk = Desk(world)
        # Hashing takes a while.
        password = PASSWORD if path == "/auth/password" else None
        self.tokens = world.tokens(world.user("boss", password=password, is_admin=True))
        self.ids = {
            "workspace_id": desk.workspace_id,
            "job_id": world.job(desk.workspace_id, desk.user),
            "user_id": desk.user.id,
            "key_id": 1,
            "operation_id": 1,
        }
        world.key(desk.workspace_id, desk.user, Role.VIEWER)
        with world.transaction() as tx:
            operations.create(
                tx, desk.workspace_id, Action.RETRY, Filters(), created_by=desk.user.id
            )

    def prepare(self, case: Any, positive: bool) -> dict[str, str]:
        """Put what is there into a case; returns its headers."""
        for name in case.path_parameters or {}:
            if positive:
                case.path_parameters[name] = self.ids[name]
        if positive:
            # Only a page knows what is a cursor.
            (case.query or {}).pop("cursor", None)
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
            if "action" in body:
                fit_filter(body["filter"])
            expires = body.get("expires_at")
            assume(not expires or _future(expires))
        path = case.path
        token = self.tokens["refresh_token" if path == "/auth/refresh" else "access_token"]
        return {} if path == "/auth/login" else {"Authorization": f"Bearer {token}"}


def _future(text: str) -> bool:
    try:
        return datetime.fromisoformat(text.upper()) > datetime.now(UTC)
    except (ValueError, TypeError):
        return False


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_generated_requests_find_nothing(
    app: Flask, method: str, path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app, config=configuration(path))
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (
        list(operation.iter_parameters()) or operation.body
    ):
        mode = GenerationMode.POSITIVE  # there is nothing to get wrong

    # Reading leaves everything as it was.
    scene = Scene(app, path) if method == "GET" else None

    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        headers = (scene or Scene(app, path)).prepare(case, mode is GenerationMode.POSITIVE)
        case.call_and_validate(headers=headers)

    run()
