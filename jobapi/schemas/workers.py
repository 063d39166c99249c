"""Workers and their presence."""

from __future__ import annotations

from marshmallow import fields

from ..rules.workers import WorkerState
from .base import Pagination, PagingQuery
from .fields import Choice, Time, doc
from .rendering import Response


class WorkerListQuery(PagingQuery):
    """The state and page of a list of workers."""

    state = Choice(WorkerState, metadata=doc("Only workers in this state."))


class Worker(Response):
    """A worker that has claimed jobs within the last day."""

    name = fields.String(
        required=True,
        metadata=doc(
            "The name that it sends with a claim; without one, the name of its key or user.",
            example="w-1",
        ),
    )
    actor = fields.String(
        required=True, metadata=doc("Who it claims as: `key:7` or `user:1`.", example="key:7")
    )
    state = Choice(
        WorkerState,
        grows=True,
        required=True,
        metadata=doc("`live`: it claims, waits for jobs, or holds a lease that has not expired."),
    )
    job_types = fields.List(
        fields.String(),
        required=True,
        allow_none=True,
        metadata=doc("The types that it claims; `null` means all."),
    )
    running = fields.Integer(required=True, metadata=doc("Number of jobs that it runs.", example=2))
    first_seen_at = Time(required=True)
    last_seen_at = Time(required=True, metadata=doc("Accurate to ten seconds."))


class WorkerList(Response):
    """A page of workers, by name."""

    data = fields.List(fields.Nested(Worker), required=True)
    pagination = fields.Nested(Pagination, required=True)
