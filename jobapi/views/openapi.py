"""The OpenAPI document: how schemas, errors, parameters and headers are written."""

from __future__ import annotations

import http
import inspect
import json
from collections.abc import Mapping
from threading import RLock
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask
from flask_smorest import Api as SmorestApi
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow.fields import Field

from ..headers import PROBLEM
from ..schemas import base as schemas
from ..schemas.fields import Choice, Time
from ..schemas.webhooks import Message
from ..store.tables import MAX_ID
from . import examples
from .base import JSON


class _Converter(OpenAPIConverter):
    """Writes schemas from which client generators make usable types.

    A field with a ``component`` in its metadata refers to that component, which all
    such fields share. Defaults of bodies are part of the description, because some
    generators make fields with a ``default`` required.
    """

    def field2property(self, field: Field[Any]) -> dict[str, Any]:
        prop: dict[str, Any] = super().field2property(field)
        prop.pop("default", None)
        name = field.metadata.get("component")
        if name is None:
            return prop
        shared = {key: prop.pop(key) for key in _SHARED if key in prop}
        one: dict[str, Any] = self._component(name, {**shared, "type": _not_null(shared["type"])})
        null = [{"type": "null"}] if field.allow_none else []
        # Some generators name an inline union after its schema and property. That could be the
        # name of another schema, so unions are components, too.
        if field.metadata.get("grows"):
            union = [one, {"type": "string"}, *null]
            one = self._component(f"Any{name}", {"anyOf": union, "description": _GROWS})
        elif null and "enum" in shared:
            one = {"anyOf": [one, *null]}
        elif null:
            one = self._component(f"Nullable{name}", {"anyOf": [one, *null]})
        return prop | one

    def _component(self, name: str, schema: dict[str, Any]) -> dict[str, str]:
        components = self.spec.components
        if name not in components.schemas:
            components.schema(name, schema)
        elif components.schemas[name] != schema:
            raise ValueError(f"Two different schemas are named {name}")
        return {"$ref": f"#/components/schemas/{name}"}

    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        described: dict[str, Any] = super().schema2jsonschema(schema)
        described["description"] = (inspect.getdoc(type(schema)) or "").replace("``", "`")
        return described

    def field2default(self, field: Field[Any], **kw: Any) -> dict[str, Any]:
        return {}

    def _field2parameter(self, field: Field[Any], **kw: Any) -> dict[str, Any]:
        parameter: dict[str, Any] = super()._field2parameter(field, **kw)
        parameter["schema"] |= super().field2default(field)
        return parameter

    def fields2jsonschema(self, fields: Any, **kw: Any) -> dict[str, Any]:
        schema: dict[str, Any] = super().fields2jsonschema(fields, **kw)
        for name, field in fields.items():
            if default := super().field2default(field):
                value = default["default"]
                text = value if isinstance(value, str) else json.dumps(value)
                prop = schema["properties"][field.data_key or name]
                words = (prop.get("description"), f"Default: `{text}`.")
                prop["description"] = " ".join(filter(None, words))
        return schema


_GROWS = "A later version may send other values."
_SHARED = ("type", "enum", "additionalProperties")


def _not_null(types: Any) -> Any:
    """The type of a nullable field without the null."""
    return types if isinstance(types, str) else next(each for each in types if each != "null")


class _MarshmallowPlugin(MarshmallowPlugin):
    Converter = _Converter


