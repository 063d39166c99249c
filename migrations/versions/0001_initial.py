"""The first tables: users, log-ins, workspaces, members, keys, jobs.

Revises: nothing
Created: 2026-11-24 05:32:56.221114
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobapi_login_failures",
        sa.Column("subject", sa.String(length=64), nullable=False, comment="a hash"),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_jobapi_login_failures")),
    )
    with op.batch_alter_table("jobapi_login_failures", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobapi_login_failures_since"), ["since"], unique=False)

    op.create_table(
        "jobapi_users",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column(
            "password_hash",
            sa.Text(),
            nullable=True,
            comment="Argon2id; null: cannot log in with a password",
        ),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_users")),
        sa.UniqueConstraint("username", name=op.f("uq_jobapi_users_username")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobapi_sessions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column(
            "refresh_id",
            sa.String(length=32),
            nullable=False,
            comment="the id of the one refresh token that still works",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["jobapi_users.id"],
            name=op.f("fk_jobapi_sessions_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_sessions")),
    )
    with op.batch_alter_table("jobapi_sessions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_jobapi_sessions_expires_at"), ["expires_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_jobapi_sessions_user_id"), ["user_id"], unique=False)

    op.create_table(
        "jobapi_workspaces",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_by", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["created_by"], ["jobapi_users.id"], name=op.f("fk_jobapi_workspaces_created_by")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_workspaces")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobapi_api_keys",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False, comment="0 viewer 1 worker 2 member"),
        sa.Column("job_types", sa.JSON(none_as_null=True), nullable=True, comment="null: all"),
        sa.Column("key_hash", sa.String(length=64), nullable=False, comment="SHA-256, hex"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role BETWEEN 0 AND 2", name=op.f("ck_jobapi_api_keys_role")),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["jobapi_users.id"],
            name=op.f("fk_jobapi_api_keys_user_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["jobapi_workspaces.id"],
            name=op.f("fk_jobapi_api_keys_workspace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_jobapi_api_keys_key_hash")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("jobapi_api_keys", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_jobapi_api_keys_workspace_id"), ["workspace_id"], unique=False
        )

    op.create_table(
        "jobapi_jobs",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(always=False),
            nullable=False,
            comment="the order of creation; never shown",
        ),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Integer(), nullable=False),
        sa.Column("job_type", sa.String(length=100), nullable=False),
        sa.Column(
            "status",
            sa.SmallInteger(),
            nullable=False,
            comment="0 pending 1 running 2 success 3 failed 4 cancelled",
        ),
        sa.Column(
            "priority", sa.SmallInteger(), nullable=False, comment="0 low 1 normal 2 high 3 urgent"
        ),
        sa.Column("version", sa.Integer(), nullable=False, comment="counts the changes; the ETag"),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("progress_percent", sa.SmallInteger(), nullable=True),
        sa.Column("progress_message", sa.Text(), nullable=True),
        sa.Column("estimated_duration", sa.Integer(), nullable=True, comment="seconds"),
        sa.Column("actual_duration", sa.BigInteger(), nullable=True, comment="seconds, since due"),
        sa.Column("timeout_seconds", sa.Integer(), nullable=True),
        sa.Column("retry_count", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "queued_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when it was created, or last put back",
        ),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("scheduled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status <= 1) = (completed_at IS NULL)", name=op.f("ck_jobapi_jobs_completed")
        ),
        sa.CheckConstraint(
            "(status = 0) = (started_at IS NULL)", name=op.f("ck_jobapi_jobs_started")
        ),
        sa.CheckConstraint(
            "actual_duration IS NULL OR (actual_duration >= 0 AND status > 1)",
            name=op.f("ck_jobapi_jobs_duration"),
        ),
        sa.CheckConstraint("due_at >= queued_at", name=op.f("ck_jobapi_jobs_due_at")),
        sa.CheckConstraint(
            "estimated_duration >= 0", name=op.f("ck_jobapi_jobs_estimated_duration")
        ),
        sa.CheckConstraint(
            "length(job_type) BETWEEN 1 AND 100", name=op.f("ck_jobapi_jobs_job_type")
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 3", name=op.f("ck_jobapi_jobs_priority")),
        sa.CheckConstraint(
            "progress_percent BETWEEN 0 AND 100", name=op.f("ck_jobapi_jobs_progress")
        ),
        sa.CheckConstraint(
            "retry_count >= 0 AND retry_count <= max_retries", name=op.f("ck_jobapi_jobs_retries")
        ),
        sa.CheckConstraint(
            "status > 0 OR (progress_percent IS NULL AND progress_message IS NULL)",
            name=op.f("ck_jobapi_jobs_pending_progress"),
        ),
        sa.CheckConstraint("status BETWEEN 0 AND 4", name=op.f("ck_jobapi_jobs_status")),
        sa.CheckConstraint("timeout_seconds >= 1", name=op.f("ck_jobapi_jobs_timeout_seconds")),
        sa.ForeignKeyConstraint(
            ["created_by"], ["jobapi_users.id"], name=op.f("fk_jobapi_jobs_created_by")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["jobapi_workspaces.id"],
            name=op.f("fk_jobapi_jobs_workspace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_jobs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_jobapi_jobs_job_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("jobapi_jobs", schema=None) as batch_op:
        batch_op.create_index(
            "ix_jobapi_jobs_created", ["workspace_id", "created_at", "id"], unique=False
        )

    op.create_table(
        "jobapi_memberships",
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column(
            "role", sa.SmallInteger(), nullable=False, comment="0 viewer 1 worker 2 member 3 owner"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role BETWEEN 0 AND 3", name=op.f("ck_jobapi_memberships_role")),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["jobapi_users.id"],
            name=op.f("fk_jobapi_memberships_user_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["jobapi_workspaces.id"],
            name=op.f("fk_jobapi_memberships_workspace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("workspace_id", "user_id", name=op.f("pk_jobapi_memberships")),
    )
    with op.batch_alter_table("jobapi_memberships", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_jobapi_memberships_user_id"), ["user_id"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("jobapi_memberships", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobapi_memberships_user_id"))

    op.drop_table("jobapi_memberships")
    with op.batch_alter_table("jobapi_jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobapi_jobs_created")

    op.drop_table("jobapi_jobs")
    with op.batch_alter_table("jobapi_api_keys", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobapi_api_keys_workspace_id"))

    op.drop_table("jobapi_api_keys")
    op.drop_table("jobapi_workspaces")
    with op.batch_alter_table("jobapi_sessions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobapi_sessions_user_id"))
        batch_op.drop_index(batch_op.f("ix_jobapi_sessions_expires_at"))

    op.drop_table("jobapi_sessions")
    op.drop_table("jobapi_users")
    with op.batch_alter_table("jobapi_login_failures", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobapi_login_failures_since"))

    op.drop_table("jobapi_login_failures")
