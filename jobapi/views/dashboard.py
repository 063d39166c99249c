"""The dashboard: one page of plain files, which uses the API and nothing else; ``/dashboard``."""

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

# Scripts and styles are files of ours alone: what stands in a job stays text
# even where the page should fail to treat it so.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

_FOR_EVER = "public, max-age=31536000, immutable"

blp = Blueprint(f"{BLUEPRINT_PREFIX}dashboard", __name__)
add_error_handlers(blp)


@cache
def files() -> dict[str, bytes]:
    """What the page is made of, by name."""
    return {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()}


@cache
def version() -> str:
    """Names what the files hold, so that a browser may keep them for as long as it likes."""
    return sha256(repr(sorted(files().items())).encode()).hexdigest()[:12]


@blp.get("/dashboard", strict_slashes=False)
@blp.get("/dashboard/<path:view>")
def get_dashboard(view: str = "") -> Response:
    """The one page; which view of it, its script sees from the address."""
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
    """A file of the page's, under the version of them all."""
    wanted, _, name = file.partition("/")
    if name not in files() or name == PAGE:
        raise NotFound
    response = send_from_directory(str(FOLDER), name)
    # Under another version while nodes are updated one after the other.
    keep = wanted == version()
    response.headers["Cache-Control"] = _FOR_EVER if keep else "no-cache"
    return response
