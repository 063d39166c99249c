"""Hostile input: a plain refusal, the same on both databases; nothing that cannot be read back."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobapi import jobs
from jobapi.errors import ValidationFailed
from jobapi.jobs import MAX_DOCUMENT_BYTES

from .conftest import SECRET
from .factories import Desk

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
def test_any_bytes_get_an_answer_that_is_no_fault(desk: Desk, body: bytes) -> None:
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
def test_claim_out_of_place_of_a_signed_token_is_401(desk: Desk, name: str) -> None:
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


def test_body_over_the_limit_is_413_before_it_is_looked_at(desk: Desk) -> None:
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
