"""Hints of clients: fields with no effect, reported like unknown ones but not refused."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.ignored import CHAT, MESSAGES, RESPONSES, TEXT, TURNS, names_of


@pytest.mark.parametrize("stream", [False, True])
def test_hints_are_told_too(http: TestClient, stream: bool) -> None:
    part = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    answered = {"role": "assistant", "content": "yes", "annotations": [], "reasoning_details": [1]}
    body = {"messages": [{"role": "user", "content": [part, part]}, answered, TURNS[0]]}
    answer = http.post(CHAT, json={**body, "max_tokens": 2, "user": "me", "stream": stream})
    assert names_of(answer) == [
        "messages[].content[].cache_control",
        "messages[].annotations",
        "messages[].reasoning_details",
        "messages[].content[].x_part",
        "messages[].x_turn",
        "user",
    ]


HINTS: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        RESPONSES,
        {
            "input": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]}
                | {"encrypted_content": "a", "id": "rs_1"},
                {"role": "assistant", "phase": "commentary", "id": "msg_1", "status": "completed"}
                | {"content": [{"type": "output_text", "text": "a", "annotations": [{}]}]},
                {"role": "user", "content": "b"},
            ],
            "text": {"verbosity": "low"},
            "reasoning": {"summary": "auto", "generate_summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "user": "me",
            "safety_identifier": "me",
            "prompt_cache_key": "me",
            "max_tool_calls": 3,
            "client_metadata": {"a": "b"},
        },
        [
            "client_metadata",
            "include[].reasoning.encrypted_content",
            "input[].content[].annotations",
            "input[].encrypted_content",
            "input[].phase",
            "input[].summary",
            "max_tool_calls",
            "prompt_cache_key",
            "reasoning.generate_summary",
            "reasoning.summary",
            "safety_identifier",
            "text.verbosity",
            "user",
        ],
    ),
    (
        MESSAGES,
        {
            "model": "alias",
            "max_tokens": 300,
            "thinking": {"type": "enabled", "budget_tokens": 200, "display": "omitted"},
            "cache_control": {"type": "ephemeral"},
            "output_config": {"task_budget": {"type": "tokens", "total": 1000}},
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "b", "signature": "sig"},
                        {"type": "redacted_thinking", "data": "c"},
                        {"type": "text", "text": "d", "citations": []},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": "e"}
                        | {"is_error": True, "cache_control": {"type": "ephemeral"}}
                    ],
                },
            ],
        },
        [
            "cache_control",
            "messages[].content[].cache_control",
            "messages[].content[].caller",
            "messages[].content[].citations",
            "messages[].content[].is_error",
            "messages[].content[].redacted_thinking",
            "messages[].content[].signature",
            "output_config.task_budget",
            "thinking.display",
        ],
    ),
    (
        TEXT,
        {"prompt": "a", "max_tokens": 1, "stream": True}
        | {"stream_options": {"include_obfuscation": True}},
        ["stream_options.include_obfuscation"],
    ),
    (TEXT, {"prompt": "a", "max_tokens": 1, "stream_options": {"include_obfuscation": False}}, []),
]


@pytest.mark.parametrize(("path", "body", "names"), HINTS)
def test_hints_that_answers_repeat_are_told_too(
    http: TestClient, path: str, body: dict[str, Any], names: list[str]
) -> None:
    answer = http.post(path, json=body if "stream" in body else {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert sorted(names_of(answer)) == names
