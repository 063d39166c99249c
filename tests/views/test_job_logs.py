"""The logs of jobs: append, read, follow, and what becomes of them."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select, update

from jobapi.rules.job_logs import CUT, KEPT_BYTES, KEPT_ENTRIES, MAX_MESSAGE_BYTES
from jobapi.rules.roles import Role
from jobapi.services import job_logs as services
from jobapi.store.tables import job_log_heads, job_logs, jobs

from ..factories import Desk, World

Job = dict[str, Any]


@pytest.fixture
def leased(desk: Desk) -> Job:
    """A job under a lease."""
    desk.create()
    return desk.claim(worker="w")[0]


def entries(*messages: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"message": message, **fields} for message in messages]


def append(desk: Desk, job: Job, *given: Any, token: str | None = None, **kw: Any) -> Any:
    """The answer to entries, which may be texts; with the token of the job's lease, if it has."""
    token = token or job.get("lease_token")
    headers = {} if token is None else {"Lease-Token": token}
    body = {"entries": [{"message": e} if isinstance(e, str) else e for e in given]}
    return desk.post(f"/{job['job_id']}/logs", json=body, headers=headers, **kw)


def read(desk: Desk, job: Job, query: str = "") -> dict[str, Any]:
    response = desk.get(f"/{job['job_id']}/logs{query}")
    assert response.status_code == 200, response.text
    return dict(response.json)


def messages(desk: Desk, job: Job, query: str = "?limit=1000") -> list[str]:
    return [entry["message"] for entry in read(desk, job, query)["data"]]


def leased_only(job: Job) -> Job:
    return {name: job[name] for name in ("job_id", "lease_token")}


def kind(response: Any) -> tuple[int, str]:
    return response.status_code, response.json["type"].rsplit(":", 1)[1]


def rows(desk: Desk) -> tuple[int, int]:
    """How many entries and heads the tables have."""
    with desk.world.transaction() as tx:
        counted = (select(func.count()).select_from(table) for table in (job_logs, job_log_heads))
        entries_, heads = (tx.execute(query).scalar_one() for query in counted)
    return entries_, heads


def test_append_with_the_lease_stores_entries_in_order(desk: Desk, leased: Job) -> None:
    given = [
        {"message": "one"},
        {"message": "two\nlines", "level": "error", "at": "2024-01-15T11:00:00+01:00", "seq": 7},
        {"message": "", "level": None, "at": None, "seq": None},
    ]
    answer = append(desk, leased, *given)
    assert (answer.status_code, answer.json) == (200, {"stored": 3, "repeated": 0, "dropped": 0})
    page = read(desk, leased)
    now = page["data"][0].pop("at")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(now)).total_seconds()) < 30
    assert page["data"] == [
        {"number": 1, "attempt": 1, "level": "info", "message": "one", "seq": None},
        {
            "number": 2,
            "attempt": 1,
            "at": "2024-01-15T10:00:00Z",
            "level": "error",
            "message": "two\nlines",
            "seq": 7,
        },
        {"number": 3, "attempt": 1, "at": now, "level": "info", "message": "", "seq": None},
    ]
    assert page["dropped"] == 0
    assert page["pagination"] == {
        "limit": 100,
        "total": 3,
        "total_is_capped": False,
        "next_cursor": None,
        "tail_cursor": page["pagination"]["tail_cursor"],
    }


def test_log_of_a_job_that_has_logged_nothing_is_empty(desk: Desk) -> None:
    job = desk.create()
    page = read(desk, job)
    assert (page["data"], page["dropped"], page["pagination"]["total"]) == ([], 0, 0)
    cursor = page["pagination"]["tail_cursor"]
    (claimed,) = desk.claim()
    append(desk, claimed, "first")
    assert messages(desk, job, f"?cursor={cursor}") == ["first"]


@pytest.mark.parametrize("where", ["header", "body"])
def test_lease_token_may_be_in_header_or_body(desk: Desk, leased: Job, where: str) -> None:
    body = {"entries": entries("x")}
    headers = {}
    if where == "header":
        headers["Lease-Token"] = leased["lease_token"]
    else:
        body["lease_token"] = leased["lease_token"]
    path = f"/{leased['job_id']}/logs"
    assert desk.post(path, json=body, headers=headers).status_code == 200
    assert messages(desk, leased) == ["x"]


