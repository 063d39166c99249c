"""Users, logins, tokens and passwords."""

from __future__ import annotations

import logging
import time
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest
from sqlalchemy import func, select, update

from jobapi import accounts
from jobapi.errors import UsernameTaken, ValidationFailed
from jobapi.rules.addresses import address_bucket, client_address
from jobapi.store.columns import DbNow
from jobapi.store.tables import login_failures, sessions, users

from ..conftest import HASHER
from ..factories import PASSWORD, Desk, World


def login(world: World, username: str, password: str = PASSWORD, **kw: Any) -> Any:
    body = {"username": username, "password": password}
    return world.call("POST", "/auth/login", json=body, **kw)


def refresh(world: World, token: str) -> Any:
    return world.call("POST", "/auth/refresh", token)


def test_login_right_password_answers_both_tokens(world: World) -> None:
    user = world.user("anna", password=PASSWORD)
    response = login(world, "anna")
    assert response.status_code == 200
    assert response.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert response.json["token_type"] == "bearer"
    assert response.json["expires_in"] == 3600
    assert response.headers["Cache-Control"] == "no-store"
    me = world.call("GET", "/auth/me", response.json["access_token"])
    assert me.json["username"] == "anna"
    assert me.json["user_id"] == user.id
    assert me.json["is_admin"] is False
    assert "password" not in me.text


def test_login_wrong_name_and_wrong_password_answer_alike(world: World) -> None:
    world.user("anna", password=PASSWORD)
    world.user("hosted")
    disabled = world.user("disabled", password=PASSWORD)
    with world.transaction() as tx:
        accounts.edit_user(tx, disabled.id, {"disabled": True})
    answers = [
        login(world, "anna", "wrong password"),
        login(world, "nobody"),
        login(world, "hosted", ""),
        login(world, "disabled"),
        login(world, "name with\nlines and \x7f and ü" * 100),
        login(world, "", ""),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json["type"].endswith(":login-failed")


def test_login_wrong_name_takes_as_long_as_wrong_password(world: World) -> None:
    """Both hash once. Measured in the thread's processor time, which other load does not change."""
    world.user("anna", password=PASSWORD)

    def cost(username: str) -> float:
        tries = []
        for _ in range(5):
            before = time.thread_time()
            assert login(world, username, "wrong password").status_code == 401
            tries.append(time.thread_time() - before)
        return min(tries)

    cost("anna")
    known, unknown = cost("anna"), cost("nobody")
    assert 0.5 < known / unknown < 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"username": "anna"}, "password"),
        ({"password": "x"}, "username"),
        ({"username": 5, "password": "x"}, "username"),
        ({"username": "anna", "password": ["x"]}, "password"),
        ({"username": "anna", "password": "x", "remember": True}, "remember"),
    ],
)
def test_login_malformed_names_the_field(world: World, body: Any, field: str) -> None:
    response = world.call("POST", "/auth/login", json=body)
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]


def test_login_more_failures_than_allowed_answers_429_until_the_minute_ends(world: World) -> None:
    world.user("anna", password=PASSWORD)
    world.user("bert", password=PASSWORD)
    answers = [login(world, "anna", "wrong").status_code for _ in range(21)]
    assert answers == [401] * 20 + [429]
    refused = login(world, "anna")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert login(world, "bert").status_code == 200
    elsewhere = login(world, "anna", environ_overrides={"REMOTE_ADDR": "192.0.2.7"})
    assert elsewhere.status_code == 200
    with world.transaction() as tx:
        minute_ago = tx.execute(select(DbNow())).scalar_one() - accounts.LOGIN_WINDOW
        tx.execute(update(login_failures).values(since=minute_ago))
    assert login(world, "anna").status_code == 200


def test_login_successes_are_not_limited(world: World) -> None:
    world.user("anna", password=PASSWORD)
    assert {login(world, "anna").status_code for _ in range(25)} == {200}


