"""Response bodies and stream chunks of OpenAI's API.

UNSET fields are left out; others are always present, even if null. Fields beyond OpenAI's are those
of vLLM, including the ones that are always null, because its clients read them by name.
"""

from msgspec import UNSET, Struct, UnsetType

type Maybe[T] = T | UnsetType


class PromptTokensDetails(Struct):
    """Details of prompt tokens. cached_tokens: tokens found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(Struct):
    """Details of generated tokens. reasoning_tokens: tokens of the reasoning."""

    reasoning_tokens: int


class Usage(Struct):
    """Token counts, summed over all choices; the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: Maybe[CompletionTokensDetails] = UNSET


class RankedLogprob(Struct):
    """A log-probability in vLLM's form, used for prompt tokens."""

    logprob: float
    rank: int | None
    decoded_token: str


class Timing(Struct):
    """Times of an answer in milliseconds, over all its choices.

    time_to_first_token_ms, queue_time_ms: since arrival. generation_time_ms: from the first token
    to the last. tokens_per_second: generated tokens per second from the start of prefill to the
    end. mean_itl_ms: mean time between tokens of a choice; absent unless one has two tokens.
    speculative_decoding: always null.
    """

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    tokens_per_second: float | None
    mean_itl_ms: Maybe[float] = UNSET
    speculative_decoding: None = None


type PromptLogprobs = list[dict[str, RankedLogprob] | None]


# Completions


class CompletionLogprobs(Struct):
    """Log-probabilities as parallel lists. text_offset: number of characters before each token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct):
    """The continuation of a prompt, or a piece of it in a stream."""

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
    """Answer of /v1/completions, and each chunk of its stream.

    service_tier, kv_transfer_params: null in a whole answer, absent in chunks.
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
    """An alternative token. bytes: its UTF-8 bytes, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The chosen token, and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of the tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Struct):
    """A function, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, tag_field="type", tag="function"):
    """A function call by the assistant."""

    id: str
    function: CalledFunction


class CalledCustomTool(Struct):
    """A custom tool, and its input."""

    name: str
    input: str


class CustomToolCall(Struct, tag_field="type", tag="custom"):
    """A call of a custom tool by the assistant."""

    id: str
    custom: CalledCustomTool


class ChatMessage(Struct):
    """The assistant's message. content: null if there are only reasoning or tool calls.

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
    """Answer of /v1/chat/completions."""

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
    """Increment of a function call: first its name, then JSON text."""

    name: Maybe[str] = UNSET
    arguments: Maybe[str] = UNSET


class CustomToolDelta(Struct):
    """Increment of a custom tool call: first its name, then its whole input."""

    name: Maybe[str] = UNSET
    input: Maybe[str] = UNSET


class ToolCallDelta(Struct):
    """Increment of a tool call. The first one has `id` and `type`."""

    index: int
    id: Maybe[str] = UNSET
    type: Maybe[str] = UNSET
    function: Maybe[FunctionDelta] = UNSET
    custom: Maybe[CustomToolDelta] = UNSET


class Delta(Struct):
    """Increment of a message. `reasoning` and `reasoning_content` are the same text."""

    role: Maybe[str] = UNSET
    content: Maybe[str] = UNSET
    reasoning: Maybe[str] = UNSET
    reasoning_content: Maybe[str] = UNSET
    tool_calls: Maybe[list[ToolCallDelta]] = UNSET


class ChatChunkChoice(Struct):
    """Increment of one choice.

    token_ids: null unless requested, and then absent from increments without tokens.
    """

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: Maybe[int | str | None] = UNSET
    token_ids: Maybe[tuple[int, ...] | None] = None


class ChatChunk(Struct, kw_only=True):
    """A chunk of a chat's stream. Only the first chunk of a choice has the prompt's fields."""

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
    """An entry of /v1/models. root: the model's own name, if this entry is an alias."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "jaxserve"
    root: str
    parent: None = None
    max_model_len: int


class ModelList(Struct):
    """Answer of /v1/models."""

    data: list[Model]
    object: str = "list"
