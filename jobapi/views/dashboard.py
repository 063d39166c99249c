"""The dashboard, ``/dashboard``: a page of static files that uses only the public API."""

from __future__ import annotations

import gzip
import mimetypes
import posixpath
import re
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path

from flask import Blueprint, Response, current_app, request
from markupsafe import escape
from werkzeug.exceptions import NotFound

from .base import BLUEPRINT_PREFIX, address, state
from .problems import add_error_handlers

FOLDER = Path(str(resources.files("jobapi"))) / "dashboard"
PAGE = "index.html"
START = "app.js"

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
    """The content of the static files by their paths, such as ``pages/jobs.js``."""
    found = (file for file in FOLDER.rglob("*") if file.is_file())
    return {file.relative_to(FOLDER).as_posix(): file.read_bytes() for file in found}


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress(files()[name], mtime=0)


@cache
def version() -> str:
    """A hash of all files. It is part of their URLs, so that browsers may cache them forever."""
    return sha256(repr(sorted(files().items())).encode()).hexdigest()[:12]


@cache
def _pages() -> list[tuple[re.Pattern[str], str]]:
    """The pages that ``app.js`` has: patterns of their addresses, and their modules."""
    found = re.findall(r"\[/(\^.+?)/, \(\) => import\(\"\./(pages/\w+\.js)\"\)\]", _text(START))
    return [(re.compile(pattern.replace("\\/", "/")), module) for pattern, module in found]


def modules(view: str = "") -> list[str]:
    """The modules that an address needs: what ``app.js`` and its page import, and so on."""
    page = [module for pattern, module in _pages() if pattern.match(f"/{view}")][:1]
    return [name for name in _imported((START, *page)) if name != START]


@cache
def _imported(names: tuple[str, ...]) -> list[str]:
    """These modules, and those that they import."""
    found: list[str] = []
    new = list(names)
    while new:
        found += new
        named = [
            posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            for name in new
            for target in re.findall(r'from "([./\w]+\.js)"', _text(name))
        ]
        new = [name for name in dict.fromkeys(named) if name not in found]
    return found


def _text(name: str) -> str:
    return files()[name].decode()


@blp.get("/dashboard", strict_slashes=False)
@blp.get("/dashboard/<path:view>")
def get_dashboard(view: str = "") -> Response:
    """The page. Its script chooses the view from the address, which only changes the preloads."""
    if view.startswith("files/"):
        raise NotFound
    folder = escape(address(".get_dashboard_file", file=f"{version()}/"))
    # The browser requests them at once, instead of one after another as it reads the imports.
    preload = "".join(
        f'<link rel="modulepreload" href="{folder}{name}">\n' for name in modules(view)
    )
    page = (
        files()[PAGE]
        .decode()
        .format(
            home=escape(address(".get_dashboard")),
            files=folder,
            modules=preload,
            docs=escape(address("jobapi-docs.get_docs")),
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
    zipped = request.accept_encodings["gzip"] > 0
    response = current_app.response_class(
        _compressed(name) if zipped else files()[name], mimetype=mimetypes.guess_type(name)[0]
    )
    if zipped:
        response.content_encoding = "gzip"
    response.vary.add("Accept-Encoding")
    response.add_etag()
    response.make_conditional(request)
    # During a rolling update another node may have sent the page, with another version.
    current = requested == version()
    response.headers["Cache-Control"] = _IMMUTABLE if current else "no-cache"
    return response
