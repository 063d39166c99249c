"""The examples run, and do what their descriptions say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet
import pytest

from jobapi.client import Client

from ..factories import until
from ..served import BIN, Service, environment, jobapi
from ..stand_ins import install

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE = EXAMPLES / "data_processing"


@pytest.fixture
def demo(tmp_path: Path) -> Any:
    env = environment(
        JOBAPI_ENV="development",
        JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"),
        DATA_FOLDER=str(tmp_path),
    )
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    yield service, {**env, "JOBAPI_URL": service.url}
    service.close()


def run_worker(name: str, env: dict[str, str]) -> None:
    """Run a worker of an example, found through ``PYTHONPATH``, until no jobs are left."""
    command = [BIN / "jobapi", "worker", name, "--until-idle"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr


def test_pipeline_of_the_guide_writes_parquet(demo: Any, tmp_path: Path) -> None:
    service, env = demo
    done = subprocess.run(
        [sys.executable, EXAMPLE / "run.py"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "success {" in done.stdout
    table = pyarrow.parquet.read_table(tmp_path / "raw_data.parquet").to_pydict()
    assert table["region"] == ["east", "north", "south", "west"]
    # A hundredth of the rows had a gap, and duplicates count once.
    assert sum(table["amount_count"]) == 99_000
    with Client(service.url, username="demo", password="demo-password") as client:
        (job,) = client.jobs(1)
        assert job.result is not None
        assert job.result["rows_read"] == 102_000
        refused = client.create(1, "data_processing", metadata={"input_file": "../etc/passwd"})
        unknown = client.create(
            1, "data_processing", metadata={"input_file": "raw_data.csv", "operations": ["melt"]}
        )
        subprocess.run(
            [sys.executable, EXAMPLE / "run.py"], env=env, capture_output=True, check=True
        )
        for made in (refused, unknown):
            job = client.get(1, made.job_id)
            assert (job.status, job.retry_count) == ("failed", 0)


def test_shell_worker_does_the_same_work(demo: Any, tmp_path: Path) -> None:
    service, env = demo
    (tmp_path / "in.csv").write_text(
        "order,region,quantity,price\n1,north,2,1.50\n1,north,2,1.50\n2,south,,3\n3,south,4,0.25\n"
    )
    missing = tuple(name for name in ("curl", "jq") if shutil.which(name) is None)
    install(tmp_path, missing)
    with Client(service.url, username="demo", password="demo-password") as client:
        good = client.create(1, "data_processing", metadata={"input_file": "in.csv"})
        bad = client.create(1, "data_processing", metadata={"input_file": "none.csv"})
        made = client.request("POST", "/workspace/1/keys", json={"name": "w", "role": "worker"})
        done = subprocess.run(
            ["sh", EXAMPLE / "worker.sh", "--until-idle"],
            env={**env, "JOBAPI_TOKEN": made["key"], "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert client.result(1, good.job_id) == {"output_file": "in.regions.csv"}
        assert (tmp_path / "in.regions.csv").read_text() == "north,3.00\nsouth,1.00\n"
        assert client.get(1, bad.job_id).error == "There is no such input_file."


def test_nightly_report_is_made_by_its_schedule(demo: Any, tmp_path: Path) -> None:
    service, env = demo
    folder = EXAMPLES / "schedules"
    with Client(service.url, username="demo", password="demo-password") as client:
        made = client.request("POST", "/workspace/1/keys", json={"name": "n", "role": "member"})
        env = {
            **env,
            "JOBAPI_TOKEN": made["key"],
            "PYTHONPATH": str(folder),
            "REPORT_FOLDER": str(tmp_path),
        }
        for _ in range(2):
            subprocess.run([sys.executable, folder / "nightly_report.py"], env=env, check=True)
        (schedule,) = client.schedules(1)
        assert (schedule.cron, schedule.timezone) == ("30 2 * * *", "Europe/Berlin")
        # A tick in a moment, in place of that of the night.
        client.update_schedule(1, schedule.schedule_id, every_seconds=1)
        until(lambda: list(client.jobs(1, schedule_id=schedule.schedule_id)))
        client.pause_schedule(1, schedule.schedule_id)
        run_worker("nightly_report:worker", env)
        job, *_ = client.jobs(1, schedule_id=schedule.schedule_id)
        result = client.result(1, job.job_id)
    assert result is not None
    assert result["failed"] == 0
    assert (tmp_path / f"failures-{result['day']}.txt").read_text().startswith("Failures on 20")


@pytest.mark.parametrize(
    ("module", "job_type", "metadata", "result"),
    [
        ("async_tasks", "call_service", {"seconds": 0.1}, {"answer": "done"}),
        ("process_pool", "count_primes", {"below": 5000}, {"primes": 669}),
        ("dask_cluster", "sum_squares", {"below": 4}, {"sum": 14}),
        ("celery_dispatcher", "invoice", {"order": 7}, {"invoice": "7-EUR"}),
    ],
)
def test_engines_run_a_job(
    demo: Any, tmp_path: Path, module: str, job_type: str, metadata: Any, result: Any
) -> None:
    service, env = demo
    env = {**env, "PYTHONPATH": str(EXAMPLES / "engines")}
    helper = None
    with Client(service.url, username="demo", password="demo-password") as client:
        made = client.request("POST", "/workspace/1/keys", json={"name": "w", "role": "worker"})
        env["JOBAPI_TOKEN"] = made["key"]
        if module == "celery_dispatcher":
            # The example's broker is Redis.
            (tmp_path / "local.py").write_text(LOCAL_BROKER)
            env["PYTHONPATH"] += f":{tmp_path}"
            helper = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "local", "worker", "--pool", "solo"],
                env=env,
                cwd=tmp_path,
            )
            module = "local"
        elif module == "dask_cluster":
            (tmp_path / "cluster.py").write_text(LOCAL_CLUSTER)
            helper = subprocess.Popen([sys.executable, tmp_path / "cluster.py"], env=env)
            until((tmp_path / "address").exists, 60)
            env["DASK_SCHEDULER"] = (tmp_path / "address").read_text()
        job = client.create(1, job_type, metadata=metadata)
        try:
            target = "dispatcher" if helper is not None and module == "local" else "worker"
            run_worker(f"{module}:{target}", env)
            assert client.wait(job, timeout=30).result == result
        finally:
            if helper is not None:
                helper.terminate()
                helper.wait(20)


LOCAL_BROKER = """
import os
from celery_app import app
from celery_dispatcher import dispatcher

