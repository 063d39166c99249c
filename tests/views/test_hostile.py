"""Hostile input: both databases refuse it in the same way, and all that is stored can be read."""

from __future__ import annotations

import hmac
import io
import json
import logging
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobapi import jobs
from jobapi.errors import ValidationFailed
from jobapi.rules.documents import MAX_DOCUMENT_BYTES

from ..conftest import SECRET
from ..factories import Desk

JSON = {"Content-Type": "application/json"}


def send(desk: Desk, metadata: str | bytes) -> Any:
    """A create whose ``metadata`` is written out."""
    text = metadata.encode() if isinstance(metadata, str) else metadata
    head = f'{{"job_type": "x", "workspace_id": {desk.workspace_id}, "metadata": '.encode()
    return desk.post(data=head + text + b"}", headers=JSON)


REFUSED = {
    "NaN": '{"v": NaN}',
    "Infinity": '{"v": Infinity}',
    "minus Infinity": '{"v": -Infinity}',
    "number too large": '{"v": 1e999}',
    "integer over 64 bits": '{"v": 9223372036854775808}',
    "integer under 64 bits": '{"v": -9223372036854775809}',
    "integer of 5,000 digits": '{"v": %s}' % ("9" * 5000),
    "NUL": '{"v": "a\\u0000b"}',
    "NUL in a key": '{"a\\u0000": 1}',
    "NUL deep inside": '{"a": [{"b": ["\\u0000"]}]}',
    "NUL itself": '{"v": "a\x00b"}',
    "control character": '{"v": "a\x01b"}',
    "lone high surrogate": '{"v": "\\ud800"}',
    "lone low surrogate": '{"v": "\\udc00"}',
    "surrogates in the wrong order": '{"v": "\\udc00\\ud800"}',
    "lone surrogate in a key": '{"\\udfff": 1}',
    "too deep list": '{"v": ' + "[" * 65 + "]" * 65 + "}",
    "too deep object": '{"a":' * 70 + "1" + "}" * 70,
    "3,000 levels": '{"v": ' + "[" * 3000 + "]" * 3000 + "}",
    "200,000 levels": '{"v": ' + "[" * 200_000,
    "not UTF-8": b'{"v": "\xff"}',
    "UTF-8 of a surrogate": b'{"v": "\xed\xa0\x80"}',
    "UTF-16": '{"v": 1}'.encode("utf-16"),
    "single quotes": "{'v': 1}",
    "comma at the end": '{"v": 1,}',
    "comment": '{"v": 1 /* x */}',
    "unfinished": '{"v": 1',
    "more than one value": "{} {}",
    "leading zero": '{"v": 01}',
    "hexadecimal": '{"v": 0x10}',
}


@pytest.mark.parametrize("name", REFUSED)
def test_body_that_cannot_be_kept_is_400(desk: Desk, name: str) -> None:
    response = send(desk, REFUSED[name])
    assert response.status_code == 400, response.text
    assert response.json["type"].endswith(":malformed-json")
    assert "Traceback" not in response.text
    assert desk.get().json["pagination"]["total"] == 0


@pytest.mark.parametrize("body", [b"", b"\xef\xbb\xbf{}", b"\x00", b"{", b"[" * 100_000])
@pytest.mark.parametrize("call", ["POST /jobs", "PATCH /jobs/x", "POST /login", "POST /cancel"])
def test_odd_bodies_are_400_everywhere(desk: Desk, call: str, body: bytes) -> None:
    job_id = desk.create()["job_id"]
    method, path = {
        "POST /jobs": ("POST", desk.jobs_path),
        "PATCH /jobs/x": ("PATCH", f"{desk.jobs_path}/{job_id}"),
        "POST /login": ("POST", "/auth/login"),
        "POST /cancel": ("POST", f"{desk.jobs_path}/{job_id}/cancel"),
    }[call]
    response = desk.call(method, path, data=body, headers=JSON)
    assert response.status_code == (200 if call == "POST /cancel" and not body else 400)


KEPT = {
    "emoji as escapes": '{"v": "\\ud83d\\ude00"}',
    "largest integers": '{"a": 9223372036854775807, "b": -9223372036854775807}',
    "largest and smallest numbers": '{"a": 1.7976931348623157e308, "b": 5e-324, "c": -0.0}',
    "as deep as allowed": '{"v": ' + "[" * 60 + "]" * 60 + "}",
    "odd keys": '{"": 1, "__proto__": 2, "a.b": 3, " ": 4, "\\u202e": 5}',
    "all escapes": '{"v": "\\" \\\\ \\/ \\b \\f \\n \\r \\t \\u00e9"}',
    "like SQL": '{"v": "\'; DROP TABLE jobapi_jobs; --", "w": "%s %(a)s :b ? $1"}',
    "many brackets": '{"v": [' + ",".join(["{}"] * 200) + "]}",
    "a name twice": '{"v": 1, "v": 2}',
}


