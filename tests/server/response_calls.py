"""Requests to /v1/responses."""

from typing import Any

import msgspec
from starlette.testclient import TestClient

PATH = "/v1/responses"
BODY = {"input": "hello", "max_output_tokens": 8, "seed": 1}


def stream(http: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """The data of a stream's events, whose names must be the types of their data."""
    data = []
    text = http.post(PATH, json={**BODY, **fields, "stream": True}).text
    for event in text.strip().split("\n\n"):
        name, line = event.split("\n")
        data.append(msgspec.json.decode(line.removeprefix("data: ")))
        assert name == f"event: {data[-1]['type']}"
    return data
