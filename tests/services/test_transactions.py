"""Services on a connection that commits each statement, and in a host application's session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from jobapi import accounts, jobs, keys, queue, workspaces
from jobapi.rules.lifecycle import JobStatus
from jobapi.rules.operations import Action
from jobapi.rules.roles import Role
from jobapi.services import claims, operations
from jobapi.services.job_filters import Filters
from jobapi.store.tables import Base

from ..factories import Desk

WRITES = ("INSERT", "UPDATE", "DELETE")


def claimed(desk: Desk) -> dict[str, Any]:
    desk.create()
    return desk.claim()[0]


def report(desk: Desk, **body: Any) -> Callable[[Any], Any]:
    job = claimed(desk)
    given = {"job_id": job["job_id"], "lease_token": job["lease_token"], **body}
    backoff = desk.world.state.backoff
    return lambda s: queue.report(s, desk.workspace_id, [given], backoff=backoff)


def claim_with_key(desk: Desk) -> Callable[[Any], Any]:
    desk.create()
    now = desk.user.created_at
    return lambda s: claims.claim(
        s, desk.workspace_id, key="k", body={}, now=now.replace(year=2100), actor="user:1"
    )


def reap(desk: Desk) -> Callable[[Any], Any]:
    desk.shift(claimed(desk), 3600)
    return lambda s: queue.reap(s, backoff=desk.world.state.backoff)


def cancel(desk: Desk) -> Callable[[Any], Any]:
    job_id = claimed(desk)["job_id"]
    return lambda s: jobs.cancel(s, desk.workspace_id, job_id)


def edit(desk: Desk) -> Callable[[Any], Any]:
    job_id = desk.job_in("running")["job_id"]
    return lambda s: jobs.edit(s, desk.workspace_id, job_id, {"status": JobStatus.FAILED})


def delete(desk: Desk) -> Callable[[Any], Any]:
    job_id = desk.job_in("cancelled")["job_id"]
    return lambda s: jobs.delete(s, desk.workspace_id, job_id)


def on_member(verb: Callable[..., Any]) -> Callable[[Desk], Callable[[Any], Any]]:
    def prepare(desk: Desk) -> Callable[[Any], Any]:
        member = desk.world.member(desk.workspace_id, Role.MEMBER)
        return lambda s: verb(s, desk.workspace_id, member.id)

    return prepare


def add_member(desk: Desk) -> Callable[[Any], Any]:
    user = desk.world.user()
    return lambda s: workspaces.add_member(s, desk.workspace_id, user.id, Role.VIEWER)


def revoke(desk: Desk) -> Callable[[Any], Any]:
    desk.world.key(desk.workspace_id, desk.user, Role.VIEWER)
    return lambda s: keys.revoke(s, desk.workspace_id, 1)


def operate(desk: Desk) -> Callable[[Any], Any]:
    desk.create()
    return lambda s: operations.create(
        s, desk.workspace_id, Action.CANCEL, Filters(), created_by=desk.user.id
    )


SERVICES: dict[str, Callable[[Desk], Callable[[Any], Any]]] = {
    "claim with a key": claim_with_key,
    "report failed": lambda desk: report(desk, status=JobStatus.FAILED, error="x"),
    "report pending": lambda desk: report(desk, status=JobStatus.PENDING),
    "reap": reap,
    "cancel": cancel,
    "edit": edit,
    "delete": delete,
    "operate": operate,
    "create workspace": lambda desk: lambda s: workspaces.create(s, "W", owner_id=desk.user.id),
    "change workspace": lambda desk: lambda s: workspaces.change(s, desk.workspace_id, name="N"),
    "remove workspace": lambda desk: lambda s: workspaces.remove(s, desk.workspace_id),
    "add member": add_member,
    "set role": on_member(lambda s, w, user_id: workspaces.set_role(s, w, user_id, Role.VIEWER)),
    "remove member": on_member(workspaces.remove_member),
    "create key": lambda desk: (
        lambda s: keys.create(
            s, desk.workspace_id, user_id=desk.user.id, name="k", role=Role.VIEWER
        )
    ),
    "revoke key": revoke,
    "edit user": lambda desk: lambda s: accounts.edit_user(s, desk.user.id, {"password": "x" * 20}),
}


def everything(connection: Any) -> dict[str, list[Any]]:
    return {
        table.name: sorted(map(str, connection.execute(table.select())))
        for table in Base.metadata.sorted_tables
    }


@pytest.mark.parametrize("name", SERVICES)
def test_service_that_fails_at_its_second_write_has_written_nothing(
    desk: Desk, sent: Any, name: str
) -> None:
    act = SERVICES[name](desk)
    with desk.world.state.engine.connect() as connection:
        before = everything(connection)
        writes: list[str] = []

        def refuse(sql: str) -> bool:
            writes.extend([sql] if sql.startswith(WRITES) else [])
            return writes[1:] == [sql]

        sent.refuse = refuse
        with pytest.raises(InterruptedError):
            act(connection)
        sent.refuse = lambda sql: False
        assert everything(connection) == before
        act(connection)
        assert everything(connection) != before


def test_claim_and_report_in_a_host_s_session_are_planned_as_in_the_service(
    desk: Desk, sent: Any
) -> None:
    engine = desk.world.state.engine
    if engine.dialect.name == "sqlite":
        return  # it has no such settings
    desk.create()
    settings = text("SELECT current_setting('enable_seqscan'), current_setting('enable_sort')")
    seen = {}
    with Session(engine.execution_options(isolation_level="READ COMMITTED")) as session:

        def look(sql: str) -> bool:
            if sql.startswith("UPDATE"):
                sent.refuse = lambda sql: False
                seen[sql.split()[1]] = tuple(session.execute(settings).one())
                sent.refuse = look
            return False

        sent.refuse = look
        token = queue.new_lease_token()
        (job,) = queue.claim(session, desk.workspace_id, lease_token=token)
        assert seen == {"jobapi_jobs": ("off", "off")}
        given = {"job_id": job.job_id, "lease_token": token, "status": JobStatus.SUCCESS}
        backoff = desk.world.state.backoff
        queue.report(session, desk.workspace_id, [given], backoff=backoff)
        assert seen == {"jobapi_jobs": ("off", "on")}
        assert tuple(session.execute(settings).one()) == ("on", "on")
        session.rollback()
    assert desk.get(f"/{job.job_id}").json["status"] == "pending"
