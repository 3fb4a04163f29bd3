"""Request fields shared by chats and completions, named as in OpenAI's API and vLLM.

Only types are validated here. `SamplingParams` checks ranges, so that all entry points have the
same limits.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, FailFast, Field, WithJsonSchema

from jaxserve.api.limits import show
from jaxserve.api.repetition_detection import MAX_PATTERN_SIZE, RepetitionDetectionParams
from jaxserve.api.sampling_params import (
    BIAS_LIMITS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROB_TOKEN_IDS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.beam_search import LENGTH_PENALTY_LIMITS, TEMPERATURES, BeamSearchParams
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.frontend.schema.body import (
    CACHE_SALT,
    INT32_MAX,
    BadWords,
    Body,
    ExactBody,
    Int32,
    Stop,
    TokenIds,
    Truncation,
    limits_schema,
    wanted,
)
from jaxserve.frontend.schema.fields import UNREAD, Unread
from jaxserve.frontend.schema.literals import encode_json
from jaxserve.frontend.schema.structured import (
    GUIDED,
    Choice,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    Text,
    TextFormat,
    structured_names,
    structured_outputs,
)

DIGITS = "[0-9]{1,9}"
MAX_EXTRA_ARGS_BYTES = 2**16
REQUEST_ID = r"^[a-zA-Z0-9_.:-]{1,128}$"
# Fields that beam search does not support, because it does not sample and compares the model's own
# log-probabilities, with the harmless values that are accepted besides the default.
NOT_WITH_BEAMS: Mapping[str, tuple[Any, ...]] = {
    "temperature": TEMPERATURES,
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    **dict.fromkeys(
        (
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "allowed_token_ids",
            "bad_words",
            "min_tokens",
            "stop",
            "prompt_logprobs",
            "logprob_token_ids",
            "repetition_detection",
            "vllm_xargs",
            "structured_outputs",
            *GUIDED,
        ),
        (),
    ),
    "response_format": (TextFormat(type="text"),),
}


def _logit_bias(value: object) -> dict[int, float]:
    """Validate an object from token ids, which are strings in JSON, to numbers."""
    if not isinstance(value, dict):
        raise wanted("an object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise wanted(f"an object of at most {MAX_LOGIT_BIAS} entries")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not re.fullmatch(DIGITS, str(token)):
            raise wanted("an object whose keys are token ids")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise wanted("an object whose values are numbers")
        biases[int(token)] = bias
    return biases


type LengthPenalty = Annotated[
    float, Field(ge=LENGTH_PENALTY_LIMITS.low, le=LENGTH_PENALTY_LIMITS.high)
]
type LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_LOGIT_BIAS,
            "propertyNames": {"pattern": f"^{DIGITS}$"},
            "additionalProperties": BIAS_LIMITS.schema(),
        }
    ),
]


type AllowedTokenIds = Annotated[
    list[Annotated[int, Field(ge=0)]],
    FailFast(),
    Field(min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS),
]


def _small(value: dict[str, Any]) -> dict[str, Any]:
    """Validate the size of an object for logits processors, and return it with plain numbers.

    It is sent to the engine as MessagePack, whose integers have at most 64 bits.
    """
    text = encode_json(value)
    if len(text) > MAX_EXTRA_ARGS_BYTES:
        raise wanted(f"at most {MAX_EXTRA_ARGS_BYTES} bytes of JSON")
    plain: dict[str, Any] = msgspec.json.decode(text)
    try:
        msgspec.msgpack.encode(plain)
    except OverflowError as error:
        raise wanted("an object whose integers have at most 64 bits") from error
    return plain


type ExtraArgs = Annotated[dict[str, Any], AfterValidator(_small)]


class StreamOptions(Body):
    """Options of a stream. include_obfuscation has no effect."""

    unread = Unread(repeated={"include_obfuscation": (False,)})

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class RepetitionDetection(ExactBody):
    """Criteria for ending a repetitive answer; see RepetitionDetectionParams."""

    max_pattern_size: Annotated[Int32, Field(ge=0, le=MAX_PATTERN_SIZE)]
    min_pattern_size: Annotated[Int32, Field(ge=0, le=MAX_PATTERN_SIZE)] = 1
    min_count: Annotated[Int32, Field(ge=2)] = 2

    def params(self) -> RepetitionDetectionParams:
        """Return the engine's parameters. Raises InvalidRequestError for values out of range."""
        return RepetitionDetectionParams(**dict(self))


