"""Servers of pooling models, and requests to them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.testclient import TestClient

from jaxserve.api.pooling import PoolingModel
from tests.fakes import solo_vector
from tests.server.world import World, tokenizer

WIDTH = 8  # of the fake's vectors
LABELS = tuple(f"label {i}" for i in range(WIDTH))
TEXTS = ["once upon a time", "the lazy dog", "the quick brown fox"]


type Floats = NDArray[np.float32]


def served(pooling: PoolingModel) -> Iterator[TestClient]:
    with World(pooling=pooling) as world, world.http() as http:
        yield http


def post(http: TestClient, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(http: TestClient, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def raw(text: str, *, second: str = "") -> Floats:
    ids = tokenizer().encode(text) + tokenizer().encode(second)
    return np.frombuffer(solo_vector(ids), np.float32)


def unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)


def embeddings(answer: Any) -> list[Floats]:
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return [np.array(each["embedding"], np.float32) for each in answer["data"]]
