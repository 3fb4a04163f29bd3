"""One server for all tests that leave it as they found it."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.server.world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="session")
def http(world: World) -> Iterator[TestClient]:
    with world.http() as client:
        yield client
