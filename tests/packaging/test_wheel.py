"""The built wheel, installed somewhere else: migrations included, nothing of the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ..conftest import SECRET
from ..served import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy of what git has, because a build leaves things behind.
    files = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    ).splitlines()
    for name in files:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_has_the_package_the_migrations_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "jobapi").rglob("*.py")}
    migrations = {
        f"jobapi/{path.relative_to(ROOT)}"
        for path in (ROOT / "migrations").rglob("*")
        if path.suffix in (".py", ".ini", ".mako", ".sql")
    }
    dashboard = {str(path.relative_to(ROOT)) for path in (ROOT / "jobapi" / "dashboard").iterdir()}
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
