"""The attempt that succeeded is in the job's own row.

Revises: 0002
Created: 2026-11-24 21:45:10.112093
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COMMENT = "the token of the lease under which it succeeded"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE jobapi_jobs ADD COLUMN succeeded_by VARCHAR(32)"
        " CONSTRAINT ck_jobapi_jobs_succeeded_by CHECK (succeeded_by IS NULL OR status = 2)"
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"COMMENT ON COLUMN jobapi_jobs.succeeded_by IS '{COMMENT}'")


def downgrade() -> None:
    # There, each attempt that has ended is a row.
    op.execute(
        "INSERT INTO jobapi_attempts"
        " (job, attempt, outcome, worker, lease_token, started_at, ended_at)"
        " SELECT id, attempt, 0, worker, succeeded_by, started_at, completed_at"
        " FROM jobapi_jobs j WHERE status = 2 AND NOT EXISTS"
        " (SELECT 1 FROM jobapi_attempts a WHERE a.job = j.id AND a.attempt = j.attempt)"
    )
    op.execute("ALTER TABLE jobapi_jobs DROP COLUMN succeeded_by")
