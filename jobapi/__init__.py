"""A Job API in front of a team's background work.

``JobAPI`` adds the API to a Flask application, ``create_app`` makes an
application that is nothing but the API. Both are loaded when first used, so
that importing a part of the package that needs no web framework loads none.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .extension import JobAPI, create_app

__all__ = ["JobAPI", "__version__", "create_app"]

_LAZY = {"JobAPI": "extension", "create_app": "extension"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("jobapi")
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
