"""The tables. Constraints make the database refuse impossible states.

They are plain SQLAlchemy classes with their own metadata, so that they do not interfere
with a host application's models. The names of the tables begin with ``jobapi_``.
Enumerations are stored as the numbers of their members; statuses, priorities and roles
in an order by which lists can be sorted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .columns import UtcDateTime

TABLE_PREFIX = "jobapi_"
MAX_ID = 2**31 - 1
"""The largest id of a user, a workspace or a key."""

LEAVING, ARRIVING = 0, 1
"""The values of ``Workspace.move``."""

_Json = JSON(none_as_null=True)
_BigId = BigInteger().with_variant(Integer, "sqlite")
# Sorted by bytes, so that both databases and Python sort the same way.
_Key = String(200).with_variant(String(200, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Declarative base with the metadata of these tables only."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


class User(Base):
    """A user who can log in, or a user of the host application (``accounts.host_user``)."""

    __tablename__ = "jobapi_users"
    # Without it, SQLite would reuse the id of the last row after its deletion.
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    username: Mapped[str] = mapped_column(String(255), unique=True)
    password_hash: Mapped[str | None] = mapped_column(
        Text, comment="Argon2id; null: cannot log in with a password"
    )
    is_admin: Mapped[bool]
    disabled: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class LoginSession(Base):
    """A login session. Its tokens are valid as long as its row exists."""

    __tablename__ = "jobapi_sessions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_users.id", ondelete="CASCADE"), index=True
    )
    refresh_id: Mapped[str] = mapped_column(String(32), comment="the id of its refresh token")
    replaced: Mapped[dict[str, float] | None] = mapped_column(
        _Json,
        comment="refresh tokens that were replaced a moment ago: their ids, and when, in seconds"
        " since 1970",
    )
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, comment="when the password was given")
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class LoginFailures(Base):
    """Failed logins within a minute: by name, by address, and by both."""

    __tablename__ = "jobapi_login_failures"

    subject: Mapped[str] = mapped_column(String(64), primary_key=True, comment="a hash")
    count: Mapped[int]
    since: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Workspace(Base):
    """The unit of tenancy: jobs, members, keys and events belong to one workspace."""

    __tablename__ = "jobapi_workspaces"
    __table_args__ = (
        CheckConstraint("keep_success >= 1", "keep_success"),
        CheckConstraint("keep_failed >= 1", "keep_failed"),
        CheckConstraint("keep_cancelled >= 1", "keep_cancelled"),
        CheckConstraint("keep_events >= 1", "keep_events"),
        CheckConstraint("move BETWEEN 0 AND 1", "move"),
        CheckConstraint("priority_ageing_seconds BETWEEN 1 AND 604800", "ageing"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_by: Mapped[int] = mapped_column(ForeignKey("jobapi_users.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    keep_success: Mapped[int | None] = mapped_column(comment="days; null: for ever")
    keep_failed: Mapped[int | None] = mapped_column(comment="days; null: for ever")
    keep_cancelled: Mapped[int | None] = mapped_column(comment="days; null: for ever")
    keep_events: Mapped[int | None] = mapped_column(
        server_default=text("30"), comment="days; null: for ever"
    )
    paused: Mapped[bool] = mapped_column(server_default=false())
    paused_reason: Mapped[str | None] = mapped_column(Text)
    priority_ageing_seconds: Mapped[int | None]
    flow_version: Mapped[int] = mapped_column(
        BigInteger,
        server_default=text("0"),
        comment="a random number for each change of how claims choose jobs; 0: as by default",
    )
    deleted_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="since when nobody sees it; what is in it is being deleted"
    )
    move: Mapped[int | None] = mapped_column(
        SmallInteger, comment="0 leaving for another database: nothing changes; 1 arriving: hidden"
    )


class Membership(Base):
    """The role of a user in a workspace."""

    __tablename__ = "jobapi_memberships"
    __table_args__ = (CheckConstraint("role BETWEEN 0 AND 3", "role"),)

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    role: Mapped[int] = mapped_column(SmallInteger, comment="0 viewer 1 worker 2 member 3 owner")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApiKey(Base):
    """A credential of a program for one workspace, on behalf of a user."""

    __tablename__ = "jobapi_api_keys"
    __table_args__ = (
        # Not 3: a key cannot be an owner.
        CheckConstraint("role BETWEEN 0 AND 2", "role"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[int] = mapped_column(ForeignKey("jobapi_users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[int] = mapped_column(SmallInteger, comment="0 viewer 1 worker 2 member")
    job_types: Mapped[list[str] | None] = mapped_column(_Json, comment="null: all")
    key_hash: Mapped[str] = mapped_column(String(64), unique=True, comment="SHA-256, hex")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobType(Base):
    """The settings of a job type, its turns and its token bucket. See ``rules.flow``."""

    __tablename__ = "jobapi_job_types"
    __table_args__ = (
        CheckConstraint("length(job_type) BETWEEN 1 AND 100", "job_type"),
        CheckConstraint("max_running BETWEEN 1 AND 1000", "max_running"),
        CheckConstraint("max_running_per_key BETWEEN 1 AND 1000", "max_running_per_key"),
        CheckConstraint(
            "(rate_starts IS NULL) = (rate_seconds IS NULL)"
            " AND (rate_starts IS NULL) = (tokens IS NULL)"
            " AND (rate_starts IS NULL) = (tokens_at IS NULL)"
            " AND (rate_starts IS NULL OR rate_starts BETWEEN 1 AND 100000)"
            " AND (rate_seconds IS NULL OR rate_seconds BETWEEN 1 AND 86400)",
            "rate_limit",
        ),
        CheckConstraint("tokens >= 0 AND tokens <= rate_starts", "tokens"),
        CheckConstraint("max_pending BETWEEN 1 AND 10000000", "max_pending"),
        CheckConstraint("start_within_seconds BETWEEN 1 AND 31536000", "start_within_seconds"),
        CheckConstraint("priority BETWEEN 0 AND 3", "priority"),
        CheckConstraint("max_retries BETWEEN 0 AND 100", "max_retries"),
        CheckConstraint("timeout_seconds >= 1", "timeout_seconds"),
        CheckConstraint(
            "(retry_backoff_seconds IS NULL OR retry_backoff_seconds BETWEEN 1 AND 86400) AND"
            " (retry_backoff_max_seconds IS NULL OR retry_backoff_max_seconds BETWEEN 1 AND 86400)",
            "retry_backoff",
        ),
    )

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    job_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    paused: Mapped[bool] = mapped_column(server_default=false())
    paused_reason: Mapped[str | None] = mapped_column(Text)
    max_running: Mapped[int | None]
    max_running_per_key: Mapped[int | None]
    rate_starts: Mapped[int | None] = mapped_column(comment="so many starts in rate_seconds")
    rate_seconds: Mapped[int | None]
    max_pending: Mapped[int | None]
    start_within_seconds: Mapped[int | None]
    priority: Mapped[int | None] = mapped_column(SmallInteger)
    max_retries: Mapped[int | None]
    timeout_seconds: Mapped[int | None]
    retry_backoff_seconds: Mapped[int | None]
    retry_backoff_max_seconds: Mapped[int | None]
    keyed: Mapped[bool] = mapped_column(
        server_default=false(), comment="whether it has had jobs with a concurrency_key"
    )
    tokens: Mapped[float | None] = mapped_column(
        Double, comment="how many starts the bucket of rate_limit allowed at tokens_at"
    )
    tokens_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    turns: Mapped[dict[str, str] | None] = mapped_column(
        _Json, comment="by priority: the concurrency_key that was served last"
    )
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WorkerRecord(Base):
    """A worker that has claimed jobs within the last day, by its name and its actor."""

    __tablename__ = "jobapi_workers"
    __table_args__ = (
        # The deletion of workers that are gone, and of the oldest beyond the limit.
        Index("ix_jobapi_workers_seen", "workspace_id", "last_seen_at"),
    )

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(_Key, primary_key=True)
    actor: Mapped[str] = mapped_column(String(20), primary_key=True, comment="user:1 or key:1")
    job_types: Mapped[list[str] | None] = mapped_column(_Json, comment="null: all")
    first_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ScheduleRecord(Base):
    """A schedule: when it makes a job, and which. ``rules.ticks`` says what a tick is."""

    __tablename__ = "jobapi_schedules"
    __table_args__ = (
        Index("uq_jobapi_schedules_name", "workspace_id", "name", unique=True),
        CheckConstraint("(cron IS NULL) <> (every_seconds IS NULL)", "timing"),
        CheckConstraint("every_seconds >= 1", "every_seconds"),
        CheckConstraint("jitter_seconds >= 0", "jitter_seconds"),
        CheckConstraint("overlap BETWEEN 0 AND 2", "overlap"),
        CheckConstraint("catch_up BETWEEN 0 AND 2", "catch_up"),
        CheckConstraint("last_outcome BETWEEN 0 AND 4", "last_outcome"),
        CheckConstraint("(next_run_at IS NULL) = (due_at IS NULL)", "due_at"),
        CheckConstraint(
            "next_run_at IS NULL OR (NOT paused AND suspended_reason IS NULL)", "active"
        ),
        # The maintenance: ticks that are due.
        Index(
            "ix_jobapi_schedules_due",
            "due_at",
            postgresql_where=text("due_at IS NOT NULL"),
            sqlite_where=text("due_at IS NOT NULL"),
        ),
    )

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    schedule_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(_Key)
    cron: Mapped[str | None] = mapped_column(String(200))
    every_seconds: Mapped[int | None]
    timezone: Mapped[str] = mapped_column(String(64), comment="IANA name")
    job_type: Mapped[str] = mapped_column(String(100), comment="that of job")
    job: Mapped[dict[str, Any]] = mapped_column(_Json, comment="what a create takes")
    overlap: Mapped[int] = mapped_column(SmallInteger, comment="0 allow 1 skip 2 replace")
    catch_up: Mapped[int] = mapped_column(SmallInteger, comment="0 none 1 last 2 all")
    jitter_seconds: Mapped[int]
    starts_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused: Mapped[bool]
    paused_reason: Mapped[str | None] = mapped_column(Text)
    suspended_reason: Mapped[str | None] = mapped_column(Text)
    next_run_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="the next tick; null: paused, suspended or over"
    )
    due_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="when that tick makes its job: with the jitter"
    )
    last_scheduled_for: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_ran_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_outcome: Mapped[int | None] = mapped_column(
        SmallInteger, comment="0 created 1 existing 2 overlap 3 queue_full 4 missed"
    )
    last_job_id: Mapped[str | None] = mapped_column(String(40))
    runs_as: Mapped[str] = mapped_column(
        String(20), comment="user:1 or key:1, who has changed job last"
    )
    version: Mapped[int] = mapped_column(comment="counts the edits; the ETag")
    created_by: Mapped[int] = mapped_column(ForeignKey("jobapi_users.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class JobRecord(Base):
    """A job. ``rules/lifecycle.py`` has the transitions of its status."""

    __tablename__ = "jobapi_jobs"
    __table_args__ = (
        CheckConstraint("length(job_type) BETWEEN 1 AND 100", "job_type"),
        CheckConstraint("status BETWEEN 0 AND 4", "status"),
        CheckConstraint("priority BETWEEN 0 AND 3", "priority"),
        CheckConstraint("progress_percent BETWEEN 0 AND 100", "progress"),
        CheckConstraint("retry_count >= 0 AND retry_count <= max_retries", "retries"),
        CheckConstraint("estimated_duration >= 0", "estimated_duration"),
        CheckConstraint("timeout_seconds >= 1", "timeout_seconds"),
        CheckConstraint("due_at >= queued_at", "due_at"),
        CheckConstraint("(status = 0) = (started_at IS NULL)", "started"),
        # (In a database the next three may say the same in other words, such as `status > 1`.)
        CheckConstraint("(status IN (2, 3, 4)) = (completed_at IS NOT NULL)", "completed"),
        CheckConstraint(
            "actual_duration IS NULL OR (actual_duration >= 0 AND status IN (2, 3, 4))", "duration"
        ),
        CheckConstraint(
            "status <> 0 OR (progress_percent IS NULL AND progress_message IS NULL)",
            "pending_progress",
        ),
        CheckConstraint("attempt >= 0 AND (attempt > 0 OR status IN (0, 4))", "attempt"),
        # All columns of a lease are set or none, and only a running job has a lease.
        CheckConstraint(
            "(lease_token IS NULL) = (lease_expires_at IS NULL)"
            " AND (lease_token IS NULL) = (lease_seconds IS NULL)"
            " AND (lease_token IS NULL OR status = 1)",
            "lease",
        ),
        CheckConstraint("lease_token IS NULL OR reap_at <= lease_expires_at", "reap_at"),
        CheckConstraint("reap_at IS NULL OR status = 1", "reaped"),
        CheckConstraint("succeeded_by IS NULL OR status = 2", "succeeded_by"),
        CheckConstraint(
            "CASE WHEN lease_token IS NULL THEN run_id IS NULL AND NOT prefetched"
            " ELSE run_id IS NULL OR NOT prefetched END",
            "begun",
        ),
        CheckConstraint("NOT ripe OR concurrency_key IS NOT NULL", "ripe"),
        CheckConstraint("slot BETWEEN 1 AND 1000", "slot"),
        CheckConstraint("key_slot BETWEEN 1 AND 1000", "key_slot"),
        # Claims: the pending jobs of a workspace and priority, by due time.
        Index(
            "ix_jobapi_jobs_claim",
            "workspace_id",
            "priority",
            "due_at",
            "id",
            postgresql_where=text("status = 0"),
            sqlite_where=text("status = 0"),
        ),
        # Claims that are limited to certain job types: their pending jobs without a key.
        Index(
            "ix_jobapi_jobs_claim_type",
            *("workspace_id", "job_type", "priority", "due_at", "id"),
            postgresql_where=text("status = 0 AND concurrency_key IS NULL"),
            sqlite_where=text("status = 0 AND concurrency_key IS NULL"),
        ),
        # Claims of jobs whose keys take turns.
        Index(
            "ix_jobapi_jobs_claim_key",
            *("workspace_id", "job_type", "priority", "concurrency_key", "due_at", "id"),
            postgresql_where=text("status = 0 AND ripe"),
            sqlite_where=text("status = 0 AND ripe"),
        ),
        # Statistics of pending jobs with a key: how many are due, and since when.
        Index(
            "ix_jobapi_jobs_claim_keyed",
            *("workspace_id", "job_type", "priority", "due_at", "id"),
            postgresql_where=text("status = 0 AND concurrency_key IS NOT NULL"),
            sqlite_where=text("status = 0 AND concurrency_key IS NOT NULL"),
        ),
        # Jobs with a key that become due.
        Index(
            "ix_jobapi_jobs_unripe",
            *("workspace_id", "job_type", "due_at"),
            postgresql_where=text("status = 0 AND concurrency_key IS NOT NULL AND NOT ripe"),
            sqlite_where=text("status = 0 AND concurrency_key IS NOT NULL AND NOT ripe"),
        ),
        # No more jobs of a type run than it has slots.
        Index(
            "uq_jobapi_jobs_slot",
            *("workspace_id", "job_type", "slot"),
            unique=True,
            postgresql_where=text("status = 1 AND slot IS NOT NULL"),
            sqlite_where=text("status = 1 AND slot IS NOT NULL"),
        ),
        # No more jobs of a key run than it has slots. The index has all running jobs with a key,
        # to count them.
        Index(
            "uq_jobapi_jobs_key_slot",
            *("workspace_id", "job_type", "concurrency_key", "key_slot"),
            unique=True,
            postgresql_where=text("status = 1 AND concurrency_key IS NOT NULL"),
            sqlite_where=text("status = 1 AND concurrency_key IS NOT NULL"),
        ),
        # One live job for each unique_key.
        Index(
            "uq_jobapi_jobs_live",
            *("workspace_id", "job_type", "unique_key"),
            unique=True,
            postgresql_where=text("status <= 1 AND unique_key IS NOT NULL"),
            sqlite_where=text("status <= 1 AND unique_key IS NOT NULL"),
        ),
        # Jobs that expire if they are not started.
        Index(
            "ix_jobapi_jobs_expires",
            "expires_at",
            postgresql_where=text("status = 0 AND expires_at IS NOT NULL AND NOT has_begun"),
            sqlite_where=text("status = 0 AND expires_at IS NOT NULL AND NOT has_begun"),
        ),
        # The reaper: running jobs by when their lease or timeout expires.
        Index(
            "ix_jobapi_jobs_reap",
            "reap_at",
            postgresql_where=text("reap_at IS NOT NULL"),
            sqlite_where=text("reap_at IS NOT NULL"),
        ),
        # Lists in the default order.
        Index("ix_jobapi_jobs_created", "workspace_id", "created_at", "id"),
        # Lists that are filtered, or sorted by status or priority: a range for each bucket.
        Index(
            "ix_jobapi_jobs_kind",
            *("workspace_id", "status", "job_type", "priority", "created_at", "id"),
        ),
        # Lists sorted by the time of the last change.
        Index("ix_jobapi_jobs_updated", "workspace_id", "status", "updated_at", "id"),
        # One job for each tick of a schedule, and lists of its jobs.
        Index(
            "uq_jobapi_jobs_schedule",
            *("workspace_id", "schedule_id", "scheduled_for"),
            unique=True,
            postgresql_where=text("schedule_id IS NOT NULL"),
            sqlite_where=text("schedule_id IS NOT NULL"),
        ),
        # The live jobs of a schedule.
        Index(
            "ix_jobapi_jobs_schedule_live",
            *("workspace_id", "schedule_id", "id"),
            postgresql_where=text("status <= 1 AND schedule_id IS NOT NULL"),
            sqlite_where=text("status <= 1 AND schedule_id IS NOT NULL"),
        ),
        # Failures by their cause.
        Index(
            "ix_jobapi_jobs_error_group",
            *("workspace_id", "job_type", "error_group", "completed_at", "id"),
            postgresql_where=text("status = 3"),
            sqlite_where=text("status = 3"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(
        _BigId, Identity(), primary_key=True, comment="the order of creation; never shown"
    )
    job_id: Mapped[str] = mapped_column(String(40), unique=True)
    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE")
    )
    created_by: Mapped[int] = mapped_column(ForeignKey("jobapi_users.id"))
    job_type: Mapped[str] = mapped_column(String(100))
    status: Mapped[int] = mapped_column(
        SmallInteger, comment="0 pending 1 running 2 success 3 failed 4 cancelled"
    )
    priority: Mapped[int] = mapped_column(SmallInteger, comment="0 low 1 normal 2 high 3 urgent")
    version: Mapped[int] = mapped_column(comment="counts the changes; the ETag")
    # SQLAlchemy reserves the attribute name `metadata`.
    job_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", _Json)
    result: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    error: Mapped[str | None] = mapped_column(Text)
    error_group: Mapped[str | None] = mapped_column(
        String(16), comment="a hash of the cause in the error, without numbers, ids and the like"
    )
    progress_percent: Mapped[int | None] = mapped_column(SmallInteger)
    progress_message: Mapped[str | None] = mapped_column(Text)
    estimated_duration: Mapped[int | None] = mapped_column(comment="seconds")
    actual_duration: Mapped[int | None] = mapped_column(BigInteger, comment="seconds, since due")
    timeout_seconds: Mapped[int | None]
    retry_count: Mapped[int]
    max_retries: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    queued_at: Mapped[datetime] = mapped_column(
        UtcDateTime, comment="when it was created, or last put back"
    )
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    scheduled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempt: Mapped[int] = mapped_column(
        server_default=text("0"), comment="how many attempts were started"
    )
    worker: Mapped[str | None] = mapped_column(String(200), comment="who claimed it last")
    # A fencing token. It grants nothing without access to the workspace, so it is not
    # a secret that would have to be hashed.
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_seconds: Mapped[int | None]
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    reap_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="when the lease or the attempt's time runs out, whichever is first"
    )
    succeeded_by: Mapped[str | None] = mapped_column(
        String(32), comment="the token of the lease under which it succeeded"
    )
    changed_by: Mapped[str | None] = mapped_column(
        String(20), comment="user:1 or key:1; null: the service itself"
    )
    traceparent: Mapped[str | None] = mapped_column(
        String(55), comment="W3C trace context of whoever created it"
    )
    prefetched: Mapped[bool] = mapped_column(
        server_default=false(), comment="leased, and its attempt has not begun"
    )
    suspect: Mapped[bool] = mapped_column(
        server_default=false(),
        comment="its lease expired before its attempt began: the next lease is given alone",
    )
    run_id: Mapped[str | None] = mapped_column(
        String(64), comment="what began the attempt, as it named itself"
    )
    concurrency_key: Mapped[str | None] = mapped_column(_Key)
    unique_key: Mapped[str | None] = mapped_column(_Key)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    slot: Mapped[int | None] = mapped_column(
        comment="while it runs: its number among the running jobs of a type with max_running"
    )
    key_slot: Mapped[int | None] = mapped_column(
        comment="while it runs: its number among those of its key, with max_running_per_key"
    )
    ripe: Mapped[bool] = mapped_column(
        server_default=false(), comment="has a concurrency_key, and was due when last looked at"
    )
    has_begun: Mapped[bool] = mapped_column(
        server_default=false(), comment="an attempt has begun: it does not expire any more"
    )
    schedule_id: Mapped[str | None] = mapped_column(String(40))
    scheduled_for: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="the tick of the schedule; null: run by hand"
    )
    last_event: Mapped[int | None] = mapped_column(
        SmallInteger, comment="the kind of event that the last change is; null: none"
    )
    last_edited: Mapped[str | None] = mapped_column(
        Text, comment="the names of the fields that it edited, with spaces between"
    )
    last_event_version: Mapped[int | None] = mapped_column(
        comment="the version that last_event and last_edited describe"
    )


class AttemptRecord(Base):
    """An attempt that ended without success.

    The current attempt is in the job's own row, and so is a successful one: no attempt
    follows a success, and the most frequent end of a job needs no second row.
    """

    __tablename__ = "jobapi_attempts"
    __table_args__ = (
        CheckConstraint("attempt >= 1", "attempt"),
        CheckConstraint("outcome BETWEEN 0 AND 5", "outcome"),
        CheckConstraint("ended_at >= started_at", "times"),
    )

    job: Mapped[int] = mapped_column(
        _BigId, ForeignKey("jobapi_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    outcome: Mapped[int] = mapped_column(
        SmallInteger, comment="0 success 1 failed 2 cancelled 3 released 4 expired 5 timed_out"
    )
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_token: Mapped[str | None] = mapped_column(String(32), comment="null: without a lease")
    error: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)


class JobLogEntry(Base):
    """An entry of a job's log. See ``rules.job_logs``."""

    __tablename__ = "jobapi_job_logs"
    __table_args__ = (CheckConstraint("level BETWEEN 0 AND 3", "level"),)

    workspace_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    job: Mapped[int] = mapped_column(
        _BigId, primary_key=True, autoincrement=False, comment="jobapi_jobs.id"
    )
    number: Mapped[int] = mapped_column(_BigId, primary_key=True, autoincrement=False)
    seq: Mapped[int | None] = mapped_column(BigInteger, comment="the worker's own number")
    at: Mapped[datetime] = mapped_column(UtcDateTime, comment="by the worker's clock")
    level: Mapped[int] = mapped_column(SmallInteger, comment="0 debug 1 info 2 warning 3 error")
    size: Mapped[int] = mapped_column(SmallInteger, comment="bytes of the message")
    message: Mapped[str] = mapped_column(Text)


