"""POST /v1/chat/completions: what is said, and OpenAI's order of chunks."""

from collections import defaultdict
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.frontend.generation_defaults import GenerationDefaults
from tests.server.world import TEMPLATE, World, events

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
PROMPT = "<|im_start|>user:hello<|im_end|><|im_start|>assistant:"


def ask(http: TestClient, **fields: Any) -> Any:
    body = {"messages": HELLO, "seed": 1, "max_tokens": 6, **fields}
    response = http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: TestClient, **fields: Any) -> list[Any]:
    body = {"messages": HELLO, "seed": 1, "max_tokens": 6, "stream": True, **fields}
    with http.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200
        chunks = events(response.iter_lines())
    assert chunks.pop() is None, "no [DONE]"
    return chunks


def prompt_of(http: TestClient, **fields: Any) -> str:
    """The prompt that a chat comes to, in the model's own words."""
    body = {"messages": HELLO, **fields}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    text: str = http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    return text


def test_the_message_is_what_the_model_says(http: TestClient, world: World) -> None:
    prompt_ids = world.tokenizer.encode(PROMPT)
    ids = world.expected_ids(prompt_ids, seed=1, max_tokens=6)
    answer = ask(http)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == world.text(ids)
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == len(prompt_ids)


def test_continuous_usage_counts_what_has_been_sent(http: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = stream(http, n=2, return_token_ids=True, stream_options=options)
    sent = [0, 0]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        # Clients add them up without looking whether they are null.
        sent[choice["index"]] += len(choice.get("token_ids", ()))
        assert chunk["usage"]["completion_tokens"] == sent[choice["index"]]
        assert chunk["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"]
    assert chunks[0]["usage"]["completion_tokens"] == 0
    assert last["usage"]["completion_tokens"] == sum(sent) == 12


def test_without_include_usage_a_stream_has_no_usage(http: TestClient) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    chunks = stream(http, stream_options=options)
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


def test_fields_that_were_not_asked_for_are_null_as_in_vllm(http: TestClient) -> None:
    answer = ask(http)
    names = ("service_tier", "prompt_logprobs", "prompt_token_ids", "prompt_text")
    assert {answer[name] for name in (*names, "kv_transfer_params", "metrics")} == {None}
    choice = answer["choices"][0]
    assert {choice[name] for name in ("logprobs", "stop_reason", "token_ids")} == {None}
    said = ("refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content")
    assert {choice["message"][name] for name in said} == {None}
    assert "tool_calls" not in choice["message"]
    first, *others = stream(http)
    assert first["prompt_token_ids"] is first["prompt_text"] is None
    for chunk in others:
        choice = chunk["choices"][0]
        assert choice["logprobs"] is choice["token_ids"] is None
        assert ("stop_reason" in choice) == (choice["finish_reason"] is not None)


def test_an_answer_with_its_nulls_can_be_sent_back(http: TestClient) -> None:
    message = ask(http)["choices"][0]["message"]
    assert ask(http, messages=[*HELLO, message, *HELLO])["choices"]


@pytest.mark.parametrize("top", [0, 3])
def test_tokens_asked_for_by_id_take_the_place_of_the_likeliest(http: TestClient, top: int) -> None:
    fields = {"logprobs": True, "top_logprobs": top, "logprob_token_ids": [5, 7, 5]}
    answer = ask(http, return_tokens_as_token_ids=True, **fields)
    for position in answer["choices"][0]["logprobs"]["content"]:
        named = [name for name in ("token_id:5", "token_id:7") if name != position["token"]]
        assert [each["token"] for each in position["top_logprobs"]] == [position["token"], *named]
        assert position["top_logprobs"][0]["logprob"] == position["logprob"]


def test_a_stream_is_role_then_content_then_finish_then_usage(http: TestClient) -> None:
    chunks = stream(http, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(choice["delta"].keys() == {"content"} for choice in choices[1:-1])
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert choices[-1]["delta"] == {}
    assert choices[-1]["finish_reason"] == "length"
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * len(choices)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


def test_a_stream_adds_up_to_the_whole_answer(http: TestClient) -> None:
    texts: dict[int, str] = defaultdict(str)
    for chunk in stream(http, n=3):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    whole = ask(http, n=3)["choices"]
    assert texts == {choice["index"]: choice["message"]["content"] for choice in whole}


def test_max_completion_tokens_wins_over_max_tokens(http: TestClient) -> None:
    answer = ask(http, max_completion_tokens=3, max_tokens=9)
    assert answer["usage"]["completion_tokens"] == 3


def test_without_a_limit_the_answer_may_fill_the_context(http: TestClient) -> None:
    answer = ask(http, max_tokens=None, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 128
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_models_end_token_stops_without_being_said(http: TestClient, world: World) -> None:
    prompt_ids, eos = world.tokenizer.encode(PROMPT), world.tokenizer.eos_ids[0]
    runs = ((seed, world.expected_ids(prompt_ids, seed=seed, max_tokens=20)) for seed in range(999))
    seed, ids = next((seed, ids) for seed, ids in runs if ids[-1] == eos)
    answer = ask(http, seed=seed, max_tokens=20)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == world.text(ids[:-1])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert answer["usage"]["completion_tokens"] == len(ids)


def test_logprobs_hold_token_bytes_and_alternatives(http: TestClient, world: World) -> None:
    prompt_ids = world.tokenizer.encode(PROMPT)
    ids = world.expected_ids(prompt_ids, seed=1, max_tokens=6)
    content = ask(http, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [-float(token) for token in ids]
    data = b"".join(bytes(entry["bytes"]) for entry in content)
    assert data == b"".join(map(world.tokenizer.token_bytes, ids))
    pieces = [c["choices"][0]["logprobs"] for c in stream(http, logprobs=True, top_logprobs=2)]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == content


def test_text_parts_are_joined_for_a_template_of_strings(http: TestClient) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    prompt = prompt_of(http, messages=[{"role": "user", "content": parts}])
    assert prompt == "<|im_start|>user:one\ntwo<|im_end|><|im_start|>assistant:"


def test_developer_is_system_for_a_template_that_does_not_know_it(http: TestClient) -> None:
    prompt = prompt_of(http, messages=[{"role": "developer", "content": "be brief"}, *HELLO])
    assert prompt.startswith("<|im_start|>system:be brief<|im_end|>")


def test_a_final_message_can_be_continued(http: TestClient) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "the quick"}]
    fields = {"messages": messages, "continue_final_message": True}
    assert prompt_of(http, **fields).endswith("<|im_start|>assistant:the quick")
    said = ask(http, **fields)["choices"][0]["message"]["content"]
    echoed = ask(http, **fields, echo=True)["choices"][0]["message"]["content"]
    assert echoed == "the quick" + said
    deltas = [c["choices"][0]["delta"] for c in stream(http, **fields, echo=True)]
    assert "".join(delta.get("content", "") for delta in deltas) == echoed


def test_the_generation_prompt_can_be_left_out(http: TestClient) -> None:
    assert prompt_of(http, add_generation_prompt=False) == "<|im_start|>user:hello<|im_end|>"


def test_template_options_are_passed_on(http: TestClient) -> None:
    thinking = prompt_of(http, chat_template_kwargs={"enable_thinking": False})
    assert thinking == PROMPT + "<think></think>"


def test_tools_are_rendered_unless_none_may_be_called(http: TestClient) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "strict": None}}]
    shown = '<|im_start|>tools[{"type": "function", "function": {"name": "weather"}}]<|im_end|>'
    assert prompt_of(http, tools=tools) == shown + PROMPT
    assert prompt_of(http, tools=tools, tool_choice="auto") == shown + PROMPT
    assert prompt_of(http, tools=tools, tool_choice="none") == PROMPT
    assert ask(http, tools=tools)["choices"][0]["message"]["content"]


