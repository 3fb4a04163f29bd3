"""Handlers of POST /v1/messages and /v1/messages/count_tokens."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

import msgspec
import pydantic_core
from msgspec import UNSET
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse, renamed
from jaxserve.server.chat.pieces import (
    Arguments,
    Call,
    ChatAnswer,
    End,
    Piece,
    Reasoning,
    Text,
    chat_body,
)
from jaxserve.server.chat.schema import ChatBody
from jaxserve.server.generation.prompts import encode_chat
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read
from jaxserve.server.http.disconnect import unless_disconnected
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import request_record
from jaxserve.server.http.sse import EventStream, tagged_event
from jaxserve.server.messages.answers import (
    AppliedEdits,
    BlockDelta,
    BlockOut,
    BlockStart,
    BlockStop,
    InputDelta,
    Message,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    TextDelta,
    TextOut,
    ThinkingDelta,
    ThinkingOut,
    TokenCount,
    ToolUseOut,
    UneditedCount,
)
from jaxserve.server.messages.edits import edited
from jaxserve.server.messages.schema import MessagesBody, MessagesPrompt
from jaxserve.server.schema.answers import Maybe
from jaxserve.server.state import ServerState, server_state

STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class CappedChatBody(ChatBody):
    """A chat of another API, which requires limits and so treats them as upper bounds.

    They are lowered to the room in the model's context. A model that does not reason ignores the
    reasoning budget.
    """

    takes_any_budget: ClassVar[bool] = True

    @property
    def has_limit(self) -> bool:
        """False: the limit is an upper bound."""
        return False


async def create_message(http: HttpRequest) -> Response:
    """Answer a chat in Anthropic's format, whole or as a stream."""
    body, chat, applied = await read(http, partial(_asked, server_state(http)))
    with renamed(body.field_names):
        answer = await ChatAnswer.begin(http, chat)
    is_capped = answer.params.max_tokens != body.max_tokens
    writer = MessageWriter(answer, model=body.model, is_capped=is_capped, applied=applied)
    if body.stream:
        return EventStream(writer.stream(), error_name="error")
    return json_response(await unless_disconnected(http, writer.whole()))


async def count_tokens(http: HttpRequest) -> Response:
    """Answer with the number of tokens of a chat's prompt."""
    state = server_state(http)
    body, chat, unedited = await read(http, partial(_counted, state))
    with renamed(body.field_names):
        work = partial(
            encode_chat, state.router.model(body.model), chat, request_record(http.scope).ignored
        )
        tokens = await run_in(state.lanes.prompts, work)
    return json_response(TokenCount(len(tokens), unedited))


def _asked(
    state: ServerState, fields: dict[str, Any], ignored: IgnoredFields
) -> tuple[MessagesBody, ChatBody, Maybe[AppliedEdits]]:
    """Return the body, the equivalent chat, and the edits applied to it."""
    body = parse(fields, MessagesBody, ignored)
    applied: Maybe[AppliedEdits] = UNSET
    with renamed(body.field_names):
        chat = body.chat()
        if body.context_management is not None:
            count = partial(_num_tokens, state, prompt_fields(body))
            chat["messages"], edits = edited(chat["messages"], body.context_management.edits, count)
            applied = AppliedEdits(edits)
        return body, chat_body(chat, CappedChatBody), applied


def _counted(
    state: ServerState, fields: dict[str, Any], ignored: IgnoredFields
) -> tuple[MessagesPrompt, Chat, Maybe[UneditedCount]]:
    """Return the body, the chat to count, and its number of tokens before the edits."""
    body = parse(fields, MessagesPrompt, ignored)
    unedited: Maybe[UneditedCount] = UNSET
    with renamed(body.field_names):
        chat = prompt_fields(body)
        if body.context_management is not None:
            count = partial(_num_tokens, state, chat)
            unedited = UneditedCount(count(chat["messages"]))
            edits = body.context_management.edits
            chat = {**chat, "messages": edited(chat["messages"], edits, count)[0]}
        return body, parse(chat, Chat), unedited


def _num_tokens(state: ServerState, fields: dict[str, Any], messages: list[dict[str, Any]]) -> int:
    """Return the number of prompt tokens with other messages, without a limit."""
    chat = parse({**fields, "messages": messages}, Chat)
    return len(encode_chat(state.router.model(chat.model), chat, takes_any_length=True))


