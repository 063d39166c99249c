"""The types of a job's fields: each says the same as the others, and as the table."""

from __future__ import annotations

from datetime import datetime
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from jobapi.rules.events import Event
from jobapi.rules.jobs import (
    FIELDS,
    Attempt,
    Job,
    JobColumns,
    NewJob,
    PendingFields,
    SetBy,
    SettledColumns,
    WorkFields,
    fields_set_by,
)
from jobapi.store.tables import attempts, events, jobs


def python_type(hint: Any) -> tuple[type, bool]:
    """The class of a hint as a column has it, and whether it may be None."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    (kind,) = (part for part in parts if part is not NoneType)
    kind = get_origin(kind) or kind
    plain = next(base for base in (bool, int, str, datetime, dict) if issubclass(kind, base))
    return plain, NoneType in parts


def column_type(column: Any) -> tuple[type, bool]:
    kinds = {"JSON": dict, "UtcDateTime": datetime}
    kind = kinds.get(type(column.type).__name__) or column.type.python_type
    return kind, bool(column.nullable)


@pytest.mark.parametrize(("noun", "table"), [(Job, jobs), (Attempt, attempts), (Event, events)])
def test_fields_of_a_noun_are_the_columns_of_its_table(noun: Any, table: Any) -> None:
    hints = {name: python_type(hint) for name, hint in get_type_hints(noun).items()}
    columns = {column.name: column_type(column) for column in table.c}
    if noun is Attempt:
        # The current one, which is in the job's row, has neither.
        columns |= {name: (kind, True) for name, (kind, _) in columns.items() if name in NOT_YET}
    assert hints == columns


NOT_YET = ("outcome", "ended_at")


@pytest.mark.parametrize(
    ("given", "who"),
    [
        (NewJob, SetBy.CREATE),
        (PendingFields, SetBy.EDIT),
        (WorkFields, SetBy.WORK),
    ],
)
def test_fields_that_a_caller_gives_are_those_that_the_job_says(given: Any, who: SetBy) -> None:
    hints = get_type_hints(given)
    assert hints.keys() == set(fields_set_by(who))
    of_job = get_type_hints(Job)
    for name, hint in hints.items():
        assert python_type(hint)[0] == python_type(of_job[name])[0]


def test_columns_that_a_rule_changes_have_the_types_of_the_job() -> None:
    of_job = get_type_hints(Job)
    for name, hint in get_type_hints(JobColumns).items():
        assert python_type(hint) == python_type(of_job[name])
    edited = set(fields_set_by(SetBy.EDIT))
    assert set(get_type_hints(JobColumns)) - set(get_type_hints(SettledColumns)) == (
        edited - {"max_retries", "expires_at"} | {"attempt", "worker"}
    )


def test_default_of_a_new_job_is_none_only_where_the_column_takes_null() -> None:
    required = {name for name, field in FIELDS.items() if field.default is None} - {
        column.name for column in jobs.c if column.nullable
    }
    assert required == {
        *("id", "job_id", "workspace_id", "created_by", "job_type"),
        *("created_at", "updated_at", "queued_at", "due_at"),
    }
