"""Tools and reasoning in chats: what a model wrote reaches the client apart from its text."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from tests.chat.answers import form_of
from tests.server.tools import ASK, NOW, PATH, WEATHER, ask, deltas, refused, world
from tests.server.world import World, events

CALLS = (
    '<think>\nNorth.\n</think>\n\nI look.\n<tool_call>\n{"name": "weather", "arguments":'
    ' {"city": "Oslo"}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def calls() -> Iterator[TestClient]:
    """A model that reasons, says something and calls both tools."""
    with world(CALLS) as it:
        yield it.http()


def test_a_message_has_its_reasoning_content_and_calls_apart(calls: TestClient) -> None:
    choice = ask(calls)["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "I look."
    assert message["reasoning"] == message["reasoning_content"] == "North."
    functions = [call["function"] for call in message["tool_calls"]]
    assert functions == [
        {"name": "weather", "arguments": '{"city": "Oslo"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert {call["type"] for call in message["tool_calls"]} == {"function"}
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_a_stream_adds_up_to_the_message(calls: TestClient) -> None:
    found = deltas(calls)
    parts = [choice["delta"] for choice in found]
    assert "".join(part.get("reasoning", "") for part in parts) == "North."
    assert "".join(part.get("reasoning_content", "") for part in parts) == "North."
    assert "".join(part.get("content", "") for part in parts) == "I look."
    arguments = ["", ""]
    for part in parts:
        for call in part.get("tool_calls", ()):
            arguments[call["index"]] += call["function"]["arguments"]
    assert arguments == ['{"city": "Oslo"}', "{}"]
    assert found[-1]["finish_reason"] == "tool_calls"
    assert found[-1]["delta"] == {}


def test_a_call_begins_with_its_id_and_name_and_arguments_come_in_pieces(calls: TestClient) -> None:
    pieces = [call for c in deltas(calls) for call in c["delta"].get("tool_calls", ())]
    first = [piece for piece in pieces if "id" in piece]
    assert [(p["index"], p["type"], p["function"]["name"]) for p in first] == [
        (0, "function", "weather"),
        (1, "function", "now"),
    ]
    assert all(p["function"]["arguments"] == "" for p in first)
    rest = [piece for piece in pieces if "id" not in piece]
    assert all(set(p) == {"index", "function"} for p in rest)
    assert len([p for p in rest if p["index"] == 0]) > 3


def test_openai_client_puts_a_streamed_call_together(calls: TestClient) -> None:
    client = OpenAI(base_url="http://localhost/v1", api_key="none", http_client=calls)
    tools: Any = [WEATHER, NOW]
    messages: Any = ASK
    with client.chat.completions.stream(
        model="tiny/model", messages=messages, tools=tools
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert message.tool_calls[1].function.name == "now"


def test_reasoning_tokens_are_counted(calls: TestClient) -> None:
    answer = ask(calls)
    with world(CALLS) as it:
        inside = len(it.tokenizer.encode("\nNorth.\n", add_special_tokens=False))
    details = answer["usage"]["completion_tokens_details"]
    assert abs(details["reasoning_tokens"] - inside) <= 1  # a token may hold a marker's end


def test_the_last_chunk_counts_reasoning_as_the_whole_answer_does(calls: TestClient) -> None:
    body = {"messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
    with calls.stream("POST", PATH, json=body) as response:
        chunks = events(response.iter_lines())
    whole = ask(calls)["usage"]["completion_tokens_details"]
    assert chunks[-2]["usage"]["completion_tokens_details"] == whole


def test_reasoning_can_be_left_out(calls: TestClient) -> None:
    answer = ask(calls, include_reasoning=False)
    message = answer["choices"][0]["message"]
    assert message["reasoning"] is message["reasoning_content"] is None
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    parts = [choice["delta"] for choice in deltas(calls, include_reasoning=False)]
    assert not any("reasoning" in part for part in parts)


def test_one_call_at_a_time_where_parallel_calls_are_not_wanted(calls: TestClient) -> None:
    message = ask(calls, parallel_tool_calls=False)["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}])
def test_without_tools_to_call_what_looks_like_a_call_is_text(
    calls: TestClient, fields: dict[str, Any]
) -> None:
    choice = ask(calls, **fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == CALLS.partition("</think>\n\n")[2]
    assert "tool_calls" not in choice["message"]


def test_an_answer_cut_short_says_so_and_not_that_it_calls(calls: TestClient) -> None:
    choice = ask(calls, max_tokens=80)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_choices_of_one_request_are_read_apart(calls: TestClient) -> None:
    choices = ask(calls, n=2)["choices"]
    assert [len(choice["message"]["tool_calls"]) for choice in choices] == [2, 2]
    indices = {choice["index"] for choice in deltas(calls, n=2)}
    assert indices == {0, 1}


def test_logprobs_cover_all_tokens_whatever_they_are(calls: TestClient) -> None:
    whole = ask(calls, logprobs=True)
    count = whole["usage"]["completion_tokens"]
    assert len(whole["choices"][0]["logprobs"]["content"]) == count
    streamed = [choice["logprobs"] for choice in deltas(calls, logprobs=True)]
    assert sum(len(logprobs["content"]) for logprobs in streamed if logprobs) == count


def test_token_ids_cover_all_tokens_whatever_they_are(calls: TestClient) -> None:
    whole = ask(calls, return_token_ids=True)["choices"][0]["token_ids"]
    streamed = deltas(calls, return_token_ids=True)
    assert [i for choice in streamed for i in choice.get("token_ids", ())] == whole


def test_a_message_that_only_calls_has_no_content() -> None:
    with world('<tool_call>{"name": "now", "arguments": {}}</tool_call>') as it:
        assert ask(it.http())["choices"][0]["message"]["content"] is None


def test_ids_of_calls_fit_templates_that_want_them_short() -> None:
    with world("[TOOL_CALLS]now[ARGS]{}", form_of("mistral")) as it:
        call = ask(it.http())["choices"][0]["message"]["tool_calls"][0]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()


def test_a_prompt_that_opens_reasoning_is_noticed() -> None:
    template = "{{ messages[0].content }}<|im_start|><think>\n"
    with world("North.\n</think>\n\nCold.", template=template) as it:
        message = ask(it.http(), tools=[])["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("North.", "Cold.")


def test_reasoning_that_a_message_to_be_continued_has_begun_goes_on() -> None:
    chat = [*ASK, {"role": "assistant", "content": "<think>\nIt is"}]
    with world(" north.</think>Cold.") as it:
        answer = ask(it.http(), messages=chat, tools=[], continue_final_message=True)
    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("north.", "Cold.")


def test_reasoning_alone_goes_on_as_reasoning() -> None:
    thought = "It is"
    chat = [*ASK, {"role": "assistant", "content": None, "reasoning": thought}]
    blocks = [{"type": "thinking", "thinking": thought, "signature": ""}]
    turns = [*ASK, {"role": "assistant", "content": blocks}]
    with world(" north.</think>Cold.") as it:
        http = it.http()
        body = {"messages": chat, "continue_final_message": True}
        for message in (
            ask(http, tools=[], **body)["choices"][0]["message"],
            merged_delta(deltas(http, tools=[], **body)),
        ):
            assert (message["reasoning"], message["content"]) == ("north.", "Cold.")
        said = http.post(
            "/v1/messages", json={"model": World.name, "messages": turns, "max_tokens": 500}
        ).json()
        assert [b.get("thinking", b.get("text")) for b in said["content"]] == ["north.", "Cold."]
        body |= {"add_generation_prompt": False}
        tokens = http.post("/tokenize", json=body).json()["tokens"]
        assert it.tokenizer.decode(tokens).endswith("assistant:<think>It is")


def merged_delta(choices: list[Any]) -> dict[str, str]:
    parts = [choice["delta"] for choice in choices]
    return {k: "".join(p.get(k) or "" for p in parts) for k in ("reasoning", "content")}


def test_an_answer_cut_within_a_character_goes_on_from_its_text_and_from_its_tokens() -> None:
    answer = "ab€cd"
    with world(answer) as it:
        http = it.http()
        whole = it.tokenizer.encode(answer, add_special_tokens=False)
        limit = next(n for n in range(len(whole)) if "\ufffd" in it.tokenizer.decode(whole[:n]))
        for stream_it in (False, True):
            body = {"prompt": "hi", "max_tokens": limit, "return_token_ids": True}
            if stream_it:
                with http.stream(
                    "POST", "/v1/completions", json={**body, "stream": True}
                ) as response:
                    chunks = [e for e in events(response.iter_lines()) if e is not None]
                choices = [choice for chunk in chunks for choice in chunk["choices"]]
                text = "".join(choice["text"] for choice in choices)
                ids = [i for choice in choices for i in choice.get("token_ids", ())]
            else:
                choice = http.post("/v1/completions", json=body).json()["choices"][0]
                text, ids = choice["text"], choice["token_ids"]
            assert (text, tuple(ids)) == ("ab", whole[:limit])
        assert ask(http, tools=[], max_tokens=limit)["choices"][0]["message"]["content"] == "ab"


def test_special_tokens_that_are_markup_are_seen_and_others_left_out() -> None:
    form = form_of("hermes", "qwen3")
    says = "Hi<|im_start|>"
    with world(says, form) as it:
        assert ask(it.http())["choices"][0]["message"]["content"] == "Hi"


def test_a_budget_that_cannot_be_kept_is_refused(calls: TestClient) -> None:
    error = refused(calls, thinking_token_budget=9)
    assert (error["param"], error["message"]) == (
        "thinking_token_budget",
        "thinking_token_budget is not supported: </think> is not a token of the model",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "required"}, "if tools are given"),
        ({"tool_choice": "maybe"}, "must be one of 'none', 'auto' or 'required'"),
        ({"tool_choice": {"type": "f"}}, "must be none, auto, required, a function or custom tool"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "must name functions of tools, got 'x'",
        ),
        ({"chat_template": "{{ 1 }}"}, "unless the server runs with --trust-request"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    calls: TestClient, fields: dict[str, Any], message: str
) -> None:
    assert message in refused(calls, **fields)["message"]


def test_beams_are_not_searched_where_tools_are_forced(calls: TestClient) -> None:
    error = refused(calls, use_beam_search=True, tool_choice="required", tools=[NOW])
    assert error["param"] == "use_beam_search"


def test_allowed_tools_are_those_that_the_model_is_shown(calls: TestClient) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "now"}}],
        },
    }
    body = {"messages": ASK, "tools": [WEATHER, NOW], "tool_choice": choice}
    tokens = calls.post("/tokenize", json=body).json()["tokens"]
    prompt = calls.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert '"now"' in prompt
    assert '"weather"' not in prompt


def test_a_template_of_a_request_is_used_where_the_operator_trusts_them() -> None:
    with world("Hi", trusts_templates=True) as it:
        http = it.http()
        body = {"messages": ASK, "chat_template": "{{ messages[0].content }}!"}
        tokens = http.post("/tokenize", json=body).json()["tokens"]
        assert it.tokenizer.decode(tokens) == ASK[0]["content"] + "!"
        error = refused(http, chat_template="{{ 1 +")
        assert (error["param"], error["message"]) == (
            "chat_template",
            "chat_template must be a Jinja template",
        )


@pytest.mark.parametrize(
    ("effort", "expected"), [("none", "False"), ("low", "True"), (None, "unset")]
)
def test_effort_turns_thinking_on_and_off(effort: str | None, expected: str) -> None:
    template = "{% if enable_thinking is defined %}{{ enable_thinking }}{% else %}unset{% endif %}"
    with world("Hi", template=template + "{{ messages | length }}") as it:
        body = {"messages": ASK, "reasoning_effort": effort}
        tokens = it.http().post("/tokenize", json=body).json()["tokens"]
        assert it.tokenizer.decode(tokens) == expected + "1"
