"""The examples in the API's documentation, with the guide's names and numbers.

Those of a job come from its schemas, so that a new field has its example there.
"""

from __future__ import annotations

from typing import Any

from marshmallow import Schema

from ..schemas.job_logs import NewLogEntry
from ..schemas.jobs import Job, JobCreate, JobResult
from ..schemas.schedules import LastRun, Schedule
from ..schemas.worker import ClaimedJob


def _example(schema: type[Schema]) -> dict[str, Any]:
    """The examples that the fields of a schema have; null for a required field without one."""
    return {
        name: field.metadata.get("example")
        for name, field in schema().fields.items()
        if field.required or "example" in field.metadata
    }


CREATE = _example(JobCreate)
PENDING = _example(Job) | CREATE
JOB_ID = PENDING["job_id"]

RUNNING: dict[str, Any] = PENDING | {
    "job_type": "data_analysis",
    "status": "running",
    "result": {
        "progress_percent": 50,
        "progress_message": "Halfway complete",
        "intermediate_data": "temp_results.json",
        "rows_processed": 25000,
    },
    "estimated_duration": 300,
    "created_at": "2024-01-15T10:00:00Z",
    "updated_at": "2024-01-15T10:02:30Z",
    "started_at": "2024-01-15T10:01:00Z",
    "scheduled_at": None,
    "due_at": "2024-01-15T10:00:00Z",
}

SUCCESS: dict[str, Any] = RUNNING | {
    "status": "success",
    "result": {
        "output_file": "analysis_results.csv",
        "rows_processed": 50000,
        "success": True,
        "insights": ["trend_detected", "anomaly_found"],
    },
    "actual_duration": 285,
    "updated_at": "2024-01-15T10:04:45Z",
    "completed_at": "2024-01-15T10:04:45Z",
}

CANCELLED: dict[str, Any] = RUNNING | {
    "status": "cancelled",
    "result": {"cancelled_reason": "Cancelled via API", "partial_results": "temp_data.json"},
    "actual_duration": 120,
    "updated_at": "2024-01-15T10:02:00Z",
    "completed_at": "2024-01-15T10:02:00Z",
}

RETRIED: dict[str, Any] = RUNNING | {
    "status": "pending",
    "result": {"retry_reason": "Retried via API", "previous_attempts": 1},
    "retry_count": 1,
    "updated_at": "2024-01-15T10:05:00Z",
    "started_at": None,
    "due_at": "2024-01-15T10:05:00Z",
}

LIST: dict[str, Any] = {
    "data": [RUNNING],
    "pagination": {
        "page": 1,
        "limit": 50,
        "total": 1,
        "total_pages": 1,
        "total_is_capped": False,
        "next_cursor": None,
    },
}

UPDATE: dict[str, Any] = {
    "status": "running",
    "progress_percent": 50,
    "progress_message": "Halfway complete",
    "result": {"intermediate_data": "temp_results.json", "rows_processed": 25000},
}

STATUS: dict[str, Any] = {
    "job_id": JOB_ID,
    "status": "running",
    "progress_percent": 75,
    "progress_message": "Processing batch 3 of 4...",
    "updated_at": "2024-01-15T10:03:30Z",
}

RESULT: dict[str, Any] = {name: SUCCESS[name] for name in JobResult().fields}

LOGIN = {"username": "your_username", "password": "your_password"}

TOKENS = {
    "access_token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9...",
    "refresh_token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9...",
    "token_type": "bearer",
    "expires_in": 3600,
}

CLAIM: dict[str, Any] = {
    "job_types": ["data_processing"],
    "limit": 10,
    "lease_seconds": 60,
    "worker": "etl-1",
}

CLAIMED: dict[str, Any] = (
    _example(ClaimedJob)
    | CREATE
    | {
        "status": "running",
        "updated_at": "2024-01-15T15:00:01Z",
        "started_at": "2024-01-15T15:00:01Z",
    }
)

REPORTS: dict[str, Any] = {
    "reports": [
        {
            "job_id": JOB_ID,
            "lease_token": CLAIMED["lease_token"],
            "status": "success",
            "result": {"output_file": "dataset.parquet", "rows_processed": 50000},
        }
    ]
}

