"""Loading: the compiled function and marshmallow agree, and bounds are checked first."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import RAISE, ValidationError

import jobapi.schemas
from jobapi.schemas import base
from jobapi.schemas.jobs import JobBatch, JobCreate, JobUpdate
from jobapi.schemas.loading import Base
from jobapi.schemas.operations import OperationCreate
from jobapi.schemas.worker import Claim, Report, Reports
from jobapi.store import tables

TIME = "2024-01-15T10:00:00Z"
LEASE = {"job_id": "job_1", "lease_token": "t"}
VALID: list[tuple[type[Base], dict[str, Any]]] = [
    (JobCreate, {"job_type": "a", "workspace_id": 1, "scheduled_at": TIME, "max_retries": 5.0}),
    (JobBatch, {"jobs": [{"job_type": "a", "metadata": {"n": [1]}}, {"job_type": "b"}]}),
    (JobUpdate, {"status": "completed", "result": {"progress_percent": 7, "rows": 1}}),
    (Claim, {"job_types": ["a"], "limit": 100, "begin": False}),
    (Report, {**LEASE, "status": "failed", "error": "no", "retryable": False}),
    (Reports, {"reports": [LEASE, {"anything": "else"}, 1]}),
    (OperationCreate, {"action": "retry", "filter": {"status": ["failed"], "created_after": TIME}}),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 5, 5.0, 5.5, -1, 10**12, "", "a", "not valid", "a\x00", TIME),
    *("pending", "completed", "high", "owner", "cancel", "asc", "2024-01-15", "abcdefgh"),
    *([], ["a"], ["pending", "failed"], [None], ["a", 1], [{}], [{"job_type": "a"}], [LEASE]),
    *({}, {"a": 1}, {"progress_percent": 5}, {"status": ["failed"]}, {"progress_percent": "5"}),
]


def request_schemas(schema: type[Base] = Base) -> Iterator[type[Base]]:
    for each in schema.__subclasses__():
        if each().unknown == RAISE:
            yield each
        yield from request_schemas(each)


for module in iter_modules(jobapi.schemas.__path__):
    import_module(f"jobapi.schemas.{module.name}")


def loaded(schema: Base, data: Any, **kw: Any) -> Any:
    """The loaded data, or the error messages."""
    try:
        return schema.load(data, **kw)
    except ValidationError as error:
        return error


def check_agreement(schema: Base, data: Any) -> None:
    # With an argument, marshmallow alone loads the outermost object.
    expected, found = loaded(schema, data, unknown=RAISE), loaded(schema, data)
    if isinstance(expected, ValidationError):
        assert found.messages == expected.messages
    else:
        assert found == expected


@pytest.mark.parametrize(("schema", "data"), VALID)
def test_load_valid_object_agrees_with_marshmallow(schema: type[Base], data: Any) -> None:
    check_agreement(schema(), data)
    schema()._load_valid(data)


@pytest.mark.parametrize("schema", sorted(set(request_schemas()), key=str))
@settings(max_examples=100, derandomize=True)
@given(data=st.data())
def test_load_any_object_agrees_with_marshmallow(schema: type[Base], data: st.DataObject) -> None:
    fields = schema().fields
    value = st.sampled_from(VALUES)
    needed = {name: value for name, field in fields.items() if field.required}
    others = {name: value for name in [*fields, "unknown"] if name not in needed}
    given = data.draw(st.fixed_dictionaries(needed, optional=others) | value)
    check_agreement(schema(), given)


class Unread(list[Any]):
    """A list whose items are not to be looked at."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("an item was looked at")

    __contains__ = __getitem__ = __iter__


@pytest.mark.parametrize(
    ("schema", "data", "path"),
    [
        (JobBatch, {"jobs": Unread([{}] * 1001)}, ["jobs"]),
        (Claim, {"job_types": Unread(["a"] * 1001)}, ["job_types"]),
        (Reports, {"reports": Unread([LEASE] * 101)}, ["reports"]),
        (
            OperationCreate,
            {"action": "cancel", "filter": {"status": Unread(["failed"] * 6)}},
            ["filter", "status"],
        ),
    ],
)
def test_load_list_that_is_too_long_is_refused_before_its_items(
    schema: type[Base], data: Any, path: list[str]
) -> None:
    messages: Any = loaded(schema(), data).messages
    for name in path:
        messages = messages[name]
    assert messages[0].startswith("Length must be between 1 and")


def test_largest_id_of_schemas_is_that_of_the_database() -> None:
    assert base.MAX_ID == tables.MAX_ID
