"""Five million jobs compared with five thousand: ``make bench-scale``.

Two databases in one Postgres have 50 workspaces each, one of which has half of the jobs. It also
has governed job types with pending jobs of many keys, schedules, and webhooks with deliveries.
That workspace gets the same requests in both databases in turns, through the application
in this process: other load on the machine slows both. A ratio is the large database's
median divided by the small one's in the same round; the median over the rounds is printed.
The filters match at least a full page in the small database, too. The exit code is 1 if a
goal is missed.

``SCALE_JOBS`` is the number of jobs in the large database, ``SCALE_ROUNDS`` how often 10
requests of each kind are measured. ``BENCH_DATABASE_URL`` is as in ``bench.py``; both
databases are created there, and dropped at the end.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, count, cycle
from typing import Any
from urllib.parse import quote

import psycopg
from bench import SECRET, new_job, postgres, prepare
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from jobapi import create_app
from jobapi.background.periodic_tasks import periodic_tasks
from jobapi.services import counts
from jobapi.services import deliveries as delivering
from jobapi.store.transactions import BY_KEY, transaction

SMALL = 5_000
LARGE = int(os.environ.get("SCALE_JOBS", "5_000_000"))
ROUNDS = int(os.environ.get("SCALE_ROUNDS", "12"))
AT_ONCE = 10
"""How many requests one database gets before the other one's turn."""

STEP = 250_000
"""How many jobs one statement inserts."""

OTHERS = 49
TYPES = 20
PAGE = 50
AIM = 1.5
HALF_AIM = 1.2

# Jobs of a year, in the order of their creation. The leases of running jobs outlive this run.
LOAD = """
INSERT INTO jobapi_jobs (
  job_id, workspace_id, created_by, job_type, status, priority, version, metadata, result, error,
  error_group,
  actual_duration, retry_count, max_retries, created_at, updated_at, queued_at, due_at,
  started_at, completed_at, attempt, worker, lease_token, lease_seconds, lease_expires_at,
  reap_at, succeeded_by)
SELECT
  'job_' || lpad(to_hex((extract(epoch FROM created) * 1000)::bigint), 12, '0')
    || substr(token, 1, 20),
  workspace_id,
  (SELECT created_by FROM jobapi_workspaces WHERE id = %(half)s),
  'type_' || lpad(type::text, 2, '0'),
  status,
  priority,
  least(status, 2) + 1,
  json_build_object('batch_id', n / 1000, 'file', 'dataset-' || n || '.csv'),
  CASE status WHEN 2 THEN
    json_build_object('rows', n %% 10000, 'output', 'dataset-' || n || '.parquet') END,
  CASE status WHEN 3 THEN 'ValueError: row ' || n %% 10000 || ' has no value' END,
  CASE status WHEN 3 THEN substr(md5((n %% 7)::text), 1, 16) END,
  CASE WHEN status IN (2, 3, 4) THEN extract(epoch FROM wait + run)::bigint END,
  0,
  3,
  created,
  created + CASE status WHEN 0 THEN interval '0' WHEN 1 THEN wait ELSE wait + run END,
  created,
  created,
  CASE WHEN status <> 0 THEN created + wait END,
  CASE WHEN status IN (2, 3, 4) THEN created + wait + run END,
  least(status, 1),
  CASE WHEN status <> 0 THEN 'worker-' || n %% 16 END,
  CASE status WHEN 1 THEN token END,
  CASE status WHEN 1 THEN 3600 END,
  CASE status WHEN 1 THEN now() + interval '1 day' END,
  CASE status WHEN 1 THEN now() + interval '1 day' END,
  CASE status WHEN 2 THEN token END
FROM (
  SELECT
    n,
    md5(n::text) AS token,
    %(half)s + greatest(0, ceil((random() * 2 - 1) * %(others)s))::int AS workspace_id,
    floor(random() * random() * %(types)s) AS type,
    width_bucket(random(), '{0.02, 0.025, 0.825, 0.945}'::float8[]) AS status,
    width_bucket(random(), '{0.1, 0.7, 0.95}'::float8[]) AS priority,
    now() - interval '1 hour' - interval '365 days' * (1 - n / %(total)s::float8) AS created,
    random() * interval '1 minute' AS wait,
    random() * interval '10 minutes' AS run
  FROM generate_series(%(first)s::int, %(last)s::int) AS n
) AS made
"""

