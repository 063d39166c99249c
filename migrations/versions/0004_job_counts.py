"""Counts of jobs by status, type and priority, kept by triggers.

Revises: 0003
Created: 2026-11-24 22:30:02.519822
"""

import sqlalchemy as sa
from alembic import op

from jobapi.migrations import triggers

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KIND = "workspace_id, status, job_type, priority"


def _kind() -> list[sa.Column[int] | sa.Column[str]]:
    return [
        sa.Column("workspace_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("job_type", sa.String(length=100), nullable=False),
        sa.Column("priority", sa.SmallInteger(), autoincrement=False, nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "jobapi_job_counts",
        *_kind(),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "workspace_id", "status", "job_type", "priority", name=op.f("pk_jobapi_job_counts")
        ),
    )
    op.create_table(
        "jobapi_job_count_changes",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
        ),
        *_kind(),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_job_count_changes")),
    )
    op.create_index(
        op.f("ix_jobapi_job_count_changes_workspace_id"),
        "jobapi_job_count_changes",
        ["workspace_id"],
    )
    # From here on nobody else writes jobs until the counts are right.
    triggers.install("count_jobs", 1)
    if op.get_context().dialect.name == "postgresql":
        # Its rows come and go all the time.
        op.execute(
            "ALTER TABLE jobapi_job_count_changes SET (autovacuum_vacuum_scale_factor = 0,"
            " autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)"
        )
    op.execute(
        f"INSERT INTO jobapi_job_counts ({KIND}, n)"
        f" SELECT {KIND}, count(*) FROM jobapi_jobs GROUP BY {KIND}"
    )


def downgrade() -> None:
    on = " ON jobapi_jobs" if op.get_context().dialect.name == "postgresql" else ""
    for name in ("inserted", "deleted", "updated"):
        op.execute(f"DROP TRIGGER jobapi_count_{name}{on}")
    if on:
        op.execute("DROP TRIGGER jobapi_count_truncated ON jobapi_jobs")
        op.execute("DROP FUNCTION jobapi_count_jobs()")
    op.drop_table("jobapi_job_count_changes")
    op.drop_table("jobapi_job_counts")
