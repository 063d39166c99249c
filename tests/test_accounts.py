"""Users, log-ins, tokens and passwords."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update

from jobapi import accounts
from jobapi.database import DbNow
from jobapi.errors import UsernameTaken, ValidationFailed
from jobapi.models import login_failures, sessions, users

from .factories import PASSWORD, Desk, World


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
    """Both hash once; told by the work they do, in the thread's own processor time."""
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


def test_login_limit_switched_off_does_not_limit(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("sqlite"), JOBAPI_RATELIMIT_ENABLED="false")
    world = World(app)
    assert {login(world, "anna", "wrong").status_code for _ in range(25)} == {401}


def test_refresh_exchanges_the_token_once(world: World) -> None:
    first = world.tokens(world.user())
    second = refresh(world, first["refresh_token"])
    assert second.status_code == 200
    assert world.call("GET", "/auth/me", second.json["access_token"]).status_code == 200
    again = refresh(world, first["refresh_token"])
    assert again.status_code == 401
    assert again.json["type"].endswith(":token-revoked")
    assert refresh(world, second.json["refresh_token"]).status_code == 200


def test_refresh_at_the_same_moment_succeeds_once(world: World) -> None:
    token = world.tokens(world.user())["refresh_token"]
    headers = {"Authorization": f"Bearer {token}"}

    def exchange(_: int) -> int:
        client = world.app.test_client()
        return int(client.post("/auth/refresh", headers=headers).status_code)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(exchange, range(8)))
    assert sorted(answers) == [200] + [401] * 7


@pytest.mark.parametrize("token", [None, "", "nonsense", "a.b.c"])
def test_refresh_without_a_refresh_token_is_401(world: World, token: str | None) -> None:
    assert refresh(world, token or "").status_code == 401
    assert world.call("POST", "/auth/refresh").status_code == 401


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


def test_passwords_are_stored_as_argon2id_and_take_all_characters(world: World) -> None:
    for number, password in enumerate(["ü" * 128, "        ", "p\nq\tr\u2028s pass", "😀" * 8]):
        user = world.user(f"user-{number}", password=password)
        assert user.password_hash.startswith("$argon2id$")
        assert login(world, user.username, password).status_code == 200


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
