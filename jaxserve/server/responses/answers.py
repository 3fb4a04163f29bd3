"""The answers of /v1/responses and the events of its streams, as OpenAI writes them."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct

from jaxserve.server.schema.answers import Maybe, TokenLogprob

# Items


class OutputText(Struct, tag_field="type", tag="output_text"):
    """What the assistant says."""

    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """What the model thinks."""

    text: str = ""


class MessageOut(Struct, tag_field="type", tag="message", kw_only=True):
    """A message of the assistant."""

    id: str
    role: str = "assistant"
    status: str = "in_progress"
    content: list[OutputText] = []


class ReasoningOut(Struct, tag_field="type", tag="reasoning", kw_only=True):
    """The model's reasoning; there is no summary."""

    id: str
    status: str = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []


class FunctionCallOut(Struct, tag_field="type", tag="function_call", kw_only=True):
    """A call to be made."""

    id: str
    call_id: str
    name: str
    namespace: Maybe[str] = UNSET
    arguments: str = ""
    status: str = "in_progress"


class CustomToolCallOut(Struct, tag_field="type", tag="custom_tool_call", kw_only=True):
    """A call of a custom tool to be made."""

    id: str
    call_id: str
    name: str
    namespace: Maybe[str] = UNSET
    input: str = ""
    status: str = "in_progress"


type ItemOut = MessageOut | ReasoningOut | FunctionCallOut | CustomToolCallOut


# Answers


class InputTokensDetails(Struct):
    """cached_tokens: found in the prefix cache, which fills by itself: no write is ever charged."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """reasoning_tokens: of what the model thought."""

    reasoning_tokens: int


class ResponseUsage(Struct):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Struct):
    """Why a response is incomplete."""

    reason: str


class RawMessage(Struct, tag_field="type", tag="raw_message_tokens"):
    """A prompt or an answer as the model reads and writes it, special tokens included."""

    message: str
    tokens: Sequence[int]


class Response(Struct, kw_only=True):
    """An answer, whole or in the making. What the request said is said again.

    service_tier: the only one there is, whichever was asked for. input_messages, output_messages:
    the prompt and the whole answer, if the request enables response messages.
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
    """The items of a response's input."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = False
    object: str = "list"


class ResponseDeleted(Struct):
    """The answer to DELETE."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputTokens(Struct):
    """The answer to /v1/responses/input_tokens."""

    input_tokens: int
    object: str = "response.input_tokens"


# Events. The writer counts them.


class Event(Struct, kw_only=True):
    """What all have."""

    sequence_number: int = 0


class ResponseEvent(Event, kw_only=True, tag_field="type"):
    """Something about the whole response."""

    response: Response


class ResponseCreated(ResponseEvent, kw_only=True, tag="response.created"):
    """A response begins."""


class ResponseInProgress(ResponseEvent, kw_only=True, tag="response.in_progress"):
    """It goes on."""


class ResponseCompleted(ResponseEvent, kw_only=True, tag="response.completed"):
    """It is whole."""


class ResponseIncomplete(ResponseEvent, kw_only=True, tag="response.incomplete"):
    """It ends before its end."""


class ResponseFailed(ResponseEvent, kw_only=True, tag="response.failed"):
    """It ends with an error."""


class ItemAdded(Event, kw_only=True, tag_field="type", tag="response.output_item.added"):
    """An item begins, empty."""

    output_index: int
    item: ItemOut


class ItemDone(Event, kw_only=True, tag_field="type", tag="response.output_item.done"):
    """An item is whole."""

    output_index: int
    item: ItemOut


class InItem(Event, kw_only=True, tag_field="type"):
    """Something within an item."""

    item_id: str
    output_index: int


class InPart(InItem, kw_only=True):
    """Something within the part of an item; there is one, of index 0."""

    content_index: int = 0


class PartAdded(InPart, kw_only=True, tag="response.content_part.added"):
    """A part begins, empty."""

    part: OutputText | ReasoningText


class PartDone(InPart, kw_only=True, tag="response.content_part.done"):
    """A part is whole."""

    part: OutputText | ReasoningText


class TextDelta(InPart, kw_only=True, tag="response.output_text.delta"):
    """More of a text."""

    delta: str
    logprobs: list[TokenLogprob]


class TextDone(InPart, kw_only=True, tag="response.output_text.done"):
    """A text is whole."""

    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(InPart, kw_only=True, tag="response.reasoning_text.delta"):
    """More of what the model thinks."""

    delta: str


class ReasoningDone(InPart, kw_only=True, tag="response.reasoning_text.done"):
    """The model's reasoning is whole."""

    text: str


class ArgumentsDelta(InItem, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of the JSON text of a call's arguments."""

    delta: str


class ArgumentsDone(InItem, kw_only=True, tag="response.function_call_arguments.done"):
    """A call's arguments are whole."""

    name: str
    arguments: str


class InputDelta(InItem, kw_only=True, tag="response.custom_tool_call_input.delta"):
    """More of the text for a custom tool."""

    delta: str


class InputDone(InItem, kw_only=True, tag="response.custom_tool_call_input.done"):
    """The text for a custom tool is whole."""

    input: str
