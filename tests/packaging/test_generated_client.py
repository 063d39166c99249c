"""A client that openapi-python-client generates from the served document, against the service."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask

from ..factories import PASSWORD, Desk
from ..served import BIN

NAME = "jobapi_generated"


class Generated:
    """The generated package: its operations and models by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / NAME
        self.models = importlib.import_module(f"{NAME}.models")
        self.package = importlib.import_module(NAME)
        self.modules = {
            path.stem: ".".join(path.relative_to(folder).with_suffix("").parts)
            for path in (self.folder / "api").glob("*/*.py")
            if path.stem != "__init__"
        }

    def operation(self, name: str) -> Any:
        """The generated function, which returns the status and the parsed response."""
        return importlib.import_module(self.modules[name]).sync_detailed

    def client(self, app: Flask, token: str | None = None) -> Any:
        """A client that calls the application itself."""
        options = {
            "base_url": "http://jobapi.test",
            "httpx_args": {"transport": httpx.WSGITransport(app=app)},
        }
        if token is None:
            return self.package.Client(**options)
        return self.package.AuthenticatedClient(token=token, **options)


@pytest.fixture(scope="session")
def generated(_apps: dict[str, Flask], tmp_path_factory: Any) -> Iterator[Generated]:
    """Generated once; a warning of the generator is a failure."""
    folder = tmp_path_factory.mktemp("generated")
    document = folder / "openapi.json"
    document.write_bytes(_apps["sqlite"].test_client().get("/openapi.json").data)
    config = folder / "config.json"
    config.write_text(json.dumps({"post_hooks": []}))
    made = subprocess.run(
        [
            BIN / "openapi-python-client",
            "generate",
            "--fail-on-warning",
            *("--path", document, "--config", config),
            *("--meta", "none", "--output-path", folder / NAME),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    yield Generated(folder)
    sys.path.remove(str(folder))


class Caller:
    """A desk's user with a generated client."""

    def __init__(self, generated: Generated, desk: Desk) -> None:
        self.generated, self.models = generated, generated.models
        self.client = generated.client(desk.world.app, desk.token)
        self.workspace_id = desk.workspace_id

    def call(self, operation: str, *arguments: Any, **kw: Any) -> Any:
        """The parsed answer of an operation in the workspace, whatever its status."""
        function = self.generated.operation(operation)
        return function(self.workspace_id, *arguments, client=self.client, **kw).parsed


@pytest.fixture
def caller(generated: Generated, desk: Desk) -> Caller:
    return Caller(generated, desk)


def test_generated_names_are_those_of_the_document(generated: Generated) -> None:
    classes = {name for name in dir(generated.models) if name[0].isupper()}
    enumerations = {"JobStatus", "JobStatusInput", "Priority", "Role", "EventKind", "Outcome"}
    assert {*enumerations, "Action", "OperationStatus", "JsonObject", "Problem"} <= classes
    assert [name for name in classes if re.search(r"Type\d", name)] == []
    # An enumeration in place of a reference would add a class with the field's name.
    duplicates = {name for name in classes if re.search(r".(Status|Priority|Role|Kind)$", name)}
    statuses = {"DeliveryStatus", "JobStatus", "OperationStatus", "ReportedStatus"}
    assert duplicates == {*statuses, "EventKind", "KeyRole"}


def test_generated_client_logs_in_creates_and_reads(generated: Generated, desk: Desk) -> None:
    app, models = desk.world.app, generated.models
    desk.world.user("anna", password=PASSWORD)
    body = models.LoginRequest(username="anna", password=PASSWORD)
    tokens = generated.operation("login")(client=generated.client(app), body=body).parsed
    client = generated.client(app, tokens.access_token)
    me = generated.operation("get_me")(client=client).parsed
    assert me.username == "anna"

    named = models.WorkspaceName(name="Generated")
    workspace = generated.operation("create_workspace")(client=client, body=named).parsed
    assert workspace.role == models.Role.OWNER
    url = workspace.workspace_id
    smallest = models.JobCreate(job_type="resize", workspace_id=url)
    job = generated.operation("create_job")(url, client=client, body=smallest).parsed
    assert (job.status, job.priority) == (models.JobStatus.PENDING, models.Priority.NORMAL)
    assert job.max_retries == 3
    assert job.metadata is None

    moment = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    whole = models.JobCreate(
        job_type="resize",
        workspace_id=url,
        priority=models.Priority.HIGH,
        metadata=models.JsonObject.from_dict({"sizes": [1, {"deep": None}]}),
        scheduled_at=moment,
        max_retries=None,
    )
    create = generated.operation("create_job")
    made = [create(url, client=client, body=whole, idempotency_key="once") for _ in range(2)]
    assert [each.status_code for each in made] == [201, 201]
    assert made[0].parsed == made[1].parsed
    job = generated.operation("get_job")(url, made[0].parsed.job_id, client=client).parsed
    assert job.metadata.to_dict() == {"sizes": [1, {"deep": None}]}
    assert job.scheduled_at == job.due_at == moment


def test_generated_client_adds_members_and_keys(caller: Caller, desk: Desk) -> None:
    models = caller.models
    desk.world.user("bert")
    body = models.MemberAdd(username="bert", role=models.Role.WORKER)
    assert caller.call("add_member", body=body).role == models.Role.WORKER
    key = models.KeyCreate(name="ci", role=models.KeyRole.MEMBER)
    assert caller.call("create_key", body=key).key.startswith("jk_")
    kept = models.WorkspaceUpdate(retention=models.RetentionUpdate(success=30))
    assert caller.call("update_workspace", body=kept).retention.success == 30


def test_generated_client_filters_and_sorts(caller: Caller, desk: Desk) -> None:
    models = caller.models
    low = desk.create(priority="low", metadata={"batch_id": 3})
    urgent = desk.create(priority="urgent", job_type="other")
    failed = desk.job_in("failed", priority="high")
    cancelled = desk.job_in("cancelled", metadata={"batch_id": 4})

    def found(**filters: Any) -> list[str]:
        return [job.job_id for job in caller.call("list_jobs", **filters).data]

    every = [job["job_id"] for job in (low, urgent, failed, cancelled)]
    assert found() == every[::-1]
    ascending = models.SortOrder.ASC
    assert found(order=ascending) == every
    two = [models.JobStatusInput.FAILED, models.JobStatusInput.CANCELLED]
    assert found(status=two, order=ascending) == every[2:]
    assert found(priority=[models.Priority.LOW, models.Priority.URGENT]) == every[1::-1]
    by_rank = [urgent, failed, cancelled, low]
    assert found(sort=models.JobSort.PRIORITY) == [job["job_id"] for job in by_rank]
    assert found(job_type=["other", "nothing"]) == [urgent["job_id"]]
    assert found(metadata_batch_id="3") == [low["job_id"]]
    assert found(created_by=desk.user.id, light=True) == every[::-1]
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    assert found(created_after=now - hour, created_before=now + hour) == every[::-1]
    assert found(updated_after=now + hour) == []
    over_all = caller.generated.operation("list_all_jobs")
    legacy = over_all(client=caller.client, workspace_id=caller.workspace_id, status=two).parsed
    assert [job.job_id for job in legacy.data] == every[:1:-1]


def pages(caller: Caller, operation: str, *arguments: Any, **kw: Any) -> list[Any]:
    """Everything in a list, two items per page, by its cursors."""
    items = []
    page = caller.call(operation, *arguments, limit=2, **kw)
    while True:
        items += page.data
        if page.pagination.next_cursor is None:
            return items
        cursor = page.pagination.next_cursor
        page = caller.call(operation, *arguments, limit=2, cursor=cursor, **kw)


def test_generated_client_pages_by_number_and_by_cursor(caller: Caller, desk: Desk) -> None:
    ids = [desk.create()["job_id"] for _ in range(5)]
    ascending = caller.models.SortOrder.ASC
    assert [job.job_id for job in pages(caller, "list_jobs", order=ascending)] == ids
    third = caller.call("list_jobs", page=3, limit=2, order=ascending)
    assert [job.job_id for job in third.data] == ids[4:]
    assert third.pagination.total == 5
    created = [event for event in pages(caller, "list_events") if event.kind == "created"]
    assert [event.job_id for event in created] == ids[::-1]
    kinds = [event.kind for event in pages(caller, "list_job_events", ids[0])]
    assert kinds == [caller.models.EventKind.CREATED]


def test_generated_client_claims_reports_and_reads_results(caller: Caller, desk: Desk) -> None:
    models = caller.models
    ids = [desk.create()["job_id"] for _ in range(2)]
    claimed = caller.call("claim_jobs", body=models.Claim(limit=2, worker="w"))
    assert [job.job_id for job in claimed.data] == ids
    ends = [models.ReportedStatus.SUCCESS, models.ReportedStatus.FAILED]
    reports = [
        models.Report(
            job_id=job.job_id, lease_token=job.lease_token, status=status, retryable=False
        )
        for job, status in zip(claimed.data, ends, strict=True)
    ]
    reports[0].result = models.JsonObject.from_dict({"rows": 3})
    reports.append(models.Report(job_id=ids[0], lease_token="wrong"))
    answers = caller.call("report_jobs", body=models.Reports(reports=reports)).data
    assert [answer.accepted for answer in answers] == [True, True, False]
    assert answers[1].status == models.JobStatus.FAILED
    assert answers[2].problem.type_.endswith("lease-lost")
    result = caller.call("get_job_result", ids[0])
    assert result.result["rows"] == 3
    attempts = caller.call("list_attempts", ids[1]).data
    assert attempts[0].outcome == models.Outcome.FAILED
    assert caller.call("get_stats").by_status.success == 1
    assert caller.call("get_stats_history", window=models.Window.HOUR).window == "hour"


def test_generated_client_updates_cancels_retries_and_operates(caller: Caller, desk: Desk) -> None:
    models = caller.models
    job_id = desk.create(metadata={"a": 1})["job_id"]
    body = models.JobUpdate(
        priority=models.Priority.LOW, metadata=models.JsonObject.from_dict({"b": 2})
    )
    edited = caller.call("update_job", job_id, body=body)
    assert edited.metadata.to_dict() == {"a": 1, "b": 2}
    assert caller.call("cancel_job", job_id).status == models.JobStatus.CANCELLED
    again = caller.call("retry_job", job_id, body=models.Reason(reason="once more"))
    assert again.result["retry_reason"] == "once more"
    order = models.OperationCreate(
        action=models.Action.CANCEL,
        filter_=models.JobFilter(status=[models.JobStatusInput.PENDING]),
    )
    operation = caller.call("create_operation", body=order)
    assert (operation.action, operation.changed) == (models.Action.CANCEL, 1)
    assert operation.status == models.OperationStatus.FINISHED
    assert operation.filter_.status == [models.JobStatus.PENDING]
    assert [each.operation_id for each in pages(caller, "list_operations")] == [1]


def test_generated_client_reads_errors(caller: Caller, desk: Desk) -> None:
    models = caller.models
    wrong = models.JobCreate(job_type="no spaces", workspace_id=caller.workspace_id)
    problem = caller.call("create_job", body=wrong)
    assert isinstance(problem, models.Problem)
    assert problem.status == 422
    assert list(problem.errors.to_dict()) == ["job_type"]
    missing = caller.call("get_job", "job_none")
    assert (missing.status, missing.type_) == (404, "urn:jobapi:problem:job-not-found")
    assert missing.detail
    early = caller.call("get_job_result", desk.create()["job_id"])
    assert early.type_ == "urn:jobapi:problem:job-not-ended"
    stranger = caller.generated.client(desk.world.app, "nonsense")
    refused = caller.generated.operation("list_jobs")(caller.workspace_id, client=stranger)
    assert refused.status_code == refused.parsed.status == 401


def test_generated_client_reads_what_a_newer_service_sends(caller: Caller, desk: Desk) -> None:
    models = caller.models
    desk.create()
    page = desk.call("GET", f"/workspace/{desk.workspace_id}/events").json
    page["data"][0] |= {"kind": "unknown", "added_later": {"a": 1}}
    page["added_later"] = True
    event = models.EventList.from_dict(page).data[0]
    assert event.kind == "unknown"
    assert event["added_later"] == {"a": 1}
    attempt = {
        "attempt": 1,
        "worker": None,
        "started_at": "2024-01-15T10:00:00Z",
        "ended_at": None,
        "outcome": "vanished",
        "error": None,
    }
    assert models.Attempt.from_dict(attempt).outcome == "vanished"
