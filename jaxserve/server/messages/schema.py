"""Request schemas of /v1/messages and /v1/messages/count_tokens, and their conversion to chats."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, Tag

from jaxserve.api.sampling_params import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import MAX_MESSAGES
from jaxserve.frontend.schema.body import (
    Body,
    ExactBody,
    Int32,
    by_type,
    limits_schema,
    texts_schema,
)
from jaxserve.frontend.schema.fields import Unread
from jaxserve.frontend.schema.parsing import show
from jaxserve.frontend.tools import MAX_TOOLS
from jaxserve.server.messages.blocks import (
    AnyBlock,
    Message,
    Texts,
    ToolAdditionBlock,
    ToolDefinition,
    ToolName,
    ToolRemovalBlock,
    chat_messages,
    text_parts,
)
from jaxserve.server.messages.edits import ContextManagement
from jaxserve.server.messages.tools import (
    AnyTool,
    HostedTool,
    NamedTool,
    Tool,
    ToolChoice,
    chat_tool,
    chat_tool_choice,
)

# Fields of an Anthropic request by the names of the chat's fields, for error messages.
FIELD_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "thinking_token_budget": "thinking.budget_tokens",
}
UNREAD = Unread(
    # Hints and client-side metadata.
    ignored=frozenset(
        {"cache_control", "diagnostics", "inference_geo", "metadata", "service_tier", "speed"}
    ),
    refused={
        "container": ("is not supported: this server runs no code", ()),
        "mcp_servers": ("is not supported: this server connects to no other", ([],)),
    },
)
UNUSED_DISPLAY = Unread(repeated={"display": ()})


class ThinkingMode(Body):
    """Whether to reason before answering. All reasoning is returned, whatever `display` says."""

    unread = UNUSED_DISPLAY

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingBudget(Body):
    """Reasoning with a budget. See ThinkingMode."""

    unread = UNUSED_DISPLAY

    type: Literal["enabled"]
    budget_tokens: Annotated[Int32, Field(ge=1)]
    display: Literal["summarized", "omitted"] | None = None


type Thinking = Annotated[
    Annotated[ThinkingMode, Tag("(disabled)")]
    | Annotated[ThinkingMode, Tag("(adaptive)")]
    | Annotated[ThinkingBudget, Tag("(enabled)")],
    by_type("an object of type enabled, disabled or adaptive"),
]


class OutputFormat(ExactBody):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """Format of the answer, and reasoning effort."""

    unread = Unread(ignored=frozenset({"task_budget"}))

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesPrompt(Body):
    """Fields that determine the prompt, shared with /v1/messages/count_tokens."""

    unread = UNREAD

    model: str
    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Texts = Field(default_factory=list)
    tools: Annotated[list[AnyTool], FailFast(), Field(max_length=MAX_TOOLS)] = Field(
        default_factory=list
    )
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    context_management: ContextManagement | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    @property
    def field_names(self) -> dict[str, str]:
        """Names of the body's fields by the names of the chat's."""
        is_older = self.output_format is not None
        return FIELD_NAMES | ({"response_format": "output_format"} if is_older else {})

    @property
    def _blocks(self) -> Iterator[tuple[int, int, AnyBlock]]:
        """All blocks, each with the index of its message and its index there."""
        for index, message in enumerate(self.messages):
            for number, block in enumerate(message.content):
                yield index, number, block

    def _offered_tools(self) -> list[AnyTool]:
        """Return the tools at the end of the conversation.

        Raises InvalidRequestError for a change of a tool that is not declared.
        """
        names = {tool.name for tool in self.tools}
        defined: dict[str | None, AnyTool] = {}
        removed: set[str | None] = set()
        for index, number, block in self._blocks:
            match block:
                case ToolAdditionBlock(tool=ToolDefinition(definition=tool)):
                    defined[tool.name] = tool
                    removed.discard(tool.name)
                case (
                    ToolAdditionBlock(tool=ToolName(name=name))
                    | ToolRemovalBlock(tool=ToolName(name=name))
                ):
                    if name not in names and name not in defined:
                        param = f"messages[{index}].content[{number}].tool.name"
                        raise InvalidRequestError(
                            f"{param} must be that of a tool declared before, got {show(name)}",
                            param=param,
                        )
                    change = removed.add if block.type == "tool_removal" else removed.discard
                    change(name)
        tools = [tool for tool in self.tools if tool.name not in defined] + [*defined.values()]
        if len(tools) > MAX_TOOLS:
            raise InvalidRequestError(
                f"messages must define at most {MAX_TOOLS} tools together with those of tools,"
                f" got {len(tools)}",
                param="messages",
            )
        return [tool for tool in tools if tool.name not in removed]

    def chat(self) -> dict[str, Any]:
        """Return the fields of the chat with the same prompt.

        Raises InvalidRequestError for misplaced blocks, and for a required tool that this server
        does not run. A last turn of the assistant is continued. The edits of context_management are
        not applied.
        """
        messages = [{"role": "system", "content": text_parts(self.system)}] if self.system else []
        for index, message in enumerate(self.messages):
            messages += chat_messages(message, f"messages[{index}]")
        if not messages:
            raise InvalidRequestError("messages must hold more than tools", param="messages")
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        offered = self._offered_tools()
        tools = [chat_tool(tool) for tool in offered if isinstance(tool, Tool)]
        if tools:
            fields["tools"] = tools
        if self.tool_choice is not None:
            _check_choice(self.tool_choice, offered)
            fields |= chat_tool_choice(self.tool_choice)
        match self.thinking:
            case ThinkingBudget(budget_tokens=budget):
                fields["thinking_token_budget"] = budget
            case ThinkingMode(type="disabled"):
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


def _check_choice(choice: ToolChoice, offered: Sequence[AnyTool]) -> None:
    """Raise InvalidRequestError if a tool is required that this server does not run."""
    hosted = {tool.name: tool.type for tool in offered if isinstance(tool, HostedTool)}
    if isinstance(choice, NamedTool) and choice.name in hosted:
        raise InvalidRequestError(
            f"tool_choice must name a tool of type custom, got {show(choice.name)} of type"
            f" {show(hosted[choice.name])}, which this server does not run",
            param="tool_choice",
        )


type StopSequences = Annotated[
    list[str],
    FailFast(),
    texts_schema(MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS),
]


class MessagesBody(MessagesPrompt):
    """Body of POST /v1/messages. `seed` is an extension."""

    max_tokens: Annotated[Int32, limits_schema("max_tokens")]
    temperature: Annotated[float, limits_schema("temperature")] | None = None
    top_p: Annotated[float, limits_schema("top_p")] | None = None
    top_k: Annotated[Int32, limits_schema("top_k")] | None = None
    stop_sequences: StopSequences = Field(default_factory=list)
    seed: Annotated[int, limits_schema("seed")] | None = None
    stream: bool = False

    def chat(self) -> dict[str, Any]:
        """Return the fields of the equivalent chat."""
        return {
            **super().chat(),
            "max_completion_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "seed": self.seed,
        }
