"""What a user may ask of an engine.

planning/planner.py resolves it against a model and a device into `SchedulerConfig` and
`CacheConfig`, which are complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.api.engine_config import DEFAULT_MAX_LOGPROBS, DEFAULT_MAX_QUEUED_REQUESTS, POLICIES
from jaxserve.config.option import check_options, option
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.config.values import SUFFIX_HELP, number_or_auto

# The options' names of dtypes, and what pages then hold; "auto" is the model's own dtype.
KV_CACHE_DTYPES = {
    "auto": None,
    "bfloat16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
}
LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The options of an engine; None means: choose for this model and device.

    Names and meanings are vLLM's where the thing is the same. Raises ConfigError for a value that
    no model could use.
    """

    # A folder, a hub name, or None for the model that jaxserve brings.
    model: str | None = None
    served_model_names: tuple[str, ...] = option(
        (),
        "names of the model in the API; the first stands in answers",
        flag="served-model-name",
    )
    runner: str = option(
        "auto",
        "what the model does: generate text, or pool prompts into embeddings or scores",
        choices=("auto", "generate", "pooling"),
    )
    convert: str = option(
        "auto",
        "what to make of a language model that pools",
        choices=("auto", "none", "embed", "classify"),
    )
    pooler_config: Mapping[str, Any] | None = option(
        None,
        'how prompts are pooled: {"pooling_type": "MEAN", "use_activation": false}',
    )
    hf_overrides: Mapping[str, Any] = option(
        {},
        "values that replace those of the model's config.json, as a JSON object; nested objects"
        " are merged key by key",
    )
    structured_outputs_config: Mapping[str, Any] = option(
        {},
        "how JSON is written where a request does not say: disable_any_whitespace,"
        " whitespace_pattern (a regex) or disable_additional_properties, as a JSON object",
    )
    revision: str | None = option(None, "branch, tag or commit on the hub")
    tokenizer: str | None = option(None, "folder of another tokenizer")
    download_dir: str | None = option(None, "folder that models are downloaded to")
    chat_template: str | None = option(
        None, "a Jinja template in place of the model's own: its file, or its text"
    )
    generation_config: str = option(
        "auto", "auto: the model's sampling defaults; vllm: neutral ones; or a folder's"
    )
    override_generation_config: Mapping[str, Any] = option(
        {}, "sampling defaults that replace those of --generation-config, as a JSON object"
    )
    load_format: str = option(
        "auto",
        "dummy draws random weights of the model's shapes, for measurements",
        choices=("auto", "safetensors", "dummy"),
    )
    dtype: str = option(
        "auto",
        "type of weights and KV cache",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    seed: int = option(0, "seed of requests that bring none")
    max_model_len: int | None = option(
        None,
        "tokens of prompt and answer together" + SUFFIX_HELP,
        parse=number_or_auto,
        at_least=1,
    )
    tensor_parallel_size: int = option(
        1, "devices to shard the model over", aliases=("-tp", "--tp"), at_least=1
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
        "size of the KV cache over all devices, whatever --gpu-memory-utilization" + SUFFIX_HELP,
        at_least=1,
    )
    num_pages: int | None = option(
        None,
        "pages of the KV cache, whatever the memory",
        flag="num-gpu-blocks-override",
        at_least=1,
    )
    page_size: int | None = option(None, "tokens per page", flag="block-size", at_least=1)
    enable_prefix_caching: bool = option(
        True, "keep the KV cache of finished prompts for prompts that begin alike"
    )
    max_num_batched_tokens: int | None = option(
        None, "tokens computed per step at most" + SUFFIX_HELP, at_least=1
    )
    max_num_seqs: int | None = option(None, "sequences running at once", at_least=1)
    max_decode_slowdown: float | None = option(
        None,
        "how many times as long a step may take with chunks of prompts as without them, which"
        " bounds the time between tokens",
        above=1,
    )
    max_queued_requests: int = option(
        DEFAULT_MAX_QUEUED_REQUESTS,
        "requests that may wait; further choices of requests with n > 1 are bounded by the same"
        " number, or 128 if that is more",
        aliases=("--max-num-queued-reqs",),
        at_least=1,
    )
    max_logprobs: int = option(
        DEFAULT_MAX_LOGPROBS,
        "alternatives that a request may ask for at each token; -1: the whole vocabulary",
        at_least=-1,
    )
    logprobs_mode: str = option(
        "raw_logprobs",
        "what is reported of tokens: before (raw) or after (processed) penalties, bans, temperature"
        " and filters",
        choices=LOGPROBS_MODES,
    )
    logits_processors: tuple[str, ...] = option(
        (), "subclasses of LogitsProcessor as module:Class, compiled into the step; trusted code"
    )
    scheduling_policy: str = option(
        "fcfs",
        "which request runs first: the one that came first, or the one of lowest priority number",
        choices=POLICIES,
    )
    async_scheduling: bool = option(
        True, "plan a step while the one before it is computed", aliases=("-asc",)
    )
    quantization: str | None = option(
        None,
        "round weights to int8 as they are loaded, and activations in each step",
        choices=("int8",),
    )
    kv_cache_dtype: str = option(
        "auto",
        "dtype of keys and values in pages; fp8 halves them, at scale 1",
        choices=KV_CACHE_DTYPES,
    )
    attention_backend: str | None = option(
        None, "the attention kernel; by default the first that supports the model and the device"
    )
    linear_backend: str | None = option(
        None,
        "the matmul backend; by default packed on CPUs that have it, else xla",
    )
    compilation_cache: bool = option(True, "keep compiled programs on disk for the next start")
    executables: str | None = option(
        None, "folder of programs from `jaxserve compile --out`; trusted code"
    )
    warm_up: str = option(
        "background",
        "which programs to compile before serving: the first (and the others meanwhile), all"
        " (full), or each when it is first needed (none)",
        choices=("background", "full", "none"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        StructuredOutputsConfig.of(self.structured_outputs_config)
