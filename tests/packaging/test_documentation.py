"""README and docs agree with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from jobapi.commands.main import main
from jobapi.config import CLIENT_VARIABLES, Settings
from jobapi.errors import all_errors
from jobapi.rules.jobs import STATUS_ORDER
from jobapi.rules.lifecycle import EDIT_VERBS, TRANSITIONS
from jobapi.schemas.stats import Stats
from jobapi.services import stats

from ..served import Service, environment, jobapi
from ..stand_ins import install
from .test_house import LAYERS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def rows(text: str, columns: int) -> list[list[str]]:
    """The rows of all tables with this number of columns."""
    found = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in found if len(row) == columns]


def test_settings_page_has_every_setting_with_its_default() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows(DOCS["settings.md"], 3)[2:]}
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
    for verb, transition in TRANSITIONS.items():
        how, before, after = table[verb]
        allowed = [status for status in STATUS_ORDER if status in transition.allowed]
        assert before == ", ".join(f"`{status.label}`" for status in allowed)
        assert after == f"`{transition.target.label}`"
        if verb in EDIT_VERBS.values():
            assert f'{{"status": "{transition.target.label}"}}' in how


def anchors(text: str) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_pages_and_headings() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]
    for page in pages:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(found.read_text()), f"{page.name}: #{anchor}"


def test_architecture_page_has_every_layer_with_its_imports() -> None:
    table = {row[0].strip("`"): row[2].split(", ") for row in rows(DOCS["architecture.md"], 3)[2:]}
    assert {layer: sorted(filter(None, names)) for layer, names in table.items()} == {
        layer: sorted(names.split()) for layer, names in LAYERS.items()
    }


def test_documents_name_only_files_there_are() -> None:
    for page in ("CONTRIBUTING.md", "docs/architecture.md", "docs/lifecycle.md"):
        text = (ROOT / page).read_text()
        for name in re.findall(r"`([a-z_/.]+/|[a-z_/]+\.(?:py|js|sql))`", text):
            assert (ROOT / name).exists() or (ROOT / "jobapi" / name).exists(), name


def test_readme_fits_on_two_screens() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 130


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    """The commands with their names and arguments, as a heading has them.

    ``db`` is there as a whole, with our own command only.
    """
    if isinstance(command, click.Group):
        context = click.Context(command)
        is_db = path[-1] == "db"
        if is_db:
            yield " ".join(path), command
        for name in ["partition"] if is_db else command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, *path, name)
        return
    names = [(p, p.metavar or (p.name or "").upper()) for p in command.params]
    arguments = [
        name if p.required else f"[{name}]" for p, name in names if isinstance(p, click.Argument)
    ]
    yield " ".join([*path, *arguments]), command


def options(text: str) -> dict[str, str]:
    return {row[0].strip("`"): row[1].strip("`") for row in rows(text, 3) if "`--" in row[0]}


COMMANDS = dict(commands(main, "jobapi"))
SECTIONS = {
    heading.strip("`"): text
    for heading, text in re.findall(r"^##+ (.*)\n((?:(?!#).*\n?)*)", DOCS["cli.md"], re.M)
}


def test_command_line_page_has_every_command() -> None:
    headings = {heading for heading in SECTIONS if heading.startswith("jobapi ")}
    assert headings == COMMANDS.keys()


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"jobapi db"}))
def test_command_line_page_has_every_option_with_its_default(name: str) -> None:
    found = options(SECTIONS[name])
    if re.match(r"jobapi (jobs|job-types|schedules|webhooks|workers?)\b", name):
        found |= options(SECTIONS["A running service"])
    if "(#filters)" in SECTIONS[name]:
        found |= options(SECTIONS["Filters"])
    expected = {}
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option):
            default = option.to_info_dict()["default"]
            expected[option.opts[0]] = "required" if option.required else str(default or "")
    assert found == expected


def test_documents_name_only_commands_there_are() -> None:
    for page, text in {"README.md": README, **DOCS}.items():
        blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
        code = "\n".join([*blocks, *re.findall(r"`(jobapi [^`\n]*)`", text)])
        for line in re.findall(r"^jobapi ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", code, re.M):
            command: click.Command | None = main
            for word in line.split():
                if isinstance(command, click.Group):
                    command = command.get_command(click.Context(command), word)
            assert command is not None, f"{page}: jobapi {line}"


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
    install(tmp_path, tuple(name for name in ("curl", "jq") if shutil.which(name) is None))
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
    block = re.search(r"```bash\n(URL=.*?)```", README, re.S)
    assert block is not None
    assert len(block[1].splitlines()) == 10
    answers = shell(service, tools, block[1])
    assert '"priority":"high"' in answers[0]
    assert '"progress_percent":50' in answers[1]
    assert '"progress_message":"Half of it"' in answers[2]
    assert '"status":"success"' in answers[3]
    assert '"result":{"rows_processed":50000}' in answers[4]
    assert '"total":2,' in answers[5]