@pytest.mark.parametrize("name", KEPT)
def test_body_that_is_odd_but_json_is_kept_exactly(desk: Desk, name: str) -> None:
    response = send(desk, KEPT[name])
    assert response.status_code == 201, response.text
    sent = json.loads(KEPT[name])
    assert response.json["metadata"] == sent
    assert desk.get(f"/{response.json['job_id']}").json["metadata"] == sent


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=9)
documents = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda below: st.lists(below, max_size=4) | st.dictionaries(names, below, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(document=documents)
def test_any_document_reads_back_as_it_was_sent(desk: Desk, document: dict[str, Any]) -> None:
    job = desk.create(metadata=document)
    assert job["metadata"] == document
    assert desk.get(f"/{job['job_id']}").json["metadata"] == document
    without_nulls = {k: v for k, v in document.items() if v is not None}
    desk.patch(job["job_id"], {"status": "running", "result": {"document": [document]}})
    shown = desk.get(f"/{job['job_id']}").json["result"]
    assert shown["document"] == [document]
    merged = desk.patch(desk.create()["job_id"], {"metadata": document}).json["metadata"]
    assert set(merged) == set(without_nulls)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    body=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))
)
def test_request_with_any_bytes_is_never_500(desk: Desk, body: bytes) -> None:
    response = desk.post(data=body, headers=JSON)
    assert response.status_code in (400, 422)


PATHS = [
    "/workspace/%00/jobs",
    "/workspace/1%00/jobs",
    "/workspace/-1/jobs",
    "/workspace/1.0/jobs",
    "/workspace/01/jobs",
    "/workspace/%D9%A1/jobs",
    "/workspace/99999999999999999999999/jobs",
    "/workspace/1%2F2/jobs",
    "/workspace/..%2F1/jobs",
    "/workspace/1/jobs/%FF",
    "/workspace/1/jobs/" + "x" * 5000,
    "/workspace/1/jobs/job_%27%20OR%201=1--",
    "/workspace/1/jobs/%ED%A0%80",
    "/workspace/1/members/%00",
    "/%00",
    "/%FF%FE",
]


