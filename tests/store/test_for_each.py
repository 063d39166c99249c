"""Queries that run once for each of many rows."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest
from sqlalchemy.dialects import postgresql

from jobapi import services
from jobapi.store.for_each import ForEach

ALL = {
    f"{module.name}.{name}": each
    for module in pkgutil.iter_modules(services.__path__)
    for name, each in vars(import_module(f"jobapi.services.{module.name}")).items()
    if isinstance(each, ForEach)
}


@pytest.mark.parametrize("name", ALL)
def test_query_is_about_one_row_and_does_not_read_all_of_them_again(name: str) -> None:
    """A query inside of the query has to be correlated, or it would run for all rows each time."""
    query = ALL[name]._statement("postgresql").statement
    assert str(query.compile(dialect=postgresql.dialect())).count("json_to_recordset(") == 1
