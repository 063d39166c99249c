"""The login of a host application in place of jobapi's own."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from uuid import UUID

import pytest
from werkzeug.local import LocalProxy

from jobapi import accounts
from jobapi.views import access

from ..factories import World
from ..host import PREFIX, Thing, as_host_user, who

ORIGIN = "https://app.example.com"
PROBLEM = "application/problem+json"
SQLITE = pytest.mark.parametrize("database", ["sqlite"])


def test_current_user_of_the_host_is_ours(embed: Any) -> None:
    world = embed(current_user=who).world
    assert as_host_user(world, "GET", "/workspace", None).status_code == 401
    made = as_host_user(world, "POST", "/workspace", "u-17", json={"name": "Mine"})
    assert made.status_code == 201
    workspace = made.json["workspace_id"]
    body = {"job_type": "x", "workspace_id": workspace}
    job = as_host_user(world, "POST", f"/workspace/{workspace}/jobs", "u-17", json=body)
    assert job.status_code == 201
    me = as_host_user(world, "GET", "/auth/me", "u-17").json
    assert me["username"] == "host:u-17"
    assert job.json["created_by"] == made.json["created_by"] == me["user_id"]
    assert as_host_user(world, "GET", f"/workspace/{workspace}/jobs", "u-18").status_code == 403
    assert as_host_user(world, "GET", "/jobs", "u-18").json["data"] == []
    # A machine comes with a key.
    key = as_host_user(
        world, "POST", f"/workspace/{workspace}/keys", "u-17", json={"name": "k", "role": "viewer"}
    ).json["key"]
    assert world.call("GET", f"{PREFIX}/workspace/{workspace}/jobs", key).status_code == 200


def test_stream_of_a_host_user_ends_so_that_the_host_is_asked_again(
    embed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "HOST_LOGIN_SECONDS", 0.5)
    world = embed(current_user=who).world
    world.set_stream_options(heartbeat_seconds=0.1)
    made = as_host_user(world, "POST", "/workspace", "u-17", json={"name": "Mine"}).json
    path = f"/workspace/{made['workspace_id']}/events/stream"
    response = as_host_user(world, "GET", path, "u-17")
    begun = time.monotonic()
    assert response.status_code == 200
    assert b"data:" not in b"".join(response.iter_encoded())
    assert 0.3 < time.monotonic() - begun < 5
    response.close()


def test_current_user_replaces_our_log_in(embed: Any) -> None:
    world = embed(current_user=who).world
    for path in ("/auth/login", "/auth/refresh", "/auth/logout", "/auth/password"):
        assert as_host_user(world, "POST", path, "u-1", json={}).status_code == 404
    paths = world.call("GET", f"{PREFIX}/openapi.json").json["paths"]
    assert f"{PREFIX}/auth/login" not in paths
    assert f"{PREFIX}/auth/me" in paths


def test_current_user_can_be_an_administrator_and_be_disabled(embed: Any) -> None:
    world = embed(current_user=who).world
    with world.transaction() as tx:
        admin = accounts.host_user(tx, "boss", is_admin=True)
        user = accounts.host_user(tx, 17)
    assert as_host_user(world, "GET", "/users", "17").status_code == 403
    change = as_host_user(world, "PATCH", f"/users/{user.id}", "boss", json={"disabled": True})
    assert change.status_code == 200
    refused = as_host_user(world, "GET", "/workspace", "17")
    assert refused.status_code == 401
    assert "disabled" in refused.json["detail"]
    assert as_host_user(world, "GET", "/auth/me", "boss").json["user_id"] == admin.id


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": "http://localhost"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_current_user_by_cookie_cannot_be_used_by_other_sites(
    embed: Any, headers: Any, status: int
) -> None:
    world = embed(current_user=who).world
    body = {"name": "Mine"}
    response = as_host_user(world, "POST", "/workspace", "u-1", json=body, headers=headers)
    assert response.status_code == status
    read = as_host_user(world, "GET", "/workspace", "u-1", headers=headers)
    assert read.status_code == 200


def test_current_user_seen_first_by_many_at_once_is_one(embed: Any) -> None:
    host = embed(current_user=who)
    ids: list[Any] = []

    def ask() -> None:
        client = host.app.test_client()
        ids.append(client.get(f"{PREFIX}/auth/me", headers={"X-Host-User": "new"}).json["user_id"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1


async def find_user() -> str:
    return "7"


ID = UUID("0af76519-16cd-43dd-8448-eb211c80319c")


IDS = [
    ("u-17", "u-17"),
    (17, "17"),
    (0, "0"),
    (ID, str(ID)),
    (Thing(id=17), "17"),
    (Thing(id=ID), str(ID)),
    (Thing(get_id=lambda: "u-17", id=5), "u-17"),
    (Thing(get_id=lambda: "u-17", is_authenticated=True, is_anonymous=False), "u-17"),
    (LocalProxy(lambda: "u-17"), "u-17"),
    (LocalProxy(lambda: Thing(get_id=lambda: "u-17", is_authenticated=True)), "u-17"),
]


@pytest.fixture
def embed_user(embed: Any) -> Any:
    """A host whose ``current_user`` returns, or does, what the list has."""
    user: list[Any] = [None]
    host = embed(current_user=lambda: user[0]() if callable(user[0]) else user[0])
    return host.world, user


@SQLITE
def test_current_user_is_an_id_or_has_one(embed_user: Any) -> None:
    world, user = embed_user
    for given, name in IDS:
        for _ in range(2):
            user[0] = (lambda found: lambda: found)(given)
            assert world.call("GET", f"{PREFIX}/auth/me").json["username"] == f"host:{name}"
    assert sorted(user_rows(world)) == sorted({f"host:{name}" for _, name in IDS})


def user_rows(world: World) -> list[str]:
    with world.transaction() as tx:
        return list(tx.exec_driver_sql("SELECT username FROM jobapi_users").scalars())


ANONYMOUS = [
    None,
    LocalProxy(lambda: None),
    Thing(get_id=lambda: None, is_authenticated=False, is_anonymous=True),
    LocalProxy(lambda: Thing(get_id=lambda: None, is_authenticated=False)),
    Thing(get_id=lambda: "7", is_authenticated=False),
    Thing(id=7, is_authenticated=lambda: False),
    Thing(id=7, is_anonymous=True),
    Thing(id=None),
]


@SQLITE
def test_current_user_who_has_not_logged_in_is_401(embed_user: Any) -> None:
    world, user = embed_user
    for given in ANONYMOUS:
        user[0] = (lambda found: lambda: found)(given)
        for method, path in (("GET", "/workspace"), ("POST", "/workspace"), ("GET", "/jobs")):
            response = world.call(method, PREFIX + path, json={"name": "Mine"})
            assert response.status_code == 401
            assert response.json["type"].endswith(":token-missing")
    assert user_rows(world) == []


NO_IDS = [
    lambda: False,
    lambda: True,
    lambda: b"7",
    lambda: 7.0,
    lambda: object(),
    lambda: Thing(name="anna"),
    lambda: Thing(id=True),
    lambda: Thing(id=b"7"),
    lambda: Thing(get_id=lambda: object()),
    lambda: {"id": 7},
    lambda: [7],
    lambda: (7,),
    find_user,
    lambda: LocalProxy(object),
    lambda: "",
    lambda: "  ",
    lambda: "x" * 201,
    lambda: "a\x00b",
    lambda: str(None),
    lambda: str(object()),
]


@SQLITE
def test_current_user_without_an_id_is_500_and_logged(
    embed_user: Any, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    world, user = embed_user
    for make in NO_IDS:
        user[0] = make
        caplog.clear()
        response = world.call("POST", f"{PREFIX}/workspace", json={"name": "Mine"})
        assert response.status_code == 500
        assert response.mimetype == PROBLEM
        assert "the current user" in caplog.text
    assert user_rows(world) == []


def test_host_user_takes_what_the_log_in_gives(embed: Any) -> None:
    world = embed(current_user=who).world
    with world.transaction() as tx:
        by_object = accounts.host_user(tx, Thing(id=17))
        assert accounts.host_user(tx, 17).id == by_object.id
        for wrong in (None, b"17", True):
            with pytest.raises(ValueError, match="user"):
                accounts.host_user(tx, wrong)


SITES: list[tuple[dict[str, str], int]] = [
    ({"Origin": ORIGIN}, 201),
    ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, 201),
    ({"Origin": ORIGIN.upper(), "Sec-Fetch-Site": "same-site"}, 201),
    ({"Origin": f"{ORIGIN}.evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
    ({"Origin": "https://evil.example", "Authorization": "Token u-1"}, 201),
    ({"Origin": "https://evil.example", "Authorization": "Basic dTp1"}, 403),
    ({"Origin": "https://evil.example", "Authorization": "Negotiate x"}, 403),
    ({"Origin": "https://evil.example", "Authorization": ""}, 403),
    ({"Origin": "https://evil.example", "Cookie": "session=u-1"}, 403),
    ({"Host": "host.example", "Origin": "https://host.example:8443"}, 201),
    ({"Host": "host.example:443", "Origin": "https://host.example"}, 201),
    ({"Host": "host.example:5000", "Origin": "http://host.example:8080"}, 403),
    ({"Host": "host.example", "Origin": "https://host.example.evil.example"}, 403),
    ({"Host": "host.example", "Origin": "https://evil.example:8443"}, 403),
    ({"Origin": "http://[::1"}, 403),
    ({"Origin": "null"}, 403),
]


@SQLITE
def test_origin_that_is_allowed_and_tokens_of_the_hosts_are_no_other_site(embed: Any) -> None:
    world = embed(current_user=lambda: "u-1", JOBAPI_CORS_ORIGINS=ORIGIN).world
    for headers, status in SITES:
        response = world.call("POST", f"{PREFIX}/workspace", json={"name": "M"}, headers=headers)
        assert response.status_code == status, headers


@SQLITE
def test_cors_for_all_origins_lets_no_cookie_pass(embed: Any) -> None:
    world = embed(current_user=lambda: "u-1", JOBAPI_CORS_ORIGINS="*").world
    headers = {"Origin": "https://evil.example"}
    response = world.call("POST", f"{PREFIX}/workspace", json={"name": "M"}, headers=headers)
    assert response.status_code == 403
