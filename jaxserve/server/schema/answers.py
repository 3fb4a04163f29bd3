"""The bodies of answers and the chunks of streams, field by field as OpenAI writes them.

A field that is UNSET is left out; the others are always there, null included. Fields beyond
OpenAI's are vLLM's, and so are the fields that are always null: its clients read them by name.
"""

from msgspec import UNSET, Struct, UnsetType

type Maybe[T] = T | UnsetType


class PromptTokensDetails(Struct):
    """cached_tokens: prompt tokens found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(Struct):
    """reasoning_tokens: those of the reasoning before an answer."""

    reasoning_tokens: int


class Usage(Struct):
    """Tokens read and written, over all choices; the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: Maybe[CompletionTokensDetails] = UNSET


class RankedLogprob(Struct):
    """vLLM's form of a log-probability, as the prompt's come."""

    logprob: float
    rank: int | None
    decoded_token: str


class Timing(Struct):
    """How long an answer took, in milliseconds, over all its choices.

    To the first token and in the queue: from its arrival. generation_time_ms: from the first token
    to the last. mean_itl_ms: between tokens of a choice. tokens_per_second: generated, from the
    start of the prompt to the end. speculative_decoding: there is none.
    """

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: None = None


type PromptLogprobs = list[dict[str, RankedLogprob] | None]


# Completions


class CompletionLogprobs(Struct):
    """Log-probabilities in columns, an entry a token. text_offset: characters before it."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct):
    """A text that continues a prompt, or a piece of one in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: Maybe[PromptLogprobs | None] = UNSET
    prompt_text: Maybe[str] = UNSET


class Completion(Struct, kw_only=True):
    """The answer to /v1/completions, and each chunk of its stream.

    service_tier, kv_transfer_params: null in a whole answer, left out of chunks.
    """

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Maybe[Usage | None] = UNSET
    metrics: Maybe[Timing | None] = UNSET
    service_tier: Maybe[None] = UNSET
    kv_transfer_params: Maybe[None] = UNSET


# Chats


class TopLogprob(Struct):
    """A token that could have stood at a place. bytes: its UTF-8, maybe part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The token that does stand there, and the alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of the tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Struct):
    """A function and the JSON text of its arguments."""

    name: str
    arguments: str


class ToolCall(Struct, tag_field="type", tag="function"):
    """A call that the assistant wants made."""

    id: str
    function: CalledFunction


class CalledCustomTool(Struct):
    """A custom tool and the text for it."""

    name: str
    input: str


class CustomToolCall(Struct, tag_field="type", tag="custom"):
    """A call of a custom tool that the assistant wants made."""

    id: str
    custom: CalledCustomTool


class ChatMessage(Struct):
    """What the assistant says; content is null where it only reasons or calls.

    `reasoning` and `reasoning_content` are the same text.
    """

    content: str | None
    role: str = "assistant"
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Maybe[list[ToolCall | CustomToolCall]] = UNSET


class ChatChoice(Struct):
    """One answer to a chat."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatCompletion(Struct, kw_only=True):
    """The answer to /v1/chat/completions."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_text: str | None = None
    kv_transfer_params: None = None
    metrics: Timing | None = None


class FunctionDelta(Struct):
    """What a chunk adds to the call of a function: its name at first, then JSON text."""

    name: Maybe[str] = UNSET
    arguments: Maybe[str] = UNSET


class CustomToolDelta(Struct):
    """What a chunk adds to the call of a custom tool: its name at first, then all of its text."""

    name: Maybe[str] = UNSET
    input: Maybe[str] = UNSET


class ToolCallDelta(Struct):
    """What a chunk adds to a tool call; `id` and `type` come with its first chunk."""

    index: int
    id: Maybe[str] = UNSET
    type: Maybe[str] = UNSET
    function: Maybe[FunctionDelta] = UNSET
    custom: Maybe[CustomToolDelta] = UNSET


class Delta(Struct):
    """What a chunk adds to a message. `reasoning` and `reasoning_content` are the same text."""

    role: Maybe[str] = UNSET
    content: Maybe[str] = UNSET
    reasoning: Maybe[str] = UNSET
    reasoning_content: Maybe[str] = UNSET
    tool_calls: Maybe[list[ToolCallDelta]] = UNSET


class ChatChunkChoice(Struct):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: Maybe[int | str | None] = UNSET
    token_ids: tuple[int, ...] | None = None


class ChatChunk(Struct, kw_only=True):
    """A chunk of a chat's stream. Only the first chunk of a choice has the fields of the prompt."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Maybe[Usage | None] = UNSET
    metrics: Maybe[Timing] = UNSET
    prompt_token_ids: Maybe[tuple[int, ...] | None] = UNSET
    prompt_text: Maybe[str | None] = UNSET


# Models


class Model(Struct, kw_only=True):
    """A model as /v1/models lists it. root: the name of what is served under this one."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "jaxserve"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(Struct):
    """The answer to /v1/models."""

    data: list[Model]
    object: str = "list"
