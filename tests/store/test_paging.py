"""Every list by cursor: users, workspaces, members and keys. (Jobs: ``test_job_lists``.)"""

from __future__ import annotations

from typing import Any

import pytest

from jobapi.rules.roles import Role
from jobapi.store.paging import write_cursor

from ..factories import Desk

LISTS = {
    "/users": "user_id",
    "/workspace": "workspace_id",
    "/workspace/{}/members": "user_id",
    "/workspace/{}/keys": "key_id",
}
NO_KEYS: list[Any] = [{}, [], ["1"], [1.5], [2**63], [-1], [True], [1, 2], [2**31]]


@pytest.fixture
def admin(desk: Desk) -> str:
    """An administrator where each list has five items or more."""
    boss = desk.world.user(is_admin=True)
    for _ in range(4):
        desk.world.member(desk.workspace_id, Role.VIEWER)
        desk.world.workspace(boss)
    for _ in range(5):
        desk.world.key(desk.workspace_id, desk.user, Role.VIEWER)
    return desk.world.token(boss)


def pages(desk: Desk, path: str, token: str) -> list[dict[str, Any]]:
    found = [desk.world.call("GET", f"{path}?limit=2", token).json]
    while cursor := found[-1]["pagination"]["next_cursor"]:
        assert len(found) < 10
        found.append(desk.world.call("GET", f"{path}?limit=2&cursor={cursor}", token).json)
    return found


@pytest.mark.parametrize(("path", "key"), LISTS.items())
def test_list_by_cursor_shows_each_item_once(desk: Desk, admin: str, path: str, key: str) -> None:
    path = path.format(desk.workspace_id)
    whole = desk.world.call("GET", f"{path}?limit=100", admin).json
    assert whole["pagination"]["next_cursor"] is None
    total = whole["pagination"]["total"]
    assert total == len(whole["data"]) >= 5
    found = pages(desk, path, admin)
    assert [item for page in found for item in page["data"]] == whole["data"]
    assert len({item[key] for item in whole["data"]}) == total
    assert [page["pagination"]["page"] for page in found] == [1] + [None] * (len(found) - 1)
    assert {page["pagination"]["total"] for page in found} == {total}
    assert {page["pagination"]["total_pages"] for page in found} == {-(-total // 2)}


def test_list_by_cursor_of_a_deleted_item_continues_there(desk: Desk, admin: str) -> None:
    path = f"/workspace/{desk.workspace_id}/members"
    first = desk.world.call("GET", f"{path}?limit=2", admin).json
    last = first["data"][-1]["user_id"]
    assert desk.world.call("DELETE", f"{path}/{last}", admin).status_code == 204
    cursor = first["pagination"]["next_cursor"]
    rest = desk.world.call("GET", f"{path}?limit=100&cursor={cursor}", admin).json["data"]
    assert len(rest) == 3
    assert min(item["user_id"] for item in rest) > last


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "cursor",
    ["nonsense", "é", *map(write_cursor, NO_KEYS)],
)
def test_list_with_an_invalid_cursor_is_422(desk: Desk, admin: str, path: str, cursor: str) -> None:
    url = f"{path.format(desk.workspace_id)}?cursor={cursor}"
    response = desk.world.call("GET", url, admin)
    assert response.status_code == 422
    assert response.json["errors"].keys() == {"cursor"}


@pytest.mark.parametrize("path", LISTS)
def test_list_by_page_and_cursor_is_422(desk: Desk, admin: str, path: str) -> None:
    url = f"{path.format(desk.workspace_id)}?page=2&cursor={write_cursor([1])}"
    response = desk.world.call("GET", url, admin)
    assert response.status_code == 422
    assert response.json["errors"] == {"cursor": ["Send either cursor or page, not both."]}
