"""Rendering: how schemas turn rows into responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from marshmallow import fields

from jobapi.rules.jobs import JobStatus, Outcome
from jobapi.schemas.fields import Choice
from jobapi.schemas.rendering import Response


class Part(Response):
    number = fields.Integer(required=True)
    status = Choice(JobStatus, required=True, allow_none=True)


class Whole(Response):
    whole_id = fields.Integer(attribute="id", required=True)
    twice = fields.Integer(required=True)
    outcome = Choice(Outcome, grows=True, required=True, allow_none=True)
    part = fields.Nested(Part, required=True, allow_none=True)
    parts = fields.List(fields.Nested(Part), required=True)
    by_name = fields.Dict(keys=fields.String(), values=fields.Nested(Part), required=True)
    more = fields.String()

    @staticmethod
    def get_twice(row: Any) -> int:
        return 2 * (row["id"] if isinstance(row, dict) else row.id)


@dataclass
class Row:
    id: int
    outcome: int | None
    part: Any
    parts: list[Any]
    by_name: dict[str, Any]
    more: str = "more"
    secret: str = "not in the schema"


PART = {"number": 1, "status": JobStatus.FAILED}
SHOWN = {"number": 1, "status": "failed"}


def test_render_row_shows_the_fields_of_the_schema_in_their_order() -> None:
    answer = Whole.render(Row(4, Outcome.SUCCESS, PART, [PART], {"a": PART}))
    assert answer == {
        "whole_id": 4,
        "twice": 8,
        "outcome": "success",
        "part": SHOWN,
        "parts": [SHOWN],
        "by_name": {"a": SHOWN},
        "more": "more",
    }
    assert list(answer) == list(Whole().fields)


def test_render_dictionary_leaves_out_what_is_not_required_and_not_there() -> None:
    row = {"id": 4, "outcome": None, "part": None, "parts": [], "by_name": {}}
    answer = Whole.render(row)
    assert answer.pop("whole_id") == 4
    assert answer == {"twice": 8, "outcome": None, "part": None, "parts": [], "by_name": {}}
    with pytest.raises(KeyError):
        Whole.render({"id": 4})


def test_render_member_of_a_newer_version_is_unknown_or_null() -> None:
    assert Whole.render(Row(1, 99, {"number": 1, "status": 99}, [], {})) == {
        "whole_id": 1,
        "twice": 2,
        "outcome": "unknown",
        "part": {"number": 1, "status": None},
        "parts": [],
        "by_name": {},
        "more": "more",
    }
