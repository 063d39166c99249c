"""Traces: a job carries its creator's trace context to its worker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx2
import pytest
from opentelemetry import trace

from jobapi import jobs
from jobapi.client import Client, Task, Worker

from ..factories import PASSWORD, Desk

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = f"00-{TRACE}-{SPAN}-01"


# Over HTTP


def test_claim_is_given_the_context_of_the_create(desk: Desk) -> None:
    one = {"job_type": "a", "workspace_id": desk.workspace_id}
    response = desk.post(json=one, headers={"traceparent": CONTEXT})
    assert response.status_code == 201
    assert "traceparent" not in response.json
    desk.post("/batch", json={"jobs": [one, one]}, headers={"Traceparent": CONTEXT})
    desk.create()
    given = [job["traceparent"] for job in desk.claim(limit=10)]
    assert given == [CONTEXT, CONTEXT, CONTEXT, None]
    assert "traceparent" not in desk.get().json["data"][0]


def test_context_lasts_for_all_attempts_and_claims_that_are_repeated(desk: Desk) -> None:
    one = {"job_type": "a", "workspace_id": desk.workspace_id}
    desk.post(json=one, headers={"traceparent": CONTEXT})
    (job,) = desk.claim()
    desk.report(job, status="failed", retry_after=0)
    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        (again,) = desk.post("/claim", headers=key).json["data"]
        assert (again["attempt"], again["traceparent"]) == (2, CONTEXT)


def test_create_that_is_repeated_keeps_the_first_context(desk: Desk) -> None:
    one = {"job_type": "a", "workspace_id": desk.workspace_id}
    for path, body in (("", one), ("/batch", {"jobs": [one]})):
        for context in (CONTEXT, CONTEXT.replace("4bf9", "0000")):
            headers = {"traceparent": context, "Idempotency-Key": f"key {path}"}
            assert desk.post(path, json=body, headers=headers).status_code == 201
    assert [job["traceparent"] for job in desk.claim(limit=10)] == [CONTEXT, CONTEXT]


@pytest.mark.parametrize(
    "context",
    [
        "",
        "x",
        CONTEXT.upper(),
        f"{CONTEXT}-00",
        f"{CONTEXT} ",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-\xe9\xe9",
        CONTEXT * 1000,
    ],
)
def test_what_is_no_context_is_as_if_it_were_not_there(desk: Desk, context: str) -> None:
    one = {"job_type": "a", "workspace_id": desk.workspace_id}
    if context.strip() != CONTEXT:
        response = desk.post(json=one, headers={"traceparent": context})
        assert response.status_code == 201
    with desk.world.transaction() as tx:
        for many in (False, True):
            made = {"created_by": desk.user.id, "traceparent": context}
            if many:
                jobs.create_many(tx, desk.workspace_id, [{"job_type": "a"}], **made)
            else:
                jobs.create(tx, desk.workspace_id, job_type="a", **made)
    assert {job["traceparent"] for job in desk.claim(limit=10)} == {None}


# In Python


def test_trace_context_without_recording_is_passed_on(desk: Desk) -> None:
    transport = httpx2.WSGITransport(app=desk.world.app)
    seen: list[Any] = []
    with Client("http://service", token=desk.token, transport=transport) as client:
        worker = Worker(client, desk.workspace_id)

        @worker.task("first")
        def first(task: Task) -> None:
            seen.append(task.job.traceparent)
            client.create_many(desk.workspace_id, [{"job_type": "second"}])

        @worker.task("second")
        def second(task: Task) -> None:
            seen.append(task.job.traceparent)
            client.create(desk.workspace_id, "third")

        @worker.task("alone")
        def alone(task: Task) -> None:
            seen.append(task.job.traceparent)

        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        here = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False, trace_flags=flags)
        with trace.use_span(trace.NonRecordingSpan(here)):
            client.create(desk.workspace_id, "first")
        worker.run(until_idle=True)
        client.create(desk.workspace_id, "alone")
        worker.run(until_idle=True)
    assert seen == [CONTEXT, CONTEXT, None]
    assert [job["traceparent"] for job in desk.claim(limit=10)] == [CONTEXT]


SCRIPT = """
import json, sys
from jobapi.client import Client, Worker

client = Client(sys.argv[1], username="boss", password=sys.argv[2])
worker = Worker(client, 1)

@worker.task("outer")
def outer(task):
    client.create(1, "inner")

@worker.task("inner")
def inner(task):
    raise LookupError("not there")

def run():
    job = client.create(1, "outer", max_retries=0)
    client.create(1, "outer")
    worker.run(until_idle=True)
    return job.job_id
"""
WITH = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trace.get_tracer("app").start_as_current_span("order"):
    run()
print(json.dumps([
    {
        "name": span.name,
        "kind": span.kind.name,
        "trace": span.context.trace_id,
        "id": span.context.span_id,
        "parent": span.parent and span.parent.span_id,
        "attributes": dict(span.attributes),
        "status": span.status.status_code.name,
        "events": [event.name for event in span.events],
    }
    for span in exporter.get_finished_spans()
]))
"""
WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
"""


def ran(script: str, service: Any) -> str:
    command = [sys.executable, "-c", script, service.url, PASSWORD]
    done = subprocess.run(command, env=service.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_worker_does_a_job_in_a_span_below_its_creators(serve: Any) -> None:
    service = serve()
    spans = json.loads(ran(SCRIPT + WITH, service))
    (order,) = [span for span in spans if span["name"] == "order"]
    outer = [span for span in spans if span["name"] == "jobapi outer"]
    inner = [span for span in spans if span["name"] == "jobapi inner"]
    assert len(spans) == 5
    assert {span["trace"] for span in spans} == {order["trace"]}
    assert [span["parent"] for span in outer] == [order["id"]] * 2
    assert {span["parent"] for span in inner} == {span["id"] for span in outer}
    assert {span["kind"] for span in outer + inner} == {"CONSUMER"}
    done = service.client("boss", PASSWORD).get("/workspace/1/jobs").json()["data"]
    ids = {job["job_id"] for job in done}
    assert {span["attributes"]["jobapi.job_id"] for span in outer + inner} == ids
    assert {span["attributes"]["jobapi.attempt"] for span in outer + inner} == {1}
    assert {span["status"] for span in outer} == {"UNSET"}
    assert {span["status"] for span in inner} == {"ERROR"}
    assert {tuple(span["events"]) for span in inner} == {("exception",)}


def test_client_and_worker_do_without_opentelemetry(serve: Any) -> None:
    service = serve()
    assert ran(f"{WITHOUT}{SCRIPT}run(); print('done')", service) == "done\n"
    client = service.client("boss", PASSWORD)
    done = client.get("/workspace/1/jobs").json()["data"]
    assert [job["status"] for job in done if job["job_type"] == "outer"] == ["success"] * 2
    assert client.post("/workspace/1/jobs", json={"job_type": "x", "workspace_id": 1}).is_success
    (job,) = client.post("/workspace/1/jobs/claim", json={"job_types": ["x"]}).json()["data"]
    assert job["traceparent"] is None
