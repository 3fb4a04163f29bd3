"""Namespaces, custom and hosted tools of /v1/responses, and conversations that are too long."""

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse
from jaxserve.frontend.tools import arguments_of, text_of
from jaxserve.server.chat.pieces import Arguments, Call, End
from jaxserve.server.responses.schema import ResponsesBody
from tests.chat.answers import form_of
from tests.server.response_calls import BODY, PATH
from tests.server.test_responses import chat_of, parse_body, tell
from tests.server.world import World

CLOSE = {"type": "function", "name": "close", "strict": False, "parameters": {"type": "object"}}
AGENTS = {"type": "namespace", "name": "agents", "description": "d", "tools": [CLOSE]}
SEARCH = {"type": "web_search", "external_web_access": False}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Change a file.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "+" /[ab]{1,4}/ "\\n"'},
}
FREE = {"type": "custom", "name": "note"}
TOOLS: list[dict[str, Any]] = [AGENTS, SEARCH, PATCH, FREE]


def unread(**fields: Any) -> list[str]:
    """The names of what a body gives in vain, where unknown fields are refused."""
    ignored = IgnoredFields(is_strict=True)
    parse({**BODY, **fields}, ResponsesBody, ignored)
    return [*ignored.names]


def test_namespaces_flatten_and_hosted_tools_are_left_out() -> None:
    chat = chat_of(tools=TOOLS)
    assert [tool["function"]["name"] for tool in chat["tools"]] == [
        "agents__close",
        "patch",
        "note",
    ]
    assert unread(tools=TOOLS) == ["tools[].web_search"]


def test_a_custom_tool_is_bound_by_its_grammar() -> None:
    _, patch, note = (tool["function"] for tool in chat_of(tools=TOOLS)["tools"])
    pattern = patch["parameters"]["properties"]["input"]["pattern"]
    assert re.search(pattern, "+abab\n")
    assert not re.search(pattern, "+abc\n")
    assert patch["strict"]
    assert not note["strict"]


def test_a_grammar_that_binds_nothing_is_told() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "(" start? ")"'}
    assert unread(tools=[{**PATCH, "format": form}]) == ["tools[].format"]


def test_calls_come_back_as_their_tools_were_declared() -> None:
    steps: list[Any] = [
        [],
        [Call("c1", "agents__close"), Arguments('{"a":'), Arguments("1}")],
        [Call("c2", "patch"), Arguments('{"input": "+a'), Arguments('\\n"}')],
        [End("tool_calls", None)],
    ]
    response, events = tell(steps, tools=TOOLS)
    function, custom = response["output"]
    assert (function["type"], function["namespace"], function["name"]) == (
        "function_call",
        "agents",
        "close",
    )
    assert function["arguments"] == '{"a":1}'
    assert custom["type"] == "custom_tool_call"
    assert (custom["name"], custom["input"], custom["status"]) == ("patch", "+a\n", "completed")
    assert "namespace" not in custom
    names = [event["type"] for event in events if "custom" in event["type"]]
    assert names == [f"response.custom_tool_call_input.{end}" for end in ("delta", "done")]


def test_past_calls_are_calls_of_the_chats_functions() -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "go"},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
        {
            "type": "function_call",
            "call_id": "c1",
            "namespace": "agents",
            "name": "close",
            "arguments": "{}",
        },
        {"type": "function_call_output", "call_id": "c1", "output": "closed"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": '+"\n'},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "done"}],
        },
    ]
    messages = chat_of(input=items)["messages"]
    assert [message["role"] for message in messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]
    functions = [m["tool_calls"][0]["function"] for m in messages if "tool_calls" in m]
    assert functions == [
        {"name": "agents__close", "arguments": "{}"},
        {"name": "patch", "arguments": '{"input":"+\\"\\n"}'},
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (arguments_of('a "b"\n'), 'a "b"\n'),
        ('{"input": "cut', "cut"),
        ('{"in', ""),
        ('{"input": "', ""),
        ('{"patch": "x"}', '{"patch": "x"}'),
        ("plain", "plain"),
        ("[1]", "[1]"),
    ],
)
def test_arguments_are_the_text_of_a_custom_tool(arguments: str, text: str) -> None:
    assert text_of(arguments) == text


@pytest.mark.parametrize("tool", ["patch", "close"])
def test_a_tool_that_is_forced_is_called(tool: str) -> None:
    choice: dict[str, Any] = {"type": "custom", "name": "patch"}
    if tool == "close":
        choice = {"type": "function", "name": "close", "namespace": "agents"}
    with World(answers=form_of("hermes"), max_model_len=1024) as world:
        body = {"input": "go", "tools": TOOLS, "tool_choice": choice, "seed": 1}
        answer = world.http().post(PATH, json=body).json()
        again = [*[{"role": "user", "content": "go"}], *answer["output"]]
        followed = world.http().post(PATH, json={"input": again, "max_output_tokens": 2})
    [call] = answer["output"]
    assert call["name"] == tool
    if tool == "patch":
        assert re.fullmatch(r"\+[ab]{1,4}\n", call["input"])
    assert followed.status_code == 200


def test_a_conversation_that_is_too_long_loses_its_oldest_turns() -> None:
    turns = [
        item
        for _ in range(20)
        for item in (
            {"role": "user", "content": "the quick brown fox"},
            {"role": "assistant", "content": "jumps over the lazy dog"},
        )
    ]
    items = [{"role": "developer", "content": "be brief"}, *turns, {"role": "user", "content": "x"}]
    with World() as world:
        http = world.http()
        body = {"input": items, "max_output_tokens": 8}
        assert http.post(PATH, json=body).status_code == 400
        answer = http.post(PATH, json={**body, "truncation": "auto"}).json()
        assert answer["truncation"] == "auto"
        used = answer["usage"]["input_tokens"]
        one_more = used + world_tokens(http, turns[:2])
        assert used + 8 <= world.model.max_model_len < one_more + 8
        last = {"role": "user", "content": "once upon a time " * 100}
        refused = http.post(PATH, json={"input": [last], "truncation": "auto"})
        assert refused.status_code == 400


def world_tokens(http: TestClient, items: list[dict[str, Any]]) -> int:
    """The number of tokens that items add to a prompt."""
    counts = [
        http.post(f"{PATH}/input_tokens", json={"input": some}).json()["input_tokens"]
        for some in (items[:1], [*items, items[0]])
    ]
    return int(counts[1] - counts[0])


def test_a_long_namespace_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError):
        parse_body(tools=[{**AGENTS, "name": "n" * 129}])
