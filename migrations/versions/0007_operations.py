"""Operations on all jobs that match a filter; workspaces that are being deleted.

Revises: 0006
Created: 2026-11-25 00:34:51.204418
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobapi_operations",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Integer(), nullable=False),
        sa.Column("action", sa.SmallInteger(), nullable=False, comment="0 cancel 1 retry 2 delete"),
        sa.Column("filter", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "status", sa.SmallInteger(), nullable=False, comment="0 running 1 finished 2 stopped"
        ),
        sa.Column(
            "matched", sa.BigInteger(), nullable=False, comment="how many jobs matched at its start"
        ),
        sa.Column("matched_is_capped", sa.Boolean(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), nullable=False),
        sa.Column(
            "place",
            sa.JSON(),
            nullable=True,
            comment="how far it is, in the order of the creation of jobs",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("action BETWEEN 0 AND 2", name=op.f("ck_jobapi_operations_action")),
        sa.CheckConstraint("status BETWEEN 0 AND 2", name=op.f("ck_jobapi_operations_status")),
        sa.CheckConstraint(
            "(status = 0) = (ended_at IS NULL)", name=op.f("ck_jobapi_operations_ended")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["jobapi_workspaces.id"],
            name=op.f("fk_jobapi_operations_workspace_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["created_by"], ["jobapi_users.id"], name=op.f("fk_jobapi_operations_created_by")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_operations")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_jobapi_operations_workspace_id", "jobapi_operations", ["workspace_id", "id"]
    )
    op.create_index(
        "ix_jobapi_operations_running",
        "jobapi_operations",
        ["updated_at"],
        postgresql_where=sa.text("status = 0"),
        sqlite_where=sa.text("status = 0"),
    )
    kind = "TIMESTAMP WITH TIME ZONE" if _is_postgres() else "DATETIME"
    op.execute(f"ALTER TABLE jobapi_workspaces ADD COLUMN deleted_at {kind}")
    if _is_postgres():
        op.execute(
            "COMMENT ON COLUMN jobapi_workspaces.deleted_at IS"
            " 'since when nobody sees it; what is in it is being deleted'"
        )


def downgrade() -> None:
    # Nobody would know any longer that they are not there.
    op.execute("DELETE FROM jobapi_workspaces WHERE deleted_at IS NOT NULL")
    op.execute("ALTER TABLE jobapi_workspaces DROP COLUMN deleted_at")
    op.drop_table("jobapi_operations")


def _is_postgres() -> bool:
    return bool(op.get_context().dialect.name == "postgresql")
