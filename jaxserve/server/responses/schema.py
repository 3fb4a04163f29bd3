"""Request schema of POST /v1/responses, and its conversion to a chat."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import FailFast, Field, Tag

from jaxserve.chat.past_calls import ARGUMENTS
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import ReasoningEffort
from jaxserve.frontend.schema.body import Body, ExactBody, Int32, Metadata, by_type
from jaxserve.frontend.schema.fields import REFUSED, Place, Unread
from jaxserve.frontend.schema.generation import SamplingBody
from jaxserve.frontend.schema.parsing import show
from jaxserve.frontend.schema.structured import JsonObjectFormat, TextFormat
from jaxserve.frontend.tools import MAX_TOOLS
from jaxserve.server.responses.items import (
    ITEMS,
    CustomToolCallItem,
    FunctionCallItem,
    Item,
    ItemReference,
    Items,
    MessageItem,
    chat_messages,
    is_instruction,
)
from jaxserve.server.responses.tools import AnyTool, chat_tools, flat_name

# Fields of a response's request by the names of the chat's fields, for error messages.
FIELD_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
OTHER_NAME = "is not the name of it: use "
UNREAD = Unread(
    # Hints and client-side metadata.
    ignored=frozenset(
        {
            "client_metadata",
            "context_management",
            "moderation",
            "prompt_cache_options",
            "prompt_cache_retention",
            "request_id",
            "service_tier",
            "stream_options",
        }
    ),
    # The server runs no tools itself, so `max_tool_calls` is never exceeded.
    repeated=dict.fromkeys(("max_tool_calls", "prompt_cache_key", "safety_identifier", "user"), ()),
    refused={
        **REFUSED,
        "n": ("is not supported: a response is one answer", (1,)),
        "max_tokens": (f"{OTHER_NAME}max_output_tokens", ()),
        "max_completion_tokens": (f"{OTHER_NAME}max_output_tokens", ()),
        "response_format": (f"{OTHER_NAME}text.format", ()),
        "reasoning_effort": (f"{OTHER_NAME}reasoning.effort", ()),
        "previous_input_messages": ("is not supported: use previous_response_id", ([],)),
        "conversation": ("is not supported: use previous_response_id", ()),
        "prompt": ("is not supported: this server keeps no prompt templates", ()),
    },
)


class NamedFunction(Body):
    """The function or custom tool to call, or one of those allowed."""

    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class AllowedTools(Body):
    """Allowed tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], FailFast(), Field(min_length=1, max_length=MAX_TOOLS)]


type ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")]
    | Annotated[NamedFunction, Tag("(function)")]
    | Annotated[NamedFunction, Tag("(custom)")]
    | Annotated[AllowedTools, Tag("(allowed_tools)")],
    by_type(
        "none, auto, required, a function or custom tool by its name, or allowed_tools with a mode:"
        " this server runs no tools of its own"
    ),
]


class JsonSchemaFormat(ExactBody):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    name: str
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


type Format = Annotated[
    Annotated[TextFormat, Tag("(text)")]
    | Annotated[JsonObjectFormat, Tag("(json_object)")]
    | Annotated[JsonSchemaFormat, Tag("(json_schema)")],
    by_type("an object of type text, json_object or json_schema"),
]


