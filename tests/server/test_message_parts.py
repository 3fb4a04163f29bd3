"""Messages of chats in the forms that clients give them: parts of several types, and none."""

from typing import Any

import pytest
from starlette.testclient import TestClient

PATH = "/v1/chat/completions"
ASKED = {"role": "user", "content": "hello"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def prompt(http: TestClient, *messages: dict[str, Any], **fields: Any) -> Any:
    body = {"messages": [*messages], "max_tokens": 1, "return_prompt_text": True, **fields}
    answer = http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt_text"]


@pytest.mark.parametrize("kind", ["input_text", "output_text"])
def test_parts_have_the_types_of_responses_too(http: TestClient, kind: str) -> None:
    part = {"type": kind, "text": "hello"}
    assert prompt(http, {"role": "user", "content": [part]}) == prompt(http, ASKED)


def test_a_refusal_is_a_part_that_the_model_reads(http: TestClient) -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]}
    said = {"role": "assistant", "content": "never"}
    assert prompt(http, ASKED, refused, ASKED) == prompt(http, ASKED, said, ASKED)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_no_parts_are_an_empty_text(http: TestClient, role: str) -> None:
    parts: list[Any] = []
    texts = [prompt(http, ASKED, {"role": role, "content": said}, ASKED) for said in (parts, "")]
    assert texts[0] == texts[1]


def test_a_call_of_no_type_is_one_of_a_function(http: TestClient) -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    untyped = {key: value for key, value in CALL.items() if key != "type"}
    texts = [
        prompt(http, ASKED, {"role": "assistant", "tool_calls": [call]}, result, tools=TOOLS)
        for call in (CALL, untyped)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["image_url", "thinking", "texts"])
def test_other_parts_are_refused_by_their_type(http: TestClient, kind: str) -> None:
    message = {"role": "user", "content": [{"type": kind, "text": "a"}]}
    answer = http.post(PATH, json={"messages": [message]})
    assert answer.status_code == 400
    assert f"'{kind}' is not supported" in answer.json()["error"]["message"]
