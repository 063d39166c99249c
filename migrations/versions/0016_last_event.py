"""Let the service say which event a change of a job is.

The trigger told it from the columns that differ and from the text of the error, which could be
wrong: an edit to failed with the error "lease expired" became an expiry. Now each change writes
its event, and the names of the fields that it edits, into the job, and the trigger copies them.

Processes of the release before do not write these columns while they still run. The trigger
knows their changes by `last_event_version`, which is not the job's version then, and tells their
events from the columns as before.

Revises: 0015
Created: 2026-11-26 06:31:08.446120
"""

from alembic import op

from jobapi.migrations import triggers

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

COLUMNS = {
    "last_event": ("SMALLINT", "the kind of event that the last change is; null: none"),
    "last_edited": ("TEXT", "the names of the fields that it edited, with spaces between"),
    "last_event_version": ("INTEGER", "the version that last_event and last_edited describe"),
}


def upgrade() -> None:
    added = [f"ADD COLUMN {name} {kind}" for name, (kind, _) in COLUMNS.items()]
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE jobapi_jobs {', '.join(added)}")
        for name, (_, comment) in COLUMNS.items():
            op.execute(f"COMMENT ON COLUMN jobapi_jobs.{name} IS '{comment}'")
        op.execute("COMMENT ON COLUMN jobapi_events.kind IS 'rules.events.EventKind'")
    else:
        for column in added:
            op.execute(f"ALTER TABLE jobapi_jobs {column}")
    triggers.install("note_jobs", 3)


def downgrade() -> None:
    triggers.install("note_jobs", 2)
    for name in reversed(COLUMNS):
        op.execute(f"ALTER TABLE jobapi_jobs DROP COLUMN {name}")
    if op.get_context().dialect.name == "postgresql":
        op.execute("COMMENT ON COLUMN jobapi_events.kind IS 'lifecycle.EventKind'")
