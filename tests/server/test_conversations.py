"""POST /v1/chat/completions/batch: several chats in one request."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

PATH = "/v1/chat/completions/batch"
HELLO = [{"role": "user", "content": "hello"}]
BYE = [{"role": "user", "content": "bye"}]


def ask(http: TestClient, *, path: str = PATH, **fields: Any) -> Any:
    body = {"messages": [HELLO, BYE], "seed": 1, "max_tokens": 6, **fields}
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(http: TestClient, **fields: Any) -> Any:
    body = {"messages": [HELLO, BYE], "max_tokens": 6, **fields}
    response = http.post(PATH, json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_each_chat_gets_the_choice_that_it_would_get_alone(http: TestClient) -> None:
    both = ask(http, temperature=0)
    alone = [
        ask(http, path="/v1/chat/completions", messages=chat, temperature=0)
        for chat in (HELLO, BYE)
    ]
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert [choice["message"] for choice in both["choices"]] == [
        answer["choices"][0]["message"] for answer in alone
    ]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert both["usage"][count] == sum(answer["usage"][count] for answer in alone)


def test_all_chats_share_the_form_that_is_asked_for(http: TestClient) -> None:
    schema = {"enum": ["yes", "no"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = ask(http, response_format=form, max_tokens=40)
    for choice in answer["choices"]:
        assert json.loads(choice["message"]["content"]) in {"yes", "no"}


def test_log_probabilities_and_ids_are_those_of_each_chat(http: TestClient) -> None:
    answer = ask(http, logprobs=True, top_logprobs=1, return_token_ids=True)
    for choice in answer["choices"]:
        assert len(choice["token_ids"]) == len(choice["logprobs"]["content"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": HELLO}, "messages[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [HELLO, []]}, "messages[1]"),
        ({"messages": [HELLO, [{"role": "user", "content": 5}]]}, "messages[1][0].content"),
        ({"messages": [HELLO, [{"role": "user"}]]}, "messages[1][0].content"),
        ({"messages": [HELLO, [{"role": "user", "content": "z" * 5000}]]}, "messages[1]"),
        ({"messages": [HELLO] * 257}, "messages"),
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    http: TestClient, fields: dict[str, Any], param: str
) -> None:
    error = refusal(http, **fields)
    assert error["param"] == param
    assert param in error["message"]


def test_unknown_fields_of_messages_are_reported(http: TestClient) -> None:
    chat = [{"role": "user", "content": "hello", "colour": "red"}]
    response = http.post(PATH, json={"messages": [chat, chat], "max_tokens": 1, "top_n": 3})
    assert response.headers["x-jaxserve-ignored"] == "messages[][].colour, top_n"