REPORT_ANSWERS: dict[str, Any] = {
    "data": [
        {
            "job_id": JOB_ID,
            "accepted": True,
            "status": "success",
            "lease_expires_at": None,
            "problem": None,
        }
    ]
}

ATTEMPTS: dict[str, Any] = {
    "data": [
        {
            "attempt": 1,
            "worker": "etl-1",
            "started_at": "2024-01-15T15:00:01Z",
            "ended_at": "2024-01-15T15:09:58Z",
            "outcome": "success",
            "error": None,
        }
    ]
}

_LOG_ENTRY: dict[str, Any] = _example(NewLogEntry)

NEW_LOG_ENTRIES: dict[str, Any] = {"entries": [_LOG_ENTRY]}

LOGS_APPENDED = {"stored": 1, "repeated": 0, "dropped": 0}

JOB_LOG: dict[str, Any] = {
    "data": [{"number": 1, "attempt": 1, **_LOG_ENTRY}],
    "pagination": {
        "limit": 100,
        "total": 1,
        "total_is_capped": False,
        "next_cursor": None,
        "tail_cursor": "WzFd",
    },
    "dropped": 0,
}

OPERATION_CREATE: dict[str, Any] = {
    "action": "cancel",
    "filter": {"status": ["pending"], "metadata": {"source_file": "dataset.csv"}},
    "reason": "The dataset was wrong",
}

OPERATION: dict[str, Any] = {
    "operation_id": 1,
    "workspace_id": 1,
    **OPERATION_CREATE,
    "status": "running",
    "matched": 1200,
    "matched_is_capped": False,
    "changed": 500,
    "skipped": 0,
    "created_by": 123,
    "created_at": "2024-01-15T11:00:00Z",
    "updated_at": "2024-01-15T11:00:00Z",
    "ended_at": None,
}

SCHEDULE_CREATE: dict[str, Any] = {
    "name": "nightly report",
    "cron": "30 2 * * *",
    "timezone": "Europe/Berlin",
    "overlap": "skip",
    "job": {"job_type": "report", "metadata": {"kind": "nightly"}},
}

SCHEDULE: dict[str, Any] = _example(Schedule) | SCHEDULE_CREATE
SCHEDULE |= {"last_run": _example(LastRun)}

_TOTALS = {"pending": 4, "running": 2, "success": 1190, "failed": 3, "cancelled": 1}
_RATES = {"queued": 12, "started": 11, "succeeded": 10, "failed": 1, "cancelled": 0}

_DUE = {"due": 3, "due_is_capped": False, "oldest_due_seconds": 7}
STATS: dict[str, Any] = {
    "workspace_id": 1,
    "at": "2024-01-15T11:00:00Z",
    "total": 1200,
    "by_status": _TOTALS,
    "by_type": {"data_processing": {**_TOTALS, **_DUE}},
    **_DUE,
    "oldest_pending_seconds": 7,
    "rates": {"minute": _RATES, "hour": _RATES, "day": _RATES},
    "durations": {"data_processing": {"jobs": 500, "median_seconds": 1.25, "p95_seconds": 4.5}},
}

_EVENT: dict[str, Any] = {
    "event_id": "7031-118",
    "at": "2024-01-15T10:01:00Z",
    "kind": "claimed",
    "workspace_id": 1,
    "job_id": JOB_ID,
    "job_type": "data_processing",
    "from_status": "pending",
    "to_status": "running",
    "attempt": 1,
    "user_id": None,
    "key_id": 4,
    "worker": "etl-1",
    "data": None,
}

EVENTS: dict[str, Any] = {
    "data": [_EVENT],
    "pagination": {"limit": 50, "total": 1, "total_is_capped": False, "next_cursor": None},
}

HISTORY: dict[str, Any] = {
    "workspace_id": 1,
    "window": "day",
    "span_seconds": 600,
    "data": [
        {
            "at": "2024-01-15T10:50:00Z",
            **_RATES,
            "wait_seconds": 0.8,
            "run_seconds": 1.3,
            "by_status": _TOTALS,
        }
    ],
}