class JobLogHead(Base):
    """How far the log of a job is. A job that has logged nothing has no row.

    There is no foreign key to jobs, because the log of a deleted job may be large: a trigger
    marks it, and the maintenance deletes it in small steps.
    """

    __tablename__ = "jobapi_job_log_heads"
    __table_args__ = (
        CheckConstraint("first >= 1 AND last >= first - 1", "numbers"),
        CheckConstraint("last - first < 10000", "entries"),
        CheckConstraint("bytes BETWEEN 0 AND 4194304", "bytes"),
        # The maintenance: logs of deleted jobs.
        Index(
            "ix_jobapi_job_log_heads_deleted",
            *("workspace_id", "job"),
            postgresql_where=text("deleted"),
            sqlite_where=text("deleted"),
        ),
    )

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    attempt: Mapped[int]
    job: Mapped[int] = mapped_column(
        _BigId, primary_key=True, autoincrement=False, comment="jobapi_jobs.id"
    )
    first: Mapped[int] = mapped_column(
        BigInteger, comment="number of the oldest entry that is kept; they count from 1"
    )
    last: Mapped[int] = mapped_column(BigInteger, comment="number of the newest entry")
    seq: Mapped[int | None] = mapped_column(
        BigInteger, comment="the last one of attempt that is stored"
    )
    bytes: Mapped[int] = mapped_column(comment="of the messages that are kept")
    deleted: Mapped[bool] = mapped_column(server_default=false(), comment="its job is deleted")


