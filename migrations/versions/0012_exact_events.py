"""Events and rates say what happened, no more and no less; operations know their caller.

An edit that comes together with a change of the status is noted with it, one
that changes nothing is not; reasons are texts of 1,000 characters at most, on
both databases. A changed priority puts no job into the queue again. A job that
was started before it was due has waited for nothing.

Revises: 0011
Created: 2026-11-25 12:04:41.207713
"""

from typing import Any

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# The numbers of lifecycle.EventKind, and of JobStatus. Progress is noted when it
# comes into another tenth, so that a chatty worker does not fill the table.
NOTED = """CASE
 WHEN o.status = n.status THEN CASE
  WHEN n.status = 1 AND coalesce(n.progress_percent, 0) / 10 <> coalesce(o.progress_percent, 0) / 10
   THEN 3
  WHEN edited <> '' THEN 9 END
 WHEN n.status = 1 THEN CASE WHEN n.lease_token IS NULL THEN 1 ELSE 2 END
 WHEN n.status = 2 THEN 4
 WHEN n.status = 4 THEN 8
 WHEN n.changed_by IS NULL AND n.error = 'lease expired' THEN 7
 WHEN n.changed_by IS NULL AND n.error = 'timed out' THEN 12
 WHEN n.status = 3 THEN 5
 WHEN n.retry_count > o.retry_count THEN 6
 ELSE 10 END"""
EDITED = ("priority", "scheduled_at", "estimated_duration", "max_retries", "timeout_seconds")
COLUMNS = (
    "workspace_id, xid, at, kind, job_id, job_type, from_status, to_status, attempt, actor, worker,"
    " data"
)


def _edited(different: str, metadata: str) -> str:
    """The names of the fields that somebody edited while the job was pending."""
    fields = " || ".join(
        f"CASE WHEN {condition} THEN '{name} ' ELSE '' END"
        for name, condition in [
            *((name, f"n.{name} {different} o.{name}") for name in EDITED),
            ("metadata", metadata),
        ]
    )
    return f"""CASE WHEN o.status = 0 AND n.version <> o.version AND n.lease_token IS NULL
 THEN trim({fields}) ELSE '' END"""


def _data(build: str, reason: str) -> str:
    error = "'error', substr(n.error, 1, 1000)"
    cancelled = f"'reason', {reason.format('cancelled_reason')}"
    return f"""CASE
 WHEN edited <> '' THEN CASE kind
  WHEN 5 THEN {build}({error}, 'fields', edited)
  WHEN 8 THEN {build}({cancelled}, 'fields', edited)
  ELSE {build}('fields', edited) END
 WHEN kind = 3 THEN {build}('progress_percent', n.progress_percent,
  'progress_message', n.progress_message)
 WHEN kind IN (5, 7, 12) OR (kind = 6 AND o.status = 1) THEN {build}({error})
 WHEN kind = 6 THEN {build}('reason', {reason.format("retry_reason")})
 WHEN kind = 8 THEN {build}({cancelled}) END"""


POSTGRES = f"""
CREATE OR REPLACE FUNCTION jobapi_note_jobs() RETURNS trigger LANGUAGE plpgsql
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
       {
    _data(
        "json_build_object",
        "CASE json_typeof(n.result -> '{0}')"
        " WHEN 'string' THEN substr(n.result ->> '{0}', 1, 1000) END",
    )
}
      FROM new_jobs n JOIN old_jobs o ON o.id = n.id
      CROSS JOIN LATERAL (SELECT {
    _edited("IS DISTINCT FROM", "n.metadata::text IS DISTINCT FROM o.metadata::text")
} AS edited) AS edits
      CROSS JOIN LATERAL (SELECT {NOTED} AS kind) AS noted
      WHERE kind IS NOT NULL;
  END IF;
  RETURN NULL;
END $$;
"""

KIND = "workspace_id, status, job_type, priority"
SPANS = (10, 60, 600)

# For how long a job waited that is running, and ran that has ended.
SECONDS = (
    "greatest(CASE status WHEN 1 THEN extract(epoch FROM started_at - due_at)"
    " WHEN 2 THEN extract(epoch FROM completed_at - started_at)"
    " WHEN 3 THEN extract(epoch FROM completed_at - started_at) ELSE 0 END, 0)::float8"
)
# Only another priority: it did not come into a status.
SAME = "sum(sum(n)) OVER (PARTITION BY workspace_id, status, job_type) = 0"
POSTGRES_COUNT = f"""
CREATE OR REPLACE FUNCTION jobapi_count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_job_count_changes ({KIND}, n, at, seconds)
      SELECT {KIND}, count(*), statement_timestamp(), 0 FROM new_jobs GROUP BY {KIND};
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO jobapi_job_count_changes ({KIND}, n, at, seconds)
      SELECT {KIND}, -count(*), statement_timestamp(), 0 FROM old_jobs GROUP BY {KIND};
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO jobapi_job_count_changes ({KIND}, n, at, seconds)
      SELECT {KIND}, sum(n), CASE WHEN {SAME} THEN NULL ELSE statement_timestamp() END,
       sum(seconds) FROM (
        SELECT {KIND}, 1 AS n, {SECONDS} AS seconds FROM new_jobs
        UNION ALL SELECT {KIND}, -1, -{SECONDS} FROM old_jobs
      ) AS changed GROUP BY {KIND} HAVING sum(n) <> 0;
  ELSE
    DELETE FROM jobapi_job_counts;
    DELETE FROM jobapi_job_count_changes;
    DELETE FROM jobapi_job_flow;
  END IF;
  RETURN NULL;
END $$;
"""


