"""How Postgres looks after the table of jobs: room for heartbeats, vacuum before it is late.

Revises: 0008
Created: 2026-11-25 01:11:40.118092
"""

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
    if op.get_context().dialect.name == "postgresql":
        given = ", ".join(f"{name} = {value}" for name, value in SETTINGS.items())
        op.execute(f"ALTER TABLE jobapi_jobs SET ({given})")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE jobapi_jobs RESET ({', '.join(SETTINGS)})")