@pytest.mark.parametrize("path", PATHS)
def test_odd_path_is_404(desk: Desk, path: str) -> None:
    response = desk.call("GET", path)
    assert response.status_code == 404
    assert response.mimetype == "application/problem+json"


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "bearer  ",
        "Basic dXNlcjpwYXNz",
        "Bearer a b c",
        "Bearer \xff\xfe",
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
        "Bearer " + "a" * 60_000,
        "Bearer jk_",
        "Bearer jk_" + "ü" * 40,
        "Bearer ..",
    ],
)
def test_odd_authorization_is_401(desk: Desk, value: str) -> None:
    headers = {"Authorization": value}
    for method, path in (("GET", desk.jobs_path), ("POST", "/auth/refresh"), ("GET", "/auth/me")):
        response = desk.world.call(method, path, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


CLAIMS = {
    "sub": [None, "9" * 30, "0", "-1", "1.0", " 1", "\u0661", "1\n", "", 1, True, ["1"], {}],
    "sid": [None, "a\x00b", "\ud800", "x" * 32, "", 5, ["a"], {"a": 1}],
    "rid": [None, "a\x00b", "", 7, ["a"]],
    "exp": [None, "abc", "99999999999", 1e300, float("inf"), float("nan"), [1], {}, True, -1],
    "iat": ["abc", "99999999999", 1e300, float("inf"), [1], {}, 10**30],
    "type": [None, "king", ["access"], {}, 5],
    "jti": [["a"], {}, 5, 10**4000],
    "nbf": ["abc", [1], 10**30],
    "aud": [5, ["a"], "x"],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_invalid_claim_of_a_signed_token_is_401(desk: Desk, name: str) -> None:
    tokens = desk.world.tokens(desk.user)
    calls = [("GET", "/auth/me", "access_token"), ("POST", "/auth/refresh", "refresh_token")]
    for method, path, kind in calls:
        claims = jwt.decode(tokens[kind], options={"verify_signature": False})
        changed: list[Any] = [{**claims, name: value} for value in CLAIMS[name]]
        changed += [{k: v for k, v in claims.items() if k != name}, [claims], "x", 5, None]
        for each in changed:
            if each == claims or (kind == "access_token" and name == "rid"):
                continue
            response = desk.world.call(method, path, signed(each))
            assert response.status_code == 401, (each, response.text)


def signed(claims: Any) -> str:
    """A token with the right signature, whatever it says."""
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    text = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{text}.{encoded(hmac.digest(SECRET.encode(), text.encode(), 'sha256'))}"


def encoded(part: bytes) -> str:
    return urlsafe_b64encode(part).decode().rstrip("=")


@pytest.mark.parametrize(
    "head", ["[" * 6000, '{"a":' * 1000, '{"alg": %s}' % ("9" * 5000), "5", "null", "[]", "\xff"]
)
def test_head_of_a_token_that_cannot_be_read_is_401(desk: Desk, head: str) -> None:
    token = f"{encoded(head.encode('latin-1'))}.{encoded(b'{}')}.{encoded(b'x')}"
    assert desk.world.call("GET", "/auth/me", token).status_code == 401


@pytest.mark.parametrize("value", ["", '"', "W/", '"a" "b"', "\xff", "," * 1000, '"' * 999])
def test_odd_conditions_are_no_fault(desk: Desk, value: str) -> None:
    job_id = desk.create()["job_id"]
    assert desk.get(f"/{job_id}", headers={"If-None-Match": value}).status_code == 200
    response = desk.patch(job_id, {"priority": "low"}, headers={"If-Match": value})
    assert response.status_code == 412


def test_token_that_was_tampered_with_is_401(desk: Desk) -> None:
    head, body, signature = desk.token.split(".")
    other = Desk(desk.world).token.split(".")
    for token in (
        f"{head}.{other[1]}.{signature}",
        f"{head}.{body}.{signature[:-2]}AA",
        f"{head}.{body}.",
        f"{head}.{body}",
    ):
        assert desk.world.call("GET", "/auth/me", token).status_code == 401


# Bodies


class Chunks:
    """What a server hands over of a body whose length it does not know."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self.rest = io.BytesIO(data)
        self.error = error
        self.read_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self.rest.read(size)
        if not data and self.error is not None:
            raise self.error
        self.read_bytes += len(data)
        return data


def chunked(desk: Desk, method: str, path: str, chunks: Chunks, **kw: Any) -> Any:
    """A request with a chunked body, as a server that knows such passes it on."""
    environ = {
        "wsgi.input": chunks,
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
        "CONTENT_TYPE": "application/json",
    }
    return desk.call(method, path, environ_overrides=environ, **kw)


def create_body(desk: Desk) -> bytes:
    return json.dumps({"job_type": "x", "workspace_id": desk.workspace_id}).encode()


LIMIT = 1024 * 1024


def test_chunked_body_up_to_the_limit_is_taken(desk: Desk) -> None:
    body = create_body(desk)
    for size in (len(body), LIMIT - 1, LIMIT):
        assert chunked(desk, "POST", desk.jobs_path, Chunks(body.ljust(size))).status_code == 201


@pytest.mark.parametrize("path", ["/auth/login", "", "/batch", "/claim", "/report", "job/cancel"])
def test_chunked_body_over_the_limit_is_413_and_not_cut(desk: Desk, path: str) -> None:
    url = path if path.startswith("/auth") else desk.jobs_path + path
    if path == "job/cancel":
        url = f"{desk.jobs_path}/{desk.create()['job_id']}/cancel"
    before = desk.get().json["pagination"]["total"]
    good = create_body(desk).ljust(LIMIT)
    for body in (good + b" ", good + b"}}} not JSON", b"{" * (LIMIT + 1), b'"' + b"x" * 3 * LIMIT):
        chunks = Chunks(body)
        response = chunked(desk, "POST", url, chunks)
        assert response.status_code == 413
        assert response.json["type"].endswith(":body-too-large")
        # No more than needed to see that it is too large.
        assert chunks.read_bytes == LIMIT + 1
    assert desk.get().json["pagination"]["total"] == before


@pytest.mark.parametrize("length", [LIMIT + 1, 10**12, 10**30])
def test_body_that_is_announced_too_large_is_413_and_not_read(desk: Desk, length: int) -> None:
    for method, path in (
        ("POST", desk.jobs_path),
        ("POST", "/auth/login"),
        # Bodies that are of no use have the same limit.
        ("GET", desk.jobs_path),
        ("POST", "/auth/refresh"),
        ("POST", "/auth/logout"),
        ("GET", "/health/live"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/dashboard"),
        ("GET", "/metrics"),
    ):
        chunks = Chunks(b"x")
        environ = {"wsgi.input": chunks, "CONTENT_LENGTH": str(length)}
        response = desk.call(method, path, environ_overrides=environ)
        assert response.status_code == 413
        assert chunks.read_bytes == 0


class InvalidChunkSize(Exception):
    """A server's own exception."""


@pytest.mark.parametrize(
    "error", [InvalidChunkSize("-2"), OSError("reset"), ValueError("closed"), TimeoutError()]
)
@pytest.mark.parametrize("path", ["/auth/login", "/auth/refresh", "/auth/logout", ""])
def test_body_that_the_server_cannot_read_is_400_and_no_fault(
    desk: Desk, path: str, error: Exception, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    response = chunked(desk, "POST", path or desk.jobs_path, Chunks(b"{", error))
    assert response.status_code == 400
    assert response.json["type"].endswith(":bad-request")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_body_that_breaks_off_is_400_though_it_is_json_so_far(desk: Desk) -> None:
    body = create_body(desk)
    environ = {
        "wsgi.input": Chunks(body),
        "wsgi.input_terminated": True,
        "CONTENT_LENGTH": str(len(body) + 1),
        "CONTENT_TYPE": "application/json",
    }
    response = desk.call("POST", desk.jobs_path, environ_overrides=environ)
    assert response.status_code == 400
    assert "incomplete" in response.json["detail"]


@pytest.mark.parametrize("error", [InvalidChunkSize("-2"), OSError("reset")])
@pytest.mark.parametrize("rest", [b"", b'{"status": "success"}'])
def test_report_that_breaks_off_is_400_and_the_rest_is_ignored(
    desk: Desk, error: Exception, rest: bytes
) -> None:
    desk.create()
    (job,) = desk.claim()

    class Body:
        failed = False

        def read(self, size: int = -1) -> bytes:
            if not self.failed:
                self.failed = True
                raise error
            return left.read(size)

    left = io.BytesIO(rest)
    body: Any = Body()
    path = f"{desk.jobs_path}/{job['job_id']}"
    mine = {"Lease-Token": job["lease_token"]}
    response = chunked(desk, "PATCH", path, body, headers=mine)
    assert response.status_code == 400
    assert "could not be read" in response.json["detail"]
    assert desk.report(job)["status"] == "running"


def test_chunked_body_that_the_server_does_not_pass_on_is_400(desk: Desk) -> None:
    environ = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_TYPE": "application/json"}
    job_id = desk.create()["job_id"]
    response = desk.post(f"/{job_id}/cancel", environ_overrides=environ)
    assert response.status_code == 400
    assert "Content-Length" in response.json["detail"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "x"])
def test_body_with_a_content_encoding_is_415(desk: Desk, coding: str) -> None:
    headers = {"Content-Encoding": coding}
    for path in (desk.jobs_path, "/auth/login", f"{desk.jobs_path}/claim"):
        response = desk.call("POST", path, json={}, headers=headers)
        assert response.status_code == 415
        assert response.json["type"].endswith(":unsupported-media-type")
        assert response.headers["Accept-Encoding"] == "identity"
    assert desk.post("/claim", headers=headers).status_code == 200
    assert desk.post("/claim", json={}, headers={"Content-Encoding": "Identity"}).status_code == 200


# Bounds before work


MAX_ANSWER = 64 * 1024


def refused(response: Any) -> Any:
    """Hold a refusal to its bounds."""
    assert response.status_code == 422, response.status_code
    assert len(response.data) < MAX_ANSWER
    assert sum(map(len, response.json["errors"].values())) <= 20
    return response.json


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/batch", {"jobs": [1] * 300_000}, "jobs: Length must be between 1 and 1000."),
        ("/batch", {"jobs": [{}] * 300_000}, "jobs: Length must be between 1 and 1000."),
        ("/claim", {"job_types": [1] * 300_000}, "job_types: Length must be between 1 and"),
        ("/report", {"reports": [{}] * 300_000}, "reports: Length must be between 1 and 100."),
        (
            "/../operations",
            {"action": "cancel", "filter": {"status": [1] * 300_000}},
            "filter.status: Length must be between 1 and",
        ),
    ],
)
def test_list_that_is_too_long_is_a_small_refusal(
    desk: Desk, path: str, body: Any, says: str
) -> None:
    url = f"/workspace/{desk.workspace_id}/operations" if "operations" in path else None
    data = json.dumps(body, separators=(",", ":"))
    response = desk.call("POST", url or desk.jobs_path + path, data=data, headers=JSON)
    assert refused(response)["detail"].startswith(says)


