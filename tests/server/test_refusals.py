"""Every malformed request gets a 4xx that names the field, the value and the limit."""

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.invalid_bodies import CHAT, FIELDS, JSON, NO_JSON, TEXT, chat, text
from tests.server.world import World


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of an answer, which must have OpenAI's shape and nothing of our insides."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500
    assert not re.search(r"pydantic|msgspec|jinja|Traceback|0x[0-9a-f]{6}|\.py", error["message"])
    return error


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: repr(body[:30]))
def test_what_is_no_json_object_is_refused(http: TestClient, body: bytes) -> None:
    error = error_of(http.post(TEXT, content=body, headers=JSON), 400)
    assert error["code"] == "invalid_json"
    assert error["param"] is None


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    FIELDS,
    ids=[f"{param}-{words[:20]}" for _, _, param, words in FIELDS],
)
def test_a_wrong_field_is_refused_by_name_with_its_limit(
    http: TestClient, path: str, body: Any, param: str, words: str
) -> None:
    error = error_of(http.post(path, content=json.dumps(body), headers=JSON), 400)
    assert error["param"] == param
    assert words in error["message"]


def test_nothing_refused_has_reached_the_engine(http: TestClient, world: World) -> None:
    before = world.client.stats()
    for path, body, _, _ in FIELDS:
        http.post(path, content=json.dumps(body), headers=JSON)
    assert world.client.stats() == before


@pytest.mark.parametrize("path", [TEXT, CHAT, "/tokenize", "/detokenize"])
def test_an_unknown_model_is_404_with_its_code(http: TestClient, path: str) -> None:
    fields = {
        TEXT: text(),
        CHAT: chat(),
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": []},
    }
    error = error_of(http.post(path, json={**fields[path], "model": "gpt-9"}), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "'gpt-9'" in error["message"]


def test_too_long_a_prompt_has_openais_code(http: TestClient) -> None:
    error = error_of(http.post(TEXT, json=text(prompt=[5] * 200)), 400)
    assert error["code"] == "context_length_exceeded"


def test_the_value_shown_is_bounded(http: TestClient) -> None:
    error = error_of(http.post(TEXT, json=text(temperature="x" * 100_000)), 400)
    assert len(error["message"]) < 150


def test_a_field_of_no_effect_is_accepted(http: TestClient) -> None:
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "verbosity": "low",
        "best_of": 1,
        "suffix": None,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "response_format": {"type": "text"},
    }
    assert http.post(TEXT, json=text(**harmless)).status_code == 200


@pytest.mark.parametrize("sent", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
def test_a_body_that_does_not_say_it_is_json_is_not_read(
    http: TestClient, sent: str | None
) -> None:
    headers = {} if sent is None else {"content-type": sent}
    error = error_of(http.post(TEXT, content=json.dumps(text()), headers=headers), 415)
    assert error["code"] == "unsupported_media_type"


def test_json_may_name_its_encoding(http: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert http.post(TEXT, content=json.dumps(text()), headers=headers).status_code == 200


def test_null_is_the_same_as_absent(http: TestClient) -> None:
    nulls = dict.fromkeys(
        ("temperature", "n", "stop", "logprobs", "seed", "stream", "stream_options", "logit_bias")
    )
    assert http.post(TEXT, json=text(**nulls)).status_code == 200


def test_an_answer_about_a_prompt_has_a_limit(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxserve.server.generation.prompts.MAX_LOGPROBS_PER_ANSWER", 60)
    assert http.post(TEXT, json=text(prompt=[5] * 3, prompt_logprobs=20)).status_code == 200
    error = error_of(http.post(TEXT, json=text(prompt=[5] * 4, prompt_logprobs=20)), 400)
    assert error["param"] == "prompt_logprobs"
    assert "at most 60, got 20 times 4" in error["message"]


def test_an_answer_about_its_own_tokens_has_a_limit(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxserve.server.generation.prompts.MAX_LOGPROBS_PER_ANSWER", 60)
    # Few alternatives are always allowed: such answers take long before they are large.
    assert http.post(TEXT, json=text(logprobs=20, max_tokens=4)).status_code == 200
    monkeypatch.setattr("jaxserve.server.generation.prompts.DEFAULT_MAX_LOGPROBS", 19)
    assert http.post(TEXT, json=text(logprobs=20, max_tokens=3)).status_code == 200
    error = error_of(http.post(TEXT, json=text(logprobs=20, max_tokens=2, n=2)), 400)
    assert error["param"] == "logprobs"
    assert "at most 60, got 20 times 4" in error["message"]
