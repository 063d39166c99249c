"""Workspaces, their members and keys."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields

from ..rules.roles import MAX_KEY_JOB_TYPES, MAX_NAME_LENGTH, NAME_PATTERN, NAME_RULE, Role
from .base import MAX_ID, Pagination, PagingQuery, between, job_type_text, length
from .fields import Choice, Pattern, Text, Time, Whole, doc
from .loading import Base
from .rendering import Response


def _name(**kw: Any) -> Text:
    form = Pattern(f"^{NAME_PATTERN}$", error=NAME_RULE)
    return Text(validate=[length(1, MAX_NAME_LENGTH), form], **kw)


class WorkspaceName(Base):
    """A workspace's name."""

    name = _name(required=True)


def _days() -> Whole:
    return Whole(allow_none=True, validate=between(1, 36_500))


class RetentionUpdate(Base):
    """Days to keep ended jobs, by status, and events; `null` means forever."""

    success = _days()
    failed = _days()
    cancelled = _days()
    events = _days()


def _kept(column: str) -> fields.Integer:
    return fields.Integer(attribute=column, required=True, allow_none=True)


class Retention(Response):
    """Days for which ended jobs, by status, and events are kept; `null` means forever."""

    success = _kept("keep_success")
    failed = _kept("keep_failed")
    cancelled = _kept("keep_cancelled")
    events = _kept("keep_events")


class WorkspaceUpdate(Base):
    """Changes to a workspace."""

    name = _name()
    retention = fields.Nested(RetentionUpdate)
    priority_ageing_seconds = Whole(
        allow_none=True,
        validate=between(1, 604_800),
        metadata=doc(
            "This many seconds of waiting are worth one level of priority. `null`: a job of a "
            "higher priority always comes first."
        ),
    )


class Workspace(Response):
    """A workspace, and the caller's role in it."""

    workspace_id = fields.Integer(attribute="id", required=True)
    name = fields.String(required=True)
    role = Choice(Role, required=True, metadata=doc("The caller's role."))
    created_by = fields.Integer(required=True)
    created_at = Time(required=True)
    updated_at = Time(required=True)
    retention = fields.Nested(Retention, required=True)
    paused = fields.Boolean(required=True, metadata=doc("If `true`, claims return no jobs."))
    paused_reason = fields.String(required=True, allow_none=True)
    priority_ageing_seconds = fields.Integer(required=True, allow_none=True)

    @staticmethod
    def get_retention(workspace: Any) -> Any:
        """The retention is part of the workspace's row."""
        return workspace


class WorkspaceListQuery(PagingQuery):
    """The page of the list of workspaces."""

    counts = fields.Boolean(
        load_default=False, metadata=doc("Add the number of pending, running and failed jobs.")
    )


class WorkspaceCounts(Response):
    """Number of pending, running and failed jobs."""

    pending = fields.Integer(required=True)
    running = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class ListedWorkspace(Workspace):
    """A workspace in a list, with ``counts`` if they were asked for."""

    counts = fields.Nested(WorkspaceCounts, metadata=doc("Only with `counts=true`."))


class WorkspaceList(Response):
    """A page of workspaces."""

    data = fields.List(fields.Nested(ListedWorkspace), required=True)
    pagination = fields.Nested(Pagination, required=True)


class MemberAdd(Base):
    """A user, by `username` or by `user_id` (exactly one of them), and a role."""

    username = Text(
        validate=length(1, 255), metadata=doc("The exact name. Send either this or `user_id`.")
    )
    user_id = Whole(
        validate=between(1, MAX_ID), metadata=doc("For administrators only, instead of `username`.")
    )
    role = Choice(Role, required=True)

    def complete(self, data: dict[str, Any]) -> dict[str, Any]:
        """Require exactly one of ``username`` and ``user_id``."""
        if ("user_id" in data) == ("username" in data):
            raise ValidationError("Send exactly one of username and user_id.", "username")
        return data


class MemberUpdate(Base):
    """A member's new role."""

    role = Choice(Role, required=True)


class Member(Response):
    """A member of a workspace."""

    user_id = fields.Integer(required=True)
    username = fields.String(required=True)
    role = Choice(Role, required=True)
    created_at = Time(required=True)


class MemberList(Response):
    """A page of members."""

    data = fields.List(fields.Nested(Member), required=True)
    pagination = fields.Nested(Pagination, required=True)


class KeyCreate(Base):
    """A new API key."""

    name = _name(required=True)
    role = Choice(
        [role for role in Role if role is not Role.OWNER], component="KeyRole", required=True
    )
    job_types = fields.List(
        job_type_text(),
        allow_none=True,
        validate=length(1, MAX_KEY_JOB_TYPES),
        metadata=doc("The only job types that the key may access."),
    )
    expires_at = Time(allow_none=True)


class Key(Response):
    """An API key, without the key itself."""

    key_id = fields.Integer(attribute="id", required=True)
    name = fields.String(required=True)
    role = Choice(Role, required=True)
    job_types = fields.List(fields.String(), required=True, allow_none=True)
    workspace_id = fields.Integer(required=True)
    created_by = fields.Integer(
        attribute="user_id", required=True, metadata=doc("The user for whom the key acts.")
    )
    created_at = Time(required=True)
    expires_at = Time(required=True, allow_none=True)
    last_used_at = Time(required=True, allow_none=True, metadata=doc("Accurate to the minute."))
    revoked_at = Time(required=True, allow_none=True)


class NewKey(Key):
    """An API key, and the key itself, which is never shown again."""

    key = fields.String(required=True)


class KeyList(Response):
    """A page of API keys."""

    data = fields.List(fields.Nested(Key), required=True)
    pagination = fields.Nested(Pagination, required=True)
