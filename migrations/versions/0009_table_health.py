"""Claims by type; and how Postgres looks after the table of jobs.

Room for heartbeats, vacuum before it is late.

Revises: 0008
Created: 2026-11-25 01:11:40.118092
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Of the defaults a fifth of the table may be dead before anybody looks: of five
# million jobs a million rows. A small share, with the brake eased, keeps the
# index of claims short and the statistics those of today.
SETTINGS = {
    # A heartbeat's new row finds room in the page of the old one.
    "fillfactor": "90",
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_vacuum_cost_limit": "2000",
}


def upgrade() -> None:
    op.create_index(
        "ix_jobapi_jobs_claim_type",
        "jobapi_jobs",
        ["workspace_id", "job_type", "priority", "due_at", "id"],
        postgresql_where=sa.text("status = 0"),
        sqlite_where=sa.text("status = 0"),
    )
    if op.get_context().dialect.name == "postgresql":
        given = ", ".join(f"{name} = {value}" for name, value in SETTINGS.items())
        op.execute(f"ALTER TABLE jobapi_jobs SET ({given})")
        # Each look by metadata goes through all that is not sorted in yet.
        op.execute("ALTER INDEX ix_jobapi_jobs_metadata SET (gin_pending_list_limit = 256)")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE jobapi_jobs RESET ({', '.join(SETTINGS)})")
        op.execute("ALTER INDEX ix_jobapi_jobs_metadata RESET (gin_pending_list_limit)")
    op.drop_index("ix_jobapi_jobs_claim_type", "jobapi_jobs")
