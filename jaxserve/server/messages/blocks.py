"""The turns of /v1/messages, made of blocks, and the messages of a chat that they are."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, Tag

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import MAX_PARTS, Body, Dropped, by_type
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.schema.literals import encode_json
from jaxserve.server.messages.tools import AnyTool

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


class RedactedThinkingBlock(Dropped):
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


class ToolReferenceBlock(Block):
    """A tool that a search has found, for the model to call."""

    type: Literal["tool_reference"]
    tool_name: str

    @property
    def text(self) -> str:
        """What the model reads. The tool's definition is among the others, as all are sent."""
        return f"The tool {self.tool_name} is available.\n"


class ToolResultBlock(Block):
    """What came of a call; templates have no place for `is_error`."""

    unread = Unread(ignored=BLOCK_HINTS, repeated={"is_error": (False,)})

    type: Literal["tool_result"]
    tool_use_id: str
    content: "Results" = Field(default_factory=list)
    is_error: bool = False


class ToolName(Body):
    """A tool that is declared in `tools`, or was before in the conversation."""

    type: Literal["tool_reference"]
    name: str


class ToolDefinition(Body):
    """A tool that is declared in the middle of a conversation."""

    type: Literal["tool_definition"]
    definition: AnyTool


class ToolAdditionBlock(Block):
    """A tool that is on offer from here on."""

    type: Literal["tool_addition"]
    tool: Annotated[
        Annotated[ToolName, Tag("(tool_reference)")]
        | Annotated[ToolDefinition, Tag("(tool_definition)")],
        by_type("an object of type tool_reference or tool_definition: others are not supported"),
    ]


class ToolRemovalBlock(Block):
    """A tool that is no longer on offer from here on."""

    type: Literal["tool_removal"]
    tool: ToolName


# A string, or blocks of text.
type Texts = Annotated[
    list[TextBlock],
    FailFast(),
    Field(max_length=MAX_PARTS),
    BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock]),
]
type Result = Annotated[
    Annotated[TextBlock, Tag("(text)")] | Annotated[ToolReferenceBlock, Tag("(tool_reference)")],
    by_type("a block of type text or tool_reference: others are not supported"),
]
# A string, or blocks of text and of tools that were found.
type Results = Annotated[
    list[Result],
    FailFast(),
    Field(max_length=MAX_PARTS),
    BeforeValidator(_blocks, json_schema_input_type=str | list[Result]),
]
type AnyBlock = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[RedactedThinkingBlock, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")]
    | Annotated[ToolAdditionBlock, Tag("(tool_addition)")]
    | Annotated[ToolRemovalBlock, Tag("(tool_removal)")],
    by_type(
        "a block of type text, thinking, redacted_thinking, tool_use, tool_result, tool_addition or"
        " tool_removal: others are not supported"
    ),
]
ALLOWED_BLOCKS = {
    "user": (TextBlock, ToolResultBlock, ToolAdditionBlock, ToolRemovalBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock, ToolAdditionBlock, ToolRemovalBlock),
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


def text_parts(blocks: Sequence[Result]) -> list[dict[str, str]]:
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
            case RedactedThinkingBlock() | ToolAdditionBlock() | ToolRemovalBlock():
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
    # What holds nothing but results and changes of tools says nothing itself.
    return (
        results if message.content and not parts else [*results, {**rest, "content": parts or ""}]
    )
