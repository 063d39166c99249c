"""Let a workspace move to another database.

`move` says that it leaves, and nothing in it changes, or that it arrives, and is hidden.

Revises: 0016
Created: 2026-11-26 17:20:00.000000
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

COMMENT = "0 leaving for another database: nothing changes; 1 arriving: hidden"
CHECK = "CONSTRAINT ck_jobapi_workspaces_move CHECK (move BETWEEN 0 AND 1)"


def upgrade() -> None:
    op.execute(f"ALTER TABLE jobapi_workspaces ADD COLUMN move SMALLINT {CHECK}")
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"COMMENT ON COLUMN jobapi_workspaces.move IS '{COMMENT}'")


def downgrade() -> None:
    op.execute("ALTER TABLE jobapi_workspaces DROP COLUMN move")