class Api(SmorestApi):
    """flask-smorest's Api, without its error handler, which is app-wide."""

    DEFAULT_ERROR_RESPONSE_NAME = None
    ERROR_SCHEMA = schemas.Problem

    def __init__(self, app: Flask, *, version: str, description: str) -> None:
        self._undescribed: list[tuple[SmorestBlueprint, Any]] = []
        self._describing = False
        # flask-smorest may read ``spec`` while it describes the views.
        self._lock = RLock()
        super().__init__(
            app,
            config_prefix="JOBAPI",
            spec_kwargs={
                "title": "Job API",
                "version": version,
                "openapi_version": "3.1.0",
                "info": {"description": description},
                "marshmallow_plugin": _MarshmallowPlugin(),
            },
        )

    def _init_spec(self, **options: Any) -> None:
        super()._init_spec(**options)
        self.register_field(Choice, "string", None)
        self.register_field(Time, "string", "date-time")

    def register_blueprint(
        self, blp: SmorestBlueprint, *, parameters: Any = None, **options: Any
    ) -> None:
        """Register a blueprint, which ``spec`` describes."""
        self._app.extensions["flask-smorest"]["blp_name_to_api"][blp.name] = self
        self._app.register_blueprint(blp, **options)
        self._undescribed.append((blp, parameters))

    @property
    def spec(self) -> APISpec:
        """The OpenAPI document, with each blueprint under its tag instead of its name.

        The views are described when it is first asked for: that takes a tenth of the time in which
        the application starts, and many processes never need it.
        """
        with self._lock:
            if self._undescribed and not self._describing:
                self._describing = True
                try:
                    self._describe()
                finally:
                    self._describing = False
        return self._spec

    @spec.setter
    def spec(self, spec: APISpec) -> None:
        self._spec = spec

    def _describe(self) -> None:
        for blp, parameters in self._undescribed:
            blp.register_views_in_doc(
                self, self._app, self._spec, name=blp.name, parameters=parameters
            )
            if blp.description:
                self._spec.tag({"name": blp.tag, "description": blp.description})
        # Only now, so that an error does not leave half a document to the next request.
        self._undescribed.clear()

    def describe_security(self, host_login: bool) -> None:
        """Document how a caller authenticates."""
        by = (
            "An API key" if host_login else "An access token from `POST /auth/login`, or an API key"
        )
        self.spec.components.security_scheme(
            "bearer",
            {
                "type": "http",
                "scheme": "bearer",
                "description": f"{by} (`jk_…`). Without `Bearer` in front, which is added.",
            },
        )

    def describe_messages(self) -> None:
        """Document what the service sends to webhooks."""
        self.spec.components.schema("WebhookMessage", schema=Message)
        body = {"schema": {"$ref": "#/components/schemas/WebhookMessage"}}
        sent: dict[str, Any] = {
            "summary": "An event",
            "description": "Sent to the `url` of a webhook, signed as Standard Webhooks 1.0 says. "
            "Messages may be repeated, and come in no particular order.",
            "operationId": "webhook_message",
            "tags": ["Webhooks"],
            "security": [],
            "parameters": [
                {
                    "name": name,
                    "in": "header",
                    "required": True,
                    "description": description,
                    "schema": {"type": "string"},
                }
                for name, description in _MESSAGE_HEADERS.items()
            ],
            "requestBody": {"required": True, "content": {JSON: body}},
            "responses": {
                "2XX": {"description": "The message is delivered."},
                "410": {"description": "The webhook is disabled."},
                "429": {"description": "It is sent again, after `Retry-After` if there is one."},
                "5XX": {"description": "It is sent again later, as after any other status."},
            },
        }
        self.spec.options["webhooks"] = {"message": {"post": sent}}

    def _register_error_handlers(self) -> None:
        """Leave the host's error handlers alone: our blueprints have their own."""

    def _register_pagination_header(self) -> None:
        """Document no pagination header: lists have their pagination in the body."""

    def _register_responses(self) -> None:
        for status, description in ERROR_RESPONSES.items():
            self.spec.components.response(
                _component(status),
                {
                    "description": description,
                    "content": {PROBLEM: {"schema": schemas.Problem}},
                    "headers": ERROR_HEADERS.get(status, {}),
                },
                lazy=True,
            )


_MESSAGE_HEADERS = {
    "webhook-id": "The id of the message; the same whenever it is repeated.",
    "webhook-timestamp": "When it was sent, in seconds since 1970.",
    "webhook-signature": "`v1,` and the signature; several of them, separated by spaces, while the "
    "secret is being rotated.",
}

