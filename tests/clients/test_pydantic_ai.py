"""pydantic-ai: agents whose outputs are typed and whose tools are called."""

import asyncio

import pytest

pytest.importorskip("pydantic_ai")

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.world import ANNA, CAPITAL, KEY, MODEL, WEATHER, Address, Person

GREEDY = {"temperature": 0.0, "max_tokens": 128}


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model(
    request: pytest.FixtureRequest, server: Address
) -> OpenAIChatModel | OpenAIResponsesModel:
    provider = OpenAIProvider(base_url=server.v1, api_key=KEY)
    found: OpenAIChatModel | OpenAIResponsesModel = request.param(MODEL, provider=provider)
    return found


def test_an_agent_answers(model: OpenAIChatModel) -> None:
    agent = Agent(model, model_settings=GREEDY)
    assert agent.run_sync(CAPITAL).output == "The capital of France is Paris."


def test_an_agent_streams(model: OpenAIChatModel) -> None:
    async def streamed() -> str:
        async with Agent(model, model_settings=GREEDY).run_stream(CAPITAL) as answer:
            return "".join([text async for text in answer.stream_text(delta=True)])

    assert asyncio.run(streamed()) == "The capital of France is Paris."


@pytest.mark.parametrize("way", [NativeOutput, ToolOutput])
def test_an_output_has_its_type(
    model: OpenAIChatModel, way: type[NativeOutput | ToolOutput]
) -> None:
    agent = Agent(model, output_type=way(Person), model_settings=GREEDY)
    assert isinstance(agent.run_sync(ANNA).output, Person)


def test_an_agent_uses_its_tools(model: OpenAIChatModel) -> None:
    asked = []

    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        asked.append(city)
        return "Sunny."

    agent = Agent(model, model_settings=GREEDY, tools=[get_weather])
    assert agent.run_sync(WEATHER).output
    assert asked