folder = os.path.dirname(__file__) + "/broker"
os.makedirs(folder, exist_ok=True)
app.conf.broker_url = "filesystem://"
app.conf.broker_transport_options = {
    "data_folder_in": folder, "data_folder_out": folder, "control_folder": folder,
}
"""

LOCAL_CLUSTER = """
import os, time
from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None)
    address = os.path.dirname(__file__) + "/address"
    with open(address + ".new", "w") as file:
        file.write(cluster.scheduler_address)
    os.rename(address + ".new", address)
    time.sleep(600)
"""


def test_receiver_of_webhooks_verifies_messages_and_processes_each_once(tmp_path: Path) -> None:
    env = environment(
        JOBAPI_ENV="development",
        JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"),
        JOBAPI_WEBHOOK_ALLOW_HTTP="true",
        JOBAPI_WEBHOOK_PRIVATE_ADDRESSES="true",
    )
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(tmp_path, env)
    receiver = None
    try:
        with Client(service.url, username="demo", password="demo-password") as client:
            # Its address is known only when it runs, and that needs the secret.
            webhook = client.create_webhook(1, "http://127.0.0.1:9/")
            receiver = subprocess.Popen(
                [sys.executable, EXAMPLES / "webhooks" / "receiver.py", "0"],
                env={
                    **env,
                    "WEBHOOK_SECRET": str(webhook.secret),
                    "WEBHOOK_DATABASE": str(tmp_path / "seen.sqlite3"),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert receiver.stdout is not None
            url = receiver.stdout.readline().strip()
            client.edit_webhook(1, webhook.webhook_id, url=url)
            sent = client.test_webhook(1, webhook.webhook_id)
            assert receiver.stdout.readline() == f"new webhook.test {sent.delivery_id}\n"
            ids = (1, webhook.webhook_id, sent.delivery_id)
            until(lambda: client.delivery(*ids).status == "success")
            client.redeliver(*ids)
            assert receiver.stdout.readline() == f"again webhook.test {sent.delivery_id}\n"
            forged = dict.fromkeys(("webhook-id", "webhook-signature"), "x")
            forged["webhook-timestamp"] = str(int(time.time()))
            assert httpx2.post(url, content=b"{}", headers=forged, timeout=30).status_code == 401
    finally:
        if receiver is not None:
            receiver.kill()
            receiver.communicate()
        service.close()
