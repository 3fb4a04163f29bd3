"""Answers and chunks, field by field, against OpenAI's own OpenAPI document."""

import json
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from tests.data import DATA, needs_data
from tests.server.world import events

pytestmark = needs_data

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "n": 2}
TEXT = {"prompt": "hello", "max_tokens": 5, "n": 2}


def modern(schema: Any) -> Any:
    """The document still says `nullable` in places, which its own version (3.1) does not have."""
    if isinstance(schema, list):
        return [modern(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: modern(value) for key, value in schema.items()}
    if schema.pop("nullable", None) is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


@cache
def document() -> Any:
    return modern(json.loads((DATA / "openai-openapi.json").read_text("utf-8")))


# vLLM writes null for these, and so does OpenAI for some of them, where the document says nothing
# of null.
NULLS = {"annotations", "audio", "function_call", "usage", "user"}


def without_nulls(value: Any) -> Any:
    """Leave out the fields that may be null in spite of the document."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: without_nulls(field)
        for name, field in value.items()
        if field is not None or name not in NULLS
    }


def check(value: Any, name: str) -> None:
    """Assert that a value is what the document calls `name`."""
    value = without_nulls(value)
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    problems = [
        f"{error.json_path}: {error.message[:200]}"
        for error in Draft202012Validator(schema).iter_errors(value)
    ]
    assert problems == []


def assert_complete(chunks: list[Any]) -> None:
    """Assert that a stream ends as it should: a slow reader may get all tokens in one chunk."""
    *chunks, last = chunks
    assert any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])
    assert last["usage"]["completion_tokens"] > 0


def test_the_check_can_fail(http: TestClient) -> None:
    answer = http.post("/v1/chat/completions", json=CHAT).json()
    del answer["choices"][0]["logprobs"]
    with pytest.raises(AssertionError, match="logprobs"):
        check(answer, "CreateChatCompletionResponse")


CHAT_FIELDS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "logprob_token_ids": [5], "return_tokens_as_token_ids": True},
    {"use_beam_search": True, "logprobs": True},
    {"return_token_ids": True, "return_prompt_text": True},
    {"truncate_prompt_tokens": 3, "echo": True},
]


@pytest.mark.parametrize("fields", CHAT_FIELDS)
def test_a_chat_completion_is_openais(http: TestClient, fields: dict[str, Any]) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, **fields}).json()
    check(answer, "CreateChatCompletionResponse")


@pytest.mark.parametrize("fields", [*CHAT_FIELDS, {"stream_interval": 2}])
def test_every_chunk_of_a_chat_is_openais(http: TestClient, fields: dict[str, Any]) -> None:
    body = {**CHAT, **fields, "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = events(response.iter_lines())[:-1]
    assert_complete(chunks)
    for chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse")


TEXT_FIELDS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"logprobs": 3, "echo": True},
    {"logprobs": 1, "echo": True, "max_tokens": 0},
    {"prompt": [[5, 6], [7]], "return_token_ids": True},
    {"prompt": ["a", "b"], "use_beam_search": True, "logprobs": 1},
    {"prompt_logprobs": 2},
]


@pytest.mark.parametrize("fields", TEXT_FIELDS)
def test_a_completion_is_openais(http: TestClient, fields: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", json={**TEXT, **fields}).json()
    if fields.get("echo") and "logprobs" in fields:
        answer = without_first_logprobs(answer)
    check(answer, "CreateCompletionResponse")


@pytest.mark.parametrize("fields", [{}, {"logprobs": 3}, {"stream_interval": 2}])
def test_every_chunk_of_a_completion_is_openais(http: TestClient, fields: dict[str, Any]) -> None:
    body = {**TEXT, **fields, "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/completions", json=body) as response:
        chunks = events(response.iter_lines())[:-1]
    assert_complete(chunks)
    for chunk in chunks:
        # The document has no schema of its own for chunks, in which this is null until the end.
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(chunk, "CreateCompletionResponse")


def without_first_logprobs(answer: Any) -> Any:
    """Take the nulls of a prompt's first token out, which OpenAI sends and its document lacks."""
    for choice in answer["choices"]:
        for name in ("token_logprobs", "top_logprobs"):
            column = choice["logprobs"][name]
            assert column.pop(0) is None
    return answer


def test_models_are_openais(http: TestClient) -> None:
    check(http.get("/v1/models").json(), "ListModelsResponse")
    check(http.get("/v1/models/tiny/model").json(), "Model")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/nothing", "/v1/models/nothing"])
def test_errors_are_openais(http: TestClient, path: str) -> None:
    check(http.post(path, json={}).json(), "ErrorResponse")