ERROR_RESPONSES = {
    400: "The body cannot be read, is not JSON, or has values that cannot be stored.",
    401: "The token is missing, malformed, expired or revoked.",
    403: "The caller has no access to the workspace, or too low a role.",
    404: "The job, or the workspace, does not exist.",
    409: "The request is valid, but the current state does not allow it.",
    412: "The job has changed since the version in `If-Match`.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The content type of the body is not accepted.",
    422: "The data is invalid; `errors` has the messages for each field.",
    429: "Too many requests; retry after `Retry-After` seconds.",
    431: "The request has too many header fields, or they are too large.",
    500: "Internal error; the log has the details under the `X-Request-Id`.",
    503: "The database is unavailable; retry later.",
}


def header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """The documentation of a response header."""
    return {name: {"schema": {"type": "string", **schema}, "description": description}}


def header_parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """The documentation of a request header."""
    schema = {"type": "string", **schema}
    return {"name": name, "in": "header", "schema": schema, "description": description}


def alternative(
    status: int, description: str, schema: Any, headers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The documentation of a response besides the usual one of a view."""
    content = {JSON: {"schema": schema}}
    return {str(status): {"description": description, "content": content, "headers": headers or {}}}


_RETRY_AFTER = header("Retry-After", "Seconds to wait before the next try.")
ERROR_HEADERS = {
    401: header("WWW-Authenticate", "`Bearer`, with an `error` for an invalid token (RFC 6750)."),
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


_ID = {"type": "integer", "minimum": 1, "maximum": MAX_ID}
PATH_PARAMETERS = [
    {"name": name, "in": "path", "description": description, "schema": schema, "example": example}
    for name, description, schema, example in (
        ("workspace_id", "The workspace.", _ID, 1),
        ("job_id", "The job's id.", {"type": "string"}, examples.JOB_ID),
        ("user_id", "The user.", _ID, 123),
        ("key_id", "The API key.", _ID, 1),
        ("operation_id", "The operation.", _ID, 1),
        ("schedule_id", "The schedule.", {"type": "string"}, examples.SCHEDULE["schedule_id"]),
        ("webhook_id", "The webhook.", {"type": "string"}, "wh_018d0e1c7a4b7c3d9e5f60718293a4b5"),
        (
            "delivery_id",
            "The delivery.",
            {"type": "string"},
            "msg_9f0sk2e7bq4l1d8mc5r6ao3htvgjui2p",
        ),
        ("job_type", "The job type.", {"type": "string"}, "data_processing"),
    )
]


def _component(status: int) -> str:
    return "Problem" + http.HTTPStatus(status).phrase.replace(" ", "").replace("-", "")


def document_parameters(doc: Any, info: Any, **kw: Any) -> Any:
    """Add to an operation the parameters that no schema loads.

    They cannot be part of the manual documentation, because flask-smorest merges that last and
    replaces lists: the parameters of the query's schema would be lost.
    """
    declared = [dict(parameter) for parameter in info["jobapi"]["parameters"]]
    if declared:
        doc.setdefault("parameters", []).extend(declared)
    return doc


def document_errors(doc: Any, info: Any, *, method: str, **kw: Any) -> Any:
    """Add to an operation its possible errors, and whether it needs a token."""
    ours = info.get("jobapi", {})
    statuses = {414, 431, 500, 503, *ours["errors"]}
    if ours.get("guarded"):
        statuses |= {401, 403}
        doc["security"] = [{"bearer": []}]
    else:
        doc["security"] = []
    if method != "get":
        statuses |= {400, 413}
    if "requestBody" in doc:
        statuses |= {415, 422}
    parameters = [p for p in doc.get("parameters", ()) if isinstance(p, dict)]
    if any(p.get("in") == "query" or p.get("name") == "Idempotency-Key" for p in parameters):
        statuses.add(422)
    for status in sorted(statuses):
        doc["responses"].setdefault(str(status), _component(status))
    return doc
