"""The index on metadata has the workspace in it.

A workspace's question then reads no other's entries. Where the table is large,
it can be built beforehand, while the service runs: see docs/deployment.md.

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
    # A hash of each path, which begins with the workspace. Hashes can be made to
    # collide, on purpose even, so that the workspace is a column besides. What is
    # not sorted in yet is walked through by every question: no more than 256 kB.
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
