"""The floor: bare Flask views with one psycopg statement each, without login or checks."""

from __future__ import annotations

import os
import threading
from typing import Any
from uuid import uuid4

import psycopg
from flask import Flask, Response, jsonify, request
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

app = Flask(__name__)
local = threading.local()


def connection() -> Any:
    if not hasattr(local, "connection"):
        local.connection = psycopg.connect(
            os.environ["JOBAPI_DATABASE_URL"], autocommit=True, row_factory=dict_row
        )
    return local.connection


@app.get("/workspace/<int:workspace_id>/jobs/<job_id>")
def read(workspace_id: int, job_id: str) -> Response:
    return jsonify(
        connection().execute("SELECT * FROM jobapi_jobs WHERE job_id = %s", (job_id,)).fetchone()
    )


@app.get("/workspace/<int:workspace_id>/jobs/<job_id>/status")
def status(workspace_id: int, job_id: str) -> Response:
    return jsonify(
        connection()
        .execute(
            "SELECT job_id, status, progress_percent, progress_message, updated_at"
            " FROM jobapi_jobs WHERE job_id = %s",
            (job_id,),
        )
        .fetchone()
    )


@app.get("/workspace/<int:workspace_id>/jobs")
def page(workspace_id: int) -> Response:
    return jsonify(
        connection()
        .execute(
            "SELECT * FROM jobapi_jobs WHERE workspace_id = %s"
            " ORDER BY created_at DESC, id DESC LIMIT 50",
            (workspace_id,),
        )
        .fetchall()
    )


@app.post("/workspace/<int:workspace_id>/jobs")
def create(workspace_id: int) -> tuple[Response, int]:
    body = request.get_json()
    row = (
        connection()
        .execute(
            "INSERT INTO jobapi_jobs (job_id, workspace_id, created_by, job_type, status, priority,"
            " version, metadata, retry_count, max_retries, created_at, updated_at, queued_at,"
            " due_at) VALUES (%s, %s, 1, %s, 0, 1, 1, %s, 0, 3, now(), now(), now(), now())"
            " RETURNING *",
            (f"job_{uuid4().hex}", workspace_id, body["job_type"], Jsonb(body["metadata"])),
        )
        .fetchone()
    )
    return jsonify(row), 201
