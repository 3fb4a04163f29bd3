"""Turns of /v1/messages, which consist of blocks, and their conversion to chat messages."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, Tag

from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.schema.body import MAX_PARTS, Body, Dropped, by_type
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.schema.literals import encode_json
from jaxserve.server.messages.tools import AnyTool

BLOCK_HINTS = frozenset({"cache_control"})
# Types of blocks for tools that Anthropic's servers ran.
HOSTED_BLOCKS = (
    "bash_code_execution_tool_result",
    "code_execution_tool_result",
    "container_upload",
    "mcp_tool_result",
    "mcp_tool_use",
    "server_tool_use",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "web_fetch_tool_result",
)


def _blocks(value: object) -> object:
    """Convert a string to one text block."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Block(Body):
    """Fields of all blocks. `cache_control` has no effect: prefixes are cached anyway."""

    unread = Unread(ignored=BLOCK_HINTS)


class TextBlock(Block):
    """A text. citations: of answers sent back."""

    unread = Unread(ignored=BLOCK_HINTS | {"citations"})

    type: Literal["text"]
    text: str


class ThinkingBlock(Block):
    """Past reasoning; its signature is not checked."""

    unread = Unread(ignored=BLOCK_HINTS, repeated={"signature": ("",)})

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Dropped):
    """Past reasoning that only Anthropic can read. Models do not see it."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Block):
    """A past tool call. caller: of answers sent back."""

    unread = Unread(ignored=BLOCK_HINTS | {"caller"})

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolReferenceBlock(Block):
    """A tool that a tool search has found."""

    type: Literal["tool_reference"]
    tool_name: str

    @property
    def text(self) -> str:
        """Text for the model. The tool's definition is sent with all others."""
        return f"The tool {self.tool_name} is available.\n"


class PlainText(Body):
    """Text of a document."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str

    @property
    def text(self) -> str:
        """The text."""
        return self.data


class DocumentBlocks(Body):
    """Text of a document, as blocks."""

    type: Literal["content"]
    content: "Texts"

    @property
    def text(self) -> str:
        """Text of all blocks, one per line."""
        return "\n".join(block.text for block in self.content)


class DocumentBlock(Block):
    """A plain-text document; no citations are generated."""

    unread = Unread(ignored=BLOCK_HINTS | {"citations"})

    type: Literal["document"]
    source: Annotated[
        Annotated[PlainText, Tag("(text)")] | Annotated[DocumentBlocks, Tag("(content)")],
        by_type("a source of type text or content: this server reads text only"),
    ]
    title: str | None = None
    context: str | None = None

    @property
    def text(self) -> str:
        """Text for the model."""
        return _lines(self.title, self.context, self.source.text)


class SearchResultBlock(Block):
    """A search result of the client; no citations are generated."""

    unread = Unread(ignored=BLOCK_HINTS | {"citations"})

    type: Literal["search_result"]
    source: str
    title: str
    content: "Texts"

    @property
    def text(self) -> str:
        """Text for the model."""
        return _lines(self.title, self.source, *(block.text for block in self.content))


class WebSearchResult(Body):
    """A page found by Anthropic's web search; only Anthropic can read its content."""

    unread = Unread(ignored=frozenset({"encrypted_content", "page_age"}))

    type: Literal["web_search_result"]
    title: str
    url: str


class WebSearchError(Dropped):
    """Error of a web search."""

    type: Literal["web_search_tool_result_error"]


class WebSearchResultBlock(Block):
    """Results of Anthropic's web search, from an answer sent back."""

    unread = Unread(ignored=BLOCK_HINTS | {"caller", "tool_use_id"})

    type: Literal["web_search_tool_result"]
    content: list[WebSearchResult] | WebSearchError

    @property
    def text(self) -> str:
        """Text for the model: titles and addresses."""
        found = [] if isinstance(self.content, WebSearchError) else self.content
        return _lines(*(f"{page.title}: {page.url}" for page in found))


class CompactionBlock(Block):
    """A summary of the conversation, from an answer sent back."""

    type: Literal["compaction"]
    content: str | None = None

    @property
    def text(self) -> str:
        """Text for the model."""
        return _lines(self.content)


class HostedBlock(Dropped):
    """A call or result of a tool that Anthropic's servers ran. Models do not see it."""

    type: Annotated[str, Field(pattern=f"^({'|'.join(HOSTED_BLOCKS)})$")]


