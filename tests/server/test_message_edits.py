"""The context_management of /v1/messages: what older turns lose, and the report of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.messages.edits import CLEARED, edited
from jaxserve.server.messages.schema import MessagesBody
from tests.server.world import World, events

PATH = "/v1/messages"
ASKED: dict[str, Any] = {"role": "user", "content": "go on"}
LONG = "the quick brown fox jumps over the lazy dog " * 8


def thinking(*thoughts: str) -> list[dict[str, Any]]:
    """Turns of which each has a thought."""
    turns: list[dict[str, Any]] = []
    for thought in thoughts:
        blocks = [
            {"type": "thinking", "thinking": thought, "signature": "s"},
            {"type": "redacted_thinking", "data": "opaque"},
            {"type": "text", "text": "well"},
        ]
        turns += [ASKED, {"role": "assistant", "content": blocks}]
    return [*turns, ASKED]


def calling(*names: str) -> list[dict[str, Any]]:
    """Turns that each call a tool and get a long result."""
    turns: list[dict[str, Any]] = [ASKED]
    for index, name in enumerate(names):
        call = {"type": "tool_use", "id": f"c{index}", "name": name, "input": {"number": index}}
        result = {"type": "tool_result", "tool_use_id": f"c{index}", "content": LONG}
        turns += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return turns


def body_of(messages: list[dict[str, Any]], *edits: dict[str, Any]) -> dict[str, Any]:
    management = {"edits": [*edits]}
    return {
        "model": "tiny/model",
        "max_tokens": 2,
        "messages": messages,
        "context_management": management,
    }


def clear(**fields: Any) -> dict[str, Any]:
    trigger = {"type": "tool_uses", "value": 0}
    return {"type": "clear_tool_uses_20250919", "trigger": trigger, **fields}


def keep(value: int) -> dict[str, Any]:
    return {"type": "tool_uses", "value": value}


def edit(messages: list[dict[str, Any]], *edits: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The messages that are left and the reports; a prompt has as many tokens as characters."""
    body = parse(body_of(messages, *edits), MessagesBody)
    assert body.context_management is not None
    return edited(
        body.chat()["messages"],
        body.context_management.edits,
        lambda left: len(json.dumps(left)),
    )


def cleared(messages: list[dict[str, Any]]) -> list[int]:
    """Numbers of the calls whose results are cleared."""
    results = [message for message in messages if message["role"] == "tool"]
    return [index for index, result in enumerate(results) if result["content"] == CLEARED]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with World(max_model_len=1024) as world, world.http() as http:
        yield http


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, ["c"]),
        ({"keep": "all"}, ["a", "b", "c"]),
        ({"keep": {"type": "all"}}, ["a", "b", "c"]),
        ({"keep": {"type": "thinking_turns", "value": 2}}, ["b", "c"]),
        ({"keep": {"type": "thinking_turns", "value": 9}}, ["a", "b", "c"]),
    ],
)
def test_an_edit_clears_older_thinking(fields: dict[str, Any], left: list[str]) -> None:
    messages, applied = edit(thinking("a", "b", "c"), {"type": "clear_thinking_20251015", **fields})
    assert [m["reasoning"] for m in messages if "reasoning" in m] == left
    assert [report.cleared_thinking_turns for report in applied] == (
        [3 - len(left)] if len(left) < 3 else []
    )


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, [0]),
        ({"keep": keep(0)}, [0, 1, 2, 3]),
        ({"keep": keep(1), "exclude_tools": ["b"]}, [0, 2]),
        ({"keep": keep(9)}, []),
        ({"trigger": {"type": "tool_uses", "value": 4}}, []),
        ({"trigger": {"type": "tool_uses", "value": 3}}, [0]),
        ({"trigger": {"type": "input_tokens", "value": 9999}}, []),
        ({"trigger": {"type": "input_tokens", "value": 999}}, [0]),
        ({"clear_at_least": {"type": "input_tokens", "value": 999}}, []),
        ({"clear_at_least": {"type": "input_tokens", "value": 99}}, [0]),
    ],
)
def test_an_edit_clears_older_results(fields: dict[str, Any], left: list[int]) -> None:
    messages, applied = edit(calling("a", "b", "a", "b"), clear(**fields))
    assert cleared(messages) == left
    assert [report.cleared_tool_uses for report in applied] == ([len(left)] if left else [])
    for report in applied:
        saved = len(json.dumps([{"type": "text", "text": LONG}])) - len(json.dumps(CLEARED))
        assert report.cleared_input_tokens == saved * len(left)


@pytest.mark.parametrize(
    ("inputs", "left"), [(False, [0, 1]), (True, []), (["a"], [1]), (["c"], [0, 1])]
)
def test_an_edit_clears_inputs_where_it_says_so(inputs: Any, left: list[int]) -> None:
    messages, _ = edit(calling("a", "b"), clear(keep=keep(0), clear_tool_inputs=inputs))
    calls = [json.loads(m["tool_calls"][0]["function"]["arguments"]) for m in messages[1::2]]
    assert [call["number"] for call in calls if call] == left


def test_edits_are_made_one_after_the_other() -> None:
    messages, applied = edit(
        calling("a", "b", "c"), clear(keep=keep(2)), clear(keep=keep(1)), clear(keep=keep(1))
    )
    assert cleared(messages) == [0, 1]
    assert [report.cleared_tool_uses for report in applied] == [1, 1]


def test_an_answer_tells_what_was_cleared(http: TestClient) -> None:
    body = body_of(calling("a", "b", "c"), clear(keep=keep(1)))
    answer = http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    [report] = answer.json()["context_management"]["applied_edits"]
    assert (report["type"], report["cleared_tool_uses"]) == ("clear_tool_uses_20250919", 2)
    plain = {key: value for key, value in body.items() if key != "context_management"}
    whole = http.post(PATH, json=plain).json()
    assert "context_management" not in whole
    saved = total(whole["usage"]) - total(answer.json()["usage"])
    assert report["cleared_input_tokens"] == saved > 50
    lines = http.post(PATH, json={**body, "stream": True}).text.splitlines()
    [delta] = [event for event in events(iter(lines)) if event["type"] == "message_delta"]
    assert delta["context_management"] == {"applied_edits": [report]}


def total(usage: dict[str, int]) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_conversation_that_is_too_long_fits_after_edits(http: TestClient) -> None:
    long = calling(*"abcdefghijklmno")
    edit = clear(trigger={"type": "input_tokens", "value": 900}, keep=keep(1))
    assert http.post(PATH, json=body_of(long)).status_code == 400
    answer = http.post(PATH, json=body_of(long, edit))
    assert answer.status_code == 200, answer.text


def test_tokens_are_counted_after_edits_and_before(http: TestClient) -> None:
    body = body_of(calling("a", "b", "c"), clear(keep=keep(1)))
    del body["max_tokens"]
    count = http.post(f"{PATH}/count_tokens", json=body).json()
    del body["context_management"]
    original = http.post(f"{PATH}/count_tokens", json=body).json()
    assert count["context_management"]["original_input_tokens"] == original["input_tokens"]
    assert count["input_tokens"] < original["input_tokens"] - 50


def test_compaction_is_left_out_and_told(http: TestClient) -> None:
    edit = {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 50_000}}
    answer = http.post(PATH, json=body_of([ASKED], edit))
    assert answer.status_code == 200, answer.text
    assert answer.json()["context_management"] == {"applied_edits": []}
    told = "context_management.edits[].compact_20260112"
    assert answer.headers["x-jaxserve-ignored"] == told
