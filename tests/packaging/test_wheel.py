"""The built wheel, installed somewhere else: migrations included, nothing of the checkout."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..conftest import SECRET
from ..factories import PASSWORD
from ..served import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: Any) -> dict[str, Path]:
    """Both wheels, by the names of their distributions."""
    source: Path = tmp_path_factory.mktemp("wheel") / "source"
    # A copy of what git has, because a build leaves things behind.
    files = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    ).splitlines()
    for name in files:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    (source / ".venv").mkdir()
    (source / ".venv" / ".ready").touch()
    done = subprocess.run(
        ["make", "wheels", f"BIN={Path(sys.executable).parent}"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.split("-")[0]: path for path in (source / "dist").iterdir()}


@pytest.fixture
def wheel(wheels: dict[str, Path]) -> Path:
    return wheels["jobapi"]


def test_wheel_has_the_package_the_migrations_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "jobapi").rglob("*.py")}
    migrations = {
        f"jobapi/{path.relative_to(ROOT)}"
        for path in (ROOT / "migrations").rglob("*")
        if path.suffix in (".py", ".ini", ".mako", ".sql")
    }
    files = (path for path in (ROOT / "jobapi" / "dashboard").rglob("*") if path.is_file())
    dashboard = {str(path.relative_to(ROOT)) for path in files}
    assert names == package | migrations | dashboard | {"jobapi/py.typed"}


def test_wheel_has_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        assert "\nLicense-Expression: MIT\n" in archive.read(metadata).decode()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


HOST = """
import jobapi, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from jobapi import JobAPI
assert jobapi.__file__.startswith(sys.argv[1]), jobapi.__file__
app = Flask("host")
app.config |= {"SECRET_KEY": "k" * 32, "SQLALCHEMY_DATABASE_URI": sys.argv[2]}
db = SQLAlchemy(app)
JobAPI(app, url_prefix="/job-api")
runner = app.test_cli_runner()
for line in ("init", "db check", "users create anna --password a-password --admin",
             "workspaces create W --owner anna"):
    done = runner.invoke(args=["jobapi", *line.split()])
    assert done.exit_code == 0, done.output
client = app.test_client()
login = {"username": "anna", "password": "a-password"}
token = client.post("/job-api/auth/login", json=login).json["access_token"]
created = client.post("/job-api/workspace/1/jobs", json={"job_type": "x", "workspace_id": 1},
                      headers={"Authorization": f"Bearer {token}"})
assert created.status_code == 201, created.text
assert client.get("/job-api/health/ready").status_code == 200
assert client.get("/job-api/docs").status_code == 200
assert client.get("/job-api/dashboard").status_code == 200
with app.app_context():
    db.engine.dispose()
print("works")
"""


def test_wheel_works_in_a_host_and_by_itself(
    wheel: Path, tmp_path: Path, new_database: Any, database: str
) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    target = ["--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, *target, str(wheel)], check=True)
    url = new_database(database).replace("postgresql://", "postgresql+psycopg://")
    env = environment(PYTHONPATH=str(site))
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(site), url],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("works\n"), done.stderr
    env |= {
        "JOBAPI_DATABASE_URL": new_database(database),
        "JOBAPI_SECRET_KEY": SECRET,
        "JOBAPI_INSTANCE_PATH": str(tmp_path),
    }
    command = [str(site / "bin" / "jobapi"), "init"]
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


BARE = """
import sys
import jobapi, jobapi.errors
from jobapi.client import Client, Worker
assert jobapi.__file__.startswith(sys.argv[1]), jobapi.__file__
with Client(sys.argv[2], username="boss", password=sys.argv[3]) as client:
    job = client.create(1, "add", metadata={"numbers": [1, 2]})
    worker = Worker(client, 1)
    worker.task("add")(lambda task: {"sum": sum(task.metadata["numbers"])})
    worker.run(until_idle=True)
    assert client.result(1, job.job_id) == {"sum": 3}
missing = {"flask", "sqlalchemy", "psycopg", "marshmallow", "gunicorn"}
assert not missing & {name.partition(".")[0] for name in sys.modules}
print("works", jobapi.__version__)
"""


def needed(requirements: list[str], found: set[str]) -> set[str]:
    """The names of the distributions that these requirements need, without extras."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            needed(metadata.requires(name) or [], found)
    return found


def test_client_wheel_works_with_nothing_but_what_it_requires(
    wheels: dict[str, Path], tmp_path: Path, serve: Any
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheels["jobapi_client"]) as archive:
        archive.extractall(site)
    (about,) = metadata.distributions(path=[str(site)])
    names = needed(about.requires or [], set())
    assert not names & {"flask", "sqlalchemy", "psycopg"}
    for name in names:
        for file in metadata.files(name) or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.locate())
    service = serve()
    # Without the environment's own packages.
    python = [sys.executable, "-S", "-c"]
    env = environment(PYTHONPATH=str(site))
    run: Any = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([*python, BARE, str(site), service.url, PASSWORD], **run)
    assert done.stdout.startswith("works 0."), done.stderr
    command = "from jobapi.commands.main import main; main()"
    listed = subprocess.run([*python, command, "--help"], **run)
    assert re.findall(r"^  ([a-z][a-z-]+)  ", listed.stdout, re.M) == [
        "job-types",
        "jobs",
        "schedules",
        "webhooks",
        "worker",
        "workers",
    ]
    refused = subprocess.run([*python, command, "serve"], **run)
    assert "No such command 'serve'" in refused.stderr


def test_client_wheel_is_of_the_same_version_and_requirements() -> None:
    whole, client = configparser.ConfigParser(), configparser.ConfigParser()
    whole.read(ROOT / "setup.cfg")
    client.read(ROOT / "setup-client.cfg")
    assert client["metadata"]["version"] == whole["metadata"]["version"]
    for section, name in (
        ("options", "install_requires"),
        ("options.extras_require", "celery"),
        ("options.extras_require", "otel"),
    ):
        assert set(client[section][name].split("\n")) <= set(whole[section][name].split("\n"))
