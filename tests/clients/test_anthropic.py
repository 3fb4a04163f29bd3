"""Anthropic's own client, with tools and streams."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.world import CAPITAL, KEY, MODEL, TOO_LONG, WEATHER, WEATHER_SCHEMA, Address

FORCED = {"type": "any", "disable_parallel_tool_use": True}
TOOL = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": WEATHER_SCHEMA,
}


def asking(text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    greedy = {"extra_body": {"temperature": 0}}
    return {"model": MODEL, "messages": messages, "max_tokens": 64, **greedy, **fields}


@pytest.fixture(scope="module")
def client(server: Address) -> Iterator[Any]:
    """Untyped: what an answer holds is one of many kinds."""
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_message(client: Any) -> None:
    message = client.messages.create(**asking(CAPITAL))
    assert message.content[0].text == "The capital of France is Paris."
    assert message.stop_reason == "end_turn"


def test_a_stream(client: Any) -> None:
    with client.messages.stream(**asking(CAPITAL)) as stream:
        assert "".join(stream.text_stream) == "The capital of France is Paris."


def test_a_forced_tool_is_used(client: Any) -> None:
    message = client.messages.create(**asking(WEATHER, tools=[TOOL], tool_choice=FORCED))
    (use,) = message.content
    assert use.type == "tool_use"
    assert use.input.keys() == {"city"}
    assert message.stop_reason == "tool_use"


def test_the_use_of_a_tool_streams(client: Any) -> None:
    fields = asking(WEATHER, tools=[TOOL], tool_choice=FORCED)
    whole = client.messages.create(**fields).content[0]
    with client.messages.stream(**fields) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        (use,) = stream.get_final_message().content
    assert len(pieces) > 1
    assert json.loads("".join(pieces)) == use.input == whole.input
    assert use.name == "get_weather"


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL]}, {"system": "Be short."}])
def test_tokens_are_counted_as_they_are_charged(client: Any, fields: dict[str, Any]) -> None:
    asked = {"model": MODEL, "messages": asking(CAPITAL)["messages"], **fields}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0) > 0


def test_a_tools_result_goes_back(client: Any) -> None:
    fields = asking(WEATHER, tools=[TOOL], tool_choice=FORCED)
    with client.messages.stream(**fields) as stream:
        first = stream.get_final_message()
    result = {"type": "tool_result", "tool_use_id": first.content[0].id, "content": "Sunny."}
    turns = [
        *fields["messages"],
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**asking(WEATHER, tools=[TOOL]) | {"messages": turns}).content


def test_a_message_that_is_too_long_is_the_clients_own_error(client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(**asking(TOO_LONG))
