"""A chat's answer in pieces, for the endpoints that tell it in another form than OpenAI's chats.

They turn their request into a chat's, and what comes of it is here: the one place that knows how
the chunks of a chat carry text, reasoning and tool calls.
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

# Every chunk tells the usage so far.
STREAM_OPTIONS = {"include_usage": True, "continuous_usage_stats": True}


class Text(Struct, frozen=True):
    """More of what the assistant says, and its tokens' log-probabilities if they were asked for.

    Those of the answer's last token may come without text.
    """

    text: str
    logprobs: list[TokenLogprob] = []


class Reasoning(Struct, frozen=True):
    """More of what the model thinks."""

    text: str


class Call(Struct, frozen=True):
    """A call of a function begins."""

    id: str
    name: str


class Arguments(Struct, frozen=True):
    """More of the JSON text of the arguments of the call that began last."""

    text: str


class End(Struct, frozen=True):
    """The answer is whole; the reasons are those of a chat's choice."""

    finish_reason: str
    stop_reason: int | str | None


type Piece = Text | Reasoning | Call | Arguments | End


def chat_body[Body: ChatBody](fields: Mapping[str, Any], kind: type[Body]) -> Body:
    """Return the body of a chat that is answered in pieces, given the other fields of it.

    Raises InvalidRequestError, which speaks of the chat's fields.
    """
    return parse({**fields, "stream": True, "stream_options": STREAM_OPTIONS}, kind)


class ChatAnswer:
    """One answer as it comes.

    usage: of what has come so far. token_ids: the tokens so far, if the chat asks for them.
    """

    def __init__(self, writer: ChatWriter) -> None:
        self._writer = writer
        self.usage = Usage(0, 0, 0, PromptTokensDetails(0))
        self.token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._has_text = False

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self._writer.model

    @property
    def params(self) -> SamplingParams:
        """The engine's parameters, which the request's fields became."""
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
        """How many of the tokens so far are reasoning; 0 where no parser finds any."""
        details = self.usage.completion_tokens_details
        return 0 if details is UNSET else details.reasoning_tokens

    @classmethod
    async def begin(cls, http: HttpRequest, body: ChatBody) -> "ChatAnswer":
        """Return the answer to a chat, given its body as `chat_body` makes it.

        Raises InvalidRequestError, which speaks of the chat's fields.
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
        """Return what has come since the last time: of tokens whose text was held back, too."""
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
