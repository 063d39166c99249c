"""Lists of jobs: filters, order, pages, and the legacy list over all workspaces."""

from __future__ import annotations

import json
import random
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from flask import Flask
from sqlalchemy import update

from jobapi.rules.jobs import JobStatus, Priority
from jobapi.rules.roles import Role
from jobapi.services import job_list_plans
from jobapi.store.paging import MAX_BYTES
from jobapi.store.tables import jobs

from ..conftest import made_once
from ..factories import Desk, World

STATUSES = [s.label for s in JobStatus]
PRIORITIES = [p.label for p in Priority]
TYPES = ["data_analysis", "model_training", "data_processing"]


class Stock(NamedTuple):
    """Sixty jobs of all sorts, in the order of creation, as the API shows them."""

    desk: Desk
    jobs: list[dict[str, Any]]


@pytest.fixture
def stock(app: Flask) -> Stock:
    """The same sixty jobs for each test."""
    made: Stock = made_once(app, "stock", lambda: fill(app))
    return made


@pytest.fixture
def many(stock: Stock) -> list[dict[str, Any]]:
    """The sixty jobs; ``desk`` is then the owner of their workspace."""
    return stock.jobs


@pytest.fixture
def desk(app: Flask, request: Any) -> Desk:
    """The owner of a workspace: a new one, or that of ``many``."""
    if "many" in request.fixturenames:
        stock: Stock = request.getfixturevalue("stock")
        return stock.desk
    return Desk(World(app))


