"""Events: what happened to jobs, members and keys, when and by whom.

Revises: 0009
Created: 2026-11-25 01:31:17.552019
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# The numbers of lifecycle.EventKind, and of JobStatus. Progress is noted when it
# comes into another tenth, so that a chatty worker does not fill the table.
KIND = """CASE
 WHEN o.status = n.status THEN CASE
  WHEN n.status = 1 AND coalesce(n.progress_percent, 0) / 10 <> coalesce(o.progress_percent, 0) / 10
   THEN 3
  WHEN n.status = 0 AND n.version <> o.version THEN 9 END
 WHEN n.status = 1 THEN CASE WHEN n.lease_token IS NULL THEN 1 ELSE 2 END
 WHEN n.status = 2 THEN 4
 WHEN n.status = 4 THEN 8
 WHEN n.changed_by IS NULL AND n.error = 'lease expired' THEN 7
 WHEN n.changed_by IS NULL AND n.error = 'timed out' THEN 12
 WHEN n.status = 3 THEN 5
 WHEN n.retry_count > o.retry_count THEN 6
 ELSE 10 END"""
EDITED = ("priority", "scheduled_at", "estimated_duration", "max_retries", "timeout_seconds")
EDITED_METADATA = "n.metadata::text IS DISTINCT FROM o.metadata::text"
COLUMNS = (
    "workspace_id, xid, at, kind, job_id, job_type, from_status, to_status, attempt, actor, worker,"
    " data"
)


def _data(build: str, reason: str, metadata: str) -> str:
    fields = " || ".join(
        f"CASE WHEN {different} THEN '{name} ' ELSE '' END"
        for name, different in [
            *((name, f"n.{name} IS DISTINCT FROM o.{name}") for name in EDITED),
            ("metadata", metadata),
        ]
    )
    return f"""CASE
 WHEN kind = 3 THEN {build}('progress_percent', n.progress_percent,
  'progress_message', n.progress_message)
 WHEN kind IN (5, 7, 12) OR (kind = 6 AND o.status = 1)
  THEN {build}('error', substr(n.error, 1, 1000))
 WHEN kind = 6 THEN {build}('reason', {reason.format("retry_reason")})
 WHEN kind = 8 THEN {build}('reason', {reason.format("cancelled_reason")})
 WHEN kind = 9 THEN {build}('fields', trim({fields})) END"""


POSTGRES = f"""
CREATE FUNCTION jobapi_note_jobs() RETURNS trigger LANGUAGE plpgsql
-- Its plan is made for the number of rows that there are the first time, and kept.
SET enable_nestloop = off AS $$
DECLARE
  xid bigint := pg_current_xact_id()::text::bigint;
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_events ({COLUMNS})
      SELECT workspace_id, xid, statement_timestamp(), 0, job_id, job_type, NULL, status, NULL,
       changed_by, NULL, NULL FROM new_jobs;
  ELSE
    INSERT INTO jobapi_events ({COLUMNS})
      SELECT n.workspace_id, xid, statement_timestamp(), kind, n.job_id, n.job_type, o.status,
       n.status, n.attempt, n.changed_by, CASE WHEN 1 IN (o.status, n.status) THEN n.worker END,
       {_data("json_build_object", "n.result ->> '{}'", EDITED_METADATA)}
      FROM new_jobs n JOIN old_jobs o ON o.id = n.id
      CROSS JOIN LATERAL (SELECT {KIND} AS kind) AS noted
      WHERE kind IS NOT NULL;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER jobapi_note_inserted AFTER INSERT ON jobapi_jobs
  REFERENCING NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_note_jobs();
CREATE TRIGGER jobapi_note_updated AFTER UPDATE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_note_jobs();
"""

SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def _sqlite() -> dict[str, str]:
    data = _data(
        "json_object", "json_extract(n.result, '$.{}')", "n.metadata IS NOT o.metadata"
    ).replace("IS DISTINCT FROM", "IS NOT")
    row = f"""SELECT n.workspace_id, 0, {SQLITE_NOW}, kind, n.job_id, n.job_type, o.status,
     n.status, n.attempt, n.changed_by,
     CASE WHEN 1 IN (o.status, n.status) THEN n.worker END, {data}
     FROM (SELECT {KIND} AS kind) AS noted WHERE kind IS NOT NULL"""
    for short, long in (("n.", "NEW."), ("o.", "OLD.")):
        row = row.replace(f" {short}", f" {long}").replace(f"({short}", f"({long}")
    inserted = (
        f"SELECT NEW.workspace_id, 0, {SQLITE_NOW}, 0, NEW.job_id, NEW.job_type, NULL, NEW.status,"
        " NULL, NEW.changed_by, NULL, NULL"
    )
    return {
        "inserted": f"AFTER INSERT ON jobapi_jobs BEGIN INSERT INTO jobapi_events ({COLUMNS})"
        f" {inserted}; END",
        "updated": f"AFTER UPDATE ON jobapi_jobs BEGIN INSERT INTO jobapi_events ({COLUMNS})"
        f" {row}; END",
    }


def upgrade() -> None:
    op.create_table(
        "jobapi_events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
        ),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False, comment="the transaction; 0 on SQLite"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False, comment="lifecycle.EventKind"),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("job_type", sa.String(length=100), nullable=True),
        sa.Column("from_status", sa.SmallInteger(), nullable=True),
        sa.Column("to_status", sa.SmallInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column(
            "actor",
            sa.String(length=20),
            nullable=True,
            comment="user:1 or key:1; null: the service itself",
        ),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("data", sa.JSON(), nullable=True),
        # Without a key of its own Postgres has one index less to keep.
        *([] if _is_postgres() else [sa.PrimaryKeyConstraint("id", name=op.f("pk_jobapi_events"))]),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_jobapi_events_order", "jobapi_events", ["workspace_id", "xid", "id"], unique=True
    )
    op.create_index("ix_jobapi_events_job", "jobapi_events", ["job_id", "id"])
    op.execute("ALTER TABLE jobapi_jobs ADD COLUMN changed_by VARCHAR(20)")
    op.execute(
        "ALTER TABLE jobapi_workspaces ADD COLUMN keep_events INTEGER DEFAULT 30"
        " CONSTRAINT ck_jobapi_workspaces_keep_events CHECK (keep_events >= 1)"
    )
    if _is_postgres():
        op.execute(
            "COMMENT ON COLUMN jobapi_jobs.changed_by IS"
            " 'user:1 or key:1; null: the service itself'"
        )
        op.execute("ALTER TABLE jobapi_events REPLICA IDENTITY USING INDEX ix_jobapi_events_order")
        op.execute("COMMENT ON COLUMN jobapi_workspaces.keep_events IS 'days; null: for ever'")
        op.execute(POSTGRES)
    else:
        for name, trigger in _sqlite().items():
            op.execute(f"CREATE TRIGGER jobapi_note_{name} {trigger}")


def downgrade() -> None:
    on = " ON jobapi_jobs" if _is_postgres() else ""
    for name in ("inserted", "updated"):
        op.execute(f"DROP TRIGGER jobapi_note_{name}{on}")
    if on:
        op.execute("DROP FUNCTION jobapi_note_jobs()")
    op.execute("ALTER TABLE jobapi_workspaces DROP COLUMN keep_events")
    op.execute("ALTER TABLE jobapi_jobs DROP COLUMN changed_by")
    op.drop_table("jobapi_events")


def _is_postgres() -> bool:
    return bool(op.get_context().dialect.name == "postgresql")
