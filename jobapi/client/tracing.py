"""OpenTelemetry, if it is installed: a job carries its creator's trace to its worker."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .models import ClaimedJob

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    _installed = False
else:
    _installed = True
    _propagator = TraceContextTextMapPropagator()
    _tracer = trace.get_tracer("jobapi")

HEADER = "traceparent"
_NOTHING: AbstractContextManager[Any] = nullcontext()


def trace_headers() -> dict[str, str]:
    """The header that carries the current span; empty if there is none."""
    carrier: dict[str, str] = {}
    if _installed:
        _propagator.inject(carrier)
    return {HEADER: carrier[HEADER]} if HEADER in carrier else {}


def is_recording() -> bool:
    """Whether a tracer provider is set up, so that spans go somewhere."""
    return _installed and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def span(job: ClaimedJob, *, recording: bool) -> AbstractContextManager[Any]:
    """A span for running a job, a child of its creator's span.

    Without ``recording`` it only passes the creator's trace on, to jobs that the task creates.
    """
    parent = job.traceparent
    if not _installed or (parent is None and not recording):
        return _NOTHING
    return _tracer.start_as_current_span(
        f"jobapi {job.job_type}",
        context=_propagator.extract({} if parent is None else {HEADER: parent}),
        kind=trace.SpanKind.CONSUMER,
        attributes={"jobapi.job_id": job.job_id, "jobapi.attempt": job.attempt},
    )
