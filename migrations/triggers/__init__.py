"""The triggers, in every version that a migration installs.

``NAME.vN.DATABASE.sql`` is the whole text of version N: the function, if the database needs
one, and its triggers. A file stays as it is once a release has it. To change a trigger, write the
next version for both databases; the migration installs it, and its downgrade installs the
version before.
"""

import sqlite3
from pathlib import Path

from alembic import op

FOLDER = Path(__file__).parent


def install(name: str, version: int) -> None:
    """Create a trigger in this version, or replace another version of it by this one."""
    dialect = op.get_context().dialect.name
    text = (FOLDER / f"{name}.v{version}.{dialect}.sql").read_text("utf-8")
    for statement in _statements(text) if dialect == "sqlite" else [text]:
        op.execute(statement)


def _statements(text: str) -> list[str]:
    """Split a script, because SQLite's driver executes one statement at a time."""
    statements = [""]
    for line in text.splitlines(keepends=True):
        if sqlite3.complete_statement(statements[-1]):
            statements.append("")
        statements[-1] += line
    return statements