def test_append_is_for_workers_with_the_lease_and_members_without_one(
    world: World, desk: Desk, leased: Job
) -> None:
    path = f"{desk.jobs_path}/{leased['job_id']}/logs"
    free = desk.job_in("running")
    body = {"entries": entries("x")}
    headers = {"Lease-Token": leased["lease_token"]}
    for role, with_lease, without in (
        (Role.VIEWER, 403, 403),
        (Role.WORKER, 200, 403),
        (Role.MEMBER, 200, 200),
    ):
        token = world.token(world.member(desk.workspace_id, role))
        other = f"{desk.jobs_path}/{free['job_id']}/logs"
        assert world.call("POST", path, token, json=body, headers=headers).status_code == with_lease
        assert world.call("POST", other, token, json=body).status_code == without
        assert world.call("GET", path, token).status_code == 200
    assert len(messages(desk, leased)) == 2
    assert len(messages(desk, free)) == 1


def test_append_is_fenced_like_a_report(desk: Desk, leased: Job) -> None:
    assert kind(append(desk, {"job_id": leased["job_id"]}, "x")) == (409, "lease-required")
    assert kind(append(desk, leased, "x", token="0" * 32)) == (409, "lease-lost")
    desk.report(leased, status="failed", error="e", retry_after=0)
    assert kind(append(desk, leased, "x")) == (409, "job-not-running")
    (again,) = desk.claim()
    assert kind(append(desk, leased, "x", token=leased["lease_token"])) == (409, "lease-lost")
    assert append(desk, again, "y").status_code == 200
    assert messages(desk, leased) == ["y"]


@pytest.mark.parametrize("status", ["pending", "success", "failed", "cancelled"])
def test_append_to_a_job_that_does_not_run_is_refused(desk: Desk, status: str) -> None:
    job = desk.job_in(status)
    assert kind(append(desk, job, "x")) == (409, "job-not-running")
    assert kind(append(desk, job, "x", token="0" * 32)) == (409, "job-not-running")
    assert rows(desk) == (0, 0)


def test_append_with_a_wrong_token_to_a_job_without_a_lease_is_refused(desk: Desk) -> None:
    job = desk.job_in("running")
    assert kind(append(desk, job, "x", token="0" * 32)) == (409, "lease-lost")


def test_append_with_the_lease_renews_it_and_begins_the_attempt(desk: Desk) -> None:
    desk.create()
    (job,) = desk.claim(begin=False, lease_seconds=60)
    desk.shift(job, 50)
    assert append(desk, job, "x").status_code == 200
    assert desk.reap() == 0
    desk.shift(job, 3600)
    assert desk.reap() == 1
    # A retry is counted: the attempt had begun.
    assert desk.get(f"/{job['job_id']}").json["retry_count"] == 1


WRONG: list[tuple[Any, str]] = [
    ({}, "entries"),
    ({"entries": []}, "entries"),
    ({"entries": [{"message": "x"}] * 501}, "entries"),
    ({"entries": [{}]}, "entries.0.message"),
    ({"entries": [{"message": None}]}, "entries.0.message"),
    ({"entries": [{"message": 5}]}, "entries.0.message"),
    ({"entries": [{"message": "x", "level": "critical"}]}, "entries.0.level"),
    ({"entries": [{"message": "x", "level": 2}]}, "entries.0.level"),
    ({"entries": [{"message": "x", "at": "2024-01-15T10:00:00"}]}, "entries.0.at"),
    ({"entries": [{"message": "x", "at": "9999-12-31T23:59:59-12:00"}]}, "entries.0.at"),
    ({"entries": [{"message": "x", "seq": -1}]}, "entries.0.seq"),
    ({"entries": [{"message": "x", "seq": 1.5}]}, "entries.0.seq"),
    ({"entries": [{"message": "x", "seq": 2**53}]}, "entries.0.seq"),
    ({"entries": [{"message": "x", "more": 1}]}, "entries.0.more"),
    ({"entries": ["x"]}, "entries.0"),
    ({"entries": {"message": "x"}}, "entries"),
    ({"entries": [{"message": "x"}], "more": 1}, "more"),
]


