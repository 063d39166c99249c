"""Flow control: settings of job types, keys and slots of jobs, expiry; and the workers seen.

Creating the indexes reads the table of jobs eight times.

Revises: 0018
Created: 2026-11-27 01:50:00.000000
"""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

WORKSPACE = {
    "paused": "BOOLEAN DEFAULT false NOT NULL",
    "paused_reason": "TEXT",
    "priority_ageing_seconds": (
        "INTEGER CONSTRAINT ck_jobapi_workspaces_ageing"
        " CHECK (priority_ageing_seconds BETWEEN 1 AND 604800)"
    ),
    "flow_version": "BIGINT DEFAULT 0 NOT NULL",
}
KEY = {"postgresql": 'VARCHAR(200) COLLATE "C"', "sqlite": "VARCHAR(200)"}
TIME = {"postgresql": "TIMESTAMP WITH TIME ZONE", "sqlite": "DATETIME"}
JSON = "JSON"
DOUBLE = {"postgresql": "DOUBLE PRECISION", "sqlite": "DOUBLE"}

JOB_TYPES = """
CREATE TABLE jobapi_job_types (
  workspace_id INTEGER NOT NULL,
  job_type VARCHAR(100) NOT NULL,
  paused BOOLEAN DEFAULT false NOT NULL,
  paused_reason TEXT,
  max_running INTEGER,
  max_running_per_key INTEGER,
  rate_starts INTEGER,
  rate_seconds INTEGER,
  max_pending INTEGER,
  start_within_seconds INTEGER,
  priority SMALLINT,
  max_retries INTEGER,
  timeout_seconds INTEGER,
  retry_backoff_seconds INTEGER,
  retry_backoff_max_seconds INTEGER,
  keyed BOOLEAN DEFAULT false NOT NULL,
  tokens {double},
  tokens_at {time},
  turns JSON,
  updated_at {time} NOT NULL,
  CONSTRAINT pk_jobapi_job_types PRIMARY KEY (workspace_id, job_type),
  CONSTRAINT ck_jobapi_job_types_job_type CHECK (length(job_type) BETWEEN 1 AND 100),
  CONSTRAINT ck_jobapi_job_types_max_running CHECK (max_running BETWEEN 1 AND 1000),
  CONSTRAINT ck_jobapi_job_types_max_running_per_key
    CHECK (max_running_per_key BETWEEN 1 AND 1000),
  CONSTRAINT ck_jobapi_job_types_rate_limit CHECK (
    (rate_starts IS NULL) = (rate_seconds IS NULL)
    AND (rate_starts IS NULL) = (tokens IS NULL)
    AND (rate_starts IS NULL) = (tokens_at IS NULL)
    AND (rate_starts IS NULL OR rate_starts BETWEEN 1 AND 100000)
    AND (rate_seconds IS NULL OR rate_seconds BETWEEN 1 AND 86400)),
  CONSTRAINT ck_jobapi_job_types_tokens CHECK (tokens >= 0 AND tokens <= rate_starts),
  CONSTRAINT ck_jobapi_job_types_max_pending CHECK (max_pending BETWEEN 1 AND 10000000),
  CONSTRAINT ck_jobapi_job_types_start_within_seconds
    CHECK (start_within_seconds BETWEEN 1 AND 31536000),
  CONSTRAINT ck_jobapi_job_types_priority CHECK (priority BETWEEN 0 AND 3),
  CONSTRAINT ck_jobapi_job_types_max_retries CHECK (max_retries BETWEEN 0 AND 100),
  CONSTRAINT ck_jobapi_job_types_timeout_seconds CHECK (timeout_seconds >= 1),
  CONSTRAINT ck_jobapi_job_types_retry_backoff CHECK (
    (retry_backoff_seconds IS NULL OR retry_backoff_seconds BETWEEN 1 AND 86400)
    AND (retry_backoff_max_seconds IS NULL OR retry_backoff_max_seconds BETWEEN 1 AND 86400)),
  CONSTRAINT fk_jobapi_job_types_workspace_id FOREIGN KEY (workspace_id)
    REFERENCES jobapi_workspaces (id) ON DELETE CASCADE
)
"""
WORKERS = """
CREATE TABLE jobapi_workers (
  workspace_id INTEGER NOT NULL,
  name {key} NOT NULL,
  actor VARCHAR(20) NOT NULL,
  job_types JSON,
  first_seen_at {time} NOT NULL,
  last_seen_at {time} NOT NULL,
  CONSTRAINT pk_jobapi_workers PRIMARY KEY (workspace_id, name, actor),
  CONSTRAINT fk_jobapi_workers_workspace_id FOREIGN KEY (workspace_id)
    REFERENCES jobapi_workspaces (id) ON DELETE CASCADE
)
"""