def fill(app: Flask) -> Stock:
    desk = Desk(World(app))
    dice = random.Random(7)
    statuses, wanted = [], []
    for _ in range(60):
        statuses.append(dice.choice(STATUSES))
        wanted.append({"job_type": dice.choice(TYPES), "priority": dice.choice(PRIORITIES)})
    made = desk.post("/batch", json={"jobs": wanted}).json["data"]
    for job, status in zip(made, statuses, strict=True):
        desk.bring(job, status)
    # Many at the same moment, so that ties have to be broken.
    with desk.world.transaction() as tx:
        rows = tx.execute(jobs.select().order_by(jobs.c.id)).all()
        for row in rows:
            moment = rows[row.id % 3].created_at
            tx.execute(
                update(jobs)
                .where(jobs.c.id == row.id)
                .values(updated_at=moment, created_at=rows[row.id // 20].created_at)
            )
    shown = {job["job_id"]: job for job in desk.get("?limit=100").json["data"]}
    return Stock(desk, [shown[job["job_id"]] for job in made])


def listed(desk: Desk, query: str = "") -> Any:
    response = desk.get(f"?{query}")
    assert response.status_code == 200, response.text
    return response.json


def ids(page: Any) -> list[str]:
    return [job["job_id"] for job in page["data"]]


def pagination(**given: Any) -> dict[str, Any]:
    return {"next_cursor": None, "total_is_capped": False, **given}


def walk(desk: Desk, query: str, cursor: str | None = None) -> list[str]:
    """All jobs of a list, or those after a cursor, by its cursors."""
    found: list[str] = []
    page = listed(desk, query if cursor is None else f"{query}&cursor={cursor}")
    while True:
        found += ids(page)
        cursor = page["pagination"]["next_cursor"]
        if cursor is None:
            return found
        page = listed(desk, f"{query}&cursor={cursor}")
        assert page["pagination"]["page"] is None


def test_list_of_nothing_has_no_pages(desk: Desk) -> None:
    assert listed(desk) == {
        "data": [],
        "pagination": pagination(page=1, limit=50, total=0, total_pages=0),
    }


def test_list_shows_whole_jobs_the_newest_first(desk: Desk) -> None:
    made = [desk.create(metadata={"n": n}) for n in range(3)]
    page = listed(desk)
    assert page["data"] == made[::-1]
    assert page["pagination"] == pagination(page=1, limit=50, total=3, total_pages=1)


def test_filter_list_has_exact_totals(desk: Desk, many: list[dict[str, Any]]) -> None:
    dice = random.Random(11)
    choices = {"status": STATUSES, "job_type": TYPES, "priority": PRIORITIES}
    for _ in range(60):
        wanted = {
            name: dice.sample(values, dice.randint(1, 2))
            for name, values in choices.items()
            if dice.random() < 0.6
        }
        page = listed(desk, urlencode({**wanted, "limit": 100, "order": "asc"}, doseq=True))
        expected = [
            job["job_id"] for job in many if all(job[name] in wanted[name] for name in wanted)
        ]
        assert sorted(ids(page)) == sorted(expected), wanted
        assert page["pagination"]["total"] == len(expected)


def test_filter_completed_means_success(desk: Desk, many: list[dict[str, Any]]) -> None:
    assert ids(listed(desk, "status=completed&limit=100")) == ids(
        listed(desk, "status=success&limit=100")
    )
    both = listed(desk, "status=completed&status=success&limit=100")
    assert {job["status"] for job in both["data"]} == {"success"}


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["created_at", "updated_at", "priority", "status"])
def test_sort_by_rank_breaks_ties_by_creation(
    desk: Desk, many: list[dict[str, Any]], sort: str, order: str
) -> None:
    with desk.world.transaction() as tx:
        rows = tx.execute(jobs.select()).all()
    rows = sorted(rows, key=lambda r: (getattr(r, sort), r.id), reverse=order == "desc")
    expected = [row.job_id for row in rows]
    query = f"sort={sort}&order={order}"
    assert ids(listed(desk, f"{query}&limit=100")) == expected
    # Page by page: nothing twice, nothing missing.
    paged = [
        job for page in range(1, 10) for job in ids(listed(desk, f"{query}&limit=7&page={page}"))
    ]
    assert paged == expected


def test_sort_without_order_is_descending(desk: Desk, many: list[dict[str, Any]]) -> None:
    assert ids(listed(desk, "sort=priority")) == ids(listed(desk, "sort=priority&order=desc"))
    assert listed(desk, "sort=priority")["data"][0]["priority"] == "urgent"


def test_pages_past_the_end_are_empty_with_the_total(
    desk: Desk, many: list[dict[str, Any]]
) -> None:
    for page in (4, 1000, 10**9):
        answer = listed(desk, f"limit=20&page={page}")
        assert answer["data"] == []
        wanted = pagination(page=page, limit=20, total=60, total_pages=3)
        assert answer["pagination"] == wanted


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=5.0", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=5&limit=6", "limit"),
        ("page=0", "page"),
        ("page=1e3", "page"),
        ("page=1_000", "page"),
        ("page=%D9%A3", "page"),
        ("page=100000000000000000000", "page"),
        ("page=1000000001", "page"),
        ("status=done", "status.0"),
        ("status=", "status.0"),
        ("status=pending&status=x", "status.1"),
        ("priority=HIGH", "priority.0"),
        ("priority=3", "priority.0"),
        ("job_type=", "job_type.0"),
        ("job_type=a%20b", "job_type.0"),
        ("job_type=%00", "job_type.0"),
        ("sort=job_id", "sort"),
        ("sort=created_at&sort=status", "sort"),
        ("order=down", "order"),
        ("order=", "order"),
        ("workspace_id=1", "workspace_id"),
        ("colour=red", "colour"),
        ("Status=pending", "Status"),
    ],
)
def test_bad_query_is_422_and_named(desk: Desk, query: str, name: str) -> None:
    response = desk.get(f"?{query}")
    assert response.status_code == 422, response.text
    assert list(response.json["errors"]) == [name]
    assert name in response.json["detail"]


def test_list_is_of_this_workspace_alone(world: World) -> None:
    mine, other = Desk(world), Desk(world)
    job = mine.create()
    other.create()
    assert ids(listed(mine)) == [job["job_id"]]


# The legacy list


def legacy(desk: Desk, query: str = "") -> Any:
    return desk.call("GET", f"/jobs?{query}")


def test_legacy_list_says_that_it_is_deprecated(desk: Desk) -> None:
    response = legacy(desk)
    assert response.status_code == 200
    assert response.headers["Deprecation"] == "@1704067200"
    assert response.headers["Link"] == '</workspace>; rel="successor-version"'
    response = legacy(desk, f"workspace_id={desk.workspace_id}")
    assert response.headers["Link"] == f'<{desk.jobs_path}>; rel="successor-version"'