@pytest.mark.parametrize(("body", "field"), WRONG, ids=lambda value: str(value)[:60])
def test_append_of_what_is_not_valid_is_refused(
    desk: Desk, leased: Job, body: Any, field: str
) -> None:
    headers = {"Lease-Token": leased["lease_token"]}
    answer = desk.post(f"/{leased['job_id']}/logs", json=body, headers=headers)
    assert answer.status_code == 422
    assert field in answer.json["errors"], answer.json
    assert rows(desk) == (0, 0)


def test_characters_that_no_database_stores_are_replaced(desk: Desk, leased: Job) -> None:
    text = r'{"entries": [{"message": "a\u0000b\ud800c\udc00\ud83d\ude00"}, {"message": "\u00e9"}]}'
    headers = {"Lease-Token": leased["lease_token"], "Content-Type": "application/json"}
    answer = desk.post(f"/{leased['job_id']}/logs", data=text, headers=headers)
    assert answer.status_code == 200
    assert messages(desk, leased) == ["a\ufffdb\ufffdc\ufffd😀", "é"]


@pytest.mark.parametrize("text", [r'{"entries": [{"message": "x"}], "\u0000": 1}', '{"entries": ['])
def test_characters_elsewhere_are_refused(desk: Desk, leased: Job, text: str) -> None:
    headers = {"Lease-Token": leased["lease_token"], "Content-Type": "application/json"}
    answer = desk.post(f"/{leased['job_id']}/logs", data=text, headers=headers)
    assert answer.status_code == 400


