"""Indexes for lists: by kind, by the time of change, by metadata.

Revises: 0004
Created: 2026-11-24 22:50:41.630117
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_jobapi_jobs_kind": [
        *("workspace_id", "status", "job_type", "priority", "created_at", "id"),
    ],
    "ix_jobapi_jobs_updated": ["workspace_id", "status", "updated_at", "id"],
}


def upgrade() -> None:
    for name, columns in INDEXES.items():
        op.create_index(name, "jobapi_jobs", columns)
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE INDEX ix_jobapi_jobs_metadata ON jobapi_jobs"
            " USING gin ((metadata::jsonb) jsonb_path_ops) WHERE metadata IS NOT NULL"
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.drop_index("ix_jobapi_jobs_metadata", "jobapi_jobs")
    for name in INDEXES:
        op.drop_index(name, "jobapi_jobs")
