"""The prompt and the answer of a response as text and tokens."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.chat.choice import answer_format
from tests.server.world import World

PATH = "/v1/responses"
BODY = {"input": "hello", "max_output_tokens": 8, "seed": 1}
ENABLED = {**BODY, "enable_response_messages": True}
NAMES = ("input_messages", "output_messages")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def http(world: World) -> TestClient:
    return world.http()


def messages_of(response: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    [prompt], [answer] = (response[name] for name in NAMES)
    assert prompt["type"] == answer["type"] == "raw_message_tokens"
    return prompt, answer


def test_messages_are_the_tokens_of_prompt_and_answer(http: TestClient) -> None:
    response = http.post(PATH, json=ENABLED).json()
    prompt, answer = messages_of(response)
    chat = {"messages": [{"role": "user", "content": "hello"}], "return_token_strs": True}
    assert prompt["tokens"] == http.post("/tokenize", json=chat).json()["tokens"]
    assert prompt["message"] == "<|im_start|>user:hello<|im_end|><|im_start|>assistant:"
    assert len(answer["tokens"]) == response["usage"]["output_tokens"] == 8


def test_the_answers_text_has_what_parsers_remove() -> None:
    says = "<think>\nNorth.\n</think>\n\nYes."
    answers = answer_format(tools="none", reasoning="qwen3")
    with World(says=says, answers=answers, max_model_len=512) as world:
        body = {"input": "hello", "enable_response_messages": True}
        response = world.http().post(PATH, json=body).json()
    assert messages_of(response)[1]["message"].startswith(says)


def test_the_last_event_of_a_stream_has_the_same_messages(http: TestClient) -> None:
    whole = http.post(PATH, json=ENABLED).json()
    lines = http.post(PATH, json={**ENABLED, "stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert messages_of(events[-1]["response"]) == messages_of(whole)
    assert not events[0]["response"].keys() & {*NAMES}


def test_a_stored_response_keeps_its_messages(http: TestClient) -> None:
    response = http.post(PATH, json=ENABLED).json()
    assert http.get(f"{PATH}/{response['id']}").json() == response


@pytest.mark.parametrize("fields", [{}, {"enable_response_messages": False}])
def test_a_response_has_no_messages_unless_asked(http: TestClient, fields: Any) -> None:
    assert not http.post(PATH, json={**BODY, **fields}).json().keys() & {*NAMES}
