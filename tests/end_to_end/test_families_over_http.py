"""One family of each kind of cache over HTTP: chat, stream, tools and structured output.

Models that keep pages only are served by test_structured_outputs.py.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from tests.chat.answers import form_of
from tests.end_to_end.world import http_of, load, write_family
from tests.server.world import events

MAX_MODEL_LEN = 1024
PATH = "/v1/chat/completions"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "is_warm": {"type": "boolean"}},
    "required": ["city", "is_warm"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("family", "case"),
    [
        ("gemma4_text", "inputs of layers, shared keys and values"),  # windows, shared keys
        ("deepseek_v3", "groups"),  # latents
        ("qwen3_5_text", "default"),  # recurrent states
    ],
)
def test_a_checkpoint_is_served_over_http(family: str, case: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, family, case, max_model_len=MAX_MODEL_LEN)
    loaded = load(folder, num_pages=200, max_num_batched_tokens=64, warm_up="none")
    with http_of(loaded, loaded.engine, tmp_path, answers=form_of("hermes")) as http:
        answer = chat(http, max_tokens=9)
        assert answer["message"]["content"] == streamed(http, max_tokens=9)
        assert answer["finish_reason"] in {"length", "stop"}

        called = chat(http, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        (call,) = called["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)

        structured = chat(http, response_format=FORMAT)
        jsonschema.validate(json.loads(structured["message"]["content"]), SCHEMA)


def chat(http: TestClient, **fields: Any) -> Any:
    """Return the choice of a greedy answer."""
    response = http.post(PATH, json=asked(**fields))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def streamed(http: TestClient, **fields: Any) -> str:
    """Return the text of a greedy answer, which comes in pieces."""
    with http.stream("POST", PATH, json=asked(stream=True, **fields)) as response:
        assert response.status_code == 200
        chunks = events(response.iter_lines())
    assert chunks.pop() is None
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def asked(**fields: Any) -> dict[str, Any]:
    """Return the body of a request."""
    messages = [{"role": "user", "content": "Is it warm in Oslo?"}]
    return {"model": "served", "messages": messages, "temperature": 0, "max_tokens": 200, **fields}
