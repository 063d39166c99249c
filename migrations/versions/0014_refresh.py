"""Remember refresh tokens that were exchanged a moment ago.

Revises: 0013
Created: 2026-11-26 01:05:12.604417
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

REPLACED = (
    "refresh tokens that were replaced a moment ago: their ids, and when, in seconds since 1970"
)
COMMENTS = {
    "refresh_id": (
        "the id of the one refresh token that still works",
        "the id of its refresh token",
    ),
    "created_at": (None, "when the password was given"),
}


def upgrade() -> None:
    op.add_column("jobapi_sessions", sa.Column("replaced", sa.JSON(), comment=REPLACED))
    _comment(1)


def downgrade() -> None:
    op.drop_column("jobapi_sessions", "replaced")
    _comment(0)


def _comment(number: int) -> None:
    if op.get_context().dialect.name == "postgresql":
        for column, comments in COMMENTS.items():
            text = comments[number]
            quoted = "NULL" if text is None else f"'{text}'"
            op.execute(f"COMMENT ON COLUMN jobapi_sessions.{column} IS {quoted}")
