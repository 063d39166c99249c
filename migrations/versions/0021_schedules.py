"""Schedules, and the jobs that they make.

Creating the indexes reads the table of jobs twice.

Revises: 0020
Created: 2026-11-27 10:30:00.000000
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

KEY = {"postgresql": 'VARCHAR(200) COLLATE "C"', "sqlite": "VARCHAR(200)"}
TIME = {"postgresql": "TIMESTAMP WITH TIME ZONE", "sqlite": "DATETIME"}

SCHEDULES = """
CREATE TABLE jobapi_schedules (
  workspace_id INTEGER NOT NULL,
  schedule_id VARCHAR(40) NOT NULL,
  name {key} NOT NULL,
  cron VARCHAR(200),
  every_seconds INTEGER,
  timezone VARCHAR(64) NOT NULL,
  job_type VARCHAR(100) NOT NULL,
  job JSON NOT NULL,
  overlap SMALLINT NOT NULL,
  catch_up SMALLINT NOT NULL,
  jitter_seconds INTEGER NOT NULL,
  starts_at {time},
  ends_at {time},
  paused BOOLEAN NOT NULL,
  paused_reason TEXT,
  suspended_reason TEXT,
  next_run_at {time},
  due_at {time},
  last_scheduled_for {time},
  last_ran_at {time},
  last_outcome SMALLINT,
  last_job_id VARCHAR(40),
  runs_as VARCHAR(20) NOT NULL,
  version INTEGER NOT NULL,
  created_by INTEGER NOT NULL,
  created_at {time} NOT NULL,
  updated_at {time} NOT NULL,
  CONSTRAINT pk_jobapi_schedules PRIMARY KEY (workspace_id, schedule_id),
  CONSTRAINT ck_jobapi_schedules_timing CHECK ((cron IS NULL) <> (every_seconds IS NULL)),
  CONSTRAINT ck_jobapi_schedules_every_seconds CHECK (every_seconds >= 1),
  CONSTRAINT ck_jobapi_schedules_jitter_seconds CHECK (jitter_seconds >= 0),
  CONSTRAINT ck_jobapi_schedules_overlap CHECK (overlap BETWEEN 0 AND 2),
  CONSTRAINT ck_jobapi_schedules_catch_up CHECK (catch_up BETWEEN 0 AND 2),
  CONSTRAINT ck_jobapi_schedules_last_outcome CHECK (last_outcome BETWEEN 0 AND 4),
  CONSTRAINT ck_jobapi_schedules_due_at CHECK ((next_run_at IS NULL) = (due_at IS NULL)),
  CONSTRAINT ck_jobapi_schedules_active
    CHECK (next_run_at IS NULL OR (NOT paused AND suspended_reason IS NULL)),
  CONSTRAINT fk_jobapi_schedules_workspace_id FOREIGN KEY (workspace_id)
    REFERENCES jobapi_workspaces (id) ON DELETE CASCADE,
  CONSTRAINT fk_jobapi_schedules_created_by FOREIGN KEY (created_by) REFERENCES jobapi_users (id)
)
"""
JOBS = {"schedule_id": "VARCHAR(40)", "scheduled_for": "{time}"}
INDEXES = (
    "UNIQUE INDEX uq_jobapi_schedules_name ON jobapi_schedules (workspace_id, name)",
    "INDEX ix_jobapi_schedules_due ON jobapi_schedules (due_at) WHERE due_at IS NOT NULL",
    "UNIQUE INDEX uq_jobapi_jobs_schedule ON jobapi_jobs"
    " (workspace_id, schedule_id, scheduled_for) WHERE schedule_id IS NOT NULL",
    "INDEX ix_jobapi_jobs_schedule_live ON jobapi_jobs (workspace_id, schedule_id, id)"
    " WHERE status <= 1 AND schedule_id IS NOT NULL",
)
COMMENTS = {
    "jobapi_schedules.timezone": "IANA name",
    "jobapi_schedules.job_type": "that of job",
    "jobapi_schedules.job": "what a create takes",
    "jobapi_schedules.overlap": "0 allow 1 skip 2 replace",
    "jobapi_schedules.catch_up": "0 none 1 last 2 all",
    "jobapi_schedules.next_run_at": "the next tick; null: paused, suspended or over",
    "jobapi_schedules.due_at": "when that tick makes its job: with the jitter",
    "jobapi_schedules.last_outcome": "0 created 1 existing 2 overlap 3 queue_full 4 missed",
    "jobapi_schedules.runs_as": "user:1 or key:1, who has changed job last",
    "jobapi_schedules.version": "counts the edits; the ETag",
    "jobapi_jobs.scheduled_for": "the tick of the schedule; null: run by hand",
}


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    kinds = {"key": KEY[dialect], "time": TIME[dialect]}
    op.execute(SCHEDULES.format(**kinds))
    each = [f"ADD COLUMN {name} {kind.format(**kinds)}" for name, kind in JOBS.items()]
    # On Postgres all in one, so that the table is locked once.
    for change in [", ".join(each)] if dialect == "postgresql" else each:
        op.execute(f"ALTER TABLE jobapi_jobs {change}")
    for index in INDEXES:
        op.execute(f"CREATE {index}")
    if dialect == "postgresql":
        for column, comment in COMMENTS.items():
            op.execute(f"COMMENT ON COLUMN {column} IS '{comment}'")


def downgrade() -> None:
    for index in ("ix_jobapi_jobs_schedule_live", "uq_jobapi_jobs_schedule"):
        op.execute(f"DROP INDEX {index}")
    for name in reversed(JOBS):
        op.execute(f"ALTER TABLE jobapi_jobs DROP COLUMN {name}")
    op.execute("DROP TABLE jobapi_schedules")