GOVERNED = {
    "limited": {"max_running": 100},
    "keyed": {"max_running_per_key": 1},
    "limited_keyed": {"max_running": 100, "max_running_per_key": 1},
    "rated": {"rate_limit": {"starts": 100_000, "seconds": 1}},
}
"""Job types with settings of flow control."""

PER_KEYED = 250
"""One job of a governed type is pending for every 250 jobs; two of them share a key."""

SCHEDULES = 50

WEBHOOKS = 10

DELIVERIES = 1_000
"""How many the service keeps for a webhook. One in 100 is pending. The small database has fewer."""

LOAD_DELIVERIES = """
INSERT INTO jobapi_webhook_deliveries (
  workspace_id, webhook_id, id, type, event_id, job_id, body, status, attempts, created_at,
  next_attempt_at, last_attempt_at, response_status)
SELECT
  w.workspace_id, w.id, 'msg_' || n, 'job.succeeded', 'evt_' || n, 'job_' || n,
  '{"type": "job.succeeded", "data": {"job_id": "job_' || n || '"}}',
  CASE WHEN n %% 100 = 0 THEN 0 ELSE 1 END,
  1,
  now() - interval '30 days' * (n / %(total)s::float8),
  CASE WHEN n %% 100 = 0 THEN now() + interval '1 day' END,
  now() - interval '30 days' * (n / %(total)s::float8),
  CASE WHEN n %% 100 = 0 THEN 503 ELSE 204 END
FROM jobapi_webhooks w, generate_series(1, %(total)s::int) AS n
"""


@contextlib.contextmanager
def databases(server: str, *names: str) -> Iterator[list[str]]:
    """Create databases on a server and yield their URLs."""
    with psycopg.connect(server, autocommit=True) as connection:
        drop = [
            SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name))
            for name in names
        ]
        for name, statement in zip(names, drop, strict=True):
            connection.execute(statement)
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        try:
            url = make_url(server)
            yield [url.set(database=n).render_as_string(hide_password=False) for n in names]
        finally:
            for statement in drop:
                connection.execute(statement)


def load(connection: psycopg.Connection[Any], half: int, total: int, others: int = OTHERS) -> None:
    """Replace all jobs by ``total`` new ones; ``half`` is the workspace that has half of them."""
    connection.execute("TRUNCATE jobapi_jobs CASCADE")
    connection.execute(
        "INSERT INTO jobapi_workspaces (name, created_by, created_at, updated_at)"
        " SELECT 'Other ' || n, created_by, now(), now()"
        " FROM jobapi_workspaces, generate_series(1, %s) AS n WHERE id = %s",
        (others, half),
    )
    # Created at the end, indexes take a fraction of the time. Of the triggers, only that of the
    # events is disabled: events are not measured.
    indexes = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes"
        " WHERE tablename = 'jobapi_jobs' AND starts_with(indexname, 'ix_')"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(SQL("DROP INDEX {}").format(Identifier(name)))
    connection.execute("ALTER TABLE jobapi_jobs DISABLE TRIGGER jobapi_note_inserted")
    for first in range(1, total + 1, STEP):
        last = min(first + STEP - 1, total)
        given = {"half": half, "others": others, "types": TYPES, "total": total}
        connection.execute(LOAD, {**given, "first": first, "last": last})
    connection.execute("ALTER TABLE jobapi_jobs ENABLE TRIGGER jobapi_note_inserted")
    connection.execute("SET maintenance_work_mem = '1GB'")
    for _, definition in indexes:
        connection.execute(definition)


