"""What a user may ask of an engine.

planning/planner.py resolves it against a model and a device into `SchedulerConfig` and
`CacheConfig`, which are complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxserve.api.checks import check_choice, check_not_negative, check_positive, check_slowdown
from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS, DEFAULT_MAX_QUEUED_REQUESTS, POLICIES
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.errors import ConfigError

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
    (`planning/pooling.py`).
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
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("load_format", self.load_format, LOAD_FORMATS)
        if self.quantization is not None:
            check_choice("quantization", self.quantization, QUANTIZATIONS)
        check_choice("kv_cache_dtype", self.kv_cache_dtype, tuple(KV_CACHE_DTYPES))
        check_choice("scheduling_policy", self.scheduling_policy, POLICIES)
        check_choice("logprobs_mode", self.logprobs_mode, LOGPROBS_MODES)
        if self.max_logprobs != -1:
            check_not_negative("max_logprobs", self.max_logprobs)
        check_choice("warm_up", self.warm_up, WARM_UPS)
        check_choice("runner", self.runner, RUNNERS)
        check_choice("convert", self.convert, CONVERSIONS)
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
            check_slowdown(self.max_decode_slowdown)
        for name in ("tensor_parallel_size", "max_queued_requests"):
            check_positive(name, getattr(self, name))
        for name in (
            "max_model_len",
            "kv_cache_memory_bytes",
            "num_pages",
            "page_size",
            "max_num_batched_tokens",
            "max_num_seqs",
        ):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
