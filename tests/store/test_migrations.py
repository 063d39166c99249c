"""One set of migrations for both databases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from jobapi.store.readiness import VERSION_TABLE, migrations_folder, newest_migration
from jobapi.store.tables import Base

from .. import schema
from ..conftest import SECRET
from ..factories import Desk, World
from ..served import Command, environment, jobapi

TABLES = {table.name for table in Base.metadata.sorted_tables}


def tables(app: Any) -> set[str]:
    return set(inspect(app.extensions["jobapi"].engine).get_table_names())


def test_upgrade_creates_the_schema_of_the_models(
    make_app: Any, new_database: Any, database: str
) -> None:
    app = make_app(new_database(database))
    assert tables(app) == TABLES | {"jobapi_alembic_version"}
    with app.extensions["jobapi"].migrating():
        flask_migrate.check()


def test_upgrade_creates_the_schema_of_schema_sql(make_app: Any, new_database: Any) -> None:
    url = new_database("postgresql")
    make_app(url)
    assert schema.FILE.read_text("utf-8") == schema.schema(url), "Run `make schema`."


def test_downgrade_takes_everything_back(make_app: Any, new_database: Any, database: str) -> None:
    app = make_app(new_database(database))
    with app.extensions["jobapi"].migrating():
        flask_migrate.downgrade(revision="base")
        assert tables(app) == {"jobapi_alembic_version"}
        flask_migrate.upgrade()
    desk = Desk(World(app))
    assert desk.create()["status"] == "pending"


def test_upgrade_that_fails_leaves_nothing(make_app: Any, new_database: Any, database: str) -> None:
    app = make_app(new_database(database), migrate=False)
    engine = app.extensions["jobapi"].engine
    # The last table to be made is in the way.
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE jobapi_jobs (id INTEGER)")
    result = app.test_cli_runner().invoke(args=["jobapi", "db", "upgrade"])
    assert result.exit_code != 0
    assert tables(app) == {"jobapi_jobs"}
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE jobapi_jobs")
    result = app.test_cli_runner().invoke(args=["jobapi", "db", "upgrade"])
    assert result.exit_code == 0, result.output
    assert tables(app) == TABLES | {"jobapi_alembic_version"}


def test_upgrade_by_several_processes_at_once(
    new_database: Any, database: str, tmp_path: Path
) -> None:
    env = environment(
        JOBAPI_DATABASE_URL=new_database(database),
        JOBAPI_SECRET_KEY=SECRET,
        JOBAPI_INSTANCE_PATH=str(tmp_path),
    )
    said = [tmp_path / f"said-{number}" for number in range(4)]
    started = [Command("init", env=env, stderr=file) for file in said]
    for process, file in zip(started, said, strict=True):
        assert process.wait(60) == 0, file.read_text()
    assert jobapi("db", "check", env=env).returncode == 0


@pytest.mark.parametrize("command", ["current", "history", "heads", "show"])
def test_commands_of_flask_migrate_work(app: Any, command: str) -> None:
    result = app.test_cli_runner().invoke(args=["jobapi", "db", command])
    assert result.exit_code == 0, result.output


def test_upgrade_as_sql_needs_no_database(app: Any, capfd: Any) -> None:
    result = app.test_cli_runner().invoke(args=["jobapi", "db", "upgrade", "--sql"])
    assert result.exit_code == 0, result.output
    assert "CREATE TABLE jobapi_jobs" in result.output + capfd.readouterr().out


def test_upgrade_groups_jobs_that_have_failed_before(
    make_app: Any, new_database: Any, database: str
) -> None:
    app = make_app(new_database(database))
    state = app.extensions["jobapi"]
    desk = Desk(World(app))
    for n in range(3):
        job = desk.create()
        desk.patch(job["job_id"], {"status": "failed", "error": f"bad row {n}"})
    desk.job_in("failed")
    desk.job_in("success")
    before = desk.get("/errors").json
    assert [group["count"] for group in before["data"]] == [3]
    with state.migrating():
        flask_migrate.downgrade(revision="0017")
        flask_migrate.upgrade()
    assert desk.get("/errors").json == before
    assert desk.get("?status=failed").json["pagination"]["total"] == 4


def test_the_newest_migration_is_the_one_that_alembic_ends_with(app: Any) -> None:
    state = app.extensions["jobapi"]
    head = ScriptDirectory(str(migrations_folder())).get_current_head()
    assert newest_migration() == head
    with state.engine.connect() as connection:
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == head


def test_importing_what_serves_needs_no_alembic() -> None:
    """It would make each start slower."""
    code = "import sys, jobapi.extension, jobapi.commands.serve; print('alembic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_upgrade_takes_an_index_that_was_built_beforehand(make_app: Any, new_database: Any) -> None:
    app = make_app(new_database("postgresql"))
    state = app.extensions["jobapi"]
    desk = Desk(World(app))
    desk.create(metadata={"batch_id": 3})
    docs = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
    (command,) = re.findall(r"CREATE INDEX CONCURRENTLY .*?;", docs, re.DOTALL)
    with state.migrating():
        flask_migrate.downgrade(revision="0014")
        with state.engine.connect() as connection:
            connection.exec_driver_sql(command)
        flask_migrate.upgrade()
    assert desk.get("?metadata.batch_id=3").json["pagination"]["total"] == 1
    with state.engine.connect() as connection:
        names = "SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%%USING gin%%'"
        assert connection.exec_driver_sql(names).scalars().all() == ["ix_jobapi_jobs_content"]
