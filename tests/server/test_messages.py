"""/v1/messages: Anthropic's requests become chats, and the chats' answers Anthropic's messages."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio
import msgspec
import pytest
from starlette.testclient import TestClient

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.chat.pieces import Arguments, Call, End, Piece, Reasoning, Text
from jaxserve.server.http.decoding import decode
from jaxserve.server.messages.handler import MessageWriter
from jaxserve.server.messages.schema import MessagesBody
from jaxserve.server.schema.answers import PromptTokensDetails, Usage
from tests.server.world import MAX_MODEL_LEN, World

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "hello"}]
BODY = {"model": "tiny/model", "messages": HELLO, "max_tokens": 8, "seed": 1}


def chat_of(**fields: Any) -> dict[str, Any]:
    return parse({**BODY, **fields}, MessagesBody).chat()


class Told:
    """An answer whose pieces are known; the model that gives them may not exist."""

    def __init__(self, steps: Sequence[list[Piece]]) -> None:
        self._steps = steps
        self.usage = Usage(10, 0, 10, PromptTokensDetails(4))

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        for count, step in enumerate(self._steps):
            self.usage = Usage(10, count, 10 + count, PromptTokensDetails(4))
            yield step


TOLD: list[list[Piece]] = [
    [],
    [Reasoning("Let me")],
    [Reasoning(" see."), Text("I look ")],
    [Text("it up.")],
    [Call("call_1", "find"), Arguments('{"what": ')],
    [Arguments('"fox"}'), Call("call_2", "find"), Arguments("{}")],
    [End("tool_calls", None)],
]


def writer_of(steps: Sequence[list[Piece]]) -> MessageWriter:
    return MessageWriter(Told(steps), model="m")  # type: ignore[arg-type]


def stream_of(writer: MessageWriter) -> list[dict[str, Any]]:
    async def read() -> bytes:
        return b"".join([piece async for piece in writer.stream()])

    return parse_events(anyio.run(read).decode())


def parse_events(text: str) -> list[dict[str, Any]]:
    """The data of named events, whose names must be the types of their data."""
    data = []
    for event in text.strip().split("\n\n"):
        name, line = event.split("\n")
        data.append(msgspec.json.decode(line.removeprefix("data: ")))
        assert name == f"event: {data[-1]['type']}"
    return data


# Requests


def test_the_text_is_that_of_the_same_chat(http: TestClient) -> None:
    message = http.post(PATH, json=BODY).json()
    chat = http.post("/v1/chat/completions", json=BODY).json()
    assert message["content"] == [
        {"type": "text", "text": chat["choices"][0]["message"]["content"]}
    ]


def test_a_message_has_anthropics_fields(http: TestClient) -> None:
    message = http.post(PATH, json=BODY).json()
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["model"] == "tiny/model"
    assert message["stop_reason"] == "max_tokens"
    assert message["stop_sequence"] is None
    assert message["usage"]["output_tokens"] == 8


def test_a_stop_sequence_is_told(http: TestClient) -> None:
    text = http.post(PATH, json=BODY).json()["content"][0]["text"]
    message = http.post(PATH, json={**BODY, "stop_sequences": [text[1:3]]}).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", text[1:3])


def test_events_come_in_anthropics_order(http: TestClient) -> None:
    whole = http.post(PATH, json=BODY).json()
    events = parse_events(http.post(PATH, json={**BODY, "stream": True}).text)
    types = [event["type"] for event in events]
    assert types[:2] == ["message_start", "content_block_start"]
    assert set(types[2:-3]) == {"content_block_delta"}
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event["delta"]["text"] for event in events if "index" in event and "delta" in event]
    assert "".join(deltas) == whole["content"][0]["text"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert events[-2]["usage"]["output_tokens"] == 8


def test_system_and_blocks_make_the_chats_prompt(http: TestClient) -> None:
    blocks = [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]
    fields = {"system": blocks, "messages": [{"role": "user", "content": blocks}]}
    chat = [{"role": "system", "content": "hello"}, *HELLO]
    counted = http.post(f"{PATH}/count_tokens", json={"model": "alias", **fields}).json()
    expected = http.post("/tokenize", json={"messages": chat}).json()["count"]
    assert counted == {"input_tokens": expected}


def test_a_count_is_what_the_answer_says_of_its_prompt(world: World, http: TestClient) -> None:
    counted = http.post(f"{PATH}/count_tokens", json={"model": "alias", "messages": HELLO}).json()
    usage = http.post(PATH, json=BODY).json()["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_an_assistants_last_turn_is_gone_on_with() -> None:
    chat = chat_of(messages=[*HELLO, {"role": "assistant", "content": "Once"}])
    assert chat["continue_final_message"]
    assert not chat["add_generation_prompt"]


def test_calls_and_results_become_tool_calls_and_messages() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "find", "input": {"what": "fox"}}
    thought = {"type": "thinking", "thinking": "Let me see.", "signature": ""}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "brown"}
    chat = chat_of(
        messages=[
            *HELLO,
            {"role": "assistant", "content": [thought, {"type": "text", "text": "I look"}, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
        ]
    )
    function = {"name": "find", "arguments": '{"what":"fox"}'}
    assert chat["messages"][1:] == [
        {
            "role": "assistant",
            "content": "I look",
            "reasoning": "Let me see.",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": "brown"}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choices_are_the_chats(choice: dict[str, Any], expected: object) -> None:
    chat = chat_of(tool_choice={**choice, "disable_parallel_tool_use": True})
    assert chat["tool_choice"] == expected
    assert chat["parallel_tool_calls"] is False


def test_thinking_bounds_or_ends_the_reasoning() -> None:
    enabled = chat_of(thinking={"type": "enabled", "budget_tokens": 2048})
    assert enabled["thinking_token_budget"] == 2048
    assert chat_of(thinking={"type": "disabled"})["reasoning_effort"] == "none"


def test_a_limit_beyond_the_context_ends_with_it(http: TestClient) -> None:
    answer = http.post(PATH, json={**BODY, "max_tokens": 32_000}).json()
    usage = answer["usage"]
    if answer["stop_reason"] == "model_context_window_exceeded":
        assert usage["input_tokens"] + usage["output_tokens"] == MAX_MODEL_LEN
    else:
        assert answer["stop_reason"] == "end_turn"
    budget = {"type": "enabled", "budget_tokens": 31_999}
    assert http.post(PATH, json={**BODY, "max_tokens": 32_000, "thinking": budget}).is_success


def test_a_system_turn_keeps_its_place() -> None:
    turns = [*HELLO, {"role": "system", "content": "be brief"}]
    assert [message["role"] for message in chat_of(messages=turns)["messages"]] == [
        "user",
        "system",
    ]


SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
FIND = {
    "name": "find",
    "input_schema": {"type": "object"},
    "eager_input_streaming": True,
    "defer_loading": True,
    "input_examples": [{}],
    "allowed_callers": ["direct"],
}


def test_tools_of_anthropics_servers_are_left_out() -> None:
    ignored = IgnoredFields(is_strict=True)
    body = parse({**BODY, "tools": [FIND, SEARCH]}, MessagesBody, ignored)
    assert [tool["function"]["name"] for tool in body.chat()["tools"]] == ["find"]
    assert "tools[].web_search_20250305" in ignored.names


def test_a_tool_that_is_not_run_here_cannot_be_forced(http: TestClient) -> None:
    choice = {"type": "tool", "name": "web_search"}
    answer = http.post(PATH, json={**BODY, "tools": [FIND, SEARCH], "tool_choice": choice})
    assert answer.status_code == 400
    assert "which this server does not run" in answer.json()["error"]["message"]


def test_an_output_format_is_a_strict_schema() -> None:
    schema = {"type": "object"}
    chat = chat_of(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert chat["response_format"]["json_schema"]["schema"] == schema


def test_a_block_in_the_wrong_turn_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].content\[0\] must not be"):
        chat_of(messages=[{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}])


# Answers


def test_pieces_become_blocks() -> None:
    message = anyio.run(writer_of(TOLD).whole)
    assert msgspec.to_builtins(message.content) == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "I look it up."},
        {"type": "tool_use", "id": "call_1", "name": "find", "input": {"what": "fox"}},
        {"type": "tool_use", "id": "call_2", "name": "find", "input": {}},
    ]
    assert message.stop_reason == "tool_use"


def test_a_stream_begins_with_its_input_and_no_output() -> None:
    start, *_, delta, _ = stream_of(writer_of(TOLD[1:]))
    assert start["message"]["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 0,
    }
    assert delta["usage"]["output_tokens"] == 5


def test_no_output_is_told_before_it_is_sent(http: TestClient) -> None:
    events = parse_events(http.post(PATH, json={**BODY, "stream": True}).text)
    assert events[0]["message"]["usage"]["output_tokens"] == 0
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert events[-2]["usage"]["output_tokens"] > 0


def test_a_streams_deltas_add_up_to_its_blocks() -> None:
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in stream_of(writer_of(TOLD)):
        match event["type"]:
            case "content_block_start":
                assert not is_open
                is_open = True
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "input_json": ""})
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                match delta["type"]:
                    case "text_delta":
                        blocks[-1]["text"] += delta["text"]
                    case "thinking_delta":
                        blocks[-1]["thinking"] += delta["thinking"]
                    case "input_json_delta":
                        blocks[-1]["input_json"] += delta["partial_json"]
            case "content_block_stop":
                is_open = False
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert blocks[0]["thinking"] == "Let me see."
    assert blocks[1]["text"] == "I look it up."
    assert msgspec.json.decode(blocks[2]["input_json"]) == {"what": "fox"}


def test_cached_tokens_are_not_among_the_input_tokens() -> None:
    message = anyio.run(writer_of(TOLD).whole)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (6, 4)


def test_a_call_that_was_cut_off_has_no_input() -> None:
    steps: list[list[Piece]] = [[Call("c", "f"), Arguments('{"a')], [End("length", None)]]
    message = anyio.run(writer_of(steps).whole)
    assert message.content[0].input == {}  # type: ignore[union-attr]
    assert message.stop_reason == "max_tokens"


# Errors


def test_errors_are_anthropics(http: TestClient) -> None:
    response = http.post(PATH, json={**BODY, "temperature": -1})
    assert response.status_code == 400
    assert response.json() == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "temperature must be in [0, 100], got -1",
        },
    }


def test_errors_speak_of_anthropics_fields(http: TestClient) -> None:
    message = http.post(PATH, json={**BODY, "stop_sequences": [""]}).json()["error"]["message"]
    assert message.startswith("stop_sequences must")


def test_an_error_after_the_first_event_is_an_event() -> None:
    with World(step_s=0.01) as world, world.http() as http:
        body = {**BODY, "max_tokens": 60, "stream": True}
        lines = []
        with http.stream("POST", PATH, json=body) as response:
            for line in response.iter_lines():
                lines.append(line)
                world.runner.is_broken = True
    name, data = [line for line in lines if line][-2:]
    assert name == "event: error"
    assert msgspec.json.decode(data.removeprefix("data: "))["error"]["type"] == "overloaded_error"


def test_numbers_of_a_call_are_as_they_are_written() -> None:
    long = "12345678901234567890.125"
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 0.25}}
    body = {**BODY, "messages": [{"role": "assistant", "content": [call]}]}
    fields = decode(json.dumps(body).replace("0.25", long).encode())
    [message] = parse(fields, MessagesBody).chat()["messages"]
    assert message["tool_calls"][0]["function"]["arguments"] == f'{{"x":{long}}}'
