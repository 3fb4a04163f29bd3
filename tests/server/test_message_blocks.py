"""Blocks of /v1/messages that hold text in other forms, and blocks of Anthropic's own tools."""

from typing import Any

import pytest

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.messages.schema import MessagesBody

ASKED = {"role": "user", "content": "hello"}
TEXT = {"type": "text", "text": "a fox"}
DOCUMENT = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "a fox"},
    "title": "Foxes",
    "context": "A book.",
    "citations": {"enabled": True},
    "cache_control": {"type": "ephemeral"},
}
FOUND = {
    "type": "search_result",
    "source": "https://example.org/fox",
    "title": "Foxes",
    "content": [TEXT, {"type": "text", "text": "a dog"}],
    "citations": {"enabled": True},
}
SEARCHED: list[dict[str, Any]] = [
    {"type": "text", "text": "I search."},
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "fox"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "s1",
        "content": [
            {
                "type": "web_search_result",
                "title": "Foxes",
                "url": "https://example.org",
                "encrypted_content": "opaque",
                "page_age": "a week",
            }
        ],
    },
    {"type": "text", "text": "A fox."},
]


def read(*messages: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages of the chat, and the names of what has no effect; nothing is unknown."""
    ignored = IgnoredFields(is_strict=True)
    body = parse({"model": "m", "max_tokens": 1, "messages": [*messages]}, MessagesBody, ignored)
    return body.chat()["messages"], [*ignored.names]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (DOCUMENT, "Foxes\nA book.\na fox\n"),
        ({"type": "document", "source": {"type": "content", "content": "a fox"}}, "a fox\n"),
        (
            {"type": "document", "source": {"type": "content", "content": [TEXT, TEXT]}},
            "a fox\na fox\n",
        ),
        (FOUND, "Foxes\nhttps://example.org/fox\na fox\na dog\n"),
    ],
)
def test_documents_and_search_results_are_text(block: dict[str, Any], text: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    messages, ignored = read(
        {"role": "user", "content": [block]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f"} | INPUT]},
        {"role": "user", "content": [result]},
    )
    assert messages[0]["content"] == parts(text)
    assert messages[2] == {"role": "tool", "tool_call_id": "c", "content": parts(text)}
    assert ("messages[].content[].citations" in ignored) == ("citations" in block)


INPUT: dict[str, Any] = {"input": {}}


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
        {"type": "url", "url": "https://example.org/a.pdf"},
        {"type": "file", "file_id": "f"},
        {"type": "content", "content": [{"type": "image", "source": {}}]},
    ],
)
def test_other_documents_are_refused(source: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        read({"role": "user", "content": [{"type": "document", "source": source}]})
    assert refusal.value.param is not None
    assert refusal.value.param.startswith("messages[0].content[0].source")


def test_searches_of_an_answer_sent_back_keep_their_text() -> None:
    messages, ignored = read(ASKED, {"role": "assistant", "content": SEARCHED}, ASKED)
    assert messages[1]["content"] == "I search.Foxes: https://example.org\nA fox."
    assert "messages[].content[].server_tool_use" in ignored
    assert "messages[].content[].content[].encrypted_content" in ignored


def test_a_search_that_failed_is_left_out() -> None:
    content = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    result = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": content}
    messages, ignored = read(ASKED, {"role": "assistant", "content": [TEXT, result]}, ASKED)
    assert messages[1]["content"] == "a fox"
    assert "messages[].content[].content.web_search_tool_result_error" in ignored


@pytest.mark.parametrize(
    "kind", ["mcp_tool_use", "code_execution_tool_result", "web_fetch_tool_result"]
)
def test_other_blocks_of_hosted_tools_are_left_out(kind: str) -> None:
    block = {"type": kind, "id": "s", "content": [{"type": "opaque"}]}
    messages, ignored = read(ASKED, {"role": "assistant", "content": [TEXT, block]}, ASKED)
    assert messages[1] == {"role": "assistant", "content": "a fox"}
    assert ignored == [f"messages[].content[].{kind}"]


def test_a_summary_sent_back_is_text() -> None:
    block = {"type": "compaction", "content": "We spoke of foxes."}
    messages, _ = read(ASKED, {"role": "assistant", "content": [block, TEXT]}, ASKED)
    assert messages[1]["content"] == "We spoke of foxes.\na fox"
