"""The guide, literally: every shell block in it runs as written and answers as it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask

from jobapi.rules.jobs import JobStatus, Priority

from ..conftest import service_settings
from ..factories import World
from ..served import Service, jobapi
from ..stand_ins import install

GUIDE = (Path(__file__).parents[1] / "guide" / "job-api-guide.md").read_text()
ADDED = {
    *("metadata", "timeout_seconds", "error", "due_at"),
    *("concurrency_key", "unique_key", "expires_at", "schedule_id", "scheduled_for"),
}
"""What the contract adds to the guide's job."""

STATUS_CODES = "HTTP Status Codes"
TABLES = {
    "URL Patterns",
    "Job Status Types",
    "Job Priority Types",
    STATUS_CODES,
    "Authentication Headers",
}
"""Blocks that are marked as shell and are tables to read."""


class Block(NamedTuple):
    """A shell block, the heading above it, and the JSON answer below it."""

    heading: str
    shell: str
    answer: dict[str, Any] | None


def blocks() -> Iterator[Block]:
    heading = ""
    parts = r"^#{2,3} (?P<heading>[^\n]+)$|^```(?P<kind>\w+)\n(?P<text>.*?)^```"
    found: list[tuple[str, str, str]] = []
    for match in re.finditer(parts, GUIDE, re.M | re.S):
        if match["heading"]:
            heading = re.sub(r"[*]|[^\w\s()&-]", "", match["heading"]).strip()
        else:
            found.append((heading, match["kind"], match["text"]))
    for number, (heading, kind, text) in enumerate(found):
        if kind == "bash":
            below = found[number + 1] if number + 1 < len(found) else ("", "", "")
            answer = json.loads(below[2]) if below[1] == "json" else None
            yield Block(heading, text, answer)


BLOCKS = list(blocks())
TABLE_BLOCKS = {block.heading: block.shell for block in BLOCKS if block.heading in TABLES}
SHELL_BLOCKS = [block for block in BLOCKS if block.heading not in TABLES]


def test_guide_has_the_blocks_that_are_run_here() -> None:
    assert GUIDE.count("```bash") == len(BLOCKS) == 23
    assert TABLE_BLOCKS.keys() == TABLES
    assert sum(block.shell.count("curl ") for block in SHELL_BLOCKS) == GUIDE.count("curl -")


# The tables


def test_url_patterns_are_routes(app: Flask) -> None:
    rows = re.findall(r"^(GET|POST|PATCH) +(\S+)", TABLE_BLOCKS["URL Patterns"], re.M)
    assert len(rows) == 9
    routes = {
        (method, rule.rule.replace("<", "{").replace(">", "}"))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    assert set(rows) <= routes


@pytest.mark.parametrize(
    ("heading", "enum"), [("Job Status Types", JobStatus), ("Job Priority Types", Priority)]
)
def test_types_are_those_there_are(heading: str, enum: Any) -> None:
    names = re.findall(r"^(\w+)", TABLE_BLOCKS[heading], re.M)
    assert names == [member.label for member in enum]


def test_status_codes_are_documented_answers(app: Flask) -> None:
    codes = set(re.findall(r"^(\d{3})", TABLE_BLOCKS[STATUS_CODES], re.M))
    document = app.test_client().get("/openapi.json").json
    create = document["paths"]["/workspace/{workspace_id}/jobs"]["post"]["responses"]
    assert codes - {"200"} <= create.keys()


# The shell


class Reader:
    """A reader of the guide who runs its blocks against a running service."""

    def __init__(self, service: Service, folder: Path, *, stand_ins: bool) -> None:
        self.service = service
        self.client = service.client("your_username", "your_password")
        token = self.client.headers["Authorization"].removeprefix("Bearer ")
        tools = folder / "bin"
        tools.mkdir()
        wanted = ("curl", "jq")
        install(tools, tuple(t for t in wanted if stand_ins or shutil.which(t) is None))
        self.folder = folder
        self.variables = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "TOKEN": token,
        }

    def run(self, shell: str, job_id: str = "", **variables: str) -> list[Any]:
        """Run a block; the JSON values that it prints."""
        shell = shell.replace("http://localhost:8000", self.service.url)
        shell = re.sub(r"job_(abc123|xyz789)", job_id, shell) if job_id else shell
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", shell],
            env={**self.variables, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{shell}\n{done.stdout}\n{done.stderr}"
        self.printed = done.stdout
        return list(values(done.stdout))

    def job(self, *changes: Any, **body: Any) -> str:
        """A job, changed one time after another."""
        body = {"job_type": "data_analysis", "workspace_id": 1, "priority": "high", **body}
        job = self.client.post("/workspace/1/jobs", json=body).json()
        for change in changes:
            path = f"/workspace/1/jobs/{job['job_id']}"
            assert self.client.patch(path, json=change).status_code == 200
        return str(job["job_id"])


def values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at] in '{["':
            value, at = decoder.raw_decode(text, at)
            yield value
        else:
            # A line for a person, or the space between two values.
            at = at + 1 if text[at].isspace() else text.find("\n", at) + 1 or len(text)


