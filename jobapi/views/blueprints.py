"""The blueprint of every view: it loads bodies, renders answers, and documents both."""

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
    """A blueprint whose errors are problems, and whose operations are documented."""

    ARGUMENTS_PARSER = Parser()
    DEFAULT_LOCATION_CONTENT_TYPE_MAPPING = {
        **SmorestBlueprint.DEFAULT_LOCATION_CONTENT_TYPE_MAPPING,
        "optional_json": JSON,
        "patch_json": JSON,
        "reports_json": JSON,
        "logs_json": JSON,
    }

    def __init__(self, name: str, tag: str, description: str) -> None:
        super().__init__(f"{BLUEPRINT_PREFIX}{name}", __name__, description=description)
        self.tag = tag
        self._prepare_doc_cbks += [document_parameters, document_errors]
        add_error_handlers(self)

    def arguments(self, schema: Any, **kw: Any) -> Callable[[View], View]:
        """Load the body, or the query, by a schema; the view gets it after the caller."""
        # One schema for all requests: making one costs more than loading with it.
        return cast(Callable[[View], View], super().arguments(schema(), **kw))

    def response(self, status: int, schema: Any = None, **kw: Any) -> Callable[[View], View]:
        """Render the value that the view returns by a schema.

        A view returns a value, a tuple of a value and headers, or a whole response, which is
        left as it is.
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
                # Rows are tuples too, but of other types.
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

        ``errors`` are the statuses of its own errors. ``parameters`` are those that no schema
        loads: headers, and query parameters whose names the caller chooses.
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
