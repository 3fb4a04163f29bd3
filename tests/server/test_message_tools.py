"""Tools that a conversation of /v1/messages finds, adds and removes, as Claude Code does."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.parsing import parse
from jaxserve.frontend.tools import MAX_TOOLS
from jaxserve.server.messages.schema import MessagesBody
from tests.server.world import World

PATH = "/v1/messages"
ASKED = {"role": "user", "content": "hello"}
FETCH = {"name": "fetch", "input_schema": {"type": "object"}}
SEARCH = {"name": "search", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with World(max_model_len=1024) as world, world.http() as http:
        yield http


def body_of(*messages: dict[str, Any], tools: Any = (FETCH, SEARCH)) -> dict[str, Any]:
    return {"model": "alias", "max_tokens": 4, "messages": [*messages], "tools": [*tools]}


def chat_of(*messages: dict[str, Any], tools: Any = (FETCH, SEARCH)) -> dict[str, Any]:
    return parse(body_of(*messages, tools=tools), MessagesBody).chat()


def names_of(chat: dict[str, Any]) -> list[str]:
    return [tool["function"]["name"] for tool in chat.get("tools", [])]


def named(change: str, name: str, role: str = "system") -> dict[str, Any]:
    """A message that adds or removes a declared tool."""
    block = {"type": f"tool_{change}", "tool": {"type": "tool_reference", "name": name}}
    return {"role": role, "content": [block]}


def defined(tool: dict[str, Any]) -> dict[str, Any]:
    """A message that declares a tool."""
    definition = {"type": "tool_definition", "definition": tool}
    return {"role": "user", "content": [{"type": "tool_addition", "tool": definition}]}


def test_tools_that_a_search_found_are_told_to_the_model(http: TestClient) -> None:
    called = {"type": "tool_use", "id": "call_1", "name": "search", "input": {}}
    found = [{"type": "tool_reference", "tool_name": name} for name in ("fetch", "search")]
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": found}
    messages: list[dict[str, Any]] = [
        ASKED,
        {"role": "assistant", "content": [called]},
        {"role": "user", "content": [result | {"cache_control": {"type": "ephemeral"}}]},
    ]
    deferred = [{**FETCH, "defer_loading": True}, SEARCH]
    chat = chat_of(*messages, tools=deferred)
    assert names_of(chat) == ["fetch", "search"]
    text = "".join(part["text"] for part in chat["messages"][-1]["content"])
    assert text == "The tool fetch is available.\nThe tool search is available.\n"
    answer = http.post(PATH, json=body_of(*messages, tools=deferred))
    assert answer.status_code == 200, answer.text


def test_a_removed_tool_is_not_offered_until_it_is_added_again() -> None:
    chat = chat_of(ASKED, named("removal", "fetch"))
    assert names_of(chat) == ["search"]
    assert [message["role"] for message in chat["messages"]] == ["user"]
    chat = chat_of(ASKED, named("removal", "fetch"), named("addition", "fetch", "user"))
    assert names_of(chat) == ["fetch", "search"]


def test_a_tool_can_be_declared_in_the_middle() -> None:
    chat = chat_of(ASKED, defined({**FETCH, "description": "newer"}), tools=[FETCH])
    [tool] = chat["tools"]
    assert tool["function"]["description"] == "newer"
    chat = chat_of(ASKED, defined(FETCH), named("removal", "fetch"), tools=[])
    assert names_of(chat) == []


def test_a_hosted_tool_that_is_declared_in_the_middle_is_told(http: TestClient) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    answer = http.post(PATH, json=body_of(ASKED, defined(search)))
    assert answer.status_code == 200
    told = answer.headers["x-jaxserve-ignored"].split(", ")
    assert "messages[].content[].tool.definition.web_search_20250305" in told


def test_toolsets_of_the_vendor_are_left_out_by_name(http: TestClient) -> None:
    toolset = {"type": "browser_toolset_20260801", "configs": {}}
    answer = http.post(PATH, json=body_of(ASKED, tools=[toolset, FETCH]))
    assert answer.status_code == 200
    assert "tools[].browser_toolset_20260801" in answer.headers["x-jaxserve-ignored"]


@pytest.mark.parametrize("change", ["addition", "removal"])
def test_a_change_of_an_unknown_tool_is_refused_by_name(http: TestClient, change: str) -> None:
    answer = http.post(PATH, json=body_of(ASKED, named(change, "nothing")))
    assert answer.status_code == 400
    assert "messages[1].content[0].tool.name" in answer.json()["error"]["message"]


def test_changes_of_tools_alone_are_no_conversation(http: TestClient) -> None:
    assert http.post(PATH, json=body_of(named("removal", "fetch"))).status_code == 400


def test_the_assistant_changes_no_tools() -> None:
    with pytest.raises(InvalidRequestError, match="must not be of type tool_removal"):
        chat_of(ASKED, named("removal", "fetch", "assistant"))


def test_the_number_of_tools_is_bounded() -> None:
    added = [defined({**FETCH, "name": f"tool_{index}"}) for index in range(MAX_TOOLS)]
    assert len(chat_of(ASKED, *added, tools=[])["tools"]) == MAX_TOOLS
    with pytest.raises(InvalidRequestError, match="at most"):
        chat_of(ASKED, *added, tools=[FETCH])
