"""Logs: one line per request, as JSON or as text, with the request's id."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

from flask import g, has_request_context

logger = logging.getLogger("jobapi")

_TEXT = {
    "format": "%(asctime)s %(levelname)s %(message)s [%(request_id)s]",
    "datefmt": "%Y-%m-%d %H:%M:%S",
}


class RequestIdFilter(logging.Filter):
    """Gives each record the id of its request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ``request_id``; every record passes."""
        if not hasattr(record, "request_id"):
            known = g.get("jobapi_request_id") if has_request_context() else None
            record.request_id = known or "-"
        return True


# On the logger itself, so that a host application's handlers have it too.
logger.addFilter(RequestIdFilter())


def dict_config(level: str, form: str, *, server_level: str | None = None) -> dict[str, Any]:
    """Logging of the standalone service; ``server_level`` is gunicorn's level, if it differs."""
    json_formatter = {
        "()": "pythonjsonlogger.orjson.OrjsonFormatter",
        "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
        "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
        "datefmt": "%Y-%m-%dT%H:%M:%S%z",
    }
    handler = {
        "class": "logging.StreamHandler",
        "stream": "ext://sys.stderr",
        "formatter": form,
        "filters": ["request_id"],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": RequestIdFilter}},
        "formatters": {"json": json_formatter, "text": _TEXT},
        "handlers": {"stderr": handler},
        "loggers": {
            "jobapi": {"level": level, "handlers": ["stderr"], "propagate": False},
            "gunicorn.error": {
                "level": server_level or level,
                "handlers": ["stderr"],
                "propagate": False,
            },
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }


def configure(level: str, form: str) -> None:
    """Set up the logging of the standalone service."""
    logging.config.dictConfig(dict_config(level, form))
