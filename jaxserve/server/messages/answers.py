"""Response types of /v1/messages, and the events of its streams."""

from typing import Any

from msgspec import UNSET, Struct

from jaxserve.server.schema.answers import Maybe

# Answers


class TextOut(Struct, tag_field="type", tag="text"):
    """A text block."""

    text: str = ""


class ThinkingOut(Struct, tag_field="type", tag="thinking"):
    """Reasoning of the model. signature: always empty; it is not checked when sent back."""

    thinking: str = ""
    signature: str = ""


class ToolUseOut(Struct, tag_field="type", tag="tool_use"):
    """A tool call.

    input: empty in the start event; the complete part if the answer was truncated inside it.
    """

    id: str
    name: str
    input: dict[str, Any] = {}


type BlockOut = TextOut | ThinkingOut | ToolUseOut


class MessageUsage(Struct, kw_only=True):
    """Token counts; input_tokens does not include cached tokens.

    The cache fills by itself, so there is no cost for creating it.
    """

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class ClearedThinking(Struct, tag_field="type", tag="clear_thinking_20251015"):
    """Number of turns whose thinking was removed, and its tokens."""

    cleared_thinking_turns: int
    cleared_input_tokens: int


class ClearedToolUses(Struct, tag_field="type", tag="clear_tool_uses_20250919"):
    """Number of calls whose results were removed, and the tokens saved."""

    cleared_tool_uses: int
    cleared_input_tokens: int


type AppliedEdit = ClearedThinking | ClearedToolUses


class AppliedEdits(Struct):
    """Edits that `context_management` applied."""

    applied_edits: list[AppliedEdit]


class Message(Struct, kw_only=True, tag_field="type", tag="message"):
    """Answer of /v1/messages."""

    id: str
    role: str = "assistant"
    model: str
    content: list[BlockOut]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    context_management: Maybe[AppliedEdits] = UNSET


class UneditedCount(Struct):
    """Number of tokens before the edits."""

    original_input_tokens: int


class TokenCount(Struct):
    """Answer of /v1/messages/count_tokens."""

    input_tokens: int
    context_management: Maybe[UneditedCount] = UNSET


# Events


class MessageStart(Struct, tag_field="type", tag="message_start"):
    """Start of an answer, without content."""

    message: Message


class BlockStart(Struct, tag_field="type", tag="content_block_start"):
    """Start of a block, without content."""

    index: int
    content_block: BlockOut


class TextDelta(Struct, tag_field="type", tag="text_delta"):
    """Next piece of a text."""

    text: str


class ThinkingDelta(Struct, tag_field="type", tag="thinking_delta"):
    """Next piece of the reasoning."""

    thinking: str


class InputDelta(Struct, tag_field="type", tag="input_json_delta"):
    """Next piece of the JSON input of a call."""

    partial_json: str


class BlockDelta(Struct, tag_field="type", tag="content_block_delta"):
    """Next piece of a block."""

    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStop(Struct, tag_field="type", tag="content_block_stop"):
    """End of a block."""

    index: int


class StopDelta(Struct):
    """Reason for the end of the answer."""

    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(Struct, tag_field="type", tag="message_delta"):
    """End of the answer. usage: total of the answer."""

    delta: StopDelta
    usage: MessageUsage
    context_management: Maybe[AppliedEdits] = UNSET


class MessageStop(Struct, tag_field="type", tag="message_stop"):
    """Last event of a stream."""


type MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
