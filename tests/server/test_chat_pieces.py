"""The chunks of a chat become pieces, whatever lies between text, reasoning and calls."""

from collections.abc import AsyncGenerator
from typing import Any

import anyio

from jaxserve.server.chat.pieces import Arguments, Call, ChatAnswer, End, Piece, Reasoning, Text
from jaxserve.server.schema.answers import (
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
)


def chunk(delta: Delta, *tokens: str, finish_reason: str | None = None) -> ChatChunk:
    logprobs = [TokenLogprob(token, -1.0, None, top_logprobs=[]) for token in tokens]
    choice = ChatChunkChoice(0, delta, ChatLogprobs(logprobs) if tokens else None, finish_reason)
    return ChatChunk(id="c", created=1, model="m", system_fingerprint="", choices=[choice])


class Writer:
    """A chat's answer whose chunks are known."""

    def __init__(self, chunks: list[ChatChunk]) -> None:
        self._chunks = chunks

    async def chunks(self) -> AsyncGenerator[list[ChatChunk]]:
        for one in self._chunks:
            yield [one]


def pieces(*chunks: ChatChunk) -> list[Piece]:
    async def read() -> list[Piece]:
        answer = ChatAnswer(Writer([*chunks]))  # type: ignore[arg-type]
        return [piece async for step in answer.pieces() for piece in step]

    return anyio.run(read)


def test_text_reasoning_and_calls_are_told_apart() -> None:
    begin = ToolCallDelta(0, "call_1", "function", FunctionDelta("find", ""))
    more = ToolCallDelta(0, function=FunctionDelta(arguments="{}"))
    assert pieces(
        chunk(Delta("assistant", "")),
        chunk(Delta(reasoning="Hm.", reasoning_content="Hm.")),
        chunk(Delta(content="So")),
        chunk(Delta(tool_calls=[begin])),
        chunk(Delta(tool_calls=[more])),
        chunk(Delta(), finish_reason="tool_calls"),
    ) == [
        Reasoning("Hm."),
        Text("So", []),
        Call("call_1", "find"),
        Arguments("{}"),
        End("tool_calls", None),
    ]


def test_logprobs_stand_beside_the_text_they_belong_to() -> None:
    found: list[Any] = pieces(
        chunk(Delta(reasoning="Hm."), "H", "m."),
        # Its text is held back.
        chunk(Delta(content=""), "S"),
        chunk(Delta(content="So"), "o"),
        chunk(Delta(content=""), "<end>"),
        chunk(Delta(), finish_reason="stop"),
    )
    assert [type(piece) for piece in found] == [Reasoning, Text, Text, End]
    assert [logprob.token for logprob in found[1].logprobs] == ["S", "o"]
    assert [logprob.token for logprob in found[2].logprobs] == ["<end>"]
