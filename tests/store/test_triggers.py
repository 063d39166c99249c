"""The SQL files of the triggers: what the numbers in them mean."""

from __future__ import annotations

import re
from enum import IntEnum

import pytest

from jobapi.migrations import triggers
from jobapi.rules.events import EventKind
from jobapi.rules.jobs import JobStatus, Outcome

from ..conftest import DATABASES

# The columns that hold a number of an enumeration.
ENUMERATIONS: dict[str, type[IntEnum]] = {
    "status": JobStatus,
    "from_status": JobStatus,
    "to_status": JobStatus,
    "kind": EventKind,
    "outcome": Outcome,
}
COLUMN = rf"\b({'|'.join(ENUMERATIONS)})\b"


def newest() -> dict[str, list[str]]:
    """The text of each trigger's highest version, for both databases."""
    versions: dict[str, dict[int, list[str]]] = {}
    for path in sorted(triggers.FOLDER.glob("*.sql")):
        name, version, _, _ = path.name.split(".")
        texts = versions.setdefault(name, {}).setdefault(int(version.removeprefix("v")), [])
        texts.append(path.read_text("utf-8"))
    return {name: texts[max(texts)] for name, texts in versions.items()}


def uses(sql: str) -> set[tuple[str, str]]:
    """Where a trigger has numbers of enumerations: ``("kind", "5, 7, 12")``.

    A number is compared with a column (``kind IN (5, 7, 12)``, ``CASE kind WHEN 5``), is a result
    of ``CASE … END AS kind``, or is inserted into a column.
    """
    found = re.findall(rf"{COLUMN} (?:=|<>|[<>]=?) (\d+)", sql)
    found += re.findall(rf"{COLUMN} (?:NOT )?IN \(([\d, ]+)\)", sql)
    found += [(column, number) for number, column in re.findall(rf"(\d+) IN \(\w+\.{COLUMN}", sql)]
    # From the inside out, each CASE is replaced by its results, so that a CASE with another one
    # inside becomes {{3 9} 4}.
    while case := re.search(r"\bCASE\b(?:(?!\bCASE\b|\bEND\b).)*\bEND\b", sql):
        for column in re.findall(rf"^CASE (?:\w+\.)?{COLUMN}", case[0]):
            found.append((column, " ".join(re.findall(r"WHEN (\d+)", case[0]))))
        results = re.findall(r"(?:THEN|ELSE) ([\d{][\d{} ]*)(?<! )", case[0])
        sql = sql.replace(case[0], f"{{{' '.join(results)}}}", 1)
    found += [(column, case) for case, column in re.findall(rf"({{[\d{{}} ]+}}) AS {COLUMN}", sql)]
    for columns, rest in re.findall(r"INSERT INTO \w+ \(([^)]*)\) SELECT ((?:(?!INSERT).)*)", sql):
        while call := re.search(r"\([^()]*\)", rest):
            rest = rest.replace(call[0], "")
        values = re.split(r" FROM | WHERE |;", rest)[0].split(",")
        inserted = zip(columns.split(","), values, strict=True)
        found += [(column.strip(), value.strip()) for column, value in inserted]
    return {
        (column, text)
        for column, text in found
        if column in ENUMERATIONS and re.match(r"[\d{]", text)
    }


@pytest.mark.parametrize("name", newest())
def test_number_in_a_trigger_is_explained_and_agrees_with_its_enumeration(name: str) -> None:
    known = {
        (kind.__name__, m.value, m.name.lower()) for kind in ENUMERATIONS.values() for m in kind
    }
    on_databases = []
    for text in newest()[name]:
        header, _, sql = text.partition("\n\n")
        sql = " ".join(re.sub(r"--.*|'[^']*'", "''", sql).split())
        explained = {
            (enumeration, int(number), member)
            for enumeration, members in re.findall(r"-- (\w+): (\d+ = .*(?:\n--   .*)*)", header)
            for number, member in re.findall(r"(\d+) = (\w+)", members)
        }
        assert explained <= known
        used = {
            (ENUMERATIONS[column].__name__, int(number))
            for column, numbers in uses(sql)
            for number in re.findall(r"\d+", numbers)
        }
        assert used == {(enumeration, number) for enumeration, number, _ in explained}
        # All other numbers but 0 and 1 are explained in the text of the header.
        others = set(re.findall(r"\b\d+\b", sql)) - {"0", "1"}
        assert others <= set(re.findall(r"\b\d+\b", header))
        on_databases.append(uses(sql))
    # Both databases use the same numbers in the same places.
    assert on_databases == [on_databases[0]] * len(DATABASES)
