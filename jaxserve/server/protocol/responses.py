"""The body of POST /v1/responses, and the chat it asks for."""

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag, TypeAdapter

from jaxserve.errors import InvalidRequestError
from jaxserve.server.protocol.body import Body, Int32
from jaxserve.server.protocol.chat import MAX_MESSAGES, MAX_TOOLS, ReasoningEffort
from jaxserve.server.protocol.parsing import kind_of, show, wanted

# What our fields are called in a response's request; errors of a chat speak of it by these names.
FIELD_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
UNSUPPORTED = {
    "context_management": "is not supported: this server never shortens what it is sent",
    "conversation": "is not supported: use previous_response_id",
    "prompt": "is not supported: this server keeps no prompt templates",
}
# Hints and bookkeeping, without effect here.
IGNORED = {
    "max_tool_calls",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "stream_options",
    "user",
}
# Passed on to the chat as they are. From `top_k` on they are not OpenAI's.
PASSED = (
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "ignore_eos",
    "priority",
    "cache_salt",
    "chat_template_kwargs",
)
MAX_METADATA = 16

type Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(Body):
    """Text; annotations and logprobs, of an answer sent back, have no effect."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalPart(Body):
    """A refusal, of an answer sent back."""

    type: Literal["refusal"]
    refusal: str


def _parts(value: object) -> object:
    """A string is one part of text."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


type Part = Annotated[
    Annotated[TextPart, Tag("(input_text)")]
    | Annotated[TextPart, Tag("(output_text)")]
    | Annotated[RefusalPart, Tag("(refusal)")],
    Discriminator(
        kind_of,
        custom_error_type="wanted",
        custom_error_message="wanted",
        custom_error_context={
            "wanted": "a part of type input_text, output_text or refusal: others are not supported"
        },
    ),
]
type Parts = Annotated[
    list[Part], FailFast(), BeforeValidator(_parts, json_schema_input_type=str | list[Part])
]


