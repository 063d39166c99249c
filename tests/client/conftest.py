"""A client of the application in this process."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from jobapi.client import Client

from ..factories import Desk


@pytest.fixture
def client(desk: Desk) -> Iterator[Client]:
    """A client with the desk's token, without a server between them."""
    transport = httpx2.WSGITransport(app=desk.world.app)
    with Client("http://service", token=desk.token, transport=transport) as client:
        yield client