class MessageWriter:
    """Writer of one answer: builds blocks and events from the pieces of a chat's answer.

    is_capped: whether the model's context ends before the requested limit. applied: edits of the
    conversation.
    """

    def __init__(
        self,
        answer: ChatAnswer,
        *,
        model: str,
        is_capped: bool = False,
        applied: Maybe[AppliedEdits] = UNSET,
    ) -> None:
        self._answer = answer
        self._is_capped = is_capped
        self._message = Message(
            id=f"msg_{uuid.uuid4().hex}", model=model, content=[], usage=self._usage()
        )
        self._applied = applied
        self._has_begun = False
        # The current block and its pieces; for a call, the JSON text of its input.
        self._block: BlockOut | None = None
        self._texts: list[str] = []

    async def whole(self) -> Message:
        """Return the complete answer."""
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return self._message

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yield the answer's events."""
        async with aclosing(self._events()) as steps:
            async for events in steps:
                yield b"".join(map(tagged_event, events))

    async def _events(self) -> AsyncGenerator[list[MessageEvent]]:
        """Yield the events of each step, and build the message from them."""
        async with aclosing(self._answer.pieces()) as steps:
            async for pieces in steps:
                events = [event for piece in pieces for event in self._read(piece)]
                if not self._has_begun:
                    self._has_begun = True
                    # No output has been sent yet, although the first step has some.
                    usage = msgspec.structs.replace(self._usage(), output_tokens=0)
                    start = msgspec.structs.replace(self._message, content=[], usage=usage)
                    events.insert(0, MessageStart(start))
                yield events
        self._message.usage = self._usage()
        self._message.context_management = self._applied
        stop = StopDelta(self._message.stop_reason, self._message.stop_sequence)
        yield [MessageDelta(stop, self._message.usage, self._applied), MessageStop()]

    def _read(self, piece: Piece) -> list[MessageEvent]:
        match piece:
            case Text(text):
                return [*self._open(TextOut()), *self._add(text, TextDelta(text))]
            case Reasoning(text):
                return [*self._open(ThinkingOut()), *self._add(text, ThinkingDelta(text))]
            case Call(call_id, name):
                return self._open(ToolUseOut(call_id, name))
            case Arguments(text):
                return self._add(text, InputDelta(text))
            case End(finish_reason, stop_reason):
                message = self._message
                message.stop_reason = STOP_REASONS.get(finish_reason, "end_turn")
                if finish_reason == "stop" and isinstance(stop_reason, str):
                    message.stop_reason, message.stop_sequence = "stop_sequence", stop_reason
                if finish_reason == "length" and self._is_capped:
                    message.stop_reason = "model_context_window_exceeded"
                return self._close()

    def _open(self, block: BlockOut) -> list[MessageEvent]:
        """Begin a block, unless the current one has the same kind. Each call has its own block."""
        if type(block) is type(self._block) and not isinstance(block, ToolUseOut):
            return []
        events = self._close()
        self._block = block
        return [*events, BlockStart(len(self._message.content), msgspec.structs.replace(block))]

    def _add(self, text: str, delta: TextDelta | ThinkingDelta | InputDelta) -> list[MessageEvent]:
        self._texts.append(text)
        return [BlockDelta(len(self._message.content), delta)] if text else []

    def _close(self) -> list[MessageEvent]:
        """End the current block, if there is one."""
        text = "".join(self._texts)
        match self._block:
            case None:
                return []
            case TextOut():
                self._block.text = text
            case ThinkingOut():
                self._block.thinking = text
            case ToolUseOut():
                self._block.input = _object(text)
        self._message.content.append(self._block)
        self._block = None
        self._texts = []
        return [BlockStop(len(self._message.content) - 1)]

    def _usage(self) -> MessageUsage:
        usage = self._answer.usage
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
        )


def prompt_fields(body: MessagesPrompt) -> dict[str, Any]:
    """Return the fields of a chat that determine its prompt."""
    unread = {"parallel_tool_calls", "response_format", "thinking_token_budget"}
    fields = MessagesPrompt.chat(body)
    return {name: value for name, value in fields.items() if name not in unread}


def _object(text: str) -> dict[str, object]:
    """Return the object in a JSON text; of a truncated text, the complete part.

    Anthropic's clients do the same with streams.
    """
    try:
        value = pydantic_core.from_json(text, allow_inf_nan=False, allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
