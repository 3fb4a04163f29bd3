"""The turns of /v1/messages, made of blocks, and the messages of a chat that they are."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, Tag

from jaxserve.errors import InvalidRequestError
from jaxserve.server.schema.body import MAX_PARTS, Body, by_type
from jaxserve.server.schema.fields import Unread
from jaxserve.server.schema.literals import encode_json

BLOCK_HINTS = frozenset({"cache_control"})


def _blocks(value: object) -> object:
    """A string is one block of text."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Block(Body):
    """What all blocks may have. Prefixes are cached anyway."""

    unread = Unread(ignored=BLOCK_HINTS)


class TextBlock(Block):
    """Text; `citations` are of an answer sent back."""

    unread = Unread(ignored=BLOCK_HINTS | {"citations"})

    type: Literal["text"]
    text: str


class ThinkingBlock(Block):
    """What the model thought before it said something; nothing checks its signature."""

    unread = Unread(ignored=BLOCK_HINTS, repeated={"signature": ("",)})

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Block):
    """Thoughts that only Anthropic can read; a turn may hold them, and the model gets none."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Block):
    """A call the model made; `caller` is of an answer sent back."""

    unread = Unread(ignored=BLOCK_HINTS | {"caller"})

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Block):
    """What came of a call; templates have no place for `is_error`."""

    unread = Unread(ignored=BLOCK_HINTS, repeated={"is_error": (False,)})

    type: Literal["tool_result"]
    tool_use_id: str
    content: "Texts" = Field(default_factory=list)
    is_error: bool = False


# A string, or blocks of text.
type Texts = Annotated[
    list[TextBlock],
    FailFast(),
    Field(max_length=MAX_PARTS),
    BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock]),
]
type AnyBlock = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[RedactedThinkingBlock, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")],
    by_type(
        "a block of type text, thinking, redacted_thinking, tool_use or tool_result: others are not"
        " supported"
    ),
]
ALLOWED_BLOCKS = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class Message(Body):
    """One turn; a string is one block of text."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[AnyBlock],
        FailFast(),
        Field(max_length=MAX_PARTS),
        BeforeValidator(_blocks, json_schema_input_type=str | list[AnyBlock]),
    ]


def text_parts(blocks: list[TextBlock]) -> list[dict[str, str]]:
    """Return blocks of text as a chat's parts."""
    return [{"type": "text", "text": block.text} for block in blocks]


def chat_messages(message: Message, place: str) -> list[dict[str, Any]]:
    """Return the messages of a turn: results of tools, which chats have as messages, and the rest.

    Raises InvalidRequestError for a block that such a turn cannot have.
    """
    results: list[dict[str, Any]] = []
    parts: list[dict[str, str]] = []
    rest: dict[str, Any] = {"role": message.role}
    for index, block in enumerate(message.content):
        if not isinstance(block, ALLOWED_BLOCKS[message.role]):
            param = f"{place}.content[{index}]"
            raise InvalidRequestError(
                f"{param} must not be of type {block.type} in a turn of role {message.role}",
                param=param,
            )
        match block:
            case TextBlock():
                parts += text_parts([block])
            case ThinkingBlock():
                rest["reasoning"] = rest.get("reasoning", "") + block.thinking
            case RedactedThinkingBlock():
                continue
            case ToolUseBlock():
                arguments = encode_json(block.input).decode()
                function = {"name": block.name, "arguments": arguments}
                call = {"id": block.id, "type": "function", "function": function}
                rest.setdefault("tool_calls", []).append(call)
            case ToolResultBlock():
                content = text_parts(block.content) or ""
                results.append(
                    {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
                )
    if message.role == "assistant":
        # One text: parts would come apart again in templates that take no parts.
        return [{**rest, "content": "".join(part["text"] for part in parts)}]
    return [*results, {**rest, "content": parts or ""}] if parts or not results else results