class MessageItem(Body):
    """What somebody says; a string is one part of text."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCallItem(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionCallOutputItem(Body):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts
    id: str | None = None
    status: Status | None = None


class ReasoningText(Body):
    """A piece of reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """What the model thought; of an answer sent back. Summaries have no effect."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)
    encrypted_content: None = None
    status: Status | None = None


def _kind_of_item(value: object) -> str | None:
    return kind_of(value, default="message")


type Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[FunctionCallOutputItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")],
    Discriminator(
        _kind_of_item,
        custom_error_type="wanted",
        custom_error_message="wanted",
        custom_error_context={
            "wanted": "an item of type message, function_call, function_call_output or reasoning:"
            " others are not supported"
        },
    ),
]
ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
ID_PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}


def _items(value: object) -> object:
    """A string is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def _tool(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise wanted(f"a tool of type function: this server does not run {show(kind)}")
    return value


class ToolChoice(Body):
    """A function that must be called, or some of which may be."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


def _tool_choice(value: object) -> object:
    if isinstance(value, str) and value not in {"none", "auto", "required"}:
        raise wanted("none, auto, required or an object")
    if not isinstance(value, str | dict):
        raise wanted("none, auto, required or an object")
    return value


class Format(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Body):
    """The form of the answer; verbosity is a hint of no effect."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    """How much thought goes into the answer. Summaries: of no effect, all of it is shown."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsePrompt(Body):
    """What makes a prompt: what /v1/responses and /v1/responses/input_tokens share."""

    model: str | None = None
    input: Annotated[
        list[Item],
        FailFast(),
        Field(max_length=MAX_MESSAGES),
        BeforeValidator(_items, json_schema_input_type=str | list[Item]),
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[
        list[Annotated[FunctionTool, BeforeValidator(_tool, json_schema_input_type=FunctionTool)]],
        FailFast(),
        Field(max_length=MAX_TOOLS),
    ] = Field(default_factory=list)
    tool_choice: Annotated[
        str | ToolChoice, BeforeValidator(_tool_choice, json_schema_input_type=str | ToolChoice)
    ] = "auto"
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] = "disabled"
    parallel_tool_calls: bool = True

    def chat(self, earlier: Sequence[Item]) -> dict[str, Any]:
        """Return the fields of the chat that makes the same prompt.

        earlier: the items before those of `input`. Raises InvalidRequestError.
        """
        messages = _chat_messages([*earlier, *self.input])
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise InvalidRequestError("input must not be empty, got []", param="input")
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        tools, choice = self._tools()
        if tools:
            fields |= {"tools": [_chat_tool(tool) for tool in tools], "tool_choice": choice}
        if self.reasoning is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        return fields

    def _tools(self) -> tuple[list[FunctionTool], Any]:
        """Return the tools to show, and a chat's tool_choice."""
        choice = self.tool_choice
        if isinstance(choice, str):
            return self.tools, choice
        if choice.type == "function":
            if choice.name is None:
                raise _missing("tool_choice.name")
            return self.tools, {"type": "function", "function": {"name": choice.name}}
        if choice.tools is None:
            raise _missing("tool_choice.tools")
        allowed = {tool.get("name") for tool in choice.tools}
        return [tool for tool in self.tools if tool.name in allowed], choice.mode or "auto"


class ResponsesBody(ResponsePrompt):
    """Something to be answered, and how."""

    max_output_tokens: Annotated[Int32, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[
        list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]], FailFast()
    ] = Field(default_factory=list)
    store: bool = True
    stream: bool = False
    background: bool = False
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA)] = Field(
        default_factory=dict
    )
    top_k: Int32 | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    priority: Int32 = 0
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise InvalidRequestError for fields that are right alone and wrong together."""
        for name in ("stream", "store"):
            if self.background and getattr(self, name) is not (name == "store"):
                raise InvalidRequestError(
                    f"background can only be given with store=true and stream=false,"
                    f" got {name}={str(getattr(self, name)).lower()}",
                    param="background",
                )
        config = self.text.format if self.text is not None else None
        if config is not None and config.type == "json_schema":
            for name, value in (("name", config.name), ("schema", config.json_schema)):
                if value is None:
                    raise _missing(f"text.format.{name}")

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are to stand beside the text."""
        return "message.output_text.logprobs" in self.include or bool(self.top_logprobs)

    def chat(self, earlier: Sequence[Item]) -> dict[str, Any]:
        """Return the fields of the chat that asks for the same answer. See ResponsePrompt."""
        fields = super().chat(earlier) | {name: getattr(self, name) for name in PASSED}
        fields["max_completion_tokens"] = self.max_output_tokens
        if self.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        config = self.text.format if self.text is not None else None
        if config is not None and config.type != "text":
            fields["response_format"] = {"type": config.type}
            if config.type == "json_schema":
                schema = config.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
                fields["response_format"]["json_schema"] = schema
        return fields


def served(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that have an effect; raises InvalidRequestError for those not supported."""
    for name, reason in UNSUPPORTED.items():
        if fields.get(name) is not None:
            raise InvalidRequestError(f"{name} {reason}", param=name, code="unsupported_field")
    return {
        name: value
        for name, value in fields.items()
        if name not in IGNORED and name not in UNSUPPORTED
    }


def with_ids(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return items as JSON, each with an id and a status, as they are kept and listed."""
    listed = []
    for item in items:
        prefix = ID_PREFIXES.get(item.type, "item")
        fields = item.model_dump(mode="json", exclude_none=True)
        fields.setdefault("id", f"{prefix}_{uuid.uuid4().hex}")
        listed.append(fields | {"status": fields.get("status", "completed")})
    return listed


def _missing(param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} is required", param=param, code="missing_field")


def _chat_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return a chat's messages. What the assistant thinks, says and calls in a row is one."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    for item in items:
        is_assistants = isinstance(item, FunctionCallItem | ReasoningItem) or (
            isinstance(item, MessageItem) and item.role == "assistant"
        )
        if not is_assistants:
            turn = None
        elif turn is None:
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        match item:
            case ReasoningItem() if turn is not None:
                thought = "".join(part.text for part in item.content)
                turn["reasoning"] = turn.get("reasoning", "") + thought
            case FunctionCallItem() if turn is not None:
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                turn.setdefault("tool_calls", []).append(call)
            case MessageItem() if turn is not None:
                turn["content"] += "".join(_text(part) for part in item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _chat_parts(item.content)})
            case FunctionCallOutputItem():
                content = _chat_parts(item.output) or ""
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
    return messages


def _chat_parts(parts: Sequence[Part]) -> list[dict[str, str]]:
    return [{"type": "text", "text": _text(part)} for part in parts]


def _text(part: Part) -> str:
    return part.refusal if isinstance(part, RefusalPart) else part.text


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
