"""Statements that belong together: a transaction of their own, or part of the open one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jobapi.store.connections import run_on_driver
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


def test_connection_that_returns_to_the_pool_in_a_transaction_is_rolled_back(world: World) -> None:
    world.user()
    engine = world.state.engine
    with engine.connect() as connection:
        # Not through SQLAlchemy, which would know of the transaction and end it.
        cursor = connection.connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute(str(INSERT))
    with engine.connect() as connection:
        assert connection.scalar(COUNT) == 0
        with atomic(connection):
            connection.execute(INSERT)
    with engine.connect() as connection:
        assert connection.scalar(COUNT) == 1


def megabytes_kept(act: Callable[[int], None]) -> float:
    """How much memory stays in use after ``act`` was called with three numbers."""
    pages = Path("/proc/self/statm")
    # libpq keeps its buffer.
    act(0)
    before = int(pages.read_text().split()[1])
    for number in range(1, 4):
        act(number)
    kept = int(pages.read_text().split()[1]) - before
    return kept * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_connection_keeps_no_result_in_memory(world: World) -> None:
    with world.state.engine.connect() as connection:

        def read(number: int) -> None:
            sql = f"SELECT repeat($1, 50000000), {number}"
            assert len(run_on_driver(connection, sql, ["x"], prepare=True)) == 1

        assert megabytes_kept(read) < 50


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_connection_keeps_no_parameters_of_statements_that_failed(world: World) -> None:
    given = ["x" * 50_000_000]
    with world.state.engine.connect() as connection:

        def fail(number: int) -> None:
            sql = f"SELECT length($1) / 0, {number}"
            with pytest.raises(DBAPIError):
                run_on_driver(connection, sql, given, prepare=False)

        assert megabytes_kept(fail) < 50


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_connection_of_a_host_may_change_its_settings(world: World) -> None:
    sql = "SELECT now(), length($1)"
    host = create_engine(world.state.engine.url, isolation_level="AUTOCOMMIT")
    with host.connect() as connection:

        def read() -> Any:
            return run_on_driver(connection, sql, ["é€"], prepare=False)[0]

        assert read()[1] == 2
        connection.exec_driver_sql("SET client_encoding TO latin9")
        assert read()[1] == 2
        connection.exec_driver_sql("SET DateStyle TO german")
        # psycopg's error for times that it cannot read.
        with pytest.raises(NotImplementedError):
            read()
        connection.exec_driver_sql("SET DateStyle TO iso")
        assert read()[0].tzinfo is not None
    host.dispose()
