"""The OpenAPI document: for a client generator, and for a person."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Request
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import select

from jobapi.rules.events import EventKind
from jobapi.rules.job_logs import LogLevel
from jobapi.rules.jobs import JobStatus, OnConflict, Outcome, Priority
from jobapi.rules.operations import Action, OperationStatus
from jobapi.rules.roles import Role
from jobapi.rules.schedules import CatchUp, Overlap, RunOutcome
from jobapi.rules.webhooks import DeliveryStatus, Disabled
from jobapi.rules.workers import WorkerState
from jobapi.store import tables
from jobapi.views import base, webhooks
from jobapi.views.base import BLUEPRINT_PREFIX
from jobapi.views.cors import EXPOSED_HEADERS

from ..factories import Desk
from ..served import environment
from .test_access import TABLE

METHODS = ("get", "post", "patch", "put", "delete")
PROBLEM = "application/problem+json"


def document(app: Flask) -> dict[str, Any]:
    """The document as it is served."""
    response = app.test_client().get("/openapi.json")
    assert response.status_code == 200
    return dict(response.get_json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation with its method and path."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a reference names, or the thing itself."""
    if "$ref" not in node:
        return node
    target: Any = document
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return dict(target)


def views(app: Flask) -> Iterator[tuple[str, str, Any]]:
    """Every documented view with its method and path."""
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        documented = getattr(view, "_apidoc", {}).get("jobapi", {})
        if rule.endpoint.startswith(BLUEPRINT_PREFIX) and "parameters" in documented:
            (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
            yield method.lower(), re.sub("<(.*?)>", r"{\1}", rule.rule), view


def query_schema(view: Any) -> Any:
    """The schema that loads a view's query parameters, or None."""
    arguments = view._apidoc.get("arguments", {}).get("parameters", ())
    return next((each["schema"] for each in arguments if each["in"] == "query"), None)


def taken_by(view: Any, path: str) -> set[tuple[str, str]]:
    """Where and by what name a view takes parameters; asked of the view, not of the document."""
    taken = {("path", name) for name in re.findall("{(.*?)}", path)}
    if (schema := query_schema(view)) is not None:
        taken |= {("query", field.data_key or name) for name, field in schema.fields.items()}
    return taken | {(each["in"], each["name"]) for each in view._apidoc["jobapi"]["parameters"]}


def parameters_of(document: dict[str, Any], method: str, path: str) -> list[dict[str, Any]]:
    """The documented parameters of an operation, those of its path included."""
    item = document["paths"][path]
    listed = [*item.get("parameters", ()), *item[method].get("parameters", ())]
    return [resolved(document, parameter) for parameter in listed]


def errors_of(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """What a validator of JSON Schema 2020-12, formats included, has against a value."""
    validator = Draft202012Validator(
        {**schema, "components": document["components"]},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )
    return [error.message for error in validator.iter_errors(value)]


def examples_in(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every example with its schema: of bodies, parameters, headers and in schemas."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from examples_in(each, f"{where}/{number}")
    if not isinstance(node, dict):
        return
    schema = node.get("schema", node)
    if "example" in node:
        yield where, schema, node["example"]
    given = node.get("examples", [])
    named = given.values() if isinstance(given, dict) else given
    for example in named:
        yield where, schema, example["value"] if "schema" in node else example
    for name, each in node.items():
        if name not in ("example", "examples"):
            yield from examples_in(each, f"{where}/{name}")


def test_document_names_the_server_that_it_came_from(app: Flask) -> None:
    client = app.test_client()
    for root in ("http://127.0.0.1:8000", "https://jobs.example.com", "https://example.com/api"):
        served = client.get("/openapi.json", base_url=root).get_json()
        assert served["servers"] == [{"url": root}]


def test_document_is_whole_for_requests_that_ask_for_it_first_at_once(
    make_app: Any, new_database: Any
) -> None:
    app = make_app(new_database("sqlite"))
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(document, [app] * 4)
    assert all(other == first for other in others)
    assert {"/auth/login", "/health/ready"} <= first["paths"].keys()


def test_commands_of_flask_smorest_print_the_document(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"))
    command = ["openapi", "print", "--config-prefix", "JOBAPI"]
    printed = app.test_cli_runner().invoke(args=command)
    assert json.loads(printed.stdout)["paths"].keys() == document(app)["paths"].keys()


WRITTEN = """
from jobapi import create_app
app = create_app({"JOBAPI_SECRET_KEY": "x" * 40})
print(app.test_client().get("/openapi.json").text)
"""


def test_document_is_the_same_text_from_every_process(tmp_path: Path) -> None:
    def written(seed: str) -> str:
        env = environment(PYTHONHASHSEED=seed, JOBAPI_DATABASE_URL=f"sqlite:///{tmp_path}/file")
        command = [sys.executable, "-c", WRITTEN]
        return subprocess.check_output(command, env=env, text=True, stderr=subprocess.DEVNULL)

    assert written("1") == written("2")


def test_stream_is_documented_as_events(app: Flask) -> None:
    path = "/workspace/{workspace_id}/events/stream"
    answer = document(app)["paths"][path]["get"]["responses"]["200"]
    reference = {"$ref": "#/components/schemas/Event"}
    assert answer["content"] == {"text/event-stream": {"schema": reference}}


def test_document_is_valid(app: Flask) -> None:
    served = document(app)
    assert served["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(served).validate()


def test_document_has_every_route_and_method(app: Flask) -> None:
    documented = {(method.upper(), path) for method, path, _ in operations(document(app))}
    routed = {
        (method, rule.rule.replace("<", "{").replace(">", "}"))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint.split(".")[0] not in ("jobapi-docs", "jobapi-metrics", "jobapi-dashboard")
    }
    assert documented == routed


def test_operations_are_complete_for_a_generator_and_a_person(app: Flask) -> None:
    served = document(app)
    ids = [operation["operationId"] for _, _, operation in operations(served)]
    assert len(ids) == len(set(ids))
    for method, path, operation in operations(served):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"].endswith((".", "`.")), where
        assert len(operation["tags"]) == 1, where
        assert operation["security"] in ([], [{"bearer": []}]), where
        for parameter in operation.get("parameters", ()):
            parameter = resolved(served, parameter)
            assert parameter.get("description"), f"{where}: {parameter['name']}"
    assert served["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_views_document_every_parameter_that_they_take(app: Flask) -> None:
    served = document(app)
    found = list(views(app))
    assert len(found) == len(list(operations(served)))
    for method, path, view in found:
        listed = [(each["in"], each["name"]) for each in parameters_of(served, method, path)]
        assert sorted(listed) == sorted(taken_by(view, path)), f"{method} {path}"


class _Headers:
    """Headers of a request that write down which of them are read."""

    def __init__(self, headers: Any, read: set[str]) -> None:
        self._headers, self._read = headers, read

    def get(self, name: str, *default: Any, **kw: Any) -> Any:
        self._read.add(name.title())
        return self._headers.get(name, *default, **kw)

    def __contains__(self, name: str) -> bool:
        self._read.add(name.title())
        return name in self._headers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._headers, name)


@pytest.mark.parametrize("database", ["sqlite"])
def test_views_document_every_header_that_they_read_or_send(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = desk.world.app
    read: set[str] = set()

    class Watched(Request):
        @property
        def headers(self) -> Any:
            return _Headers(self._given, read)

        @headers.setter
        def headers(self, headers: Any) -> None:
            self._given = headers

    monkeypatch.setattr(app, "request_class", Watched)
    known = base.sent

    def sent(header: str) -> str | None:
        read.add(header.title())
        return known(header)

    for name, module in [*sys.modules.items()]:
        if name.startswith("jobapi.views.") and getattr(module, "sent", None) is known:
            monkeypatch.setattr(module, "sent", sent)
    served = document(app)
    token = desk.world.token(desk.world.user("boss", is_admin=True))
    ended = desk.job_in("success")["job_id"]
    ids = {"workspace_id": desk.workspace_id, "job_id": ended, "user_id": desk.user.id}
    found = 0
    for (method, rule), route in TABLE.items():
        path = re.sub("<(.*?)>", r"{\1}", rule)
        if path not in served["paths"] or path == "/auth/logout":
            continue
        read.clear()
        url = re.sub("{(.*?)}", lambda name: str(ids.get(name[1], 1)), path)
        body = {} if route.body is None else {"json": route.body}
        # What an earlier one of these calls has deleted is of no use to those after it.
        if method != "DELETE":
            answer = desk.world.call(method, url, token, **body)
            answer.close()
            responses = served["paths"][path][method.lower()]["responses"]
            told = resolved(served, responses[str(answer.status_code)]).get("headers", {})
            sent = set(answer.headers.keys()) & {*EXPOSED_HEADERS.split(", ")} - {"X-Request-Id"}
            assert sent <= told.keys(), f"{method} {path}"
            found += len(sent)
        parameters = parameters_of(served, method.lower(), path)
        documented = {each["name"].title() for each in parameters if each["in"] == "header"}
        found += len(read & documented)
        # Those that OpenAPI documents elsewhere, and one that all take.
        read -= {"Accept", "Authorization", "Content-Type", "Sec-Fetch-Mode", "X-Request-Id"}
        assert read <= documented, f"{method} {path}"
    assert found > 25


def test_examples_are_valid(app: Flask) -> None:
    served = document(app)
    found = list(examples_in(served))
    assert len(found) > 40
    wrong = {
        f"{where}: {example}": errors
        for where, schema, example in found
        if (errors := errors_of(served, schema, example))
    }
    assert wrong == {}


def test_operations_document_their_errors_as_problems(app: Flask) -> None:
    served = document(app)
    for method, path, operation in operations(served):
        where = f"{method} {path}"
        answers = operation["responses"]
        needed = {"414", "431", "500", "503"}
        if operation["security"]:
            needed |= {"401", "403"} if path != "/auth/refresh" else {"401"}
        if "{" in path:
            needed |= {"404"}
        if "requestBody" in operation:
            needed |= {"400", "413", "415", "422"}
        parameters = parameters_of(served, method, path)
        if any(each["name"] == "Idempotency-Key" for each in parameters):
            needed |= {"422"}
        if path.startswith("/health/"):
            needed = {"500"}
        assert needed <= answers.keys(), where
        for status, answer in answers.items():
            if int(status) >= 400:
                content = resolved(served, answer)["content"]
                assert content.keys() == {PROBLEM}, f"{where} {status}"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("post", "/auth/login", "200"),
        ("get", "/workspace/{workspace_id}/jobs", "200"),
        ("post", "/workspace/{workspace_id}/jobs", "201"),
        ("get", "/workspace/{workspace_id}/jobs/{job_id}", "200"),
        ("patch", "/workspace/{workspace_id}/jobs/{job_id}", "200"),
        ("get", "/workspace/{workspace_id}/jobs/{job_id}/status", "200"),
        ("get", "/workspace/{workspace_id}/jobs/{job_id}/result", "200"),
        ("post", "/workspace/{workspace_id}/jobs/{job_id}/cancel", "200"),
        ("post", "/workspace/{workspace_id}/jobs/{job_id}/retry", "200"),
        ("get", "/jobs", "200"),
    ],
)
def test_operations_of_the_guide_have_its_examples(
    app: Flask, method: str, path: str, status: str
) -> None:
    served = document(app)
    content = served["paths"][path][method]["responses"][status]["content"]["application/json"]
    assert content["example"]
    if method in ("post", "patch") and not path.endswith(("/cancel", "/retry")):
        bodies = served["paths"][path][method]["requestBody"]["content"].values()
        assert all(body["example"] for body in bodies)


def test_only_the_legacy_list_is_deprecated(app: Flask) -> None:
    served = document(app)
    marked = [path for _, path, operation in operations(served) if operation.get("deprecated")]
    assert marked == ["/jobs"]


def reachable(document: dict[str, Any], node: Any) -> dict[str, dict[str, Any]]:
    """The component schemas to which a part of the document leads, by name."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            waiting += [each for name, each in node.items() if name not in ("example", "examples")]
            reference = str(node.get("$ref", ""))
            name = reference.removeprefix("#/components/schemas/")
            if reference.startswith("#/components/"):
                target = resolved(document, node)
                if name == reference:
                    waiting.append(target)
                elif name not in found:
                    found[name] = target
                    waiting.append(target)
    return found


def sent_and_received(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The component schemas of what clients send, and of what they receive."""
    every = [operation for _, _, operation in operations(document)]
    parameters = [parameters_of(document, *each[:2]) for each in operations(document)]
    sent = reachable(document, [[each.get("requestBody", {}) for each in every], parameters])
    return sent, reachable(document, [each["responses"] for each in every])


def schemas_in(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document, examples left out, with the place where it is."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from schemas_in(each, f"{where}/{number}")
    if isinstance(node, dict):
        yield where, node
        for name, each in node.items():
            if name not in ("example", "examples"):
                yield from schemas_in(each, f"{where}/{name}")


ENUMERATIONS = {
    "Action": Action,
    "CatchUp": CatchUp,
    "DeliveryStatus": DeliveryStatus,
    "DisabledReason": Disabled,
    "EventKind": EventKind,
    "JobStatus": JobStatus,
    "LogLevel": LogLevel,
    "OnConflict": OnConflict,
    "OperationStatus": OperationStatus,
    "Outcome": Outcome,
    "Overlap": Overlap,
    "Priority": Priority,
    "Role": Role,
    "RunOutcome": RunOutcome,
    "WorkerState": WorkerState,
}


def test_enumerations_are_shared_components(app: Flask) -> None:
    served = document(app)
    schemas = served["components"]["schemas"]
    for name, enumeration in ENUMERATIONS.items():
        labels = [member.label for member in enumeration]
        assert schemas[name] == {"type": "string", "enum": labels}
    assert schemas["JobStatusInput"]["enum"] == [*schemas["JobStatus"]["enum"], "completed"]
    places = [where for where, schema in schemas_in(served) if "enum" in schema]
    assert [where for where in places if where.count("/") > 3] == []


def test_generated_models_need_no_invented_names(app: Flask) -> None:
    """What is one of several types is named, or is so simple that it needs no name."""
    served = document(app)
    schemas = served["components"]["schemas"]
    for name, schema in schemas.items():
        for field, prop in schema.get("properties", {}).items():
            # orval names a union in place after its schema and property.
            invented = (name + field.replace("_", "")).lower()
            union = "anyOf" in prop or isinstance(prop.get("type"), list)
            assert not union or invented not in {each.lower() for each in schemas}
    for where, schema in schemas_in(served):
        types = schema.get("type")
        assert not (isinstance(types, list) and "object" in types), where
        for each in [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]:
            assert each.keys() in ({"$ref"}, {"type"}), where


# The others may grow: a client that refused a new one would lose the whole page.
CLOSED = {"JobStatus", "LogLevel", "Priority", "Role"}


def test_enumerations_that_may_grow_are_open_in_responses(app: Flask) -> None:
    served = document(app)
    _, received = sent_and_received(served)
    found = {name for name, schema in received.items() if "enum" in schema}
    assert found == ENUMERATIONS.keys()
    for name in received:
        for prop in received[name].get("properties", {}).values():
            nodes = [node for _, node in schemas_in(prop)]
            names = {str(node.get("$ref", "")).rpartition("/")[2] for node in nodes}
            if names & (found - CLOSED):
                assert errors_of(served, prop, "unknown") == [], name


def test_requests_are_closed_and_responses_are_open_to_new_fields(app: Flask) -> None:
    sent, received = sent_and_received(document(app))
    objects = {name for name, schema in sent.items() if "properties" in schema}
    assert len(objects) > 15
    for name in objects:
        assert sent[name]["additionalProperties"] is False, name
    for name, schema in received.items():
        assert schema.get("additionalProperties", True) is True, name


def test_bodies_have_no_default_that_a_generator_makes_required(app: Flask) -> None:
    served = document(app)
    places = [where for where, schema in schemas_in(served) if "default" in schema]
    assert len(places) > 10
    assert [where for where in places if "/parameters/" not in where] == []
    priority = served["components"]["schemas"]["JobCreate"]["properties"]["priority"]
    assert priority["description"] == "Default: `normal`."


def test_documented_defaults_change_nothing(desk: Desk) -> None:
    """A generated client sends them with each request."""
    served = document(desk.world.app)
    desk.job_in("failed")
    for _ in range(2):
        desk.create(metadata={"batch_id": 3})
    token = desk.world.token(desk.world.user("boss", is_admin=True))
    body = {"url": "https://example.com"}
    webhooks = f"/workspace/{desk.workspace_id}/webhooks"
    for _ in range(2):
        webhook_id = desk.call("POST", webhooks, json=body).json["webhook_id"]
    for _ in range(2):
        desk.call("POST", f"{webhooks}/{webhook_id}/test")
    ids = {
        "workspace_id": desk.workspace_id,
        "job_id": desk.create()["job_id"],
        "webhook_id": webhook_id,
    }
    given = {
        "created_after": "2024-01-15T10:00:00Z",
        "created_before": "2124-01-15T10:00:00Z",
        "updated_after": "2024-01-15T10:00:00Z",
        "expires_after": "2024-01-15T10:00:00Z",
        "expires_before": "2124-01-15T10:00:00Z",
        "error": "boom",
        "error_group": "0123456789abcdef",
        "job_id": ids["job_id"],
        "job_type": "data_analysis",
        "kind": "created",
        "last_event_id": None,
        "metadata.batch_id": "3",
        "schedule_id": "sch_0",
        "workspace_id": desk.workspace_id,
    }
    compared = 0
    for method, path, _ in operations(served):
        query = [each for each in parameters_of(served, method, path) if each["in"] == "query"]
        defaults = {
            each["name"]: each["schema"]["default"] for each in query if "default" in each["schema"]
        }
        if not defaults:
            continue

        def answer(url: str, query: dict[str, Any]) -> Any:
            texts = {k: str(v).lower() if v in (True, False) else v for k, v in query.items()}
            response = desk.world.call("GET", url, token, query_string=texts)
            assert response.status_code == 200, f"{url} {texts}: {response.text}"
            return response.json

        url = re.sub("{(.*?)}", lambda name: str(ids[name[1]]), path)
        values = {
            each["name"]: _valid(served, each["schema"], given, each["name"]) for each in query
        }
        if "cursor" in values:
            first = answer(url, {"limit": 1})
            values["cursor"] = first["pagination"]["next_cursor"]
        for name, value in values.items():
            if value is not None:
                plain = answer(url, {name: value})
                full = answer(url, {**defaults, name: value})
                assert full.get("pagination") == plain.get("pagination"), f"{url} {name}"
                compared += 1
    assert compared > 40


def _valid(document: dict[str, Any], schema: dict[str, Any], given: Any, name: str) -> Any:
    schema = resolved(document, schema.get("items", schema))
    if "enum" in schema:
        return schema["enum"][-1]
    return given.get(name, True if schema["type"] == "boolean" else 1)


def test_docs_page_loads_nothing_from_outside(app: Flask) -> None:
    client = app.test_client()
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.mimetype == "text/html"
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "default-src" in page.headers["Content-Security-Policy"]


def test_docs_switched_off_are_not_there(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"), JOBAPI_DOCS_ENABLED="false")
    for path in ("/docs", "/openapi.json"):
        assert app.test_client().get(path).status_code == 404


@pytest.mark.parametrize("database", ["sqlite"])
def test_document_describes_what_webhooks_get(desk: Desk) -> None:
    served = document(desk.world.app)
    (operation,) = [each["post"] for each in served["webhooks"].values()]
    names = {each["name"] for each in operation["parameters"]}
    assert names == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": served["components"]})
    desk.job_in("success")
    with desk.world.state.engine.connect() as connection:
        job = connection.execute(select(tables.jobs)).one()
        happened = connection.execute(select(tables.events)).all()
    messages = [
        webhooks.message(event, each, ["result"]) for event in happened for each in (job, None)
    ]
    messages.append(webhooks._test_message(datetime.now(UTC)))
    for message in messages:
        validator.validate(json.loads(message))
        with pytest.raises(ValidationError):
            validator.validate({**json.loads(message), "timestamp": None})
