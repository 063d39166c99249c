"""Metrics for Prometheus: ``/metrics``."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import prometheus_client
import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, update

from jobapi import create_app, jobs
from jobapi.config import ConfigError
from jobapi.services import stats
from jobapi.store import tables

from ..conftest import METRICS_TOKEN, SECRET
from ..factories import PASSWORD, Desk, World, until
from ..host import HTML_404, PREFIX, Host
from ..served import Service, environment

Samples = Counter[str]


def parse(text: str) -> Samples:
    """Each sample as it is written, ``name{label="value"}``, with its value."""
    samples: Samples = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = int(sample.value)
    return samples


def read(world: World, path: str = "/metrics") -> Samples:
    response = world.call("GET", path, METRICS_TOKEN)
    assert response.status_code == 200, response.text
    return parse(response.text)


class Since:
    """The change of metrics since a moment, because all tests share the same application."""

    def __init__(self, world: World) -> None:
        self.world, self.before = world, read(world)

    def now(self) -> Samples:
        now = read(self.world)
        return Counter({name: n - self.before[name] for name, n in now.items()})


# Who may read it


def test_metrics_are_an_unknown_path_where_there_is_no_token(
    service_url: str, make_app: Any
) -> None:
    world = World(make_app(service_url, migrate=False))
    for method in ("GET", "POST"):
        for token in (None, METRICS_TOKEN):
            there, nowhere = (world.call(method, path, token) for path in ("/metrics", "/nowhere"))
            assert there.status_code == nowhere.status_code == 404
            assert there.text == nowhere.text.replace("/nowhere", "/metrics")
    assert world.state.metrics is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        f"Basic {METRICS_TOKEN}",
        f"Bearer {METRICS_TOKEN}x",
        f"Bearer {METRICS_TOKEN[:-1]}",
        "Bearer \xff\xff",
    ],
)
def test_metrics_want_their_token(app: Flask, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = app.test_client().get("/metrics", headers=headers)
    assert response.status_code == 401
    assert response.mimetype == "application/problem+json"
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert METRICS_TOKEN not in response.text


def test_metrics_are_uncacheable_text(world: World) -> None:
    response = world.call("GET", "/metrics", METRICS_TOKEN)
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert "_created" not in response.text


def test_short_token_is_refused_at_start_and_not_shown(tmp_path: Path) -> None:
    settings = {"JOBAPI_SECRET_KEY": SECRET, "JOBAPI_METRICS_TOKEN": "fifteen letters"}
    with pytest.raises(ConfigError, match="at least 16 characters") as refused:
        create_app(settings)
    assert "fifteen" not in str(refused.value)


def test_start_with_a_missing_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "nowhere"))
    settings = {"JOBAPI_SECRET_KEY": SECRET, "JOBAPI_METRICS_TOKEN": METRICS_TOKEN}
    with pytest.raises(ConfigError, match="PROMETHEUS_MULTIPROC_DIR must be an existing directory"):
        create_app(settings)


def test_processes_that_would_answer_for_themselves_do_not_answer(world: World) -> None:
    several = {"wsgi.multiprocess": True}
    response = world.call("GET", "/metrics", METRICS_TOKEN, environ_overrides=several)
    assert response.status_code == 503
    assert "PROMETHEUS_MULTIPROC_DIR" in response.json["detail"]


OFF = """
import sys
from jobapi import create_app
app = create_app({"JOBAPI_SECRET_KEY": "x" * 32, "JOBAPI_INSTANCE_PATH": sys.argv[1]})
assert app.test_client().get("/health/live").status_code == 200
assert app.extensions["jobapi"].engine.connect().closed is False
print("prometheus_client" in sys.modules)
"""


def test_nothing_is_imported_where_nothing_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OFF, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# What the database knows


def test_jobs_are_counted_by_workspace_and_status(world: World, desk: Desk) -> None:
    other, gone = Desk(world), Desk(world)
    for status in ("pending", "pending", "running", "success", "failed", "cancelled"):
        desk.job_in(status)
    gone.create()
    assert gone.call("DELETE", f"/workspace/{gone.workspace_id}").status_code == 204
    expected = {"pending": 2, "running": 1, "success": 1, "failed": 1, "cancelled": 1}
    for _ in range(2):
        found = read(world)
        for status, n in expected.items():
            sample = 'jobapi_jobs{{status="{}",workspace="{}"}}'
            assert found[sample.format(status, desk.workspace_id)] == n
            assert found[sample.format(status, other.workspace_id)] == 0
            assert sample.format(status, other.workspace_id) in found
            assert sample.format(status, gone.workspace_id) not in found
        world.maintain("counts")
    assert found["jobapi_database_up"] == 1


def test_oldest_pending_is_the_one_that_has_been_due_the_longest(world: World, desk: Desk) -> None:
    other = Desk(world)
    desk.create(scheduled_at="2100-01-01T00:00:00Z")
    low, urgent = desk.create(priority="low"), desk.create(priority="urgent")
    desk.shift(low, 500)
    desk.shift(urgent, 100)
    desk.shift(desk.job_in("running"), 900)
    found = read(world)
    assert 500 <= found[f'jobapi_oldest_pending_seconds{{workspace="{desk.workspace_id}"}}'] < 510
    assert found[f'jobapi_oldest_pending_seconds{{workspace="{other.workspace_id}"}}'] == 0


def by_type(found: Samples, name: str, desk: Desk) -> dict[str, int]:
    form = re.compile(rf'{name}{{job_type="(.*)",workspace="{desk.workspace_id}"}}')
    matches = ((form.fullmatch(sample), n) for sample, n in found.items())
    return {match[1]: n for match, n in matches if match}


def test_due_and_running_jobs_are_counted_by_type(world: World, desk: Desk) -> None:
    other, gone = Desk(world), Desk(world)
    for each in (other, gone):
        each.create(job_type="a")
    assert gone.call("DELETE", f"/workspace/{gone.workspace_id}").status_code == 204
    for _ in range(3):
        desk.create(job_type="a", priority="high")
    desk.create(job_type="a", scheduled_at="2100-01-01T00:00:00Z")
    desk.job_in("running", job_type="b.c")
    desk.job_in("success", job_type="d")
    for _ in range(2):
        found = read(world)
        assert by_type(found, "jobapi_due_jobs", desk) == {"a": 3, "b.c": 0, "d": 0}
        assert by_type(found, "jobapi_running_jobs", desk) == {"a": 0, "b.c": 1, "d": 0}
        assert by_type(found, "jobapi_due_jobs", other) == {"a": 1}
        assert by_type(found, "jobapi_due_jobs", gone) == {}
        assert found["jobapi_omitted_job_types"] == 0
        world.maintain("counts")


def test_ticks_of_schedules_are_counted_and_overdue_ones_are_timed(
    world: World, desk: Desk
) -> None:
    path = f"/workspace/{desk.workspace_id}/schedules"
    body = {"name": "s", "cron": "* * * * *", "job": {"job_type": "a"}}
    assert desk.call("POST", path, json=body).status_code == 201
    created = 'jobapi_schedule_ticks_total{outcome="created"}'
    before = read(world)
    assert before["jobapi_schedule_overdue_seconds"] == 0
    due = datetime.now(UTC) - timedelta(seconds=60)
    with world.transaction() as tx:
        tx.execute(update(tables.schedules).values(next_run_at=due, due_at=due))
    assert 60 <= read(world)["jobapi_schedule_overdue_seconds"] < 120
    world.maintain("schedules")
    after = read(world)
    assert after["jobapi_schedule_overdue_seconds"] == 0
    assert after[created] == before.get(created, 0) + 1


def test_job_types_are_bounded_by_workspace_and_by_scrape(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "TYPES_PER_WORKSPACE", 3)
    monkeypatch.setattr(stats, "TYPES_AT_ONCE", 5)
    desks = [desk, Desk(world), Desk(world)]
    for each in desks:
        batch = [{"job_type": f"t{n}"} for n in range(4) for _ in range(n + 1)]
        assert each.post("/batch", json={"jobs": batch}).status_code == 201
    found = read(world)
    shown = [by_type(found, "jobapi_due_jobs", each) for each in desks]
    assert shown == [{"t3": 4, "t2": 3}, {"t3": 4, "t2": 3}, {"t3": 4}]
    assert found["jobapi_omitted_job_types"] == 12 - 5


# On SQLite, a query for each of many rows is a statement for each, which costs no round trip.
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_number_of_statements_is_the_same_for_any_number_of_workspaces(world: World) -> None:
    asked: list[str] = []
    with_events = world.state.engine
    event.listen(with_events, "before_cursor_execute", lambda *args: asked.append(args[2]))
    counted = []
    for _ in range(2):
        for _ in range(3):
            Desk(world).create()
        asked.clear()
        read(world)
        counted.append(len(asked))
    assert counted[0] == counted[1] < 15
    assert not any("count(" in statement for statement in asked)


def test_metrics_of_the_processes_are_there_when_the_database_is_away(
    make_app: Any, tmp_path: Path
) -> None:
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    world = World(make_app(url, migrate=False, JOBAPI_METRICS_TOKEN=METRICS_TOKEN))
    found = read(world)
    assert found["jobapi_database_up"] == 0
    assert not any(name.startswith("jobapi_jobs") for name in found)
    assert found["jobapi_waiting_claims"] == 0


# What is measured


def test_requests_are_counted_by_route_not_by_path(world: World, desk: Desk) -> None:
    since = Since(world)
    ids = [desk.create()["job_id"] for _ in range(3)]
    for job_id in ids:
        desk.get(f"/{job_id}")
    desk.get("/job_unknown")
    for path in ("/nowhere", "/else/where"):
        world.call("GET", path)
    world.call("BREW", "/docs")
    world.call("PATCH", "/docs")
    found = since.now()
    one = "/workspace/<workspace_id>/jobs/<job_id>"
    count = 'jobapi_http_requests_total{{method="{}",route="{}",status="{}"}}'
    assert found[count.format("POST", "/workspace/<workspace_id>/jobs", 201)] == 3
    assert found[count.format("GET", one, 200)] == 3
    assert found[count.format("GET", one, 404)] == 1
    assert found[count.format("GET", "unknown", 404)] == 2
    assert found[count.format("other", "unknown", 405)] == 1
    assert found[count.format("PATCH", "unknown", 405)] == 1
    assert found[f'jobapi_http_request_seconds_count{{method="GET",route="{one}"}}'] == 4
    assert found[f'jobapi_http_request_seconds_bucket{{le="+Inf",method="GET",route="{one}"}}'] == 4
    for path in (*ids, "nowhere", "BREW"):
        assert not any(path in name for name in found)


def test_claims_are_counted_with_how_long_their_jobs_were_due(world: World, desk: Desk) -> None:
    since = Since(world)
    for _ in range(2):
        desk.shift(desk.create(), 200)
    desk.create()
    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        assert len(desk.post("/claim", json={"limit": 5}, headers=key).json["data"]) == 3
    assert desk.claim() == []
    found = since.now()
    assert found[f'jobapi_claimed_jobs_total{{workspace="{desk.workspace_id}"}}'] == 3
    assert found["jobapi_queue_wait_seconds_count"] == 3
    assert found['jobapi_queue_wait_seconds_bucket{le="60.0"}'] == 1
    assert found['jobapi_queue_wait_seconds_bucket{le="300.0"}'] == 3
    assert 400 <= found["jobapi_queue_wait_seconds_sum"] < 420


def test_reports_are_counted_with_how_long_attempts_ran(world: World, desk: Desk) -> None:
    since = Since(world)
    for _ in range(6):
        desk.create()
    claimed = desk.claim(limit=6)
    for job in claimed:
        desk.shift(job, 100)
    heart, plain, merged, failed, ended, released = claimed
    assert desk.report(heart, progress_percent=5)["accepted"]
    assert desk.report(plain, status="success")["accepted"]
    assert desk.report(plain, status="success")["accepted"]
    assert desk.report(merged, status="success", progress_message="x")["accepted"]
    for _ in range(2):
        assert desk.report(failed, status="failed", error="x")["accepted"]
    assert desk.report(ended, status="failed", retryable=False)["accepted"]
    assert desk.report(released, status="pending")["accepted"]
    assert not desk.report({**heart, "lease_token": "0" * 32})["accepted"]
    assert not desk.report(heart, progress_percent="x")["accepted"]
    token = {"Lease-Token": "0" * 32}
    assert desk.patch(heart["job_id"], {"status": "success"}, headers=token).status_code == 409
    token = {"Lease-Token": heart["lease_token"]}
    assert desk.patch(heart["job_id"], {"status": "success"}, headers=token).status_code == 200
    found = since.now()
    expected = {"running": 1, "success": 4, "failed": 3, "pending": 1, "refused": 3}
    for status, n in expected.items():
        assert found[f'jobapi_reports_total{{status="{status}"}}'] == n, status
    for outcome, n in {"success": 3, "failed": 2, "released": 1}.items():
        sample = 'jobapi_run_seconds_{}{{{}outcome="{}"}}'
        assert found[sample.format("count", "", outcome)] == n, outcome
        assert 100 * n <= found[sample.format("sum", "", outcome)] < 110 * n
        assert found[sample.format("bucket", 'le="60.0",', outcome)] == 0
        assert found[sample.format("bucket", 'le="300.0",', outcome)] == n
    assert found["jobapi_retries_total"] == 1


def test_what_runs_out_is_counted(world: World, desk: Desk) -> None:
    since = Since(world)
    for body in ({}, {"max_retries": 0}, {"timeout_seconds": 10}, {}):
        desk.create(**body)
    for job in desk.claim(limit=4, lease_seconds=60)[:3]:
        desk.shift(job, 30 if job["timeout_seconds"] else 100)
    world.maintain("expired leases")
    found = since.now()
    assert found["jobapi_lease_expiries_total"] == 2
    assert found["jobapi_timeouts_total"] == 1
    assert found["jobapi_retries_total"] == 2


def test_expire_before_the_begin_counts_no_retry_and_no_time(world: World, desk: Desk) -> None:
    since = Since(world)
    for _ in range(3):
        desk.create()
    expired, released, ended = desk.claim(limit=3, begin=False)
    for job in (expired, released, ended):
        desk.shift(job, 100)
    desk.report(released, status="pending")
    desk.report(ended, status="failed", retryable=False, error="e")
    world.maintain("expired leases")
    found = since.now()
    assert found["jobapi_lease_expiries_total"] == 1
    assert found["jobapi_retries_total"] == 0
    for outcome in ("released", "failed"):
        assert found[f'jobapi_run_seconds_count{{outcome="{outcome}"}}'] == 1
        assert found[f'jobapi_run_seconds_sum{{outcome="{outcome}"}}'] < 50


def test_jobs_that_failed_for_good_are_counted(world: World, desk: Desk) -> None:
    since = Since(world)
    once: Any = {"max_retries": 0}
    for body in (once, {}, {}, once, {**once, "timeout_seconds": 10}, {}):
        desk.create(**body)
    for_good, retried, refused, expired, timed_out, patched = desk.claim(limit=6)
    for _ in range(2):
        assert desk.report(for_good, status="failed")["accepted"]
    assert desk.report(retried, status="failed")["accepted"]
    assert desk.report(refused, status="failed", retryable=False)["accepted"]
    for job, seconds in ((expired, 100), (timed_out, 30)):
        desk.shift(job, seconds)
    world.maintain("expired leases")
    token = {"Lease-Token": patched["lease_token"]}
    body = {"status": "failed", "error": "x"}
    assert desk.patch(patched["job_id"], body, headers=token).status_code == 200
    for status in ("pending", "running"):
        job = desk.job_in(status)
        assert desk.patch(job["job_id"], {"status": "failed"}).status_code == 200
        assert desk.patch(job["job_id"], {"status": "failed"}).status_code == 409
    desk.job_in("cancelled")
    desk.job_in("success")
    failed = desk.get("?status=failed&limit=1").json["pagination"]["total"]
    name = f'jobapi_failed_jobs_total{{workspace="{desk.workspace_id}"}}'
    assert since.now()[name] == failed == 6


def test_connections_are_counted_whatever_becomes_of_them(world: World) -> None:
    engine = world.state.engine
    engine.dispose()
    in_use, idle = (f'jobapi_database_connections{{state="{s}"}}' for s in ("in_use", "idle"))

    def found() -> tuple[int, int]:
        now = read(world)
        return now[in_use], now[idle]

    assert found() == (0, 1)
    with engine.connect(), engine.connect():
        assert found() == (2, 1)
    assert found() == (0, 3)
    pooled = engine.raw_connection()
    taken: Any = pooled.driver_connection
    pooled.detach()
    taken.close()
    # The pool has another in its place.
    assert found() == (0, 3)
    with engine.connect() as connection:
        connection.invalidate()
    assert found() == (0, 3)
    engine.dispose()
    assert found() == (0, 1)


def test_documents_have_every_metric_and_no_other(world: World) -> None:
    text = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    families = text_string_to_metric_families(world.call("GET", "/metrics", METRICS_TOKEN).text)
    served = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    assert set(re.findall(r"^\| `(jobapi_\w+)`", text, re.M)) == served
    assert set(re.findall(r"\bjobapi_[a-z_]+", text)) <= served


# In a host


@pytest.fixture
def host(new_database: Any, database: str) -> Iterator[Host]:
    host = Host(new_database(database), JOBAPI_METRICS_TOKEN=METRICS_TOKEN)
    yield host
    host.close()


def test_host_keeps_its_registry_its_routes_and_its_requests(host: Host) -> None:
    before = prometheus_client.generate_latest().count(b"jobapi")
    world = host.world
    desk = Desk(world)
    with world.app.app_context():
        jobs.create(host.db.session, desk.workspace_id, created_by=desk.user.id, job_type="a")
        host.db.session.commit()
    for path in ("/", "/nowhere", "/metrics"):
        world.call("GET", path)
    assert world.call("GET", "/metrics", METRICS_TOKEN).text == HTML_404
    world.call("GET", f"{PREFIX}/nowhere")
    assert world.call("GET", f"{PREFIX}/health/live").status_code == 200
    found = read(world, f"{PREFIX}/metrics")
    requests = {name: n for name, n in found.items() if name.startswith("jobapi_http_requests")}
    count = 'jobapi_http_requests_total{{method="GET",route="{}",status="{}"}}'
    assert requests == {
        count.format("unknown", 404): 1,
        count.format(f"{PREFIX}/health/live", 200): 1,
    }
    assert found[f'jobapi_jobs{{status="pending",workspace="{desk.workspace_id}"}}'] == 1
    assert found['jobapi_database_connections{state="idle"}'] >= 1
    assert prometheus_client.generate_latest().count(b"jobapi") == before == 0


def test_two_applications_measure_apart(host: Host, world: World) -> None:
    since = Since(world)
    host.world.call("GET", f"{PREFIX}/health/live")
    found = since.now()
    assert not any(PREFIX in name or "/health/live" in name for name in +found)


# Several processes


def scrape(service: Service) -> Samples:
    response = service.metrics()
    assert response.status_code == 200, response.text
    return parse(response.text)


def worker_ids(service: Any) -> list[int]:
    """The processes that serve, of those that have been started those that there are."""
    started = re.findall(r"Booting worker with pid: (\d+)", service.log.read_text())
    return [int(pid) for pid in started if Path(f"/proc/{pid}").exists()]


LIVE = 'jobapi_http_requests_total{method="GET",route="/health/live",status="200"}'
CLAIMED = 'jobapi_claimed_jobs_total{workspace="1"}'


def test_metrics_of_any_process_include_all_and_killed_ones(serve: Any, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    service = serve("--workers", "2", TMPDIR=str(temporary))
    client = service.client("boss", PASSWORD)
    before = scrape(service)[LIVE]
    asked = 0

    def ask(n: int) -> None:
        for _ in range(n):
            # A new connection each time, which any of the processes may get.
            assert service.get("/health/live").status_code == 200

    def ask_much() -> None:
        nonlocal asked
        threads = [threading.Thread(target=ask, args=(25,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asked += 200

    (folder,) = temporary.glob("jobapi-metrics-*")

    def counters() -> set[str]:
        return {path.name for path in folder.glob("counter_*.db")}

    # Again if one of the processes has started late.
    until(lambda: ask_much() or len(counters()) == 2, 20)
    batch = {"jobs": [{"job_type": "a"}] * 10}
    assert client.post("/workspace/1/jobs/batch", json=batch).status_code == 201
    claimed = client.post("/workspace/1/jobs/claim", json={"limit": 10}).json()["data"]
    assert len(claimed) == 10
    assert counters() == {f"counter_{pid}.db" for pid in worker_ids(service)}
    for _ in range(10):
        found = scrape(service)
        assert found[LIVE] == before + asked
        assert (found[CLAIMED], found["jobapi_queue_wait_seconds_count"]) == (10, 10)
        assert found['jobapi_jobs{status="running",workspace="1"}'] == 10
        assert found['jobapi_database_connections{state="idle"}'] >= 1
    (victim, _) = worker_ids(service)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while victim in worker_ids(service) or len(worker_ids(service)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(folder.glob(f"gauge_*_{victim}.db"))
    ask_much()
    for _ in range(10):
        found = scrape(service)
        assert found[LIVE] == before + asked
        assert found[CLAIMED] == 10
    assert METRICS_TOKEN not in service.log.read_text()
    assert service.stop() == 0
    assert not folder.exists()


def test_open_streams_are_counted_while_they_are_open(serve: Any) -> None:
    service = serve("--workers", "2")

    def wait_for(number: int) -> None:
        until(lambda: scrape(service)["jobapi_open_streams"] == number, 10)

    clients = [service.client("boss", PASSWORD) for _ in range(3)]
    with ExitStack() as stack:
        for client in clients:
            stack.enter_context(client.stream("GET", "/workspace/1/events/stream"))
        wait_for(3)
    wait_for(0)


def test_waiting_claims_are_counted_while_they_wait(serve: Any) -> None:
    service = serve("--workers", "2")
    clients = [service.client("boss", PASSWORD) for _ in range(3)]
    waiters = [
        threading.Thread(
            target=client.post,
            args=("/workspace/1/jobs/claim",),
            kwargs={"json": {"wait_seconds": 20}},
        )
        for client in clients
    ]
    for waiter in waiters:
        waiter.start()
    until(lambda: service.has_waiting(3), 20)
    batch = {"jobs": [{"job_type": "a"}] * 3}
    assert clients[0].post("/workspace/1/jobs/batch", json=batch).status_code == 201
    for waiter in waiters:
        waiter.join()
    found = scrape(service)
    assert found["jobapi_waiting_claims"] == 0
    claim = 'method="POST",route="/workspace/<workspace_id>/jobs/claim"'
    assert found[f"jobapi_http_request_seconds_count{{{claim}}}"] == 3


# Measuring never breaks serving


def lives(service: Any) -> bool:
    try:
        return service.get("/health/live").status_code == 200
    except httpx2.TransportError:
        return False


def test_folder_that_was_removed_under_a_running_service_breaks_no_request(
    serve: Any, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    service = serve("--workers", "2", TMPDIR=str(temporary))
    client = service.client("boss", PASSWORD)
    (folder,) = temporary.glob("jobapi-metrics-*")
    shutil.rmtree(folder)
    before = worker_ids(service)
    for victim in before:
        os.kill(victim, signal.SIGKILL)
    until(lambda: len(worker_ids(service)) == 2 and not {*before} & {*worker_ids(service)})
    until(lambda: lives(service))
    for _ in range(8):
        assert service.get("/health/live").status_code == 200
        assert client.get("/workspace/1/jobs").status_code == 200
    assert scrape(service)[LIVE] > 0
    # And without it, and where nothing can be written there.
    shutil.rmtree(folder)
    folder.write_text("a file")
    before = worker_ids(service)
    for victim in before:
        os.kill(victim, signal.SIGKILL)
    until(lambda: len(worker_ids(service)) == 2 and not {*before} & {*worker_ids(service)})
    until(lambda: lives(service))
    for _ in range(8):
        assert client.get("/workspace/1/jobs").status_code == 200
    assert service.metrics().status_code in (200, 503)
    assert service.stop() == 0


def test_empty_file_among_the_metrics_is_left_out(serve: Any, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    service = serve("--workers", "1", TMPDIR=str(temporary))
    (folder,) = temporary.glob("jobapi-metrics-*")
    (folder / "counter_1.db").write_bytes(b"")
    (folder / "histogram_1.db").write_bytes(b"nonsense" * 100)
    assert scrape(service)[LIVE] > 0


def test_new_master_after_hup_measures_in_a_folder_of_its_own(serve: Any, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # Of a service that was killed; and of another program.
    (temporary / "jobapi-metrics-left").mkdir()
    (temporary / "jobapi-metrics-left" / "lock").touch()
    (temporary / "jobapi-metrics-other").mkdir()
    service = serve("--workers", "1", TMPDIR=str(temporary))
    assert not (temporary / "jobapi-metrics-left").exists()
    (temporary / "jobapi-metrics-other").rmdir()
    (first,) = temporary.glob("jobapi-metrics-*")
    before = worker_ids(service)
    service.process.send_signal(signal.SIGHUP)
    until(lambda: worker_ids(service) and not {*before} & {*worker_ids(service)})
    service.process.send_signal(signal.SIGUSR2)
    until(lambda: service.log.read_text().count("Listening at") == 2)
    until(lambda: len(list(temporary.glob("jobapi-metrics-*"))) == 2)
    assert service.stop() == 0
    assert not first.exists()
    for _ in range(4):
        assert service.get("/health/live").status_code == 200
    assert scrape(service)[LIVE] >= 4


def test_fault_of_measuring_breaks_no_request(
    service_url: str, make_app: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from jobapi.metrics import Counter as Counted

    monkeypatch.setattr(logging.getLogger("jobapi"), "propagate", True)
    desk = Desk(World(make_app(service_url, migrate=False, JOBAPI_METRICS_TOKEN=METRICS_TOKEN)))

    def refuse(*_: Any, **kw: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Counted, "inc", refuse)
    desk.create()
    (job,) = desk.claim()
    assert desk.report(job, status="success")["accepted"]
    assert desk.world.call("GET", "/metrics", METRICS_TOKEN).status_code == 200
    said = {line.created for line in caplog.records if "measuring has failed" in line.getMessage()}
    assert len(said) <= 1


def test_nobody_uses_the_engine_before_it_is_watched(
    service_url: str, make_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy's lists of listeners must not grow while another thread goes through them."""
    from jobapi.metrics import Metrics

    app = make_app(service_url, migrate=False, JOBAPI_METRICS_TOKEN=METRICS_TOKEN)
    state = app.extensions["jobapi"]
    got: list[Any] = []
    seen: list[bool] = []
    other = threading.Thread(target=lambda: got.append(state.engine))

    def watch(*_: Any) -> None:
        other.start()
        other.join(0.2)
        seen.append(bool(got))

    monkeypatch.setattr(Metrics, "watch", watch)
    engine = state.engine
    other.join(20)
    assert (seen, got) == ([False], [engine])


def test_engine_is_made_again_after_a_first_try_that_failed(
    service_url: str, make_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobapi import state

    def refuse(*_: Any, **kw: Any) -> None:
        raise OSError("too many open files")

    world = World(make_app(service_url, migrate=False))
    with monkeypatch.context() as broken:
        broken.setattr(state, "set_up", refuse)
        assert world.call("GET", "/health/ready").status_code == 500
    assert world.call("GET", "/health/ready").status_code == 200
