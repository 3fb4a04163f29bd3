"""Anthropic's own client, over a real socket, changes nothing but its base URL."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from jaxserve.server import ServerConfig
from tests.server.world import World

KEY = "sk-a-key"
FIELDS: Any = {
    "model": "tiny/model",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 9,
    "extra_body": {"seed": 1},
}


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    config = ServerConfig(port=0, api_keys=(KEY,))
    with (
        World(config=config) as world,
        world.listening() as address,
        anthropic.Anthropic(base_url=address.url, api_key=KEY, max_retries=0) as client,
    ):
        yield client


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**FIELDS)
    assert message.content[0].type == "text"
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 9


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**FIELDS)
    with client.messages.stream(**FIELDS) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == text == whole.content[0].text  # type: ignore[union-attr]
    assert final.usage.output_tokens == 9


def test_an_answer_goes_back_into_the_messages(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**FIELDS)
    turns = [*FIELDS["messages"], {"role": "assistant", "content": first.content}]
    second = client.messages.create(**{**FIELDS, "messages": [*turns, *FIELDS["messages"]]})
    assert second.content


def test_a_count_of_tokens(client: anthropic.Anthropic) -> None:
    fields = {"model": FIELDS["model"], "messages": FIELDS["messages"]}
    assert client.messages.count_tokens(**fields).input_tokens > 0


def test_errors_are_the_clients_own_classes(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="top_p"):
        client.messages.create(**{**FIELDS, "extra_body": {"top_p": -1.0}})
    with pytest.raises(anthropic.NotFoundError, match="gpt-9"):
        client.messages.create(**{**FIELDS, "model": "gpt-9"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="sk-another").messages.create(**FIELDS)