def _sqlite_noted() -> str:
    data = _data(
        "json_object",
        "CASE json_type(n.result, '$.{0}')"
        " WHEN 'text' THEN substr(json_extract(n.result, '$.{0}'), 1, 1000) END",
    )
    row = f"""SELECT n.workspace_id, 0, strftime('%Y-%m-%d %H:%M:%f000', 'now'), kind, n.job_id,
     n.job_type, o.status, n.status, n.attempt, n.changed_by,
     CASE WHEN 1 IN (o.status, n.status) THEN n.worker END, {data}
     FROM (SELECT edited, {NOTED} AS kind
      FROM (SELECT {_edited("IS NOT", "n.metadata IS NOT o.metadata")} AS edited) AS edits) AS noted
     WHERE kind IS NOT NULL"""
    for short, long in (("n.", "NEW."), ("o.", "OLD.")):
        row = row.replace(f" {short}", f" {long}").replace(f"({short}", f"({long}")
    return f"AFTER UPDATE ON jobapi_jobs BEGIN INSERT INTO jobapi_events ({COLUMNS}) {row}; END"


def _sqlite_count(row: str, n: int) -> str:
    kind = ", ".join(f"{row}.{name}" for name in KIND.split(", "))
    return (
        f"INSERT INTO jobapi_job_counts ({KIND}, n) VALUES ({kind}, {n})"
        f" ON CONFLICT ({KIND}) DO UPDATE SET n = n + {n};"
    )


def _sqlite_flow(row: str, n: int) -> str:
    """The same as the fold does on Postgres, for one job."""

    def days(end: str, start: str) -> str:
        return f"(julianday(NEW.{end}) - julianday(NEW.{start}))"

    seconds = (
        f"86400 * max(CASE NEW.status WHEN 1 THEN {days('started_at', 'due_at')}"
        f" WHEN 2 THEN {days('completed_at', 'started_at')}"
        f" WHEN 3 THEN {days('completed_at', 'started_at')} ELSE 0 END, 0)"
    )
    return "".join(
        "INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)"
        f" SELECT {row}.workspace_id, {span}, strftime('%Y-%m-%d %H:%M:%S.000000',"
        f" CAST(strftime('%s', 'now') AS INTEGER) / {span} * {span}, 'unixepoch'),"
        f" {row}.status, {row}.job_type, {max(n, 0)}, {n}, {seconds if n > 0 else 0}"
        " WHERE NEW.status <> OLD.status"
        " ON CONFLICT (workspace_id, span, at, status, job_type)"
        " DO UPDATE SET n = n + excluded.n, net = net + excluded.net,"
        " seconds = seconds + excluded.seconds;"
        for span in SPANS
    )


def _sqlite_counted() -> str:
    counts = _sqlite_count("OLD", -1) + _sqlite_count("NEW", 1)
    flow = _sqlite_flow("NEW", 1) + _sqlite_flow("OLD", -1)
    return f"AFTER UPDATE OF {KIND} ON jobapi_jobs BEGIN {counts} {flow} END"


def upgrade() -> None:
    op.execute("ALTER TABLE jobapi_operations ADD COLUMN actor VARCHAR(20)")
    op.execute("UPDATE jobapi_operations SET actor = 'user:' || created_by")
    if _is_postgres():
        op.execute("COMMENT ON COLUMN jobapi_operations.actor IS 'user:1 or key:1'")
        op.execute(POSTGRES)
        op.execute(POSTGRES_COUNT)
    else:
        _replace_sqlite(_sqlite_noted(), _sqlite_counted())


def downgrade() -> None:
    noted, counted = _before("0010"), _before("0008")
    if _is_postgres():
        function = noted.POSTGRES.partition("CREATE TRIGGER")[0]
        op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
        op.execute(counted._function(flow=True))
    else:
        _replace_sqlite(noted._sqlite()["updated"], counted._sqlite_triggers(flow=True)["updated"])
    op.execute("ALTER TABLE jobapi_operations DROP COLUMN actor")


def _before(number: str) -> Any:
    script: Any = op.get_context().script
    return script.get_revision(number).module


def _replace_sqlite(noted: str, counted: str) -> None:
    for name, trigger in (("note", noted), ("count", counted)):
        op.execute(f"DROP TRIGGER jobapi_{name}_updated")
        op.execute(f"CREATE TRIGGER jobapi_{name}_updated {trigger}")


def _is_postgres() -> bool:
    return bool(op.get_context().dialect.name == "postgresql")
