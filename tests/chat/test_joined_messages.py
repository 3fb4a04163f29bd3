"""Conversations that strict templates would refuse or shorten become ones that they take."""

from typing import Any

import pytest

from jaxserve.chat.joined_messages import one_system_message, one_user_message


def chat(*turns: str) -> list[dict[str, Any]]:
    """Messages from texts such as "user: hello"."""
    return [dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (["user: a"], ["user: a"]),
        (["system: a", "developer: b", "user: c"], ["system: a\n\nb", "user: c"]),
        (["user: a", "system: b"], ["user: a\n\nb"]),
        (["user: a", "assistant: b", "system: c"], ["user: a", "assistant: b", "user: c"]),
        (["system: a", "user: b", "system: c", "user: d"], ["system: a", "user: b\n\nc\n\nd"]),
        (["system: a", "assistant: b", "user: c"], ["system: a", "assistant: b", "user: c"]),
    ],
)
def test_later_instructions_join_the_user(turns: list[str], expected: list[str]) -> None:
    assert one_system_message(chat(*turns)) == chat(*expected)


def test_parts_are_joined_as_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, *chat("user: c", "assistant: d", "user: e")]
    assert one_user_message(messages) == chat("user: a\nb\n\nc", "assistant: d", "user: e")
