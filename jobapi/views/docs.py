"""The OpenAPI document, ``/openapi.json``, and Swagger UI, ``/docs``."""

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
Background jobs over HTTP. Clients create jobs in a workspace, then list, filter, edit, cancel and
retry them. Workers claim jobs, run them and report their progress and results.

**Authentication.** Log in with `POST /auth/login` and send the access token, or an API key, with
each request: `Authorization: Bearer TOKEN`.

**Errors.** Every error is a problem details object (RFC 9457). Its `type` is stable; its `detail`
says what is wrong and what to do.

**Request ids.** Each response carries `X-Request-Id`, which is also in the service's log. A request
may choose its own by sending that header.

**Compatibility.** Later versions may add fields to responses, and values to enumerations that are
documented as open.
"""

# Swagger UI needs inline styles. Scripts are allowed only from our own files.
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

# The page calls its own origin. The absolute URL in the document can be a different one
# if the X-Forwarded headers of a proxy are missing or not trusted.
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
    """The OpenAPI 3.1 document of the API."""
    spec: dict[str, Any] = state().spec.to_dict()
    # Absolute, because Postman and generators that read a file cannot resolve a relative URL.
    return json_response({**spec, "servers": [{"url": iri_to_uri(request.url_root).rstrip("/")}]})


@blp.get("/docs")
def get_docs() -> Response:
    """The page of Swagger UI."""
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
    """The script that starts Swagger UI. The page's policy allows no inline scripts."""
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
    """A static file of Swagger UI."""
    folder = resources.files("flask_swagger_ui") / "dist"
    return send_from_directory(str(folder), name, max_age=3600)
