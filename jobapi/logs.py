"""Structured logs: one line for each request, each with the request's id."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

from flask import g, has_request_context

logger = logging.getLogger("jobapi")

_TEXT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


class RequestIdFilter(logging.Filter):
    """Gives each record the id of the request in which it was made."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add ``request_id``; nothing is filtered out."""
        if not hasattr(record, "request_id"):
            known = g.get("jobapi_request_id") if has_request_context() else None
            record.request_id = known or "-"
        return True


# On the logger itself, so that a host application's handlers have it too.
logger.addFilter(RequestIdFilter())


def dict_config(level: str, form: str) -> dict[str, Any]:
    """The logging of the standalone service, gunicorn's included."""
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
        "formatters": {"json": json_formatter, "text": {"format": _TEXT}},
        "handlers": {"stderr": handler},
        "loggers": {
            "jobapi": {"level": level, "handlers": ["stderr"], "propagate": False},
            "gunicorn.error": {"level": level, "handlers": ["stderr"], "propagate": False},
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }


def configure(level: str, form: str) -> None:
    """Set up logging for the standalone service."""
    logging.config.dictConfig(dict_config(level, form))
