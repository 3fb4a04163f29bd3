"""The answers of /v1/messages and the events of its streams, as Anthropic writes them."""

from typing import Any

from msgspec import UNSET, Struct

from jaxserve.server.schema.answers import Maybe

# Answers


class TextOut(Struct, tag_field="type", tag="text"):
    """What the assistant says."""

    text: str = ""


class ThinkingOut(Struct, tag_field="type", tag="thinking"):
    """What the model thought. signature: always empty, thoughts sent back are taken as they are."""

    thinking: str = ""
    signature: str = ""


class ToolUseOut(Struct, tag_field="type", tag="tool_use"):
    """A call to be made.

    input: empty in a stream's start; where the answer ended within it, what had come of it.
    """

    id: str
    name: str
    input: dict[str, Any] = {}


type BlockOut = TextOut | ThinkingOut | ToolUseOut


class MessageUsage(Struct, kw_only=True):
    """Tokens read and written; those read from the cache are not among input_tokens.

    The cache fills by itself, so no tokens are charged for creating it.
    """

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class ClearedThinking(Struct, tag_field="type", tag="clear_thinking_20251015"):
    """Turns that lost their thinking, and the tokens that it had."""

    cleared_thinking_turns: int
    cleared_input_tokens: int


class ClearedToolUses(Struct, tag_field="type", tag="clear_tool_uses_20250919"):
    """Calls that lost their results, and the tokens that were saved."""

    cleared_tool_uses: int
    cleared_input_tokens: int


type AppliedEdit = ClearedThinking | ClearedToolUses


class AppliedEdits(Struct):
    """What `context_management` left out of the conversation."""

    applied_edits: list[AppliedEdit]


class Message(Struct, kw_only=True, tag_field="type", tag="message"):
    """The answer to /v1/messages."""

    id: str
    role: str = "assistant"
    model: str
    content: list[BlockOut]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    context_management: Maybe[AppliedEdits] = UNSET


class UneditedCount(Struct):
    """The tokens of the conversation as it was sent."""

    original_input_tokens: int


class TokenCount(Struct):
    """The answer to /v1/messages/count_tokens."""

    input_tokens: int
    context_management: Maybe[UneditedCount] = UNSET


# Events


class MessageStart(Struct, tag_field="type", tag="message_start"):
    """An answer begins; it has no content yet."""

    message: Message


class BlockStart(Struct, tag_field="type", tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: BlockOut


class TextDelta(Struct, tag_field="type", tag="text_delta"):
    """More of a text."""

    text: str


class ThinkingDelta(Struct, tag_field="type", tag="thinking_delta"):
    """More of what the model thinks."""

    thinking: str


class InputDelta(Struct, tag_field="type", tag="input_json_delta"):
    """More of the JSON text of a call's input."""

    partial_json: str


class BlockDelta(Struct, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStop(Struct, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class StopDelta(Struct):
    """Why the answer ends."""

    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(Struct, tag_field="type", tag="message_delta"):
    """The answer ends; usage: of all of it."""

    delta: StopDelta
    usage: MessageUsage
    context_management: Maybe[AppliedEdits] = UNSET


class MessageStop(Struct, tag_field="type", tag="message_stop"):
    """The last event."""


type MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
