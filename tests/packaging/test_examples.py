"""The examples do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from jobapi.client import Client

from ..served import Service, environment, jobapi
from ..stand_ins import install

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "data_processing"


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
