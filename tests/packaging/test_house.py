"""The conventions of the project: imports, commits, names and bounds."""

from __future__ import annotations

import ast
import configparser
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from marshmallow import RAISE, fields, validate
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobapi import JobAPI
from jobapi.schemas.base import Base
from jobapi.schemas.fields import Document, Paths

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT / "jobapi").with_suffix("").parts): path
    for path in (ROOT / "jobapi").rglob("*.py")
    if path.name != "__init__.py"
}

# What the modules of a layer may import of ours besides their own layer.
LAYERS = {
    "errors": "",
    "headers": "",
    "logs": "",
    "signals": "",
    "rules": "errors",
    "store": "errors",
    "config": "store",
    "services": "errors rules store",
    "schemas": "errors rules",
    "tokens": "errors services store",
    "metrics": "config rules services",
    "background": "errors rules services store",
    "state": "background config metrics rules services store tokens",
    "views": "background errors headers metrics rules schemas services state store",
    "extension": "commands config logs state store tokens views",
    "client": "errors rules signals",
    "commands": "config errors headers logs metrics rules schemas services signals state store",
}
SERVICES = sorted(name for name in MODULES if name.startswith("services."))
NO_WEB = sorted(name for name in MODULES if name.split(".")[0] in ("errors", "rules", "store"))


def imports(path: Path, name: str) -> set[str]:
    """What a module imports, wherever in it and if only for types: ours by dotted name, others
    as ``/name``."""
    package = name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*parts, alias.name])
                found.add(full if full in MODULES else ".".join(parts))
        elif isinstance(node, ast.ImportFrom):
            found.add(f"/{(node.module or '').split('.')[0]}")
        elif isinstance(node, ast.Import):
            found |= {f"/{alias.name.split('.')[0]}" for alias in node.names}
    return found - {""}


def ours(name: str) -> set[str]:
    return {found for found in imports(MODULES[name], name) if not found.startswith("/")}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_of_a_module_stay_below_its_layer(name: str) -> None:
    layer = name.split(".")[0]
    assert {found.split(".")[0] for found in ours(name)} <= {layer, *LAYERS[layer].split()}


def test_imports_of_modules_form_no_cycle() -> None:
    TopologicalSorter({name: ours(name) for name in MODULES}).prepare()


@pytest.mark.parametrize("name", [*SERVICES, *NO_WEB])
def test_imports_of_services_and_below_have_no_web_framework(name: str) -> None:
    strangers = {"/flask", "/flask_smorest", "/marshmallow", "/werkzeug", "/webargs"}
    assert not imports(MODULES[name], name) & strangers


@pytest.mark.parametrize("name", SERVICES)
def test_services_never_commit(name: str) -> None:
    text = MODULES[name].read_text()
    assert not re.search(r"\.(commit|rollback|begin)\(|\btransaction\(|COMMIT", text)


def test_only_the_ground_is_imported_by_importing_the_package() -> None:
    import subprocess
    import sys

    code = (
        "import sys, jobapi.client, jobapi.rules.lifecycle, jobapi.commands.main\n"
        "jobapi.commands.main.main(['jobs', 'list', '--help'], standalone_mode=False)\n"
        "print(sys.modules.keys() & {'flask', 'sqlalchemy', 'marshmallow'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def locked(path: Path) -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^ ;\\]+)", path.read_text(), re.M)
    return {canonicalize_name(name): version for name, version in pins}


def test_requirements_are_what_setup_cfg_asks_for() -> None:
    """After a change of setup.cfg: make lock."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"].split("\n")
    dev = setup["options.extras_require"]["dev"].split("\n")
    runtime, everything = locked(ROOT / "requirements.txt"), locked(ROOT / "requirements-dev.txt")
    for lock, lines in ((runtime, needed), (everything, needed + dev)):
        for requirement in map(Requirement, filter(None, lines)):
            version = lock.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not locked; run: make lock"
            assert version in requirement.specifier, f"{requirement} is {version}; run: make lock"
    assert runtime.items() <= everything.items()


def test_every_locked_requirement_has_hashes() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        pins = re.findall(r"^[A-Za-z0-9_.-]+.*==", text, re.M)
        blocks = re.split(r"^(?=[A-Za-z0-9_.-]+.*==)", text, flags=re.M)[1:]
        assert len(blocks) == len(pins)
        assert all("--hash=sha256:" in block for block in blocks)


def request_schemas() -> list[Base]:
    """What bodies and queries are loaded by, and what is nested in it."""
    app = Flask("host")
    app.config["SECRET_KEY"] = "k" * 32
    JobAPI(app)
    found: dict[type, Base] = {}

    def add(schema: Any) -> None:
        if type(schema) not in found:
            found[type(schema)] = schema
            for field in schema.fields.values():
                inner = getattr(field, "inner", field)
                if isinstance(inner, fields.Nested):
                    add(inner.schema)

    for view in app.view_functions.values():
        arguments = getattr(view, "_apidoc", {}).get("arguments", {})
        for parameter in arguments.get("parameters", []):
            add(parameter["schema"])
    return list(found.values())


def test_every_list_and_object_of_a_request_has_a_bound() -> None:
    lists = 0
    for schema in request_schemas():
        assert isinstance(schema, Base)
        assert schema.unknown == RAISE
        for name, field in schema.fields.items():
            where = f"{type(schema).__name__}.{name}"
            assert not isinstance(field, fields.Tuple), where
            if isinstance(field, fields.List):
                lists += 1
                limits = [v for v in field.validators if isinstance(v, validate.Length)]
                assert any(limit.max is not None and limit.max <= 1000 for limit in limits), where
            elif isinstance(field, fields.Mapping):
                # The bytes of a document are bounded, and the paths of a filter in number.
                assert isinstance(field, Document | Paths), where
    assert lists >= 12