class JobCount(Base):
    """The number of jobs in a bucket: of one workspace, status, job type and priority.

    The rows of ``JobCountChange`` have to be added. Triggers write both in the transaction
    that changes the jobs, so no code path can bypass them.
    """

    __tablename__ = "jobapi_job_counts"

    workspace_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    job_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(BigInteger)


class JobCountChange(Base):
    """How a statement has changed the count of a bucket.

    These rows are only appended, so that concurrent writers do not wait for each other.
    The maintenance compacts them into ``JobCount``. SQLite has one writer at a time, so
    its triggers update ``JobCount`` directly; there, only repairs use this table.
    """

    __tablename__ = "jobapi_job_count_changes"

    id: Mapped[int] = mapped_column(_BigId, Identity(), primary_key=True)
    workspace_id: Mapped[int] = mapped_column(index=True)
    status: Mapped[int] = mapped_column(SmallInteger)
    job_type: Mapped[str] = mapped_column(String(100))
    priority: Mapped[int] = mapped_column(SmallInteger)
    n: Mapped[int]
    at: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="null: a repair, and no change of a job"
    )
    seconds: Mapped[float] = mapped_column(Double, server_default=text("0"))


class JobFlow(Base):
    """Throughput: how many jobs entered a status in an interval, as far as it is compacted."""

    __tablename__ = "jobapi_job_flow"
    __table_args__ = (
        # The deletion of old rows.
        Index("ix_jobapi_job_flow_old", "span", "at"),
    )

    workspace_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    span: Mapped[int] = mapped_column(
        SmallInteger, primary_key=True, autoincrement=False, comment="seconds: 10, 60 or 600"
    )
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True, comment="its begin")
    status: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    job_type: Mapped[str] = mapped_column(String(100), primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger, comment="how many came into the status")
    net: Mapped[int] = mapped_column(BigInteger, comment="and without how many that left it")
    seconds: Mapped[float] = mapped_column(
        Double, comment="for how long those that started had waited, or those that ended had run"
    )


