"""Labels, scores and rankings."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxserve.api.pooling import Activation, PoolingModel, PoolingType
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.pooling import Pairs, PoolingPrompts
from jaxserve.planning.token_scores import QWEN3_RERANKER_TEMPLATE
from tests.server.pooling import LABELS, TEXTS, WIDTH, post, raw, refusal, unit
from tests.server.world import World, tokenizer


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


RERANKER = PoolingModel(
    type=PoolingType.LAST,
    width=WIDTH,
    labels=("relevance",),
    activation=Activation.SIGMOID,
    pairs_are_chats=True,
)
PAIRS = """{{ instruction | default("find") }}
Q {{ (messages | selectattr("role", "equalto", "query") | first).content }}
D {{ (messages | selectattr("role", "equalto", "document") | first).content }} end"""


@pytest.fixture(scope="module")
def reranker() -> Iterator[TestClient]:
    with World(pooling=RERANKER, template=PAIRS) as world, world.http() as http:
        yield http


def relevance(prompt: str) -> float:
    return float(1 / (1 + np.exp(-raw(prompt)[0])))


def test_the_chat_template_renders_a_pair(reranker: TestClient) -> None:
    body = {"query": "a dog", "documents": ["the fox", "the tale"], "top_n": 1}
    for more, task in (
        ({}, "find"),
        ({"instruction": "look"}, "look"),
        ({"instruction": "look", "chat_template_kwargs": {"instruction": "seek"}}, "seek"),
    ):
        scores = [relevance(f"{task}\nQ a dog\nD {text} end") for text in ("the fox", "the tale")]
        (found,) = post(reranker, "/rerank", **body, **more)["results"]
        assert found["relevance_score"] == pytest.approx(max(scores), abs=1e-6)


def test_what_a_pairs_template_does_not_read_is_reported(
    reranker: TestClient, cross_encoder: TestClient
) -> None:
    body = {"text_1": "a dog", "text_2": "the fox", "instruction": "look"}
    response = reranker.post("/score", json={**body, "chat_template_kwargs": {"tone": "kind"}})
    assert response.headers["x-jaxserve-ignored"] == "chat_template_kwargs.tone"
    response = cross_encoder.post("/score", json=body)
    assert response.headers["x-jaxserve-ignored"] == "instruction"
    error = refusal(reranker, "/score", **body, chat_template_kwargs={"messages": []})
    assert error["param"] == "chat_template_kwargs"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_document_is_truncated_and_the_template_around_it_is_not(
    side: str, reranker: TestClient
) -> None:
    document = "the fox jumps over the dog " * 4
    words = tokenizer().shorten(document, 6, side=side)  # type: ignore[arg-type]
    assert tokenizer().encode(words) == (
        tokenizer().encode(document)[:6] if side == "right" else tokenizer().encode(document)[-6:]
    )
    num_others = len(tokenizer().encode("find\nQ a dog\nD  end"))
    for limit in ({"max_tokens_per_doc": 6}, {"truncate_prompt_tokens": num_others + 6}):
        answer = post(
            reranker, "/score", text_1="a dog", text_2=document, truncation_side=side, **limit
        )
        expected = relevance(f"find\nQ a dog\nD {words} end")
        assert answer["data"][0]["score"] == pytest.approx(expected, abs=1e-6)


def test_the_prompt_of_a_qwen3_reranker_is_the_published_one() -> None:
    template = ChatTemplate(tokenizer(QWEN3_RERANKER_TEMPLATE))
    messages = [{"role": "query", "content": "who?"}, {"role": "document", "content": "me"}]
    system = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct"
        ' provided. Note that the answer can only be "yes" or "no".'
    )
    for variables, task in (
        ({}, "Given a web search query, retrieve relevant passages that answer the query"),
        ({"instruction": "find people"}, "find people"),
    ):
        assert template.render(messages, add_generation_prompt=False, variables=variables) == (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<Instruct>: {task}\n"
            "<Query>: who?\n<Document>: me<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>"
            "\n\n"
        )


def test_pairs_without_the_template_that_renders_them_are_refused() -> None:
    with World(pooling=RERANKER, has_chat=False) as world, world.http() as http:
        assert refusal(http, "/score", text_1="a", text_2="b")["param"] == "model"
