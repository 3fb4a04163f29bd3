"""Embeddings and rankings, through OpenAI's client and LiteLLM."""

import base64
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.world import KEY, MODEL, TEXTS, Address


@pytest.fixture(scope="module")
def client(embedder: Address) -> Iterator[Any]:
    """OpenAI's, untyped: its overloads do not take fields that calls share."""
    with openai.OpenAI(base_url=embedder.v1, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def vectors(client: Any) -> list[list[float]]:
    """Those of TEXTS, by OpenAI's client."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    return [each.embedding for each in answer.data]


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [number / length for number in vector]


def cosine(a: list[float], b: list[float]) -> float:
    return math.sumprod(unit(a), unit(b))


# openai


def test_a_text_has_the_same_vector_alone_and_among_others(
    client: Any, vectors: list[list[float]]
) -> None:
    for text, vector in zip(TEXTS, vectors, strict=True):
        alone = client.embeddings.create(model=MODEL, input=text, encoding_format="float")
        assert alone.data[0].embedding == pytest.approx(vector, abs=1e-5)
    assert cosine(vectors[0], vectors[1]) < 0.99


def test_the_client_reads_base64_as_the_same_numbers(
    client: Any, vectors: list[list[float]]
) -> None:
    # By default it requests base64 and decodes it.
    decoded = client.embeddings.create(model=MODEL, input=TEXTS)
    assert [each.embedding for each in decoded.data] == [
        pytest.approx(v, abs=1e-6) for v in vectors
    ]
    packed = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="base64")
    assert len(base64.b64decode(packed.data[0].embedding)) == 4 * len(vectors[0])


def test_fewer_dimensions_are_the_first_ones_at_length_one(
    client: Any, vectors: list[list[float]]
) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=16)
    assert [each.embedding for each in answer.data] == [
        pytest.approx(unit(vector[:16]), abs=1e-6) for vector in vectors
    ]


def test_more_dimensions_than_there_are_is_the_clients_own_error(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model=MODEL, input="a", dimensions=100_000)
    assert wrong.value.param == "dimensions"


# LiteLLM


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_embeds(embedder: Address, vectors: list[list[float]], provider: str) -> None:
    litellm = pytest.importorskip("litellm")
    answer = litellm.embedding(
        model=f"{provider}/{MODEL}", input=TEXTS, api_base=embedder.v1, api_key=KEY
    )
    assert [each["embedding"] for each in answer.data] == [
        pytest.approx(vector, abs=1e-5) for vector in vectors
    ]
    assert answer.usage.prompt_tokens > len(TEXTS)


@pytest.mark.parametrize("provider", ["hosted_vllm", "jina_ai", "cohere"])
def test_litellm_ranks(embedder: Address, vectors: list[list[float]], provider: str) -> None:
    litellm = pytest.importorskip("litellm")
    answer = litellm.rerank(
        model=f"{provider}/{MODEL}",
        query=TEXTS[0],
        documents=TEXTS,
        top_n=2,
        # For Cohere's API it adds the version itself.
        api_base=embedder.url if provider == "cohere" else embedder.v1,
        api_key=KEY,
    )
    scores = [cosine(vectors[0], vector) for vector in vectors]
    best = sorted(range(len(TEXTS)), key=lambda index: -scores[index])[:2]
    assert [each["index"] for each in answer.results] == best
    found = [each["relevance_score"] for each in answer.results]
    assert found == pytest.approx([scores[index] for index in best], abs=1e-5)
    assert answer.results[0]["document"]["text"] == TEXTS[best[0]]