def test_wrong_items_are_shown_up_to_twenty_and_the_rest_is_counted(desk: Desk) -> None:
    item = {"job_type": "x"}
    body = refused(desk.post("/batch", json={"jobs": [item, *[{}] * 500, item]}))
    assert list(body["errors"]) == [f"jobs.{n}.job_type" for n in range(1, 21)]
    assert body["detail"].endswith("; … and 480 more")
    assert desk.get().json["pagination"]["total"] == 0


def test_few_unknown_fields_are_named(desk: Desk) -> None:
    body = refused(desk.post(json={"job_type": "x", "workspace_id": 1, "a": 1, "b": 2}))
    assert body["errors"] == {"a": ["Unknown field."], "b": ["Unknown field."]}


@pytest.mark.parametrize("count", [21, 50_000])
def test_many_unknown_fields_are_counted(desk: Desk, count: int) -> None:
    many = {f"f{n}": n for n in range(count)}
    for path, body in (
        ("/auth/login", many),
        (desk.jobs_path, many),
        (f"{desk.jobs_path}/batch", {"jobs": [many]}),
        (f"/workspace/{desk.workspace_id}/operations", {"action": "retry", "filter": many}),
    ):
        detail = refused(desk.call("POST", path, json=body))["detail"]
        assert f"{count:,} fields are unknown" in detail
    job_id = desk.create()["job_id"]
    assert f"{count:,} fields" in refused(desk.patch(job_id, many))["detail"]


