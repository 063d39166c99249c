"""The ``jobapi`` command."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobapi.commands.demo import DEMO_PASSWORD, DEMO_USER
from jobapi.commands.main import COMMANDS
from jobapi.commands.serve import greeting
from jobapi.rules.roles import Role

from ..factories import PASSWORD, World, until
from ..served import Service, environment, jobapi


def run(world: World, *arguments: str, input: str | None = None) -> Result:
    return world.app.test_cli_runner().invoke(args=["jobapi", *arguments], input=input)


def login(world: World, username: str, password: str) -> int:
    body = {"username": username, "password": password}
    return int(world.call("POST", "/auth/login", json=body).status_code)


def test_create_prints_the_id_or_the_key_alone(world: World) -> None:
    user = run(world, "users", "create", "anna", "--password", PASSWORD)
    assert (user.exit_code, user.stdout) == (0, "1\n")
    assert "anna" in user.stderr
    workspace = run(world, "workspaces", "create", "Team", "--owner", "anna")
    assert (workspace.exit_code, workspace.stdout) == (0, "1\n")
    key = run(world, "keys", "create", "--workspace", "1", "--role", "member", "--name", "ci")
    assert key.exit_code == 0
    assert re.fullmatch(r"jk_[A-Za-z0-9_-]{43}\n", key.stdout)
    body = {"job_type": "x", "workspace_id": 1}
    created = world.call("POST", "/workspace/1/jobs", key.stdout.strip(), json=body)
    assert created.json["created_by"] == 1


def test_create_user_asks_for_the_password_twice(world: World) -> None:
    done = run(world, "users", "create", "anna", input=f"{PASSWORD}\n{PASSWORD}\n")
    assert (done.exit_code, done.stdout) == (0, "1\n")
    assert PASSWORD not in done.output
    assert login(world, "anna", PASSWORD) == 200


def test_create_user_as_administrator(world: World) -> None:
    run(world, "users", "create", "boss", "--password", PASSWORD, "--admin")
    body = {"username": "boss", "password": PASSWORD}
    token = world.call("POST", "/auth/login", json=body).json["access_token"]
    assert world.call("GET", "/users", token).status_code == 200


def test_set_password_ends_the_old_one_and_its_logins(world: World) -> None:
    token = world.token(world.user("anna", password=PASSWORD))
    assert run(world, "users", "passwd", "anna", "--password", "n3w-password").exit_code == 0
    assert login(world, "anna", PASSWORD) == 401
    assert login(world, "anna", "n3w-password") == 200
    assert world.call("GET", "/auth/me", token).status_code == 401


def test_disable_user_ends_everything(world: World) -> None:
    token = world.token(world.user("anna", password=PASSWORD))
    assert run(world, "users", "disable", "anna").exit_code == 0
    assert world.call("GET", "/auth/me", token).status_code == 401
    assert login(world, "anna", PASSWORD) == 401


def test_disable_user_refuses_the_last_administrator(world: World) -> None:
    token = world.token(world.user("boss", is_admin=True))
    refused = run(world, "users", "disable", "boss")
    assert refused.exit_code == 1
    assert "last enabled administrator" in refused.stderr
    assert world.call("GET", "/auth/me", token).status_code == 200


def test_enable_user_revives_keys_and_no_log_ins(world: World) -> None:
    anna = world.user("anna", password=PASSWORD)
    workspace = world.workspace(anna)
    token, key = world.token(anna), world.key(workspace, anna, Role.VIEWER)
    jobs = f"/workspace/{workspace}/jobs"
    assert run(world, "users", "disable", "anna").exit_code == 0
    assert [world.call("GET", jobs, each).status_code for each in (token, key)] == [401, 401]
    for _ in range(2):
        enabled = run(world, "users", "enable", "anna")
        assert (enabled.exit_code, enabled.stdout) == (0, "")
    assert [world.call("GET", jobs, each).status_code for each in (token, key)] == [401, 200]
    assert login(world, "anna", PASSWORD) == 200


def test_create_key_is_bound_to_job_types_and_to_a_time(world: World) -> None:
    owner = world.user("anna")
    workspace = world.workspace(owner)
    made = ["keys", "create", "--workspace", str(workspace), "--role", "member", "--name", "k"]
    key = run(
        world,
        *(*made, "--job-type", "a", "--job-type", "b.c"),
        *("--expires", "2100-01-31T01:00:00+01:00"),
    ).stdout.strip()
    jobs = f"/workspace/{workspace}/jobs"
    for job_type, status in (("a", 201), ("b.c", 201), ("d", 403)):
        body = {"job_type": job_type, "workspace_id": workspace}
        assert world.call("POST", jobs, key, json=body).status_code == status
    (listed,) = world.call("GET", f"/workspace/{workspace}/keys", world.token(owner)).json["data"]
    assert listed["job_types"] == ["a", "b.c"]
    assert listed["expires_at"] == "2100-01-31T00:00:00Z"


def test_create_key_acts_for_the_user_named(world: World) -> None:
    owner = world.user("anna")
    workspace = world.workspace(owner)
    admin = world.user("boss", is_admin=True)
    made = ["keys", "create", "--workspace", str(workspace), "--role", "member", "--name", "k"]
    key = run(world, *made, "--user", "boss").stdout.strip()
    body = {"job_type": "x", "workspace_id": workspace}
    created = world.call("POST", f"/workspace/{workspace}/jobs", key, json=body)
    assert created.json["created_by"] == admin.id
    world.user("stranger")
    refused = run(world, *made, "--user", "stranger")
    assert refused.exit_code == 1
    assert "must be a member" in refused.stderr


KEY = ("keys", "create", "--workspace", "1", "--role", "viewer", "--name", "k")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("users", "create", "anna", "--password", PASSWORD), "Choose another one"),
        (("users", "create", "host:1", "--password", PASSWORD), "Use 1 to 100 letters"),
        (("users", "create", "bert", "--password", "short"), "Use 8 to 128 characters"),
        (("users", "passwd", "nobody", "--password", PASSWORD), "no user 'nobody'"),
        (("users", "passwd", "anna", "--password", "short"), "Use 8 to 128 characters"),
        (("users", "disable", "nobody"), "no user 'nobody'"),
        (("workspaces", "create", "W", "--owner", "nobody"), "no user 'nobody'"),
        (("workspaces", "create", "  ", "--owner", "anna"), "Use 1 to 200 characters"),
        (("workspaces", "create", "W\udcff", "--owner", "anna"), "not valid UTF-8"),
        (("users", "create", "bert", "--password", "\udcff" * 9), "not valid UTF-8"),
        (("users", "disable", "\udcff"), "not valid UTF-8"),
        (("workspaces", "create", "x" * 201, "--owner", "anna"), "Use 1 to 200 characters"),
        (
            ("keys", "create", "--workspace", "999", "--role", "viewer", "--name", "k"),
            "no workspace 999",
        ),
        ((*KEY, "--job-type", "a b"), "'a b': Use 1 to 100 letters"),
        ((*KEY, "--job-type", ""), "'': Use 1 to 100 letters"),
        ((*KEY, *(("--job-type", "a") * 101)), "Must have 1 to 100 entries"),
        ((*KEY, "--expires", "2001-01-01T00:00:00Z"), "Must be in the future"),
    ],
)
def test_mistake_is_a_message_and_exit_code_1(world: World, arguments: Any, says: str) -> None:
    world.workspace(world.user("anna"))
    done = run(world, *arguments)
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "--workspace", "1", "--role", "owner", "--name", "k"),
        ("keys", "create", "--workspace", "0", "--role", "viewer", "--name", "k"),
        (*KEY, "--expires", "30d"),
        (*KEY, "--expires", "2100-01-01T00:00:00"),
        (*KEY, "--expires", "2100-02-30T00:00:00Z"),
        ("workspaces", "create", "W"),
        ("serve", "--port", "99999"),
        ("nothing",),
    ],
)
def test_wrong_usage_is_exit_code_2(world: World, arguments: Any) -> None:
    done = run(world, *arguments)
    assert done.exit_code == 2
    assert "Error:" in done.stderr


def development(tmp_path: Path) -> dict[str, str]:
    return environment(JOBAPI_ENV="development", JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"))


def test_init_demo_can_be_run_again_and_again(tmp_path: Path) -> None:
    env = development(tmp_path)
    first, again = (jobapi("init", "--demo", env=env) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stdout == again.stdout
    assert len(first.stdout.splitlines()) == 3
    assert all("curl" in line for line in first.stdout.splitlines())
    assert f"{DEMO_USER!r}" in first.stderr
    assert f"{DEMO_PASSWORD!r}" in first.stderr
    assert "workspace 1" in again.stderr


def test_init_quiet_prints_nothing(tmp_path: Path) -> None:
    done = jobapi("init", "--demo", "--quiet", env=development(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_serve_in_development_greets_and_logs_a_line_of_text_per_request(tmp_path: Path) -> None:
    env = development(tmp_path)
    assert jobapi("init", "--demo", "--quiet", env=env).returncode == 0
    with closing(Service(tmp_path, env)) as service:
        greeting, *_ = service.log.read_text().strip().split("\n\n")
        assert greeting.split()[:2] == ["Dashboard", f"{service.url}/dashboard"]
        for text in ("/docs\n", f"user {DEMO_USER}, password {DEMO_PASSWORD}\n", "Ctrl-C"):
            assert text in greeting
        service.client(DEMO_USER, DEMO_PASSWORD).get("/workspace")
        until(lambda: "GET /workspace" in service.log.read_text())
    lines = service.log.read_text().strip().split("\n\n", 1)[1].splitlines()
    assert [line.split()[2:6] for line in lines if "/health/" not in line] == [
        ["INFO", "POST", "/auth/login", "200"],
        ["INFO", "GET", "/workspace", "200"],
    ]


def test_serve_in_development_without_a_database_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    with closing(Service(tmp_path, development(tmp_path))) as service:
        greeting = service.log.read_text()
    assert "jobapi init" in greeting
    assert DEMO_PASSWORD not in greeting


def test_init_demo_at_once_makes_one_demo(new_database: Any, database: str, tmp_path: Path) -> None:
    env = {**development(tmp_path), "JOBAPI_DATABASE_URL": new_database(database)}
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: jobapi("init", "--demo", env=env), range(4)))
    assert [each.returncode for each in done] == [0] * 4, [each.stderr for each in done]
    assert len({each.stdout for each in done}) == 1


def test_sqlite_file_that_we_make_is_for_its_owner_only(tmp_path: Path) -> None:
    assert jobapi("init", env=development(tmp_path)).returncode == 0
    file = tmp_path / "instance" / "jobapi.sqlite3"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        beside = [path for path in file.parent.iterdir() if path.name.startswith(file.name + "-")]
        assert beside
        assert {stat.S_IMODE(path.stat().st_mode) for path in beside} == {0o600}


def test_init_demo_is_refused_in_production(tmp_path: Path) -> None:
    env = {**development(tmp_path), "JOBAPI_ENV": "production", "JOBAPI_SECRET_KEY": "x" * 32}
    done = jobapi("init", "--demo", env=env)
    assert done.returncode == 1
    assert "JOBAPI_ENV=development" in done.stderr
    assert not (tmp_path / "instance" / "jobapi.sqlite3").exists()


@pytest.mark.parametrize("command", [("serve",), ("init",), ("users", "disable", "x")])
def test_production_without_a_secret_does_not_start(tmp_path: Path, command: Any) -> None:
    env = {**development(tmp_path), "JOBAPI_ENV": ""}
    done = jobapi(*command, env=env)
    assert done.returncode == 1
    assert "JOBAPI_SECRET_KEY is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_database_that_is_not_migrated_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    done = jobapi("users", "disable", "anna", env=development(tmp_path))
    assert done.returncode == 1
    assert "jobapi init" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_of_commands_has_the_first_sentence_of_their_help() -> None:
    for command in COMMANDS.values():
        module, _, name = command.target.partition(":")
        own = getattr(import_module(f"jobapi.{module}"), name).help
        assert " ".join(own.split()).startswith(command.help)


def test_help_and_version_need_no_settings() -> None:
    env = environment()
    assert "Run and administer the Job API" in jobapi("--help", env=env).stdout
    code = (
        "import sys\n"
        "from jobapi.commands.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'flask', 'sqlalchemy', 'httpx2'} & sys.modules.keys()))"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert listed.endswith("[]\n")
    assert re.search(r"\d+\.\d+", jobapi("--version", env=env).stdout)
    usage = jobapi("serve", "--help", env=env).stdout
    for text in ("127.0.0.1", "8000", "--workers", "[default: 2", "--threads", "[default: 8"):
        assert text in usage


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "localhost"),
        ("::", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "[2001:db8::7]"),
    ],
)
def test_greeting_names_an_address_that_a_browser_can_open(
    world: World, host: str, shown: str
) -> None:
    assert f"http://{shown}:8123/dashboard" in greeting(world.state, (host, 8123))
