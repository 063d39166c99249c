"""``jobapi job-types``, ``workers`` and ``webhooks``, and what ``jobs`` has of flow control."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jobapi.client import Client
from jobapi.commands.main import main

from ..conftest import service_settings
from ..factories import PASSWORD
from ..served import Service


class Terminal:
    """Runs commands against a service."""

    def __init__(self, url: str, token: str) -> None:
        self.env = {"JOBAPI_URL": url, "JOBAPI_TOKEN": token}

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, env=self.env)

    def lines(self, *arguments: str) -> list[str]:
        """What a command prints, which succeeds."""
        done = self.run(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines()

    def json(self, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in self.lines(*arguments, "--json")]


@pytest.fixture
def client(serve: Any) -> Iterator[Client]:
    """A client of a service of its own, logged in as the owner of workspace 1."""
    with Client(serve().url, username="boss", password=PASSWORD, retries=0) as client:
        yield client


@pytest.fixture
def terminal(client: Client) -> Terminal:
    return Terminal(client.url, client._access_token())


def test_set_job_type_prints_its_settings_and_none_resets_them(
    client: Client, terminal: Terminal
) -> None:
    every = {
        "--max-running": "5",
        "--max-running-per-key": "1",
        "--rate-limit": "100/60",
        "--max-pending": "1000",
        "--start-within-seconds": "3600",
        "--priority": "high",
        "--max-retries": "0",
        "--timeout-seconds": "30",
        "--retry-backoff-seconds": "2",
        "--retry-backoff-max-seconds": "60",
    }
    options = [text for pair in every.items() for text in pair]
    settings = ", ".join(f"{name[2:]} {value}" for name, value in every.items())
    assert terminal.lines("job-types", "set", "a", *options) == [f"a: {settings}"]
    (changed,) = terminal.json("job-types", "set", "a", "--rate-limit", "none")
    assert (changed["rate_limit"], changed["max_running"]) == (None, 5)
    nothing = [text for name in every for text in (name, "none")]
    assert terminal.lines("job-types", "set", "a", *nothing) == ["a: default settings"]
    assert list(client.job_types(1)) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["set", "a"], 2, "at least one setting"),
        (["set", "a", "--max-running", "0"], 2, "--max-running"),
        (["set", "a", "--max-running", "many"], 2, "--max-running"),
        (["set", "a", "--rate-limit", "100"], 2, "write STARTS/SECONDS"),
        (["set", "a", "--rate-limit", "100/60s"], 2, "write STARTS/SECONDS"),
        (["set", "a", "--priority", "higher"], 2, "'none'"),
        (["set", "a", "--max-running", "1001"], 1, "max_running: "),
        (["set", "a", "--rate-limit", "1/0"], 1, "rate_limit.seconds: "),
        (["set", "a b", "--max-running", "1"], 1, "no such job type"),
        (["pause", "a b"], 1, "no such job type"),
        (["pause", "a", "--reason", ""], 1, "reason: "),
        (["resume", "a/b"], 1, "There is nothing at"),
        (["show", "a"], 1, "no jobs and no settings of the type a"),
        (["pause"], 2, "JOB_TYPE"),
    ],
)
def test_job_types_command_with_a_mistake_says_what_is_wrong(
    shared_terminal: Terminal, arguments: list[str], code: int, says: str
) -> None:
    done = shared_terminal.run("job-types", *arguments)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert says in done.stderr


@pytest.fixture(scope="module")
def shared_terminal(tmp_path_factory: Any, furnished: Any) -> Iterator[Terminal]:
    """For commands that change nothing: one service for all of them."""
    folder = tmp_path_factory.mktemp("service")
    service = Service(folder, service_settings(furnished("sqlite"), folder))
    with Client(service.url, username="boss", password=PASSWORD) as client:
        yield Terminal(service.url, client._access_token())
    service.close()


def test_pause_and_resume_job_type(client: Client, terminal: Terminal) -> None:
    client.create(1, "a")
    assert terminal.lines("job-types", "pause", "a", "--reason", "bad\nrelease") == ["a paused"]
    assert client.claim(1) == []
    (heading, row) = terminal.lines("job-types", "list")
    assert heading.split() == ["TYPE", "PENDING", "RUNNING", "WORKERS", "OLDEST", "SETTINGS"]
    assert row.split()[:4] == ["a", "1", "0", "1"]
    assert row.endswith("  paused (bad release)")
    (paused,) = terminal.json("job-types", "pause", "a")
    assert (paused["paused"], paused["paused_reason"]) == (True, None)
    assert terminal.lines("job-types", "list")[1].endswith("  paused")
    assert terminal.lines("job-types", "resume", "a") == ["a resumed"]
    assert len(client.claim(1)) == 1
    assert not terminal.json("job-types", "resume", "a")[0]["paused"]


def test_list_and_show_job_types(client: Client, terminal: Terminal) -> None:
    assert len(terminal.lines("job-types", "list")) == 1
    client.create_many(1, [{"job_type": name} for name in ("b", "a", "a")])
    client.set_job_type(1, "c", max_running=7)
    listed = [line.split() for line in terminal.lines("job-types", "list")[1:]]
    assert [row[:2] for row in listed] == [["a", "2"], ["b", "1"], ["c", "0"]]
    assert listed[2] == ["c", "0", "0", "0", "-", "max-running", "7"]
    assert [each["job_type"] for each in terminal.json("job-types", "list")] == ["a", "b", "c"]
    shown = json.loads("\n".join(terminal.lines("job-types", "show", "c")))
    assert (shown["job_type"], shown["max_running"], shown["rate_limit"]) == ("c", 7, None)


def test_workers_are_listed(client: Client, terminal: Terminal) -> None:
    (heading,) = terminal.lines("workers")
    assert heading.split()[:4] == ["WORKER", "ACTOR", "STATE", "RUNNING"]
    client.create(1, "a")
    client.claim(1, job_types=["a", "b"], worker="w1")
    client.claim(1, worker="w2")
    one, two = terminal.lines("workers", "--live")[1:]
    assert one.split()[:4] == ["w1", "user:1", "live", "1"]
    assert one.endswith("  a, b")
    assert two.endswith("  all")
    assert [each["name"] for each in terminal.json("workers")] == ["w1", "w2"]


def test_create_job_with_keys_and_expiry(client: Client, terminal: Terminal) -> None:
    fields = ["--concurrency-key", "k", "--unique-key", "u", "--expires-at", "2100-01-31T00:00:00Z"]
    (job_id,) = terminal.lines("jobs", "create", "a", *fields)
    job = client.get(1, job_id).to_json()
    assert (job["concurrency_key"], job["unique_key"]) == ("k", "u")
    assert job["expires_at"] == "2100-01-31T00:00:00Z"
    again = terminal.run("jobs", "create", "a", "--unique-key", "u")
    assert (again.exit_code, again.stdout) == (0, f"{job_id}\n")
    assert "a live job has this unique key" in again.stderr
    (existing,) = terminal.json("jobs", "create", "a", "--unique-key", "u")
    assert (existing["job_id"], existing["existing"]) == (job_id, True)
    new = ["--unique-key", "u", "--metadata", '{"n": 1}']
    terminal.lines("jobs", "create", "a", *new, "--on-conflict", "replace")
    assert client.get(1, job_id).metadata == {"n": 1}
    refused = terminal.run("jobs", "create", "a", *new, "--on-conflict", "refuse")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert job_id in refused.stderr
    for wrong in (["--on-conflict", "ignore"], ["--expires-at", "tomorrow"]):
        assert terminal.run("jobs", "create", "a", *wrong).exit_code == 2
    for wrong in (["--unique-key", ""], ["--expires-at", "2001-01-31T00:00:00Z"]):
        done = terminal.run("jobs", "create", "a", *wrong)
        assert (done.exit_code, done.stdout) == (1, "")


def test_list_jobs_by_keys_and_expiry(client: Client, terminal: Terminal) -> None:
    # Together with another filter, so that the jobs are looked at one by one.
    mine = ["--created-by", "1"]
    client.create(1, "a")
    fields = ["--concurrency-key", "k", "--unique-key", "u", "--expires-at", "2100-01-31T00:00:00Z"]
    (job_id,) = terminal.lines("jobs", "create", "a", *fields)
    for found in (
        ["--concurrency-key", "k", "--concurrency-key", "l"],
        ["--unique-key", "u"],
        ["--expires-after", "2100-01-31T00:00:00Z"],
        ["--expires-before", "2100-01-31T00:00:01Z"],
    ):
        (job,) = terminal.json("jobs", "list", *mine, *found)
        assert job["job_id"] == job_id, found
        counted = terminal.lines("jobs", "operate", "cancel", "--dry-run", *mine, *found)
        assert counted == ["1 jobs"], found
    for none in (["--unique-key", "v"], ["--expires-before", "2100-01-31T00:00:00Z"]):
        assert terminal.json("jobs", "list", *mine, *none) == []
    assert terminal.run("jobs", "list", "--expires-after", "today").exit_code == 2


def test_explain_job_prints_reasons_and_estimates(client: Client, terminal: Terminal) -> None:
    client.set_job_type(1, "a", max_running=1)
    client.create_many(1, [{"job_type": "a"}] * 3)
    client.claim(1)
    *_, job = client.jobs(1, status="pending", sort="created_at", order="asc")
    lines = terminal.lines("jobs", "explain", job.job_id)
    full = "At most 1 job of its type may run at the same time (max_running); the limit is reached."
    assert lines[:5] == [
        f"{job.job_id} pending",
        f"  at-capacity    {full}",
        "  behind-others  1 job of its type comes first.",
        "  jobs ahead: 1",
        "  live workers: 1",
    ]
    assert lines[-2].startswith("  estimated start: 20")
    assert lines[-1].startswith("  estimate: 1 start of this type within 60 minutes.")
    (answer,) = terminal.json("jobs", "explain", job.job_id)
    assert answer["reasons"] == client.explain(1, job.job_id).to_json()["reasons"]
    unknown = terminal.run("jobs", "explain", "job_y")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("Error: ")


def test_schedule_is_created_changed_run_and_deleted(client: Client, terminal: Terminal) -> None:
    (schedule_id,) = terminal.lines(
        *("schedules", "create", "nightly", "--type", "report", "--cron", "30 2 * * *"),
        *("--timezone", "Europe/Berlin", "--overlap", "skip", "--metadata", '{"a": 1}'),
        *("--job", '{"max_retries": 7}', "--starts-at", "2020-01-01T00:00:00Z"),
    )
    found = client.schedule(1, schedule_id)
    assert found.job == {"job_type": "report", "metadata": {"a": 1}, "max_retries": 7}
    assert (found.cron, found.timezone, found.overlap) == ("30 2 * * *", "Europe/Berlin", "skip")
    heading, row = terminal.lines("schedules", "list")
    assert heading.split()[:2] == ["ID", "NAME"]
    assert row.startswith(f"{schedule_id}  nightly  report  30 2 * * * Europe/Berlin  20")
    assert row.endswith("-")
    shown = json.loads("\n".join(terminal.lines("schedules", "show", schedule_id)))
    assert shown == found.to_json()
    assert terminal.json("schedules", "list") == [shown]
    (edited,) = terminal.lines(
        *("schedules", "edit", schedule_id, "--every-seconds", "3600", "--starts-at", "none"),
        *("--job", '{"max_retries": null}', "--name", "hourly"),
    )
    assert edited.startswith("hourly: next run 20")
    changed = client.schedule(1, schedule_id)
    assert (changed.cron, changed.every_seconds, changed.starts_at) == (None, 3600, None)
    assert changed.job == {"job_type": "report", "metadata": {"a": 1}}
    assert terminal.lines("schedules", "pause", schedule_id, "--reason", "x") == ["hourly paused"]
    assert " paused " in terminal.lines("schedules", "list")[1]
    assert terminal.lines("schedules", "resume", schedule_id)[0].startswith("hourly: next run 20")
    (job_id,) = terminal.lines("schedules", "run", schedule_id)
    listed = terminal.json("jobs", "list", "--schedule-id", schedule_id)
    assert [job["job_id"] for job in listed] == [job_id]
    assert terminal.lines("schedules", "delete", schedule_id) == [f"{schedule_id} deleted"]
    assert terminal.lines("schedules", "list")[1:] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "a"], "--type"),
        (["create", "a", "--type", "t"], "Give either cron or every_seconds"),
        (["create", "a", "--type", "t", "--cron", "0 0 30 2 *"], "cron"),
        (["create", "a", "--type", "t", "--cron", "* * * * *", "--timezone", "X"], "timezone"),
        (["create", "a", "--type", "t", "--every-seconds", "0"], "--every-seconds"),
        (["create", "a", "--type", "t", "--job", "1"], "must be a JSON object"),
        (["edit", "sch_0"], "Give at least one field"),
        (["edit", "sch_0", "--name", "b"], "No schedule"),
        (["show", "sch_0"], "No schedule"),
    ],
)
def test_schedules_command_with_a_mistake_says_what_is_wrong(
    shared_terminal: Terminal, arguments: list[str], said: str
) -> None:
    done = shared_terminal.run("schedules", *arguments)
    assert done.exit_code in (1, 2)
    assert said in done.output


def test_webhooks_are_managed(client: Client, terminal: Terminal) -> None:
    url = "https://example.invalid/hooks"
    options = ("--event", "failed", "--event", "created", "--type", "a", "--include", "result")
    webhook_id, secret = terminal.lines(
        "webhooks", "create", url, *options, "--description", "Billing"
    )
    assert secret.startswith("whsec_")
    shown = json.loads("".join(terminal.lines("webhooks", "show", webhook_id)))
    assert "secret" not in shown
    assert (shown["events"], shown["job_types"]) == (["created", "failed"], ["a"])
    assert terminal.lines("webhooks", "list")[1].split() == [
        *(webhook_id, "enabled", url, "Billing")
    ]
    changed = terminal.lines(
        *("webhooks", "edit", webhook_id, "--default", "events", "--disable", "--to", url + "2")
    )
    assert changed == [f"{webhook_id} disabled {url}2"]
    refused = terminal.run("webhooks", "test", webhook_id)
    assert (refused.exit_code, "Enable it first" in refused.output) == (1, True)
    (enabled,) = terminal.json("webhooks", "edit", webhook_id, "--enable")
    assert (enabled["enabled"], enabled["events"], enabled["job_types"]) == (True, None, ["a"])
    (rotated,) = terminal.lines("webhooks", "rotate-secret", webhook_id)
    assert rotated != secret
    (sent,) = terminal.json("webhooks", "test", webhook_id)
    assert terminal.lines("webhooks", "deliveries", webhook_id)[1].split()[::2][:2] == [
        *(sent["delivery_id"], "webhook.test")
    ]
    assert terminal.json("webhooks", "deliveries", webhook_id, "--status", "cancelled") == []
    again = terminal.lines("webhooks", "redeliver", webhook_id, sent["delivery_id"])
    assert again[0].split()[0] == sent["delivery_id"]
    nothing = terminal.run("webhooks", "edit", webhook_id)
    assert (nothing.exit_code, "at least one setting" in nothing.output) == (2, True)
    assert terminal.lines("webhooks", "delete", webhook_id) == [f"{webhook_id} deleted"]
    assert terminal.json("webhooks", "list") == []
