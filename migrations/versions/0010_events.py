"""Events: what happened to jobs, members and keys, when and by whom.

Revises: 0009
Created: 2026-11-25 01:31:17.552019
"""

import sqlalchemy as sa
from alembic import op

from jobapi.migrations import triggers

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobapi_events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
        ),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False, comment="the transaction; 0 on SQLite"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False, comment="lifecycle.EventKind"),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("job_type", sa.String(length=100), nullable=True),
        sa.Column("from_status", sa.SmallInteger(), nullable=True),
        sa.Column("to_status", sa.SmallInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column(
            "actor",
            sa.String(length=20),
            nullable=True,
            comment="user:1 or key:1; null: the service itself",
        ),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("data", sa.JSON(), nullable=True),
        # Without a key of its own Postgres has one index less to keep.
        *([] if _is_postgres() else [sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_events"))]),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_jobapi_events_order", "jobapi_events", ["workspace_id", "xid", "id"], unique=True
    )
    op.create_index("ix_jobapi_events_job", "jobapi_events", ["job_id", "id"])
    op.execute("ALTER TABLE jobapi_jobs ADD COLUMN changed_by VARCHAR(20)")
    op.execute(
        "ALTER TABLE jobapi_workspaces ADD COLUMN keep_events INTEGER DEFAULT 30"
        " CONSTRAINT ck_jobapi_workspaces_keep_events CHECK (keep_events >= 1)"
    )
    if _is_postgres():
        op.execute(
            "COMMENT ON COLUMN jobapi_jobs.changed_by IS"
            " 'user:1 or key:1; null: the service itself'"
        )
        op.execute("ALTER TABLE jobapi_events REPLICA IDENTITY USING INDEX ix_jobapi_events_order")
        op.execute("COMMENT ON COLUMN jobapi_workspaces.keep_events IS 'days; null: for ever'")
    triggers.install("note_jobs", 1)


def downgrade() -> None:
    on = " ON jobapi_jobs" if _is_postgres() else ""
    for name in ("inserted", "updated"):
        op.execute(f"DROP TRIGGER jobapi_note_{name}{on}")
    if on:
        op.execute("DROP FUNCTION jobapi_note_jobs()")
    op.execute("ALTER TABLE jobapi_workspaces DROP COLUMN keep_events")
    op.execute("ALTER TABLE jobapi_jobs DROP COLUMN changed_by")
    op.drop_table("jobapi_events")


def _is_postgres() -> bool:
    return bool(op.get_context().dialect.name == "postgresql")
