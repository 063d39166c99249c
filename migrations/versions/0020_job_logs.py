"""Job logs: their entries, and how far the log of each job is.

Revises: 0019
Created: 2026-11-27 10:30:00.000000
"""

from alembic import op

from jobapi.migrations import triggers

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

TIME = {"postgresql": "TIMESTAMP WITH TIME ZONE", "sqlite": "DATETIME"}
BIG_ID = {"postgresql": "BIGINT", "sqlite": "INTEGER"}

LOGS = """
CREATE TABLE jobapi_job_logs (
  workspace_id INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  job {big_id} NOT NULL,
  number {big_id} NOT NULL,
  seq BIGINT,
  at {time} NOT NULL,
  level SMALLINT NOT NULL,
  size SMALLINT NOT NULL,
  message TEXT NOT NULL,
  CONSTRAINT pk_jobapi_job_logs PRIMARY KEY (workspace_id, job, number),
  CONSTRAINT ck_jobapi_job_logs_level CHECK (level BETWEEN 0 AND 3)
)
"""
HEADS = """
CREATE TABLE jobapi_job_log_heads (
  workspace_id INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  job {big_id} NOT NULL,
  first BIGINT NOT NULL,
  last BIGINT NOT NULL,
  seq BIGINT,
  bytes INTEGER NOT NULL,
  deleted BOOLEAN DEFAULT false NOT NULL,
  CONSTRAINT pk_jobapi_job_log_heads PRIMARY KEY (workspace_id, job),
  CONSTRAINT ck_jobapi_job_log_heads_numbers CHECK (first >= 1 AND last >= first - 1),
  CONSTRAINT ck_jobapi_job_log_heads_entries CHECK (last - first < 10000),
  CONSTRAINT ck_jobapi_job_log_heads_bytes CHECK (bytes BETWEEN 0 AND 4194304),
  CONSTRAINT fk_jobapi_job_log_heads_workspace_id FOREIGN KEY (workspace_id)
    REFERENCES jobapi_workspaces (id) ON DELETE CASCADE
)
"""
COMMENTS = {
    "jobapi_job_logs.job": "jobapi_jobs.id",
    "jobapi_job_logs.seq": "the worker''s own number",
    "jobapi_job_logs.at": "by the worker''s clock",
    "jobapi_job_logs.level": "0 debug 1 info 2 warning 3 error",
    "jobapi_job_logs.size": "bytes of the message",
    "jobapi_job_log_heads.job": "jobapi_jobs.id",
    "jobapi_job_log_heads.first": ("number of the oldest entry that is kept; they count from 1"),
    "jobapi_job_log_heads.last": "number of the newest entry",
    "jobapi_job_log_heads.seq": "the last one of attempt that is stored",
    "jobapi_job_log_heads.bytes": "of the messages that are kept",
    "jobapi_job_log_heads.deleted": "its job is deleted",
}


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    kinds = {"time": TIME[dialect], "big_id": BIG_ID[dialect]}
    op.execute(LOGS.format(**kinds))
    # A hot row: with room in its page, an update is written beside it.
    room = " WITH (fillfactor = 50)" if dialect == "postgresql" else ""
    op.execute(HEADS.format(**kinds).rstrip() + room)
    op.execute(
        "CREATE INDEX ix_jobapi_job_log_heads_deleted"
        " ON jobapi_job_log_heads (workspace_id, job) WHERE deleted"
    )
    if dialect == "postgresql":
        for column, comment in COMMENTS.items():
            op.execute(f"COMMENT ON COLUMN {column} IS '{comment}'")
    triggers.install("delete_job_logs", 1)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER jobapi_delete_job_logs ON jobapi_jobs")
        op.execute("DROP FUNCTION jobapi_delete_job_logs()")
    else:
        op.execute("DROP TRIGGER jobapi_delete_job_logs")
    op.execute("DROP TABLE jobapi_job_log_heads")
    op.execute("DROP TABLE jobapi_job_logs")
