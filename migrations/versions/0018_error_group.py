"""Group failed jobs by the cause of their errors.

The column is filled for jobs that have failed before, a thousand at a time; not by the SQL of
`--sql`, which cannot compute it. The table is read twice: for these jobs, and for the index.

Revises: 0017
Created: 2026-11-26 21:40:00.000000
"""

from alembic import op
from sqlalchemy import text

from jobapi.rules.causes import group

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

COMMENT = "a hash of the cause in the error, without numbers, ids and the like"
AT_ONCE = 1000

FAILED = text(
    "SELECT id, workspace_id, error FROM jobapi_jobs WHERE status = 3 AND error IS NOT NULL"
    " AND id > :last ORDER BY id LIMIT :most"
)
FILL = text(
    "UPDATE jobapi_jobs SET error_group = :error_group"
    " WHERE id = :id AND workspace_id = :workspace_id"
)


def upgrade() -> None:
    op.execute("ALTER TABLE jobapi_jobs ADD COLUMN error_group VARCHAR(16)")
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"COMMENT ON COLUMN jobapi_jobs.error_group IS '{COMMENT}'")
    if not op.get_context().as_sql:
        fill(op.get_bind())
    op.execute(
        "CREATE INDEX ix_jobapi_jobs_error_group ON jobapi_jobs"
        " (workspace_id, job_type, error_group, completed_at, id) WHERE status = 3"
    )


def fill(connection):
    last = 0
    while rows := connection.execute(FAILED, {"last": last, "most": AT_ONCE}).all():
        values = [
            {"id": id_, "workspace_id": workspace_id, "error_group": group(error)}
            for id_, workspace_id, error in rows
        ]
        connection.execute(FILL, values)
        last = rows[-1].id


def downgrade() -> None:
    op.execute("DROP INDEX ix_jobapi_jobs_error_group")
    op.execute("ALTER TABLE jobapi_jobs DROP COLUMN error_group")
