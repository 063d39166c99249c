"""Workspaces and their members."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from jobapi import accounts
from jobapi import workspaces as workspaces_service
from jobapi.rules.roles import Role
from jobapi.store.tables import (
    api_keys,
    job_count_changes,
    job_counts,
    jobs,
    memberships,
    workspaces,
)
from jobapi.store.transactions import transaction

from ..factories import Desk, World


def members_path(desk: Desk) -> str:
    return f"/workspace/{desk.workspace_id}/members"


def test_create_workspace_makes_the_creator_its_owner(world: World) -> None:
    user = world.user()
    token = world.token(user)
    response = world.call("POST", "/workspace", token, json={"name": "Research"})
    assert response.status_code == 201
    assert response.json["name"] == "Research"
    assert response.json["role"] == "owner"
    assert response.json["created_by"] == user.id
    where = response.headers["Location"]
    assert where == f"/workspace/{response.json['workspace_id']}"
    assert world.call("GET", where, token).json == response.json
    member = world.call("GET", f"{where}/members", token).json["data"]
    assert [(m["user_id"], m["role"]) for m in member] == [(user.id, "owner")]


@pytest.mark.parametrize("name", ["", "   ", "\n\t", "x" * 201, None, 5, "a\x00b"])
def test_create_workspace_of_an_odd_name_is_422(desk: Desk, name: Any) -> None:
    response = desk.call("POST", "/workspace", json={"name": name})
    assert response.status_code in (400, 422)
    if response.status_code == 422:
        assert list(response.json["errors"]) == ["name"]


def test_update_workspace_renames_it_and_nothing_is_allowed(desk: Desk) -> None:
    path = f"/workspace/{desk.workspace_id}"
    assert desk.call("PATCH", path, json={}).json["name"] == "Workspace"
    renamed = desk.call("PATCH", path, json={"name": "Новое имя"})
    assert renamed.status_code == 200
    assert desk.call("GET", path).json["name"] == "Новое имя"
    assert desk.call("PATCH", path, json={"owner": 5}).status_code == 422


def test_list_workspaces_are_mine_with_my_role(world: World) -> None:
    anna, bert, admin = world.user(), world.user(), world.user(is_admin=True)
    hers, his = world.workspace(anna, "Hers"), world.workspace(bert, "His")
    shared = world.workspace(bert, "Shared")
    token = world.token(bert)
    body = {"username": anna.username, "role": "viewer"}
    assert world.call("POST", f"/workspace/{shared}/members", token, json=body).status_code == 201

    def listed(user: Any) -> list[tuple[int, str]]:
        data = world.call("GET", "/workspace", world.token(user)).json["data"]
        return [(w["workspace_id"], w["role"]) for w in data]

    assert listed(anna) == [(hers, "owner"), (shared, "viewer")]
    assert listed(bert) == [(his, "owner"), (shared, "owner")]
    assert listed(admin) == [(hers, "owner"), (his, "owner"), (shared, "owner")]
    key = world.key(shared, anna, Role.MEMBER)
    data = world.call("GET", "/workspace", key).json["data"]
    assert [(w["workspace_id"], w["role"]) for w in data] == [(shared, "viewer")]


def test_delete_workspace_with_jobs_hides_it_at_once(world: World) -> None:
    desk = Desk(world)
    job = desk.create()
    admin = world.token(world.user(is_admin=True))
    path = f"/workspace/{desk.workspace_id}"
    assert world.call("DELETE", path, admin).status_code == 204
    for token in (desk.token, admin):
        for url in (path, f"{path}/jobs", f"{path}/jobs/{job['job_id']}", f"{path}/members"):
            assert world.call("GET", url, token).status_code == 404
        assert world.call("GET", "/jobs", token).json["pagination"]["total"] == 0
        assert world.call("GET", "/workspace", token).json["pagination"]["total"] == 0
        assert world.call("PATCH", path, token, json={"name": "Back"}).status_code == 404
    with world.transaction() as tx:
        assert tx.execute(select(func.count()).select_from(jobs)).scalar_one() == 1
    world.maintain("deleted workspaces")
    with world.transaction() as tx:
        for table in (jobs, workspaces):
            assert tx.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_delete_workspace_clears_it_in_bounded_transactions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces_service, "CLEAR_AT_ONCE", 3)
    desk, other = Desk(world), Desk(world)
    for each in (desk, other):
        body = {"jobs": [{"job_type": "a"}] * 7}
        made = each.post("/batch", json=body, headers={"Idempotency-Key": "k"})
        assert made.status_code == 201
    assert desk.call("DELETE", f"/workspace/{desk.workspace_id}").status_code == 204
    left = []
    with world.state.engine.connect() as connection:
        while True:
            with transaction(connection) as tx:
                if not workspaces_service.clear(tx):
                    break
            count = select(func.count()).where(jobs.c.workspace_id == desk.workspace_id)
            left.append(connection.execute(count).scalar_one())
    assert left[:3] == [4, 1, 0]
    assert other.get().json["pagination"]["total"] == 7
    assert counted(world) == {other.workspace_id: 7}


def counted(world: World) -> dict[int, int]:
    sums: Counter[int] = Counter()
    with world.transaction() as tx:
        for table in (job_counts, job_count_changes):
            for workspace_id, n in tx.execute(select(table.c.workspace_id, table.c.n)):
                sums[workspace_id] += n
    return {workspace_id: n for workspace_id, n in sums.items() if n}


def test_delete_workspace_takes_all_of_it_and_nothing_else(world: World) -> None:
    desk, other = Desk(world), Desk(world)
    for each in (desk, other):
        each.create()
        world.key(each.workspace_id, each.user, Role.VIEWER)
        world.member(each.workspace_id, Role.VIEWER)
    assert desk.call("DELETE", f"/workspace/{desk.workspace_id}").status_code == 204
    assert desk.get().status_code == 404
    assert desk.call("DELETE", f"/workspace/{desk.workspace_id}").status_code == 404
    world.maintain("deleted workspaces")
    with world.transaction() as tx:
        for table, left in ((jobs, 1), (api_keys, 1), (memberships, 2)):
            ids = tx.execute(select(table.c.workspace_id)).scalars().all()
            assert ids == [other.workspace_id] * left
    # Its number is not given to anybody else.
    assert world.workspace(desk.user) > other.workspace_id


def test_delete_workspace_while_jobs_are_created_leaves_nothing(world: World) -> None:
    desk = Desk(world)
    body = {"job_type": "x", "workspace_id": desk.workspace_id}
    headers = {"Authorization": f"Bearer {desk.token}"}

    def create(_: int) -> int:
        client = world.app.test_client()
        return int(client.post(desk.jobs_path, json=body, headers=headers).status_code)

    with ThreadPoolExecutor(5) as pool:
        creating = [pool.submit(create, n) for n in range(40)]
        deleted = desk.call("DELETE", f"/workspace/{desk.workspace_id}")
        answers = {future.result() for future in creating}
    assert deleted.status_code == 204
    assert answers <= {201, 404}
    world.maintain("deleted workspaces")
    with world.transaction() as tx:
        assert tx.execute(select(func.count()).select_from(jobs)).scalar_one() == 0


def test_add_member_by_exact_name(desk: Desk) -> None:
    bert = desk.world.user("bert")
    by_name = desk.call("POST", members_path(desk), json={"username": "bert", "role": "viewer"})
    assert by_name.status_code == 201
    assert by_name.json["user_id"] == bert.id
    where = by_name.headers["Location"]
    assert where == f"{members_path(desk)}/{bert.id}"
    assert desk.call("GET", where).json == by_name.json
    again = desk.call("POST", members_path(desk), json={"username": "bert", "role": "owner"})
    assert again.status_code == 409
    assert again.json["type"].endswith(":already-member")
    for name in ("Bert", "bert ", "ber", "b%", "bert*"):
        other = desk.call("POST", members_path(desk), json={"username": name, "role": "viewer"})
        assert other.status_code == 404


def test_add_member_by_number_is_for_administrators(desk: Desk) -> None:
    anna = desk.world.user("anna")
    refused = [
        desk.call("POST", members_path(desk), json={"user_id": number, "role": "viewer"})
        for number in (anna.id, desk.user.id, 999_999)
    ]
    assert {each.status_code for each in refused} == {403}
    assert len({each.text for each in refused}) == 1
    assert refused[0].json["type"].endswith(":administrator-only")
    assert "username" in refused[0].json["detail"]
    listed = desk.call("GET", members_path(desk)).json["data"]
    assert [each["user_id"] for each in listed] == [desk.user.id]
    admin = desk.world.token(desk.world.user(is_admin=True))
    body = {"user_id": anna.id, "role": "member"}
    added = desk.world.call("POST", members_path(desk), admin, json=body)
    assert added.status_code == 201
    assert added.json["username"] == "anna"
    body = {"user_id": 999_999, "role": "member"}
    assert desk.world.call("POST", members_path(desk), admin, json=body).status_code == 404


def test_add_member_who_is_disabled_answers_as_if_unknown(desk: Desk) -> None:
    anna = desk.world.user("anna")
    with desk.world.transaction() as tx:
        accounts.edit_user(tx, anna.id, {"disabled": True})
    answers = [
        desk.call("POST", members_path(desk), json={"username": name, "role": "viewer"})
        for name in ("anna", "otto")
    ]
    assert [each.status_code for each in answers] == [404, 404]
    assert answers[0].text.replace("anna", "otto") == answers[1].text


def test_users_cannot_be_found_by_counting(desk: Desk) -> None:
    other = Desk(desk.world)
    other.create()
    for path in (
        "/users/{}",
        f"{members_path(desk)}/{{}}",
        f"{desk.jobs_path}?created_by={{}}",
        "/jobs?created_by={}",
    ):
        there, nowhere = (
            desk.call("GET", path.format(number)) for number in (other.user.id, 999_999)
        )
        assert (there.status_code, there.text) == (nowhere.status_code, nowhere.text), path


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"role": "member"}, 422),
        ({"user_id": 1, "username": "anna", "role": "member"}, 422),
        ({"user_id": 1}, 422),
        ({"user_id": 1, "role": "king"}, 422),
        ({"user_id": 1, "role": None}, 422),
        ({"user_id": "1", "role": "member"}, 422),
        ({"user_id": 0, "role": "member"}, 422),
        ({"user_id": True, "role": "member"}, 422),
        ({"user_id": 999, "role": "member"}, 403),
        ({"username": "nobody", "role": "member"}, 404),
    ],
)
def test_add_member_bad_input_is_refused(desk: Desk, body: Any, status: int) -> None:
    assert desk.call("POST", members_path(desk), json=body).status_code == status


def test_update_member_changes_the_role(desk: Desk) -> None:
    member = desk.world.member(desk.workspace_id, Role.VIEWER)
    path = f"{members_path(desk)}/{member.id}"
    response = desk.call("PATCH", path, json={"role": "owner"})
    assert response.json["role"] == "owner"
    assert desk.call("GET", path).json["role"] == "owner"
    assert desk.call("PATCH", path, json={}).status_code == 422


def test_read_unknown_member_is_404(desk: Desk) -> None:
    stranger = desk.world.user()
    for user_id in (stranger.id, 999, 0, "x", 10**20):
        path = f"{members_path(desk)}/{user_id}"
        for method, body in (("GET", None), ("PATCH", {"role": "viewer"}), ("DELETE", None)):
            kw = {"json": body} if body else {}
            response = desk.call(method, path, **kw)
            assert response.status_code == 404, (method, user_id)
            assert response.json["type"].endswith(":member-not-found")


def test_remove_member_any_member_may_leave(desk: Desk) -> None:
    for role in (Role.VIEWER, Role.WORKER, Role.MEMBER):
        member = desk.world.member(desk.workspace_id, role)
        other = desk.world.member(desk.workspace_id, Role.VIEWER)
        token = desk.world.token(member)
        call = desk.world.call
        refused = call("DELETE", f"{members_path(desk)}/{other.id}", token)
        assert refused.status_code == 403
        assert call("DELETE", f"{members_path(desk)}/{member.id}", token).status_code == 204
        assert call("GET", members_path(desk), token).status_code == 403


def test_last_owner_can_neither_leave_nor_step_down(desk: Desk) -> None:
    path = f"{members_path(desk)}/{desk.user.id}"
    for response in (
        desk.call("DELETE", path),
        desk.call("PATCH", path, json={"role": "member"}),
    ):
        assert response.status_code == 409
        assert response.json["type"].endswith(":last-owner")
    assert desk.call("PATCH", path, json={"role": "owner"}).status_code == 200
    desk.world.member(desk.workspace_id, Role.OWNER)
    assert desk.call("DELETE", path).status_code == 204


def test_last_owner_is_bound_for_an_administrator_too(desk: Desk) -> None:
    admin = desk.world.token(desk.world.user(is_admin=True))
    path = f"{members_path(desk)}/{desk.user.id}"
    assert desk.world.call("DELETE", path, admin).status_code == 409


@pytest.mark.parametrize("how", ["leave", "step down"])
def test_owners_who_go_at_the_same_moment_leave_one(world: World, how: str) -> None:
    for _ in range(5):
        desk = Desk(world)
        owners = [desk.user] + [world.member(desk.workspace_id, Role.OWNER) for _ in range(3)]
        calls = [(f"{members_path(desk)}/{owner.id}", world.token(owner)) for owner in owners]

        def go(call: tuple[str, str]) -> int:
            path, token = call
            client = world.app.test_client()
            headers = {"Authorization": f"Bearer {token}"}
            if how == "leave":
                return int(client.delete(path, headers=headers).status_code)
            body = {"role": "viewer"}
            return int(client.patch(path, json=body, headers=headers).status_code)

        with ThreadPoolExecutor(4) as pool:
            answers = sorted(pool.map(go, calls))
        assert answers == ([204] * 3 if how == "leave" else [200] * 3) + [409]


def test_list_members_pages(desk: Desk) -> None:
    for _ in range(4):
        desk.world.member(desk.workspace_id, Role.VIEWER)
    response = desk.call("GET", f"{members_path(desk)}?limit=3&page=2").json
    assert (
        response["pagination"].items()
        >= {"page": 2, "limit": 3, "total": 5, "total_pages": 2}.items()
    )
    assert len(response["data"]) == 2
    assert response["data"][0].keys() == {"user_id", "username", "role", "created_at"}
