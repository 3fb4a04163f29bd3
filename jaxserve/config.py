"""Frozen settings. `EngineOptions` is what a user asks for; the others are complete and resolved.

Nobody edits a config after construction: build.py resolves an `EngineOptions` against a model and
a device into `SchedulerConfig` and `CacheConfig`, and hands those to their owners.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Any

from jaxserve.errors import ConfigError
from jaxserve.structured_outputs_config import StructuredOutputsConfig

POLICIES = ("fcfs", "priority")
DEFAULT_MAX_LOGPROBS = 20
DEFAULT_MAX_QUEUED_REQUESTS = 1024
DTYPES = ("auto", "float32", "bfloat16", "float16")
# As users say it, and what pages then hold; "auto" is the model's own dtype.
KV_CACHE_DTYPES = {
    "auto": None,
    "bfloat16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
}
LOAD_FORMATS = ("auto", "safetensors", "dummy")
QUANTIZATIONS = ("int8",)
LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
WARM_UPS = ("background", "full", "none")
RUNNERS = ("auto", "generate", "pooling")
CONVERSIONS = ("auto", "none", "embed", "classify")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a user may ask of an engine; None means: choose for this model and device.

    Names and meanings are vLLM's where the thing is the same. model: a folder, a hub name, or
    None for the embedded model. hf_overrides: values that replace those of the model's config.json,
    objects merged key by key. structured_outputs_config: how JSON is written where requests do not
    say, see StructuredOutputsConfig. load_format: "dummy" draws weights at random, which is all
    that a measurement needs. max_model_len: tokens of prompt and output together.
    memory_fraction: share of the device's memory that weights, workspace and KV cache may take
    (`--gpu-memory-utilization`). kv_cache_memory_bytes: bytes for KV pages, over all devices
    of one replica; overrides memory_fraction. page_size: tokens per KV page (`--block-size`).
    max_num_batched_tokens: tokens computed per step at most. max_num_seqs: sequences running at
    once. max_decode_slowdown: how many times as long as a step of decodes alone a step may take
    that also computes prompts. quantization: of matrices as they are loaded, and of activations as
    they come; None leaves them as they are. kv_cache_dtype: of keys and values in pages; fp8 halves
    them, at scale 1. attention_backend, linear_backend: who attends, and who multiplies by weights,
    by name (`/health` tells it). max_queued_requests: requests waiting before new ones are refused,
    and choices beyond the first of each (n > 1), or 128 if that is more.
    generation_config: where sampling defaults come from: "auto" is the model, "vllm" is nowhere,
    else a folder; override_generation_config: single ones of them, by name.
    max_logprobs: alternatives a request may ask for at each token, -1 for the whole vocabulary.
    logprobs_mode: what is reported of generated tokens, before (raw) or after (processed)
    penalties, bans, temperature and filters. logits_processors: classes as `module:Class`, trusted
    like code; see execution/logits_processors.py.
    executables: folder of
    compiled programs (`jaxserve compile --out`), trusted like code. warm_up: "background" serves as
    soon as one program can, in small steps, and makes the others meanwhile; "full" makes all of
    them first, as measurements need it; "none" makes each when it is first needed. runner: whether
    the model generates text or pools prompts; "auto" asks the checkpoint. convert: what is made of
    a model that pools. pooler_config: how it pools, over what the checkpoint says
    (`loading/pooling.py`).
    """

    model: str | None = None
    runner: str = "auto"
    convert: str = "auto"
    pooler_config: dict[str, Any] | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    structured_outputs_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    revision: str | None = None
    tokenizer: str | None = None
    download_dir: str | None = None
    served_model_names: tuple[str, ...] = ()
    chat_template: str | None = None
    generation_config: str = "auto"
    override_generation_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    load_format: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    memory_fraction: float = 0.9
    kv_cache_memory_bytes: int | None = None
    num_pages: int | None = None
    page_size: int | None = None
    enable_prefix_caching: bool = True
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_decode_slowdown: float | None = None
    max_queued_requests: int = DEFAULT_MAX_QUEUED_REQUESTS
    max_logprobs: int = DEFAULT_MAX_LOGPROBS
    logprobs_mode: str = "raw_logprobs"
    logits_processors: tuple[str, ...] = ()
    scheduling_policy: str = "fcfs"
    async_scheduling: bool = True
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    attention_backend: str | None = None
    linear_backend: str | None = None
    compilation_cache: bool = True
    executables: str | None = None
    warm_up: str = "background"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("load_format", self.load_format, LOAD_FORMATS)
        if self.quantization is not None:
            _one_of("quantization", self.quantization, QUANTIZATIONS)
        _one_of("kv_cache_dtype", self.kv_cache_dtype, tuple(KV_CACHE_DTYPES))
        _one_of("scheduling_policy", self.scheduling_policy, POLICIES)
        _one_of("logprobs_mode", self.logprobs_mode, LOGPROBS_MODES)
        if self.max_logprobs != -1:
            _not_negative("max_logprobs", self.max_logprobs)
        _one_of("warm_up", self.warm_up, WARM_UPS)
        _one_of("runner", self.runner, RUNNERS)
        _one_of("convert", self.convert, CONVERSIONS)
        if not isinstance(self.pooler_config, dict | None):
            raise ConfigError(f"pooler_config must be a JSON object, got {self.pooler_config!r}")
        for name in ("hf_overrides", "override_generation_config", "structured_outputs_config"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name} must be a JSON object, got {getattr(self, name)!r}")
        StructuredOutputsConfig.of(self.structured_outputs_config)
        fraction = self.memory_fraction
        if not isinstance(fraction, int | float) or not 0.0 < fraction <= 1.0:
            raise ConfigError(f"memory_fraction must be in (0, 1], got {fraction!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be an integer, got {self.seed!r}")
        if self.max_decode_slowdown is not None:
            _slowdown(self.max_decode_slowdown)
        for name in ("tensor_parallel_size", "max_queued_requests"):
            _positive(name, getattr(self, name))
        for name in (
            "max_model_len",
            "kv_cache_memory_bytes",
            "num_pages",
            "page_size",
            "max_num_batched_tokens",
            "max_num_seqs",
        ):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache: `num_pages` pages of `page_size` tokens, page 0 included."""

    num_pages: int
    page_size: int
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        if self.num_pages < 2:
            raise ConfigError(
                f"num_pages must be at least 2 (page 0 is padding), got {self.num_pages}"
            )
        _positive("page_size", self.page_size)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkModel:
    """What the tokens of a step take, as far as scheduling needs to know.

    The unit is the time of one token's matrix products in a large step. free_tokens: how many fit
    into the time of reading the weights, which every step takes. prefill_attention and
    decode_attention: what attention adds to a token for each token of its context, in a chunk of
    a prompt (limited by compute) and in a decode (limited by reading keys and values). sampling:
    what a row adds that draws a token, whose logits are one more product.
    """

    free_tokens: int = 1
    prefill_attention: float = 0.0
    decode_attention: float = 0.0
    sampling: float = 0.0

    def attention(self, start: int, num_tokens: int) -> float:
        """Return the work of attention of the tokens of a prompt at [start, start + num_tokens)."""
        return self.prefill_attention * num_tokens * (start + num_tokens / 2)

    def tokens_within(self, start: int, attention: float) -> float:
        """Return how many tokens of a prompt, from `start` on, take this work of attention."""
        if self.prefill_attention == 0:
            return inf
        # Below 0 by rounding, where a chunk took the very last of a budget.
        pairs = max(attention, 0.0) / self.prefill_attention
        return sqrt(start * start + 2 * pairs) - start


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits and policy of the scheduler; see EngineOptions for the meanings.

    work: how the costs of steps compare. step_sizes: tokens that steps with prompts are padded to,
    ascending; none if they are not. pools: whether requests get the vector of their prompt in
    place of tokens. whole_prompts: whether a prompt must be computed in one step.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_decode_slowdown: float = inf
    max_queued_requests: int = DEFAULT_MAX_QUEUED_REQUESTS
    policy: str = "fcfs"
    async_scheduling: bool = True
    work: WorkModel = WorkModel()
    step_sizes: tuple[int, ...] = ()
    pools: bool = False
    whole_prompts: bool = False

    def __post_init__(self) -> None:
        _one_of("policy", self.policy, POLICIES)
        _slowdown(self.max_decode_slowdown)
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_queued_requests",
        ):
            _positive(name, getattr(self, name))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_num_seqs ({self.max_num_seqs}),"
                f" got {self.max_num_batched_tokens}: every running sequence may need a token"
            )
        if self.whole_prompts and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens must be at least max_model_len ({self.max_model_len}),"
                f" got {self.max_num_batched_tokens}: this model reads a prompt in one step"
            )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _slowdown(value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1.0 < value <= inf:
        raise ConfigError(f"max_decode_slowdown must be a number above 1, got {value!r}")


def _not_negative(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name} must be an integer of at least 0, got {value!r}")


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
