"""The floor: bare Flask views with one prepared psycopg statement each, without login or checks.

They use the table ``floor_jobs``, which has the fields of a job and no index but its key.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from uuid import uuid4

import psycopg
from flask import Flask, Response, jsonify, request
from psycopg.rows import dict_row
from psycopg.types.json import Json

app = Flask(__name__)
local = threading.local()


def ask(query: str, parameters: tuple[Any, ...]) -> Any:
    if not hasattr(local, "connection"):
        local.connection = psycopg.connect(
            os.environ["JOBAPI_DATABASE_URL"], autocommit=True, row_factory=dict_row
        )
    return local.connection.execute(query, parameters, prepare=True)


@app.get("/workspace/<int:workspace_id>/jobs/<job_id>")
def read(workspace_id: int, job_id: str) -> Response:
    query = "SELECT * FROM floor_jobs WHERE workspace_id = %s AND job_id = %s"
    return jsonify(ask(query, (workspace_id, job_id)).fetchone())


@app.get("/workspace/<int:workspace_id>/jobs/<job_id>/status")
def status(workspace_id: int, job_id: str) -> Response:
    query = (
        "SELECT job_id, status, progress_percent, progress_message, updated_at"
        " FROM floor_jobs WHERE workspace_id = %s AND job_id = %s"
    )
    return jsonify(ask(query, (workspace_id, job_id)).fetchone())


@app.get("/workspace/<int:workspace_id>/jobs")
def page(workspace_id: int) -> Response:
    query = "SELECT * FROM floor_jobs WHERE workspace_id = %s ORDER BY job_id DESC LIMIT 50"
    return jsonify(ask(query, (workspace_id,)).fetchall())


@app.post("/workspace/<int:workspace_id>/jobs")
def create(workspace_id: int) -> tuple[Response, int]:
    body = request.get_json()
    row = ask(
        "INSERT INTO floor_jobs (job_id, workspace_id, created_by, job_type, status, priority,"
        " metadata, retry_count, max_retries, created_at, updated_at, due_at)"
        " VALUES (%s, %s, 1, %s, 0, 1, %s, 0, 3, now(), now(), now()) RETURNING *",
        (f"job_{uuid4().hex}", workspace_id, body["job_type"], Json(body["metadata"])),
    ).fetchone()
    return jsonify(row), 201