def test_items_with_many_unknown_fields_are_a_small_answer(desk: Desk) -> None:
    item = {"x" * 20 + str(n): n for n in range(20)}
    body = refused(desk.post("/batch", json={"jobs": [item] * 1000}))
    assert "more" in body["detail"]


@pytest.mark.parametrize("name", ["x", "\u0001", "😀", '"', "é"])
def test_long_names_are_cut_in_messages(desk: Desk, name: str) -> None:
    body = json.dumps({f"{n}{name * 8_000}": 1 for n in range(20)}, ensure_ascii=False)
    refused(desk.call("POST", "/auth/login", data=body.encode(), headers=JSON))
    one = json.dumps({name * 100_000: 1}, ensure_ascii=False).encode()
    assert "…" in refused(desk.post(data=one, headers=JSON))["detail"]
    paths = {"filter": {"metadata": {f"{n}{name * 30_000}": 1 for n in range(2)}}}
    url = f"/workspace/{desk.workspace_id}/operations"
    refused(desk.call("POST", url, json={"action": "cancel", **paths}))


@pytest.mark.parametrize(
    "report",
    [
        {f"{n}" * 200: 1 for n in range(20)},
        {"\u0001" * 1_500: 1},
        {"job_id": "\u0001" * 1_500},
        {"job_id": "😀" * 41, "status": "x" * 8_000},
        {"job_id": "\u0001" * 40, "lease_token": "t"},
        1,
        "x" * 9_000,
    ],
)
def test_reports_that_are_all_malformed_are_a_small_answer(desk: Desk, report: Any) -> None:
    response = desk.post("/report", json={"reports": [report] * 100})
    assert response.status_code == 200
    assert len(response.data) < MAX_ANSWER
    answers = response.json["data"]
    assert len(answers) == 100
    assert not any(answer["accepted"] for answer in answers)
    assert all(answer["problem"]["detail"] for answer in answers)


def test_reports_that_are_malformed_are_all_explained_where_that_is_short(desk: Desk) -> None:
    answers = desk.post("/report", json={"reports": [{"job_id": "x"}] * 30}).json["data"]
    assert {tuple(answer["problem"]["errors"]) for answer in answers} == {("lease_token",)}


