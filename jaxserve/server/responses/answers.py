"""Response types of /v1/responses, and the events of its streams."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct

from jaxserve.server.schema.answers import Maybe, TokenLogprob

# Items


class OutputText(Struct, tag_field="type", tag="output_text"):
    """Text of the assistant."""

    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """Reasoning of the model."""

    text: str = ""


class MessageOut(Struct, tag_field="type", tag="message", kw_only=True):
    """A message of the assistant."""

    id: str
    role: str = "assistant"
    status: str = "in_progress"
    content: list[OutputText] = []


class ReasoningOut(Struct, tag_field="type", tag="reasoning", kw_only=True):
    """Reasoning of the model; there is no summary."""

    id: str
    status: str = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []


class FunctionCallOut(Struct, tag_field="type", tag="function_call", kw_only=True):
    """A call of a function."""

    id: str
    call_id: str
    name: str
    namespace: Maybe[str] = UNSET
    arguments: str = ""
    status: str = "in_progress"


class CustomToolCallOut(Struct, tag_field="type", tag="custom_tool_call", kw_only=True):
    """A call of a custom tool."""

    id: str
    call_id: str
    name: str
    namespace: Maybe[str] = UNSET
    input: str = ""
    status: str = "in_progress"


type ItemOut = MessageOut | ReasoningOut | FunctionCallOut | CustomToolCallOut


# Answers


class InputTokensDetails(Struct):
    """Details of the input tokens.

    cached_tokens: tokens found in the prefix cache. It fills by itself, so no writes are counted.
    """

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """Details of the output tokens. reasoning_tokens: tokens of the model's reasoning."""

    reasoning_tokens: int


class ResponseUsage(Struct):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct):
    """The error of a failed response."""

    code: str
    message: str


class IncompleteDetails(Struct):
    """The reason for which a response is incomplete."""

    reason: str


class RawMessage(Struct, tag_field="type", tag="raw_message_tokens"):
    """A prompt or an answer as the model reads and writes it, special tokens included."""

    message: str
    tokens: Sequence[int]


class Response(Struct, kw_only=True):
    """A response, complete or in progress. It repeats the fields of its request.

    service_tier: always the only one there is, whichever was requested. input_messages,
    output_messages: the prompt and the whole answer, if the request enables response messages.
    """

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str = "in_progress"
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[ItemOut] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt: None = None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    input_messages: Maybe[list[RawMessage]] = UNSET
    output_messages: Maybe[list[RawMessage]] = UNSET


class ItemList(Struct):
    """A list of the items of a response's input."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = False
    object: str = "list"


class ResponseDeleted(Struct):
    """Answer of DELETE."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputTokens(Struct):
    """Answer of /v1/responses/input_tokens."""

    input_tokens: int
    object: str = "response.input_tokens"


# Events. The writer counts them.


class Event(Struct, kw_only=True):
    """Fields of all events."""

    sequence_number: int = 0


class ResponseEvent(Event, kw_only=True, tag_field="type"):
    """Event with the whole response."""

    response: Response


class ResponseCreated(ResponseEvent, kw_only=True, tag="response.created"):
    """The response was created."""


class ResponseInProgress(ResponseEvent, kw_only=True, tag="response.in_progress"):
    """The response is in progress."""


class ResponseCompleted(ResponseEvent, kw_only=True, tag="response.completed"):
    """The response is complete."""


class ResponseIncomplete(ResponseEvent, kw_only=True, tag="response.incomplete"):
    """The response is incomplete."""


class ResponseFailed(ResponseEvent, kw_only=True, tag="response.failed"):
    """The response has failed."""


class ItemAdded(Event, kw_only=True, tag_field="type", tag="response.output_item.added"):
    """A new, empty item."""

    output_index: int
    item: ItemOut


class ItemDone(Event, kw_only=True, tag_field="type", tag="response.output_item.done"):
    """A complete item."""

    output_index: int
    item: ItemOut


class InItem(Event, kw_only=True, tag_field="type"):
    """Event within an item."""

    item_id: str
    output_index: int


class InPart(InItem, kw_only=True):
    """Event within a part of an item. Each item has one part, with index 0."""

    content_index: int = 0


class PartAdded(InPart, kw_only=True, tag="response.content_part.added"):
    """A new, empty part."""

    part: OutputText | ReasoningText


class PartDone(InPart, kw_only=True, tag="response.content_part.done"):
    """A complete part."""

    part: OutputText | ReasoningText


class TextDelta(InPart, kw_only=True, tag="response.output_text.delta"):
    """Next piece of a text."""

    delta: str
    logprobs: list[TokenLogprob]


class TextDone(InPart, kw_only=True, tag="response.output_text.done"):
    """A complete text."""

    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(InPart, kw_only=True, tag="response.reasoning_text.delta"):
    """Next piece of the reasoning."""

    delta: str


class ReasoningDone(InPart, kw_only=True, tag="response.reasoning_text.done"):
    """The complete reasoning."""

    text: str


class ArgumentsDelta(InItem, kw_only=True, tag="response.function_call_arguments.delta"):
    """Next piece of the JSON arguments of a call."""

    delta: str


class ArgumentsDone(InItem, kw_only=True, tag="response.function_call_arguments.done"):
    """The complete arguments of a call."""

    name: str
    arguments: str


class InputDelta(InItem, kw_only=True, tag="response.custom_tool_call_input.delta"):
    """Next piece of the input of a custom tool."""

    delta: str


class InputDone(InItem, kw_only=True, tag="response.custom_tool_call_input.done"):
    """The complete input of a custom tool."""

    input: str