class OperationRecord(Base):
    """An action on all jobs that match a filter, executed in batches."""

    __tablename__ = "jobapi_operations"
    __table_args__ = (
        CheckConstraint("action BETWEEN 0 AND 2", "action"),
        CheckConstraint("status BETWEEN 0 AND 2", "status"),
        CheckConstraint("(status = 0) = (ended_at IS NULL)", "ended"),
        # Lists of operations.
        Index("ix_jobapi_operations_workspace_id", "workspace_id", "id"),
        # The maintenance: running operations, the one that has waited longest first.
        Index(
            "ix_jobapi_operations_running",
            "updated_at",
            postgresql_where=text("status = 0"),
            sqlite_where=text("status = 0"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE")
    )
    created_by: Mapped[int] = mapped_column(ForeignKey("jobapi_users.id"))
    actor: Mapped[str | None] = mapped_column(String(20), comment="user:1 or key:1")
    action: Mapped[int] = mapped_column(SmallInteger, comment="0 cancel 1 retry 2 delete")
    filter: Mapped[dict[str, Any]] = mapped_column(_Json)
    reason: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int] = mapped_column(SmallInteger, comment="0 running 1 finished 2 stopped")
    matched: Mapped[int] = mapped_column(BigInteger, comment="how many jobs matched at its start")
    matched_is_capped: Mapped[bool]
    changed: Mapped[int] = mapped_column(BigInteger)
    skipped: Mapped[int] = mapped_column(BigInteger)
    place: Mapped[list[Any] | None] = mapped_column(
        _Json, comment="how far it is, in the order of the creation of jobs"
    )
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EventRecord(Base):
    """An event. Triggers write the events about jobs.

    The events of a workspace are ordered by ``xid`` and ``id``. Once all transactions
    below an ``xid`` have ended, no event can appear below it later.
    """

    __tablename__ = "jobapi_events"
    __table_args__ = (
        # The events of a workspace in their order.
        Index("ix_jobapi_events_order", "workspace_id", "xid", "id", unique=True),
        # The events of a job, in the order of their ids: changes of one job are serialized.
        Index("ix_jobapi_events_job", "job_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BigId, Identity(), primary_key=True)
    workspace_id: Mapped[int]
    xid: Mapped[int] = mapped_column(BigInteger, comment="the transaction; 0 on SQLite")
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[int] = mapped_column(SmallInteger, comment="rules.events.EventKind")
    job_id: Mapped[str | None] = mapped_column(String(40))
    job_type: Mapped[str | None] = mapped_column(String(100))
    from_status: Mapped[int | None] = mapped_column(SmallInteger)
    to_status: Mapped[int | None] = mapped_column(SmallInteger)
    attempt: Mapped[int | None]
    actor: Mapped[str | None] = mapped_column(
        String(20), comment="user:1 or key:1; null: the service itself"
    )
    worker: Mapped[str | None] = mapped_column(String(200))
    data: Mapped[dict[str, Any] | None] = mapped_column(_Json)


class Webhook(Base):
    """A webhook: which events are delivered to which URL, and how far it is in the log of events.

    See ``rules.webhooks``.
    """

    __tablename__ = "jobapi_webhooks"
    __table_args__ = (
        CheckConstraint("disabled_reason BETWEEN 0 AND 1", "disabled_reason"),
        CheckConstraint("NOT enabled OR disabled_reason IS NULL", "enabled"),
        CheckConstraint("(failing_since IS NULL) = (failed_at IS NULL)", "failing"),
        CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_expires_at IS NULL)", "previous_secret"
        ),
    )

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str] | None] = mapped_column(
        _Json, comment="labels of kinds; null: the ends of jobs"
    )
    job_types: Mapped[list[str] | None] = mapped_column(_Json, comment="null: all")
    include: Mapped[list[str]] = mapped_column(_Json, comment="of metadata and result")
    description: Mapped[str | None] = mapped_column(Text)
    enabled: Mapped[bool]
    disabled_reason: Mapped[int | None] = mapped_column(
        SmallInteger, comment="0 gone 1 failing; null: it is enabled, or an owner has disabled it"
    )
    secret: Mapped[str] = mapped_column(Text, comment="encrypted")
    previous_secret: Mapped[str | None] = mapped_column(Text, comment="encrypted")
    previous_secret_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    position: Mapped[str] = mapped_column(
        Text, comment="the name of the position in the log of events up to which there are rows"
    )
    failing_since: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="the first failure after the last success"
    )
    failed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, comment="the last failure")
    created_by: Mapped[int] = mapped_column(ForeignKey("jobapi_users.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WebhookDelivery(Base):
    """The delivery of one message to one webhook, with all of its attempts."""

    __tablename__ = "jobapi_webhook_deliveries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "webhook_id"],
            ["jobapi_webhooks.workspace_id", "jobapi_webhooks.id"],
            name="fk_jobapi_webhook_deliveries_webhook",
            ondelete="CASCADE",
        ),
        CheckConstraint("status BETWEEN 0 AND 3", "status"),
        CheckConstraint("(status = 0) = (next_attempt_at IS NOT NULL)", "next_attempt_at"),
        CheckConstraint("attempts >= 0", "attempts"),
        # Lists, and the deletion of old ones.
        Index(
            "ix_jobapi_webhook_deliveries_created",
            *("workspace_id", "webhook_id", "created_at", "id"),
        ),
        # What is due.
        Index(
            "ix_jobapi_webhook_deliveries_due",
            *("workspace_id", "webhook_id", "next_attempt_at"),
            postgresql_where=text("status = 0"),
            sqlite_where=text("status = 0"),
        ),
    )

    workspace_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    webhook_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    id: Mapped[str] = mapped_column(String(40), primary_key=True, comment="the header webhook-id")
    type: Mapped[str] = mapped_column(String(60))
    event_id: Mapped[str | None] = mapped_column(String(40), comment="null: a test")
    job_id: Mapped[str | None] = mapped_column(String(40))
    body: Mapped[str] = mapped_column(Text)
    status: Mapped[int] = mapped_column(
        SmallInteger, comment="0 pending 1 success 2 failed 3 cancelled"
    )
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[datetime | None] = mapped_column(
        UtcDateTime, comment="while an attempt is under way: when another process may take over"
    )
    last_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    response_status: Mapped[int | None] = mapped_column(SmallInteger)
    response_body: Mapped[str | None] = mapped_column(Text, comment="its first KiB")
    error: Mapped[str | None] = mapped_column(
        Text, comment="why the last attempt got no complete response"
    )


