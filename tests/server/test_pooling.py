"""Embeddings, scores, rankings and labels: what the server makes of the vectors of prompts."""

import base64
import json
import sys
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from jaxserve.api.pooling import PoolingModel, PoolingType
from jaxserve.server.pooling.vector_formats import DTYPES
from tests.data import needs_data
from tests.fakes import solo_vector
from tests.server.pooling import LABELS, TEXTS, WIDTH, embeddings, post, raw, refusal, unit
from tests.server.test_openai_spec import check
from tests.server.world import MAX_MODEL_LEN, World, tokenizer


def test_a_text_gets_its_embedding_of_length_one(embedder: TestClient) -> None:
    answer = post(embedder, "/v1/embeddings", input=TEXTS[0])
    np.testing.assert_allclose(embeddings(answer)[0], unit(raw(TEXTS[0])), atol=1e-6)
    num_tokens = len(tokenizer().encode(TEXTS[0]))
    assert answer["usage"] == {
        "prompt_tokens": num_tokens,
        "total_tokens": num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["id"].startswith("embd-")


def test_a_list_of_texts_is_embedded_in_its_order(embedder: TestClient) -> None:
    found = embeddings(post(embedder, "/v1/embeddings", input=TEXTS))
    np.testing.assert_allclose(found, [unit(raw(text)) for text in TEXTS], atol=1e-6)


def test_token_ids_are_a_prompt_and_lists_of_them_several(embedder: TestClient) -> None:
    ids = [list(tokenizer().encode(text)) for text in TEXTS]
    one = embeddings(post(embedder, "/v1/embeddings", input=ids[0]))
    many = embeddings(post(embedder, "/v1/embeddings", input=ids))
    texts = embeddings(post(embedder, "/v1/embeddings", input=TEXTS))
    np.testing.assert_array_equal(one, texts[:1])
    np.testing.assert_array_equal(many, texts)


def test_base64_is_the_same_numbers(embedder: TestClient) -> None:
    answer = post(embedder, "/v1/embeddings", input=TEXTS[0], encoding_format="base64")
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(
        found, embeddings(post(embedder, "/v1/embeddings", input=TEXTS[0]))[0]
    )


def test_fewer_dimensions_are_the_first_ones_at_length_one(embedder: TestClient) -> None:
    found = embeddings(post(embedder, "/v1/embeddings", input=TEXTS[0], dimensions=3))
    np.testing.assert_allclose(found[0], unit(raw(TEXTS[0])[:3]), atol=1e-6)


@pytest.mark.parametrize("field", ["normalize", "use_activation"])
def test_embeddings_are_as_the_model_made_them_where_that_is_wanted(
    embedder: TestClient, field: str
) -> None:
    found = embeddings(post(embedder, "/v1/embeddings", input=TEXTS[0], **{field: False}))
    np.testing.assert_array_equal(found[0], raw(TEXTS[0]))


@pytest.mark.parametrize("limit", [5, -1])
def test_a_longer_prompt_is_cut_where_that_is_wanted(embedder: TestClient, limit: int) -> None:
    text = TEXTS[0] * 100
    answer = post(embedder, "/v1/embeddings", input=text, truncate_prompt_tokens=limit)
    kept = tokenizer().encode(text)[: limit if limit > 0 else MAX_MODEL_LEN]
    vector = np.frombuffer(solo_vector(kept), np.float32)
    np.testing.assert_allclose(embeddings(answer)[0], unit(vector), atol=1e-6)


def test_more_inputs_than_the_engines_queue_holds_are_answered() -> None:
    ids = [[1 + i % 300, 1 + i // 300] for i in range(400)]
    pooling = PoolingModel(type=PoolingType.LAST, width=WIDTH)
    with World(pooling=pooling, max_queued_requests=300) as world, world.http() as http:
        found = embeddings(post(http, "/v1/embeddings", input=ids))
    expected = [unit(np.frombuffer(solo_vector(tuple(each)), np.float32)) for each in ids]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "required"),
        ({"input": ""}, "input", "not empty"),
        ({"input": []}, "input", "not empty"),
        ({"input": ["a", ""]}, "input", "not empty"),
        ({"input": [[]]}, "input", "not empty"),
        ({"input": [1, "a"]}, "input", "token ids"),
        ({"input": 5}, "input", "token ids"),
        ({"input": [-1]}, "input", "-1"),
        ({"input": [10**6]}, "input", "319"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": "a " * MAX_MODEL_LEN}, "input", "maximum context length is 128"),
        ({"input": "a " * MAX_MODEL_LEN}, "input", "Please reduce the length of the input prompt"),
        ({"input": "a", "dimensions": WIDTH + 1}, "dimensions", "8"),
        ({"input": "a", "dimensions": 0}, "dimensions", "0"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "float"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        ({"input": "a", "truncate_prompt_tokens": 129}, "truncate_prompt_tokens", "128"),
        ({"input": "a", "truncate_prompt_tokens": 129}, "truncate_prompt_tokens", "smaller"),
        ({"input": "a", "priority": 3}, "priority", "3"),
        ({"messages": [{"role": "user", "content": "a"}], "input": "b"}, "input", "messages"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    embedder: TestClient, body: dict[str, Any], param: str, said: str
) -> None:
    error = refusal(embedder, "/v1/embeddings", **body)
    assert error["param"] == param
    assert said in error["message"]


def test_a_model_that_generates_says_how_to_start_one_that_embeds(http: TestClient) -> None:
    assert "--runner pooling" in refusal(http, "/v1/embeddings", input="a")["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_model_that_embeds_generates_nothing(embedder: TestClient, path: str) -> None:
    body = (
        {"prompt": "a"} if "chat" not in path else {"messages": [{"role": "user", "content": "a"}]}
    )
    assert "--runner generate" in refusal(embedder, path, max_tokens=2, **body)["message"]


@needs_data
@pytest.mark.parametrize("fields", [{}, {"encoding_format": "base64"}, {"dimensions": 4}])
def test_embeddings_are_openais(embedder: TestClient, fields: dict[str, Any]) -> None:
    answer = post(embedder, "/v1/embeddings", model="alias", input=TEXTS, **fields)
    if fields.get("encoding_format") == "base64":
        # The document knows floats only, though its own client asks for base64.
        for each in answer["data"]:
            each["embedding"] = [0.0]
    check(answer, "CreateEmbeddingResponse")


def test_openais_client_embeds() -> None:
    pooling = PoolingModel(type=PoolingType.LAST, width=WIDTH)
    with (
        World(pooling=pooling) as world,
        world.listening() as address,
        openai.OpenAI(base_url=f"{address.url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.embeddings.create(model="tiny/model", input=TEXTS, dimensions=5)
        np.testing.assert_allclose(
            [each.embedding for each in answer.data],
            [unit(raw(text)[:5]) for text in TEXTS],
            atol=1e-6,
        )
        with pytest.raises(openai.BadRequestError) as wrong:
            client.embeddings.create(model="tiny/model", input="a", dimensions=99)
        assert wrong.value.param == "dimensions"


def test_a_chat_is_embedded_as_its_template_renders_it(embedder: TestClient) -> None:
    chat = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    answer = post(embedder, "/v1/embeddings", messages=chat)
    prompt = f"<|im_start|>user:{TEXTS[0]}<|im_end|><|im_start|>assistant:{TEXTS[1]}<|im_end|>"
    ids = tokenizer().encode(prompt, add_special_tokens=False)
    expected = unit(np.frombuffer(solo_vector(ids), np.float32))
    np.testing.assert_allclose(embeddings(answer)[0], expected, atol=1e-6)
    longer = post(embedder, "/v1/embeddings", messages=chat[:1], add_generation_prompt=True)
    assert longer["usage"]["prompt_tokens"] > len(tokenizer().encode(TEXTS[0]))
    error = refusal(embedder, "/v1/embeddings", messages=chat, input="both")
    assert error["param"] == "input"


def test_a_chat_is_classified(classifier: TestClient) -> None:
    chat = [{"role": "user", "content": TEXTS[0]}]
    (found,) = post(classifier, "/classify", messages=chat)["data"]
    assert found["num_classes"] == WIDTH
    assert sum(found["probs"]) == pytest.approx(1.0)


@pytest.mark.parametrize("embed_dtype", sorted(DTYPES))
@pytest.mark.parametrize("endianness", ["native", "little", "big"])
def test_numbers_are_written_in_the_type_and_order_that_is_asked_for(
    embedder: TestClient, embed_dtype: str, endianness: str
) -> None:
    form = {"embed_dtype": embed_dtype, "endianness": endianness}
    plain = embeddings(post(embedder, "/v1/embeddings", input=TEXTS))
    coded = post(embedder, "/v1/embeddings", input=TEXTS, encoding_format="base64", **form)
    blobs = [base64.b64decode(each["embedding"]) for each in coded["data"]]
    body = {"input": TEXTS, "encoding_format": "bytes", **form}
    response = embedder.post("/v1/embeddings", json=body)
    metadata = json.loads(response.headers["metadata"])
    assert metadata["usage"]["prompt_tokens"] == coded["usage"]["prompt_tokens"]
    bare = embedder.post("/v1/embeddings", json={**body, "encoding_format": "bytes_only"})
    assert "metadata" not in bare.headers
    assert bare.content == response.content
    dtype = np.dtype(DTYPES[embed_dtype])
    swaps = endianness not in {"native", sys.byteorder}
    for place, blob, expected in zip(metadata["data"], blobs, plain, strict=True):
        assert response.content[place["start"] : place["end"]] == blob
        words = np.frombuffer(blob, f"u{dtype.itemsize}")
        numbers = (words.byteswap() if swaps else words).view(dtype).astype(np.float32)
        assert place["shape"] == [len(numbers)]
        np.testing.assert_allclose(numbers, expected, atol=0.07)


def test_a_prompt_is_padded_to_the_context_or_to_where_it_would_be_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = PoolingModel(type=PoolingType.LAST, width=WIDTH)
    with World(pooling=model) as world, world.http() as http:
        monkeypatch.setattr(type(world.tokenizer), "pad_id", 3)

        def num_tokens(**fields: Any) -> int:
            answer = post(http, "/v1/embeddings", input="once", **fields)
            return int(answer["usage"]["prompt_tokens"])

        assert num_tokens(padding="max_length") == MAX_MODEL_LEN
        assert num_tokens(padding="max_length", truncate_prompt_tokens=9) == 9
        assert num_tokens(padding="do_not_pad") == len(tokenizer().encode("once"))
        assert (
            refusal(http, "/v1/embeddings", input="once", padding="longest")["param"] == "padding"
        )


def test_padding_needs_a_padding_token(embedder: TestClient) -> None:
    error = refusal(embedder, "/v1/embeddings", input="once", padding="max_length")
    assert error["param"] == "padding"


def test_the_side_of_truncation_says_what_is_dropped(embedder: TestClient) -> None:
    ids = tokenizer().encode(TEXTS[0])
    for prompt in (TEXTS[0], list(ids)):
        for side, kept in (("left", ids[-2:]), ("right", ids[:2])):
            fields = {"truncate_prompt_tokens": 2, "truncation_side": side}
            answer = post(embedder, "/v1/embeddings", input=prompt, **fields)
            expected = unit(np.frombuffer(solo_vector(kept), np.float32))
            np.testing.assert_allclose(embeddings(answer)[0], expected, atol=1e-6)


def test_pooling_gives_vectors_whatever_the_model_is_for(
    embedder: TestClient, classifier: TestClient
) -> None:
    for http, task, other in ((embedder, "embed", "classify"), (classifier, "classify", "embed")):
        answer = post(http, "/pooling", input=TEXTS, task=task)
        assert answer["id"].startswith("pool-")
        assert [each["object"] for each in answer["data"]] == ["pooling"] * 3
        assert {len(each["data"]) for each in answer["data"]} == {WIDTH}
        error = refusal(http, "/pooling", input=TEXTS, task=other)
        assert error["message"].startswith(f"Unsupported task: '{other}'")


def test_coheres_embeddings_are_openais_in_other_types(embedder: TestClient) -> None:
    types = ["float", "binary", "ubinary", "base64"]
    answer = post(embedder, "/v2/embed", texts=TEXTS, embedding_types=types)
    expected = embeddings(post(embedder, "/v1/embeddings", input=TEXTS))
    found = answer["embeddings"]
    np.testing.assert_array_equal(np.array(found["float"], np.float32), expected)
    decoded = [np.frombuffer(base64.b64decode(each), "<f4") for each in found["base64"]]
    np.testing.assert_array_equal(decoded, expected)
    bits = np.packbits(np.array(expected) >= 0, axis=1)
    assert found["ubinary"] == bits.tolist()
    assert found["binary"] == (bits.astype(int) - 128).tolist()
    assert answer["texts"] == TEXTS
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["meta"]["billed_units"]["input_tokens"] > 0
    assert answer["response_type"] == "embeddings_by_type"


def test_coheres_texts_are_cut_on_the_side_that_is_asked_for(embedder: TestClient) -> None:
    ids = tokenizer().encode(TEXTS[0])
    for truncate, kept in (("START", ids[-3:]), ("END", ids[:3])):
        fields = {"texts": TEXTS[:1], "max_tokens": 3, "truncate": truncate}
        (found,) = post(embedder, "/v2/embed", **fields)["embeddings"]["float"]
        expected = unit(np.frombuffer(solo_vector(kept), np.float32))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    long = "once upon a time " * MAX_MODEL_LEN
    assert post(embedder, "/v2/embed", texts=[long])
    assert refusal(embedder, "/v2/embed", texts=[long], truncate="NONE")["param"] == "texts"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"texts": TEXTS, "inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "texts"),
        ({}, "texts"),
        ({"texts": TEXTS, "input_type": "nonexistent"}, "input_type"),
        ({"texts": TEXTS, "images": ["data:"]}, "images"),
        ({"texts": TEXTS, "embedding_types": ["int4"]}, "embedding_types[0]"),
        ({"texts": TEXTS, "output_dimension": 4, "embedding_types": ["binary"]}, "embedding_types"),
        ({"texts": [""]}, "texts"),
        ({"inputs": [{"content": [{"type": "text", "text": ""}]}]}, "inputs"),
    ],
)
def test_what_cohere_would_not_take_is_refused(
    embedder: TestClient, fields: dict[str, Any], param: str
) -> None:
    assert refusal(embedder, "/v2/embed", **fields)["param"] == param


def test_an_answer_is_known_by_the_requests_id(embedder: TestClient) -> None:
    assert post(embedder, "/v1/embeddings", input="once", request_id="mine")["id"] == "embd-mine"


def test_one_path_takes_what_a_pooling_model_is_asked(
    embedder: TestClient, classifier: TestClient, cross_encoder: TestClient
) -> None:
    assert embeddings(post(embedder, "/invocations", input=TEXTS))
    assert post(classifier, "/invocations", input=TEXTS)["data"][0]["label"] in LABELS
    pair = {"text_1": TEXTS[0], "text_2": TEXTS[1]}
    assert post(cross_encoder, "/invocations", **pair)["data"][0]["object"] == "score"
    ranking = {"query": TEXTS[0], "documents": TEXTS[1:]}
    assert len(post(cross_encoder, "/invocations", **ranking)["results"]) == 2
