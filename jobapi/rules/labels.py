"""Enumerations whose members have labels: the names that the API writes."""

from __future__ import annotations

from enum import IntEnum


class Labelled(IntEnum):
    """An enumeration of numbers, which the database stores, and labels."""

    @property
    def label(self) -> str:
        """The member's name as the API writes it."""
        return self.name.lower()
