"""Filters of lists of jobs, and their conditions in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

import orjson
from sqlalchemy import (
    ColumnElement,
    Integer,
    String,
    and_,
    cast,
    collate,
    func,
    literal,
    literal_column,
    or_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ..rules.jobs import JobStatus, Priority
from ..store.tables import jobs


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters of a list. A job must match all that are given.

    Filters that end in ``_after`` include their moment; those that end in ``_before`` exclude it.
    ``error_group`` matches only failed jobs. ``error`` is a part of the error's text; case does not
    matter. ``metadata`` maps paths of keys, ``a.b``, to the text of a value.
    """

    status: Sequence[JobStatus] = ()
    job_type: Sequence[str] = ()
    priority: Sequence[Priority] = ()
    only_job_types: Sequence[str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    created_by: int | None = None
    job_id: Sequence[str] = ()
    error_group: Sequence[str] = ()
    error: str | None = None
    concurrency_key: Sequence[str] = ()
    unique_key: Sequence[str] = ()
    schedule_id: Sequence[str] = ()
    expires_after: datetime | None = None
    expires_before: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def bucket(self, c: Any) -> list[ColumnElement[bool]]:
        """The conditions on a job's bucket; ``c`` are columns that have it."""
        given = [(c.status, self.status), (c.job_type, self.job_type), (c.priority, self.priority)]
        conditions = [column.in_(wanted) for column, wanted in given if wanted]
        if self.only_job_types is not None:
            conditions.append(c.job_type.in_(self.only_job_types))
        return conditions

    def times(self, *names: str) -> dict[str, datetime]:
        """The given ones of the time filters with these names."""
        given = {name: getattr(self, name) for name in names}
        return {name: moment for name, moment in given.items() if moment is not None}

    def rest(self, dialect: str) -> list[ColumnElement[bool]]:
        """The conditions that are not on a job's bucket."""
        conditions = between(self.times(*CREATED, *UPDATED, *EXPIRES))
        if self.created_by is not None:
            conditions.append(jobs.c.created_by == self.created_by)
        if self.job_id:
            conditions.append(jobs.c.job_id.in_(self.job_id))
        if self.error_group:
            conditions += [HAS_FAILED, jobs.c.error_group.in_(self.error_group)]
        if self.error is not None:
            # Ignore the case of A to Z only, as SQLite does. All letters of the database's locale
            # would take twice as long.
            error = jobs.c.error if dialect == "sqlite" else collate(jobs.c.error, "C")
            conditions.append(error.icontains(self.error, autoescape=True))
        for column, keys in (
            (jobs.c.concurrency_key, self.concurrency_key),
            (jobs.c.unique_key, self.unique_key),
            (jobs.c.schedule_id, self.schedule_id),
        ):
            if keys:
                conditions.append(column.in_(keys))
        conditions += [_has_metadata(dialect, path, text) for path, text in self.metadata.items()]
        return conditions

    def to_json(self) -> dict[str, Any]:
        """The given filters as JSON, for ``from_json``."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: value for name, value in given.items() if value not in (None, (), {})}
        document: dict[str, Any] = orjson.loads(orjson.dumps(kept))
        return document

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """The filters from the JSON of ``to_json``."""
        moments = {name: datetime.fromisoformat(kept[name]) for name in _MOMENTS & kept.keys()}
        return cls(**{**kept, **moments})


HAS_FAILED: ColumnElement[bool] = jobs.c.status == literal_column(str(int(JobStatus.FAILED)))
"""With a literal, as in the index on error groups: otherwise SQLite does not use the index."""

CREATED = ("created_after", "created_before")
UPDATED = ("updated_after",)
EXPIRES = ("expires_after", "expires_before")
_MOMENTS = {*CREATED, *UPDATED, *EXPIRES}


def between(times: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """The conditions on when a job was created or changed, or expires."""
    bounds = {
        "created_after": jobs.c.created_at.__ge__,
        "created_before": jobs.c.created_at.__lt__,
        "updated_after": jobs.c.updated_at.__ge__,
        "expires_after": jobs.c.expires_at.__ge__,
        "expires_before": jobs.c.expires_at.__lt__,
    }
    return [bounds[name](moment) for name, moment in times.items() if moment is not None]


# The expressions of the index. The metadata is below the workspace's id, so that each entry belongs
# to one workspace. The id is also an entry of its own, because entries are hashes, for which
# collisions can be made.
_IN_WORKSPACE: Any = literal_column("(ARRAY[jobapi_jobs.workspace_id])", ARRAY(Integer))
_CONTENT: Any = literal_column(
    "(('{\"' || jobapi_jobs.workspace_id::text || '\":' || jobapi_jobs.metadata::text"
    " || '}')::jsonb)",
    JSONB,
)


def indexed_metadata(workspace_id: int, metadata: Mapping[str, str]) -> ColumnElement[bool]:
    """Whether a job of a workspace has this metadata, as a condition that uses the index."""
    conditions = [
        or_(
            *(
                _CONTENT.contains(_nest([str(workspace_id), *path.split(".")], value))
                for value in _values(text)
            )
        )
        for path, text in metadata.items()
    ]
    return and_(_IN_WORKSPACE.contains([workspace_id]), *conditions)


def _has_metadata(dialect: str, path: str, text: str) -> ColumnElement[bool]:
    """Whether the metadata has a value at a path: a string, a number, true, false or null."""
    keys, values = path.split("."), _values(text)
    if dialect == "sqlite":
        place = "$" + "".join(f'."{key}"' for key in keys)
        kind = func.json_type(jobs.c.metadata, place, type_=String)
        value = func.json_extract(jobs.c.metadata, place)
        return or_(*(_is(kind, value, each) for each in values))
    document = cast(jobs.c.metadata, JSONB)
    return and_(
        jobs.c.metadata.is_not(None),
        or_(*(document.contains(_nest(keys, each)) for each in values)),
    )


def _values(text: str) -> list[Any]:
    """The values that a text in a query may mean: itself, and a number, true, false or null."""
    values: list[Any] = [text]
    try:
        other = orjson.loads(text)
        # Stored integers have at most 64 bits.
        if (
            other is None
            or isinstance(other, float)
            or (isinstance(other, int) and -(2**63) <= other < 2**63)
        ):
            values.append(other)
    except orjson.JSONDecodeError:
        pass
    return values


def _is(kind: Any, value: Any, wanted: Any) -> ColumnElement[bool]:
    if wanted is None or isinstance(wanted, bool):
        found: ColumnElement[bool] = kind == ("null" if wanted is None else str(wanted).lower())
        return found
    kinds = ("text",) if isinstance(wanted, str) else ("integer", "real")
    return and_(kind.in_(kinds), value == literal(wanted))


def _nest(keys: Sequence[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value
