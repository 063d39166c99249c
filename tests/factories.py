"""Factories of users, workspaces, members, keys and jobs, and callers of the API."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from jobapi import accounts, jobs, keys, queue, workspaces
from jobapi.background.event_streams import StreamOptions, Streams
from jobapi.background.periodic_tasks import periodic_tasks
from jobapi.rules.leases import Backoff
from jobapi.rules.roles import Role
from jobapi.store import tables
from jobapi.store.transactions import transaction

_numbers = count(1)

PASSWORD = "correct horse battery"


def until(seen: Callable[[], Any], seconds: float = 60) -> Any:
    """Call ``seen`` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class World:
    """Creates users, workspaces and jobs through the services, and calls the API."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.state = app.extensions["jobapi"]
        self.client: FlaskClient = app.test_client()
        # It may be another database, or one that was emptied.
        self.state._worker_noted_at.clear()

    def set_stream_options(self, **options: Any) -> None:
        """Serve streams with other times and sizes from now on."""
        engine = self.state.engine
        self.state.streams = Streams(lambda: engine, limit=1000, options=StreamOptions(**options))

    def transaction(self) -> Any:
        """A transaction on the app's database."""
        return _Transaction(self.state.engine)

    def maintain(
        self,
        *names: str,
        backoff: Backoff | None = None,
        announce: Callable[[Any, int], None] | None = None,
    ) -> None:
        """Run the periodic tasks, or those of these names, until there is no more to do."""
        state = self.state
        tasks = periodic_tasks(
            backoff or state.backoff,
            state.count_reaped,
            state.count_tick,
            announce or state.waiters.announce,
        )
        assert {*names} <= {task.name for task in tasks}
        with state.engine.connect() as connection:
            for task in tasks:
                while task.name in (names or [task.name]) and task.step(connection):
                    pass

    def user(self, name: str | None = None, *, password: str | None = None, **kw: Any) -> Any:
        """A user; without a password, which takes a while to hash, they use ``token``."""
        name = name or f"user{next(_numbers)}"
        with self.transaction() as tx:
            return accounts.create_user(tx, name, password=password, **kw)

    def token(self, user: Any) -> str:
        """An access token of a new login."""
        return str(self.tokens(user)["access_token"])

    def tokens(self, user: Any) -> dict[str, Any]:
        """Both tokens of a new login."""
        issuer = self.state.tokens
        with self.transaction() as tx:
            return dict(issuer.issue(accounts.open_session(tx, user.id, issuer.refresh_lifetime)))

    def workspace(self, owner: Any, name: str = "Workspace") -> int:
        """The id of a new workspace."""
        with self.transaction() as tx:
            return int(workspaces.create(tx, name, owner_id=owner.id).id)

    def member(self, workspace_id: int, role: Role) -> Any:
        """A new user with a role in a workspace."""
        user = self.user()
        with self.transaction() as tx:
            workspaces.add_member(tx, workspace_id, user.id, role)
        return user

    def key(self, workspace_id: int, user: Any, role: Role, **kw: Any) -> str:
        """A new API key: the key itself, not its row."""
        with self.transaction() as tx:
            return keys.create(tx, workspace_id, user_id=user.id, name="key", role=role, **kw)[1]

    def job(self, workspace_id: int, user: Any, **kw: Any) -> str:
        """The id of a new job."""
        kw.setdefault("job_type", "data_analysis")
        with self.transaction() as tx:
            return str(jobs.create(tx, workspace_id, created_by=user.id, **kw).job_id)

    def call(self, method: str, path: str, token: str | None = None, **kw: Any) -> Any:
        """A request with a token or a key."""
        headers = dict(kw.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        # A stream has no end that one could wait for.
        is_stream = path.partition("?")[0].endswith("/stream")
        if is_stream:
            # It takes a thread, of which the test client's server says that it has one.
            kw.setdefault("environ_overrides", {"wsgi.multithread": True})
        return self.client.open(path, method=method, headers=headers, buffered=not is_stream, **kw)


class Desk:
    """A user with a token and a workspace, and shortcuts for requests in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.user = world.user()
        self.workspace_id = world.workspace(self.user)
        self.token = world.token(self.user)
        self.jobs_path = f"/workspace/{self.workspace_id}/jobs"

    def call(self, method: str, path: str, **kw: Any) -> Any:
        """A request with the user's token."""
        return self.world.call(method, path, self.token, **kw)

    def get(self, path: str = "", **kw: Any) -> Any:
        """GET below the workspace's jobs."""
        return self.call("GET", self.jobs_path + path, **kw)

    def post(self, path: str = "", **kw: Any) -> Any:
        """POST below the workspace's jobs."""
        return self.call("POST", self.jobs_path + path, **kw)

    def patch(self, job_id: str, json: Any, **kw: Any) -> Any:
        """PATCH one job."""
        return self.call("PATCH", f"{self.jobs_path}/{job_id}", json=json, **kw)

    def create(self, **body: Any) -> dict[str, Any]:
        """A job made over HTTP, as the API shows it."""
        body = {"job_type": "data_analysis", "workspace_id": self.workspace_id, **body}
        response = self.post(json=body)
        assert response.status_code == 201, response.text
        return dict(response.json)

    def claim(self, **body: Any) -> list[dict[str, Any]]:
        """Jobs leased over HTTP."""
        response = self.post("/claim", json=body)
        assert response.status_code == 200, response.text
        return list(response.json["data"])

    def report(self, job: Any, **body: Any) -> dict[str, Any]:
        """The answer to one report of the holder of a lease."""
        report = {"job_id": job["job_id"], "lease_token": job["lease_token"], **body}
        response = self.post("/report", json={"reports": [report]})
        assert response.status_code == 200, response.text
        return dict(response.json["data"][0])

    def attempts(self, job: Any) -> list[dict[str, Any]]:
        """A job's attempts."""
        return list(self.get(f"/{job['job_id']}/attempts").json["data"])

    def shift(self, job: Any, seconds: float) -> None:
        """Move a job's times into the past, as if so many seconds had gone by."""
        columns = ("created_at", "queued_at", "due_at", "started_at", "lease_expires_at", "reap_at")
        with self.world.transaction() as tx:
            where = tables.jobs.c.job_id == job["job_id"]
            row = tx.execute(select(tables.jobs).where(where)).one()
            moved = {
                name: getattr(row, name) - timedelta(seconds=seconds)
                for name in columns
                if getattr(row, name) is not None
            }
            tx.execute(update(tables.jobs).where(where).values(**moved))

    def reap(self) -> int:
        """End attempts whose lease or timeout has expired; returns how many there were."""
        with self.world.transaction() as tx:
            return len(queue.reap(tx, backoff=self.world.state.backoff).ended)

    def job_in(self, status: str, **body: Any) -> dict[str, Any]:
        """A job in a status, brought there over HTTP."""
        return self.bring(self.create(**body), status)

    def bring(self, job: dict[str, Any], status: str) -> dict[str, Any]:
        """A pending job, brought to a status over HTTP."""
        if status == "pending":
            return job
        if status == "cancelled":
            response = self.post(f"/{job['job_id']}/cancel")
        else:
            response = self.patch(job["job_id"], {"status": status})
        assert response.status_code == 200, response.text
        return dict(response.json)


class _Transaction:
    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __enter__(self) -> Any:
        self.connection = self.engine.connect()
        self.inner = transaction(self.connection)
        return self.inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        try:
            return self.inner.__exit__(*error)
        finally:
            self.connection.close()
