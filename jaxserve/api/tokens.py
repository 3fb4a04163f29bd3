"""Output of an engine: in each step, a batch of tokens (without text) for each client.

A client assigns a key to each choice of its requests, and batches identify choices by key. Batches
consist of parallel lists of integers because the engine's thread fills them for every token: there
is no object per token, and they are cheap to decode in another process.
"""

from msgspec import Struct, field

from jaxserve.api.request import FinishReason, PositionLogprobs, RequestMetrics


class Start(Struct, frozen=True, array_like=True, gc=False):
    """First token of a choice; fields as in TokenEvent and RequestMetrics."""

    key: int
    num_cached_tokens: int
    scheduled_s: float | None
    first_token_s: float | None
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None


class End(Struct, frozen=True, array_like=True, gc=False):
    """End of a choice, after its tokens in the same batch; fields as in TokenEvent.

    is_complete: whether it stopped without a stop token, so that all of its tokens are text.
    """

    key: int
    finish_reason: FinishReason
    times: RequestMetrics
    stop_reason: int | str | None = None
    error: str | None = None
    error_param: str | None = None
    vector: bytes | None = None
    is_complete: bool = False


class TokenBatch(Struct, array_like=True, gc=False, tag=1):
    """Output of one or more steps for the choices of one client.

    keys and token_ids are parallel lists: the choice of each token, and the token, in the order of
    sampling. logprobs: by position in token_ids, for requests with logprobs. Process starts first,
    then tokens, then ends.
    """

    keys: list[int] = field(default_factory=list[int])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: dict[int, PositionLogprobs] = field(default_factory=dict[int, PositionLogprobs])
    starts: list[Start] = field(default_factory=list[Start])
    ends: list[End] = field(default_factory=list[End])

    def extend(self, later: "TokenBatch") -> None:
        """Append the output of later steps, so that a slow reader gets one batch."""
        num_tokens = len(self.token_ids)
        self.keys += later.keys
        self.token_ids += later.token_ids
        self.logprobs |= {num_tokens + position: p for position, p in later.logprobs.items()}
        self.starts += later.starts
        self.ends += later.ends