@pytest.mark.parametrize(
    "query",
    [
        "&".join(f"x{n}=1" for n in range(2_000)),
        "x" * 16_000 + "=1",
        "&".join(["status=wrong"] * 1_200),
        "&".join(["job_type=!"] * 900),
        "&".join(["limit=1"] * 2_000),
        "&".join(f"metadata.x{n}=1" for n in range(1_000)),
        "metadata." + "x" * 16_000 + "=1",
        "metadata.x=" + "y" * 16_000,
        "sort=" + "x" * 16_000,
        "created_after=" + "1" * 16_000,
        "cursor=" + "x" * 16_000,
    ],
)
def test_long_queries_are_a_small_refusal(desk: Desk, query: str) -> None:
    refused(desk.get("?" + query))
    refused(desk.call("GET", "/jobs?" + query))


def test_query_over_its_limit_is_414(desk: Desk) -> None:
    response = desk.get("?" + "&".join(f"x{n}=1" for n in range(90_000)))
    assert response.status_code == 414
    assert response.json["type"].endswith(":uri-too-long")


def test_path_that_is_long_is_a_small_answer(desk: Desk) -> None:
    response = desk.call("GET", "/" + "x" * 100_000)
    assert response.status_code == 404
    assert len(response.data) < MAX_ANSWER


# Times


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00Z"),
        ("2017-01-01T01:59:60+02:00", "2017-01-01T00:00:00Z"),
        ("2015-06-30t16:59:60-07:00", "2015-07-01T00:00:00Z"),
        ("2024-01-15T10:00:00.123456789012Z", "2024-01-15T10:00:00Z"),
        ("2024-01-15t10:00:00z", "2024-01-15T10:00:00Z"),
        ("2024-01-15 10:00:00.9+02:00", "2024-01-15T08:00:00Z"),
    ],
)
def test_any_rfc_3339_time_is_taken(desk: Desk, given: str, kept: str) -> None:
    assert desk.create(scheduled_at=given)["scheduled_at"] == kept


@pytest.mark.parametrize(
    "given",
    [
        "2024-01-15T10:00:60Z",
        "2016-12-31T22:59:60Z",
        "2016-12-30T23:59:60Z",
        "2016-12-31T23:59:61Z",
        "2024-01-15T10:00:00 02:00",
        "2024-01-15T10:00:00.Z",
        "2024-01-15T10:00:00." + "1" * 100 + "Z",
        "٢٠٢٤-01-15T10:00:00Z",
        "9999-12-31T23:59:60Z",
    ],
)
def test_send_invalid_time_is_422(desk: Desk, given: str) -> None:
    body = {"job_type": "x", "workspace_id": desk.workspace_id, "scheduled_at": given}
    assert list(refused(desk.post(json=body))["errors"]) == ["scheduled_at"]


def test_plus_of_an_offset_in_a_query_need_not_be_encoded(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    for name, shown in (("created_after", True), ("created_before", False)):
        for offset in ("+02:00", "%2B02:00", "%2002:00", "-02:00", "Z"):
            found = desk.get(f"?{name}=2024-01-15T10:00:00{offset}").json["data"]
            assert [job["job_id"] for job in found] == ([job_id] if shown else [])


def test_send_body_over_the_limit_is_413_before_it_is_read(desk: Desk) -> None:
    big = b'{"job_type": "' + b"x" * 1024 * 1024 + b'"}'
    for path in (desk.jobs_path, "/auth/login", "/workspace"):
        response = desk.call("POST", path, data=big, headers=JSON)
        assert response.status_code == 413
        assert "1048576 bytes" in response.json["detail"]


@pytest.mark.parametrize("text", ["\0", "a\0", "\\\0", "\\u0000", "\\\\u0000"])
def test_u0000_in_a_document_of_a_hosts_is_refused(desk: Desk, text: str) -> None:
    """Postgres would keep it, and fail whenever somebody looks into it."""
    by: Any = {"created_by": desk.user.id, "job_type": "a"}
    with desk.world.transaction() as tx:
        for document in ({"t": text}, {text: 1}, {"t": [{"t": text}]}):
            if "\0" in text:
                with pytest.raises(ValidationFailed):
                    jobs.create(tx, desk.workspace_id, metadata=document, **by)
            else:
                jobs.create(tx, desk.workspace_id, metadata=document, **by)


def test_result_that_grows_over_its_limit_is_422_and_changes_nothing(desk: Desk) -> None:
    job_id = desk.job_in("running")["job_id"]
    half = "x" * (MAX_DOCUMENT_BYTES // 2)
    assert desk.patch(job_id, {"result": {"a": half}}).status_code == 200
    before = desk.get(f"/{job_id}").json
    response = desk.patch(job_id, {"result": {"b": half}, "progress_percent": 9})
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["result"]
    assert desk.get(f"/{job_id}").json == before
