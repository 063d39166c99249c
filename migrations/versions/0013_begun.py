"""A leased job is not a begun one: workers may prefetch.

Revises: 0012
Created: 2026-11-26 00:50:14.206618
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# The constraint comes with the last of its columns, because SQLite can add one only so.
COLUMNS = {
    "prefetched": "BOOLEAN DEFAULT false NOT NULL",
    "suspect": "BOOLEAN DEFAULT false NOT NULL",
    "run_id": (
        "VARCHAR(64) CONSTRAINT ck_jobapi_jobs_begun CHECK (CASE WHEN lease_token IS NULL"
        " THEN run_id IS NULL AND NOT prefetched ELSE run_id IS NULL OR NOT prefetched END)"
    ),
}
COMMENTS = {
    "prefetched": "leased, and its attempt has not begun",
    "suspect": "its lease expired before its attempt began: the next lease is given alone",
    "run_id": "what began the attempt, as it named itself",
}


def upgrade() -> None:
    added = [f"ADD COLUMN {name} {kind}" for name, kind in COLUMNS.items()]
    if op.get_context().dialect.name == "postgresql":
        # All in one, so that the table is locked and read once.
        op.execute(f"ALTER TABLE jobapi_jobs {', '.join(added)}")
        for name, comment in COMMENTS.items():
            op.execute(f"COMMENT ON COLUMN jobapi_jobs.{name} IS '{comment}'")
    else:
        for column in added:
            op.execute(f"ALTER TABLE jobapi_jobs {column}")


def downgrade() -> None:
    # The constraint goes with its column.
    for name in reversed(COLUMNS):
        op.execute(f"ALTER TABLE jobapi_jobs DROP COLUMN {name}")
