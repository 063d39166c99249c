"""The dashboard's page and files; what it does in a browser is in ``browser/test_dashboard.py``."""

from __future__ import annotations

import gzip
import posixpath
import re
from typing import Any

import pytest
from flask import Flask

from jobapi.views.dashboard import FOLDER, PAGE, START, files, modules, version

from ..factories import World
from ..host import PREFIX, who

FILES = sorted(files())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
GZIP = {"Accept-Encoding": "br, gzip"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


def source(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def without_preloads(page: str) -> str:
    return re.sub(r"<link rel=\"modulepreload\"[^>]*>\n", "", page)


@pytest.mark.parametrize("path", ["", "/", "/1", "/1/jobs", "/1/jobs/job_x", "/nowhere/%00"])
def test_page_is_the_same_at_each_of_its_addresses(world: World, path: str) -> None:
    page = world.call("GET", f"/dashboard{path}")
    assert page.status_code == 200
    assert page.mimetype == "text/html"
    assert without_preloads(page.text) == without_preloads(world.call("GET", "/dashboard").text)
    policy = dict(
        rule.split(" ", 1) for rule in page.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == POLICY
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_page_is_revalidated_and_its_files_are_cached(world: World) -> None:
    page = world.call("GET", "/dashboard")
    assert page.headers["Cache-Control"] == "no-cache"
    headers = {"If-None-Match": page.headers["ETag"]}
    assert world.call("GET", "/dashboard", headers=headers).status_code == 304
    named = set(re.findall(r'(?:href|src)="(/[^"]+)"', page.text))
    assert f"/dashboard/files/{version()}/app.js" in named
    for path in named:
        file = world.call("GET", path)
        assert file.status_code == 200
        assert file.headers["Cache-Control"] == "public, max-age=31536000, immutable"


def test_files_of_another_version_are_not_kept(world: World) -> None:
    file = world.call("GET", "/dashboard/files/000000000000/app.js")
    assert file.status_code == 200
    assert file.headers["Cache-Control"] == "no-cache"
    headers = {"If-None-Match": file.headers["ETag"]}
    assert world.call("GET", "/dashboard/files/0/app.js", headers=headers).status_code == 304


@pytest.mark.parametrize("name", FILES)
def test_files_have_their_types(world: World, name: str) -> None:
    file = world.call("GET", f"/dashboard/files/{version()}/{name}")
    if name == "index.html":
        assert file.status_code == 404  # a template, which only the page fills in
        return
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert file.mimetype == types[name.rpartition(".")[2]]
    assert file.data == (FOLDER / name).read_bytes()
    packed = world.call("GET", f"/dashboard/files/{version()}/{name}", headers=GZIP)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == file.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.data) == file.data
    # A cache must not give one of them to who wants the other.
    assert packed.headers["ETag"] != file.headers["ETag"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "app.js",
        "v/",
        "v/nowhere.js",
        "v/../views/dashboard.py",
        "v/%2e%2e/config.py",
        "v/..%2fconfig.py",
        "v//etc/passwd",
        "v/%2fetc%2fpasswd",
        "v/..\\config.py",
        "v/app.js/",
        "v/x/app.js",
        "../../config.py",
        "v/%00",
        "v/app.js%00.css",
        "v/" + "x" * 5000,
    ],
)
def test_names_that_are_no_files_of_its_are_not_found(world: World, name: str) -> None:
    response = world.call("GET", f"/dashboard/files/{name}")
    assert response.status_code == 404, response.text[:200]
    assert response.mimetype == "application/problem+json"


def test_page_takes_only_get(world: World) -> None:
    response = world.call("POST", "/dashboard")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_dashboard_switched_off_is_not_there(make_app: Any, new_database: Any) -> None:
    app: Flask = make_app(new_database("sqlite"), JOBAPI_DASHBOARD_ENABLED=False)
    client = app.test_client()
    for path in ("/dashboard", "/dashboard/1", f"/dashboard/files/{version()}/app.js"):
        assert client.get(path).status_code == 404
    assert client.get("/docs").status_code == 200


def test_page_finds_the_api_behind_a_proxy_and_below_a_prefix(
    make_app: Any, new_database: Any, embed: Any
) -> None:
    app: Flask = make_app(new_database("sqlite"), JOBAPI_TRUSTED_PROXIES=1)
    page = app.test_client().get("/dashboard/1", headers={"X-Forwarded-Prefix": "/api"}).text
    assert 'data-home="/api/dashboard" data-login="own"' in page
    assert f'src="/api/dashboard/files/{version()}/app.js"' in page
    world = embed().world
    page = world.call("GET", f"{PREFIX}/dashboard").text
    assert f'data-home="{PREFIX}/dashboard" data-login="own"' in page
    assert f'src="{PREFIX}/dashboard/files/{version()}/app.js"' in page
    assert world.call("GET", "/dashboard").mimetype == "text/html"
    assert world.call("GET", "/dashboard").status_code == 404  # the host's own page


def test_page_knows_of_the_hosts_log_in(embed: Any) -> None:
    assert (
        'data-login="host"' in embed(current_user=who).world.call("GET", f"{PREFIX}/dashboard").text
    )


def test_prefix_that_is_markup_stays_text(make_app: Any, new_database: Any) -> None:
    app: Flask = make_app(new_database("sqlite"), JOBAPI_TRUSTED_PROXIES=1)
    page = app.test_client().get("/dashboard", headers={"X-Forwarded-Prefix": '/"><script>'}).text
    assert "<script>" not in page


# The files themselves


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_insert_no_markup_and_call_no_other_host(name: str) -> None:
    text = source(name)
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
        r"|createContextualFragment|DOMParser|javascript:|\bstyle=|setAttribute\(\"style"
    )
    assert not re.search(forbidden, text)
    # Tokens are in no storage that outlives the browser's tabs.
    assert ("localStorage" in text) == (name == "theme.js")
    assert set(re.findall(r"https?://[^\"'` ]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_scripts_import_existing_files() -> None:
    for name in SCRIPTS:
        for target in re.findall(r"""(?:from |import\()"([^",]+)\"""", source(name)):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            assert path in SCRIPTS, f"{name}: {target}"


def test_page_names_in_advance_the_modules_that_its_address_needs() -> None:
    pages = [
        f"pages/{name}" for name in re.findall(r'import\("\./pages/(\w+\.js)"\)', source(START))
    ]
    assert {name for name in FILES if name.startswith("pages/")} == set(pages)
    for view, page in (
        ("", "pages/workspaces.js"),
        ("1", "pages/overview.js"),
        ("1/jobs", "pages/jobs.js"),
        ("1/jobs/new", "pages/job_form.js"),
        ("1/jobs/job_1", "pages/job.js"),
        ("users", "pages/users.js"),
    ):
        named = modules(view)
        assert {"api.js", "render.js", "state.js", "format.js", page} <= set(named)
        assert [name for name in named if name.startswith("pages/")] == [page]
        assert len(named) == len(set(named))
    assert {"charts.js"} <= set(modules("1")) - set(modules("1/jobs"))
    assert not any(name.startswith("pages/") for name in modules("nowhere/at/all"))


def test_page_has_nothing_inline() -> None:
    page = source("index.html")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)


def test_files_are_light() -> None:
    sizes = {name: len(gzip.compress(source(name).encode())) for name in FILES}
    first = [PAGE, "style.css", "icon.svg", "theme.js", "app.js", *modules("1/jobs")]
    assert sum(sizes[name] for name in first) < 50_000
    assert sum(sizes.values()) < 150_000
