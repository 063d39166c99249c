"""Webhooks and their deliveries.

Revises: 0021
Created: 2026-11-27 10:30:00.000000
"""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

TIME = {"postgresql": "TIMESTAMP WITH TIME ZONE", "sqlite": "DATETIME"}

WEBHOOKS = """
CREATE TABLE jobapi_webhooks (
  workspace_id INTEGER NOT NULL,
  id VARCHAR(40) NOT NULL,
  url TEXT NOT NULL,
  events JSON,
  job_types JSON,
  include JSON NOT NULL,
  description TEXT,
  enabled BOOLEAN NOT NULL,
  disabled_reason SMALLINT,
  secret TEXT NOT NULL,
  previous_secret TEXT,
  previous_secret_expires_at {time},
  position TEXT NOT NULL,
  failing_since {time},
  failed_at {time},
  created_by INTEGER NOT NULL,
  created_at {time} NOT NULL,
  updated_at {time} NOT NULL,
  CONSTRAINT pk_jobapi_webhooks PRIMARY KEY (workspace_id, id),
  CONSTRAINT ck_jobapi_webhooks_disabled_reason CHECK (disabled_reason BETWEEN 0 AND 1),
  CONSTRAINT ck_jobapi_webhooks_enabled CHECK (NOT enabled OR disabled_reason IS NULL),
  CONSTRAINT ck_jobapi_webhooks_failing CHECK ((failing_since IS NULL) = (failed_at IS NULL)),
  CONSTRAINT ck_jobapi_webhooks_previous_secret
    CHECK ((previous_secret IS NULL) = (previous_secret_expires_at IS NULL)),
  CONSTRAINT fk_jobapi_webhooks_workspace_id FOREIGN KEY (workspace_id)
    REFERENCES jobapi_workspaces (id) ON DELETE CASCADE,
  CONSTRAINT fk_jobapi_webhooks_created_by FOREIGN KEY (created_by) REFERENCES jobapi_users (id)
)
"""
DELIVERIES = """
CREATE TABLE jobapi_webhook_deliveries (
  workspace_id INTEGER NOT NULL,
  webhook_id VARCHAR(40) NOT NULL,
  id VARCHAR(40) NOT NULL,
  type VARCHAR(60) NOT NULL,
  event_id VARCHAR(40),
  job_id VARCHAR(40),
  body TEXT NOT NULL,
  status SMALLINT NOT NULL,
  attempts INTEGER DEFAULT 0 NOT NULL,
  created_at {time} NOT NULL,
  next_attempt_at {time},
  last_attempt_at {time},
  response_status SMALLINT,
  response_body TEXT,
  error TEXT,
  CONSTRAINT pk_jobapi_webhook_deliveries PRIMARY KEY (workspace_id, webhook_id, id),
  CONSTRAINT fk_jobapi_webhook_deliveries_webhook FOREIGN KEY (workspace_id, webhook_id)
    REFERENCES jobapi_webhooks (workspace_id, id) ON DELETE CASCADE,
  CONSTRAINT ck_jobapi_webhook_deliveries_status CHECK (status BETWEEN 0 AND 3),
  CONSTRAINT ck_jobapi_webhook_deliveries_next_attempt_at
    CHECK ((status = 0) = (next_attempt_at IS NOT NULL)),
  CONSTRAINT ck_jobapi_webhook_deliveries_attempts CHECK (attempts >= 0)
)
"""
INDEXES = (
    "ix_jobapi_webhook_deliveries_created ON jobapi_webhook_deliveries"
    " (workspace_id, webhook_id, created_at, id)",
    "ix_jobapi_webhook_deliveries_due ON jobapi_webhook_deliveries"
    " (workspace_id, webhook_id, next_attempt_at) WHERE status = 0",
)
COMMENTS = {
    "jobapi_webhooks.events": "labels of kinds; null: the ends of jobs",
    "jobapi_webhooks.job_types": "null: all",
    "jobapi_webhooks.include": "of metadata and result",
    "jobapi_webhooks.disabled_reason": (
        "0 gone 1 failing; null: it is enabled, or an owner has disabled it"
    ),
    "jobapi_webhooks.secret": "encrypted",
    "jobapi_webhooks.previous_secret": "encrypted",
    "jobapi_webhooks.position": (
        "the name of the position in the log of events up to which there are rows"
    ),
    "jobapi_webhooks.failing_since": "the first failure after the last success",
    "jobapi_webhooks.failed_at": "the last failure",
    "jobapi_webhook_deliveries.id": "the header webhook-id",
    "jobapi_webhook_deliveries.event_id": "null: a test",
    "jobapi_webhook_deliveries.status": "0 pending 1 success 2 failed 3 cancelled",
    "jobapi_webhook_deliveries.next_attempt_at": (
        "while an attempt is under way: when another process may take over"
    ),
    "jobapi_webhook_deliveries.response_body": "its first KiB",
    "jobapi_webhook_deliveries.error": "why the last attempt got no complete response",
}


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    for table in (WEBHOOKS, DELIVERIES):
        op.execute(table.format(time=TIME[dialect]))
    for index in INDEXES:
        op.execute(f"CREATE INDEX {index}")
    if dialect == "postgresql":
        for column, comment in COMMENTS.items():
            op.execute(f"COMMENT ON COLUMN {column} IS '{comment}'")


def downgrade() -> None:
    op.execute("DROP TABLE jobapi_webhook_deliveries")
    op.execute("DROP TABLE jobapi_webhooks")
