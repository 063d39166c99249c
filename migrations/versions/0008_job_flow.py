"""How many jobs came into each status, and when.

Revises: 0007
Created: 2026-11-25 00:55:12.330941
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KIND = "workspace_id, status, job_type, priority"
SPANS = (10, 60, 600)

# For how long a job waited that is running, and ran that has ended.
SECONDS = (
    "CASE status WHEN 1 THEN extract(epoch FROM started_at - due_at)"
    " WHEN 2 THEN extract(epoch FROM completed_at - started_at)"
    " WHEN 3 THEN extract(epoch FROM completed_at - started_at) ELSE 0 END::float8"
)


def _function(*, flow: bool) -> str:
    columns, one, added, taken = f"{KIND}, n", "", "1 AS n", "-1"
    if flow:
        columns, one = f"{columns}, at, seconds", ", statement_timestamp(), 0"
        added, taken = f"1 AS n, {SECONDS} AS seconds", f"-1, -({SECONDS})"
    several = ", statement_timestamp(), sum(seconds)" if flow else ""
    return f"""
CREATE OR REPLACE FUNCTION jobapi_count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_job_count_changes ({columns})
      SELECT {KIND}, count(*){one} FROM new_jobs GROUP BY {KIND};
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO jobapi_job_count_changes ({columns})
      SELECT {KIND}, -count(*){one} FROM old_jobs GROUP BY {KIND};
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO jobapi_job_count_changes ({columns})
      SELECT {KIND}, sum(n){several} FROM (
        SELECT {KIND}, {added} FROM new_jobs UNION ALL SELECT {KIND}, {taken} FROM old_jobs
      ) AS changed GROUP BY {KIND} HAVING sum(n) <> 0;
  ELSE
    DELETE FROM jobapi_job_counts;
    DELETE FROM jobapi_job_count_changes;
    {"DELETE FROM jobapi_job_flow;" if flow else ""}
  END IF;
  RETURN NULL;
END $$;
"""


def _sqlite_count(row: str, n: int) -> str:
    kind = ", ".join(f"{row}.{name}" for name in KIND.split(", "))
    return (
        f"INSERT INTO jobapi_job_counts ({KIND}, n) VALUES ({kind}, {n})"
        f" ON CONFLICT ({KIND}) DO UPDATE SET n = n + {n};"
    )


def _sqlite_flow(row: str, n: int, condition: str) -> str:
    """The same as the fold does on Postgres, for one job."""

    def days(end: str, start: str) -> str:
        return f"(julianday(NEW.{end}) - julianday(NEW.{start}))"

    seconds = (
        f"86400 * CASE NEW.status WHEN 1 THEN {days('started_at', 'due_at')}"
        f" WHEN 2 THEN {days('completed_at', 'started_at')}"
        f" WHEN 3 THEN {days('completed_at', 'started_at')} ELSE 0 END"
    )
    return "".join(
        "INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)"
        f" SELECT {row}.workspace_id, {span}, strftime('%Y-%m-%d %H:%M:%S.000000',"
        f" CAST(strftime('%s', 'now') AS INTEGER) / {span} * {span}, 'unixepoch'),"
        f" {row}.status, {row}.job_type, {max(n, 0)}, {n}, {seconds if n > 0 else 0}"
        f" WHERE {condition}"
        " ON CONFLICT (workspace_id, span, at, status, job_type)"
        " DO UPDATE SET n = n + excluded.n, net = net + excluded.net,"
        " seconds = seconds + excluded.seconds;"
        for span in SPANS
    )


def _sqlite_triggers(flow: bool) -> dict[str, str]:
    inserted, deleted = _sqlite_count("NEW", 1), _sqlite_count("OLD", -1)
    updated = deleted + inserted
    if flow:
        changed = "NEW.status <> OLD.status"
        updated += _sqlite_flow("NEW", 1, changed) + _sqlite_flow("OLD", -1, changed)
        inserted += _sqlite_flow("NEW", 1, "1")
        deleted += _sqlite_flow("OLD", -1, "1")
    return {
        "deleted": f"AFTER DELETE ON jobapi_jobs BEGIN {deleted} END",
        "inserted": f"AFTER INSERT ON jobapi_jobs BEGIN {inserted} END",
        "updated": f"AFTER UPDATE OF {KIND} ON jobapi_jobs BEGIN {updated} END",
    }


def upgrade() -> None:
    op.create_table(
        "jobapi_job_flow",
        sa.Column("workspace_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "span",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="seconds: 10, 60 or 600",
        ),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="its begin"),
        sa.Column("status", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("job_type", sa.String(length=100), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="how many came into the status"),
        sa.Column(
            "net", sa.BigInteger(), nullable=False, comment="and without how many that left it"
        ),
        sa.Column(
            "seconds",
            sa.Double(),
            nullable=False,
            comment="for how long those that started had waited, or those that ended had run",
        ),
        sa.PrimaryKeyConstraint(
            *("workspace_id", "span", "at", "status", "job_type"), name=op.f("pk_jobapi_job_flow")
        ),
    )
    op.create_index("ix_jobapi_job_flow_old", "jobapi_job_flow", ["span", "at"])
    kind = "TIMESTAMP WITH TIME ZONE" if _is_postgres() else "DATETIME"
    number = "DOUBLE PRECISION" if _is_postgres() else "DOUBLE"
    op.execute(f"ALTER TABLE jobapi_job_count_changes ADD COLUMN at {kind}")
    op.execute(
        f"ALTER TABLE jobapi_job_count_changes ADD COLUMN seconds {number} DEFAULT 0 NOT NULL"
    )
    if _is_postgres():
        op.execute(
            "COMMENT ON COLUMN jobapi_job_count_changes.at IS"
            " 'null: a repair, and no change of a job'"
        )
        op.execute(_function(flow=True))
    else:
        _replace_sqlite(_sqlite_triggers(flow=True))


def downgrade() -> None:
    if _is_postgres():
        op.execute(_function(flow=False))
    else:
        _replace_sqlite(_sqlite_triggers(flow=False))
    op.execute("ALTER TABLE jobapi_job_count_changes DROP COLUMN seconds")
    op.execute("ALTER TABLE jobapi_job_count_changes DROP COLUMN at")
    op.drop_table("jobapi_job_flow")


def _replace_sqlite(triggers: dict[str, str]) -> None:
    for name, trigger in triggers.items():
        op.execute(f"DROP TRIGGER jobapi_count_{name}")
        op.execute(f"CREATE TRIGGER jobapi_count_{name} {trigger}")


def _is_postgres() -> bool:
    return bool(op.get_context().dialect.name == "postgresql")
