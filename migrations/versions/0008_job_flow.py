"""How many jobs came into each status, and when.

Revises: 0007
Created: 2026-11-25 00:55:12.330941
"""

import sqlalchemy as sa
from alembic import op

from jobapi.migrations import triggers

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobapi_job_flow",
        sa.Column("workspace_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "span",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="seconds: 10, 60 or 600",
        ),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="its begin"),
        sa.Column("status", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("job_type", sa.String(length=100), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="how many came into the status"),
        sa.Column(
            "net", sa.BigInteger(), nullable=False, comment="and without how many that left it"
        ),
        sa.Column(
            "seconds",
            sa.Double(),
            nullable=False,
            comment="for how long those that started had waited, or those that ended had run",
        ),
        sa.PrimaryKeyConstraint(
            *("workspace_id", "span", "at", "status", "job_type"), name=op.f("pk_jobapi_job_flow")
        ),
    )
    op.create_index("ix_jobapi_job_flow_old", "jobapi_job_flow", ["span", "at"])
    kind = "TIMESTAMP WITH TIME ZONE" if _is_postgres() else "DATETIME"
    number = "DOUBLE PRECISION" if _is_postgres() else "DOUBLE"
    op.execute(f"ALTER TABLE jobapi_job_count_changes ADD COLUMN at {kind}")
    op.execute(
        f"ALTER TABLE jobapi_job_count_changes ADD COLUMN seconds {number} DEFAULT 0 NOT NULL"
    )
    if _is_postgres():
        op.execute(
            "COMMENT ON COLUMN jobapi_job_count_changes.at IS"
            " 'null: a repair, and no change of a job'"
        )
    triggers.install("count_jobs", 2)


def downgrade() -> None:
    triggers.install("count_jobs", 1)
    op.execute("ALTER TABLE jobapi_job_count_changes DROP COLUMN seconds")
    op.execute("ALTER TABLE jobapi_job_count_changes DROP COLUMN at")
    op.drop_table("jobapi_job_flow")


def _is_postgres() -> bool:
    return bool(op.get_context().dialect.name == "postgresql")
