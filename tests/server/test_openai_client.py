"""OpenAI's own client, over a real socket, changes nothing but its base URL."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from jaxserve.server import ServerConfig
from tests.server.world import World

KEY = "sk-a-key"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Untyped: its overloads do not take the fields that two calls share."""
    config = ServerConfig(port=0, api_keys=(KEY,))
    with (
        World(config=config) as world,
        world.listening() as address,
        openai.OpenAI(base_url=f"{address.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny/model", messages=HELLO, max_completion_tokens=5, seed=1, logprobs=True
    )
    choice = answer.choices[0]
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or []) == 5
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_chat_stream_adds_up(client: Any) -> None:
    fields = {"model": "alias", "messages": HELLO, "max_tokens": 9, "seed": 1}
    whole = client.chat.completions.create(**fields)
    text, usage = "", None
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert usage == whole.usage


def test_an_answer_goes_back_into_the_chat(client: Any) -> None:
    fields = {"model": "tiny/model", "max_tokens": 5}
    first = client.chat.completions.create(messages=HELLO, **fields)
    second = client.chat.completions.create(
        messages=[*HELLO, first.choices[0].message, *HELLO], **fields
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_completion_and_its_stream(client: Any) -> None:
    fields = {"model": "tiny/model", "prompt": "once", "max_tokens": 7, "seed": 1}
    whole = client.completions.create(**fields)
    stream = client.completions.create(**fields, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_vllms_fields_pass_as_extra_body(client: Any) -> None:
    answer = client.completions.create(
        model="tiny/model", prompt="once", max_tokens=3, extra_body={"return_token_ids": True}
    )
    assert len(answer.choices[0].model_extra["token_ids"]) == 3


def test_response_and_its_stream(client: Any) -> None:
    fields = {"model": "alias", "input": "hello", "max_output_tokens": 9, "extra_body": {"seed": 1}}
    whole = client.responses.create(**fields)
    assert whole.output_text
    with client.responses.stream(**fields) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
    # The client puts the deltas together, and has one response in the end.
    assert text == whole.output_text


def test_a_conversation_of_responses(client: Any) -> None:
    fields = {"model": "alias", "max_output_tokens": 5}
    first = client.responses.create(input="hello", store=True, **fields)
    kept = client.responses.retrieve(first.id)
    assert kept == first
    second = client.responses.create(input="and", previous_response_id=first.id, **fields)
    assert second.usage.input_tokens > first.usage.input_tokens
    by_hand = client.responses.create(
        input=[
            {"role": "user", "content": "hello"},
            *first.output,
            {"role": "user", "content": "and"},
        ],
        store=False,
        **fields,
    )
    assert by_hand.usage.input_tokens == second.usage.input_tokens
    assert [item.type for item in client.responses.input_items.list(first.id)] == ["message"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny/model", "alias"]
    assert client.models.retrieve("tiny/model").owned_by == "jaxserve"


def test_errors_are_the_clients_own_classes(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="alias", messages=HELLO, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="sk-another").models.list()
    assert stranger.value.code == "invalid_api_key"
