"""Sampling parameters."""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Self

from jaxserve.api.limits import MAX_COUNT, Limits, show
from jaxserve.api.repetition_detection import RepetitionDetectionParams
from jaxserve.api.structured_outputs import StructuredOutputsParams
from jaxserve.errors import InvalidRequestError

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 2**16
# Limit of the list as sent, before duplicates are removed.
MAX_ALLOWED_TOKEN_IDS = 2**18
MAX_EOS_IDS = 16
MAX_BAD_WORDS = 32
# Each word is banned in two tokenizations: at the start of a text, and after a space.
MAX_BAD_WORD_SEQUENCES = 2 * MAX_BAD_WORDS
MAX_BAD_WORD_TOKENS = 8
MAX_LOGPROB_TOKEN_IDS = 128
# Ranges of the numeric parameters.
LIMITS: Mapping[str, Limits] = {
    "n": Limits(1, MAX_N),
    "temperature": Limits(0.0, 100.0),
    "top_p": Limits(0.0, 1.0, low_is_allowed=False),
    "top_k": Limits(-1, MAX_COUNT),
    "min_p": Limits(0.0, 1.0),
    "presence_penalty": Limits(-2.0, 2.0),
    "frequency_penalty": Limits(-2.0, 2.0),
    # Logits divided by a smaller number overflow float32.
    "repetition_penalty": Limits(0.01, 10.0),
    "seed": Limits(-(2**63), 2**63 - 1),
    "max_tokens": Limits(1, MAX_COUNT),
    "min_tokens": Limits(0, MAX_COUNT),
    "logprobs": Limits(-1, MAX_COUNT),
    "prompt_logprobs": Limits(-1, MAX_COUNT),
}
MAY_BE_NONE = frozenset({"seed", "max_tokens", "logprobs", "prompt_logprobs"})
BIAS_LIMITS = Limits(-100.0, 100.0)


