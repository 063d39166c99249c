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


def span(job: ClaimedJob) -> AbstractContextManager[Any]:
    """A span for running a job, a child of its creator's span."""
    if not _installed:
        return _NOTHING
    parent = job.traceparent
    if parent is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # Without a provider the span would go nowhere.
        return _NOTHING
    return _tracer.start_as_current_span(
        f"jobapi {job.job_type}",
        context=_propagator.extract({} if parent is None else {HEADER: parent}),
        kind=trace.SpanKind.CONSUMER,
        attributes={"jobapi.job_id": job.job_id, "jobapi.attempt": job.attempt},
    )