def test_an_answer_can_be_sent_back_as_it_came(http: TestClient) -> None:
    message = ask(http)["choices"][0]["message"]
    messages = [
        *HELLO,
        {**message, "annotations": [], "audio": None, "function_call": None},
        *HELLO,
    ]
    assert ask(http, messages=messages)["choices"][0]["message"]["content"]


def test_token_ids_come_when_asked_for(http: TestClient, world: World) -> None:
    prompt_ids = [*world.tokenizer.encode(PROMPT)]
    ids = world.expected_ids(tuple(prompt_ids), seed=1, max_tokens=6)
    answer = ask(http, return_token_ids=True)
    assert answer["prompt_token_ids"] == prompt_ids
    assert answer["choices"][0]["token_ids"] == ids
    chunks = stream(http, return_token_ids=True)
    assert chunks[0]["prompt_token_ids"] == prompt_ids
    assert [t for c in chunks for t in c["choices"][0].get("token_ids", ())] == ids


def test_prompt_logprobs_are_given_at_the_top(http: TestClient, world: World) -> None:
    rows = ask(http, prompt_logprobs=0)["prompt_logprobs"]
    assert rows[0] is None
    assert len(rows) == len(world.tokenizer.encode(PROMPT))


def test_a_model_without_a_template_takes_no_chats() -> None:
    with World(has_chat=False) as world:
        response = world.http().post(PATH, json={"messages": HELLO})
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]


def test_what_the_template_refuses_is_the_requests_fault() -> None:
    rule = "{% if messages | length > 2 %}{{ raise_exception('two at most') }}{% endif %}"
    with World(template=TEMPLATE + rule) as world:
        chat = [*HELLO, {"role": "assistant", "content": "hi"}, *HELLO]
        response = world.http().post(PATH, json={"messages": chat})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages"
    words = "the model's chat template cannot take these messages: two at most"
    assert error["message"] == words


@pytest.mark.parametrize("stream_it", [False, True])
def test_a_row_that_fails_on_the_device_is_an_error_of_the_server(stream_it: bool) -> None:
    with World(fails=lambda row, tokens: len(tokens) > 45) as world:
        http = world.http()
        body = {"messages": HELLO, "max_tokens": 60, "stream": stream_it, "ignore_eos": True}
        with http.stream("POST", PATH, json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        if not stream_it:
            assert response.status_code == 500
            assert '"code":"internal_error"' in lines[0]
            return
    assert response.status_code == 200
    assert lines[-1].startswith('data: {"error":{')
    assert "data: [DONE]" not in lines


def test_a_default_limit_of_the_models_authors_does_not_refuse_a_chat() -> None:
    with World(defaults=GenerationDefaults(max_new_tokens=128)) as world:
        body = {"messages": HELLO, "ignore_eos": True}
        usage = world.http().post(PATH, json=body).json()["usage"]
        assert usage["total_tokens"] == 128
        refused = world.http().post(PATH, json={**body, "max_completion_tokens": 128})
        assert refused.status_code == 400
