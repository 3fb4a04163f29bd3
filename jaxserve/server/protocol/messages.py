"""The bodies of POST /v1/messages and /v1/messages/count_tokens, and the chat they ask for."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, FailFast, Field, Tag

from jaxserve.errors import InvalidRequestError
from jaxserve.request import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS
from jaxserve.server.protocol.body import MAX_PARTS, Body, Int32, by_type, told, told_texts, wanted
from jaxserve.server.protocol.chat import FUNCTION_NAME, MAX_MESSAGES, MAX_TOOLS
from jaxserve.server.protocol.fields import Unread

# What our fields are called in an Anthropic request; errors of a chat speak of it by these names.
FIELD_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "thinking_token_budget": "thinking.budget_tokens",
}
UNREAD = Unread(
    # Hints and bookkeeping.
    ignored=frozenset(
        {"cache_control", "diagnostics", "inference_geo", "metadata", "service_tier", "speed"}
    ),
    refused={
        "container": ("is not supported: this server runs no code", ()),
        "context_management": (
            "is not supported: this server sends the model all of the messages",
            ({}, {"edits": []}),
        ),
        "mcp_servers": ("is not supported: this server connects to no other", ([],)),
    },
)


def _blocks(value: object) -> object:
    """A string is one block of text."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Block(Body):
    """What all blocks may have. cache_control: of no effect, prefixes are cached anyway."""

    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    """Text; `citations`, of an answer sent back, have no effect."""

    type: Literal["text"]
    text: str
    citations: list[Any] | None = None


class ThinkingBlock(Block):
    """What the model thought before it said something."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolUseBlock(Block):
    """A call the model made; `caller`, of an answer sent back, has no effect."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


class ToolResultBlock(Block):
    """What came of a call; is_error: of no effect, templates have no place for it."""

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
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")],
    by_type("a block of type text, thinking, tool_use or tool_result: others are not supported"),
]
ALLOWED_BLOCKS = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
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


class Tool(Block):
    """A function the model may call; Anthropic's own tools are refused by their types."""

    type: Literal["custom"] = "custom"
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


def _only_custom(value: object) -> object:
    kind = value.get("type", "custom") if isinstance(value, dict) else "custom"
    if kind not in {"custom", None}:
        raise wanted("a tool of type custom: this server runs no tools of its own")
    return value


class ToolMode(Body):
    """Whether to call a tool: maybe, surely, or not at all."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class NamedTool(Body):
    """The tool to call."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


type ToolChoice = Annotated[
    Annotated[ToolMode, Tag("(auto)")]
    | Annotated[ToolMode, Tag("(any)")]
    | Annotated[ToolMode, Tag("(none)")]
    | Annotated[NamedTool, Tag("(tool)")],
    by_type("an object of type auto, any, tool or none"),
]


class Thoughts(Body):
    """Whether to think before an answer. display: of no effect, all of it is shown."""

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class BoundedThoughts(Body):
    """How long to think before an answer. display: of no effect, all of it is shown."""

    type: Literal["enabled"]
    budget_tokens: Annotated[Int32, Field(ge=1)]
    display: Literal["summarized", "omitted"] | None = None


type Thinking = Annotated[
    Annotated[Thoughts, Tag("(disabled)")]
    | Annotated[Thoughts, Tag("(adaptive)")]
    | Annotated[BoundedThoughts, Tag("(enabled)")],
    by_type("an object of type enabled, disabled or adaptive"),
]


class OutputFormat(Body):
    """The form of the answer: JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """The form of the answer, and how much thought goes into it."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesPrompt(Body):
    """Turns and what makes a prompt of them: what both bodies share."""

    unread = UNREAD

    model: str
    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Texts = Field(default_factory=list)
    tools: Annotated[
        list[Annotated[Tool, BeforeValidator(_only_custom, json_schema_input_type=Tool)]],
        FailFast(),
        Field(max_length=MAX_TOOLS),
    ] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    @property
    def field_names(self) -> dict[str, str]:
        """Return what the fields of the chat are called here."""
        is_older = self.output_format is not None
        return FIELD_NAMES | ({"response_format": "output_format"} if is_older else {})

    def chat(self) -> dict[str, Any]:
        """Return the fields of the chat that makes the same prompt.

        Raises InvalidRequestError for blocks where they cannot be. An assistant's turn at the end
        is one to go on with.
        """
        messages = [{"role": "system", "content": _parts(self.system)}] if self.system else []
        for index, message in enumerate(self.messages):
            messages += _chat_messages(message, f"messages[{index}]")
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        if self.tools:
            fields["tools"] = [_chat_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            fields |= _chat_tool_choice(self.tool_choice)
        match self.thinking:
            case BoundedThoughts(budget_tokens=budget):
                fields["thinking_token_budget"] = budget
            case Thoughts(type="disabled"):
                fields["reasoning_effort"] = "none"
        form = self.output_format
        if self.output_config is not None:
            fields.setdefault("reasoning_effort", self.output_config.effort)
            if form is not None and self.output_config.format is not None:
                raise InvalidRequestError(
                    "output_format cannot be given with output_config.format: they are the same",
                    param="output_format",
                )
            form = form or self.output_config.format
        if form is not None:
            schema = {"name": "answer", "schema": form.json_schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields


type StopSequences = Annotated[
    list[str],
    FailFast(),
    told_texts(MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS),
]


class MessagesBody(MessagesPrompt):
    """Turns to be answered; `seed` is not Anthropic's."""

    max_tokens: Annotated[Int32, told("max_tokens")]
    temperature: Annotated[float, told("temperature")] | None = None
    top_p: Annotated[float, told("top_p")] | None = None
    top_k: Annotated[Int32, told("top_k")] | None = None
    stop_sequences: StopSequences = Field(default_factory=list)
    seed: Annotated[int, told("seed")] | None = None
    stream: bool = False

    def chat(self) -> dict[str, Any]:
        """Return the fields of the chat that asks for the same answer."""
        return {
            **super().chat(),
            "max_completion_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "seed": self.seed,
        }


def _parts(blocks: list[TextBlock]) -> list[dict[str, str]]:
    return [{"type": "text", "text": block.text} for block in blocks]


def _chat_messages(message: Message, place: str) -> list[dict[str, Any]]:
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
                parts += _parts([block])
            case ThinkingBlock():
                rest["reasoning"] = rest.get("reasoning", "") + block.thinking
            case ToolUseBlock():
                arguments = msgspec.json.encode(block.input).decode()
                function = {"name": block.name, "arguments": arguments}
                call = {"id": block.id, "type": "function", "function": function}
                rest.setdefault("tool_calls", []).append(call)
            case ToolResultBlock():
                content = _parts(block.content) or ""
                results.append(
                    {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
                )
    if message.role == "assistant":
        # One text: parts would come apart again in templates that take no parts.
        return [{**rest, "content": "".join(part["text"] for part in parts)}]
    return [*results, {**rest, "content": parts or ""}] if parts or not results else results


def _chat_tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def _chat_tool_choice(choice: ToolChoice) -> dict[str, Any]:
    wanted: Any = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
    if isinstance(choice, NamedTool):
        wanted = {"type": "function", "function": {"name": choice.name}}
    return {
        "tool_choice": wanted,
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }
