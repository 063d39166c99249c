"""A Job API in front of a team's background work.

``JobAPI`` adds the API to a Flask application, ``create_app`` makes an
application that is nothing but the API. A host application calls the services
``accounts``, ``jobs``, ``keys``, ``queue`` and ``workspaces`` on its own session.
All are loaded when first used, so that importing a part of the package that
needs no web framework loads none.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .extension import JobAPI, create_app
    from .services import accounts, jobs, keys, queue, workspaces

__all__ = [
    "JobAPI",
    "__version__",
    "accounts",
    "create_app",
    "jobs",
    "keys",
    "queue",
    "workspaces",
]

_SERVICES = ("accounts", "jobs", "keys", "queue", "workspaces")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return metadata.version("jobapi")
        except metadata.PackageNotFoundError:
            return metadata.version("jobapi-client")
    if name in _SERVICES:
        return import_module(f".services.{name}", __name__)
    if name in __all__:
        return getattr(import_module(".extension", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
