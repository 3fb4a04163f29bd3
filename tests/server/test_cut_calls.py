"""An answer that was cut within a tool call goes on: what the server wrote it takes back."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.chat import tool_parsers
from tests.chat.answers import ANSWERS, form_of
from tests.server.tools import LENGTH
from tests.server.world import World, events

ASK = "Is it warm in Oslo?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
# The first takes arguments as text, or writes them as JSON; the other wants objects.
AS_TEXT = (
    "{% for m in messages %}<|im_start|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }} {% if c.function.arguments is string %}{{ c.function.arguments }}"
    "{% else %}{{ c.function.arguments | tojson }}{% endif %}]{% endfor %}{% endfor %}"
    "{% if tools %}{% endif %}"
)
AS_OBJECTS = (
    "{% for m in messages %}<|im_start|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }}{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}"
    "{% endfor %}]{% endfor %}{% endfor %}{% if tools %}{% endif %}"
)
CALLING = {answer.tools: answer for answer in ANSWERS.values() if "Oslo" in str(answer.calls)}
# For these two all that is to be seen, for the others an end within a value.
CUTS: list[tuple[str, tuple[str, ...], str]] = [
    (name, ("Oslo",), AS_OBJECTS) for name in sorted(tool_parsers.names())
]
CUTS += [
    (name, ("weather", "city", "Oslo", ""), template)
    for name in ("hermes", "qwen3_coder")
    for template in (AS_TEXT, AS_OBJECTS)
]


def num_tokens(world: World, text: str, part: str) -> int:
    """How many tokens to allow for an end within a part of an answer, at its end if it is empty."""
    place = text.rindex(part) + 2 if part else len(text)
    return len(world.tokenizer.encode(text[:place], add_special_tokens=False))


def post(http: TestClient, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: TestClient, path: str, **body: Any) -> list[Any]:
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        return [event for event in events(response.iter_lines()) if event is not None]


def chat_message(http: TestClient, limit: int, *, streams: bool) -> tuple[dict[str, Any], str]:
    """The message of a chat that is cut, and why it ended."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": ASK}], "tools": CHAT_TOOLS}
    body["max_tokens"] = limit
    if not streams:
        choice = post(http, "/v1/chat/completions", **body)["choices"][0]
        return choice["message"], choice["finish_reason"]
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    reason = ""
    for chunk in stream(http, "/v1/chat/completions", **body):
        for choice in chunk["choices"]:
            reason = choice["finish_reason"] or reason
            message["content"] += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                if "id" in call:
                    calls.append(call)
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return {**message, **({"tool_calls": calls} if calls else {})}, reason


@pytest.mark.parametrize(("name", "parts", "template"), CUTS)
def test_what_was_cut_can_be_sent_back_on_every_endpoint(
    name: str, parts: tuple[str, ...], template: str
) -> None:
    # The world's own token for the end is one of harmony's.
    text = CALLING[name].text.rpartition("<|end|>")[2]
    with World(
        says=text,
        answers=form_of(name),
        template=template,
        max_model_len=LENGTH,
        max_num_seqs=2,
    ) as world:
        http = world.http()
        for part in parts:
            limit = num_tokens(world, text, part)
            check_chat(http, limit)
            check_responses(http, limit)
            check_messages(http, limit)


def check_chat(http: TestClient, limit: int) -> None:
    message, reason = chat_message(http, limit, streams=False)
    streamed, streamed_reason = chat_message(http, limit, streams=True)
    assert reason == streamed_reason == "length"
    assert functions(message) == functions(streamed)
    for each in (message, streamed):
        chat = [{"role": "user", "content": ASK}, each]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "Cut."}
            for call in each.get("tool_calls", ())
        ]
        chat += [*results, {"role": "user", "content": "Go on."}]
        body = {"messages": chat, "tools": CHAT_TOOLS}
        post(http, "/v1/chat/completions", **body, max_tokens=1)
        prompt = post(http, "/tokenize", **body, return_token_strs=True)
        assert prompt["count"] > 0


def check_responses(http: TestClient, limit: int) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in CHAT_TOOLS]  # type: ignore[dict-item]
    body: dict[str, Any] = {"tools": tools, "max_output_tokens": limit}
    whole = post(http, "/v1/responses", input=ASK, **body)
    streamed = stream(http, "/v1/responses", input=ASK, **body)[-1]["response"]
    for response in (whole, streamed):
        assert response["status"] == "incomplete"
        for item in response["output"]:
            if item["type"] == "function_call":
                is_cut = not is_object(item["arguments"])
                assert item["status"] == ("incomplete" if is_cut else "completed")
        asked = [{"role": "user", "content": ASK}, *response["output"]]
        asked.append({"role": "user", "content": "Go on."})
        post(http, "/v1/responses", input=asked, max_output_tokens=1, tools=tools)
        last = {"max_output_tokens": 1, "tools": tools, "input": "Go on."}
        again = post(http, "/v1/responses", previous_response_id=response["id"], **last)
        post(http, "/v1/responses", previous_response_id=again["id"], **last)


