"""Requests that coding agents and chat front-ends send with their default settings.

Each file in agents/ has the structure of one: Claude Code, Codex, opencode, Qwen Code and Continue
were recorded, the others are written after what the programs send. Their texts are stand-ins.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.chat.answers import form_of
from tests.server.world import World

FOLDER = Path(__file__).with_name("agents")
SENT = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}
# Fields that limit the answers: the fake model never ends by itself.
LIMITS = {"/v1/messages": "max_tokens", "/v1/responses": "max_output_tokens"}


@pytest.fixture(scope="module")
def http() -> Any:
    with World(answers=form_of("hermes"), max_model_len=16_384, max_num_seqs=1) as world:
        yield world.http()


def post(http: TestClient, name: str, *, max_tokens: int | None = 4, **fields: Any) -> Any:
    sent = SENT[name]
    body = {**sent["body"], **fields}
    if max_tokens is not None:
        for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            body.pop(limit, None)
        body[LIMITS.get(sent["path"].partition("?")[0], "max_tokens")] = max_tokens
    return http.post(sent["path"], json=body, headers=sent["headers"])


@pytest.mark.parametrize("name", SENT)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_answered(http: TestClient, name: str, *, stream: bool) -> None:
    fields: dict[str, Any] = {"stream": stream}
    if not stream and "stream_options" in SENT[name]["body"]:
        fields["stream_options"] = None
    answer = post(http, name, **fields)
    assert answer.status_code == 200, answer.text
    if stream:
        events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert len(events) > 1
        assert '"error": ' not in answer.text


def functions(body: dict[str, Any]) -> list[str]:
    """The names of the functions that a body offers."""
    tools = body.get("tools", [])
    return [
        tool.get("name") or tool["function"]["name"]
        for tool in tools
        if tool.get("type", "function") == "function"
    ]


def choice_of(path: str, name: str) -> dict[str, Any]:
    if path.startswith("/v1/messages"):
        return {"type": "tool", "name": name}
    if path.startswith("/v1/responses"):
        return {"type": "function", "name": name}
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("name", [name for name in SENT if functions(SENT[name]["body"])])
def test_each_tool_can_be_forced(http: TestClient, name: str) -> None:
    sent = SENT[name]
    for function in functions(sent["body"]):
        choice = choice_of(sent["path"], function)
        fields: dict[str, Any] = {"tool_choice": choice, "stream": False, "max_tokens": 120}
        if "stream_options" in sent["body"]:
            fields["stream_options"] = None
        answer = post(http, name, **fields)
        assert answer.status_code == 200, answer.text
        assert f'"name":"{function}"' in answer.text.replace(" ", "")


@pytest.mark.parametrize("path", ["/", "/api/hello"])
def test_claude_code_finds_a_server(http: TestClient, path: str) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("name", ["claude_code", "codex"])
def test_tokens_are_counted_of_the_same_fields(http: TestClient, name: str) -> None:
    path = {"claude_code": "/v1/messages/count_tokens", "codex": "/v1/responses/input_tokens"}[name]
    fields = {"max_tokens", "metadata", "stream", "store", "include", "prompt_cache_key"}
    body = {key: value for key, value in SENT[name]["body"].items() if key not in fields}
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["input_tokens"] > 1000


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("claude_code", {"messages[].content[].cache_control", "metadata"}),
        ("claude_code_second", {"messages[].content[].redacted_thinking"}),
        ("codex", {"tools[].web_search", "client_metadata"}),
        ("codex_second", {"tools[].web_search", "input[].encrypted_content"}),
        ("custom_tools_second", {"tools[].web_search", "web_search_options"}),
        (
            "anthropic_long_run",
            {
                "tools[].web_search_20250305",
                "messages[].content[].server_tool_use",
                "context_management.edits[].compact_20260112",
            },
        ),
        ("cline", {"messages[].reasoning_details", "messages[].tool_calls[].index"}),
    ],
)
def test_what_has_no_effect_is_told(http: TestClient, name: str, told: set[str]) -> None:
    assert told <= set(post(http, name).headers["x-jaxserve-ignored"].split(", "))
