"""Pieces of a chat's answer, for endpoints of other APIs.

Those endpoints convert their request to a chat. `ChatAnswer` converts the chunks of its answer to
text, reasoning and tool calls.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, Struct
from starlette.requests import Request as HttpRequest

from jaxserve.api.sampling_params import SamplingParams
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.chat.handler import ChatWriter, chat_writer
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.schema.answers import (
    ChatChunk,
    PromptTokensDetails,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

# Each chunk contains the usage so far.
STREAM_OPTIONS = {"include_usage": True, "continuous_usage_stats": True}


class Text(Struct, frozen=True):
    """Next piece of the text, with the log-probabilities of its tokens if requested.

    Those of the last token may come without text.
    """

    text: str
    logprobs: list[TokenLogprob] = []


class Reasoning(Struct, frozen=True):
    """Next piece of the reasoning."""

    text: str


class Call(Struct, frozen=True):
    """Start of a function call."""

    id: str
    name: str


class Arguments(Struct, frozen=True):
    """Next piece of the JSON arguments of the last call."""

    text: str


class End(Struct, frozen=True):
    """End of the answer, with the reasons of a chat's choice."""

    finish_reason: str
    stop_reason: int | str | None


type Piece = Text | Reasoning | Call | Arguments | End


def chat_body[Body: ChatBody](fields: Mapping[str, Any], kind: type[Body]) -> Body:
    """Return the body of a streamed chat with usage, given its other fields.

    Raises InvalidRequestError, whose parameters are the chat's fields.
    """
    return parse({**fields, "stream": True, "stream_options": STREAM_OPTIONS}, kind)


class ChatAnswer:
    """One streamed answer.

    usage: token counts so far. token_ids: tokens so far, if the chat requests them.
    """

    def __init__(self, writer: ChatWriter) -> None:
        self._writer = writer
        self.usage = Usage(0, 0, 0, PromptTokensDetails(0))
        self.token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._has_text = False

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._writer.model

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the request."""
        return self._writer.job.requests[0].params

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens of the prompt."""
        return self._writer.job.requests[0].prompt_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included."""
        return self._writer.job.model.tokenizer.decode(token_ids)

    @property
    def reasoning_tokens(self) -> int:
        """Number of reasoning tokens so far; 0 without a reasoning parser."""
        details = self.usage.completion_tokens_details
        return 0 if details is UNSET else details.reasoning_tokens

    @classmethod
    async def begin(cls, http: HttpRequest, body: ChatBody) -> "ChatAnswer":
        """Start a chat, and return its answer. body: from `chat_body`.

        Raises InvalidRequestError, whose parameters are the chat's fields.
        """
        return cls(await chat_writer(http, body))

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """Yield the pieces of each step; the first step may have none. See `Job.events`."""
        async with aclosing(self._writer.chunks()) as steps:
            async for chunks in steps:
                yield [piece for chunk in chunks for piece in self._read(chunk)]

    def _read(self, chunk: ChatChunk) -> list[Piece]:
        if isinstance(chunk.usage, Usage):
            self.usage = chunk.usage
        pieces: list[Piece] = []
        for choice in chunk.choices:
            delta = choice.delta
            self.token_ids += choice.token_ids or ()
            if choice.logprobs is not None:
                self._logprobs += choice.logprobs.content
            if delta.content:
                self._has_text = True
                pieces.append(Text(delta.content, self._take_logprobs()))
            if delta.reasoning:
                self._take_logprobs()
                pieces.append(Reasoning(delta.reasoning))
            for call in delta.tool_calls or ():
                self._take_logprobs()
                pieces += _read_call(call)
            if choice.finish_reason is not None:
                if self._logprobs and self._has_text:
                    pieces.append(Text("", self._take_logprobs()))
                stop_reason = None if choice.stop_reason is UNSET else choice.stop_reason
                pieces.append(End(choice.finish_reason, stop_reason))
        return pieces

    def _take_logprobs(self) -> list[TokenLogprob]:
        """Return the log-probabilities since the last call, also of text that was held back."""
        logprobs, self._logprobs = self._logprobs, []
        return logprobs


def _read_call(call: ToolCallDelta) -> list[Piece]:
    pieces: list[Piece] = []
    function = call.function
    if call.id and function and function.name:
        pieces.append(Call(call.id, function.name))
    if function and function.arguments:
        pieces.append(Arguments(function.arguments))
    return pieces