def test_login_many_failures_at_once_are_all_counted(world: World) -> None:
    world.user("anna", password=PASSWORD)

    def fail(_: int) -> int:
        body = {"username": "anna", "password": "wrong"}
        return int(world.app.test_client().post("/auth/login", json=body).status_code)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(fail, range(40)))
    assert answers.count(401) == 20
    assert answers.count(429) == 20


def fails(world: World, username: str, address: str, password: str = "wrong") -> int:
    environ = {"REMOTE_ADDR": address}
    return int(login(world, username, password, environ_overrides=environ).status_code)


def limited(make_app: Any, url: str, **limits: int) -> World:
    settings = {f"JOBAPI_LOGIN_FAILURES_{name.upper()}": n for name, n in limits.items()}
    return World(make_app(url, migrate=False, **settings))


def test_login_many_names_from_one_address_answer_429(world: World) -> None:
    world.user("anna", password=PASSWORD)
    answers = [fails(world, f"name{n}", "203.0.113.9") for n in range(40)]
    assert answers == [401] * 30 + [429] * 10
    refused = login(world, "anna", environ_overrides={"REMOTE_ADDR": "203.0.113.9"})
    assert refused.status_code == 429
    assert "from your address" in refused.json["detail"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert fails(world, "anna", "203.0.113.10", PASSWORD) == 200


@pytest.mark.parametrize(
    ("addresses", "limit"),
    [
        (["203.0.113.9:{}", "203.0.113.9", "::ffff:203.0.113.9", "[::ffff:cb00:7109]:{}"], 20),
        (["2001:db8:1:2::{}", "[2001:db8:1:2:a:b:c:{}]:443", "2001:db8:1:2:ffff::{}%eth0"], 20),
    ],
)
def test_login_ports_and_addresses_of_one_64_are_one_address(
    world: World, addresses: list[str], limit: int
) -> None:
    answers = Counter(
        fails(world, "anna", addresses[n % len(addresses)].format(n)) for n in range(40)
    )
    assert answers == {401: limit, 429: 40 - limit}
    assert fails(world, "anna", "2001:db8:1:3::1") == 401


def test_login_name_is_limited_over_all_addresses(service_url: str, make_app: Any) -> None:
    world = limited(make_app, service_url, per_name=6, per_minute=4)
    assert [fails(world, "boss", f"198.51.100.{n}") for n in range(6)] == [401] * 6
    refused = login(world, "boss")
    assert refused.status_code == 429
    assert "for this username." in refused.json["detail"]
    assert fails(world, "otto", "198.51.100.1") == 401


def test_login_refused_attempts_do_not_use_up_the_limits_of_others(
    service_url: str, make_app: Any
) -> None:
    world = limited(make_app, service_url, per_name=6, per_address=6, per_minute=4)
    answers = [fails(world, "boss", "203.0.113.9") for _ in range(20)]
    assert answers == [401] * 4 + [429] * 16
    for _ in range(10):
        assert fails(world, "boss", "198.51.100.1", PASSWORD) == 200
    assert fails(world, "otto", "203.0.113.9") == 401


def test_login_refused_hashes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.user("anna", password=PASSWORD)
    hashed = Counter[str]()
    verify = accounts._verify

    def counting(password_hash: str | None, password: str) -> bool:
        hashed[password] += 1
        return verify(password_hash, password)

    monkeypatch.setattr(accounts, "_verify", counting)
    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(lambda n: fails(world, f"name{n}", "203.0.113.9"), range(40)))
    assert answers == {401: 30, 429: 10}
    assert hashed == {"wrong": 30}


def test_login_right_passwords_at_once_leave_no_failures(world: World) -> None:
    for name in ("anna", "bert", "carl"):
        world.user(name, password=PASSWORD)
    names = ["anna", "bert", "carl"] * 6
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: login(world, name).status_code, names))
    assert answers == [200] * 18
    with world.transaction() as tx:
        assert set(tx.execute(select(login_failures.c.count)).scalars()) <= {0}


