"""Statements that belong together: a transaction of their own, or part of the open one."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jobapi.store.engine import long_transaction
from jobapi.store.transactions import BY_KEY, IN_ORDER, atomic, transaction

from ..factories import World

COUNT = text("SELECT count(*) FROM jobapi_workspaces")
INSERT = text(
    "INSERT INTO jobapi_workspaces (name, created_by, created_at, updated_at) "
    "SELECT 'x', id, created_at, created_at FROM jobapi_users LIMIT 1"
)
NO_TABLE = text("SELECT 1 FROM jobapi_none")


def insert_and_fail(connection: Any) -> None:
    connection.execute(INSERT)
    connection.execute(NO_TABLE)


def insert_in_a_part_and_fail(connection: Any) -> None:
    with atomic(connection):
        connection.execute(INSERT)
    connection.execute(NO_TABLE)


def planner(session: Any) -> dict[str, str]:
    names = ("enable_seqscan", "enable_indexscan", "enable_sort", "jit")
    if session.get_bind().dialect.name == "sqlite":
        return {}
    columns = [func.current_setting(name).label(name) for name in names]
    return dict(session.execute(select(*columns)).one()._asdict())


def test_atomic_on_a_connection_in_autocommit_mode_commits_all_or_nothing(world: World) -> None:
    world.user()
    with world.state.engine.connect() as connection, world.state.engine.connect() as other:
        with pytest.raises(DBAPIError), atomic(connection):
            insert_and_fail(connection)
        assert connection.scalar(COUNT) == 0
        with atomic(connection, planner=IN_ORDER):
            connection.execute(INSERT)
            assert other.scalar(COUNT) == 0
        assert other.scalar(COUNT) == 1


def test_atomic_in_an_open_transaction_leaves_the_commit_to_its_owner(world: World) -> None:
    world.user()
    engine = world.state.engine
    with engine.connect() as connection:
        with pytest.raises(DBAPIError), transaction(connection):
            insert_in_a_part_and_fail(connection)
        assert connection.scalar(COUNT) == 0
    isolation = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "READ COMMITTED"
    host = engine.execution_options(isolation_level=isolation)
    with Session(host) as session:
        with atomic(session):
            session.execute(INSERT)
        session.rollback()
        assert session.scalar(COUNT) == 0
    with host.connect() as connection:
        with atomic(connection):
            connection.execute(INSERT)
        connection.rollback()
        assert connection.scalar(COUNT) == 0


def test_atomic_on_a_connection_that_left_the_pool_joins_its_transaction(world: World) -> None:
    with world.state.engine.connect() as connection, long_transaction(connection):
        with atomic(connection):
            connection.scalar(COUNT)
        # Still in the transaction.
        connection.exec_driver_sql("SAVEPOINT a")


def test_atomic_in_a_transaction_of_a_host_takes_its_planner_settings_back(world: World) -> None:
    host = world.state.engine.execution_options(isolation_level="SERIALIZABLE")
    if host.dialect.name == "sqlite":
        return  # it has no such settings
    off = {"enable_seqscan": "off", "jit": "off"}
    with Session(host) as session:
        session.execute(text("SET LOCAL enable_sort = off"))
        before = planner(session)
        with atomic(session, planner=IN_ORDER):
            assert planner(session) == before | off | {"enable_sort": "off"}
            with atomic(session, planner=BY_KEY):
                inner = off | {"enable_indexscan": "off", "enable_sort": "on"}
                assert planner(session) == before | inner
            assert planner(session)["enable_indexscan"] == "on"
        assert planner(session) == before
        with pytest.raises(ZeroDivisionError), atomic(session, planner=IN_ORDER):
            raise ZeroDivisionError
        assert planner(session) == before
        savepoint = session.begin_nested()
        with pytest.raises(DBAPIError), atomic(session, planner=IN_ORDER):
            session.execute(text("SELECT 1 / 0"))
        savepoint.rollback()
        assert planner(session) == before


def test_atomic_in_a_transaction_with_the_same_planner_settings_sends_nothing(
    world: World, sent: list[str]
) -> None:
    with world.state.engine.connect() as connection, transaction(connection, planner=IN_ORDER):
        sent.clear()
        with atomic(connection, planner=IN_ORDER):
            pass
        assert sent == []
        if connection.dialect.name == "postgresql":
            with atomic(connection, planner=BY_KEY):
                assert planner_of(connection)["enable_indexscan"] == "off"
            assert planner_of(connection)["enable_indexscan"] == "on"


def planner_of(connection: Any) -> dict[str, str]:
    name = func.current_setting("enable_indexscan").label("enable_indexscan")
    return dict(connection.execute(select(name)).one()._asdict())
