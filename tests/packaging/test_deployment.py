"""Examples of deployments: the commands, settings and metrics that they name exist."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from jobapi.commands.main import main
from jobapi.config import CLIENT_VARIABLES, PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = ROOT / "examples" / "deployment"
FILES = [
    ROOT / "Containerfile",
    ROOT / "compose.yaml",
    *(path for path in DEPLOYMENT.rglob("*") if path.is_file()),
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}
METRICS = set(
    re.findall(r"^\| `(jobapi_[a-z_]+)`", (ROOT / "docs" / "deployment.md").read_text(), re.M)
)


@pytest.mark.parametrize("name", TEXTS)
def test_files_name_only_metrics_and_settings_there_are(name: str) -> None:
    settings = {PREFIX + field.name.upper() for field in fields(Settings)} | CLIENT_VARIABLES
    assert set(re.findall(r"JOBAPI_[A-Z_]*[A-Z]", TEXTS[name])) <= settings
    # The rest of a query are labels, functions, and the series of histograms.
    named = re.findall(r"\bjobapi_[a-z_]+", TEXTS[name])
    assert {re.sub("_bucket$", "", metric) for metric in named} <= METRICS


def test_dashboard_and_rules_show_every_metric() -> None:
    shown = "".join(TEXTS[f"examples/deployment/{name}"] for name in ("grafana/jobapi.json",))
    assert {metric for metric in METRICS if metric not in shown} == {
        "jobapi_jobs",
        "jobapi_omitted_job_types",
    } - set(re.findall(r"jobapi_[a-z_]+", shown))
    panels = json.loads(shown)["panels"]
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len({panel["id"] for panel in panels}) == len(set(places)) == len(panels)


def documents(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def test_kustomization_lists_every_manifest() -> None:
    folder = DEPLOYMENT / "kubernetes"
    (listed,) = documents(folder / "kustomization.yaml")
    assert set(listed["resources"]) == {path.name for path in folder.iterdir()} - {
        "kustomization.yaml"
    }
    kinds = [each["kind"] for name in listed["resources"] for each in documents(folder / name)]
    assert sorted(kinds) == [
        *("Deployment", "Deployment", "Job", "PodDisruptionBudget"),
        *("ScaledObject", "Service", "ServiceMonitor"),
    ]


def containers() -> list[Any]:
    found = []
    for path in (DEPLOYMENT / "kubernetes").iterdir():
        for each in documents(path):
            if each["kind"] in ("Deployment", "Job"):
                pod = each["spec"]["template"]["spec"]
                assert pod["securityContext"]["runAsNonRoot"] is True
                assert pod["automountServiceAccountToken"] is False
                found += pod["containers"]
    return found


def test_containers_of_kubernetes_are_restricted() -> None:
    for container in containers():
        allowed = container["securityContext"]
        assert allowed["readOnlyRootFilesystem"] is True
        assert allowed["allowPrivilegeEscalation"] is False
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def commands() -> list[list[str]]:
    """What all these files run, as arguments of ``jobapi``."""
    compose = yaml.safe_load(TEXTS["compose.yaml"])["services"]
    found = [service["command"] for service in compose.values() if "command" in service]
    found += [container["args"] for container in containers() if "args" in container]
    found.append(json.loads(re.findall(r"^CMD (.*)$", TEXTS["Containerfile"], re.M)[-1]))
    for path in (DEPLOYMENT / "systemd").iterdir():
        found += [
            line.split()
            for line in re.findall(r"^Exec\w+=/opt/jobapi/bin/jobapi (.*)$", path.read_text(), re.M)
        ]
    return found


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_exist_with_their_options(arguments: list[str]) -> None:
    with click.Context(main) as context:
        command = main.get_command(context, arguments[0])
    assert command is not None
    options = {name for parameter in command.params for name in parameter.opts}
    assert {each for each in arguments if each.startswith("--")} <= options


def test_container_runs_as_a_user_and_is_restricted_in_compose() -> None:
    assert re.search(r"^USER 10001:10001$", TEXTS["Containerfile"], re.M)
    assert "/health/live" in TEXTS["Containerfile"]
    for name, service in yaml.safe_load(TEXTS["compose.yaml"])["services"].items():
        if name != "database":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]


def test_ignored_files_leave_what_the_image_needs() -> None:
    kept = (ROOT / ".containerignore").read_text()
    for line in ("requirements.txt", "setup.cfg", "pyproject.toml", "jobapi", "migrations"):
        assert f"\n!{line}\n" in kept
