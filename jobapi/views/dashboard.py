"""The dashboard, ``/dashboard``: a page of static files that uses only the public API."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib import resources

from flask import Blueprint, Response, current_app, request, send_from_directory
from markupsafe import escape
from werkzeug.exceptions import NotFound

from .base import BLUEPRINT_PREFIX, address, state
from .problems import add_error_handlers

FOLDER = resources.files("jobapi") / "dashboard"
PAGE = "index.html"

# Scripts and styles only from our own files: should the page ever insert a value of a
# job as markup, it would still not run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

_IMMUTABLE = "public, max-age=31536000, immutable"

blp = Blueprint(f"{BLUEPRINT_PREFIX}dashboard", __name__)
add_error_handlers(blp)


@cache
def files() -> dict[str, bytes]:
    """The content of the static files by name."""
    return {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()}


@cache
def version() -> str:
    """A hash of all files. It is part of their URLs, so that browsers may cache them forever."""
    return sha256(repr(sorted(files().items())).encode()).hexdigest()[:12]


@blp.get("/dashboard", strict_slashes=False)
@blp.get("/dashboard/<path:view>")
def get_dashboard(view: str = "") -> Response:
    """The page, the same for all addresses: its script chooses the view from the address."""
    if view.startswith("files/"):
        raise NotFound
    page = (
        files()[PAGE]
        .decode()
        .format(
            home=escape(address(".get_dashboard")),
            files=escape(address(".get_dashboard_file", file=f"{version()}/")),
            login="own" if state().current_user is None else "host",
        )
    )
    response = current_app.response_class(
        page,
        mimetype="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"},
    )
    response.add_etag()
    response.make_conditional(request)
    return response


@blp.get("/dashboard/files/<path:file>")
def get_dashboard_file(file: str) -> Response:
    """A static file; ``file`` begins with the version."""
    requested, _, name = file.partition("/")
    if name not in files() or name == PAGE:
        raise NotFound
    response = send_from_directory(str(FOLDER), name)
    # During a rolling update another node may have sent the page, with another version.
    current = requested == version()
    response.headers["Cache-Control"] = _IMMUTABLE if current else "no-cache"
    return response