def _lines(*texts: str | None) -> str:
    """Return the texts that are not empty, as lines."""
    return "".join(f"{text}\n" for text in texts if text)


def _kind(kind: str) -> str:
    return "hosted" if kind in HOSTED_BLOCKS else kind


class ToolResultBlock(Block):
    """Result of a tool call; chat templates cannot express `is_error`."""

    unread = Unread(ignored=BLOCK_HINTS, repeated={"is_error": (False,)})

    type: Literal["tool_result"]
    tool_use_id: str
    content: "Results" = Field(default_factory=list)
    is_error: bool = False


class ToolName(Body):
    """A tool declared in `tools`, or earlier in the conversation."""

    type: Literal["tool_reference"]
    name: str


class ToolDefinition(Body):
    """A tool declared in the middle of a conversation."""

    type: Literal["tool_definition"]
    definition: AnyTool


class ToolAdditionBlock(Block):
    """Adds a tool from here on."""

    type: Literal["tool_addition"]
    tool: Annotated[
        Annotated[ToolName, Tag("(tool_reference)")]
        | Annotated[ToolDefinition, Tag("(tool_definition)")],
        by_type("an object of type tool_reference or tool_definition: others are not supported"),
    ]


class ToolRemovalBlock(Block):
    """Removes a tool from here on."""

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
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[DocumentBlock, Tag("(document)")]
    | Annotated[SearchResultBlock, Tag("(search_result)")]
    | Annotated[ToolReferenceBlock, Tag("(tool_reference)")],
    by_type(
        "a block of type text, document, search_result or tool_reference: others are not supported"
    ),
]
# A string, or blocks of text, documents, search results and tool references.
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
    | Annotated[ToolRemovalBlock, Tag("(tool_removal)")]
    | Annotated[DocumentBlock, Tag("(document)")]
    | Annotated[SearchResultBlock, Tag("(search_result)")]
    | Annotated[WebSearchResultBlock, Tag("(web_search_tool_result)")]
    | Annotated[CompactionBlock, Tag("(compaction)")]
    | Annotated[HostedBlock, Tag("(hosted)")],
    by_type(
        "a block of type text, document, search_result, thinking, redacted_thinking, tool_use,"
        " tool_result, tool_addition or tool_removal: others are not supported",
        kind_of=_kind,
    ),
]
ALLOWED_BLOCKS = {
    "user": (
        TextBlock,
        DocumentBlock,
        SearchResultBlock,
        ToolResultBlock,
        ToolAdditionBlock,
        ToolRemovalBlock,
        HostedBlock,
    ),
    "assistant": (
        TextBlock,
        WebSearchResultBlock,
        CompactionBlock,
        ThinkingBlock,
        RedactedThinkingBlock,
        ToolUseBlock,
        HostedBlock,
    ),
    "system": (TextBlock, ToolAdditionBlock, ToolRemovalBlock),
}


class Message(Body):
    """One turn. A string is one text block."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[AnyBlock],
        FailFast(),
        Field(max_length=MAX_PARTS),
        BeforeValidator(_blocks, json_schema_input_type=str | list[AnyBlock]),
    ]


def text_parts(blocks: Sequence[Result]) -> list[dict[str, str]]:
    """Return text blocks as parts of a chat message."""
    return [{"type": "text", "text": block.text} for block in blocks]


def chat_messages(message: Message, place: str) -> list[dict[str, Any]]:
    """Return the chat messages of a turn: one for each tool result, and one for the other blocks.

    Raises InvalidRequestError for a block that is not valid in a turn of its role.
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
            case (
                TextBlock()
                | DocumentBlock()
                | SearchResultBlock()
                | WebSearchResultBlock()
                | CompactionBlock()
            ):
                parts.append({"type": "text", "text": block.text})
            case ThinkingBlock():
                rest["reasoning"] = rest.get("reasoning", "") + block.thinking
            case Dropped() | ToolAdditionBlock() | ToolRemovalBlock():
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
        # One text, because some templates do not accept parts.
        return [{**rest, "content": "".join(part["text"] for part in parts)}]
    # A turn that has only results and tool changes needs no message of its own.
    return (
        results if message.content and not parts else [*results, {**rest, "content": parts or ""}]
    )