class SamplingBody(Body):
    """Fields of sampling and structured outputs, shared by all APIs that generate."""

    temperature: Annotated[float, limits_schema("temperature")] | None = None
    top_p: Annotated[float, limits_schema("top_p")] | None = None
    top_k: Annotated[Int32, limits_schema("top_k")] | None = None
    min_p: Annotated[float, limits_schema("min_p")] | None = None
    presence_penalty: Annotated[float, limits_schema("presence_penalty")] = 0.0
    frequency_penalty: Annotated[float, limits_schema("frequency_penalty")] = 0.0
    repetition_penalty: Annotated[float, limits_schema("repetition_penalty")] | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    allowed_token_ids: AllowedTokenIds | None = None
    bad_words: BadWords = ()
    seed: Annotated[int, limits_schema("seed")] | None = None
    min_tokens: Annotated[Int32, limits_schema("min_tokens")] = 0
    stop: Stop = ()
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_TOKEN_IDS)] = Field(
        default_factory=list
    )
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    repetition_detection: RepetitionDetection | None = None
    vllm_xargs: ExtraArgs = Field(default_factory=dict)
    priority: Int32 = 0
    cache_salt: Annotated[str, Field(pattern=CACHE_SALT)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_json_object: bool | None = None
    guided_regex: Text | None = None
    guided_choice: Choice | None = None
    guided_grammar: Text | None = None
    guided_whitespace_pattern: Text | None = None

    def sampling_fields(self) -> dict[str, Any]:
        """Return the fields of this class that the request sets, by name."""
        names = SamplingBody.model_fields.keys() & self.model_fields_set
        return {name: getattr(self, name) for name in names}


class GenerationBody(SamplingBody):
    """Fields shared by chat completions and completions."""

    unread = UNREAD

    model: str | None = None
    n: Annotated[int, limits_schema("n")] = 1
    use_beam_search: bool = False
    length_penalty: LengthPenalty | None = None
    max_tokens: Annotated[Int32, limits_schema("max_tokens")] | None = None
    prompt_logprobs: Annotated[int, limits_schema("prompt_logprobs")] | None = None
    logprob_token_ids: Annotated[TokenIds, Field(max_length=MAX_LOGPROB_TOKEN_IDS)] = Field(
        default_factory=list
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    echo: bool = False
    truncate_prompt_tokens: Truncation | None = None
    truncation_side: Literal["left", "right"] = "left"
    request_id: Annotated[str, Field(pattern=REQUEST_ID)] | None = None
    return_token_ids: bool = False
    return_prompt_text: bool = False
    return_tokens_as_token_ids: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def has_limit(self) -> bool:
        """Whether the request limits the length of the answer."""
        return self.max_tokens is not None

    @property
    def field_names(self) -> dict[str, str]:
        """Names in this body for the engine's parameters, for error messages."""
        return {"extra_args": "vllm_xargs", **structured_names(self.response_format, self._guided)}

    @property
    def _guided(self) -> dict[str, Any]:
        """The deprecated fields of vLLM that are set."""
        names = (*GUIDED, "guided_whitespace_pattern")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def only_scores(self) -> bool:
        """Whether the request generates nothing, and only scores the prompt."""
        return False

    def check(self) -> None:
        """Raise InvalidRequestError for fields that cannot be combined."""
        for name in ("stream_options", "stream_interval"):
            if getattr(self, name) is not None and not self.stream:
                raise InvalidRequestError(f"{name} can only be given with stream=true", param=name)
        if self.length_penalty not in {None, 1.0} and not self.use_beam_search:
            raise InvalidRequestError(
                "length_penalty can only be given with use_beam_search=true",
                param="length_penalty",
            )
        for name, neutral in NOT_WITH_BEAMS.items() if self.use_beam_search else ():
            value = getattr(self, name)
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if value not in (default, *neutral):
                what = f"be {show(value)}" if neutral else "be given"
                raise InvalidRequestError(
                    f"{name} cannot {what} with use_beam_search=true", param=name
                )
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError(
                "prompt_logprobs cannot be given with stream=true", param="prompt_logprobs"
            )

    def beam_search(self, params: SamplingParams, *, max_tokens: int) -> BeamSearchParams:
        """Return the parameters of a beam search. params: the request's sampling parameters."""
        return BeamSearchParams(
            beam_width=params.n,
            max_tokens=max_tokens,
            ignore_eos=params.ignore_eos,
            length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
            include_stop_str_in_output=params.include_stop_str_in_output,
        )

    def sampling_params(
        self,
        defaults: GenerationDefaults,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
    ) -> SamplingParams:
        """Return the engine's parameters.

        The request's values take precedence over the model's defaults, and these over ours. Raises
        InvalidRequestError for values out of range.
        """
        recommended = defaults.sampling_params()
        return SamplingParams(
            n=self.n,
            temperature=_given(self.temperature, recommended.temperature),
            top_p=_given(self.top_p, recommended.top_p),
            top_k=_given(self.top_k, recommended.top_k),
            min_p=_given(self.min_p, recommended.min_p),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=_given(self.repetition_penalty, recommended.repetition_penalty),
            logit_bias=self.logit_bias,
            allowed_token_ids=None
            if self.allowed_token_ids is None
            else (*self.allowed_token_ids,),
            bad_words=self.bad_words,
            seed=self.seed,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stop=self.stop,
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            logprob_token_ids=tuple(self.logprob_token_ids),
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
            repetition_detection=None
            if self.repetition_detection is None
            else self.repetition_detection.params(),
            extra_args=self.vllm_xargs,
            structured_outputs=structured_outputs(
                response_format=self.response_format,
                structured=self.structured_outputs,
                guided=self._guided,
            ),
        )


def _given[T](asked: T | None, otherwise: T) -> T:
    return otherwise if asked is None else asked
