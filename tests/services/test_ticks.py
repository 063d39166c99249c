"""Ticks in several processes, and with a crash at any statement: each makes one job."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from jobapi.services import schedules, ticks
from jobapi.store import tables
from jobapi.store.transactions import transaction

from ..conftest import app_on
from ..factories import Desk, World, until
from ..served import Process
from . import ticker

MINUTE = timedelta(minutes=1)
TICKS = 90
AHEAD = 40
"""So many ticks may be due at most: an outage with more than 100 would drop some."""


def made(desk: Desk, name: str = "s", **fields: Any) -> Any:
    with desk.world.transaction() as tx:
        return schedules.create(
            tx,
            desk.workspace_id,
            name=name,
            job={"job_type": "a"},
            created_by=desk.user.id,
            most=100,
            **{"cron": "* * * * *", "catch_up": 2, **fields},
        )


def scheduled(desk: Desk, schedule_id: str) -> list[datetime]:
    c = tables.jobs.c
    with desk.world.transaction() as tx:
        return list(tx.scalars(select(c.scheduled_for).where(c.schedule_id == schedule_id)))


def test_ticks_in_two_processes_that_are_killed_make_one_job_each(
    new_database: Any, database: str, tmp_path: Path
) -> None:
    url = new_database(database)
    app = app_on(url, tmp_path)
    desk = Desk(World(app))
    several = [
        made(desk, "plain"),
        made(desk, "replace", overlap=2, jitter_seconds=30),
        made(desk, "every", cron=None, every_seconds=60),
    ]
    first = max(each.next_run_at for each in several)
    chance = random.Random(os.environ.get("CHAOS_SEED", "7"))

    def tell(now: datetime) -> None:
        (tmp_path / "next").write_text(now.isoformat())
        (tmp_path / "next").replace(tmp_path / "now")

    def count() -> int:
        with desk.world.transaction() as tx:
            found = tx.scalar(select(func.count()).select_from(tables.jobs))
        return int(found or 0)

    tell(first - MINUTE)
    nodes = [Process(ticker.main, url, str(tmp_path)) for _ in range(2)]
    kills = 0
    try:
        for n in range(TICKS):
            tell(first + n * MINUTE)
            until(lambda n=n: count() >= (n - AHEAD) * len(several))
            time.sleep(0.02)
            if chance.random() < 0.12:
                number = chance.randrange(2)
                nodes[number].kill()
                nodes[number] = Process(ticker.main, url, str(tmp_path))
                kills += 1
        # The end of a minute, when no tick is delayed any more.
        end = (first + (TICKS - 1) * MINUTE).replace(second=59)
        tell(end)
        wanted = {
            each.schedule_id: [
                each.next_run_at + n * MINUTE for n in range((end - each.next_run_at) // MINUTE + 1)
            ]
            for each in several
        }
        until(lambda: count() >= sum(map(len, wanted.values())))
    finally:
        for node in nodes:
            node.kill()
    assert kills > 3
    for schedule in several:
        found = scheduled(desk, schedule.schedule_id)
        assert Counter(found) == Counter(wanted[schedule.schedule_id]), schedule.name
    app.extensions["jobapi"].close()


def test_tick_that_crashes_at_any_statement_makes_one_job(desk: Desk, sent: Any) -> None:
    schedule = made(desk, overlap=2)
    tick = schedule.next_run_at
    with desk.world.state.engine.connect() as connection:

        def run() -> Any:
            with transaction(connection) as tx:
                return ticks.tick(tx, desk.workspace_id, schedule.schedule_id, now=tick)

        # The first lets the caches of the service know what they will.
        run()
        crashes = 0
        while True:
            tick += MINUTE
            sent.clear()
            sent.refuse = lambda sql, n=crashes: len(sent) > n + 1 and sql != "ROLLBACK"
            try:
                assert run() is not None
                break
            except InterruptedError:
                sent.refuse = lambda sql: False
                assert tick not in scheduled(desk, schedule.schedule_id)
                assert run() is not None
                assert run() is None
                crashes += 1
            assert scheduled(desk, schedule.schedule_id).count(tick) == 1
    assert crashes > 8


def test_tick_that_another_holds_is_skipped(new_database: Any, tmp_path: Path) -> None:
    app = app_on(new_database("postgresql"), tmp_path)
    desk = Desk(World(app))
    schedule = made(desk)
    now = schedule.next_run_at
    with desk.world.transaction() as one:
        assert ticks.tick(one, 1, schedule.schedule_id, now=now) is not None
        with desk.world.transaction() as two:
            assert ticks.tick(two, 1, schedule.schedule_id, now=now) is None
    with desk.world.transaction() as two:
        assert ticks.tick(two, 1, schedule.schedule_id, now=now) is None
    app.extensions["jobapi"].close()


@pytest.mark.parametrize("late", [timedelta(0), timedelta(minutes=3)])
def test_job_that_a_tick_has_already_made_is_kept(desk: Desk, late: timedelta) -> None:
    """As after a switch to a database whose clock is behind."""
    schedule = made(desk)
    tick = schedule.next_run_at
    where = tables.schedules.c.schedule_id == schedule.schedule_id
    for _ in range(2):
        with desk.world.transaction() as tx:
            done = ticks.tick(tx, desk.workspace_id, schedule.schedule_id, now=tick + late)
            tx.execute(tables.schedules.update().where(where).values(next_run_at=tick, due_at=tick))
    assert done is not None
    assert done.outcome is not None
    assert done.outcome.label == "existing"
    assert scheduled(desk, schedule.schedule_id) == [tick]
