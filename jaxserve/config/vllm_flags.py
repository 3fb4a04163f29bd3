"""Flags of vLLM that are accepted without effect, so that its command lines work unchanged.

Flags with an effect are fields of `EngineOptions` and `ServerConfig`. The flags here tune parts
that jaxserve does not have, or request its default behaviour. A log line reports each one given. A
value that would change the results is refused with the reason.
"""

from collections.abc import Mapping
from typing import Any

from jaxserve.config.inert_flag import (
    InertFlag,
    lists,
    only,
    refused,
    switches,
    unsupported,
    values,
)

COMPILED = "every step is one compiled program, whose shapes are planned at startup"
NO_TORCH = "it tunes PyTorch or CUDA libraries, which jaxserve does not use"
NO_CODE = "jaxserve runs no code from a checkpoint"
TEXT_ONLY = "only text is served"
NO_ADAPTERS = "adapters are not served yet"
NO_EXPERTS = "experts are distributed by --enable-expert-parallel only"
NO_RECURRENCE = "states of recurrent layers are kept in one way, in float32"
ONE_ENGINE = "a server has one engine, spread over devices by --tensor-parallel-size only"
NO_OFFLOAD = "weights and KV cache stay in the device's memory"
NO_SPECULATION = "speculative decoding is not supported yet"
NO_TRANSFER = "KV caches are not moved between engines yet"
ONE_LOG_LINE = "each request is one log line, without its prompt and answer"
NOT_COLLECTED = "these metrics are not collected"
NO_PLUGINS = "jaxserve is not extended by this kind of plugin"

