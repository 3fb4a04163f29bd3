"""Merge messages for strict chat templates, which require alternating turns."""

from collections.abc import Mapping, Sequence
from typing import Any

type Message = Mapping[str, Any]

SYSTEM = frozenset({"system", "developer"})


def one_system_message(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with at most one system message, at its beginning.

    Leading system messages are joined. A later one is merged into the user message before or
    after it, or becomes a user message.
    """
    joined: list[Message] = []
    for message in messages:
        if message["role"] not in SYSTEM or not joined:
            joined.append(message)
        elif len(joined) == 1 and joined[0]["role"] in SYSTEM:
            joined[0] = _join(joined[0], message)
        else:
            joined.append({"role": "user", "content": message["content"]})
    return joined if joined == [*messages] else one_user_message(joined)


def one_user_message(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with consecutive user messages merged."""
    joined: list[Message] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "user":
            joined[-1] = _join(joined[-1], message)
        else:
            joined.append(message)
    return joined


def _join(first: Message, second: Message) -> Message:
    """Return the first message with the text of the second appended."""
    return {**first, "content": f"{_text(first)}\n\n{_text(second)}"}


def _text(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