class IdempotencyKey(Base):
    """The response to a request with an idempotency key, for repetitions of the request."""

    __tablename__ = "jobapi_idempotency_keys"

    workspace_id: Mapped[int] = mapped_column(
        ForeignKey("jobapi_workspaces.id", ondelete="CASCADE"), primary_key=True
    )
    caller: Mapped[str] = mapped_column(String(20), primary_key=True, comment="user:1 or key:1")
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), comment="SHA-256 of what was asked")
    answer: Mapped[str] = mapped_column(Text, comment="a create's body, or a claim's lease token")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class LeaderLock(Base):
    """A leader lock: ``holder`` is the leader until ``expires_at``."""

    __tablename__ = "jobapi_duties"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


users = Base.metadata.tables["jobapi_users"]
sessions = Base.metadata.tables["jobapi_sessions"]
login_failures = Base.metadata.tables["jobapi_login_failures"]
workspaces = Base.metadata.tables["jobapi_workspaces"]
memberships = Base.metadata.tables["jobapi_memberships"]
api_keys = Base.metadata.tables["jobapi_api_keys"]
job_types = Base.metadata.tables["jobapi_job_types"]
workers = Base.metadata.tables["jobapi_workers"]
schedules = Base.metadata.tables["jobapi_schedules"]
jobs = Base.metadata.tables["jobapi_jobs"]
attempts = Base.metadata.tables["jobapi_attempts"]
job_logs = Base.metadata.tables["jobapi_job_logs"]
job_log_heads = Base.metadata.tables["jobapi_job_log_heads"]
job_counts = Base.metadata.tables["jobapi_job_counts"]
job_count_changes = Base.metadata.tables["jobapi_job_count_changes"]
job_flow = Base.metadata.tables["jobapi_job_flow"]
events = Base.metadata.tables["jobapi_events"]
operations = Base.metadata.tables["jobapi_operations"]
webhooks = Base.metadata.tables["jobapi_webhooks"]
webhook_deliveries = Base.metadata.tables["jobapi_webhook_deliveries"]
idempotency_keys = Base.metadata.tables["jobapi_idempotency_keys"]
leader_locks = Base.metadata.tables["jobapi_duties"]

_unique = {str(index.name): index for index in jobs.indexes if index.unique}
SLOTS = (_unique["uq_jobapi_jobs_slot"], _unique["uq_jobapi_jobs_key_slot"])
"""The indexes that refuse a start without a free slot."""
LIVE = _unique["uq_jobapi_jobs_live"]
"""The index that refuses a second live job with the same ``unique_key``."""
SCHEDULE_NAMES = next(index for index in schedules.indexes if index.unique)
"""The index that refuses a second schedule of a workspace with the same name."""
TICKS = _unique["uq_jobapi_jobs_schedule"]
"""The index that refuses a second job for a tick of a schedule."""