def check_messages(http: TestClient, limit: int) -> None:
    tools = [
        {"name": "weather", "input_schema": SCHEMA},
        {"name": "now", "input_schema": {"type": "object"}},
    ]
    asked = {"role": "user", "content": ASK}
    body: dict[str, Any] = {"model": World.name, "tools": tools}
    message = post(http, "/v1/messages", messages=[asked], max_tokens=limit, **body)
    assert message["stop_reason"] == "max_tokens"
    blocks = [block for block in message["content"] if block["type"] == "tool_use"]
    streamed = stream(http, "/v1/messages", messages=[asked], max_tokens=limit, **body)
    starts = [e["content_block"] for e in streamed if e["type"] == "content_block_start"]
    assert [block["type"] for block in message["content"]] == [start["type"] for start in starts]
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "Cut."} for block in blocks
    ]
    turn = {"role": "user", "content": [*results, {"type": "text", "text": "Go on."}]}
    if message["content"]:
        said = {"role": "assistant", "content": message["content"]}
        post(http, "/v1/messages", messages=[asked, said, turn], max_tokens=1, **body)


def functions(message: dict[str, Any]) -> list[Any]:
    return [message["content"] or "", *(c["function"] for c in message.get("tool_calls", ()))]


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


CUT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Os'


def test_an_end_within_a_call_is_not_a_call_to_be_made() -> None:
    with World(says=CUT, answers=form_of("hermes"), max_model_len=LENGTH) as world:
        http = world.http()
        body = {"messages": [{"role": "user", "content": ASK}], "tools": CHAT_TOOLS}
        choice = post(http, "/v1/chat/completions", **body)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Os'
        chunks = stream(http, "/v1/chat/completions", **body)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        tools = [{"name": "weather", "input_schema": SCHEMA}]
        message = post(
            http,
            "/v1/messages",
            model=World.name,
            messages=body["messages"],
            tools=tools,
            max_tokens=500,
        )
        assert message["stop_reason"] == "end_turn"
        assert message["content"][0]["input"] == {}
        response = post(
            http,
            "/v1/responses",
            input=ASK,
            tools=[{"type": "function", "name": "weather", "parameters": SCHEMA}],
        )
        assert (response["status"], response["output"][0]["status"]) == ("completed", "incomplete")


def test_a_call_that_is_whole_is_to_be_made_though_the_next_one_is_not() -> None:
    whole = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
    with World(says=whole + CUT, answers=form_of("hermes"), max_model_len=LENGTH) as world:
        body = {"messages": [{"role": "user", "content": ASK}], "tools": CHAT_TOOLS}
        choice = post(world.http(), "/v1/chat/completions", **body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"


def test_a_call_that_is_cut_before_its_arguments_has_none() -> None:
    cut = CUT.partition('{"city"')[0]
    with World(says=cut, answers=form_of("hermes"), max_model_len=LENGTH) as world:
        body = {"messages": [{"role": "user", "content": ASK}], "tools": CHAT_TOOLS}
        choice = post(world.http(), "/v1/chat/completions", **body)["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ""}


@pytest.mark.parametrize(("has_instructions", "index"), [(False, 1), (True, 1)])
def test_what_a_template_cannot_take_is_refused_by_what_the_client_sent(
    has_instructions: bool, index: int
) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "Oslo"}
    items: list[dict[str, Any]] = [{"role": "user", "content": ASK}, call]
    body: dict[str, Any] = {"instructions": "Be brief."} if has_instructions else {}
    with World(says="Hi", template=AS_OBJECTS, max_model_len=LENGTH) as world:
        http = world.http()
        refused = http.post("/v1/responses", json={"input": items, **body})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == f"input[{index}].arguments"
        assert refused.json()["error"]["message"].startswith(f"input[{index}].arguments: ")
        counted = http.post("/v1/responses/input_tokens", json={"input": items, **body})
        assert counted.json()["error"]["param"] == f"input[{index}].arguments"


def test_a_kept_response_that_a_template_cannot_take_is_named_as_what_was_sent() -> None:
    text = '<tool_call>\n{"name": "weather", "arguments": "Oslo"}\n</tool_call>'
    with World(
        says=text, answers=form_of("hermes"), template=AS_OBJECTS, max_model_len=LENGTH
    ) as world:
        http = world.http()
        tools = [{"type": "function", "name": "weather", "parameters": SCHEMA}]
        first = post(http, "/v1/responses", input=ASK, tools=tools)
        assert first["output"][0]["arguments"] == "Oslo"
        body = {"input": "Go on.", "previous_response_id": first["id"], "tools": tools}
        error = http.post("/v1/responses", json=body).json()["error"]
        assert error["param"] == "previous_response_id"
        assert error["message"].startswith("previous_response_id: ")