def test_login_failures_that_are_old_are_deleted_and_count_for_nothing(world: World) -> None:
    for n in range(25):
        fails(world, f"name{n}", f"198.51.100.{n}")
    with world.transaction() as tx:
        now = tx.execute(select(DbNow())).scalar_one()
        tx.execute(update(login_failures).values(since=now - accounts.LOGIN_WINDOW, count=99))
    assert fails(world, "name1", "198.51.100.1") == 401
    assert fails(world, "name1", "198.51.100.1") == 401
    with world.transaction() as tx:
        assert list(tx.execute(select(login_failures.c.count)).scalars()) == [2, 2, 2]


@pytest.mark.parametrize(
    ("text", "address", "bucket"),
    [
        ("203.0.113.9", "203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:50000", "203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9:", "203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:ff::1", "2001:db8::ff:0:0:1", "2001:db8::/64"),
        ("[2001:db8::1]", "2001:db8::1", "2001:db8::/64"),
        ("[2001:db8::1]:443", "2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64"),
        ("[fe80::1%25eth0]:80", "fe80::1", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9", "203.0.113.9"),
        ("[::FFFF:203.0.113.9]:80", "203.0.113.9", "203.0.113.9"),
        ("64:ff9b::203.0.113.9", "203.0.113.9", "203.0.113.9"),
        ("", "", ""),
        (None, "", ""),
        ("unknown", "unknown", "unknown"),
        ("203.0.113.999:80", "203.0.113.999:80", "203.0.113.999:80"),
        ("[]:80", "[]:80", "[]:80"),
        ("x" * 5000, "x" * 64, "x" * 64),
    ],
)
def test_address_is_read_without_port_and_zone(text: str | None, address: str, bucket: str) -> None:
    assert client_address(text) == address
    assert address_bucket(text) == bucket


def test_log_has_the_address_without_its_port(world: World, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    with caplog.at_level("INFO", "jobapi"):
        environ = {"REMOTE_ADDR": "[2001:db8::1]:443"}
        world.call("GET", "/health/live", environ_overrides=environ)
    assert caplog.records[-1].address == "2001:db8::1"


def test_login_limit_switched_off_does_not_limit(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"), JOBAPI_RATELIMIT_ENABLED="false")
    world = World(app)
    assert {login(world, "anna", "wrong").status_code for _ in range(25)} == {401}


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def pass_by(world: World, seconds: float) -> None:
    """Move all logins into the past, as if so many seconds had gone by."""
    with world.transaction() as tx:
        for row in tx.execute(select(sessions)).all():
            ago = timedelta(seconds=seconds)
            replaced = {key: at - seconds for key, at in (row.replaced or {}).items()}
            moved = {"created_at": row.created_at - ago, "expires_at": row.expires_at - ago}
            where = update(sessions).where(sessions.c.id == row.id)
            tx.execute(where.values(**moved, replaced=replaced or None))


def works(world: World, pair: dict[str, Any]) -> int:
    """What an access token is answered."""
    return int(world.call("GET", "/auth/me", pair["access_token"]).status_code)


def test_refresh_gives_another_pair_and_the_old_one_works_for_30_seconds(world: World) -> None:
    first = world.tokens(world.user())
    second = refresh(world, first["refresh_token"])
    assert second.status_code == 200
    assert second.json["refresh_token"] != first["refresh_token"]
    assert works(world, second.json) == 200
    pass_by(world, 28)
    again = refresh(world, first["refresh_token"])
    assert again.status_code == 200
    rids = [claims(each.json["refresh_token"])["rid"] for each in (second, again)]
    assert rids[0] == rids[1] != claims(first["refresh_token"])["rid"]
    assert [works(world, pair) for pair in (first, second.json, again.json)] == [200] * 3
    third = refresh(world, again.json["refresh_token"])
    assert third.status_code == 200
    assert refresh(world, second.json["refresh_token"]).status_code == 200


def test_refresh_token_used_again_later_ends_the_log_in(world: World) -> None:
    user = world.user()
    other = world.tokens(user)
    first = world.tokens(user)
    second = refresh(world, first["refresh_token"]).json
    pass_by(world, 31)
    for _ in range(2):
        again = refresh(world, first["refresh_token"])
        assert again.status_code == 401
        assert again.json["type"].endswith(":token-revoked")
        assert [works(world, pair) for pair in (first, second, other)] == [401, 401, 200]
    assert refresh(world, second["refresh_token"]).status_code == 401
    assert refresh(world, other["refresh_token"]).status_code == 200


def test_refresh_several_times_within_30_seconds_converges(world: World) -> None:
    pairs = [world.tokens(world.user())]
    for _ in range(4):
        pairs.append(refresh(world, pairs[-1]["refresh_token"]).json)
        pass_by(world, 6)
    rids = [claims(pair["refresh_token"])["rid"] for pair in pairs]
    assert len(set(rids)) == 5
    for pair in pairs[:-1]:
        assert claims(refresh(world, pair["refresh_token"]).json["refresh_token"])["rid"] == rids[4]
    # 24, 18, 12 and 6 seconds ago; then 32 and less.
    pass_by(world, 8)
    assert refresh(world, pairs[1]["refresh_token"]).status_code == 200
    assert refresh(world, pairs[4]["refresh_token"]).status_code == 200
    assert refresh(world, pairs[0]["refresh_token"]).status_code == 401
    assert refresh(world, pairs[4]["refresh_token"]).status_code == 401


def test_refresh_at_the_same_moment_gives_one_next_token(world: World) -> None:
    for _ in range(3):
        token = world.tokens(world.user())["refresh_token"]
        headers = {"Authorization": f"Bearer {token}"}

        def exchange(_: int, headers: dict[str, str] = headers) -> Any:
            return world.app.test_client().post("/auth/refresh", headers=headers)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(exchange, range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({claims(answer.json["refresh_token"])["rid"] for answer in answers}) == 1
        assert {works(world, answer.json) for answer in answers} == {200}


def test_refresh_remembers_a_bounded_number_of_tokens(world: World) -> None:
    pair = world.tokens(world.user())
    for _ in range(accounts.MAX_REPLACED + 5):
        pair = refresh(world, pair["refresh_token"]).json
    with world.transaction() as tx:
        (replaced,) = tx.execute(select(sessions.c.replaced)).scalars()
    assert len(replaced) == accounts.MAX_REPLACED
    pass_by(world, 31)
    refresh(world, pair["refresh_token"])
    with world.transaction() as tx:
        (replaced,) = tx.execute(select(sessions.c.replaced)).scalars()
    assert len(replaced) == 1


def test_log_in_ends_90_days_after_the_password_was_given(world: World) -> None:
    days = 24 * 3600
    pair = world.tokens(world.user())
    for _ in range(4):
        pass_by(world, 22 * days)
        answer = refresh(world, pair["refresh_token"])
        assert answer.status_code == 200
        pair = answer.json
    pass_by(world, 2 * days - 100)
    answer = refresh(world, pair["refresh_token"])
    assert answer.status_code == 200
    assert 0 < answer.json["expires_in"] <= 100
    for kind in ("access_token", "refresh_token"):
        assert claims(answer.json[kind])["exp"] <= time.time() + 100
    pass_by(world, 101)
    assert refresh(world, answer.json["refresh_token"]).status_code == 401


def test_refresh_token_that_was_not_used_for_30_days_is_401(world: World) -> None:
    pair = world.tokens(world.user())
    pass_by(world, 31 * 24 * 3600)
    assert refresh(world, pair["refresh_token"]).status_code == 401


def test_refresh_within_30_seconds_after_the_log_in_ended_is_401(world: World) -> None:
    user = world.user("anna", password=PASSWORD)
    admin = world.token(world.user(is_admin=True))
    for end in ("logout", "password", "disable"):
        with world.transaction() as tx:
            accounts.edit_user(tx, user.id, {"disabled": False})
        first = world.tokens(user)
        second = refresh(world, first["refresh_token"]).json
        if end == "logout":
            world.call("POST", "/auth/logout", second["access_token"])
        else:
            body = {"disabled": True} if end == "disable" else {"password": PASSWORD}
            assert world.call("PATCH", f"/users/{user.id}", admin, json=body).status_code == 200
        for pair in (first, second):
            assert refresh(world, pair["refresh_token"]).status_code == 401
            assert works(world, pair) == 401


@pytest.mark.parametrize("change", [{"disabled": True}, {"password": "another password"}])
def test_login_while_the_user_changes_gives_no_log_in(
    world: World, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change comes between the check of the password and the login."""
    user = world.user("anna", password=PASSWORD)
    check = accounts.authenticate

    def late(*arguments: Any) -> Any:
        found = check(*arguments)
        with world.transaction() as tx:
            accounts.edit_user(tx, user.id, change)
        return found

    monkeypatch.setattr(accounts, "authenticate", late)
    assert login(world, "anna").status_code == 401
    with world.transaction() as tx:
        assert tx.execute(select(func.count()).select_from(sessions)).scalar_one() == 0


@pytest.mark.parametrize("token", [None, "", "nonsense", "a.b.c"])
def test_refresh_without_a_refresh_token_is_401(world: World, token: str | None) -> None:
    assert refresh(world, token or "").status_code == 401
    for header in (None, "Bearer", "Bearer  ", "Basic dTpw"):
        headers = {} if header is None else {"Authorization": header}
        response = world.call("POST", "/auth/refresh", headers=headers)
        assert response.status_code == 401
        assert response.json["type"].endswith(":token-missing"), header


def test_refresh_with_the_access_token_is_401(desk: Desk) -> None:
    response = refresh(desk.world, desk.token)
    assert response.status_code == 401
    assert "refresh token" in response.json["detail"]


def test_logout_ends_both_tokens_of_this_login_alone(world: World) -> None:
    user = world.user()
    here, there = world.tokens(user), world.tokens(user)
    response = world.call("POST", "/auth/logout", here["access_token"])
    assert response.status_code == 204
    assert response.data == b""
    assert world.call("GET", "/auth/me", here["access_token"]).status_code == 401
    assert refresh(world, here["refresh_token"]).status_code == 401
    assert world.call("GET", "/auth/me", there["access_token"]).status_code == 200


def test_logout_with_an_empty_json_body_is_no_body(desk: Desk) -> None:
    headers = {"Content-Type": "application/json"}
    assert desk.call("POST", "/auth/logout", headers=headers).status_code == 204


def test_access_token_expires_though_it_was_seen_before(make_app: Any, new_database: Any) -> None:
    world = World(make_app(new_database("sqlite"), JOBAPI_ACCESS_TOKEN_SECONDS="2"))
    tokens = world.tokens(world.user())
    assert tokens["expires_in"] == 2
    assert world.call("GET", "/auth/me", tokens["access_token"]).status_code == 200
    time.sleep(2.1)
    response = world.call("GET", "/auth/me", tokens["access_token"])
    assert response.status_code == 401
    assert response.json["type"].endswith(":token-expired")
    assert refresh(world, tokens["refresh_token"]).status_code == 200


def test_sessions_that_ran_out_are_cleared_away(world: World) -> None:
    user = world.user()
    world.tokens(user)
    with world.transaction() as tx:
        now = tx.execute(select(DbNow())).scalar_one()
        tx.execute(update(sessions).values(expires_at=now))
    world.tokens(user)
    with world.transaction() as tx:
        assert tx.execute(select(func.count()).select_from(sessions)).scalar_one() == 1


def change(world: World, token: str, current: str, new: str) -> Any:
    body = {"current_password": current, "new_password": new}
    return world.call("POST", "/auth/password", token, json=body)


def test_change_password_ends_all_other_logins(world: World) -> None:
    user = world.user("anna", password=PASSWORD)
    here, there = world.tokens(user), world.tokens(user)
    assert change(world, here["access_token"], PASSWORD, "a new password").status_code == 204
    assert world.call("GET", "/auth/me", here["access_token"]).status_code == 200
    assert world.call("GET", "/auth/me", there["access_token"]).status_code == 401
    assert login(world, "anna").status_code == 401
    assert login(world, "anna", "a new password").status_code == 200


@pytest.mark.parametrize(
    ("current", "new", "field"),
    [
        ("wrong", "a new password", "current_password"),
        (PASSWORD, "short", "new_password"),
        (PASSWORD, "x" * 129, "new_password"),
    ],
)
def test_change_password_bad_input_names_the_field(
    world: World, current: str, new: str, field: str
) -> None:
    token = world.token(world.user("anna", password=PASSWORD))
    response = change(world, token, current, new)
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]
    assert login(world, "anna").status_code == 200


def test_change_password_guessing_is_limited(world: World) -> None:
    token = world.token(world.user("anna", password=PASSWORD))
    answers = [change(world, token, "wrong", "a new password").status_code for _ in range(21)]
    assert answers == [422] * 20 + [429]


def test_passwords_are_hashed_with_the_effort_that_owasp_recommends() -> None:
    assert HASHER.hash("x").startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_passwords_are_stored_as_argon2id_and_take_all_characters(world: World) -> None:
    for number, password in enumerate(["ü" * 128, "        ", "p\nq\tr\u2028s pass", "😀" * 8]):
        user = world.user(f"user-{number}", password=password)
        assert user.password_hash.startswith("$argon2id$")
        assert login(world, user.username, password).status_code == 200


WORDS = "Müllerstraße-é"
NFC, NFD = (unicodedata.normalize(form, WORDS) for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("set_as", "typed"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_login_password_typed_in_another_form_is_right(
    world: World, set_as: str, typed: str
) -> None:
    user = world.user("anna", password=set_as)
    pair = login(world, "anna", typed)
    assert pair.status_code == 200
    assert change(world, pair.json["access_token"], typed, PASSWORD).status_code == 204
    assert change(world, pair.json["access_token"], PASSWORD, set_as).status_code == 204
    assert login(world, "anna", typed).status_code == 200
    admin = world.token(world.user(is_admin=True))
    body = {"password": typed}
    assert world.call("PATCH", f"/users/{user.id}", admin, json=body).status_code == 200
    assert login(world, "anna", set_as).status_code == 200
    assert login(world, "anna", WORDS.upper()).status_code == 401


def test_login_password_hashed_in_another_form_is_right_and_rehashed(world: World) -> None:
    user = world.user("anna")
    with world.transaction() as tx:
        old = accounts._hasher.hash(NFD)
        tx.execute(update(users).where(users.c.id == user.id).values(password_hash=old))
    assert login(world, "anna", NFC).status_code == 401
    assert change(world, world.token(user), NFD, NFD).status_code == 204
    with world.transaction() as tx:
        tx.execute(update(users).where(users.c.id == user.id).values(password_hash=old))
    for typed in (NFD, NFD, NFC):
        assert login(world, "anna", typed).status_code == 200


@pytest.mark.parametrize(
    ("password", "right"),
    [
        ("e\u0301" * 128, True),
        ("e\u0301" * 129, False),
        ("e\u0301" * 4, False),
        ("e\u0301" * 8, True),
        ("\U0001f600" * 8, True),
        # So many marks would take long to be sorted.
        ("e" + "\u0301\u0323" * 40_000, False),
    ],
)
def test_create_user_password_length_is_counted_in_nfc(
    world: World, password: str, right: bool
) -> None:
    admin = world.token(world.user(is_admin=True))
    body = {"username": "anna", "password": password}
    assert world.call("POST", "/users", admin, json=body).status_code == (201 if right else 422)
    assert login(world, "anna", password).status_code == (200 if right else 401)


def test_create_user_answers_the_user_and_where_it_is(world: World) -> None:
    admin = world.token(world.user(is_admin=True))
    body = {"username": "new@example.com", "password": PASSWORD}
    response = world.call("POST", "/users", admin, json=body)
    assert response.status_code == 201
    assert response.json["username"] == "new@example.com"
    assert response.json["disabled"] is False
    where = response.headers["Location"]
    assert world.call("GET", where, admin).json == response.json
    assert login(world, "new@example.com").status_code == 200


def test_create_user_of_a_name_that_is_taken_is_409(world: World) -> None:
    admin = world.token(world.user(is_admin=True))
    body = {"username": "anna", "password": PASSWORD}
    assert world.call("POST", "/users", admin, json=body).status_code == 201
    response = world.call("POST", "/users", admin, json=body)
    assert response.status_code == 409
    assert "'anna'" in response.json["detail"]


@pytest.mark.parametrize(
    "username", ["", " ", "a b", "host:1", "a\n", "a\x01", "ü", "x" * 101, None, 7]
)
def test_create_user_of_an_odd_name_is_422(world: World, username: Any) -> None:
    admin = world.token(world.user(is_admin=True))
    body = {"username": username, "password": PASSWORD}
    response = world.call("POST", "/users", admin, json=body)
    assert response.status_code == 422
    assert "username" in response.json["errors"]


def test_create_user_service_refuses_what_the_schema_would(world: World) -> None:
    with world.transaction() as tx:
        with pytest.raises(ValidationFailed, match="username"):
            accounts.create_user(tx, "host:7", password=None)
        with pytest.raises(ValidationFailed, match="password"):
            accounts.create_user(tx, "anna", password="short")
        accounts.create_user(tx, "anna", password=None)
        with pytest.raises(UsernameTaken):
            accounts.create_user(tx, "anna", password=None)


def test_update_user_disabled_ends_everything_and_enabled_allows_login(world: World) -> None:
    admin = world.token(world.user(is_admin=True))
    user = world.user("anna", password=PASSWORD)
    token = world.token(user)
    path = f"/users/{user.id}"
    response = world.call("PATCH", path, admin, json={"disabled": True})
    assert response.json["disabled"] is True
    assert world.call("GET", "/auth/me", token).status_code == 401
    assert login(world, "anna").status_code == 401
    assert world.call("PATCH", path, admin, json={"disabled": False}).status_code == 200
    assert world.call("GET", "/auth/me", token).status_code == 401
    assert login(world, "anna").status_code == 200


def test_update_user_password_and_administrator(world: World) -> None:
    admin = world.token(world.user(is_admin=True))
    user = world.user("anna", password=PASSWORD)
    token = world.token(user)
    path = f"/users/{user.id}"
    assert world.call("PATCH", path, admin, json={}).status_code == 200
    assert world.call("GET", "/users", token).status_code == 403
    assert world.call("PATCH", path, admin, json={"is_admin": True}).json["is_admin"] is True
    assert world.call("GET", "/users", token).status_code == 200
    body = {"password": "a new password"}
    assert world.call("PATCH", path, admin, json=body).status_code == 200
    assert world.call("GET", "/users", token).status_code == 401
    assert login(world, "anna", "a new password").status_code == 200


GIVE_UP = [{"disabled": True}, {"is_admin": False}, {"is_admin": True, "disabled": True}]


@pytest.mark.parametrize("body", GIVE_UP)
def test_update_user_last_enabled_administrator_is_409_and_changes_nothing(
    world: World, body: Any
) -> None:
    boss = world.user(is_admin=True)
    disabled = world.user(is_admin=True)
    world.user()
    token = world.token(boss)
    assert world.call("PATCH", f"/users/{disabled.id}", token, json={"disabled": True}).json
    path = f"/users/{boss.id}"
    refused = world.call("PATCH", path, token, json={**body, "password": "a new password"})
    assert refused.status_code == 409
    assert refused.json["type"].endswith(":last-administrator")
    shown = world.call("GET", path, token).json
    assert (shown["is_admin"], shown["disabled"]) == (True, False)
    assert world.call("PATCH", f"/users/{disabled.id}", token, json={"is_admin": False}).json
    enabled = world.user(is_admin=True)
    assert world.call("PATCH", path, token, json=body).status_code == 200
    found = world.call("GET", path, world.token(enabled)).json
    assert body.items() <= found.items()


@pytest.mark.parametrize("body", GIVE_UP)
def test_update_user_administrators_at_the_same_moment_leave_one(world: World, body: Any) -> None:
    for _ in range(4):
        with world.transaction() as tx:
            tx.execute(update(users).values(is_admin=False))
        admins = [world.user(is_admin=True) for _ in range(3)]
        tokens = [world.token(each) for each in admins]
        # Each disables the next one.
        calls = list(zip(tokens, [*admins[1:], admins[0]], strict=True))

        def go(call: tuple[str, Any]) -> int:
            token, victim = call
            headers = {"Authorization": f"Bearer {token}"}
            client = world.app.test_client()
            path = f"/users/{victim.id}"
            return int(client.patch(path, json=body, headers=headers).status_code)

        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(go, calls))
        assert set(answers) <= {200, 401, 403, 409}
        with world.transaction() as tx:
            left = select(func.count()).where(users.c.is_admin, ~users.c.disabled)
            assert tx.execute(left.select_from(users)).scalar_one() >= 1, answers


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"disabled": None}, "disabled"),
        ({"disabled": "yes"}, "disabled"),
        ({"is_admin": 1}, "is_admin"),
        ({"password": "short"}, "password"),
        ({"username": "other"}, "username"),
    ],
)
def test_update_user_bad_input_names_the_field(world: World, body: Any, field: str) -> None:
    admin = world.token(world.user(is_admin=True))
    response = world.call("PATCH", f"/users/{world.user().id}", admin, json=body)
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]


@pytest.mark.parametrize("user_id", ["999", "0", "-1", "x", "1e3", "99999999999999999999"])
def test_unknown_user_is_404(world: World, user_id: str) -> None:
    admin = world.token(world.user(is_admin=True))
    for method, kw in (("GET", {}), ("PATCH", {"json": {}})):
        response = world.call(method, f"/users/{user_id}", admin, **kw)
        assert response.status_code == 404
        assert response.json["type"].endswith(":user-not-found")


def test_list_users_pages_in_order_of_creation(world: World) -> None:
    admin = world.user(is_admin=True)
    others = [world.user().id for _ in range(4)]
    token = world.token(admin)
    seen: list[int] = []
    for page in (1, 2, 3):
        response = world.call("GET", f"/users?page={page}&limit=2", token).json
        assert (
            response["pagination"].items()
            >= {"page": page, "limit": 2, "total": 5, "total_pages": 3}.items()
        )
        seen += [user["user_id"] for user in response["data"]]
    assert seen == [admin.id, *others]


def test_username_of_two_at_the_same_moment_is_given_once(world: World) -> None:
    admin = world.token(world.user(is_admin=True))
    body = {"username": "anna", "password": PASSWORD}
    headers = {"Authorization": f"Bearer {admin}"}

    def create(_: int) -> int:
        client = world.app.test_client()
        return int(client.post("/users", json=body, headers=headers).status_code)

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(create, range(6))) == [201] + [409] * 5
    with world.transaction() as tx:
        named = select(func.count()).select_from(users).where(users.c.username == "anna")
        assert tx.execute(named).scalar_one() == 1
