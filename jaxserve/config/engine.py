"""Options of an engine, as users set them.

`planning/planner.py` resolves them for a model and a device into `SchedulerConfig` and
`CacheConfig`, which have no unset values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS, DEFAULT_MAX_QUEUED_REQUESTS, POLICIES
from jaxserve.config.option import check_options, option
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.config.values import SUFFIX_HELP, number_or_auto

# Values of --kv-cache-dtype, and the dtype of pages; "auto" is the model's dtype.
KV_CACHE_DTYPES = {
    "auto": None,
    "bfloat16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
}
LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of an engine. None selects a default for the model and device.

    Options with the same meaning have vLLM's names. Raises ConfigError for a value that is invalid
    for every model.
    """

    # A folder, a hub name, or None for the model in the package.
    model: str | None = None
    served_model_names: tuple[str, ...] = option(
        (),
        "names of the model in the API; answers have the first one",
        flag="served-model-name",
    )
    runner: str = option(
        "auto",
        "task: generate text, or pool prompts into embeddings or scores",
        choices=("auto", "generate", "pooling"),
    )
    convert: str = option(
        "auto",
        "output of a pooling model: embeddings or class scores",
        choices=("auto", "none", "embed", "classify"),
    )
    pooler_config: Mapping[str, Any] | None = option(
        None,
        "pooling settings as a JSON object: pooling_type, use_activation, enable_chunked_processing"
        " (embed prompts beyond the context in chunks) and max_embed_len",
    )
    hf_overrides: Mapping[str, Any] = option(
        {},
        "values that override the model's config.json, as a JSON object; nested objects are merged"
        " key by key",
    )
    structured_outputs_config: Mapping[str, Any] = option(
        {},
        "defaults for JSON outputs, as a JSON object: disable_any_whitespace, whitespace_pattern (a"
        " regex) or disable_additional_properties",
    )
    revision: str | None = option(None, "branch, tag or commit on the hub")
    tokenizer: str | None = option(None, "folder of the tokenizer, if not the model's")
    download_dir: str | None = option(None, "folder for downloaded models")
    chat_template: str | None = option(
        None, "a Jinja template that replaces the model's: a file, or the text"
    )
    generation_config: str = option(
        "auto",
        "source of sampling defaults: auto (the model), vllm (neutral values), or a folder",
    )
    override_generation_config: Mapping[str, Any] = option(
        {}, "sampling defaults that override --generation-config, as a JSON object"
    )
    load_format: str = option(
        "auto",
        "format of the weights; dummy initializes them randomly, for benchmarks",
        choices=("auto", "safetensors", "dummy"),
    )
    dtype: str = option(
        "auto",
        "dtype of weights, activations and KV cache",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    seed: int = option(0, "seed of requests without one")
    max_model_len: int | None = option(
        None,
        "maximum number of tokens of prompt and answer together" + SUFFIX_HELP,
        parse=number_or_auto,
        at_least=1,
    )
    tensor_parallel_size: int = option(
        1, "devices to shard the model over", aliases=("-tp", "--tp"), at_least=1
    )
    enable_expert_parallel: bool = option(
        False,
        "give each device whole experts of a mixture, instead of a part of every expert",
        aliases=("-ep",),
    )
    memory_fraction: float = option(
        0.9,
        "share of the device's memory for weights, workspace and KV cache",
        flag="gpu-memory-utilization",
        aliases=("--device-memory-utilization",),
        above=0,
        at_most=1,
    )
    kv_cache_memory_bytes: int | None = option(
        None,
        "bytes of the KV cache over all devices; overrides --gpu-memory-utilization" + SUFFIX_HELP,
        at_least=1,
    )
    num_pages: int | None = option(
        None,
        "number of pages of the KV cache; overrides the memory limits",
        flag="num-gpu-blocks-override",
        at_least=1,
    )
    page_size: int | None = option(None, "tokens per page", flag="block-size", at_least=1)
    enable_prefix_caching: bool = option(
        True, "reuse the KV cache of earlier prompts with the same prefix"
    )
    max_num_batched_tokens: int | None = option(
        None, "maximum number of tokens per step" + SUFFIX_HELP, at_least=1
    )
    max_num_seqs: int | None = option(None, "maximum number of running sequences", at_least=1)
    max_decode_slowdown: float | None = option(
        None,
        "maximum duration of a step with chunks of prompts, relative to the same step without them;"
        " limits the time between tokens",
        above=1,
    )
    max_queued_requests: int = option(
        DEFAULT_MAX_QUEUED_REQUESTS,
        "maximum number of waiting requests; further choices of requests with n > 1 have the same"
        " limit, or 128 if that is larger",
        aliases=("--max-num-queued-reqs",),
        at_least=1,
    )
    max_logprobs: int = option(
        DEFAULT_MAX_LOGPROBS,
        "maximum number of alternatives per token that a request may ask for; -1 allows the whole"
        " vocabulary",
        at_least=-1,
    )
    logprobs_mode: str = option(
        "raw_logprobs",
        "values reported for tokens: before (raw) or after (processed) penalties, bans, temperature"
        " and filters",
        choices=LOGPROBS_MODES,
    )
    logits_processors: tuple[str, ...] = option(
        (), "subclasses of LogitsProcessor as module:Class, compiled into the step; trusted code"
    )
    scheduling_policy: str = option(
        "fcfs",
        "order of requests: by arrival (fcfs), or by lowest priority number",
        choices=POLICIES,
    )
    async_scheduling: bool = option(True, "schedule a step while the previous one is computed")
    quantization: str | None = option(
        None,
        "quantize weights to int8 while loading, and activations dynamically",
        choices=("int8",),
        aliases=("-q",),
    )
    kv_cache_dtype: str = option(
        "auto",
        "dtype of the KV cache; fp8 halves its size, with scale 1",
        choices=KV_CACHE_DTYPES,
    )
    attention_backend: str | None = option(
        None, "the attention backend; by default the first that supports the model and device"
    )
    linear_backend: str | None = option(
        None,
        "the matmul backend; by default packed on CPUs that support it, else xla",
    )
    compilation_cache: bool = option(True, "keep compiled programs on disk for the next start")
    executables: str | None = option(
        None, "folder of compiled programs from `jaxserve compile --out`; trusted code"
    )
    warm_up: str = option(
        "background",
        "programs to compile before serving: the first, and the others in the background"
        " (background), all (full), or none, so that each is compiled when first needed (none)",
        choices=("background", "full", "none"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        StructuredOutputsConfig.of(self.structured_outputs_config)
