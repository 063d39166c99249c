"""What is written down is so: README and docs against the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobapi.commands.main import main
from jobapi.config import CLIENT_VARIABLES, Settings
from jobapi.errors import all_errors
from jobapi.rules.lifecycle import EDIT_VERBS, TRANSITIONS
from jobapi.schemas.stats import Stats
from jobapi.services import stats

from ..served import Service, environment, jobapi
from ..stand_ins import install

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def rows(text: str, columns: int) -> list[list[str]]:
    """The rows of all tables with so many columns."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in found if len(row) == columns]


def test_readme_has_every_setting_with_its_default() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows(README, 3) if "JOBAPI_" in row[0]}
    expected = {}
    for field in fields(Settings):
        default = "" if field.default in (None, "") else f"`{field.default}`"
        if isinstance(field.default, bool):
            default = default.lower()
        expected[f"JOBAPI_{field.name.upper()}"] = [default, field.metadata["doc"]]
    assert table == expected


def test_documents_name_only_settings_there_are() -> None:
    known = {f"JOBAPI_{field.name.upper()}" for field in fields(Settings)} | CLIENT_VARIABLES
    for name, text in {"README.md": README, **DOCS}.items():
        assert set(re.findall(r"JOBAPI_[A-Z_]+", text)) <= known, name


def test_errors_page_has_every_kind_with_its_status() -> None:
    table = {row[0].strip("`"): row[1] for row in rows(DOCS["errors.md"], 3)[2:]}
    assert table == {error.type_name(): str(error.status) for error in all_errors()}


def test_sample_of_durations_is_documented_as_it_is_taken() -> None:
    (row,) = (row for row in rows(DOCS["operations.md"], 2) if row[0] == "`durations`")
    field = Stats().fields["durations"].metadata["description"]
    for text in (row[1].partition(":")[2], field):
        numbers = re.findall(r"[\d,]*\d", text)
        assert numbers == [f"{stats.SAMPLE:,}", str(stats.LEAST_SAMPLE)]


def test_lifecycle_page_has_every_transition() -> None:
    table = {row[0]: row[1:] for row in rows(DOCS["lifecycle.md"], 4)[3:]}
    assert table.keys() == TRANSITIONS.keys()
    for verb, (allowed, target) in TRANSITIONS.items():
        how, before, after = table[verb]
        assert before == ", ".join(f"`{status.label}`" for status in sorted(allowed))
        assert after == f"`{target.label}`"
        if verb in EDIT_VERBS.values():
            assert f'{{"status": "{target.label}"}}' in how


def test_links_lead_somewhere() -> None:
    for name, text in {"README.md": README, **{f"docs/{n}": t for n, t in DOCS.items()}}.items():
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_commands_in_the_readme_are_commands_there_are() -> None:
    for line in set(re.findall(r"`(jobapi [a-z]+(?: [a-z]+)?)", README)):
        _, *words = line.split()
        assert CliRunner().invoke(main, [*words, "--help"]).exit_code == 0, line


def shell(service: Service, tools: Path, lines: str) -> list[str]:
    lines = lines.replace("http://localhost:8000", service.url)
    path = f"{tools}:{service.env['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", lines],
        env={**service.env, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def demo(tmp_path: Path) -> Any:
    """A service as ``make run`` starts it; what ``init`` printed; tools."""
    env = environment(JOBAPI_ENV="development", JOBAPI_INSTANCE_PATH=str(tmp_path / "instance"))
    printed = jobapi("init", "--demo", env=env).stdout
    service = Service(tmp_path, env)
    if shutil.which("curl") is None:
        install(tmp_path, ("curl",))
    yield service, printed, tmp_path
    service.close()


def test_lines_to_start_with_work_when_pasted(demo: Any) -> None:
    service, printed, tools = demo
    created, listed = shell(service, tools, printed)
    assert '"status":"pending"' in created
    assert '"total":1' in listed
    python = re.search(r"```python\n(.*?)```", README, re.S)
    assert python is not None
    code = python[1].replace("http://localhost:8000", service.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{'sum': 6}\n", done.stderr
    block = re.search(r"```bash\n(.*?)```", README, re.S)
    assert block is not None
    assert len(block[1].splitlines()) == 10
    answers = shell(service, tools, block[1])
    assert '"priority":"high"' in answers[0]
    assert '"progress_percent":50' in answers[1]
    assert '"progress_message":"Half of it"' in answers[2]
    assert '"status":"success"' in answers[3]
    assert '"result":{"rows_processed":50000}' in answers[4]
    assert '"total":2,' in answers[5]
