"""OpenAI's own client, with every call that it has and we serve."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.clients.world import (
    ANNA,
    CAPITAL,
    KEY,
    MODEL,
    TOO_LONG,
    WEATHER,
    WEATHER_SCHEMA,
    WEATHER_TOOL,
    Address,
    Mood,
    Person,
)

RESPONSES_TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": WEATHER_SCHEMA,
    "strict": True,
}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


class GetWeather(BaseModel):
    """Get the weather in a city."""

    city: str


@pytest.fixture(scope="module")
def client(server: Address) -> Iterator[Any]:
    """Untyped: its overloads do not take fields that calls share."""
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_chat_is_answered(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user(CAPITAL), temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."


def test_an_async_stream_is_the_whole_answer(server: Address) -> None:
    async def streamed() -> str:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key=KEY) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=user(CAPITAL), temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(streamed()) == "The capital of France is Paris."


def test_completions_stream(client: Any) -> None:
    fields = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**fields)
    chunks = client.completions.create(**fields, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""


def test_parse_gives_the_model_that_was_asked_for(client: Any) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=user(ANNA), temperature=0, response_format=Person
    )
    assert answer.choices[0].message.parsed == Person(name="Anna", age=30)


def test_parse_holds_where_the_model_knows_nothing(client: Any) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=user("How are you?"), temperature=1.5, n=4, response_format=Mood
    )
    assert [type(choice.message.parsed) for choice in answer.choices] == [Mood] * 4


def test_a_stream_is_parsed_at_its_end(client: Any) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=user(ANNA), temperature=0, response_format=Person
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 1
    assert final.choices[0].message.parsed == Person(name="Anna", age=30)


def test_an_answer_cut_short_is_the_clients_own_error(client: Any) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=MODEL, messages=user(ANNA), max_tokens=3, response_format=Person
        )


def test_a_forced_call_is_parsed(client: Any) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=user("Hello!"),
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_a_named_call_streams(client: Any) -> None:
    fields: Any = {
        "model": MODEL,
        "messages": user(WEATHER),
        "tools": [WEATHER_TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**fields).choices[0].message.tool_calls[0].function
    with client.chat.completions.stream(**fields) as stream:
        events = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert "".join(event.arguments_delta for event in events) == whole.arguments
    assert json.loads(whole.arguments).keys() == {"city"}
    assert final.message.tool_calls[0].function.name == whole.name == "get_weather"


def test_a_call_and_what_came_of_it_go_back_into_the_chat(client: Any) -> None:
    fields: Any = {"model": MODEL, "tools": [WEATHER_TOOL], "temperature": 0}
    first = client.chat.completions.create(messages=user(WEATHER), **fields).choices[0]
    assert first.finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": first.message.tool_calls[0].id, "content": "Sunny."}
    again = client.chat.completions.create(
        messages=[*user(WEATHER), first.message, result], **fields
    )
    assert again.choices[0].message.content


def test_responses_and_what_follows_them(client: Any) -> None:
    first = client.responses.create(model=MODEL, input="My name is Anna.", temperature=0)
    second = client.responses.create(
        model=MODEL, input="What is my name?", previous_response_id=first.id, temperature=0
    )
    assert "Anna" in second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_responses_are_parsed(client: Any) -> None:
    answer = client.responses.parse(model=MODEL, input=ANNA, temperature=0, text_format=Person)
    assert answer.output_parsed == Person(name="Anna", age=30)


def test_responses_stream(client: Any) -> None:
    with client.responses.stream(
        model=MODEL, input=ANNA, temperature=0, text_format=Person
    ) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text
    assert final.output_parsed == Person(name="Anna", age=30)


def test_responses_call_functions(client: Any) -> None:
    answer = client.responses.create(
        model=MODEL,
        input=WEATHER,
        temperature=0,
        tools=[RESPONSES_TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = answer.output
    assert call.type == "function_call"
    assert json.loads(call.arguments).keys() == {"city"}


def test_a_response_streams_the_call_of_a_function(client: Any) -> None:
    with client.responses.stream(
        model=MODEL,
        input=WEATHER,
        temperature=0,
        tools=[RESPONSES_TOOL],
        tool_choice={"type": "function", "name": "get_weather"},
        parallel_tool_calls=False,
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    (call,) = final.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert len(pieces) > 1
    assert "".join(pieces) == call.arguments
    assert call.parsed_arguments.keys() == {"city"}
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def test_what_came_of_a_function_goes_back_into_the_responses(client: Any) -> None:
    fields: Any = {"model": MODEL, "temperature": 0, "tools": [RESPONSES_TOOL]}
    first = client.responses.create(
        input=WEATHER, tool_choice="required", parallel_tool_calls=False, **fields
    )
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    second = client.responses.create(
        input=[result], previous_response_id=first.id, tool_choice="none", **fields
    )
    assert second.output_text
    by_hand = [{"role": "user", "content": WEATHER}, call, result]
    again = client.responses.create(input=by_hand, tool_choice="none", **fields)
    assert again.output_text == second.output_text


def test_errors_are_the_clients_own_classes(client: Any) -> None:
    chat = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(model="gpt-9", messages=user("hi"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat(model=MODEL, messages=user(TOO_LONG))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="sk-another").models.list()
    assert stranger.value.code == "invalid_api_key"


def test_a_schema_that_cannot_be_followed_is_refused_by_its_keyword(client: Any) -> None:
    schema = {"type": "array", "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "set", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(model=MODEL, messages=user("hi"), response_format=form)
