"""The trace that a job belongs to: its creator's trace context, for its worker.

Revises: 0010
Created: 2026-11-25 02:48:10.310457
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE jobapi_jobs ADD COLUMN traceparent VARCHAR(55)")
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "COMMENT ON COLUMN jobapi_jobs.traceparent IS 'W3C trace context of whoever created it'"
        )


def downgrade() -> None:
    op.execute("ALTER TABLE jobapi_jobs DROP COLUMN traceparent")
