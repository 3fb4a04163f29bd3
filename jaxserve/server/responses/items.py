"""Input items of /v1/responses, and their conversion to the messages of a chat."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, Tag, TypeAdapter

from jaxserve.frontend.chat import MAX_MESSAGES
from jaxserve.frontend.schema.body import MAX_PARTS, Body, Dropped, by_type
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.tools import arguments_of
from jaxserve.server.responses.tools import flat_name

type Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(Body):
    """A text. annotations and logprobs: of answers sent back."""

    unread = Unread(repeated={"annotations": ([],), "logprobs": ([],)})

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalPart(Body):
    """A refusal, from an answer sent back."""

    type: Literal["refusal"]
    refusal: str


def _parts(value: object) -> object:
    """Convert a string to one text part."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


type Part = Annotated[
    Annotated[TextPart, Tag("(input_text)")]
    | Annotated[TextPart, Tag("(output_text)")]
    | Annotated[RefusalPart, Tag("(refusal)")],
    by_type("a part of type input_text, output_text or refusal: others are not supported"),
]
type Parts = Annotated[
    list[Part],
    FailFast(),
    Field(max_length=MAX_PARTS),
    BeforeValidator(_parts, json_schema_input_type=str | list[Part]),
]


class MessageItem(Body):
    """A message. A string is one text part."""

    unread = Unread(repeated={"phase": ()})

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCallItem(Body):
    """A past call of a function."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    id: str | None = None
    status: Status | None = None


class CustomToolCallItem(Body):
    """A past call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    namespace: str | None = None
    id: str | None = None
    status: Status | None = None


class FunctionCallOutputItem(Body):
    """The result of the call `call_id`, of a function or a custom tool."""

    unread = Unread(repeated={"name": ()})

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Parts
    name: str | None = None
    id: str | None = None
    status: Status | None = None


class ReasoningText(Body):
    """A part of reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


type ReasoningTexts = Annotated[list[ReasoningText], FailFast(), Field(max_length=MAX_PARTS)]


class ReasoningItem(Body):
    """Past reasoning, from an answer sent back. Only OpenAI can read `encrypted_content`."""

    unread = Unread(repeated={"summary": ([],), "encrypted_content": ()})

    type: Literal["reasoning"]
    id: str | None = None
    summary: ReasoningTexts = Field(default_factory=list)
    content: ReasoningTexts = Field(default_factory=list)
    encrypted_content: str | None = None
    status: Status | None = None


class ItemReference(Body):
    """An item of a stored response, by its id. `ResponsePrompt.resolved` replaces it."""

    type: Literal["item_reference"] = "item_reference"
    id: str


# Types of items in which OpenAI's servers ran tools or compacted the conversation. A client that
# sends one back sends no other item that belongs to it.
HOSTED_ITEMS = (
    "code_interpreter_call",
    "compaction",
    "file_search_call",
    "mcp_call",
    "mcp_list_tools",
    "web_search_call",
)


class HostedItem(Dropped):
    """Trace of a tool that OpenAI's servers ran, from an answer sent back. Models do not see it."""

    type: Annotated[str, Field(pattern=f"^({'|'.join(HOSTED_ITEMS)})$")]
    id: str | None = None


def _kind(kind: str) -> str:
    return "hosted" if kind in HOSTED_ITEMS else kind


def _with_type(value: object) -> object:
    """Add the type `item_reference` to objects that have an id and no role."""
    if isinstance(value, dict) and value.get("type") is None and "id" in value:
        is_message = value.get("role") is not None or value.get("content") is not None
        return value if is_message else {**value, "type": "item_reference"}
    return value


type Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[CustomToolCallItem, Tag("(custom_tool_call)")]
    | Annotated[FunctionCallOutputItem, Tag("(function_call_output)")]
    | Annotated[FunctionCallOutputItem, Tag("(custom_tool_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")]
    | Annotated[ItemReference, Tag("(item_reference)")]
    | Annotated[HostedItem, Tag("(hosted)")],
    by_type(
        "an item of type message, function_call, function_call_output, custom_tool_call,"
        " custom_tool_call_output, reasoning or item_reference: others are not supported",
        default="message",
        kind_of=_kind,
    ),
    BeforeValidator(_with_type),
]
ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "reasoning": "rs",
}
# Digits of an item's number at the end of its id. Numbers of inputs are above those of outputs.
NUM_DIGITS = 4
FIRST_INPUT = 0x8000


def _items(value: object) -> object:
    """Convert a string to one user message."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


# A list of items; a string is one user message.
type Items = Annotated[
    list[Item],
    FailFast(),
    Field(max_length=MAX_MESSAGES),
    BeforeValidator(_items, json_schema_input_type=str | list[Item]),
]


def item_id(kind: str, response_id: str, number: int) -> str:
    """Return the id of an item, from which its response can be found.

    number: index in the output; for an item of the input, FIRST_INPUT plus its index.
    """
    prefix = ID_PREFIXES.get(kind, "item")
    return f"{prefix}_{response_id.removeprefix('resp_')}{number:0{NUM_DIGITS}x}"


def response_of(item: str) -> str:
    """Return the id of the response that an item belongs to; see `item_id`."""
    return f"resp_{item.rpartition('_')[2][:-NUM_DIGITS]}"


def with_ids(items: Sequence[Item], response_id: str) -> list[dict[str, Any]]:
    """Return the items of a response's input as JSON to store, each with an id and a status."""
    listed = []
    for index, item in enumerate(items):
        fields = item.model_dump(mode="json", exclude_none=True)
        fields.setdefault("id", item_id(item.type, response_id, FIRST_INPUT + index))
        listed.append(fields | {"status": fields.get("status", "completed")})
    return listed


def chat_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the messages of a chat. Consecutive items of the assistant become one message."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    for item in items:
        if isinstance(item, HostedItem):
            continue
        if not _is_assistants(item):
            turn = None
        elif turn is None:
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        match item:
            case ReasoningItem() if turn is not None:
                thought = "".join(part.text for part in item.content)
                turn["reasoning"] = turn.get("reasoning", "") + thought
            case FunctionCallItem() | CustomToolCallItem() if turn is not None:
                function = {
                    "name": flat_name(item.name, item.namespace),
                    "arguments": item.arguments
                    if isinstance(item, FunctionCallItem)
                    else arguments_of(item.input),
                }
                call = {"id": item.call_id, "type": "function", "function": function}
                turn.setdefault("tool_calls", []).append(call)
            case MessageItem() if turn is not None:
                turn["content"] += "".join(_text(part) for part in item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _chat_parts(item.content) or ""})
            case FunctionCallOutputItem():
                content = _chat_parts(item.output) or ""
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
    return messages


def is_instruction(item: Item) -> bool:
    """Whether an item is an instruction for the whole conversation."""
    return isinstance(item, MessageItem) and item.role in {"system", "developer"}


def _is_assistants(item: Item) -> bool:
    """Whether an item is part of an assistant's turn."""
    if isinstance(item, MessageItem):
        return item.role == "assistant"
    return isinstance(item, FunctionCallItem | CustomToolCallItem | ReasoningItem)


def _chat_parts(parts: Sequence[Part]) -> list[dict[str, str]]:
    return [{"type": "text", "text": _text(part)} for part in parts]


def _text(part: Part) -> str:
    return part.refusal if isinstance(part, RefusalPart) else part.text
