"""The OpenAPI document, ``/openapi.json``, and Swagger UI, ``/docs``."""

from __future__ import annotations

from importlib import resources
from typing import Any

from flask import Blueprint, Response, current_app, request, send_from_directory
from markupsafe import escape
from werkzeug.exceptions import NotFound
from werkzeug.urls import iri_to_uri

from .base import BLUEPRINT_PREFIX, address, json_response, state
from .dashboard import FOLDER
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
<script src="{own}theme.js"></script>
<link rel="icon" href="{files}favicon-32x32.png">
<link rel="stylesheet" href="{files}swagger-ui.css">
<link rel="stylesheet" href="{own}swagger.css">
</head>
<body>
{header}<div id="swagger-ui" data-openapi="{openapi}" data-server="{server}"></div>
<script src="{files}swagger-ui-bundle.js"></script>
<script src="{own}swagger.js"></script>
</body>
</html>
"""

_HEADER = """\
<header><nav aria-label="Pages"><a href="{dashboard}">Dashboard</a></nav></header>
"""

_OWN = frozenset({"swagger.css", "swagger.js", "theme.js"})
"""The files of the dashboard that the page uses; they are there without the dashboard, too."""

blp = Blueprint(f"{BLUEPRINT_PREFIX}docs", __name__)
add_error_handlers(blp)


@blp.get("/openapi.json")
def get_openapi() -> Response:
    """The OpenAPI 3.1 document of the API."""
    spec: dict[str, Any] = state().document().to_dict()
    # Absolute, because Postman and generators that read a file cannot resolve a relative URL.
    return json_response({**spec, "servers": [{"url": iri_to_uri(request.url_root).rstrip("/")}]})


@blp.get("/docs")
def get_docs() -> Response:
    """The page of Swagger UI."""
    header = ""
    if state().settings.dashboard_enabled:
        header = _HEADER.format(dashboard=escape(address("jobapi-dashboard.get_dashboard")))
    page = _PAGE.format(
        title=escape(state().document().title),
        header=header,
        files=escape(address(".get_docs_file", name="")),
        own=escape(address(".get_docs_own_file", name="")),
        openapi=escape(address(".get_openapi")),
        server=escape(request.script_root or "/"),
    )
    return current_app.response_class(
        page,
        mimetype="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"},
    )


@blp.get("/docs/own/<name>")
def get_docs_own_file(name: str) -> Response:
    """A script or a style of the page that is not Swagger UI's."""
    if name not in _OWN:
        raise NotFound
    return send_from_directory(FOLDER, name, max_age=3600)


@blp.get("/docs/files/<path:name>")
def get_docs_file(name: str) -> Response:
    """A static file of Swagger UI."""
    folder = resources.files("flask_swagger_ui") / "dist"
    return send_from_directory(str(folder), name, max_age=3600)
