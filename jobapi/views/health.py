"""Health checks: ``/health``."""

from __future__ import annotations

import time
from typing import Any

from ..errors import Unavailable
from ..schemas import base as schemas
from ..store.readiness import try_to_write
from ..store.transactions import once_more
from .access import connect, public
from .base import state
from .blueprints import Blueprint

WRITE_AGAIN_SECONDS = 1.0
"""For how long a successful write is trusted: anyone may call this, and each write costs."""

blp = Blueprint("health", "Health", "Whether the service lives, and whether it can work.")


@blp.operation("/health/live", summary="Is the process alive")
@public
@blp.response(200, schemas.Health)
def get_live() -> Any:
    """Answers as long as the process can, whatever the state of the database."""
    return {"status": "ok"}


@blp.operation("/health/ready", summary="Can the service work")
@public
@blp.response(200, schemas.Health)
def get_ready() -> Any:
    """Checks that the database has this version's migrations and accepts a write."""
    ours = state()
    with connect() as connection:
        problem = once_more(connection, lambda: ours.schema_problem(connection))
        if problem is not None:
            raise Unavailable(problem)
        if time.monotonic() >= ours.wrote_at + WRITE_AGAIN_SECONDS:
            once_more(connection, lambda: try_to_write(connection))
            ours.wrote_at = time.monotonic()
    return {"status": "ok"}
