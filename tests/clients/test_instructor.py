"""instructor, by each of the ways in which it asks for a form."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

instructor = pytest.importorskip("instructor")

from tests.clients.world import ANNA, KEY, MODEL, Address, Mood, Person


@pytest.fixture(params=["TOOLS", "JSON_SCHEMA"])
def client(request: pytest.FixtureRequest, server: Address) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as own:
        yield instructor.from_openai(own, mode=instructor.Mode[request.param])


@pytest.fixture
def plain(server: Address) -> Iterator[Any]:
    """Asks for any JSON, so that the model has to know the fields."""
    with openai.OpenAI(base_url=server.v1, api_key=KEY, max_retries=0) as own:
        yield instructor.from_openai(own, mode=instructor.Mode.JSON)


def asking(text: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_retries": 1,
        "parallel_tool_calls": False,
    }


def test_a_model_comes_back(client: Any) -> None:
    assert isinstance(client.create(response_model=Person, **asking(ANNA)), Person)


def test_a_model_comes_back_from_any_json(plain: Any) -> None:
    assert isinstance(plain.create(response_model=Person, **asking(ANNA)), Person)


def test_a_model_comes_back_whatever_is_asked(client: Any) -> None:
    assert isinstance(client.create(response_model=Mood, **asking("How are you?")), Mood)


def test_a_model_streams_as_it_grows(client: Any) -> None:
    seen = list(client.create_partial(response_model=Person, **asking(ANNA)))
    assert len(seen) > 1
    assert seen[-1].name