class Side:
    """One of the databases with its jobs, and an application for it."""

    def __init__(self, url: str, total: int) -> None:
        began = time.monotonic()
        token, self.workspace_id, _ = prepare(url)
        self.connection = psycopg.connect(url, autocommit=True)
        load(self.connection, self.workspace_id, total)
        settings = {"JOBAPI_DATABASE_URL": url, "JOBAPI_SECRET_KEY": SECRET}
        # The maintenance runs between the measurements, see ``fold``.
        app = create_app({**settings, "JOBAPI_MAINTENANCE_ENABLED": False})
        self.engine = app.extensions["jobapi"].engine
        self.client = app.test_client()
        self.headers = {"Authorization": f"Bearer {token}"}
        self.workspace = f"/workspace/{self.workspace_id}"
        self.jobs = f"{self.workspace}/jobs"
        self.furnish(total)
        state = app.extensions["jobapi"]
        self.tasks = periodic_tasks(
            state.backoff, state.count_reaped, state.count_tick, state.waiters.announce
        )
        self.fold()
        # Loading the jobs must not count as throughput.
        self.connection.execute("DELETE FROM jobapi_job_flow")
        self.connection.execute("VACUUM ANALYZE")
        self.connection.execute("CHECKPOINT")
        self.keys = count(1)
        self.types = cycle(f"type_{number:02}" for number in range(TYPES))
        some = self.connection.execute(
            "SELECT job_id FROM jobapi_jobs WHERE workspace_id = %s ORDER BY random() LIMIT 500",
            (self.workspace_id,),
        )
        self.job_ids = cycle([job_id for (job_id,) in some])
        first = self.ask("GET", self.jobs)[1]["pagination"]
        self.pages = math.ceil(first["total"] / PAGE)
        middle = self.ask("GET", f"{self.jobs}?page=20")[1]["pagination"]
        self.cursor = quote(middle["next_cursor"])
        took = time.monotonic() - began
        print(f"{total:,} jobs, {first['total']:,} of them in one workspace: {took:.0f} s")

    def furnish(self, total: int) -> None:
        """Add governed types with pending jobs, schedules, and webhooks with deliveries."""
        for name, settings in GOVERNED.items():
            self.ask("PATCH", f"{self.workspace}/job-types/{name}", settings)
        number = max(100, total // PER_KEYED)
        names = cycle(GOVERNED)
        pending = [
            {**new_job(n), "job_type": next(names), "concurrency_key": f"key_{n // 2}"}
            for n in range(number)
        ]
        for first in range(0, number, 1000):
            self.ask("POST", f"{self.jobs}/batch", {"jobs": pending[first : first + 1000]})
        for n in range(SCHEDULES):
            job = {"job_type": f"type_{n % TYPES:02}"}
            body = {"name": f"yearly {n}", "cron": "0 0 1 1 *", "timezone": "UTC", "job": job}
            self.ask("POST", f"{self.workspace}/schedules", body)
        hooks = [
            self.ask("POST", f"{self.workspace}/webhooks", {"url": f"https://example.com/{n}"})[1]
            for n in range(WEBHOOKS)
        ]
        self.webhooks = cycle(hook["webhook_id"] for hook in hooks)
        self.connection.execute(LOAD_DELIVERIES, {"total": min(DELIVERIES, total // 50)})

    def new(self) -> dict[str, Any]:
        """A job of the next type."""
        return {**new_job(0), "job_type": next(self.types)}

    def fold(self) -> None:
        """What the maintenance does to the counts every two seconds."""
        folded = counts.FOLD_AT_ONCE
        while folded == counts.FOLD_AT_ONCE:
            with (
                self.engine.connect() as connection,
                transaction(connection, planner=BY_KEY) as tx,
            ):
                folded = counts.fold(tx)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[float, Any]:
        """Send a request; returns the seconds and the answer."""
        began = time.perf_counter()
        response = self.client.open(path, method=method, json=body, headers=self.headers)
        seconds = time.perf_counter() - began
        if response.status_code not in (200, 201):
            raise RuntimeError(f"{method} {path}: {response.text}")
        return seconds, response.get_json()

    def forget(self, job_ids: list[str]) -> None:
        """Delete the jobs of a measurement, so that both databases keep their size."""
        self.connection.execute("DELETE FROM jobapi_jobs WHERE job_id = ANY (%s)", (job_ids,))


Action = Callable[[Side], float]
"""A measurement; returns its seconds."""


def listed(query: str = "") -> Action:
    return lambda side: side.ask("GET", f"{side.jobs}?{query}")[0]


def errors(side: Side) -> float:
    return side.ask("GET", f"{side.jobs}/errors")[0]


def by_cursor(side: Side) -> float:
    return side.ask("GET", f"{side.jobs}?cursor={side.cursor}")[0]


def deep_page(side: Side) -> float:
    return side.ask("GET", f"{side.jobs}?page={min(1000, side.pages)}")[0]


def status(side: Side) -> float:
    return side.ask("GET", f"{side.jobs}/{next(side.job_ids)}/status")[0]


def explain(side: Side) -> float:
    return side.ask("GET", f"{side.jobs}/{next(side.job_ids)}/explain")[0]


def explain_pending(side: Side) -> float:
    """Explain the last pending job of a type."""
    body = {**side.new(), "workspace_id": side.workspace_id, "priority": "low"}
    _, job = side.ask("POST", side.jobs, body)
    seconds, _ = side.ask("GET", f"{side.jobs}/{job['job_id']}/explain")
    side.forget([job["job_id"]])
    return seconds


def job_types(side: Side) -> float:
    return side.ask("GET", f"{side.workspace}/job-types")[0]


def stats(side: Side) -> float:
    return side.ask("GET", f"{side.workspace}/stats")[0]


def schedules(side: Side) -> float:
    return side.ask("GET", f"{side.workspace}/schedules")[0]


def deliveries(side: Side) -> float:
    return side.ask("GET", f"{side.workspace}/webhooks/{next(side.webhooks)}/deliveries")[0]


def maintain(side: Side) -> float:
    """One run of each periodic task, and of the deliverer, when there is nothing to do."""
    with side.engine.connect() as connection:
        began = time.perf_counter()
        for task in side.tasks:
            task.step(connection)
        delivering.survey(connection)
        return time.perf_counter() - began


def create(side: Side) -> float:
    body = {**side.new(), "workspace_id": side.workspace_id}
    seconds, job = side.ask("POST", side.jobs, body)
    side.forget([job["job_id"]])
    return seconds


def claimed(number: int, job_type: str | None = None) -> Action:
    """Claim and report this many jobs, of one type or of any, each of a governed type with its key.

    Creating them before is not measured.
    """
    wanted = {"job_types": [job_type]} if job_type else {}

    def claim(side: Side) -> float:
        created = [side.new() for _ in range(number)]
        for job in created:
            if job_type is not None:
                job["job_type"] = job_type
            if job_type in GOVERNED:
                job["concurrency_key"] = f"new_{next(side.keys)}"
        side.ask("POST", f"{side.jobs}/batch", {"jobs": created})
        claiming, answer = side.ask("POST", f"{side.jobs}/claim", {"limit": number, **wanted})
        reports = [
            {**{name: job[name] for name in ("job_id", "lease_token")}, "status": "success"}
            for job in answer["data"]
        ]
        reporting, answer = side.ask("POST", f"{side.jobs}/report", {"reports": reports})
        if [each["accepted"] for each in answer["data"]] != [True] * number:
            raise RuntimeError(f"not all of {number} were claimed and reported")
        side.forget([report["job_id"] for report in reports])
        return claiming + reporting

    return claim


DEEP = "page 1,000"
ERRORS = "errors by cause"
ACTIONS: dict[str, Action] = {
    "first page": listed(),
    "one filter": listed("status=failed"),
    "three filters": listed("status=success&job_type=type_00&priority=normal"),
    "by created_at, the oldest first": listed("sort=created_at&order=asc"),
    "by updated_at": listed("sort=updated_at"),
    "by priority": listed("sort=priority"),
    "by status": listed("sort=status"),
    "next page by cursor": by_cursor,
    DEEP: deep_page,
    ERRORS: errors,
    "status": status,
    "explain": explain,
    "explain a pending job": explain_pending,
    "job types": job_types,
    "create": create,
    "claim 1, report": claimed(1),
    "claim 100, report": claimed(100),
    "claim 1 of a plain type, report": claimed(1, "type_00"),
    "claim 100 of a plain type, report": claimed(100, "type_00"),
    **{
        f"claim {number} of {name}, report": claimed(number, name)
        for name in GOVERNED
        for number in (1, 20)
    },
    "schedules": schedules,
    "webhook deliveries": deliveries,
    "maintenance, nothing to do": maintain,
    # Last, so that both databases have the same throughput to report.
    "stats": stats,
}


def measure(action: Action, sides: list[Side], at_once: int) -> list[list[list[float]]]:
    """The seconds of each round, for each side."""
    rounds: list[list[list[float]]] = [[] for _ in sides]
    for _ in range(ROUNDS + 1):
        for side, mine in zip(sides, rounds, strict=True):
            side.fold()
            mine.append([action(side) for _ in range(at_once)])
    # The first round warms up both.
    return [mine[1:] for mine in rounds]


def shown(rounds: list[list[float]]) -> str:
    """The median and the 95th percentile, in ms."""
    seconds = list(chain.from_iterable(rounds))
    median, high = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    return f"{median * 1000:8.2f}{high * 1000:8.2f}"


def sizes(connection: psycopg.Connection[Any], *tables: str) -> dict[str, int]:
    """The bytes of tables and of each of their indexes."""
    rows = connection.execute(
        "SELECT c.relname, pg_table_size(c.oid) FROM pg_class c"
        " LEFT JOIN pg_index i ON i.indexrelid = c.oid"
        " WHERE coalesce(i.indrelid, c.oid) = ANY (%s::text[]::regclass[])"
        " ORDER BY i.indrelid IS NOT NULL, c.relname",
        (list(tables),),
    )
    return dict(rows.fetchall())


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ |= {
            "JOBAPI_INSTANCE_PATH": folder,
            "JOBAPI_LOG_LEVEL": "WARNING",
            "JOBAPI_ACCESS_TOKEN_SECONDS": "86400",
        }
        server = stack.enter_context(postgres())
        urls = stack.enter_context(databases(server, "jobapi_scale_small", "jobapi_scale_large"))
        sides = [Side(url, total) for url, total in zip(urls, (SMALL, LARGE), strict=True)]
        for name, size in sizes(sides[1].connection, "jobapi_jobs").items():
            print(f"  {name:28}{size / 2**20:8.0f} MiB")
        # As ``jobapi serve`` does.
        gc.collect()
        gc.freeze()
        print(f"{'ms':36}{'small':>8}{'p95':>8}{'large':>8}{'p95':>8}{'ratio':>8}")
        ratios = []
        for name, action in ACTIONS.items():
            both = measure(action, sides, AT_ONCE // 2 if name is DEEP else AT_ONCE)
            ratio = statistics.median(
                statistics.median(large) / statistics.median(small)
                for small, large in zip(*both, strict=True)
            )
            if name is DEEP:
                small, large = (min(1000, side.pages) for side in sides)
                verdict = f"not judged: page {small:,} beside page {large:,}"
            elif name is ERRORS:
                verdict = "not judged: each group is counted, up to 10,000 jobs"
            else:
                ratios.append(ratio)
                verdict = "ok" if ratio <= AIM else f"above {AIM}"
            print(f"{name:36}{''.join(map(shown, both))}{ratio:8.2f}  {verdict}", flush=True)
        good, better = (sum(ratio <= limit for ratio in ratios) for limit in (AIM, HALF_AIM))
        print(f"of {len(ratios)}: {good} at most {AIM}, {better} at most {HALF_AIM}")
        for side in sides:
            side.connection.close()
            side.engine.dispose()
    sys.exit(good < len(ratios) or better * 2 < len(ratios))


if __name__ == "__main__":
    main()