@pytest.fixture(params=["tools", "stand-ins"])
def reader(
    request: Any, database: str, new_database: Any, make_app: Any, tmp_path: Path
) -> Iterator[Reader]:
    url = new_database(database)
    world = World(make_app(url))
    user = world.user("your_username", password="your_password")
    for name in ("First", "Second"):
        world.workspace(user, name)
    service = Service(tmp_path, service_settings(url, tmp_path))
    yield Reader(service, tmp_path, stand_ins=request.param == "stand-ins")
    service.close()


RUNNING = {"status": "running", "progress_percent": 75, "progress_message": "Batch 3 of 4"}
SUCCESS = {
    "status": "completed",
    "result": {"output_file": "analysis_results.csv", "rows_processed": 50000, "success": True},
}
FAILED = {"status": "failed", "error": "disk full"}
PARTIAL = {"status": "running", "result": {"partial_results": "temp_data.json"}}


def like(answer: dict[str, Any], guide: dict[str, Any]) -> None:
    """An answer has the guide's fields, each of the guide's kind."""
    assert answer.keys() - ADDED == guide.keys()
    for name, example in guide.items():
        if example is not None and answer[name] is not None:
            assert type(answer[name]) is type(example), name


def test_every_shell_block_runs_and_answers_as_the_guide_says(reader: Reader) -> None:
    ran = 0
    for block in SHELL_BLOCKS:
        name = re.sub(r"\W+", "_", block.heading).strip("_").lower()
        globals()[f"_{name}"](reader, block)
        ran += 1
    assert ran == len(BLOCKS) - len(TABLES)


def _authentication(reader: Reader, block: Block) -> None:
    if block.shell.startswith("export"):
        reader.run(block.shell + '\ntest -n "$TOKEN"')
        return
    # The answer stands in the same block, below a comment.
    shell, _, answer = block.shell.partition("# Response will include access_token\n")
    (tokens,) = reader.run(shell)
    guide = json.loads(answer)
    assert guide.keys() <= tokens.keys()
    assert tokens["token_type"] == guide["token_type"]
    reader.variables["TOKEN"] = tokens["access_token"]


def _list_jobs_in_workspace(reader: Reader, block: Block) -> None:
    reader.job(RUNNING)
    (page,) = reader.run(block.shell)
    assert block.answer is not None
    # Besides what the guide shows, it says where the list goes on.
    assert page["pagination"].items() >= block.answer["pagination"].items()
    (job,), (guide,) = page["data"], block.answer["data"]
    like(job, guide)
    assert job["result"] == {"progress_percent": 75, "progress_message": "Batch 3 of 4"}
    assert (job["status"], job["workspace_id"], job["max_retries"]) == ("running", 1, 3)


def _advanced_filtering_pagination(reader: Reader, block: Block) -> None:
    pending, running = reader.job(job_type="other"), reader.job(RUNNING, priority="low")
    filtered, paged, newest, combined = reader.run(block.shell)
    assert running in [job["job_id"] for job in filtered["data"]]
    assert {job["status"] for job in filtered["data"]} == {"running"}
    assert [job["job_id"] for job in paged["data"]] == [pending]
    assert paged["pagination"]["limit"] == 10
    times = [job["created_at"] for job in newest["data"]]
    assert times == sorted(times, reverse=True)
    assert newest["data"][0]["job_id"] == running
    assert {job["priority"] for job in combined["data"]} == {"high"}
    assert combined["pagination"]["limit"] == 20


def _create_job_in_workspace(reader: Reader, block: Block) -> None:
    (job,) = reader.run(block.shell)
    guide = block.answer
    assert guide is not None
    like(job, guide)
    varying = {"job_id", "created_by", "created_at", "updated_at"}
    for name in guide.keys() - varying:
        assert job[name] == guide[name], name
    assert job["metadata"]["filters"] == {"column": "value"}


def _get_job_details(reader: Reader, block: Block) -> None:
    (job,) = reader.run(block.shell, reader.job(RUNNING, SUCCESS))
    assert block.answer is not None
    like(job, block.answer)
    assert job["status"] == "success"
    assert job["result"] == SUCCESS["result"]


def _get_job_status(reader: Reader, block: Block) -> None:
    (status,) = reader.run(block.shell, reader.job(RUNNING))
    assert block.answer is not None
    assert status.keys() == block.answer.keys()
    assert status["progress_percent"] == block.answer["progress_percent"]
    assert status["status"] == block.answer["status"]


