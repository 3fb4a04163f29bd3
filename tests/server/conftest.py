"""Servers shared by the tests that leave them as they were."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from jaxserve.api.pooling import Activation, PoolingModel, PoolingType
from tests.server.pooling import LABELS, WIDTH, served
from tests.server.world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="session")
def http(world: World) -> Iterator[TestClient]:
    with world.http() as client:
        yield client


@pytest.fixture(scope="module")
def embedder() -> Iterator[TestClient]:
    yield from served(PoolingModel(type=PoolingType.LAST, width=WIDTH))


@pytest.fixture(scope="module")
def classifier() -> Iterator[TestClient]:
    yield from served(
        PoolingModel(
            type=PoolingType.LAST, width=WIDTH, labels=LABELS, activation=Activation.SOFTMAX
        )
    )


@pytest.fixture(scope="module")
def cross_encoder() -> Iterator[TestClient]:
    yield from served(
        PoolingModel(
            type=PoolingType.LAST, width=1, labels=("relevance",), activation=Activation.SIGMOID
        )
    )