# The constraints come with the last of their columns, because SQLite can add one only so.
JOBS = {
    "concurrency_key": "{key}",
    "unique_key": "{key}",
    "expires_at": "{time}",
    "slot": "INTEGER CONSTRAINT ck_jobapi_jobs_slot CHECK (slot BETWEEN 1 AND 1000)",
    "key_slot": "INTEGER CONSTRAINT ck_jobapi_jobs_key_slot CHECK (key_slot BETWEEN 1 AND 1000)",
    "ripe": (
        "BOOLEAN DEFAULT false NOT NULL"
        " CONSTRAINT ck_jobapi_jobs_ripe CHECK (NOT ripe OR concurrency_key IS NOT NULL)"
    ),
    "has_begun": "BOOLEAN DEFAULT false NOT NULL",
}
INDEXES = (
    "INDEX ix_jobapi_jobs_claim_type ON jobapi_jobs"
    " (workspace_id, job_type, priority, due_at, id) WHERE status = 0 AND concurrency_key IS NULL",
    "INDEX ix_jobapi_jobs_claim_keyed ON jobapi_jobs"
    " (workspace_id, job_type, priority, due_at, id)"
    " WHERE status = 0 AND concurrency_key IS NOT NULL",
    "INDEX ix_jobapi_jobs_claim_key ON jobapi_jobs"
    " (workspace_id, job_type, priority, concurrency_key, due_at, id) WHERE status = 0 AND ripe",
    "INDEX ix_jobapi_jobs_unripe ON jobapi_jobs (workspace_id, job_type, due_at)"
    " WHERE status = 0 AND concurrency_key IS NOT NULL AND NOT ripe",
    "UNIQUE INDEX uq_jobapi_jobs_slot ON jobapi_jobs (workspace_id, job_type, slot)"
    " WHERE status = 1 AND slot IS NOT NULL",
    "UNIQUE INDEX uq_jobapi_jobs_key_slot ON jobapi_jobs"
    " (workspace_id, job_type, concurrency_key, key_slot)"
    " WHERE status = 1 AND concurrency_key IS NOT NULL",
    "UNIQUE INDEX uq_jobapi_jobs_live ON jobapi_jobs (workspace_id, job_type, unique_key)"
    " WHERE status <= 1 AND unique_key IS NOT NULL",
    "INDEX ix_jobapi_jobs_expires ON jobapi_jobs (expires_at)"
    " WHERE status = 0 AND expires_at IS NOT NULL AND NOT has_begun",
)
NEW_INDEXES = (
    *("ix_jobapi_jobs_claim_keyed", "ix_jobapi_jobs_claim_key", "ix_jobapi_jobs_unripe"),
    *("uq_jobapi_jobs_slot", "uq_jobapi_jobs_key_slot", "uq_jobapi_jobs_live"),
    "ix_jobapi_jobs_expires",
)
COMMENTS = {
    "jobapi_workspaces.flow_version": (
        "a random number for each change of how claims choose jobs; 0: as by default"
    ),
    "jobapi_job_types.rate_starts": "so many starts in rate_seconds",
    "jobapi_job_types.keyed": "whether it has had jobs with a concurrency_key",
    "jobapi_job_types.tokens": "how many starts the bucket of rate_limit allowed at tokens_at",
    "jobapi_job_types.turns": "by priority: the concurrency_key that was served last",
    "jobapi_workers.actor": "user:1 or key:1",
    "jobapi_workers.job_types": "null: all",
    "jobapi_jobs.slot": (
        "while it runs: its number among the running jobs of a type with max_running"
    ),
    "jobapi_jobs.key_slot": (
        "while it runs: its number among those of its key, with max_running_per_key"
    ),
    "jobapi_jobs.ripe": "has a concurrency_key, and was due when last looked at",
    "jobapi_jobs.has_begun": "an attempt has begun: it does not expire any more",
}


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    kinds = {"key": KEY[dialect], "time": TIME[dialect], "double": DOUBLE[dialect]}
    added = {
        "jobapi_workspaces": WORKSPACE,
        "jobapi_jobs": {name: kind.format(**kinds) for name, kind in JOBS.items()},
    }
    for table, columns in added.items():
        each = [f"ADD COLUMN {name} {kind}" for name, kind in columns.items()]
        # On Postgres all in one, so that the table is locked and read once.
        for change in [", ".join(each)] if dialect == "postgresql" else each:
            op.execute(f"ALTER TABLE {table} {change}")
    # A hot row: with room in its page, an update is written beside it.
    room = " WITH (fillfactor = 50)" if dialect == "postgresql" else ""
    op.execute(JOB_TYPES.format(**kinds).rstrip() + room)
    op.execute(WORKERS.format(**kinds))
    op.execute("CREATE INDEX ix_jobapi_workers_seen ON jobapi_workers (workspace_id, last_seen_at)")
    op.execute("DROP INDEX ix_jobapi_jobs_claim_type")
    for index in INDEXES:
        op.execute(f"CREATE {index}")
    if dialect == "postgresql":
        for column, comment in COMMENTS.items():
            op.execute(f"COMMENT ON COLUMN {column} IS '{comment}'")


def downgrade() -> None:
    for index in (*NEW_INDEXES, "ix_jobapi_jobs_claim_type"):
        op.execute(f"DROP INDEX {index}")
    for name in reversed(JOBS):
        op.execute(f"ALTER TABLE jobapi_jobs DROP COLUMN {name}")
    op.execute(
        "CREATE INDEX ix_jobapi_jobs_claim_type ON jobapi_jobs"
        " (workspace_id, job_type, priority, due_at, id) WHERE status = 0"
    )
    op.execute("DROP TABLE jobapi_workers")
    op.execute("DROP TABLE jobapi_job_types")
    for name in reversed(WORKSPACE):
        op.execute(f"ALTER TABLE jobapi_workspaces DROP COLUMN {name}")
