"""Tells Alembic the database and which of its tables are jobapi's."""

from typing import Any

from alembic import context
from flask import current_app

from jobapi.store.columns import UtcDateTime
from jobapi.store.engine import long_transaction
from jobapi.store.tables import TABLE_PREFIX, Base

# Any number; all that migrate at the same moment wait for each other on it.
LOCK_KEY = 7016996765293437281

state = current_app.extensions["jobapi"]
migrate = current_app.extensions["migrate"]


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Leave a host application's tables alone, and an index that a model cannot say."""
    if kind == "index" and name == "ix_jobapi_jobs_content":
        return False
    return kind != "table" or (name or "").startswith(TABLE_PREFIX)


def render_item(kind: str, item: Any, autogen_context: Any) -> str | bool:
    """A migration must not change when our types do."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


options: dict[str, Any] = {
    **migrate.configure_args,
    "target_metadata": Base.metadata,
    "include_name": include_name,
    "render_item": render_item,
}

if context.is_offline_mode():
    context.configure(dialect_name=state.engine.dialect.name, literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with state.engine.connect() as connection, long_transaction(connection):
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
        # All migrations in the one transaction around them.
        context.configure(connection=connection, **options)
        context.run_migrations()
