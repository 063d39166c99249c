"""Put the workspace into the index on metadata.

A query then reads no entries of other workspaces. For a large table build the index
beforehand, while the service runs: see docs/deployment.md.

Revises: 0014
Created: 2026-11-26 01:25:12.113807
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    # The index has hashes of paths that begin with the workspace. Hashes can be made
    # to collide on purpose, so the workspace is a column as well. Every query scans
    # the pending list, so that has at most 256 kB.
    op.execute(
        "CREATE INDEX IF NOT EXISTS ix_jobapi_jobs_content ON jobapi_jobs USING gin ("
        " (ARRAY[workspace_id]),"
        " (('{\"' || workspace_id::text || '\":' || metadata::text || '}')::jsonb) jsonb_path_ops"
        ") WITH (gin_pending_list_limit = 256) WHERE metadata IS NOT NULL"
    )
    op.execute("DROP INDEX ix_jobapi_jobs_metadata")


def downgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    op.execute(
        "CREATE INDEX ix_jobapi_jobs_metadata ON jobapi_jobs"
        " USING gin ((metadata::jsonb) jsonb_path_ops) WITH (gin_pending_list_limit = 256)"
        " WHERE metadata IS NOT NULL"
    )
    op.execute("DROP INDEX ix_jobapi_jobs_content")
