"""Metrics for Prometheus: ``/metrics``, if ``JOBAPI_METRICS_TOKEN`` is set."""

from __future__ import annotations

import hmac
import logging
from typing import Any

from flask import Blueprint, Response, current_app, request
from sqlalchemy.exc import SQLAlchemyError

from ..errors import TokenInvalid, TokenMissing, Unavailable
from ..services import stats
from ..store.faults import judge, lacks_schema
from ..store.transactions import snapshot
from .access import bearer, connect
from .base import BLUEPRINT_PREFIX, state
from .problems import add_error_handlers

blp = Blueprint(f"{BLUEPRINT_PREFIX}metrics", __name__)
add_error_handlers(blp)

logger = logging.getLogger("jobapi")


@blp.get("/metrics")
def get_metrics() -> Response:
    """Return the metrics of all processes, and the queue depth from the database."""
    ours: Any = state()
    _check_token(ours.settings.metrics_token)
    if ours.metrics is None:
        raise Unavailable("This process cannot collect metrics. See its log for the reason.")
    if request.environ.get("wsgi.multiprocess") and not ours.metrics.is_shared:
        raise Unavailable(
            "The service runs in several processes, and this one has only its own metrics. Set "
            "PROMETHEUS_MULTIPROC_DIR to an empty directory before starting the service."
        )
    found = None
    try:
        with connect() as connection, snapshot(connection, planner={}) as tx:
            found = stats.backlog(tx)
    except SQLAlchemyError as error:
        if judge(error) is None and not lacks_schema(error):
            raise
        # The other metrics are needed most during an outage of the database.
        logger.warning("cannot read the queue depth from the database", exc_info=True)
    return current_app.response_class(
        ours.metrics.text(found), content_type=ours.metrics.content_type
    )


def _check_token(token: str) -> None:
    given = bearer()
    if not given:
        raise TokenMissing("Send the header: Authorization: Bearer TOKEN")
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise TokenInvalid("Wrong token. Send the one in JOBAPI_METRICS_TOKEN.")
