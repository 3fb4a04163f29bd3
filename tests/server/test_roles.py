"""Roles of messages: those that the template reads, ignores or refuses."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.server import ServerConfig
from tests.server.ignored import CHAT, TURNS, names_of
from tests.server.world import World


def test_a_refusal_sent_back_is_what_the_assistant_said(http: TestClient) -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I will not"}
    messages = [TURNS[0], refused, {"role": "user", "content": "why"}]
    body = {"messages": messages, "max_tokens": 1, "return_prompt_text": True}
    assert "assistant:I will not<" in http.post(CHAT, json=body).json()["prompt_text"]


CRITIC: dict[str, Any] = {
    "messages": [TURNS[0], {"role": "critic", "content": "no"}],
    "max_tokens": 1,
}


def test_a_role_that_the_template_reads_is_in_the_prompt(http: TestClient) -> None:
    answer = http.post(CHAT, json={**CRITIC, "return_prompt_text": True})
    assert "<|im_start|>critic:no<|im_end|>" in answer.json()["prompt_text"]
    assert "messages[].role" not in names_of(answer)


def test_a_role_that_the_template_leaves_out_is_told() -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with World(template=template) as world, world.http() as http:
        answer = http.post(CHAT, json=CRITIC)
        assert answer.status_code == 200
        assert "messages[].role" in names_of(answer)
        assert "messages[].role" in names_of(http.post("/tokenize", json=CRITIC))
    strict = ServerConfig(port=0, strict_fields=True)
    plain = {"messages": [{"role": "user", "content": "hi"}, CRITIC["messages"][1]]}
    with World(template=template, config=strict) as world, world.http() as http:
        error = http.post(CHAT, json=plain).json()["error"]
    assert error["param"] == "messages[1].role"
    assert "'critic'" in error["message"]


@pytest.mark.parametrize("role", ["", "a b", "user<|im_end|>", "x" * 65, 5])
def test_what_is_no_role_is_refused(http: TestClient, role: object) -> None:
    body = {"messages": [{"role": role, "content": "hi"}], "max_tokens": 1}
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].role"
