"""Health checks: ``/health``."""

from __future__ import annotations

import time
from typing import Any

from ..errors import Unavailable
from ..schemas import base as schemas
from ..store.readiness import schema_problem, try_to_write
from ..store.transactions import once_more
from .access import connect, public
from .base import state
from .blueprints import Blueprint

WRITE_AGAIN_SECONDS = 1.0
"""How long a successful write is remembered: the endpoint is public, and a write is costly."""

blp = Blueprint("health", "Health", "Probes for load balancers and orchestrators.")


@blp.operation("/health/live", summary="Liveness probe")
@public
@blp.response(200, schemas.Health)
def get_live() -> Any:
    """Return 200 as long as the process responds, whatever the state of the database."""
    return {"status": "ok"}


@blp.operation("/health/ready", summary="Readiness probe")
@public
@blp.response(200, schemas.Health)
def get_ready() -> Any:
    """Return 200 if the database is migrated and accepts a write, otherwise 503."""
    ours = state()
    with connect() as connection:
        problem = once_more(connection, lambda: schema_problem(connection))
        if problem is not None:
            raise Unavailable(problem)
        if time.monotonic() >= ours.wrote_at + WRITE_AGAIN_SECONDS:
            once_more(connection, lambda: try_to_write(connection))
            ours.wrote_at = time.monotonic()
    return {"status": "ok"}