class RequestOutputKind(Enum):
    """Contents of the events of a stream: everything so far, the new part, or all at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


# Parameters of vLLM that are not supported, each with the rest of the error message.
UNSERVED: Mapping[str, str] = {
    "best_of": "is not supported: request n answers and choose among them",
    "guided_decoding": "is deprecated: use structured_outputs",
    "logits_processors": "are compiled into the step: give them to LLM, and extra_args here",
    "prompt_logprob_start": "is not supported: prompt_logprobs cover the whole prompt",
    "prompt_logprob_token_ids": "is not supported: prompt_logprobs report the most likely tokens",
    "thinking_token_budget": "is for chats over HTTP; here, structured_outputs can limit reasoning",
    "trace_decode_token_ids": "is not supported: answers are not replayed",
    "truncate_prompt_tokens": "is for requests over HTTP; here, give fewer prompt_token_ids",
    "use_beam_search": "is not a sampling parameter: use LLM.beam_search",
    "watermarking": "is not supported",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request; names and meanings as in vLLM.

    temperature: 0 is greedy. top_k: 0 or -1 keeps the whole vocabulary. top_p in (0, 1],
    min_p in [0, 1], presence_penalty and frequency_penalty in [-2, 2] over generated tokens,
    repetition_penalty in [0.01, 10] over prompt and generated tokens. logit_bias adds to single
    logits; allowed_token_ids forbids all other tokens; bad_words are never completed. logprobs and
    prompt_logprobs: number of most likely tokens to report beside the chosen one, -1 for the whole
    vocabulary. logprob_token_ids: tokens to report instead of the most likely ones.
    spaces_between_special_tokens has no effect, because fast tokenizers add no spaces. detokenize:
    whether to convert tokens to text. repetition_detection: when to end an answer that repeats
    itself. extra_args: arguments for the engine's logits processors, by name. structured_outputs:
    constraint on the answer's format. skip_reading_prefix_cache: compute the whole prompt.
    flat_logprobs: have LLM return log-probabilities as FlatLogprobs. output_kind: contents of the
    events of `LLM.stream`, DELTA by default; other methods return whole outputs. seed: the same
    request and seed give the same tokens, whatever else runs.

    Raises InvalidRequestError for invalid values.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    repetition_detection: RepetitionDetectionParams | None = None
    extra_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    structured_outputs: StructuredOutputsParams | None = None
    skip_reading_prefix_cache: bool = False
    flat_logprobs: bool = False
    output_kind: RequestOutputKind | None = None

    def __new__(cls, **fields: object) -> Self:
        """Raise InvalidRequestError, with a reason, for vLLM's parameters in UNSERVED."""
        for name in fields.keys() & UNSERVED:
            raise InvalidRequestError(f"{name} {UNSERVED[name]}", param=name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        self._settle_kinds()
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            if value is not None or name not in MAY_BE_NONE:
                limits.check(name, value)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}",
                param="min_tokens",
            )
        check_count("stop", self.stop, MAX_STOP_STRINGS)
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequestError(
                    f"stop must be strings of 1 to {MAX_STOP_STRING_CHARS} characters,"
                    f" got {show(text)}",
                    param="stop",
                )
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop must be empty with detokenize=False", param="stop")
        check_count("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        check_count("bad_words", self.bad_words, MAX_BAD_WORDS)
        for word in self.bad_words:
            if not isinstance(word, str) or not word:
                raise InvalidRequestError(
                    f"bad_words must be non-empty strings, got {show(word)}", param="bad_words"
                )
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError(
                "allowed_token_ids must name at least one token, got none",
                param="allowed_token_ids",
            )
        check_count("logit_bias", self.logit_bias, MAX_LOGIT_BIAS)
        Limits(0).check_all("logit_bias", self.logit_bias.keys())
        BIAS_LIMITS.check_all("logit_bias", self.logit_bias.values())
        check_count("logprob_token_ids", self.logprob_token_ids, MAX_LOGPROB_TOKEN_IDS)
        if self.logprob_token_ids:
            object.__setattr__(self, "logprobs", 0)

    def within(self, room: int) -> "SamplingParams":
        """Return a copy with max_tokens lowered to `room`; self if room is 0 or large enough."""
        if self.max_tokens is None or not 0 < room < self.max_tokens:
            return self
        return replace(self, max_tokens=room)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature == 0.0

    @property
    def adjusts_logits(self) -> bool:
        """Whether logits are modified: by penalties, biases, bans or min_tokens."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.allowed_token_ids is not None
            or self.bad_words
            # min_tokens needs at least one stop token to suppress.
            or (self.min_tokens and (self.stop_token_ids or not self.ignore_eos))
        )

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the parameters by which this request forbids tokens."""
        structured = self.structured_outputs
        given = {
            f"structured_outputs.{structured.kind}" if structured else "": structured is not None,
            "allowed_token_ids": self.allowed_token_ids is not None,
            "bad_words": bool(self.bad_words),
            "min_tokens": self.min_tokens > 0,
            "extra_args": bool(self.extra_args),
        }
        return tuple(name for name, is_given in given.items() if is_given)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequestError unless every token id is below `vocab_size`."""
        named = (
            ("logit_bias", tuple(self.logit_bias)),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("stop_token_ids", self.stop_token_ids),
            ("logprob_token_ids", self.logprob_token_ids),
        )
        for name, ids in named:
            Limits(0, vocab_size - 1).check_all(name, ids)

    def _settle_kinds(self) -> None:
        """Convert strings and iterables to tuples, and None to empty tuples and mappings."""
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
        for name in ("stop", "stop_token_ids", "bad_words", "logprob_token_ids"):
            object.__setattr__(self, name, _entries(name, getattr(self, name) or ()))
        if self.allowed_token_ids is not None:
            allowed = _entries("allowed_token_ids", self.allowed_token_ids)
            check_count("allowed_token_ids", allowed, MAX_ALLOWED_TOKEN_IDS)
            if len(allowed) > 1 and set(map(type, allowed)) == {int}:
                allowed = (*dict.fromkeys(allowed),)
            object.__setattr__(self, "allowed_token_ids", allowed)
        for name, kinds in (
            ("logit_bias", "token ids to numbers"),
            ("extra_args", "names to values"),
        ):
            if getattr(self, name) is None:  # vLLM's default
                object.__setattr__(self, name, {})
            if not isinstance(getattr(self, name), Mapping):
                raise InvalidRequestError(
                    f"{name} must map {kinds}, got {show(getattr(self, name))}", param=name
                )


def _entries(name: str, values: object) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        raise InvalidRequestError(f"{name} must be a list, got {show(values)}", param=name)
    return tuple(values)


def check_count(name: str, values: Sized, limit: int) -> None:
    """Raise InvalidRequestError if a parameter has more than `limit` entries."""
    if len(values) > limit:
        raise InvalidRequestError(
            f"{name} must have at most {limit} entries, got {len(values)}", param=name
        )