def test_legacy_list_has_the_jobs_of_all_readable_workspaces(world: World) -> None:
    mine, other, third = Desk(world), Desk(world), Desk(world)
    made = [desk.create()["job_id"] for desk in (mine, other, third)]
    with world.transaction() as tx:
        from jobapi import workspaces

        workspaces.add_member(tx, other.workspace_id, mine.user.id, Role.VIEWER)
    assert ids(legacy(mine).json) == [made[1], made[0]]
    assert ids(legacy(mine, f"workspace_id={other.workspace_id}").json) == [made[1]]
    assert legacy(mine, f"workspace_id={third.workspace_id}").json["data"] == []
    assert legacy(mine, "workspace_id=999").json["pagination"]["total"] == 0
    admin = world.token(world.user(is_admin=True))
    assert ids(world.call("GET", "/jobs", admin).json) == made[::-1]
    key = world.key(other.workspace_id, mine.user, Role.VIEWER)
    assert ids(world.call("GET", "/jobs", key).json) == [made[1]]
    query = f"/jobs?workspace_id={mine.workspace_id}"
    assert world.call("GET", query, key).json["data"] == []


def test_legacy_list_takes_the_same_filters_sort_and_pages(
    desk: Desk, many: list[dict[str, Any]]
) -> None:
    query = "status=failed&status=pending&priority=high&sort=updated_at&order=asc&limit=3&page=2"
    assert legacy(desk, query).json == listed(desk, query)


@pytest.mark.parametrize("query", ["workspace_id=x", "workspace_id=0", "colour=red", "limit=0"])
def test_legacy_list_refuses_a_bad_query(desk: Desk, query: str) -> None:
    response = legacy(desk, query)
    assert response.status_code == 422
    assert list(response.json["errors"]) == [query.split("=")[0]]


