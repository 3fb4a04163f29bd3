"""Labels, scores and rankings."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxserve.api.pooling import PoolingModel, PoolingType
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.pooling import Pairs, PoolingPrompts
from tests.server.pooling import LABELS, TEXTS, WIDTH, post, raw, refusal, unit
from tests.server.world import tokenizer


def test_labels_have_probabilities(classifier: TestClient) -> None:
    answer = post(classifier, "/classify", input=TEXTS)
    for text, found in zip(TEXTS, answer["data"], strict=True):
        expected = np.exp(raw(text) - raw(text).max())
        np.testing.assert_allclose(found["probs"], expected / expected.sum(), rtol=1e-5)
        assert found["label"] == LABELS[int(expected.argmax())]
        assert found["num_classes"] == WIDTH


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/embeddings", {"input": "a"}), ("/score", {"text_1": "a", "text_2": "b"})],
)
def test_a_model_of_many_labels_neither_embeds_nor_scores(
    classifier: TestClient, path: str, body: dict[str, Any]
) -> None:
    assert refusal(classifier, path, **body)["param"] == "model"


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_embeddings_score_a_pair_by_their_cosine(embedder: TestClient, path: str) -> None:
    answer = post(embedder, path, text_1=TEXTS[0], text_2=TEXTS[1:])
    expected = [unit(raw(TEXTS[0])) @ unit(raw(text)) for text in TEXTS[1:]]
    np.testing.assert_allclose([each["score"] for each in answer["data"]], expected, atol=1e-6)


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents")]
)
def test_a_cross_encoder_reads_a_pair_as_one_prompt(
    cross_encoder: TestClient, names: tuple[str, str]
) -> None:
    answer = post(cross_encoder, "/score", **{names[0]: TEXTS[:2], names[1]: TEXTS[1:]})
    logits = [raw(a, second=b)[0] for a, b in pairwise(TEXTS)]
    expected = 1 / (1 + np.exp(-np.array(logits)))
    np.testing.assert_allclose([each["score"] for each in answer["data"]], expected, atol=1e-6)


def test_pairs_that_do_not_match_up_are_refused(embedder: TestClient) -> None:
    error = refusal(embedder, "/score", text_1=["a", "b"], text_2=["a", "b", "c"])
    assert error["param"] == "text_1"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked_by_their_score(embedder: TestClient, path: str) -> None:
    answer = post(embedder, path, query="a dog", documents=TEXTS)
    scores = [float(unit(raw("a dog")) @ unit(raw(text))) for text in TEXTS]
    order = sorted(range(3), key=lambda i: -scores[i])
    assert [each["index"] for each in answer["results"]] == order
    found = [each["relevance_score"] for each in answer["results"]]
    np.testing.assert_allclose(found, sorted(scores, reverse=True), atol=1e-6)
    assert [each["document"]["text"] for each in answer["results"]] == [TEXTS[i] for i in order]


def test_the_first_of_a_ranking_are_enough_and_documents_may_be_objects(
    embedder: TestClient,
) -> None:
    documents = [{"text": text} for text in TEXTS]
    answer = post(
        embedder, "/rerank", query="a", documents=documents, top_n=2, return_documents=False
    )
    assert len(answer["results"]) == 2
    assert all(each.keys() == {"index", "relevance_score"} for each in answer["results"])


def test_each_text_of_a_pair_can_be_cut(cross_encoder: TestClient, embedder: TestClient) -> None:
    for http in (cross_encoder, embedder):
        pair = {"query": TEXTS[0], "documents": [TEXTS[1] * 3]}
        whole = post(http, "/rerank", **pair)["usage"]["prompt_tokens"]
        cut = post(http, "/rerank", **pair, max_tokens_per_doc=2)["usage"]["prompt_tokens"]
        assert whole - cut == len(tokenizer().encode(TEXTS[1] * 3)) - 2
        both = post(http, "/rerank", **pair, max_tokens_per_doc=2, max_tokens_per_query=1)
        assert both["usage"]["prompt_tokens"] == 3
        assert refusal(http, "/rerank", **pair, max_tokens_per_doc=-5)["param"]


@pytest.mark.parametrize("labels", [(), ("relevance",)], ids=["embeddings", "cross-encoder"])
def test_the_pair_that_is_too_long_is_named(labels: tuple[str, ...]) -> None:
    pooling = PoolingModel(type=PoolingType.LAST, width=WIDTH, labels=labels)
    pairs = Pairs(pooling=pooling, firsts=["a"], seconds=["b", "c", "fox " * 200])
    prompts = PoolingPrompts(
        tokenizer=tokenizer(), pooling=pooling, max_model_len=64, vocab_size=320, param="prompts"
    )
    with pytest.raises(InvalidRequestError) as caught:
        pairs.requests(prompts)
    assert caught.value.__notes__ == ["in pair 2 of 3, counted from 0"]