def _get_job_result(reader: Reader, block: Block) -> None:
    (result,) = reader.run(block.shell, reader.job(RUNNING, SUCCESS))
    assert block.answer is not None
    assert result.keys() == block.answer.keys()
    assert result["result"] == SUCCESS["result"]


def _update_job(reader: Reader, block: Block) -> None:
    (job,) = reader.run(block.shell, reader.job())
    assert block.answer is not None
    like(job, block.answer)
    for name in ("result", "status", "retry_count", "max_retries", "completed_at"):
        assert job[name] == block.answer[name], name


def _cancel_job(reader: Reader, block: Block) -> None:
    (job,) = reader.run(block.shell, reader.job(PARTIAL))
    assert block.answer is not None
    like(job, block.answer)
    for name in ("result", "status", "retry_count"):
        assert job[name] == block.answer[name], name
    assert job["completed_at"] is not None


def _retry_job(reader: Reader, block: Block) -> None:
    (job,) = reader.run(block.shell, reader.job(RUNNING, FAILED))
    assert block.answer is not None
    like(job, block.answer)
    for name in ("result", "status", "retry_count", "started_at", "completed_at"):
        assert job[name] == block.answer[name], name


def _list_all_user_jobs_deprecated(reader: Reader, block: Block) -> None:
    everything, first = reader.run(block.shell)
    assert everything["pagination"]["total"] == first["pagination"]["total"] > 0


def _scenario_data_processing_pipeline(reader: Reader, block: Block) -> None:
    created, status, result = reader.run(block.shell, reader.job(RUNNING, SUCCESS))
    assert created["status"] == "pending"
    assert created["metadata"]["operations"] == ["clean", "transform", "aggregate"]
    assert status["status"] == result["status"] == "success"
    assert status["progress_percent"] == 100


def _scenario_job_management_dashboard(reader: Reader, block: Block) -> None:
    job_id = reader.job(RUNNING, priority="urgent")
    running, recent, high, cancelled = reader.run(block.shell, job_id)
    assert {job["status"] for job in running["data"]} == {"running"}
    assert recent["data"][0]["job_id"] == job_id
    assert len(recent["data"]) == 10
    assert {job["priority"] for job in high["data"]} == {"high", "urgent"}
    assert (cancelled["job_id"], cancelled["status"]) == (job_id, "cancelled")


def _scenario_batch_job_processing(reader: Reader, block: Block) -> None:
    failed = {reader.job(RUNNING, FAILED), reader.job(FAILED)}
    printed = reader.run(block.shell)
    created, batch, retried = printed[:5], printed[5], printed[6:]
    assert [job["metadata"]["batch_id"] for job in created] == [1, 2, 3, 4, 5]
    assert {job["job_id"] for job in batch["data"]} == {job["job_id"] for job in created}
    assert failed == {job["job_id"] for job in retried}
    assert {job["status"] for job in retried} == {"pending"}


def _check_response_status(reader: Reader, block: Block) -> None:
    (page,) = reader.run(block.shell)
    assert reader.printed.startswith("Success\n")
    assert page["pagination"]["total"] > 0
    (problem,) = reader.run(block.shell, TOKEN="nonsense")
    assert reader.printed.startswith("Error: HTTP 401\n")
    assert isinstance(problem["detail"], str)


def _handle_common_errors(reader: Reader, block: Block) -> None:
    for status, says in (
        (401, "Token expired, please login again\n"),
        (403, "No access to this workspace\n"),
        (404, "Job or workspace not found\n"),
        (422, "Invalid request data, check job parameters\n"),
    ):
        path = "/workspace/999/jobs" if status == 404 else "/jobs?limit=0"
        if status == 403:
            path = _workspace_of_somebody_else(reader)
        headers = {"Authorization": "Bearer nonsense"} if status == 401 else {}
        answer = reader.client.get(path, headers=headers)
        assert answer.status_code == status
        (reader.folder / "response.json").write_text(answer.text)
        printed = reader.run(f"response={status}\n{block.shell}")
        assert reader.printed.startswith(says)
        assert printed == ([answer.json()["detail"]] if status == 422 else [])


def _workspace_of_somebody_else(reader: Reader) -> str:
    env = reader.service.env
    made = [
        jobapi("users", "create", "else", "--password", "a password", env=env),
        jobapi("workspaces", "create", "Third", "--owner", "else", env=env),
    ]
    assert all(done.returncode == 0 for done in made)
    return f"/workspace/{made[1].stdout.strip()}/jobs"


def _workspace_security(reader: Reader, block: Block) -> None:
    job_id = reader.job()
    here, elsewhere = reader.run(block.shell, job_id)
    assert here["job_id"] == job_id
    assert elsewhere["status"] == 404
    assert elsewhere["detail"] == "Job not found in specified workspace"
