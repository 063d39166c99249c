"""Counts of jobs by status, type and priority, kept by triggers.

Revises: 0003
Created: 2026-11-24 22:30:02.519822
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KIND = "workspace_id, status, job_type, priority"

# One row for each kind that a statement has changed the count of.
POSTGRES = f"""
CREATE FUNCTION jobapi_count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_job_count_changes ({KIND}, n)
      SELECT {KIND}, count(*) FROM new_jobs GROUP BY {KIND};
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO jobapi_job_count_changes ({KIND}, n)
      SELECT {KIND}, -count(*) FROM old_jobs GROUP BY {KIND};
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO jobapi_job_count_changes ({KIND}, n)
      SELECT {KIND}, sum(n) FROM (
        SELECT {KIND}, 1 AS n FROM new_jobs UNION ALL SELECT {KIND}, -1 FROM old_jobs
      ) AS changed GROUP BY {KIND} HAVING sum(n) <> 0;
  ELSE
    DELETE FROM jobapi_job_counts;
    DELETE FROM jobapi_job_count_changes;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER jobapi_count_inserted AFTER INSERT ON jobapi_jobs
  REFERENCING NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
CREATE TRIGGER jobapi_count_deleted AFTER DELETE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
CREATE TRIGGER jobapi_count_updated AFTER UPDATE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
CREATE TRIGGER jobapi_count_truncated AFTER TRUNCATE ON jobapi_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
"""


def _sqlite_change(row: str, n: int) -> str:
    kind = ", ".join(f"{row}.{name}" for name in KIND.split(", "))
    return (
        f"INSERT INTO jobapi_job_counts ({KIND}, n) VALUES ({kind}, {n})"
        f" ON CONFLICT ({KIND}) DO UPDATE SET n = n + {n};"
    )


SQLITE = {
    "inserted": f"AFTER INSERT ON jobapi_jobs BEGIN {_sqlite_change('NEW', 1)} END",
    "deleted": f"AFTER DELETE ON jobapi_jobs BEGIN {_sqlite_change('OLD', -1)} END",
    "updated": f"AFTER UPDATE OF {KIND} ON jobapi_jobs BEGIN"
    f" {_sqlite_change('OLD', -1)} {_sqlite_change('NEW', 1)} END",
}


def _kind() -> list[sa.Column[int] | sa.Column[str]]:
    return [
        sa.Column("workspace_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("job_type", sa.String(length=100), nullable=False),
        sa.Column("priority", sa.SmallInteger(), autoincrement=False, nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "jobapi_job_counts",
        *_kind(),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "workspace_id", "status", "job_type", "priority", name=op.f("pk_jobapi_job_counts")
        ),
    )
    op.create_table(
        "jobapi_job_count_changes",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
        ),
        *_kind(),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_job_count_changes")),
    )
    op.create_index(
        op.f("ix_jobapi_job_count_changes_workspace_id"),
        "jobapi_job_count_changes",
        ["workspace_id"],
    )
    # From here on nobody else writes jobs until the counts are right.
    if op.get_context().dialect.name == "postgresql":
        op.execute(POSTGRES)
        # Its rows come and go all the time.
        op.execute(
            "ALTER TABLE jobapi_job_count_changes SET (autovacuum_vacuum_scale_factor = 0,"
            " autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)"
        )
    else:
        for name, trigger in SQLITE.items():
            op.execute(f"CREATE TRIGGER jobapi_count_{name} {trigger}")
    op.execute(
        f"INSERT INTO jobapi_job_counts ({KIND}, n)"
        f" SELECT {KIND}, count(*) FROM jobapi_jobs GROUP BY {KIND}"
    )


def downgrade() -> None:
    on = " ON jobapi_jobs" if op.get_context().dialect.name == "postgresql" else ""
    for name in SQLITE:
        op.execute(f"DROP TRIGGER jobapi_count_{name}{on}")
    if on:
        op.execute("DROP TRIGGER jobapi_count_truncated ON jobapi_jobs")
        op.execute("DROP FUNCTION jobapi_count_jobs()")
    op.drop_table("jobapi_job_count_changes")
    op.drop_table("jobapi_job_counts")
