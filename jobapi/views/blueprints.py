"""The blueprint of every view: loads bodies and renders answers by schemas, and documents them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, cast

from flask import Response
from flask_smorest import Blueprint as SmorestBlueprint

from .base import BLUEPRINT_PREFIX, JSON, View, json_response
from .bodies import Parser
from .openapi import PATH_PARAMETERS, document_errors, document_parameters
from .problems import add_error_handlers


class Blueprint(SmorestBlueprint):
    """A blueprint whose errors are problems and whose operations document them."""

    ARGUMENTS_PARSER = Parser()
    DEFAULT_LOCATION_CONTENT_TYPE_MAPPING = {
        **SmorestBlueprint.DEFAULT_LOCATION_CONTENT_TYPE_MAPPING,
        "optional_json": JSON,
        "patch_json": JSON,
        "reports_json": JSON,
    }

    def __init__(self, name: str, tag: str, description: str) -> None:
        super().__init__(f"{BLUEPRINT_PREFIX}{name}", __name__, description=description)
        self.tag = tag
        self._prepare_doc_cbks += [document_parameters, document_errors]
        add_error_handlers(self)

    def arguments(self, schema: Any, **kw: Any) -> Callable[[View], View]:
        """Load what the request carries by a schema; the view gets it after the caller."""
        # One schema for all requests: making one anew costs more than loading.
        return cast(Callable[[View], View], super().arguments(schema(), **kw))

    def response(self, status: int, schema: Any = None, **kw: Any) -> Callable[[View], View]:
        """Render what the view returns by a schema: a value, or a tuple of it and headers.

        A whole response is left as it is.
        """
        document: Callable[[View], View] = super().response(status, schema, **kw)
        if schema is None:
            return document

        def decorator(view: View) -> View:
            @wraps(view)
            def rendering(*caller: Any, **url: Any) -> Response:
                answer = view(*caller, **url)
                if isinstance(answer, Response):
                    return answer
                # Rows are tuples, too, of a type of their own.
                value, headers = answer if type(answer) is tuple else (answer, None)
                return json_response(schema.render(value), status, headers)

            return document(rendering)

        return decorator

    def operation(
        self,
        rule: str,
        method: str = "GET",
        *,
        errors: tuple[int, ...] = (),
        parameters: Sequence[Mapping[str, Any]] = (),
        **doc: Any,
    ) -> Callable[[View], View]:
        """Route a view and document it.

        ``errors`` are the statuses of its own errors, ``parameters`` are those that
        no schema loads: headers, and query parameters with names of the caller's.
        """

        def decorator(view: View) -> View:
            apidoc: dict[str, Any] = view.__dict__.setdefault("_apidoc", {})
            apidoc["jobapi"] = {
                **apidoc.get("jobapi", {}),
                "errors": errors,
                "parameters": parameters,
            }
            apidoc["manual_doc"] = {
                "operationId": view.__name__,
                "description": inspect.getdoc(view) or "",
                **doc,
            }
            self.add_url_rule(
                rule,
                view.__name__,
                view,
                methods=[method],
                tags=[self.tag],
                parameters=[p for p in PATH_PARAMETERS if f"{p['name']}>" in rule],
            )
            return view

        return decorator
