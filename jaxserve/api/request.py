"""Requests to the engine, and the events with their results."""

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from msgspec import Struct

from jaxserve.api.limits import Limits
from jaxserve.api.sampling_params import (
    MAX_BAD_WORD_SEQUENCES,
    MAX_BAD_WORD_TOKENS,
    SamplingParams,
    check_count,
)
from jaxserve.errors import ContextLengthError, InvalidRequestError

# Priority of requests that run after all others, with any scheduling policy.
LOWEST_PRIORITY = 2**31 - 1


class FinishReason(StrEnum):
    """Why a sequence ended; the values are those of the OpenAI API and vLLM."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


@cache
def _pooling_defaults() -> SamplingParams:
    """Return the parameters of pooling requests: their vector counts as one token."""
    return SamplingParams(max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, and how to continue it. With `pools`, the result is the prompt's vector.

    prompt_ids: token ids, at least one. bad_word_ids: `params.bad_words` as token sequences.
    priority: lower runs first. turn: number of earlier choices of the same API request; the request
    is queued as if it had arrived after that many further requests. cache_salt: prefixes are shared
    only between requests with equal salts. arrival_s: `time.monotonic()` at arrival.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=_pooling_defaults)
    pools: bool = False
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    turn: int = 0
    cache_salt: str = ""
    arrival_s: float = field(default_factory=time.monotonic)

    def check(self, *, vocab_size: int, max_model_len: int, max_logprobs: int) -> None:
        """Raise InvalidRequestError unless a model with these limits can run the request."""
        if not self.prompt_ids:
            raise InvalidRequestError("prompt must have at least one token, got 0", param="prompt")
        if len(self.prompt_ids) + (not self.pools) > max_model_len:
            rest = "" if self.pools else " and at least one must be left for the answer"
            raise ContextLengthError(
                f"This model's maximum context length is {max_model_len} tokens, but the prompt"
                f" has {len(self.prompt_ids)}{rest}. Please reduce the length of the input prompt.",
                param="prompt",
            )
        # Check ids one by one only to name the invalid one: a prompt may have 100,000 tokens.
        is_fine = set(map(type, self.prompt_ids)) == {int}
        if not (is_fine and min(self.prompt_ids) >= 0 and max(self.prompt_ids) < vocab_size):
            try:
                Limits(0, vocab_size - 1).check_all("ids", self.prompt_ids)
            except InvalidRequestError as error:
                raise InvalidRequestError(
                    f"prompt has a token id out of vocabulary: {error.message}", param="prompt"
                ) from error
        if self.pools:
            return
        for name in ("max_tokens", "min_tokens"):
            wanted = getattr(self.params, name)
            if wanted is not None and len(self.prompt_ids) + wanted > max_model_len:
                raise ContextLengthError(
                    f"This model's maximum context length is {max_model_len} tokens, but"
                    f" {len(self.prompt_ids)} prompt tokens and {name}={wanted} were asked for."
                    " Please reduce the length of the input prompt or the number of requested"
                    " output tokens.",
                    param=name,
                )
        self.params.check_vocabulary(vocab_size)
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(self.params, name)
            if wanted is not None and (vocab_size if wanted == -1 else wanted) > max_logprobs:
                raise InvalidRequestError(
                    f"{name} must be in [0, {max_logprobs}], got {wanted}", param=name
                )
        check_count("bad_words", self.bad_word_ids, MAX_BAD_WORD_SEQUENCES)
        for word in self.bad_word_ids:
            if len(word) > MAX_BAD_WORD_TOKENS:
                raise InvalidRequestError(
                    f"bad_words must be at most {MAX_BAD_WORD_TOKENS} tokens each,"
                    f" got one of {len(word)}",
                    param="bad_words",
                )

    def check_allowed(self, eos_ids: AbstractSet[int]) -> None:
        """Raise InvalidRequestError if the request forbids every token from the start.

        eos_ids: tokens that end the answer in addition to the request's stop tokens.
        """
        params = self.params
        if params.allowed_token_ids is None:
            return
        banned = {word[0] for word in self.bad_word_ids if len(word) == 1}
        by = ["bad_words"] if banned else []
        if params.min_tokens:
            banned |= {*params.stop_token_ids, *eos_ids}
            by.append(f"min_tokens={params.min_tokens}, before which no stop token may come")
        if banned.issuperset(params.allowed_token_ids):
            raise InvalidRequestError(
                f"allowed_token_ids must name a token that is not forbidden by {' and '.join(by)}",
                param="allowed_token_ids",
            )


class TokenLogprob(Struct, frozen=True, gc=False):
    """A token, the natural logarithm of its probability, and its rank (1 is the most likely).

    The rank is None for tokens requested by id (logprob_token_ids).
    """

    token_id: int
    logprob: float
    rank: int | None


class PositionLogprobs(Struct, frozen=True, gc=False):
    """Log-probabilities at one position, or the values that `logprobs_mode` selects."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Times of one sequence, in `time.monotonic()` seconds; None before the event."""

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_preemptions: int = 0


def whole_time(times: Sequence[RequestMetrics]) -> RequestMetrics | None:
    """Return the times of a request from those of its choices: first start, last end."""
    if not times:
        return None

    def known(name: str) -> list[float]:
        return [value for value in (getattr(each, name) for each in times) if value is not None]

    return RequestMetrics(
        arrival_s=min(known("arrival_s")),
        scheduled_s=min(known("scheduled_s"), default=None),
        first_token_s=min(known("first_token_s"), default=None),
        finished_s=max(known("finished_s"), default=None),
        num_preemptions=sum(each.num_preemptions for each in times),
    )


class TokenEvent(Struct, frozen=True, kw_only=True, gc=False):
    """New tokens of one choice of a request.

    index: the choice, in [0, params.n). token_ids and text are the new ones; text lags behind
    token_ids while a character or a possible stop string is incomplete. logprobs align with
    token_ids. prompt_logprobs are in the first event of choice 0 only: one entry per prompt token
    after the first. finish_reason is set in the last event of each choice, request_finished in the
    last event of the request. stop_reason: the stop string or stop token id that matched. error:
    message for FinishReason.ERROR. error_param: the request parameter that caused the error; None
    if the request did not cause it. vector: float32 bytes, in the only event of a pooling request.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    error_param: str | None = None
    vector: bytes | None = None
    request_finished: bool = False
    metrics: RequestMetrics | None = None
