"""POST /v1/completions: the same answer whole, as a stream, and by the model's definition."""

from collections import defaultdict
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.frontend.generation_defaults import GenerationDefaults
from tests.server.world import World, events

PATH = "/v1/completions"
PROMPT = "once upon a time"


def ask(http: TestClient, **fields: Any) -> Any:
    response = http.post(PATH, json={"prompt": PROMPT, "seed": 1, "max_tokens": 6, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: TestClient, **fields: Any) -> list[Any]:
    body = {"prompt": PROMPT, "seed": 1, "max_tokens": 6, "stream": True, **fields}
    with http.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        chunks = events(response.iter_lines())
    assert chunks.pop() is None, "no [DONE]"
    return chunks


def streamed_texts(chunks: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    return dict(texts)


def test_the_text_is_what_the_model_says(http: TestClient, world: World) -> None:
    prompt_ids = world.tokenizer.encode(PROMPT)
    ids = world.expected_ids(prompt_ids, seed=1, max_tokens=6)
    answer = ask(http)
    assert answer["choices"][0]["text"] == world.text(ids)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == len(prompt_ids)
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["total_tokens"] == len(prompt_ids) + 6


def test_a_prompt_of_ids_says_the_same_as_its_text(http: TestClient, world: World) -> None:
    ids = [*world.tokenizer.encode(PROMPT)]
    assert ask(http, prompt=ids)["choices"] == ask(http)["choices"]
    assert ask(http, prompt=[ids])["choices"] == ask(http)["choices"]


def test_a_stream_adds_up_to_the_whole_answer(http: TestClient) -> None:
    chunks = stream(http, n=3)
    whole = ask(http, n=3)
    assert streamed_texts(chunks) == {c["index"]: c["text"] for c in whole["choices"]}
    ends = [c for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(end["index"] for end in ends) == [0, 1, 2]


def test_each_prompt_of_several_is_answered_as_alone(http: TestClient) -> None:
    prompts = ["the quick", "brown fox", "jumps"]
    together = ask(http, prompt=prompts, n=2)
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3, 4, 5]
    for position, prompt in enumerate(prompts):
        alone = [choice["text"] for choice in ask(http, prompt=prompt, n=2)["choices"]]
        both = together["choices"][2 * position : 2 * position + 2]
        assert [choice["text"] for choice in both] == alone
    chunks = stream(http, prompt=prompts, n=2)
    assert streamed_texts(chunks) == {c["index"]: c["text"] for c in together["choices"]}


def test_every_chunk_has_the_same_head(http: TestClient) -> None:
    chunks = stream(http, request_id="mine")
    heads = {(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}
    assert len(heads) == 1
    assert chunks[0]["id"] == "cmpl-mine"
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_tells_its_usage_at_the_end_when_asked(http: TestClient) -> None:
    chunks = stream(http, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6


CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}


def test_continuous_usage_is_that_of_the_choice_up_to_its_chunk(http: TestClient) -> None:
    fields = {"prompt": ["the quick", "fox"], "n": 2, "ignore_eos": True}
    *chunks, last = stream(http, return_token_ids=True, stream_options=CONTINUOUS, **fields)
    sent = [0] * 4
    for chunk in chunks:
        (choice,) = chunk["choices"]
        sent[choice["index"]] += len(choice["token_ids"])
        usage = chunk["usage"]
        assert usage["completion_tokens"] == sent[choice["index"]]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert last["usage"]["completion_tokens"] == sum(sent) == 4 * 6
    prompts = {
        chunk["choices"][0]["index"] // 2: chunk["usage"]["prompt_tokens"] for chunk in chunks
    }
    assert last["usage"]["prompt_tokens"] == sum(prompts.values())


@pytest.mark.parametrize("fields", [{}, {"include_usage": False}])
def test_without_include_usage_a_stream_has_no_usage(
    http: TestClient, fields: dict[str, Any]
) -> None:
    chunks = stream(http, stream_options={"continuous_usage_stats": True, **fields})
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


# Every key of a whole answer of vLLM's that its clients may read, whether or not it says anything.
KEYS = {
    *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint"),
    *("usage", "kv_transfer_params", "metrics"),
}
CHOICE_KEYS = {
    *("index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids"),
    *("prompt_logprobs", "prompt_token_ids"),
}


def test_fields_that_were_not_asked_for_are_null_as_in_vllm(http: TestClient) -> None:
    answer = ask(http)
    assert answer.keys() == KEYS
    assert answer["choices"][0].keys() == CHOICE_KEYS
    for name in ("logprobs", "token_ids", "prompt_logprobs", "prompt_token_ids"):
        assert answer["choices"][0][name] is None
    for chunk in stream(http):
        (choice,) = chunk["choices"]
        assert choice.keys() == CHOICE_KEYS - {"prompt_logprobs"}
        assert choice["token_ids"] is choice["prompt_token_ids"] is None


def test_tokens_asked_for_by_id_take_the_place_of_the_likeliest(
    http: TestClient, world: World
) -> None:
    choice = ask(http, logprobs=3, logprob_token_ids=[5, 7, 5])["choices"][0]
    named = [world.tokenizer.token_text(token_id) for token_id in (5, 7)]
    rows = zip(choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True)
    for token, top in rows:
        assert [*top] == [token, *(name for name in named if name != token)]


def test_a_stop_string_ends_the_text_before_it(http: TestClient) -> None:
    text = ask(http, max_tokens=20)["choices"][0]["text"]
    stop = text[5:8]
    choice = ask(http, max_tokens=20, stop=stop)["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    kept = ask(http, max_tokens=20, stop=[stop], include_stop_str_in_output=True)["choices"][0]
    assert kept["text"] == text[: text.index(stop)] + stop


def test_a_stop_token_ends_the_text_and_is_told(http: TestClient, world: World) -> None:
    ids = world.expected_ids(world.tokenizer.encode(PROMPT), seed=1, max_tokens=6)
    choice = ask(http, stop_token_ids=[ids[3]])["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[3])
    assert choice["text"] == world.text(ids[: ids.index(ids[3])])


def test_logprobs_come_in_columns_of_equal_length(http: TestClient, world: World) -> None:
    choice = ask(http, logprobs=0)["choices"][0]
    columns = choice["logprobs"]
    assert {len(column) for column in columns.values()} == {6}
    ids = world.expected_ids(world.tokenizer.encode(PROMPT), seed=1, max_tokens=6)
    # The fake device gives a token minus its id as its log-probability.
    assert columns["token_logprobs"] == [-float(token) for token in ids]
    assert columns["tokens"][0] in columns["top_logprobs"][0]


def test_streamed_logprobs_are_those_of_the_whole_answer(http: TestClient) -> None:
    whole = ask(http, logprobs=1)["choices"][0]["logprobs"]
    pieces = [chunk["choices"][0]["logprobs"] for chunk in stream(http, logprobs=1)]
    for name, column in whole.items():
        assert [value for piece in pieces for value in piece[name]] == column


def test_tokens_can_be_written_as_ids(http: TestClient, world: World) -> None:
    ids = world.expected_ids(world.tokenizer.encode(PROMPT), seed=1, max_tokens=6)
    logprobs = ask(http, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{token}" for token in ids]


def test_echo_puts_the_prompt_before_the_answer(http: TestClient) -> None:
    text = ask(http)["choices"][0]["text"]
    assert ask(http, echo=True)["choices"][0]["text"] == PROMPT + text
    assert streamed_texts(stream(http, echo=True)) == {0: PROMPT + text}


@pytest.mark.parametrize("n", [1, 2])
def test_echo_with_logprobs_scores_the_prompt(http: TestClient, world: World, n: int) -> None:
    prompt_ids = world.tokenizer.encode(PROMPT)
    for choice in ask(http, echo=True, logprobs=0, n=n)["choices"]:
        logprobs = choice["logprobs"]
        scores = [None, *(-float(token) for token in prompt_ids[1:])]
        assert logprobs["token_logprobs"][: len(prompt_ids)] == scores
        assert "".join(logprobs["tokens"][: len(prompt_ids)]) == PROMPT
        assert len(logprobs["tokens"]) == len(prompt_ids) + 6
        assert logprobs["text_offset"][len(prompt_ids)] == len(PROMPT)


def test_echo_with_no_tokens_only_scores(http: TestClient, world: World) -> None:
    fields = {"echo": True, "logprobs": 0, "max_tokens": 0}
    answer = ask(http, **fields)
    choice = answer["choices"][0]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == len(world.tokenizer.encode(PROMPT))
    assert answer["usage"]["completion_tokens"] == 0
    assert streamed_texts(stream(http, **fields)) == {0: PROMPT}


def test_prompt_logprobs_are_vllms(http: TestClient, world: World) -> None:
    prompt_ids = world.tokenizer.encode(PROMPT)
    rows = ask(http, prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    assert rows[0] is None
    assert [[*row] for row in rows[1:]] == [[str(token)] for token in prompt_ids[1:]]
    assert rows[1][str(prompt_ids[1])]["rank"] == 1


def test_token_ids_come_when_asked_for(http: TestClient, world: World) -> None:
    prompt_ids = [*world.tokenizer.encode(PROMPT)]
    ids = world.expected_ids(tuple(prompt_ids), seed=1, max_tokens=6)
    choice = ask(http, return_token_ids=True)["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (prompt_ids, ids)
    pieces = [chunk["choices"][0] for chunk in stream(http, return_token_ids=True)]
    assert pieces[0]["prompt_token_ids"] == prompt_ids
    assert [token for piece in pieces for token in piece["token_ids"]] == ids


def test_a_prompt_seen_before_is_told_as_cached(http: TestClient) -> None:
    prompt = "the lazy dog jumps over the quick brown fox once upon a time"
    fields = {"prompt": prompt, "cache_salt": "cached"}
    assert ask(http, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert ask(http, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    other = ask(http, prompt=prompt, cache_salt="another")
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_without_max_tokens_the_limit_is_16(http: TestClient) -> None:
    assert ask(http, max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_special_tokens_of_the_text_are_special(http: TestClient, world: World) -> None:
    ids = ask(http, prompt="<|im_start|>a", return_token_ids=True)["choices"][0]["prompt_token_ids"]
    assert ids[0] == world.tokenizer.encode("<|im_start|>")[0]
    assert len(ids) == 2


def test_a_default_limit_is_lowered_to_what_is_left_of_the_context(http: TestClient) -> None:
    answer = http.post(PATH, json={"prompt": [5] * 120, "ignore_eos": True})
    assert answer.json()["usage"]["completion_tokens"] == 8
    refused = http.post(PATH, json={"prompt": [5] * 120, "max_tokens": 16})
    assert refused.status_code == 400


def test_the_request_wins_over_the_models_defaults_over_ours() -> None:
    with World(defaults=GenerationDefaults(temperature=0.0, top_k=7)) as world:
        http = world.http()
        ask(http)
        ask(http, temperature=0.5)
        params = [a.params for plan in world.runner.plans for a in plan.assignments]
    assert [(p.temperature, p.top_k, p.top_p) for p in params] == [(0.0, 7, 1.0), (0.5, 7, 1.0)]


def test_bad_words_and_the_rest_reach_the_device(http: TestClient, world: World) -> None:
    ask(http, bad_words=["fox"], logit_bias={"5": -3}, allowed_token_ids=[5, 6], min_p=0.1)
    last = [a for plan in world.runner.plans for a in plan.assignments][-1]
    fox, after_space = world.tokenizer.encode("fox"), world.tokenizer.encode(" fox")
    assert set(last.bad_word_ids) <= {fox, after_space}
    assert fox in last.bad_word_ids
    assert last.params.logit_bias == {5: -3}
    assert last.params.allowed_token_ids == (5, 6)
    assert last.params.min_p == 0.1


def test_a_lower_priority_number_goes_first() -> None:
    with World(policy="priority") as world:
        assert ask(world.http(), priority=-3)["choices"][0]["finish_reason"] == "length"
