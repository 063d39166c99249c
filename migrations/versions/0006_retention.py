"""How long a workspace keeps its ended jobs.

Revises: 0005
Created: 2026-11-24 23:08:17.402951
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = ("keep_success", "keep_failed", "keep_cancelled")


def upgrade() -> None:
    for name in COLUMNS:
        op.execute(
            f"ALTER TABLE jobapi_workspaces ADD COLUMN {name} INTEGER"
            f" CONSTRAINT ck_jobapi_workspaces_{name} CHECK ({name} >= 1)"
        )
        if op.get_context().dialect.name == "postgresql":
            op.execute(f"COMMENT ON COLUMN jobapi_workspaces.{name} IS 'days; null: for ever'")


def downgrade() -> None:
    for name in reversed(COLUMNS):
        op.execute(f"ALTER TABLE jobapi_workspaces DROP COLUMN {name}")