@pytest.mark.parametrize("few", [0, 2000])
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["created_at", "updated_at", "priority", "status"])
def test_walk_by_cursor_equals_pages(
    desk: Desk,
    many: list[dict[str, Any]],
    sort: str,
    order: str,
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_list_plans, "FEW", few)
    by_id = {job["job_id"]: job for job in many}
    with desk.world.transaction() as tx:
        rows = tx.execute(jobs.select()).all()
    rows = sorted(rows, key=lambda r: (getattr(r, sort), r.id), reverse=order == "desc")
    dice = random.Random(f"{sort}{order}")
    choices = {"status": STATUSES, "job_type": TYPES, "priority": PRIORITIES}
    filters: list[dict[str, list[str]]] = [{}]
    filters += [
        {n: dice.sample(v, dice.randint(1, 2)) for n, v in choices.items() if dice.random() < 0.6}
        for _ in range(6)
    ]
    for wanted in filters:
        expected = [
            row.job_id
            for row in rows
            if all(by_id[row.job_id][name] in wanted[name] for name in wanted)
        ]
        query = urlencode({**wanted, "sort": sort, "order": order, "limit": 7}, doseq=True)
        assert walk(desk, query) == expected, wanted
        # One more than there are.
        pages = range(1, -(-len(expected) // 7) + 2)
        paged = [job for page in pages for job in ids(listed(desk, f"{query}&page={page}"))]
        assert paged == expected, wanted


def test_cursor_neither_skips_nor_repeats_while_jobs_are_added(desk: Desk) -> None:
    made = [desk.create(priority=p)["job_id"] for p in ("high", "low", "high", "normal", "low")]
    for sort in ("created_at", "priority", "status"):
        first = listed(desk, f"sort={sort}&limit=2")
        # It belongs before the page that has been read.
        added = desk.create(priority="urgent")["job_id"]
        rest = walk(desk, f"sort={sort}&limit=2", first["pagination"]["next_cursor"])
        assert sorted([*ids(first), *rest]) == sorted(made)
        assert added not in rest
        made.append(added)


@pytest.mark.parametrize(
    "query",
    [
        "cursor=x",
        "cursor=%00",
        "cursor=WyJzdGF0dXMiXQ",
        "cursor=e30",
        "cursor=bnVsbA",
        "cursor=W10&page=1",
        "created_after=yesterday",
        "created_by=x",
        "light=perhaps",
        "metadata.=1",
        "metadata.a%20b=1",
        "metadata.a=1&metadata.a=2",
        "metadata.a=%00",
        "metadata=1",
        "&".join(f"metadata.k{n}=1" for n in range(6)),
    ],
)
def test_list_with_a_wrong_parameter_is_422(desk: Desk, query: str) -> None:
    response = desk.get(f"?{query}")
    assert response.status_code == 422, response.text
    assert all(name.split(".")[0] in query for name in response.json["errors"])


def test_cursor_of_another_list_is_422(desk: Desk, many: list[dict[str, Any]]) -> None:
    cursor = listed(desk, "limit=5")["pagination"]["next_cursor"]
    assert desk.get(f"?limit=5&order=asc&cursor={cursor}").status_code == 422
    assert desk.get(f"?limit=5&sort=status&cursor={cursor}").status_code == 422


def test_time_filters_take_the_first_moment_and_leave_out_the_last(desk: Desk) -> None:
    made = [desk.create() for _ in range(4)]
    moments = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    with desk.world.transaction() as tx:
        for job, moment in zip(made, moments, strict=True):
            where = jobs.c.job_id == job["job_id"]
            tx.execute(update(jobs).where(where).values(created_at=moment, updated_at=moment))
    names = [job["job_id"] for job in made]
    query = "order=asc&created_after=2024-01-02T00:00:00Z&created_before=2024-01-04T00:00:00Z"
    assert ids(listed(desk, query)) == names[1:3]
    assert listed(desk, query)["pagination"]["total"] == 2
    assert ids(listed(desk, "order=asc&updated_after=2024-01-03T01:00:00%2B01:00")) == names[2:]


def test_created_by_finds_the_jobs_of_one_user(world: World) -> None:
    desk = Desk(world)
    other = world.member(desk.workspace_id, Role.MEMBER)
    desk.create()
    theirs = world.job(desk.workspace_id, other)
    assert ids(listed(desk, f"created_by={other.id}")) == [theirs]


def test_metadata_filter_finds_values_at_paths(desk: Desk) -> None:
    documents = [
        {"batch_id": 3, "file": {"name": "a.csv"}},
        {"batch_id": "3"},
        {"batch_id": 4, "ok": True},
        {"ok": "true", "none": None},
        None,
    ]
    made = [desk.create(metadata=document)["job_id"] for document in documents]
    for query, wanted in (
        ("metadata.batch_id=3", made[:2]),
        ("metadata.batch_id=3&metadata.file.name=a.csv", made[:1]),
        ("metadata.ok=true", made[2:4]),
        ("metadata.none=null", made[3:4]),
        ("metadata.batch_id=5", []),
        ("metadata.batch_id=18446744073709551615", []),
        ("metadata.batch_id=99999999999999999999999", []),
        ("metadata.batch_id=1e999", []),
        ("metadata.batch_id=3.0", made[:1]),
        ("metadata.batch_id=[3]", []),
        ("metadata.batch_id=4&status=pending", made[2:3]),
    ):
        page = listed(desk, f"order=asc&{query}")
        assert ids(page) == wanted, query
        assert page["pagination"]["total"] == len(wanted)


def test_total_with_other_filters_is_capped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_list_plans, "MAX_COUNTED", 3)
    for _ in range(5):
        desk.create()
    page = listed(desk, "created_after=2020-01-01T00:00:00Z&limit=2")
    assert page["pagination"]["total"] == 3
    assert page["pagination"]["total_is_capped"] is True
    assert len(walk(desk, "created_after=2020-01-01T00:00:00Z&limit=2")) == 5
    assert listed(desk)["pagination"]["total"] == 5


def test_light_list_leaves_out_metadata_and_result(desk: Desk) -> None:
    whole = desk.create(metadata={"a": 1})
    (light,) = listed(desk, "light=true")["data"]
    small = {k: v for k, v in whole.items() if k not in ("metadata", "result")}
    added = dict.fromkeys(("error_cause", "error_group", "worker", "progress_message"))
    assert light == {**small, **added, "progress_percent": 0}


@pytest.mark.parametrize(
    "values",
    [
        ["created_at", "desc", "2024-01-15T10:00:00+00:00", 2**63],
        ["created_at", "desc", "2024-01-15T10:00:00+00:00", -1],
        ["created_at", "desc", "2024-01-15T10:00:00", 1],
        ["created_at", "desc", "0001-01-01T00:00:00+14:00", 1],
        ["created_at", "desc", "9999-12-31T23:59:59-14:00", 1],
        ["priority", "desc", 2**40, "2024-01-15T10:00:00+00:00", 1],
        ["priority", "desc", -1, "2024-01-15T10:00:00+00:00", 1],
        ["status", "desc", True, "2024-01-15T10:00:00+00:00", 1],
        ["updated_at", "desc", None, 1],
        ["updated_at", "desc", {}, []],
        {"created_at": 1},
    ],
)
def test_forged_cursor_is_422(desk: Desk, values: Any) -> None:
    desk.create()
    forged = urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
    sort = values[0] if isinstance(values, list) else "created_at"
    for more in ("", "&status=pending", "&created_after=2020-01-01T00:00:00Z"):
        response = desk.get(f"?sort={sort}&cursor={forged}{more}")
        assert (response.status_code, list(response.json["errors"])) == (422, ["cursor"])


# Bounds


@pytest.fixture
def short_sighted(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few jobs are looked at for one page that it ends early."""
    monkeypatch.setattr(job_list_plans, "MAX_SCANNED", 20)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["created_at", "updated_at", "priority", "status"])
@pytest.mark.parametrize("metadata", [None, "few", "many"])
@pytest.mark.usefixtures("short_sighted")
def test_list_that_is_scanned_is_complete_by_cursors(
    desk: Desk,
    many: list[dict[str, Any]],
    sort: str,
    order: str,
    metadata: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if metadata == "many":
        monkeypatch.setattr(job_list_plans, "MAX_COUNTED", 3)
    other = desk.world.member(desk.workspace_id, Role.MEMBER)
    with desk.world.transaction() as tx:
        rows = tx.execute(jobs.select().order_by(jobs.c.id)).all()
        for row in rows[::9]:
            mine = update(jobs).where(jobs.c.id == row.id)
            tx.execute(mine.values(created_by=other.id, metadata={"a": 1}))
    rows = sorted(rows[::9], key=lambda r: (getattr(r, sort), r.id), reverse=order == "desc")
    query = f"created_by={other.id}" if metadata is None else "metadata.a=1"
    for filters in (
        "",
        f"&job_type={TYPES[0]}&job_type={TYPES[1]}",
        "&updated_after=2020-01-01T00:00:00Z",
    ):
        wanted = [
            row.job_id for row in rows if "job_type" not in filters or row.job_type != TYPES[2]
        ]
        assert walk(desk, f"{query}{filters}&sort={sort}&order={order}&limit=2") == wanted


@pytest.mark.usefixtures("short_sighted")
def test_page_that_stops_scanning_has_a_cursor(desk: Desk, many: list[dict[str, Any]]) -> None:
    nobody = desk.world.user()
    page = listed(desk, f"created_by={nobody.id}")
    assert page["data"] == []
    assert (page["pagination"]["total"], page["pagination"]["total_is_capped"]) == (0, True)
    assert page["pagination"]["next_cursor"] is not None
    response = desk.get(f"?created_by={nobody.id}&page=2")
    assert (response.status_code, list(response.json["errors"])) == (422, ["page"])
    assert "next_cursor" in response.json["detail"]


@pytest.mark.parametrize("sort", ["created_at", "updated_at"])
@pytest.mark.usefixtures("short_sighted")
def test_page_that_lies_too_deep_is_422(desk: Desk, many: list[dict[str, Any]], sort: str) -> None:
    response = desk.get(f"?sort={sort}&limit=1&page=30")
    assert (response.status_code, list(response.json["errors"])) == (422, ["page"])
    # From the other end it is near; and past the end there is nothing.
    assert len(listed(desk, f"sort={sort}&limit=1&page=59")["data"]) == 1
    assert listed(desk, f"sort={sort}&limit=1&page=61")["data"] == []


def test_list_by_start_of_too_many_running_jobs_is_422(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_type in ("a", "a", "b"):
        desk.job_in("running", job_type=job_type)
    monkeypatch.setattr(job_list_plans, "MAX_SCANNED", 2)
    for more in ("", "&created_after=2020-01-01T00:00:00Z"):
        query = f"status=running&sort=started_at{more}"
        response = desk.get(f"?{query}")
        assert (response.status_code, list(response.json["errors"])) == (422, ["sort"])
        assert "job type" in response.json["detail"]
        found = walk(desk, f"{query}&job_type=a&limit=1")
        assert len(found) == len(set(found)) == 2


def test_list_of_more_buckets_than_are_merged_is_complete_by_cursors(
    desk: Desk, many: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_list_plans, "MAX_MERGED", 1)
    for sort in ("priority", "status"):
        page = listed(desk, f"sort={sort}&limit=7")
        assert (page["pagination"]["total"], page["pagination"]["total_is_capped"]) == (60, False)
        found = walk(desk, f"sort={sort}&limit=7")
        assert len(found) == len(set(found)) == 60


def large(desk: Desk, n: int) -> list[str]:
    return [
        desk.world.job(desk.workspace_id, desk.user, metadata={"text": "x" * 1_000_000})
        for _ in range(n)
    ]


def test_list_over_eight_mebibytes_ends_early_with_a_cursor(desk: Desk) -> None:
    made = large(desk, 10)
    for query in ("limit=100", "limit=100&sort=priority", f"limit=100&created_by={desk.user.id}"):
        response = desk.get(f"?{query}")
        assert len(response.data) <= MAX_BYTES
        assert len(response.json["data"]) == 8
        assert response.json["pagination"]["page"] == 1
        assert response.json["pagination"]["total"] == 10
        assert walk(desk, query) == made[::-1]
    assert len(listed(desk, "light=true&limit=100")["data"]) == 10


def test_numbered_page_over_eight_mebibytes_is_422(desk: Desk) -> None:
    large(desk, 10)
    response = desk.get("?limit=100&page=1")
    assert response.status_code == 422
    assert response.json["type"].endswith(":page-too-large")
    for remedy in ("limit", "light=true", "next_cursor"):
        assert remedy in response.json["detail"]
    assert len(listed(desk, "limit=5&page=2")["data"]) == 5
    assert legacy(desk, "limit=100&page=1").status_code == 422


def test_list_counts_errors_as_they_are_written(desk: Desk) -> None:
    # A character that takes six bytes as JSON.
    for _ in range(25):
        job = desk.create()
        assert (
            desk.patch(job["job_id"], {"status": "failed", "error": "\x01" * 65_536}).status_code
            == 200
        )
    for query in ("light=true&limit=100", "limit=100"):
        response = desk.get(f"?{query}")
        assert len(response.data) <= MAX_BYTES
        assert 15 < len(response.json["data"]) < 25
        assert len(walk(desk, query)) == 25


@pytest.mark.parametrize("sort", ["priority", "status"])
@pytest.mark.parametrize("by_cursor", [False, True])
def test_list_by_rank_created_since_then_has_every_match(
    desk: Desk, sort: str, by_cursor: bool
) -> None:
    """Old jobs that rank first take no place from the new ones."""
    for _ in range(3):
        old = desk.create(priority="high")
        desk.patch(old["job_id"], {"status": "failed"})
        desk.shift(old, 3600)
    new = [desk.create(priority=priority)["job_id"] for priority in ("normal", "low", "low")]
    start = desk.get(f"/{new[0]}").json["created_at"]
    query = urlencode({"sort": sort, "created_after": start, "limit": 2})
    if by_cursor:
        found = walk(desk, query)
    else:
        found = [job for page in (1, 2) for job in ids(listed(desk, f"{query}&page={page}"))]
    assert sorted(found) == sorted(new)