def test_characters_in_the_logs_of_reports_are_replaced(desk: Desk, leased: Job) -> None:
    job = leased_only(leased)
    wrong = {"job_id": "job_x", "lease_token": "x", "error": "\0"}
    for n, others in enumerate(([], [wrong])):
        reports = [{**job, "logs": entries(f"{n}\0\ud800")}, *others]
        answer = desk.post(
            "/report",
            data=json.dumps({"reports": reports}),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 200
        assert answer.json["data"][0]["accepted"]
    assert messages(desk, leased) == ["0\ufffd\ufffd", "1\ufffd\ufffd"]


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
def test_long_message_is_cut_at_a_character(desk: Desk, leased: Job, character: str) -> None:
    size = len(character.encode())
    fits = character * (MAX_MESSAGE_BYTES // size)
    append(desk, leased, fits, fits + character, "xyz" + fits)
    kept, *cut = messages(desk, leased)
    assert kept == fits
    for message in cut:
        assert message.endswith(CUT)
        start = message.removesuffix(CUT)
        assert ("xyz" + fits).startswith(start) or fits.startswith(start)
        assert MAX_MESSAGE_BYTES - 4 < len(message.encode()) <= MAX_MESSAGE_BYTES


def test_entries_with_a_seq_are_stored_once_per_attempt(desk: Desk, leased: Job) -> None:
    def seqs(*numbers: int | None) -> list[dict[str, Any]]:
        return [{"message": f"m{n}", "seq": n} for n in numbers]

    assert append(desk, leased, *seqs(1, 2)).json["stored"] == 2
    answer = append(desk, leased, *seqs(1, 2, 3, 3, None, 2, 5)).json
    assert (answer["stored"], answer["repeated"]) == (3, 4)
    assert append(desk, leased, *seqs(4, 5)).json["stored"] == 0
    desk.report(leased, logs=seqs(5, 6))
    assert messages(desk, leased) == ["m1", "m2", "m3", "mNone", "m5", "m6"]
    desk.report(leased, status="pending")
    (again,) = desk.claim()
    assert append(desk, again, *seqs(1)).json["stored"] == 1
    assert messages(desk, leased, "?attempt=2") == ["m1"]
    assert messages(desk, leased, "?attempt=3") == []


def test_more_than_is_kept_drops_the_oldest_entries(desk: Desk, leased: Job) -> None:
    for start in range(0, KEPT_ENTRIES, 500):
        append(desk, leased, *(f"m{n}" for n in range(start, start + 500)))
    page = read(desk, leased, "?limit=1")
    assert (page["dropped"], page["pagination"]["total"]) == (0, KEPT_ENTRIES)
    assert append(desk, leased, *"abc").json == {"stored": 3, "repeated": 0, "dropped": 3}
    page = read(desk, leased, "?limit=2")
    assert (page["dropped"], page["pagination"]["total"]) == (3, KEPT_ENTRIES)
    assert [(entry["number"], entry["message"]) for entry in page["data"]] == [(4, "m3"), (5, "m4")]
    assert messages(desk, leased, "?order=desc&limit=2") == ["c", "b"]
    assert rows(desk) == (KEPT_ENTRIES, 1)


def test_more_bytes_than_are_kept_drop_the_oldest_entries(desk: Desk, leased: Job) -> None:
    large = "x" * MAX_MESSAGE_BYTES
    full = KEPT_BYTES // MAX_MESSAGE_BYTES
    append(desk, leased, "first", "second")
    for start in range(0, full, 100):
        append(desk, leased, *[large] * min(100, full - start))
    page = read(desk, leased, "?limit=1")
    assert (page["dropped"], page["pagination"]["total"]) == (2, full)
    append(desk, leased, "a")
    page = read(desk, leased, "?limit=1")
    assert (page["dropped"], page["pagination"]["total"]) == (3, full)
    append(desk, leased, large, large)
    page = read(desk, leased, "?limit=1")
    assert page["dropped"] == 5
    with desk.world.transaction() as tx:
        size = tx.execute(select(func.sum(job_logs.c.size))).scalar_one()
        head = tx.execute(select(job_log_heads)).one()
    assert size == head.bytes <= KEPT_BYTES
    assert rows(desk)[0] == head.last - head.first + 1


def test_addition_that_is_larger_than_what_is_kept_keeps_its_end(desk: Desk, leased: Job) -> None:
    append(desk, leased, "before")
    with desk.world.transaction() as tx:
        head = tx.execute(select(job_log_heads)).one()
        now = datetime.now(UTC)
        small = [{"message": f"{n}"} for n in range(KEPT_ENTRIES + 5)]
        large = [{"message": "x" * MAX_MESSAGE_BYTES}] * 600
        add = services.Addition(head.job, 1, small, now)
        found = services.append(tx, desk.workspace_id, [add])
        assert found == [services.Appended(KEPT_ENTRIES + 5, 0, 6, 6)]
        add = services.Addition(head.job, 1, large, now)
        services.append(tx, desk.workspace_id, [add, add])
    assert rows(desk)[0] == KEPT_BYTES // MAX_MESSAGE_BYTES
    assert read(desk, leased)["dropped"] == 1 + KEPT_ENTRIES + 5 + 1200 - 512


def test_report_stores_its_logs_if_it_is_accepted(desk: Desk, leased: Job) -> None:
    assert desk.report(leased, progress_percent=5, logs=entries("a"))["accepted"]
    assert desk.report(leased, logs=[])["accepted"]
    refused = desk.report({**leased, "lease_token": "0" * 32}, logs=entries("not mine"))
    assert refused["problem"]["type"].endswith("lease-lost")
    for wrong in (
        {"logs": entries("x", level="loud")},
        {"logs": entries("x"), "progress_percent": 101},
        {"logs": entries(*["x"] * 501)},
        {"logs": "x"},
    ):
        answer = desk.report(leased, **wrong)
        assert not answer["accepted"]
        assert answer["lease_expires_at"] is not None
    end = {"status": "success", "result": {"n": 1}, "logs": entries("end", level="warning")}
    assert desk.report(leased, **end)["accepted"]
    assert desk.report(leased, **end)["accepted"]
    assert messages(desk, leased) == ["a", "end"]


@pytest.mark.parametrize("status", ["failed", "pending"])
def test_repeated_final_report_adds_no_logs(desk: Desk, leased: Job, status: str) -> None:
    for _ in range(2):
        assert desk.report(leased, status=status, logs=entries("end"))["accepted"]
    assert messages(desk, leased) == ["end"]


def test_reports_of_several_jobs_store_each_its_logs(desk: Desk) -> None:
    for _ in range(3):
        desk.create()
    claimed = desk.claim(limit=3)
    reports = [
        {
            "job_id": job["job_id"],
            "lease_token": job["lease_token"],
            "logs": entries(f"{n}.{m}"),
            **more,
        }
        for m, more in enumerate(({}, {"status": "success"}))
        for n, job in enumerate(claimed)
    ]
    answers = desk.post("/report", json={"reports": reports}).json["data"]
    assert all(answer["accepted"] for answer in answers)
    for n, job in enumerate(claimed):
        assert messages(desk, job) == [f"{n}.0", f"{n}.1"]


def test_report_with_logs_begins_the_attempt(desk: Desk) -> None:
    desk.create()
    (job,) = desk.claim(begin=False, lease_seconds=60)
    desk.report(job, logs=[])
    desk.report(job, logs=entries("x"))
    desk.shift(job, 3600)
    assert desk.reap() == 1
    assert desk.get(f"/{job['job_id']}").json["retry_count"] == 1


def test_report_without_logs_reads_and_writes_no_log(desk: Desk, sent: list[str]) -> None:
    for _ in range(3):
        desk.create()
    job, failing, released = desk.claim(limit=3)
    desk.report(job, progress_percent=50)
    desk.report(job, status="success")
    desk.report(failing, status="failed", error="e")
    desk.report(released, status="pending")
    assert not [sql for sql in sent if "job_log" in sql]


def test_levels_and_attempts_filter(desk: Desk, leased: Job) -> None:
    levels = ["debug", "info", "warning", "error"]
    append(desk, leased, *({"message": level, "level": level} for level in levels))
    desk.report(leased, status="failed", retry_after=0)
    (again,) = desk.claim()
    append(desk, again, *({"message": f"{level} 2", "level": level} for level in levels))
    for n, level in enumerate(levels):
        page = read(desk, leased, f"?level={level}")
        assert [entry["level"] for entry in page["data"]] == levels[n:] * 2
        assert page["pagination"]["total"] == 2 * len(levels[n:])
    assert messages(desk, leased, "?level=error&attempt=2") == ["error 2"]
    assert messages(desk, leased, "?attempt=1") == levels


@pytest.mark.parametrize(
    "query",
    [
        *("level=loud", "level=info&level=error", "attempt=0", "attempt=x", "limit=0"),
        *("limit=1001", "order=up", "cursor=x", "cursor=", "page=1", "since=1"),
    ],
)
def test_wrong_query_is_refused_and_named(desk: Desk, leased: Job, query: str) -> None:
    for headers in ({}, {"Accept": "text/plain"}):
        answer = desk.get(f"/{leased['job_id']}/logs?{query}", headers=headers)
        assert answer.status_code == 422
        assert query.partition("=")[0] in answer.json["errors"]


@pytest.mark.parametrize("cursor", [[-1], ["1"], [1, 2], [True], [2**63], 5, [1.5]])
def test_cursor_that_was_not_given_out_is_refused(desk: Desk, leased: Job, cursor: Any) -> None:
    append(desk, leased, "x")
    text = services.write_cursor(cursor)
    assert desk.get(f"/{leased['job_id']}/logs?cursor={text}").status_code == 422


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_have_each_entry_once(desk: Desk, leased: Job, order: str) -> None:
    append(desk, leased, *(f"m{n}" for n in range(7)))
    cursor, seen = "", []
    while cursor is not None:
        page = read(desk, leased, f"?limit=3&order={order}{cursor and f'&cursor={cursor}'}")
        assert page["pagination"]["total"] == 7
        seen += [entry["number"] for entry in page["data"]]
        cursor = page["pagination"]["next_cursor"]
    numbers = list(range(1, 8))
    assert seen == (numbers if order == "asc" else numbers[::-1])


def test_tail_cursor_continues_after_the_last_entry(desk: Desk, leased: Job) -> None:
    append(desk, leased, *"abc")
    ascending = read(desk, leased, "?limit=2")["pagination"]
    assert ascending["tail_cursor"] == ascending["next_cursor"]
    # The newest page, then what comes after it, also past what a filter hides.
    newest = read(desk, leased, "?limit=2&order=desc")["pagination"]
    cursor = newest["tail_cursor"]
    for query in ("", "&level=error"):
        assert messages(desk, leased, f"?cursor={cursor}{query}") == []
    append(desk, leased, "d", {"message": "e", "level": "error"}, "f")
    assert messages(desk, leased, f"?cursor={cursor}") == ["d", "e", "f"]
    page = read(desk, leased, f"?cursor={cursor}&level=error")
    assert [entry["message"] for entry in page["data"]] == ["e"]
    append(desk, leased, "g")
    tail = page["pagination"]["tail_cursor"]
    assert messages(desk, leased, f"?cursor={tail}") == ["g"]


def test_follow_continues_after_entries_that_were_dropped(desk: Desk, leased: Job) -> None:
    append(desk, leased, "a")
    cursor = read(desk, leased)["pagination"]["tail_cursor"]
    for start in range(0, KEPT_ENTRIES + 500, 500):
        append(desk, leased, *(f"m{n}" for n in range(start, start + 500)))
    page = read(desk, leased, f"?cursor={cursor}&limit=1")
    assert page["data"][0]["message"] == "m500"
    assert page["dropped"] == 501


def test_page_of_large_entries_ends_at_its_limit_of_bytes(desk: Desk, leased: Job) -> None:
    # As JSON, each of these characters has six bytes.
    large = "\x1b" * MAX_MESSAGE_BYTES
    for _ in range(12):
        assert append(desk, leased, *[large] * 20).status_code == 200
    seen, cursor = 0, ""
    while cursor is not None:
        response = desk.get(f"/{leased['job_id']}/logs?limit=1000{cursor and f'&cursor={cursor}'}")
        assert len(response.data) < 9 * 1024 * 1024
        seen += len(response.json["data"])
        cursor = response.json["pagination"]["next_cursor"]
    assert seen == 240


def test_log_as_plain_text_has_a_line_for_each_entry(desk: Desk, leased: Job) -> None:
    at = "2024-01-15T10:00:00Z"
    texts = ["\x1b[31mred\x1b[0m <b>", "two\nlines\r\nthree\rfour\u2028five", "", "end\n"]
    append(desk, leased, *({"message": text, "at": at, "level": "warning"} for text in texts))
    response = desk.get(f"/{leased['job_id']}/logs", headers={"Accept": "text/plain"})
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Accept" in response.headers["Vary"]
    assert response.text == (
        f"{at} warning \x1b[31mred\x1b[0m <b>\n"
        f"{at} warning two\n    lines\n    three\n    four\n    five\n"
        f"{at} warning \n"
        f"{at} warning end\n"
    )
    assert "Link" not in response.headers


@pytest.mark.parametrize(
    ("accept", "is_text"),
    [
        *(("text/plain", True), ("text/plain, */*;q=0.1", True), ("text/*", True)),
        *(("*/*", False), ("application/json", False), ("", False), ("image/png", False)),
        ("text/plain;q=0.5, application/json", False),
    ],
)
def test_form_of_the_log_is_negotiated(desk: Desk, leased: Job, accept: str, is_text: bool) -> None:
    append(desk, leased, "x")
    response = desk.get(f"/{leased['job_id']}/logs", headers={"Accept": accept})
    assert (response.mimetype == "text/plain") is is_text


def test_plain_text_has_all_entries_unless_it_is_limited(desk: Desk, leased: Job) -> None:
    for _ in range(3):
        append(desk, leased, *"x" * 500)
    path = f"/{leased['job_id']}/logs"
    plain = {"Accept": "text/plain"}
    assert len(desk.get(path, headers=plain).text.splitlines()) == 1500
    first = desk.get(f"{path}?limit=1000&level=info", headers=plain)
    link = first.headers["Link"]
    assert link.endswith('>; rel="next"')
    rest = desk.get(path + link[1 : link.index(">")], headers=plain)
    assert [len(page.text.splitlines()) for page in (first, rest)] == [1000, 500]
    assert "Link" not in rest.headers


def test_plain_text_of_many_lines_ends_at_its_limit_of_bytes(desk: Desk, leased: Job) -> None:
    # Indentation makes five bytes of each of these.
    for _ in range(6):
        append(desk, leased, *["\n" * 8000] * 60)
    path, n = f"/{leased['job_id']}/logs", 0
    link = "<>"
    while link:
        page = desk.get(path + link[1 : link.index(">")], headers={"Accept": "text/plain"})
        assert len(page.data) <= 8 * 1024 * 1024
        n += page.text.count(" info")
        link = page.headers.get("Link", "")
    assert n == 360


def test_key_bound_to_job_types_sees_and_appends_only_to_its_own(world: World, desk: Desk) -> None:
    desk.create(job_type="a")
    desk.create(job_type="b")
    key = world.key(desk.workspace_id, desk.user, Role.MEMBER, job_types=["a"])
    claimed = {job["job_type"]: job for job in desk.claim(limit=2)}
    for job_type, status in (("a", 200), ("b", 404)):
        job = claimed[job_type]
        path = f"{desk.jobs_path}/{job['job_id']}/logs"
        headers = {"Lease-Token": job["lease_token"]}
        body = {"entries": entries("x")}
        assert world.call("POST", path, key, json=body, headers=headers).status_code == status
        assert world.call("GET", path, key).status_code == status
    reports = [
        {"job_id": job["job_id"], "lease_token": job["lease_token"], "logs": entries("y")}
        for job in claimed.values()
    ]
    world.call("POST", f"{desk.jobs_path}/report", key, json={"reports": reports})
    assert messages(desk, claimed["a"]) == ["x", "y"]
    assert messages(desk, claimed["b"]) == []


def test_log_of_another_workspace_is_unknown(world: World, desk: Desk, leased: Job) -> None:
    append(desk, leased, "x")
    other = Desk(world)
    path = f"{other.jobs_path}/{leased['job_id']}/logs"
    assert other.call("GET", path).status_code == 404
    assert other.call("POST", path, json={"entries": entries("x")}).status_code == 404
    assert (
        world.call("GET", f"{desk.jobs_path}/{leased['job_id']}/logs", other.token).json["status"]
        == 403
    )


def test_retry_keeps_the_logs_of_earlier_attempts(desk: Desk, leased: Job) -> None:
    desk.report(leased, status="failed", retryable=False, logs=entries("first"))
    desk.post(f"/{leased['job_id']}/retry")
    (again,) = desk.claim()
    append(desk, again, "second")
    assert [(entry["attempt"], entry["message"]) for entry in read(desk, leased)["data"]] == [
        (1, "first"),
        (2, "second"),
    ]


def logged_and_ended(desk: Desk, n: int = 3) -> Job:
    """A job that has ended, with ``n`` entries."""
    desk.create(job_type="x")
    (job,) = desk.claim(job_types=["x"])
    desk.report(job, status="success", logs=entries(*["x"] * n))
    return job


def delete_job(desk: Desk, job: Job) -> None:
    assert desk.call("DELETE", f"{desk.jobs_path}/{job['job_id']}").status_code == 204


def delete_by_operation(desk: Desk, job: Job) -> None:
    body = {"action": "delete", "filter": {"job_id": [job["job_id"]]}}
    path = f"/workspace/{desk.workspace_id}/operations"
    assert desk.call("POST", path, json=body).json["changed"] == 1


def delete_by_retention(desk: Desk, job: Job) -> None:
    path = f"/workspace/{desk.workspace_id}"
    assert desk.call("PATCH", path, json={"retention": {"success": 1}}).status_code == 200
    with desk.world.transaction() as tx:
        mine = jobs.c.job_id == job["job_id"]
        tx.execute(update(jobs).where(mine).values(updated_at=datetime(2024, 1, 1, tzinfo=UTC)))
    desk.world.maintain("old jobs")


@pytest.mark.parametrize("delete", [delete_job, delete_by_operation, delete_by_retention])
def test_log_goes_with_its_job(desk: Desk, leased: Job, delete: Any) -> None:
    append(desk, leased, "stays")
    job = logged_and_ended(desk)
    assert rows(desk) == (4, 2)
    delete(desk, job)
    assert desk.get(f"/{job['job_id']}/logs").status_code == 404
    desk.world.maintain("logs of deleted jobs")
    assert rows(desk) == (1, 1)
    assert messages(desk, leased) == ["stays"]


def test_logs_of_deleted_jobs_are_deleted_in_steps(desk: Desk) -> None:
    ended = [logged_and_ended(desk, 7) for _ in range(3)]
    for job in ended:
        delete_job(desk, job)
    left = []
    while True:
        with desk.world.transaction() as tx:
            more = services.delete_of_deleted_jobs(tx, most=5)
        if not more:
            break
        left.append(rows(desk)[0])
    assert left == [16, 11, 6, 1, 0]
    assert rows(desk) == (0, 0)


def test_logs_go_with_their_workspace(desk: Desk, leased: Job) -> None:
    append(desk, leased, *["x"] * 500)
    append(desk, leased, *["x"] * 500)
    logged_and_ended(desk)
    other = Desk(desk.world)
    other.create()
    (kept,) = other.claim()
    append(other, kept, "stays")
    assert desk.call("DELETE", f"/workspace/{desk.workspace_id}").status_code == 204
    desk.world.maintain("deleted workspaces")
    assert rows(desk) == (1, 1)
    assert messages(other, kept) == ["stays"]


def test_two_writers_of_one_log_lose_and_repeat_nothing(desk: Desk, leased: Job) -> None:
    start = threading.Barrier(2)

    def write(name: str) -> None:
        client = desk.world.app.test_client()
        start.wait()
        for n in range(30):
            answer = client.post(
                f"{desk.jobs_path}/{leased['job_id']}/logs",
                json={"entries": entries(*(f"{name} {n} {m}" for m in range(5)))},
                headers={
                    "Authorization": f"Bearer {desk.token}",
                    "Lease-Token": leased["lease_token"],
                },
            )
            assert answer.status_code == 200, answer.text

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    page = read(desk, leased, "?limit=1000")["data"]
    assert [entry["number"] for entry in page] == list(range(1, 301))
    for name in "ab":
        own = [entry["message"] for entry in page if entry["message"].startswith(name)]
        assert own == [f"{name} {n} {m}" for n in range(30) for m in range(5)]


def test_append_that_fails_stores_nothing(desk: Desk, leased: Job, sent: Any) -> None:
    append(desk, leased, "a")
    sent.refuse = lambda sql: "INSERT INTO jobapi_job_log_heads" in sql
    assert append(desk, leased, "b").status_code == 500
    report = {**leased_only(leased), "status": "success", "logs": entries("c")}
    assert desk.post("/report", json={"reports": [report]}).status_code == 500
    sent.refuse = lambda sql: False
    assert messages(desk, leased) == ["a"]
    assert desk.get(f"/{leased['job_id']}").json["status"] == "running"


def test_entries_are_counted(desk: Desk, leased: Job) -> None:
    def counted(name: str) -> float:
        text = desk.world.state.metrics.text(None).decode()
        label = f'{name}{{workspace="{desk.workspace_id}"}} '
        return sum(
            float(line.removeprefix(label)) for line in text.splitlines() if line.startswith(label)
        )

    names = ("jobapi_log_entries_total", "jobapi_trimmed_log_entries_total")
    before = [counted(name) for name in names]
    for _ in range(20):
        append(desk, leased, *"x" * 500)
    append(desk, leased, "a", "b")
    desk.report(leased, logs=entries("c"))
    assert [counted(name) for name in names] == [before[0] + 10_003, before[1] + 3]
