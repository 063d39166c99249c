"""The counts of jobs: after any history they equal a recount."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from jobapi.rules.jobs import JobStatus, Priority
from jobapi.rules.operations import Action
from jobapi.services import counts, operations
from jobapi.store.tables import job_count_changes, job_counts, jobs

from ..factories import Desk

STEPS = int(os.environ.get("HISTORY_STEPS", "60"))
TYPES = ("a", "b", "c")


def recount(desk: Desk) -> dict[tuple[Any, ...], int]:
    kind = [jobs.c[name] for name in counts.KIND]
    with desk.world.transaction() as tx:
        return {
            tuple(key): n for *key, n in tx.execute(select(*kind, func.count()).group_by(*kind))
        }


def thought(desk: Desk) -> dict[tuple[Any, ...], int]:
    sums: Counter[tuple[Any, ...]] = Counter()
    with desk.world.transaction() as tx:
        for table in (job_counts, job_count_changes):
            columns = [table.c[name] for name in (*counts.KIND, "n")]
            for *key, n in tx.execute(select(*columns)):
                sums[tuple(key)] += n
    return {key: n for key, n in sums.items() if n}


def total(desk: Desk, query: str) -> int:
    return int(desk.get(f"?limit=1&{query}").json["pagination"]["total"])


class History:
    """Random operations of one caller among several."""

    def __init__(self, desk: Desk, seed: str) -> None:
        self.desk = desk
        self.chance = random.Random(seed)
        self.client = desk.world.app.test_client()
        self.held: list[Any] = []

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        response = self.client.open(
            self.desk.jobs_path + path,
            method=method,
            json=body,
            headers={"Authorization": f"Bearer {self.desk.token}", **headers},
        )
        assert response.status_code in (200, 201, 404, 409), response.text
        return response.json

    def new(self) -> dict[str, Any]:
        return {
            "job_type": self.chance.choice(TYPES),
            "priority": self.chance.choice(list(Priority)).label,
            "max_retries": self.chance.randint(0, 2),
        }

    def some_job(self) -> str:
        page = self.call("GET", f"?limit=100&order={self.chance.choice(['asc', 'desc'])}")
        return "/" + self.chance.choice(page["data"] or [{"job_id": "job_x"}])["job_id"]

    def step(self) -> None:
        act = self.chance.choice(
            [
                *(self.create, self.batch, self.claim, self.report, self.change, self.operate),
                *(self.fold, self.reap, self.go_on),
            ]
        )
        act()

    def create(self) -> None:
        self.call("POST", "", {**self.new(), "workspace_id": self.desk.workspace_id})

    def batch(self) -> None:
        items = [self.new() for _ in range(self.chance.randint(1, 8))]
        if self.chance.random() < 0.3:
            # One is wrong: none is made.
            wrong = self.client.post(
                f"{self.desk.jobs_path}/batch",
                json={"jobs": [*items, {"job_type": ""}]},
                headers={"Authorization": f"Bearer {self.desk.token}"},
            )
            assert wrong.status_code == 422
        self.call(
            "POST", "/batch", {"jobs": items}, **{"Idempotency-Key": str(self.chance.random())}
        )

    def claim(self) -> None:
        body = {"limit": self.chance.randint(1, 9), "begin": self.chance.random() < 0.5}
        claimed = self.call("POST", "/claim", body)["data"]
        # A suspect job is claimed alone, and its attempt has begun.
        assert body["begin"] <= all(job["begun"] for job in claimed)
        assert len(claimed) == 1 or len({job["begun"] for job in claimed}) <= 1
        self.held += claimed

    def report(self) -> None:
        self.chance.shuffle(self.held)
        given, self.held = self.held[:6], self.held[6:]
        reports = [
            {
                "job_id": job["job_id"],
                "lease_token": job["lease_token"],
                "status": self.chance.choice(["running", "success", "failed", "pending"]),
                "retry_after": 0,
                **self.chance.choice([{}, {"begun": True}, {"begun": True, "run_id": "r1"}]),
            }
            for job in given
        ]
        if reports:
            self.call("POST", "/report", {"reports": reports})

    def change(self) -> None:
        path = self.some_job()
        if path == "/job_x":
            return
        act = self.chance.randrange(4)
        if act == 0:
            self.call("POST", f"{path}/cancel")
        elif act == 1:
            self.call("POST", f"{path}/retry")
        elif act == 2:
            self.call("PATCH", path, {"priority": self.chance.choice(list(Priority)).label})
        else:
            status = self.chance.choice(["running", "success", "failed", "cancelled"])
            self.call("PATCH", path, {"status": status})

    def operate(self) -> None:
        action = self.chance.choice(list(Action))
        status = self.chance.choice(action.takes).label
        filters = {"job_type": [self.chance.choice(TYPES)], "status": [status]}
        body = {"action": action.label, "filter": filters}
        response = self.client.post(
            f"/workspace/{self.desk.workspace_id}/operations",
            json=body,
            headers={"Authorization": f"Bearer {self.desk.token}"},
        )
        assert response.status_code == 201, response.text

    def go_on(self) -> None:
        self.desk.world.maintain("operations", "deleted workspaces")

    def fold(self) -> None:
        with self.desk.world.transaction() as tx:
            counts.fold(tx)

    def reap(self) -> None:
        with self.desk.world.transaction() as tx:
            if self.chance.random() < 0.5:
                self.free(tx, jobs.delete(), select(func.max(jobs.c.id)).scalar_subquery())
            over = {"reap_at": jobs.c.started_at}
            if self.chance.random() < 0.5:
                leased = jobs.c.lease_token.is_not(None)
                over["lease_expires_at"] = case((leased, jobs.c.started_at))
            self.free(tx, update(jobs).values(over), jobs.c.id)
        self.desk.reap()

    def free(self, tx: Any, change: Any, ids: Any) -> None:
        # Like every change of many jobs, it skips jobs that others have locked.
        held = select(jobs.c.id).where(jobs.c.id == ids).with_for_update(skip_locked=True)
        mine = [row.id for row in tx.execute(held)]
        tx.execute(change.where(jobs.c.id.in_(mine), *self.leased(change)))

    def leased(self, change: Any) -> list[Any]:
        return [jobs.c.reap_at.is_not(None)] if change.is_update else []


def test_totals_after_a_random_history_of_many_at_once_equal_a_recount(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that operations do not end at once.
    monkeypatch.setattr(operations, "AT_ONCE", 5)
    seed = os.environ.get("HISTORY_SEED", str(random.randrange(10**9)))
    print(f"HISTORY_SEED={seed} HISTORY_STEPS={STEPS}")
    failures: list[BaseException] = []

    def run(number: int) -> None:
        history = History(desk, f"{seed}-{number}")
        try:
            for _ in range(STEPS):
                history.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    kinds = recount(desk)
    assert kinds
    assert thought(desk) == kinds
    for status in JobStatus:
        for types in (TYPES, "a", "ab"):
            for priorities in (list(Priority), [Priority.HIGH]):
                wanted = itertools.product([status], types, priorities)
                names = [("job_type", t) for t in types]
                names += [("priority", p.label) for p in priorities]
                query = "&".join(f"{n}={v}" for n, v in [("status", status.label), *names])
                there = sum(kinds.get((desk.workspace_id, *kind), 0) for kind in wanted)
                assert total(desk, query) == there, query
    assert total(desk, "") == sum(kinds.values())
    with desk.world.transaction() as tx:
        assert counts.check(tx, desk.workspace_id) == []


def test_fold_changes_no_total_and_leaves_one_row_for_a_kind(desk: Desk) -> None:
    for _ in range(5):
        desk.create(job_type="a")
    desk.claim(limit=2)
    before = thought(desk)
    with desk.world.transaction() as tx:
        counts.fold(tx)
    assert thought(desk) == before
    with desk.world.transaction() as tx:
        assert not tx.execute(select(func.count()).select_from(job_count_changes)).scalar_one()


def test_rolled_back_jobs_are_not_counted(desk: Desk) -> None:
    desk.create(job_type="a")

    def change_and_fail() -> None:
        with desk.world.transaction() as tx:
            tx.execute(update(jobs).values(priority=0))
            tx.execute(update(jobs).values(priority=9))

    with pytest.raises(IntegrityError):
        change_and_fail()
    assert total(desk, "priority=normal") == 1


def test_check_repairs_counts_that_are_wrong(desk: Desk) -> None:
    desk.create(job_type="a")
    with desk.world.transaction() as tx:
        tx.execute(
            insert(job_count_changes).values(
                workspace_id=desk.workspace_id, status=0, job_type="a", priority=1, n=7
            )
        )
    assert total(desk, "") == 8
    command = ["jobapi", "db-check"]
    result = desk.world.app.test_cli_runner().invoke(args=command)
    assert result.exit_code == 1
    assert f"workspace {desk.workspace_id}: pending a normal: -7" in result.output
    assert total(desk, "") == 1
    result = desk.world.app.test_cli_runner().invoke(args=command)
    assert (result.exit_code, total(desk, "")) == (0, 1)
