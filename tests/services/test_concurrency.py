"""Many at once: threads in one process, several processes, and processes that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from ..factories import PASSWORD, Desk
from ..served import Service


def at_once(desk: Desk, calls: list[tuple[str, str, Any]]) -> list[int]:
    """Make the calls at the same moment; their status codes in order."""
    gate = threading.Barrier(len(calls))

    def go(call: tuple[str, str, Any]) -> int:
        method, path, body = call
        gate.wait(20)
        return int(
            desk.world.app.test_client()
            .open(
                f"{desk.jobs_path}{path}",
                method=method,
                headers={"Authorization": f"Bearer {desk.token}"},
                **({} if body is None else {"json": body}),
            )
            .status_code
        )

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(go, calls))


def test_update_of_different_keys_at_once_loses_none(desk: Desk) -> None:
    job_id = desk.job_in("running")["job_id"]
    for turn in range(3):
        calls = [("PATCH", f"/{job_id}", {"result": {f"{turn}-{n}": n}}) for n in range(8)]
        assert set(at_once(desk, calls)) == {200}
    result = desk.get(f"/{job_id}").json["result"]
    assert result == {f"{turn}-{n}": n for turn in range(3) for n in range(8)}


def test_reports_on_the_same_jobs_at_once_are_all_judged(desk: Desk) -> None:
    said = [{"status": "success"}, {}, {"status": "success", "result": {"a": 1}}, {"begun": True}]
    for turn in range(3):
        desk.post("/batch", json={"jobs": [{"job_type": "t"}] * 60})
        leases = [
            {"job_id": job["job_id"], "lease_token": job["lease_token"]}
            for job in desk.claim(limit=60)
        ]
        # Each request sets other values for every job.
        bodies = [
            [{**lease, **said[(place + n + turn) % 4]} for place, lease in enumerate(leases)]
            for n in range(8)
        ]
        calls = [("POST", "/report", {"reports": body}) for body in bodies]
        assert set(at_once(desk, calls)) == {200}
    assert desk.get(query_string={"status": "success"}).json["pagination"]["total"] == 180


def test_ends_at_once_one_wins(desk: Desk) -> None:
    for _ in range(8):
        path = f"/{desk.job_in('running')['job_id']}"
        answers = at_once(
            desk,
            [
                ("POST", f"{path}/cancel", None),
                ("PATCH", path, {"status": "success", "result": {"by": "success"}}),
                ("PATCH", path, {"status": "failed", "error": "by failed"}),
                ("POST", f"{path}/cancel", {"reason": "other"}),
            ],
        )
        assert sorted(answers) == [200, 409, 409, 409]
        job = desk.get(path).json
        winner = answers.index(200)
        assert job["status"] == ("cancelled", "success", "failed", "cancelled")[winner]
        assert (job["error"] == "by failed") == (winner == 2)
        assert (job["result"] or {}).get("by") == ("success" if winner == 1 else None)


def test_retries_at_once_count_once(desk: Desk) -> None:
    path = f"/{desk.job_in('failed')['job_id']}"
    answers = at_once(desk, [("POST", f"{path}/retry", None)] * 8)
    assert sorted(answers) == [200] + [409] * 7
    assert desk.get(path).json["retry_count"] == 1


def test_changes_at_once_under_one_etag_happen_once(desk: Desk) -> None:
    job_id = desk.create()["job_id"]
    tag = desk.get(f"/{job_id}").headers["ETag"]
    gate = threading.Barrier(6)

    def go(number: int) -> int:
        gate.wait(20)
        client = desk.world.app.test_client()
        headers = {"Authorization": f"Bearer {desk.token}", "If-Match": tag}
        body = {"metadata": {"by": number}}
        path = f"{desk.jobs_path}/{job_id}"
        return int(client.patch(path, json=body, headers=headers).status_code)

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(go, range(6))) == [200] + [412] * 5


# Processes


def client(service: Service) -> httpx2.Client:
    return service.client("boss", PASSWORD)


JOB = {"job_type": "x", "workspace_id": 1}


def write(session: httpx2.Client, number: int, acknowledged: list[str]) -> Counter[int]:
    """Create and finish jobs; what was answered."""
    answers: Counter[int] = Counter()
    for _ in range(number):
        created = session.post("/workspace/1/jobs", json=JOB)
        answers[created.status_code] += 1
        if created.status_code == 201:
            job_id = created.json()["job_id"]
            acknowledged.append(job_id)
            path = f"/workspace/1/jobs/{job_id}"
            answers[session.patch(path, json={"status": "success"}).status_code] += 1
    return answers


def test_writers_at_once_in_two_processes_all_get_answers(serve: Any) -> None:
    service = serve("--workers", "2", "--threads", "8")
    session = client(service)
    acknowledged: list[str] = []
    with ThreadPoolExecutor(16) as pool:
        turns = [pool.submit(write, session, 15, acknowledged) for _ in range(16)]
        answers = sum((turn.result() for turn in turns), Counter())
    assert answers == {201: 240, 200: 240}
    query = "/workspace/1/jobs?status=success&limit=1"
    assert session.get(query).json()["pagination"]["total"] == 240
    assert len(set(acknowledged)) == 240
    assert "locked" not in service.log.read_text()


def test_runs_that_begin_at_once_in_two_processes_are_one_for_each_job(serve: Any) -> None:
    session = client(serve("--workers", "2", "--threads", "8"))
    session.post("/workspace/1/jobs/batch", json={"jobs": [{"job_type": "x"}] * 20})
    claimed = session.post("/workspace/1/jobs/claim", json={"limit": 20, "begin": False}).json()
    leases = [{name: job[name] for name in ("job_id", "lease_token")} for job in claimed["data"]]
    assert len(leases) == 20
    gate = threading.Barrier(6)

    def begin(number: int) -> list[bool]:
        accepted = []
        gate.wait(20)
        for lease in leases:
            report = {**lease, "begun": True, "run_id": f"run {number}"}
            answer = session.post("/workspace/1/jobs/report", json={"reports": [report]})
            assert answer.status_code == 200, answer.text
            accepted.append(answer.json()["data"][0]["accepted"])
        return accepted

    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(begin, range(6)))
    assert [sum(of_job) for of_job in zip(*runs, strict=True)] == [1] * 20


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_jobs_that_were_acknowledged_outlive_the_service(serve: Any, how: str) -> None:
    service = serve()
    session = client(service)
    acknowledged: list[str] = []

    def create() -> None:
        with contextlib.suppress(httpx2.TransportError):
            while True:
                response = session.post("/workspace/1/jobs", json=JOB)
                assert response.status_code == 201
                acknowledged.append(response.json()["job_id"])

    with ThreadPoolExecutor(6) as pool:
        turns = [pool.submit(create) for _ in range(6)]
        while len(acknowledged) < 60:
            time.sleep(0.01)
        if how == "stop":
            assert service.stop() == 0
        else:
            service.kill()
        for turn in turns:
            turn.result()
    again = client(serve())
    for job_id in acknowledged:
        assert again.get(f"/workspace/1/jobs/{job_id}").json()["status"] == "pending"
    # A request that was under way may have been carried out or not: at most one per writer.
    total = again.get("/workspace/1/jobs?limit=1").json()["pagination"]["total"]
    assert len(acknowledged) <= total <= len(acknowledged) + 6


def test_stop_lets_requests_under_way_finish(serve: Any) -> None:
    service = serve("--workers", "1", "--threads", "4")
    session = client(service)
    body = b'{"job_type": "x", "workspace_id": 1}'
    started = threading.Event()

    def slowly() -> Any:
        yield body[:10]
        started.set()
        time.sleep(1)
        yield body[10:]

    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(session.post, "/workspace/1/jobs", content=slowly(), headers=headers)
        assert started.wait(10)
        assert service.stop() == 0
        assert slow.result().status_code == 201


def test_worker_process_that_is_killed_is_replaced(serve: Any) -> None:
    service = serve("--workers", "1")
    parent = str(service.process.pid)
    children = subprocess.check_output(["pgrep", "-P", parent], text=True).split()
    os.kill(int(children[0]), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if service.get("/health/ready").status_code == 200:
                break
        time.sleep(0.1)
    assert client(service).get("/workspace/1/jobs").status_code == 200
