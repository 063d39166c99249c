"""Leases and attempts; idempotency keys; duties of the maintenance.

Revises: 0001
Created: 2026-11-24 15:11:26.335590
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = {"sqlite": "DATETIME", "postgresql": "TIMESTAMP WITH TIME ZONE"}

# Each constraint comes with the last of its columns, because SQLite can add one
# only so; they go in the opposite order.
COLUMNS = {
    "attempt": ("INTEGER DEFAULT 0 NOT NULL", {}),
    "worker": (
        "VARCHAR(200)",
        {"attempt": "attempt >= 0 AND (attempt > 0 OR status IN (0, 4))"},
    ),
    "lease_token": ("VARCHAR(32)", {}),
    "lease_seconds": ("INTEGER", {}),
    "lease_expires_at": (
        "TIME",
        {
            "lease": "(lease_token IS NULL) = (lease_expires_at IS NULL)"
            " AND (lease_token IS NULL) = (lease_seconds IS NULL)"
            " AND (lease_token IS NULL OR status = 1)"
        },
    ),
    "reap_at": (
        "TIME",
        {
            "reap_at": "lease_token IS NULL OR reap_at <= lease_expires_at",
            "reaped": "reap_at IS NULL OR status = 1",
        },
    ),
}
COMMENTS = {
    "attempt": "how many attempts were started",
    "worker": "who claimed it last",
    "reap_at": "when the lease or the attempt's time runs out, whichever is first",
}
INDEXES = {
    "ix_jobapi_jobs_claim": (["workspace_id", "priority", "due_at", "id"], "status = 0"),
    "ix_jobapi_jobs_reap": (["reap_at"], "reap_at IS NOT NULL"),
}


def upgrade() -> None:
    op.create_table(
        "jobapi_duties",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_jobapi_duties")),
    )
    op.create_table(
        "jobapi_idempotency_keys",
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("caller", sa.String(length=20), nullable=False, comment="user:1 or key:1"),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column(
            "fingerprint",
            sa.String(length=64),
            nullable=False,
            comment="SHA-256 of what was asked",
        ),
        sa.Column(
            "answer",
            sa.Text(),
            nullable=False,
            comment="a create's body, or a claim's lease token",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["jobapi_workspaces.id"],
            name=op.f("fk_jobapi_idempotency_keys_workspace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "workspace_id", "caller", "key", name=op.f("pk_jobapi_idempotency_keys")
        ),
    )
    op.create_index(
        op.f("ix_jobapi_idempotency_keys_created_at"), "jobapi_idempotency_keys", ["created_at"]
    )
    op.create_table(
        "jobapi_attempts",
        sa.Column("job", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "outcome",
            sa.SmallInteger(),
            nullable=False,
            comment="0 success 1 failed 2 cancelled 3 released 4 expired 5 timed_out",
        ),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column(
            "lease_token", sa.String(length=32), nullable=True, comment="null: without a lease"
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_jobapi_attempts_attempt")),
        sa.CheckConstraint("ended_at >= started_at", name=op.f("ck_jobapi_attempts_times")),
        sa.CheckConstraint("outcome BETWEEN 0 AND 5", name=op.f("ck_jobapi_attempts_outcome")),
        sa.ForeignKeyConstraint(
            ["job"], ["jobapi_jobs.id"], name=op.f("fk_jobapi_attempts_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job", "attempt", name=op.f("pk_jobapi_attempts")),
    )
    dialect = op.get_context().dialect.name
    for name, (kind, checks) in COLUMNS.items():
        column = f"{name} {TIME[dialect] if kind == 'TIME' else kind}"
        constraints = "".join(
            f" CONSTRAINT ck_jobapi_jobs_{check} CHECK ({rule})" for check, rule in checks.items()
        )
        op.execute(f"ALTER TABLE jobapi_jobs ADD COLUMN {column}{constraints}")
        if name == "attempt":
            # What has been started before attempts were counted, has been once.
            op.execute("UPDATE jobapi_jobs SET attempt = 1 WHERE status IN (1, 2, 3)")
    if dialect == "postgresql":
        for name, comment in COMMENTS.items():
            text = comment.replace("'", "''")
            op.execute(f"COMMENT ON COLUMN jobapi_jobs.{name} IS '{text}'")
    ends = {
        "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', started_at, timeout_seconds || ' seconds')",
        "postgresql": "started_at + timeout_seconds * interval '1 second'",
    }
    op.execute(
        f"UPDATE jobapi_jobs SET reap_at = {ends[dialect]} "
        "WHERE status = 1 AND timeout_seconds IS NOT NULL"
    )
    for name, (columns, where) in INDEXES.items():
        op.create_index(
            name,
            "jobapi_jobs",
            columns,
            sqlite_where=sa.text(where),
            postgresql_where=sa.text(where),
        )


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "jobapi_jobs")
    for name in reversed(COLUMNS):
        # A lease ends here: what runs goes on running, as before there were leases.
        op.execute(f"ALTER TABLE jobapi_jobs DROP COLUMN {name}")
    op.drop_table("jobapi_attempts")
    op.drop_table("jobapi_idempotency_keys")
    op.drop_table("jobapi_duties")
