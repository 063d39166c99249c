"""API keys: credentials of programs for one workspace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from jobapi.errors import NotAMember
from jobapi.rules.roles import Role
from jobapi.store.tables import api_keys

from ..factories import Desk


def keys_path(desk: Desk) -> str:
    return f"/workspace/{desk.workspace_id}/keys"


def make(desk: Desk, **body: Any) -> Any:
    return desk.call("POST", keys_path(desk), json={"name": "ci", "role": "member", **body})


def job(desk: Desk, job_type: str = "data_analysis") -> dict[str, Any]:
    return {"job_type": job_type, "workspace_id": desk.workspace_id}


def test_create_key_shows_the_key_once_and_stores_a_hash(desk: Desk) -> None:
    response = make(desk)
    assert response.status_code == 201
    key = response.json["key"]
    assert key.startswith("jk_")
    assert len(key) > 40
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json["created_by"] == desk.user.id
    assert response.json["role"] == "member"
    listed = desk.call("GET", keys_path(desk))
    assert key not in listed.text
    assert listed.json["data"] == [{k: v for k, v in response.json.items() if k != "key"}]
    with desk.world.transaction() as tx:
        assert key not in repr(tx.execute(select(api_keys)).all())


def test_key_acts_for_the_user_who_made_it(desk: Desk) -> None:
    key = make(desk).json["key"]
    created = desk.world.call("POST", desk.jobs_path, key, json=job(desk))
    assert created.status_code == 201
    assert created.json["created_by"] == desk.user.id


def test_key_last_use_is_written_down(desk: Desk) -> None:
    key = make(desk).json["key"]
    assert desk.call("GET", keys_path(desk)).json["data"][0]["last_used_at"] is None
    assert desk.world.call("GET", desk.jobs_path, key).status_code == 200
    first = desk.call("GET", keys_path(desk)).json["data"][0]["last_used_at"]
    assert first is not None
    with desk.world.transaction() as tx:
        tx.execute(update(api_keys).values(last_used_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert desk.world.call("GET", desk.jobs_path, key).status_code == 200
    assert desk.call("GET", keys_path(desk)).json["data"][0]["last_used_at"] >= first


def test_revoke_key_ends_it_at_once_and_once(desk: Desk) -> None:
    made = make(desk).json
    path = f"{keys_path(desk)}/{made['key_id']}"
    assert desk.world.call("GET", desk.jobs_path, made["key"]).status_code == 200
    assert desk.call("DELETE", path).status_code == 204
    refused = desk.world.call("GET", desk.jobs_path, made["key"])
    assert refused.status_code == 401
    assert refused.json["type"].endswith(":token-revoked")
    assert desk.call("DELETE", path).status_code == 404
    assert desk.call("GET", keys_path(desk)).json["data"][0]["revoked_at"] is not None


def test_revoke_key_of_another_workspace_is_404(desk: Desk) -> None:
    other = Desk(desk.world)
    made = make(other).json
    for key_id in (made["key_id"], 999, "x", 0):
        response = desk.call("DELETE", f"{keys_path(desk)}/{key_id}")
        assert response.status_code == 404
        assert response.json["type"].endswith(":key-not-found")
    assert desk.world.call("GET", other.jobs_path, made["key"]).status_code == 200


def test_key_expires(desk: Desk) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = make(desk, expires_at=soon)
    assert made.status_code == 201
    key = made.json["key"]
    assert desk.world.call("GET", desk.jobs_path, key).status_code == 200
    with desk.world.transaction() as tx:
        tx.execute(update(api_keys).values(expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    refused = desk.world.call("GET", desk.jobs_path, key)
    assert refused.status_code == 401
    assert refused.json["type"].endswith(":token-expired")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "owner"}, "role"),
        ({"role": None}, "role"),
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"job_types": []}, "job_types"),
        ({"job_types": "all"}, "job_types"),
        ({"job_types": ["ok", ""]}, "job_types.1"),
        ({"job_types": ["x"] * 101}, "job_types"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_create_key_bad_input_names_the_field(desk: Desk, body: Any, field: str) -> None:
    response = make(desk, **body)
    assert response.status_code == 422
    assert list(response.json["errors"]) == [field]
    assert desk.call("GET", keys_path(desk)).json["data"] == []


def test_key_of_job_types_is_bound_by_them_in_all_that_it_does(desk: Desk) -> None:
    key = make(desk, job_types=["report", "import"]).json["key"]
    call = desk.world.call
    other = desk.create(job_type="data_analysis")
    mine = call("POST", desk.jobs_path, key, json=job(desk, "report"))
    assert mine.status_code == 201
    refused = call("POST", desk.jobs_path, key, json=job(desk))
    assert refused.status_code == 403
    assert "report, import" in refused.json["detail"]
    listed = call("GET", desk.jobs_path, key).json
    assert [j["job_type"] for j in listed["data"]] == ["report"]
    assert listed["pagination"]["total"] == 1
    legacy = call("GET", "/jobs", key).json
    assert [j["job_type"] for j in legacy["data"]] == ["report"]
    assert call("GET", f"{desk.jobs_path}?job_type=data_analysis", key).json["data"] == []
    path = f"{desk.jobs_path}/{other['job_id']}"
    for method, rest, kw in (
        ("GET", "", {}),
        ("GET", "/status", {}),
        ("GET", "/result", {}),
        ("PATCH", "", {"json": {"status": "running"}}),
        ("POST", "/cancel", {}),
        ("POST", "/retry", {}),
    ):
        assert call(method, path + rest, key, **kw).status_code == 404
    own = f"{desk.jobs_path}/{mine.json['job_id']}"
    assert call("PATCH", own, key, json={"status": "running"}).status_code == 200
    assert call("POST", f"{own}/cancel", key).status_code == 200
    assert desk.get(f"/{other['job_id']}").json == other


def test_create_key_for_a_user_who_is_not_a_member_is_refused(desk: Desk) -> None:
    stranger, admin = desk.world.user(), desk.world.user(is_admin=True)
    with pytest.raises(NotAMember):
        desk.world.key(desk.workspace_id, stranger, Role.VIEWER)
    assert desk.world.key(desk.workspace_id, admin, Role.VIEWER)


def test_key_of_an_administrator_is_no_administrator(desk: Desk) -> None:
    key = desk.world.key(desk.workspace_id, desk.world.user(is_admin=True), Role.MEMBER)
    other = Desk(desk.world)
    other.create()
    assert desk.world.call("GET", "/users", key).status_code == 403
    assert desk.world.call("GET", other.jobs_path, key).status_code == 403
    assert desk.world.call("GET", "/jobs", key).json["data"] == []


def test_list_keys_pages(desk: Desk) -> None:
    ids = [make(desk).json["key_id"] for _ in range(3)]
    response = desk.call("GET", f"{keys_path(desk)}?limit=2&page=2").json
    assert (
        response["pagination"].items()
        >= {"page": 2, "limit": 2, "total": 3, "total_pages": 2}.items()
    )
    assert [key["key_id"] for key in response["data"]] == ids[2:]