INERT_FLAGS: tuple[InertFlag, ...] = (
    *switches(COMPILED, "enforce-eager", "cudagraph-metrics", "jit-monitor-verbose"),
    *values(
        COMPILED,
        "max-cudagraph-capture-size",
        "max-seq-len-to-capture",
        "performance-mode",
        "jit-monitor-mode",
        "num-scheduler-steps",
    ),
    *values(COMPILED, "compilation-config -cc", "optimization-level -O"),
    *lists(COMPILED, "cudagraph-capture-sizes"),
    *switches(NO_CODE, "trust-remote-code"),
    *values(NO_CODE, "code-revision"),
    *switches(
        "prompts are always computed in chunks within the token budget",
        "enable-chunked-prefill",
        "long-prefill-token-threshold-adaptive",
        "scheduler-reserve-full-isl",
    ),
    *values(
        "--max-decode-slowdown limits how much prompts delay running sequences",
        "long-prefill-token-threshold",
        "max-num-partial-prefills",
        "max-long-partial-prefills",
        "prefill-schedule-interval",
        "max-num-scheduled-tokens",
        "scheduler-delay-factor",
        "watermark",
    ),
    *switches(
        ONE_LOG_LINE,
        "disable-log-requests",
        "enable-log-requests",
        "enable-log-outputs",
        "enable-log-deltas",
        "aggregate-engine-logging",
        "enable-logging-iteration-details",
        "log-error-stack",
    ),
    *values(ONE_LOG_LINE, "max-log-len"),
    *values("--log-level sets the level of all logs", "uvicorn-log-level", "logging-config"),
    *switches("metrics are always collected", "disable-log-stats"),
    *values("jaxserve hides no metrics", "show-hidden-metrics-for-version"),
    *switches(
        NOT_COLLECTED, "kv-cache-metrics", "enable-mfu-metrics", "enable-layerwise-nvtx-tracing"
    ),
    *values(NOT_COLLECTED, "kv-cache-metrics-sample", "per-request-spec-decode-metrics"),
    *switches("usage always counts cached tokens", "enable-prompt-tokens-details"),
    *switches("every answer carries x-request-id", "enable-request-id-headers"),
    *switches("/load always tells how many requests are served", "enable-server-load-tracking"),
    *switches("/docs needs no network", "enable-offline-docs"),
    *switches("each parser knows by itself whether its model reasons", "enable-reasoning"),
    *switches(
        "a prompt has no tools where tool_choice is none", "exclude-tools-when-tool-choice-none"
    ),
    *switches("it is for Cohere's models", "cohere-is-reasoning-model"),
    *values("it is for Cohere's models", "cohere-format"),
    *switches(
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
    *values(
        NO_TORCH,
        "attention-config -ac",
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
    *lists(NO_TORCH, "numa-bind-nodes", "numa-bind-cpus"),
    *values("prefixes are hashed by SHA-256", "prefix-caching-hash-algo"),
    *values(NO_OFFLOAD, "swap-space", "kv-offloading-backend", "offload-backend"),
    *only(
        NO_OFFLOAD,
        {
            "cpu-offload-gb": "0 0.0",
            "kv-offloading-size": "0 0.0",
            "offload-group-size": "0",
            "preemption-mode": "recompute",
        },
    ),
    *only(
        ONE_ENGINE,
        {
            "pipeline-parallel-size -pp": "1",
            "data-parallel-size -dp": "1",
            "data-parallel-size-local -dpl": "1",
            "decode-context-parallel-size -dcp": "1",
            "prefill-context-parallel-size -pcp": "1",
            "nnodes -n": "1",
            "node-rank -r": "0",
            "distributed-executor-backend": "mp uni",
        },
    ),
    *values(
        ONE_ENGINE,
        "data-parallel-backend -dpb",
        "data-parallel-rpc-port -dpp",
        "master-addr",
        "master-port",
    ),
    *refused(
        ONE_ENGINE,
        "headless",
        "data-parallel-external-lb -dpe",
        "data-parallel-hybrid-lb -dph",
        "data-parallel-multi-port-external-lb -dpm",
    ),
    *only("JAX_PLATFORMS chooses the device", {"device": "auto"}),
    *switches(NO_EXPERTS, "enable-ep-weight-filter"),
    *refused(NO_EXPERTS, "enable-eplb", "enable-dbo", "enable-elastic-ep"),
    *values(NO_EXPERTS, "moe-backend", "all2all-backend", "eplb-config"),
    *values(NO_EXPERTS, "expert-placement-strategy"),
    *values(
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
    *switches(
        TEXT_ONLY,
        "disable-chunked-mm-input",
        "interleave-mm-strings",
        "language-model-only",
        "skip-mm-profiling",
        "trust-request-mm-kwargs",
    ),
    *values(
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
    *lists(TEXT_ONLY, "allowed-media-domains"),
    *refused(TEXT_ONLY, "enable-mm-embeds", "mm-encoder-only"),
    *refused("prompts are text or token ids", "enable-prompt-embeds", "skip-tokenizer-init"),
    *refused(NO_ADAPTERS, "enable-lora"),
    *values(NO_ADAPTERS, "lora-dtype", "max-cpu-loras", "max-lora-rank", "max-loras"),
    *switches(NO_ADAPTERS, "fully-sharded-loras", "enable-tower-connector-lora"),
    *refused("the engine cannot sleep yet", "enable-sleep-mode"),
    *refused("gRPC is not served", "grpc"),
    *refused("answers do not carry it", "enable-return-routed-experts", "return-sampling-mask"),
    *refused("windows are part of the model", "disable-sliding-window"),
    *only(NO_SPECULATION, {"speculative-config -sc": "null {}", "num-lookahead-slots": "0"}),
    *only(NO_TRANSFER, {"kv-transfer-config": "null {}", "ec-transfer-config": "null {}"}),
    *only(NO_TRANSFER, {"kv-events-config": "null {}"}),
    *only(
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
    *only(
        "the checkpoint's own format is read",
        {
            "config-format": "auto hf",
            "model-impl": "auto",
            "tokenizer-mode": "auto fast hf",
        },
    ),
    *only("chats are answered as the assistant", {"response-role": "assistant"}),
    *values("grammars are compiled by llguidance", "guided-decoding-backend"),
    *refused(
        "--structured-outputs-config has it",
        "guided-decoding-disable-any-whitespace",
        "guided-decoding-disable-additional-properties",
    ),
    *switches("there is one backend, and none to fall to", "guided-decoding-disable-fallback"),
    *values("the request line and headers may have 64 KiB", "h11-max-incomplete-event-size"),
    *values("the request line and headers may have 64 KiB", "h11-max-header-count"),
    *only("the fingerprint is a hash", {"fingerprint-mode": "full hash"}),
    *only("traces are not exported yet", {"otlp-traces-endpoint": ""}),
    *only("tools are run by clients", {"tool-server": ""}),
    *refused("prompts and answers are text", "tokens-only"),
    *only("--rope-scaling is part of --hf-overrides", {"rope-scaling": "", "rope-theta": ""}),
    *values("files that are not read are not downloaded", "ignore-patterns"),
    *only("streams send no comments between tokens", {"sse-keep-alive-interval": "0"}),
    *only("each tool says whether it is strict", {"tool-strict-level": "auto"}),
    *only(
        "a model that reasons is asked not to", {"anthropic-disabled-thinking-effort": "auto none"}
    ),
    *refused("there is no /inference/v1/generate", "enable-scale-out"),
    *unsupported("the fingerprint is made from what answers depend on", "fingerprint-value"),
    *values("gRPC is not served", "grpc-port"),
    *values(
        ONE_ENGINE,
        "data-parallel-supervisor-port",
        "dp-supervisor-probe-interval-s",
        "dp-supervisor-probe-timeout-s",
        "dp-supervisor-probe-failure-threshold",
        "dp-sync-interval",
        "data-parallel-address -dpa",
        "dcp-comm-backend",
        "dcp-kv-cache-interleave-size",
        "cp-kv-cache-interleave-size",
    ),
    *only(ONE_ENGINE, {"data-parallel-rank -dpn": "0", "data-parallel-start-rank -dpr": "0"}),
    *switches(ONE_ENGINE, "dcp-q-replicate"),
    *unsupported("CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS chooses the devices", "device-ids"),
    *unsupported("--hf-overrides replaces values of config.json", "hf-config-path"),
    *unsupported("--revision chooses model and tokenizer", "tokenizer-revision"),
    *unsupported("HF_TOKEN in the environment is the hub's token", "hf-token"),
    *only("models are those of jaxserve.models", {"model-class-overrides": "{}"}),
    *unsupported("a checkpoint says how it is quantized, or --quantization", "quantization-config"),
    *switches("no quantization is deprecated", "allow-deprecated-quantization"),
    *refused("answers cannot be replayed", "enable-trace-replay"),
    *switches("the engine cannot sleep yet", "sleep-mode-offload-cudagraph"),
    *lists("the engine cannot sleep yet", "sleep-preserve-parameter-names"),
    *values(
        NO_RECURRENCE,
        "mamba-ssu-algorithm",
        "mamba-cache-philox-rounds",
        "replayssm-buffer-len",
        "prefix-cache-retention-interval",
    ),
    *switches(
        NO_RECURRENCE,
        "enable-mamba-cache-stochastic-rounding",
        "enable-mamba-shared-prefix-checkpoint",
        "use-replayssm",
    ),
    *only(NO_EXPERTS, {"ubatch-size": "0"}),
    *values(
        NO_EXPERTS,
        "elastic-ep-max-dp-size",
        "dbo-decode-token-threshold",
        "dbo-prefill-token-threshold",
    ),
    *switches("an engine that dies is started again", "enable-fault-tolerance"),
    *values("an engine that dies is started again", "fault-tolerance-config"),
    *unsupported("all layers have the same KV cache", "kv-cache-dtype-skip-layers"),
    *refused("all layers have KV caches of their own", "kv-sharing-fast-prefill"),
    *values("prefixes are matched by pages", "prefix-match-unit"),
    *values(NO_OFFLOAD, "offload-num-in-group", "offload-prefetch-step"),
    *lists(NO_OFFLOAD, "cpu-offload-params", "offload-params"),
    *values(
        TEXT_ONLY,
        "mm-encoder-attn-dtype",
        "mm-encoder-fp8-scale-path",
        "mm-encoder-fp8-scale-save-path",
        "mm-encoder-fp8-scale-save-margin",
        "video-pruning-rate",
        "video-pruning-method",
        "ec-manager-config",
    ),
    *switches(TEXT_ONLY, "mm-device-do-normalize"),
    *unsupported(NO_ADAPTERS, "lora-modules", "default-mm-loras"),
    *lists(NO_ADAPTERS, "lora-target-modules"),
    *values(NO_ADAPTERS, "max-lora-cls-labels"),
    *switches(
        NO_ADAPTERS,
        "specialize-active-lora",
        "enable-mixed-moe-lora-format",
        "enable-moe-shared-loras",
    ),
    *values("--log-level sets the level of all logs", "log-config-file"),
    *unsupported("traces are not exported yet", "collect-detailed-traces"),
    *unsupported("histograms have vLLM's buckets, and finer ones", "custom-histogram-buckets"),
    *unsupported("--max-num-seqs bounds the running batch", "max-num-active-seqs"),
    *unsupported("--max-queued-requests bounds the queue", "max-num-queued-tokens"),
    *unsupported(NO_SPECULATION, "spec-method", "spec-model", "spec-tokens"),
    *only("answers are not watermarked yet", {"watermark-config": "null {}"}),
    *only("no diffusion model is served", {"diffusion-config -dc": "null {}"}),
    *only("no model with n-gram tables is served", {"engram-config": "null {}"}),
    *only("--reasoning-parser knows where reasoning begins", {"reasoning-config": "null {}"}),
    *only("answers do not carry it", {"aux-output-config": "null {}"}),
    *only("weights are loaded from checkpoints", {"weight-transfer-config": "null {}"}),
    *values("it is for vLLM's plugins of hardware", "additional-config"),
)

# Additional flags of `vllm run-batch`.
BATCH_FLAGS: tuple[InertFlag, ...] = (
    *values("results are written to the output file as they come", "output-tmp-dir"),
    *values("run-batch listens nowhere", "host", "port", "url"),
    *switches("run-batch listens nowhere", "enable-metrics"),
)

BY_KEYWORD: Mapping[str, InertFlag] = {flag.keyword: flag for flag in INERT_FLAGS}


def split_inert(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the keyword options that have an effect, and the log lines for the others.

    Raises ConfigError for a value that is refused.
    """
    kept = {keyword: value for keyword, value in keywords.items() if keyword not in BY_KEYWORD}
    notes = [
        BY_KEYWORD[keyword].note(value, called=keyword)
        for keyword, value in keywords.items()
        if keyword in BY_KEYWORD and value is not None
    ]
    return kept, notes
