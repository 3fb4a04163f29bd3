"""LiteLLM, whose users name a provider and a base URL."""

from typing import Any

import pytest

litellm = pytest.importorskip("litellm")

from tests.clients.world import (
    ANNA,
    CAPITAL,
    KEY,
    MODEL,
    TOO_LONG,
    WEATHER,
    WEATHER_TOOL,
    Address,
    Person,
)


@pytest.fixture(params=["openai", "hosted_vllm"])
def fields(request: pytest.FixtureRequest, server: Address) -> dict[str, Any]:
    return {
        "model": f"{request.param}/{MODEL}",
        "api_base": server.v1,
        "api_key": KEY,
        "temperature": 0,
        "num_retries": 0,
    }


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_chat(fields: dict[str, Any]) -> None:
    answer = litellm.completion(messages=user(CAPITAL), **fields)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.usage.completion_tokens > 0


def test_a_stream(fields: dict[str, Any]) -> None:
    stream = litellm.completion(messages=user(CAPITAL), stream=True, **fields)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "The capital of France is Paris."


def test_a_schema(fields: dict[str, Any]) -> None:
    answer = litellm.completion(messages=user(ANNA), response_format=Person, **fields)
    text = answer.choices[0].message.content
    assert Person.model_validate_json(text) == Person(name="Anna", age=30)


def test_tools(fields: dict[str, Any]) -> None:
    answer = litellm.completion(
        messages=user(WEATHER), tools=[WEATHER_TOOL], tool_choice="required", **fields
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_errors_are_its_own_classes(fields: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=user(TOO_LONG), **fields)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=user("hi"), **{**fields, "api_key": "sk-another"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=user("hi"), **{**fields, "model": "openai/gpt-9"})
