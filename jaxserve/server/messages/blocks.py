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
# Types of blocks of answers in which Anthropic's servers ran tools.
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


class PlainText(Body):
    """The text of a document."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str

    @property
    def text(self) -> str:
        """The text itself."""
        return self.data


class DocumentBlocks(Body):
    """The text of a document, in blocks."""

    type: Literal["content"]
    content: "Texts"

    @property
    def text(self) -> str:
        """The text of all blocks, a line each."""
        return "\n".join(block.text for block in self.content)


class DocumentBlock(Block):
    """A document of plain text; `citations` are not made."""

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
        """What the model reads."""
        return _lines(self.title, self.context, self.source.text)


class SearchResultBlock(Block):
    """What a search of the client's found; `citations` are not made."""

    unread = Unread(ignored=BLOCK_HINTS | {"citations"})

    type: Literal["search_result"]
    source: str
    title: str
    content: "Texts"

    @property
    def text(self) -> str:
        """What the model reads."""
        return _lines(self.title, self.source, *(block.text for block in self.content))


class WebSearchResult(Body):
    """A page that a search on Anthropic's servers found; only they can read its content."""

    unread = Unread(ignored=frozenset({"encrypted_content", "page_age"}))

    type: Literal["web_search_result"]
    title: str
    url: str


class WebSearchError(Dropped):
    """Why such a search failed."""

    type: Literal["web_search_tool_result_error"]


class WebSearchResultBlock(Block):
    """What a search on Anthropic's servers found, of an answer sent back."""

    unread = Unread(ignored=BLOCK_HINTS | {"caller", "tool_use_id"})

    type: Literal["web_search_tool_result"]
    content: list[WebSearchResult] | WebSearchError

    @property
    def text(self) -> str:
        """What the model reads: titles and addresses."""
        found = [] if isinstance(self.content, WebSearchError) else self.content
        return _lines(*(f"{page.title}: {page.url}" for page in found))


class CompactionBlock(Block):
    """A summary of the conversation so far, of an answer sent back."""

    type: Literal["compaction"]
    content: str | None = None

    @property
    def text(self) -> str:
        """What the model reads."""
        return _lines(self.content)


class HostedBlock(Dropped):
    """A call or result of a tool that Anthropic's servers ran; the model gets none of it."""

    type: Annotated[str, Field(pattern=f"^({'|'.join(HOSTED_BLOCKS)})$")]


def _lines(*texts: str | None) -> str:
    """Return texts as lines, without those that are empty."""
    return "".join(f"{text}\n" for text in texts if text)


def _kind(kind: str) -> str:
    return "hosted" if kind in HOSTED_BLOCKS else kind


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
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[DocumentBlock, Tag("(document)")]
    | Annotated[SearchResultBlock, Tag("(search_result)")]
    | Annotated[ToolReferenceBlock, Tag("(tool_reference)")],
    by_type(
        "a block of type text, document, search_result or tool_reference: others are not supported"
    ),
]
# A string, or blocks of text, documents and tools that were found.
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
        # One text: parts would come apart again in templates that take no parts.
        return [{**rest, "content": "".join(part["text"] for part in parts)}]
    # What holds nothing but results and changes of tools says nothing itself.
    return (
        results if message.content and not parts else [*results, {**rest, "content": parts or ""}]
    )
