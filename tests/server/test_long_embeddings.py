"""Embeddings of prompts beyond the context, in chunks."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from jaxserve.api.pooling import PoolingModel, PoolingParams, PoolingType
from jaxserve.frontend.pooling import answer_of_chunks
from tests.fakes import solo_vector
from tests.server.world import MAX_MODEL_LEN, World

PATH = "/v1/embeddings"
WIDTH = 8  # of the fake's vectors
MAX_EMBED_LEN = 3 * MAX_MODEL_LEN
POOLING = PoolingModel(
    type=PoolingType.MEAN, width=WIDTH, splits_prompts=True, max_embed_len=MAX_EMBED_LEN
)

type Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with World(pooling=POOLING) as world, world.http() as http:
        yield http


def embedding(ids: Sequence[int]) -> Floats:
    vector = np.frombuffer(solo_vector(tuple(ids)), np.float32)
    return vector / np.linalg.norm(vector)


def chunked(ids: Sequence[int]) -> Floats:
    """The mean of the chunks' embeddings, weighted by their lengths, at length one."""
    starts = range(0, len(ids), MAX_MODEL_LEN)
    chunks = [ids[start : start + MAX_MODEL_LEN] for start in starts]
    total = sum(len(chunk) * embedding(chunk) for chunk in chunks)
    return np.asarray(total / np.linalg.norm(total))


@pytest.mark.parametrize("length", [1, MAX_MODEL_LEN, MAX_MODEL_LEN + 1, MAX_EMBED_LEN])
def test_a_prompt_is_embedded_in_chunks_of_the_context(http: TestClient, length: int) -> None:
    ids = [5 + index % 200 for index in range(length)]
    answer = http.post(PATH, json={"input": [ids]}).json()
    [found] = answer["data"]
    np.testing.assert_allclose(found["embedding"], chunked(ids), atol=1e-6)
    assert answer["usage"]["prompt_tokens"] == length


def test_prompts_of_one_request_keep_their_order(http: TestClient) -> None:
    prompts = [[7] * 5, [8] * (2 * MAX_MODEL_LEN + 3), [9] * 2]
    data = http.post(PATH, json={"input": prompts}).json()["data"]
    assert [each["index"] for each in data] == [0, 1, 2]
    for each, ids in zip(data, prompts, strict=True):
        np.testing.assert_allclose(each["embedding"], chunked(ids), atol=1e-6)


def test_a_text_is_embedded_in_chunks(http: TestClient) -> None:
    body = {"input": "the quick brown fox " * MAX_MODEL_LEN, "truncate_prompt_tokens": None}
    refused = http.post(PATH, json=body).json()["error"]
    assert refused["code"] == "context_length_exceeded"
    assert f"{MAX_EMBED_LEN} tokens, the max_embed_len" in refused["message"]
    text = "the quick brown fox " * 40
    ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert MAX_MODEL_LEN < len(ids) < MAX_EMBED_LEN
    [found] = http.post(PATH, json={"input": text}).json()["data"]
    np.testing.assert_allclose(found["embedding"], chunked(ids), atol=1e-6)


def test_a_conversation_is_embedded_in_chunks(http: TestClient) -> None:
    messages = [{"role": "user", "content": "the quick brown fox " * 40}]
    chat = {"messages": messages, "add_generation_prompt": False}
    ids = http.post("/tokenize", json=chat).json()["tokens"]
    assert len(ids) > MAX_MODEL_LEN
    [found] = http.post(PATH, json={"messages": messages}).json()["data"]
    np.testing.assert_allclose(found["embedding"], chunked(ids), atol=1e-6)


def test_a_truncated_prompt_is_one_chunk(http: TestClient) -> None:
    body = {"input": [[7] * (2 * MAX_MODEL_LEN)], "truncate_prompt_tokens": -1}
    answer = http.post(PATH, json=body).json()
    assert answer["usage"]["prompt_tokens"] == MAX_MODEL_LEN


def test_the_mean_of_chunks_is_not_normalized_if_none_is_wanted() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 4.0]], np.float32)
    params = PoolingParams(use_activation=False)
    found = answer_of_chunks(POOLING, [each.tobytes() for each in vectors], [3, 1], params)
    np.testing.assert_allclose(found, [0.75, 1.0])
