"""Fields that nothing reads: accepted, and told in a header, a metric and the log; or refused."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.api.pooling import Activation, PoolingModel, PoolingType
from jaxserve.frontend.schema.ignored import (
    MAX_HEADER_CHARS,
    MAX_NAMES,
    IgnoredFields,
    unread_places,
)
from jaxserve.frontend.schema.parsing import parse
from jaxserve.observability.ignored_fields import MAX_UNKNOWN, OTHER, IgnoredLog
from jaxserve.offline.prompts import ChatOptions, PromptReader
from jaxserve.server import ServerConfig
from jaxserve.server.chat.schema import ChatBody
from tests.server.ignored import (
    CHAT,
    FUNCTION,
    HEADER,
    MESSAGES,
    PART,
    RESPONSES,
    TEXT,
    TOP,
    TURNS,
    names_of,
)
from tests.server.test_metrics import scrape
from tests.server.world import World, tokenizer

POOLED = {"input": "hello", **TOP}
# path, body with ten unknown fields, and the names of those that are not at the top
GENERATE: dict[str, tuple[dict[str, Any], list[str]]] = {
    CHAT: (
        {
            "messages": TURNS,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "none",
            "max_tokens": 2,
        },
        ["messages[].content[].x_part", "messages[].x_turn", "tools[].function.x_function"],
    ),
    TEXT: (
        {"prompt": "hello", "max_tokens": 2, "stream": True}
        | {"stream_options": {"include_usage": True, "x_a": 1, "x_b": [1], "x_c": {"y": 1}}},
        ["stream_options.x_a", "stream_options.x_b", "stream_options.x_c"],
    ),
    RESPONSES: (
        {
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "hello", "x_part": 1}],
                    "x_item": 1,
                }
            ],
            "reasoning": {"effort": "low", "x_reasoning": 1},
            "max_output_tokens": 2,
        },
        ["input[].content[].x_part", "input[].x_item", "reasoning.x_reasoning"],
    ),
    f"{RESPONSES}/input_tokens": (
        {
            "input": [{"role": "user", "content": "hello", "x_item": 1}],
            "reasoning": {"x_reasoning": 1},
            "text": {"x_text": 1},
        },
        ["input[].x_item", "reasoning.x_reasoning", "text.x_text"],
    ),
    MESSAGES: (
        {
            "model": "alias",
            "max_tokens": 2,
            "messages": TURNS,
            "tools": [{"name": "f", "input_schema": {}, "x_tool": 1}],
            "tool_choice": {"type": "none"},
        },
        ["messages[].content[].x_part", "messages[].x_turn", "tools[].x_tool"],
    ),
    f"{MESSAGES}/count_tokens": (
        {
            "model": "alias",
            "messages": TURNS,
            "system": [{"type": "text", "text": "hi", "x_part": 1}],
        },
        ["messages[].content[].x_part", "messages[].x_turn", "system[].x_part"],
    ),
    "/tokenize": (
        {"messages": TURNS, "chat_template_kwargs": {"x_option": 1}},
        [
            "messages[].content[].x_part",
            "messages[].x_turn",
            "chat_template_kwargs.x_option",
        ],
    ),
    "/detokenize": ({"tokens": [5], "x_a": 1, "x_b": [], "x_c": {}}, ["x_a", "x_b", "x_c"]),
    "/invocations": ({"prompt": "a", "max_tokens": 1, "x_a": 1, "x_b": 0, "x_c": ""}, ["x_a"]),
}
POOL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/v1/embeddings": (POOLED, []),
    "/pooling": (
        {"messages": TURNS, **TOP},
        ["messages[].content[].x_part", "messages[].x_turn"],
    ),
    "/v2/embed": (
        {"inputs": [{"content": [PART], "x_input": 1}], **TOP},
        ["inputs[].x_input", "inputs[].content[].x_part"],
    ),
}


@pytest.mark.parametrize("path", GENERATE)
def test_unknown_fields_are_accepted_and_told(http: TestClient, path: str) -> None:
    body, inner = GENERATE[path]
    answer = http.post(path, json={**body, **TOP})
    assert answer.status_code == 200, answer.text
    assert {*TOP, *inner} <= {*names_of(answer)}
    assert len(names_of(answer)) == 10


@pytest.mark.parametrize("path", POOL)
def test_unknown_fields_are_accepted_by_models_that_pool(embedder: TestClient, path: str) -> None:
    body, inner = POOL[path]
    answer = embedder.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert {*names_of(answer)} == {*TOP, *inner}


def test_unknown_fields_are_accepted_where_pairs_are_scored() -> None:
    pooling = PoolingModel(
        type=PoolingType.LAST, width=1, labels=("relevance",), activation=Activation.SIGMOID
    )
    documents = [{"text": "a", "x_document": 1}, "b"]
    bodies: dict[str, tuple[dict[str, Any], set[str]]] = {
        "/rerank": ({"query": "a", "documents": documents}, {"documents[].x_document"}),
        "/score": ({"queries": "a", "items": ["b"]}, set()),
        "/classify": ({"input": "a"}, set()),
    }
    with World(pooling=pooling) as world, world.http() as http:
        for path, (body, inner) in bodies.items():
            answer = http.post(path, json={**body, **TOP})
            assert answer.status_code == 200, answer.text
            assert {*names_of(answer)} == {*TOP, *inner}


def test_unknown_fields_change_no_prompt(http: TestClient) -> None:
    def prompt(**more: Any) -> Any:
        plain = {
            "messages": [{"role": "user", "content": "hello"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        }
        fields = {**plain, "max_tokens": 2, "return_prompt_text": True, **more}
        return http.post(CHAT, json=fields).json()["prompt_text"]

    tools = [{"type": "function", "x": 1, "function": {"name": "f", "parameters": {}, "x": 1}}]
    assert prompt(messages=TURNS, tools=tools) == prompt()


def test_a_request_without_such_fields_has_no_header(http: TestClient) -> None:
    body = {"prompt": "hello", "max_tokens": 2, "nothing": None, "modalities": ["text"]}
    assert HEADER not in http.post(TEXT, json=body).headers


@pytest.mark.parametrize(
    ("body", "param"),
    [({"promt": "hello"}, "prompt"), ({"prompt": "a", "promt": 1, "top_p": 2}, "top_p")],
)
def test_an_error_tells_them_too(http: TestClient, body: dict[str, Any], param: str) -> None:
    answer = http.post(TEXT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert names_of(answer) == ["promt"]


def test_each_is_counted_every_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fields = {f"new_{index}": index for index in range(10)}
    with World() as world, world.http() as http:
        for _ in range(3):
            body = {"prompt": "hello", "max_tokens": 1, "user": "me", **fields}
            assert http.post(TEXT, json=body).status_code == 200
        series = scrape(http)
    for name in (*fields, "user"):
        assert series[f'jaxserve:ignored_fields_total{{field="{name}"}}'] == 3
        lines = [each for each in caplog.records if f"'field': '{name}'" in each.getMessage()]
        assert len(lines) == 1


def test_a_strict_server_refuses_unknown_fields_and_takes_hints() -> None:
    with World(config=ServerConfig(port=0, strict_fields=True)) as world, world.http() as http:
        for path, (body, _) in GENERATE.items():
            answer = http.post(path, json={**body, **TOP})
            assert answer.status_code == 400
            assert "there is no field" in answer.json()["error"]["message"]
        answer = http.post(CHAT, json={"messages": TURNS, "max_tokens": 2})
        assert answer.json()["error"]["param"] == "messages[0].content[0].x_part"
        assert answer.json()["error"]["code"] == "unknown_field"
        hints = {"prompt": "hello", "max_tokens": 1, "user": "me"}
        answer = http.post(TEXT, json=hints)
        assert (answer.status_code, names_of(answer)) == (200, ["user"])


def test_options_that_the_template_does_not_read_are_told(http: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for path in (CHAT, "/tokenize"):
        options = {"enable_thinking": False, "thinking_budget": 5}
        answer = http.post(path, json={**body, "chat_template_kwargs": options})
        assert answer.status_code == 200
        assert "chat_template_kwargs.thinking_budget" in names_of(answer)
        assert "chat_template_kwargs.enable_thinking" not in names_of(answer)


def test_names_are_safe_in_a_header(http: TestClient) -> None:
    names = ["a\r\nx-evil: 1", "b, c", "ключ", "x" * 1000, "\0", ""]
    answer = http.post(TEXT, json={"prompt": "a", "max_tokens": 1, **dict.fromkeys(names, 1)})
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    shown = names_of(answer)
    assert shown[:3] == ["a??x-evil:?1", "b??c", "????"]
    assert max(map(len, shown)) <= 64
    assert shown[-1] == "?"


def test_the_header_is_bounded() -> None:
    ignored = IgnoredFields()
    for index in range(1000):
        ignored.add((f"name_{index:03}",))
    assert len(ignored.names) == MAX_NAMES
    assert ignored.header.endswith("name_031, ...")
    ignored = IgnoredFields()
    for index in range(32):
        ignored.add((f"{index:02}" + "x" * 60,))
    assert len(ignored.header) <= MAX_HEADER_CHARS + len(", ...")
    assert ignored.header.endswith("x, ...")


def test_the_names_of_the_metric_are_bounded() -> None:
    log = IgnoredLog()
    names = {log.note(f"name_{index}", is_hint=False) for index in range(1000)}
    assert len(names) == MAX_UNKNOWN + 1
    assert OTHER in names
    assert log.note("name_0", is_hint=False) == "name_0"
    assert log.note("user", is_hint=True) == "user"


def test_lists_of_numbers_are_not_looked_at() -> None:
    class Never(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise AssertionError

        def __len__(self) -> int:
            raise AssertionError

    fields = {"messages": [{"role": "user", "content": "a"}], "stop_token_ids": [1], "x": 1}
    body = parse(fields, ChatBody)
    fields["stop_token_ids"] = Never()
    assert list(unread_places(fields, ChatBody, body)) == [(("x",), False)]


def test_bodies_of_pairs_have_one_name_for_each_text() -> None:
    pooling = PoolingModel(
        type=PoolingType.LAST, width=1, labels=("relevance",), activation=Activation.SIGMOID
    )
    with World(pooling=pooling) as world, world.http() as http:
        answer = http.post("/score", json={"text_1": "a", "queries": "b", "text_2": ["c"]})
    assert answer.status_code == 400
    assert "only one of text_1, queries" in answer.json()["error"]["message"]


def test_offline_chats_log_keys_that_nothing_reads(caplog: pytest.LogCaptureFixture) -> None:
    reader = PromptReader(tokenizer(), max_model_len=100)
    options = ChatOptions(
        chat_template_content_format="auto",
        chat_template=None,
        tools=None,
        add_generation_prompt=True,
        continue_final_message=False,
        chat_template_kwargs={"x_option": 1},
    )
    plain = [{"role": "user", "content": "hello"}]
    prompt = reader.render([{**plain[0], "x_key": 1}], options)
    assert prompt == reader.render(plain, replace(options, chat_template_kwargs=None))
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "'messages[].x_key'" in logged
    assert "'chat_template_kwargs.x_option'" in logged
