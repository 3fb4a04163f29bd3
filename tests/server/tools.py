"""Chats with tools, and a server whose model answers them with a given text."""

from typing import Any

from starlette.testclient import TestClient

from jaxserve.chat.parser import AnswerFormat
from tests.chat.answers import form_of
from tests.server.world import World, events

PATH = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Is it warm in Oslo?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
QWEN3 = form_of("hermes", "qwen3")
# Long enough for answers of a byte a token.
LENGTH = 2048


def world(says: str, answers: AnswerFormat = QWEN3, **settings: Any) -> World:
    return World(says=says, answers=answers, max_model_len=LENGTH, max_num_seqs=2, **settings)


def ask(http: TestClient, **fields: Any) -> Any:
    response = http.post(PATH, json={"messages": ASK, "tools": [WEATHER, NOW], **fields})
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: TestClient, **fields: Any) -> Any:
    response = http.post(PATH, json={"messages": ASK, **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def deltas(http: TestClient, **fields: Any) -> list[Any]:
    body = {"messages": ASK, "tools": [WEATHER, NOW], "stream": True, **fields}
    with http.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200
        chunks = events(response.iter_lines())
    assert chunks.pop() is None
    return [choice for chunk in chunks for choice in chunk["choices"]]
