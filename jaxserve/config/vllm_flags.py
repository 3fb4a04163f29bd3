"""Flags of vLLM that are accepted without an effect, so that its command lines start unchanged.

A flag that jaxserve has under the same name is in `flags.py`. Those here either tune a part that
jaxserve does not have, or ask for what it does anyway. Each one given is reported in one line. A
value that asks for something else is refused with the reason: it would change what is served.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxserve.errors import ConfigError

ON, OFF = "true", "false"


@dataclass(frozen=True, slots=True, kw_only=True)
class InertFlag:
    """A flag of vLLM that has no effect.

    reason: why it has none, or why its other values are refused. allowed: the values that may be
    given, as text; any if None. A switch takes no value, and has a `--no-` form.
    """

    name: str
    reason: str
    allowed: tuple[str, ...] | None = None
    switch: bool = False
    many: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def keyword(self) -> str:
        """The name as a Python keyword."""
        return self.name.replace("-", "_")

    def note(self, value: object, *, called: str) -> str:
        """Return the line that reports the flag, by the name it was given under.

        Raises ConfigError for a value that is refused.
        """
        if self.allowed is None:
            return f"{called} has no effect: {self.reason}"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text in self.allowed:
            return f"{called} has no effect: {text} is what jaxserve does anyway"
        if self.switch or not self.allowed:
            raise ConfigError(f"{called} is not supported: {self.reason}")
        raise ConfigError(
            f"{called} must be {' or '.join(self.allowed)}, got {text}: {self.reason}"
        )


def _switches(reason: str, *names: str) -> Iterable[InertFlag]:
    return (InertFlag(name=name, reason=reason, switch=True) for name in names)


def _values(reason: str, *names: str) -> Iterable[InertFlag]:
    return (InertFlag(name=name, reason=reason) for name in names)


def _lists(reason: str, *names: str) -> Iterable[InertFlag]:
    return (InertFlag(name=name, reason=reason, many=True) for name in names)


def _refused(reason: str, *names: str) -> Iterable[InertFlag]:
    """Switches that may only be off."""
    return (InertFlag(name=n, reason=reason, switch=True, allowed=(OFF,)) for n in names)


def _only(reason: str, allowed: Mapping[str, str]) -> Iterable[InertFlag]:
    """Flags of one value, each with those that may be given, separated by spaces; maybe none."""
    return (
        InertFlag(
            name=name, reason=reason, allowed=tuple(values.split()), aliases=ALIASES.get(name, ())
        )
        for name, values in allowed.items()
    )


COMPILED = "every step is one compiled program, and shapes are chosen at start"
NO_TORCH = "it tunes PyTorch or CUDA libraries, which jaxserve does not use"
NO_CODE = "jaxserve runs no code from a checkpoint"
TEXT_ONLY = "only text is served"
NO_ADAPTERS = "adapters are not served yet"
NO_EXPERTS = "no mixture of experts is served yet"
NO_RECURRENCE = "no recurrent model is served yet"
ONE_ENGINE = "a server has one engine, spread over devices by --tensor-parallel-size only"
NO_OFFLOAD = "weights and KV cache stay in the device's memory"
NO_SPECULATION = "speculative decoding is not supported yet"
NO_TRANSFER = "KV caches are not moved between engines yet"
ONE_LOG_LINE = "each request is one log line, without its prompt and answer"
NOT_COLLECTED = "these metrics are not collected"
NO_PLUGINS = "jaxserve is not extended by this kind of plugin"
# The short names of flags that every deployment script has.
ALIASES = {
    "pipeline-parallel-size": ("-pp",),
    "data-parallel-size": ("-dp",),
    "speculative-config": ("-sc",),
}

INERT_FLAGS: tuple[InertFlag, ...] = (
    *_switches(COMPILED, "enforce-eager", "cudagraph-metrics", "jit-monitor-verbose"),
    *_values(
        COMPILED,
        "max-cudagraph-capture-size",
        "max-seq-len-to-capture",
        "performance-mode",
        "jit-monitor-mode",
        "num-scheduler-steps",
    ),
    InertFlag(name="compilation-config", reason=COMPILED, aliases=("-cc",)),
    InertFlag(name="optimization-level", reason=COMPILED, aliases=("-O",)),
    *_lists(COMPILED, "cudagraph-capture-sizes"),
    *_switches(NO_CODE, "trust-remote-code"),
    *_values(NO_CODE, "code-revision"),
    *_switches(
        "prompts are computed in chunks whenever the token budget asks for it",
        "enable-chunked-prefill",
        "long-prefill-token-threshold-adaptive",
        "scheduler-reserve-full-isl",
    ),
    *_values(
        "--max-decode-slowdown bounds what prompts cost running sequences",
        "long-prefill-token-threshold",
        "max-num-partial-prefills",
        "max-long-partial-prefills",
        "prefill-schedule-interval",
        "max-num-scheduled-tokens",
        "scheduler-delay-factor",
        "watermark",
    ),
    *_switches(
        ONE_LOG_LINE,
        "disable-log-requests",
        "enable-log-requests",
        "enable-log-outputs",
        "enable-log-deltas",
        "aggregate-engine-logging",
        "enable-logging-iteration-details",
        "log-error-stack",
    ),
    *_values(ONE_LOG_LINE, "max-log-len"),
    *_values("--log-level sets the level of all logs", "uvicorn-log-level", "logging-config"),
    *_switches("metrics are always collected", "disable-log-stats"),
    *_values("jaxserve hides no metrics", "show-hidden-metrics-for-version"),
    *_switches(
        NOT_COLLECTED, "kv-cache-metrics", "enable-mfu-metrics", "enable-layerwise-nvtx-tracing"
    ),
    *_values(NOT_COLLECTED, "kv-cache-metrics-sample", "per-request-spec-decode-metrics"),
    *_switches("usage always counts cached tokens", "enable-prompt-tokens-details"),
    *_switches("every answer carries x-request-id", "enable-request-id-headers"),
    *_switches("/load always tells how many requests are served", "enable-server-load-tracking"),
    *_switches("/docs needs no network", "enable-offline-docs"),
    *_switches("each parser knows by itself whether its model reasons", "enable-reasoning"),
    *_switches(
        "a prompt has no tools where tool_choice is none", "exclude-tools-when-tool-choice-none"
    ),
    *_switches("it is for Cohere's models", "cohere-is-reasoning-model"),
    *_values("it is for Cohere's models", "cohere-format"),
    *_switches(
        NO_TORCH,
        "disable-cascade-attn",
        "disable-custom-all-reduce",
        "disable-nccl-for-dp-synchronization",
        "enable-batch-sharded-sampling",
        "enable-cumem-allocator",
        "enable-flashinfer-autotune",
        "enable-hc-sp",
        "enable-nccl-comm-suspend",
        "enable-shm-tensor-arena",
        "numa-bind",
        "ray-workers-use-nsight",
        "use-fp64-gumbel",
        "use-v2-block-manager",
        "disable-async-output-proc",
        "disable-frontend-multiprocessing",
        "disable-hybrid-kv-cache-manager",
        "enable-flash-late-interaction",
        "fail-on-environ-validation",
        "swa-bounded-replay",
        "use-tqdm-on-load",
    ),
    *_values(
        NO_TORCH,
        "attention-config",
        "block-allocator",
        "distributed-timeout-seconds",
        "cpu-distributed-timeout-seconds",
        "ir-op-priority",
        "kernel-config",
        "max-parallel-loading-workers",
        "model-loader-extra-config",
        "profiler-config",
        "pt-load-map-location",
        "renderer-num-workers",
        "safetensors-load-strategy",
        "safetensors-prefetch-block-size",
        "safetensors-prefetch-num-threads",
        "sparse-indexer-topk-backend",
        "tokenizer-pool-size",
    ),
    *_lists(NO_TORCH, "numa-bind-nodes", "numa-bind-cpus"),
    *_values("prefixes are hashed by SHA-256", "prefix-caching-hash-algo"),
    *_values(NO_OFFLOAD, "swap-space", "kv-offloading-backend", "offload-backend"),
    *_only(
        NO_OFFLOAD,
        {
            "cpu-offload-gb": "0 0.0",
            "kv-offloading-size": "0 0.0",
            "offload-group-size": "0",
            "preemption-mode": "recompute",
        },
    ),
    *_only(
        ONE_ENGINE,
        {
            "pipeline-parallel-size": "1",
            "data-parallel-size": "1",
            "data-parallel-size-local": "1",
            "decode-context-parallel-size": "1",
            "prefill-context-parallel-size": "1",
            "nnodes": "1",
            "node-rank": "0",
            "distributed-executor-backend": "mp uni",
        },
    ),
    *_values(
        ONE_ENGINE, "data-parallel-backend", "data-parallel-rpc-port", "master-addr", "master-port"
    ),
    *_refused(
        ONE_ENGINE,
        "headless",
        "data-parallel-external-lb",
        "data-parallel-hybrid-lb",
        "data-parallel-multi-port-external-lb",
    ),
    *_only("JAX_PLATFORMS chooses the device", {"device": "auto"}),
    *_switches(NO_EXPERTS, "enable-ep-weight-filter", "enable-expert-parallel"),
    *_refused(NO_EXPERTS, "enable-eplb", "enable-dbo", "enable-elastic-ep"),
    *_values(NO_EXPERTS, "moe-backend", "all2all-backend", "eplb-config"),
    *_values(NO_EXPERTS, "expert-placement-strategy"),
    *_values(
        NO_RECURRENCE,
        "gdn-prefill-backend",
        "kda-decode-backend",
        "kda-prefill-backend",
        "mamba-backend",
        "mamba-block-size",
        "mamba-cache-dtype",
        "mamba-cache-mode",
        "mamba-ssm-cache-dtype",
    ),
    *_switches(
        TEXT_ONLY,
        "disable-chunked-mm-input",
        "interleave-mm-strings",
        "language-model-only",
        "skip-mm-profiling",
        "trust-request-mm-kwargs",
    ),
    *_values(
        TEXT_ONLY,
        "allowed-local-media-path",
        "limit-mm-per-prompt",
        "media-io-kwargs",
        "mm-processor-kwargs",
        "mm-encoder-attn-backend",
        "mm-encoder-tp-mode",
        "mm-hasher-algorithm",
        "mm-ipc-gpu-memory-gb",
        "mm-processor-cache-gb",
        "mm-processor-cache-type",
        "mm-processor-device",
        "mm-shm-cache-max-object-size-mb",
        "mm-tensor-ipc",
    ),
    *_lists(TEXT_ONLY, "allowed-media-domains"),
    *_refused(TEXT_ONLY, "enable-mm-embeds", "mm-encoder-only"),
    *_refused("prompts are text or token ids", "enable-prompt-embeds", "skip-tokenizer-init"),
    *_refused(NO_ADAPTERS, "enable-lora"),
    *_values(NO_ADAPTERS, "lora-dtype", "max-cpu-loras", "max-lora-rank", "max-loras"),
    *_switches(NO_ADAPTERS, "fully-sharded-loras", "enable-tower-connector-lora"),
    *_refused("the engine cannot sleep yet", "enable-sleep-mode"),
    *_refused("gRPC is not served", "grpc"),
    *_refused("answers do not carry it", "enable-return-routed-experts", "return-sampling-mask"),
    *_refused("windows are part of the model", "disable-sliding-window"),
    *_only(NO_SPECULATION, {"speculative-config": "null {}", "num-lookahead-slots": "0"}),
    *_only(NO_TRANSFER, {"kv-transfer-config": "null {}", "ec-transfer-config": "null {}"}),
    *_only(NO_TRANSFER, {"kv-events-config": "null {}"}),
    *_only(
        NO_PLUGINS,
        {
            "tool-parser-plugin": "",
            "reasoning-parser-plugin": "",
            "io-processor-plugin": "",
            "worker-cls": "auto",
            "worker-extension-cls": "",
            "scheduler-cls": "",
        },
    ),
    *_only(
        "the checkpoint's own format is read",
        {
            "config-format": "auto hf",
            "model-impl": "auto",
            "tokenizer-mode": "auto fast hf",
        },
    ),
    *_only("chats are answered as the assistant", {"response-role": "assistant"}),
    *_only("the template shows which form it reads", {"chat-template-content-format": "auto"}),
    *_values("grammars are compiled by llguidance", "guided-decoding-backend"),
    *_refused(
        "--structured-outputs-config has it",
        "guided-decoding-disable-any-whitespace",
        "guided-decoding-disable-additional-properties",
    ),
    *_switches("there is one backend, and none to fall to", "guided-decoding-disable-fallback"),
    *_values("the request line and headers may have 64 KiB", "h11-max-incomplete-event-size"),
    *_values("the request line and headers may have 64 KiB", "h11-max-header-count"),
    *_only("the fingerprint is a hash", {"fingerprint-mode": "full hash"}),
    *_only("traces are not exported yet", {"otlp-traces-endpoint": ""}),
    *_only("tools are run by clients", {"tool-server": ""}),
    *_refused("prompts and answers are text", "tokens-only"),
    *_only("--rope-scaling is part of --hf-overrides", {"rope-scaling": "", "rope-theta": ""}),
    *_values("files that are not read are not downloaded", "ignore-patterns"),
)

BY_KEYWORD: Mapping[str, InertFlag] = {flag.keyword: flag for flag in INERT_FLAGS}


def split_inert(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return keyword options without those that have no effect, and the lines that report these.

    Raises ConfigError for a value that is refused.
    """
    kept = {keyword: value for keyword, value in keywords.items() if keyword not in BY_KEYWORD}
    notes = [
        BY_KEYWORD[keyword].note(value, called=keyword)
        for keyword, value in keywords.items()
        if keyword in BY_KEYWORD and value is not None
    ]
    return kept, notes
