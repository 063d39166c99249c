"""The API's description and the page to read and try it: ``/openapi.json``, ``/docs``."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from flask import Blueprint, Response, current_app, request, send_from_directory
from markupsafe import escape
from werkzeug.urls import iri_to_uri

from .base import BLUEPRINT_PREFIX, address, json_response, state
from .problems import add_error_handlers

DESCRIPTION = """\
Background jobs over HTTP: create jobs in a workspace; watch, filter, change, cancel and retry
them.

Log in with `POST /auth/login` and send the access token, or an API key, with each request:
`Authorization: Bearer TOKEN`. Each error is a problem details object (RFC 9457).

A request may name itself with `X-Request-Id`, which each response and the log carry. Later
versions may add fields to responses, and values to those that are documented as open.
"""

# Swagger UI writes styles into its elements; scripts are files of ours alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{files}favicon-32x32.png">
<link rel="stylesheet" href="{files}swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{files}swagger-ui-bundle.js"></script>
<script src="{start}"></script>
</body>
</html>
"""

# The page calls the host that it came from. The document's absolute URL can be
# another one where a proxy's X-Forwarded headers are missing or not trusted.
_START = """\
const options = {options};
options.responseInterceptor = (response) => {{
  if (response.url === new URL(options.url, location.href).href) {{
    response.text = JSON.stringify({{...JSON.parse(response.text), servers: [{{url: {server}}}]}});
  }}
  return response;
}};
window.ui = SwaggerUIBundle(options);
"""

blp = Blueprint(f"{BLUEPRINT_PREFIX}docs", __name__)
add_error_handlers(blp)


@blp.get("/openapi.json")
def get_openapi() -> Response:
    """The description of the API, OpenAPI 3.1."""
    spec: dict[str, Any] = state().spec.to_dict()
    # Absolute, because Postman and generators that read a file have nothing to
    # which a relative URL could be relative.
    return json_response({**spec, "servers": [{"url": iri_to_uri(request.url_root).rstrip("/")}]})


@blp.get("/docs")
def get_docs() -> Response:
    """Swagger UI."""
    page = _PAGE.format(
        title=escape(state().spec.title),
        files=escape(address(".get_docs_file", name="")),
        start=escape(address(".get_docs_start")),
    )
    return current_app.response_class(
        page,
        mimetype="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"},
    )


@blp.get("/docs/start.js")
def get_docs_start() -> Response:
    """What Swagger UI is to show, as a file: the page allows no scripts within it."""
    options = {
        "url": address(".get_openapi"),
        "dom_id": "#swagger-ui",
        "deepLinking": True,
        "persistAuthorization": True,
        "tryItOutEnabled": True,
        "displayRequestDuration": True,
        "validatorUrl": None,
    }
    script = _START.format(
        options=json.dumps(options), server=json.dumps(request.script_root or "/")
    )
    return current_app.response_class(script, mimetype="text/javascript")


@blp.get("/docs/files/<path:name>")
def get_docs_file(name: str) -> Response:
    """A file of Swagger UI's."""
    folder = resources.files("flask_swagger_ui") / "dist"
    return send_from_directory(str(folder), name, max_age=3600)