class TextConfig(Body):
    """Format of the text. Answers repeat `verbosity`."""

    unread = Unread(repeated={"verbosity": ()})

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    """Reasoning effort. All reasoning is returned; there are no summaries."""

    unread = Unread(ignored=frozenset({"generate_summary"}), repeated={"summary": ()})

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsePrompt(Body):
    """Fields that determine the prompt, shared with /v1/responses/input_tokens."""

    unread = UNREAD

    model: str | None = None
    input: Items
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[AnyTool], FailFast(), Field(max_length=MAX_TOOLS)] = Field(
        default_factory=list
    )
    tool_choice: ToolChoice = "auto"
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    parallel_tool_calls: bool = True

    def field_names(
        self, earlier: Sequence[Item], chat: Mapping[str, Any], *, start: int = 0
    ) -> dict[str, str]:
        """Names of the body's fields by the names of the chat's, and the arguments of its calls."""
        in_chat = [
            ARGUMENTS.format(index, number)
            for index, message in enumerate(chat["messages"])
            for number in range(len(message.get("tool_calls", ())))
        ]
        places = ["previous_response_id"] * len(earlier)
        places += [f"input[{index}].arguments" for index in range(len(self.input))]
        items = [*earlier, *self.input]
        calls = [
            place
            for place, item in zip(places[start:], items[start:], strict=True)
            if isinstance(item, FunctionCallItem | CustomToolCallItem)
        ]
        return FIELD_NAMES | dict(zip(in_chat, calls, strict=True))

    @property
    def references(self) -> list[str]:
        """Ids of the stored items that the input refers to."""
        return [item.id for item in self.input if isinstance(item, ItemReference)]

    def resolved(self, stored: Mapping[str, Any]) -> Self:
        """Return the body with references replaced by the stored items, given by their ids.

        Raises InvalidRequestError (404) for an unknown id.
        """
        items = list(self.input)
        for index, item in enumerate(items):
            if not isinstance(item, ItemReference):
                continue
            if item.id not in stored:
                error = InvalidRequestError(
                    f"there is no item {show(item.id)} here: its response was deleted, not stored,"
                    " or given up for newer ones",
                    param=f"input[{index}].id",
                    code="not_found",
                )
                error.status = 404
                raise error
            [items[index]] = ITEMS.validate_python([stored[item.id]])
        return self.model_copy(update={"input": items})

    def starts(self, earlier: Sequence[Item]) -> list[int]:
        """Return where a conversation that is too long may be cut: at the user's messages."""
        return [
            index
            for index, item in enumerate([*earlier, *self.input])
            if isinstance(item, MessageItem) and item.role == "user"
        ]

    def chat(self, earlier: Sequence[Item], *, start: int = 0) -> dict[str, Any]:
        """Return the fields of the chat with the same prompt.

        earlier: the items before those of `input`. start: number of items to drop at the beginning
        of the conversation; system and developer messages are kept. Raises InvalidRequestError.
        """
        items = [*earlier, *self.input]
        instructions = [item for item in items[:start] if is_instruction(item)]
        messages = chat_messages([*instructions, *items[start:]])
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise InvalidRequestError("input must not be empty, got []", param="input")
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        fields["tools"] = chat_tools(self.tools)
        fields["tool_choice"] = _chat_tool_choice(self.tool_choice)
        if self.reasoning is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        return fields


LOGPROBS = "message.output_text.logprobs"
# Only the first adds anything: there is no encrypted reasoning, and tools of others do not run.
type Include = Literal[
    "message.output_text.logprobs",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponsesBody(ResponsePrompt, SamplingBody):
    """Body of POST /v1/responses."""

    max_output_tokens: Annotated[Int32, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Include], FailFast()] = Field(default_factory=list)
    store: bool = True
    stream: bool = False
    background: bool = False
    metadata: Metadata = Field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] | None = None
    max_tool_calls: Int32 | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    enable_response_messages: bool = False

    def check(self) -> None:
        """Raise InvalidRequestError for combinations of fields that are not valid."""
        for name, value, wanted in (("store", self.store, True), ("stream", self.stream, False)):
            if self.background and value is not wanted:
                raise InvalidRequestError(
                    f"background can only be used when `{name}` is {str(wanted).lower()}, got"
                    f" {str(value).lower()}",
                    param="background",
                )

    def unread_parts(self) -> Iterable[Place]:
        """Return the fields that request additions which are never made."""
        return [
            ("include", index, name) for index, name in enumerate(self.include) if name != LOGPROBS
        ]

    @property
    def wants_logprobs(self) -> bool:
        """Whether texts are returned with log-probabilities."""
        return LOGPROBS in self.include or bool(self.top_logprobs)

    def chat(self, earlier: Sequence[Item], *, start: int = 0) -> dict[str, Any]:
        """Return the fields of the equivalent chat. See ResponsePrompt."""
        fields = super().chat(earlier, start=start) | self.sampling_fields()
        fields |= {
            "parallel_tool_calls": self.parallel_tool_calls,
            "chat_template_kwargs": self.chat_template_kwargs,
            "max_completion_tokens": self.max_output_tokens,
            "return_token_ids": self.enable_response_messages,
        }
        if self.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        form = self.text.format if self.text is not None else None
        if form is not None:
            schema = form.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
            fields["response_format"] = {"type": form.type, "json_schema": schema or None}
        return fields


def _chat_tool_choice(choice: ToolChoice) -> Any:
    def named(function: NamedFunction) -> dict[str, Any]:
        name = flat_name(function.name, function.namespace)
        return {"type": "function", "function": {"name": name}}

    match choice:
        case NamedFunction():
            return named(choice)
        case AllowedTools():
            allowed = {"mode": choice.mode, "tools": [named(tool) for tool in choice.tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice
