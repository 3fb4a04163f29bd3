"""What comes out of an engine: tokens without text, one batch a step for each of its clients.

A client numbers the choices of its requests, and a batch speaks of them by these keys. Lists side
by side and plain integers, because this is made on the engine's thread for every token: no object
a token, and little for another process to read.
"""

from msgspec import Struct, field

from jaxserve.api.request import FinishReason, PositionLogprobs, RequestMetrics


class Start(Struct, frozen=True, array_like=True, gc=False):
    """A choice has got its first token; fields as in TokenEvent and RequestMetrics."""

    key: int
    num_cached_tokens: int
    scheduled_s: float | None
    first_token_s: float | None
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None


class End(Struct, frozen=True, array_like=True, gc=False):
    """A choice has ended, after its tokens in the same batch; fields as in TokenEvent.

    is_complete: by itself, without a stop token, so that all of its tokens are text.
    """

    key: int
    finish_reason: FinishReason
    times: RequestMetrics
    stop_reason: int | None = None
    error: str | None = None
    error_param: str | None = None
    vector: bytes | None = None
    is_complete: bool = False


class TokenBatch(Struct, array_like=True, gc=False, tag=1):
    """What a step, or several, brought to the choices of one client.

    keys and token_ids align: each token and whose it is, in the order they were sampled. logprobs:
    by position in token_ids, of those that asked. To be read in the order starts, tokens, ends.
    """

    keys: list[int] = field(default_factory=list[int])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: dict[int, PositionLogprobs] = field(default_factory=dict[int, PositionLogprobs])
    starts: list[Start] = field(default_factory=list[Start])
    ends: list[End] = field(default_factory=list[End])

    def extend(self, later: "TokenBatch") -> None:
        """Add what the steps after these brought: a reader that is late gets it in one piece."""
        num_tokens = len(self.token_ids)
        self.keys += later.keys
        self.token_ids += later.token_ids
        self.logprobs |= {num_tokens + position: p for position, p in later.logprobs.items()}
        self.starts += later.starts
        self.ends += later.ends
