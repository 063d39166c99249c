"""Events and rates say what happened, no more and no less; operations know their caller.

An edit that comes together with a change of the status is noted with it, one
that changes nothing is not; reasons are texts of 1,000 characters at most, on
both databases. A changed priority puts no job into the queue again. A job that
was started before it was due has waited for nothing.

Revises: 0011
Created: 2026-11-25 12:04:41.207713
"""

from alembic import op

from jobapi.migrations import triggers

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE jobapi_operations ADD COLUMN actor VARCHAR(20)")
    op.execute("UPDATE jobapi_operations SET actor = 'user:' || created_by")
    if op.get_context().dialect.name == "postgresql":
        op.execute("COMMENT ON COLUMN jobapi_operations.actor IS 'user:1 or key:1'")
    triggers.install("note_jobs", 2)
    triggers.install("count_jobs", 3)


def downgrade() -> None:
    triggers.install("note_jobs", 1)
    triggers.install("count_jobs", 2)
    op.execute("ALTER TABLE jobapi_operations DROP COLUMN actor")
