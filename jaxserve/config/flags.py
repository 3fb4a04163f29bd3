"""The one table of options by the names users know, vLLM's where the thing is the same.

A flag `--gpu-memory-utilization` is the keyword `gpu_memory_utilization` of `LLM` and the key
`gpu-memory-utilization` of a config file; the table says which field of which settings it fills.
Defaults are those of the settings: a flag that is not given appears nowhere.
"""

import argparse
import logging
import os
from collections.abc import Mapping
from typing import Any

from jaxserve.api.engine_config import POLICIES
from jaxserve.chat import reasoning_parsers, tool_parsers
from jaxserve.config.engine import (
    CONVERSIONS,
    DTYPES,
    KV_CACHE_DTYPES,
    LOAD_FORMATS,
    LOGPROBS_MODES,
    QUANTIZATIONS,
    RUNNERS,
    WARM_UPS,
    EngineOptions,
)
from jaxserve.config.flag import (
    SUFFIX_HELP,
    Flag,
    comma_separated,
    given,
    json_object,
    json_strings,
    number,
    number_or_auto,
    speaking_of,
    to_fields,
)
from jaxserve.config.server import ServerConfig
from jaxserve.config.vllm_flags import split_inert

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "JAXSERVE_API_KEY"

ENGINE_FLAGS = (
    Flag(
        name="served-model-name",
        field="served_model_names",
        many=True,
        help="names the API knows the model by; the first stands in answers",
    ),
    Flag(
        name="runner",
        field="runner",
        choices=RUNNERS,
        help="what the model does: generate text, or pool prompts into embeddings or scores",
    ),
    Flag(
        name="convert",
        field="convert",
        choices=CONVERSIONS,
        help="what to make of a language model that pools",
    ),
    Flag(
        name="pooler-config",
        field="pooler_config",
        parse=json_object,
        help='how prompts are pooled: {"pooling_type": "MEAN", "use_activation": false}',
    ),
    Flag(
        name="hf-overrides",
        field="hf_overrides",
        parse=json_object,
        help="values of the model's config.json to replace, as a JSON object; objects in it are"
        " merged key by key",
    ),
    Flag(
        name="structured-outputs-config",
        field="structured_outputs_config",
        parse=json_object,
        help="how JSON is written where a request does not say: disable_any_whitespace,"
        " whitespace_pattern (a regex) or disable_additional_properties, as a JSON object",
    ),
    Flag(name="revision", field="revision", help="branch, tag or commit on the hub"),
    Flag(name="tokenizer", field="tokenizer", help="folder of another tokenizer"),
    Flag(name="download-dir", field="download_dir", help="where models are downloaded to"),
    Flag(
        name="chat-template",
        field="chat_template",
        help="a Jinja template in place of the model's own: its file, or its text",
    ),
    Flag(
        name="generation-config",
        field="generation_config",
        help="auto: the model's sampling defaults; vllm: neutral ones; or a folder's",
    ),
    Flag(
        name="override-generation-config",
        field="override_generation_config",
        parse=json_object,
        help="sampling defaults as a JSON object, over those of --generation-config",
    ),
    Flag(
        name="load-format",
        field="load_format",
        choices=LOAD_FORMATS,
        help="dummy draws random weights of the model's shapes, for measurements",
    ),
    Flag(name="dtype", field="dtype", choices=DTYPES, help="type of weights and KV cache"),
    Flag(name="seed", field="seed", parse=int, help="start of the random numbers"),
    Flag(
        name="max-model-len",
        field="max_model_len",
        parse=number_or_auto,
        help="tokens of prompt and answer together" + SUFFIX_HELP,
    ),
    Flag(
        name="tensor-parallel-size",
        field="tensor_parallel_size",
        parse=int,
        aliases=("-tp", "--tp"),
        help="devices to spread the model over",
    ),
    Flag(
        name="gpu-memory-utilization",
        field="memory_fraction",
        aliases=("--device-memory-utilization",),
        parse=float,
        help="share of the device's memory to use",
    ),
    Flag(
        name="kv-cache-memory-bytes",
        field="kv_cache_memory_bytes",
        parse=number,
        help="size of the KV cache" + SUFFIX_HELP,
    ),
    Flag(
        name="num-gpu-blocks-override",
        field="num_pages",
        parse=int,
        help="pages of the KV cache, whatever the memory",
    ),
    Flag(name="block-size", field="page_size", parse=int, help="tokens per page"),
    Flag(
        name="enable-prefix-caching",
        field="enable_prefix_caching",
        switch=True,
        help="keep what was computed for the beginnings of prompts",
    ),
    Flag(
        name="max-num-batched-tokens",
        field="max_num_batched_tokens",
        parse=number,
        help="tokens computed per step" + SUFFIX_HELP,
    ),
    Flag(
        name="max-num-seqs",
        field="max_num_seqs",
        parse=number,
        help="sequences running at once",
    ),
    Flag(
        name="max-decode-slowdown",
        field="max_decode_slowdown",
        parse=float,
        help="times as long as without prompts that a step may take, for the sake of who decodes",
    ),
    Flag(
        name="max-queued-requests",
        field="max_queued_requests",
        parse=number,
        help="requests that may wait; choices beyond the first of each (n) are bounded by the same"
        " number, at least 128",
    ),
    Flag(
        name="max-logprobs",
        field="max_logprobs",
        parse=int,
        help="alternatives a request may ask for at each token; -1: the whole vocabulary",
    ),
    Flag(
        name="logprobs-mode",
        field="logprobs_mode",
        choices=LOGPROBS_MODES,
        help="what is reported of tokens: before or after penalties, temperature and filters",
    ),
    Flag(
        name="logits-processors",
        field="logits_processors",
        many=True,
        help="subclasses of LogitsProcessor as module:Class, compiled into the step",
    ),
    Flag(
        name="scheduling-policy",
        field="scheduling_policy",
        choices=POLICIES,
        help="who runs first: who came first, or whose priority is lower",
    ),
    Flag(
        name="async-scheduling",
        field="async_scheduling",
        switch=True,
        help="plan a step while the one before it is computed",
    ),
    Flag(
        name="quantization",
        field="quantization",
        choices=QUANTIZATIONS,
        help="round weights to int8 as they are loaded, and activations as they come",
    ),
    Flag(
        name="kv-cache-dtype",
        field="kv_cache_dtype",
        choices=tuple(KV_CACHE_DTYPES),
        help="dtype of keys and values in pages; fp8 halves them",
    ),
    Flag(
        name="attention-backend",
        field="attention_backend",
        help="the attention kernel; by default the first that can do it",
    ),
    Flag(
        name="linear-backend",
        field="linear_backend",
        help="who multiplies by weights; by default the first of packed (on CPUs) and xla that can",
    ),
    Flag(
        name="compilation-cache",
        field="compilation_cache",
        switch=True,
        help="keep compiled programs on disk for the next start",
    ),
    Flag(
        name="executables",
        field="executables",
        help="folder of programs from `jaxserve compile --out`; trusted like code",
    ),
    Flag(
        name="warm-up",
        field="warm_up",
        choices=WARM_UPS,
        help="which programs to make before serving: the first, all or none",
    ),
)

SERVER_FLAGS = (
    Flag(name="host", field="host", help="address to listen on"),
    Flag(name="port", field="port", parse=int, help="port to listen on; 0 takes a free one"),
    Flag(
        name="uds", field="uds", help="path of a Unix socket to listen on in place of host and port"
    ),
    Flag(
        name="root-path",
        field="root_path",
        help="prefix of paths under which a proxy forwards requests, such as /llm",
    ),
    Flag(
        name="middleware",
        field="middleware",
        many=True,
        help="ASGI classes or functions of your own as module.name; may be given several times",
    ),
    Flag(
        name="disable-fastapi-docs",
        field="disable_docs",
        switch=True,
        help="serve no /openapi.json and no /docs",
    ),
    Flag(
        name="enable-tokenizer-info-endpoint",
        field="tokenizer_info",
        switch=True,
        help="serve the tokenizer's settings and its chat template at /tokenizer_info",
    ),
    Flag(
        name="disable-uvicorn-access-log",
        field="disable_access_log",
        switch=True,
        help="log no line for each request",
    ),
    Flag(
        name="disable-access-log-for-endpoints",
        field="quiet_paths",
        parse=comma_separated,
        help="comma-separated paths whose requests are not logged, such as /v1/models",
    ),
    Flag(
        name="stream-interval",
        field="stream_interval",
        parse=number,
        help="tokens of an answer per event of its stream, after the first",
    ),
    Flag(
        name="enable-per-request-metrics",
        field="per_request_metrics",
        switch=True,
        help="tell in answers how long they took",
    ),
    Flag(
        name="return-tokens-as-token-ids",
        field="return_tokens_as_token_ids",
        switch=True,
        help="write tokens as `token_id:ID` in log-probabilities, for requests that do not say",
    ),
    Flag(
        name="enable-force-include-usage",
        field="force_include_usage",
        switch=True,
        help="end every stream with its usage, as stream_options.include_usage does",
    ),
    Flag(
        name="strict-fields",
        field="strict_fields",
        switch=True,
        help="refuse requests with unknown fields, rather than ignore and report these",
    ),
    Flag(
        name="default-chat-template-kwargs",
        field="chat_template_kwargs",
        parse=json_object,
        help="chat_template_kwargs, as a JSON object, for requests that do not set them",
    ),
    Flag(
        name="api-key",
        field="api_keys",
        many=True,
        help=f"keys that clients must send one of (better: in {API_KEY_VARIABLE})",
    ),
    Flag(
        name="allowed-origins",
        field="allowed_origins",
        many=True,
        parse=json_strings,
        help="web origins whose pages may call the server; a JSON list is read, too",
    ),
    Flag(
        name="allowed-methods",
        field="allowed_methods",
        many=True,
        parse=json_strings,
        help="methods that those pages may use",
    ),
    Flag(
        name="allowed-headers",
        field="allowed_headers",
        many=True,
        parse=json_strings,
        help="headers that those pages may send",
    ),
    Flag(
        name="allow-credentials",
        field="allow_credentials",
        switch=True,
        help="let those pages send cookies and credentials",
    ),
    Flag(
        name="allowed-hosts",
        field="allowed_hosts",
        many=True,
        help="names that clients may call the server by, as in the Host header: llm.example.com,"
        " *.example.com, or * for any (default: any, but on a loopback address without a key only"
        " names of this machine)",
    ),
    Flag(
        name="disable-playground",
        field="disable_playground",
        switch=True,
        help="serve no page at / to talk to the model",
    ),
    Flag(name="ssl-certfile", field="ssl_certfile", help="TLS certificate"),
    Flag(name="ssl-keyfile", field="ssl_keyfile", help="TLS key"),
    Flag(name="ssl-ca-certs", field="ssl_ca_certs", help="certificates that clients' must be from"),
    Flag(
        name="ssl-cert-reqs",
        field="ssl_cert_reqs",
        parse=int,
        help="whether clients need certificates: 0 no, 1 may have one, 2 yes",
    ),
    Flag(name="ssl-ciphers", field="ssl_ciphers", help="TLS ciphers, as OpenSSL lists them"),
    Flag(
        name="enable-ssl-refresh",
        field="ssl_refresh",
        switch=True,
        help="load the TLS files again when they change",
    ),
    Flag(
        name="tool-call-parser",
        field="tool_call_parser",
        help="what finds tool calls in answers: auto (what the chat template shows), none, "
        + ", ".join(tool_parsers.names()),
    ),
    Flag(
        name="reasoning-parser",
        field="reasoning_parser",
        help="what finds reasoning in answers: auto, none, " + ", ".join(reasoning_parsers.names()),
    ),
    Flag(
        name="enable-auto-tool-choice",
        field="enable_auto_tool_choice",
        switch=True,
        help="look for tool calls that the model makes of its own accord",
    ),
    Flag(
        name="trust-request-chat-template",
        field="trust_request_chat_template",
        switch=True,
        help="let requests bring chat templates, which can take much time and memory",
    ),
    Flag(
        name="max-concurrent-requests",
        aliases=("--max-num-queued-reqs",),
        field="max_concurrent_requests",
        parse=number,
        help="answers made at once; more requests are refused",
    ),
    Flag(
        name="max-connections",
        field="max_connections",
        parse=number,
        help="connections at once, of each API process; beyond it only probes are answered",
    ),
    Flag(
        name="min-body-rate",
        field="min_body_rate",
        parse=number,
        help="bytes a second at which request bodies must come, after the first minute"
        + SUFFIX_HELP,
    ),
    Flag(
        name="max-buffered-body-bytes",
        field="max_buffered_body_bytes",
        parse=number,
        help="size of all request bodies being received at once, of each API process" + SUFFIX_HELP,
    ),
    Flag(
        name="batch-dir",
        field="batch_dir",
        help="folder for the files and batches of /v1/files and /v1/batches, to survive a restart",
    ),
    Flag(
        name="max-batch-bytes",
        field="max_batch_bytes",
        parse=number,
        help="size of all files of batches together" + SUFFIX_HELP,
    ),
    Flag(
        name="max-batch-requests",
        field="max_batch_requests",
        parse=number,
        help="requests of batches under way at once, at the lowest priority",
    ),
    Flag(
        name="max-stored-responses",
        field="max_stored_responses",
        parse=number,
        help="answers of /v1/responses that are kept to go on from",
    ),
    Flag(
        name="max-stored-response-bytes",
        field="max_stored_response_bytes",
        parse=number,
        help="and their size together" + SUFFIX_HELP,
    ),
    Flag(
        name="shutdown-delay",
        field="shutdown_delay_s",
        parse=float,
        help="seconds that a stopping server still takes requests while /ready answers 503, until"
        " load balancers have noticed",
    ),
    Flag(
        name="shutdown-timeout",
        field="shutdown_timeout_s",
        parse=float,
        help="seconds that answers may still take after --shutdown-delay",
    ),
    Flag(
        name="api-server-count",
        field="api_server_count",
        aliases=("-asc",),
        parse=int,
        help="processes that speak HTTP, beside the engine's",
    ),
    Flag(
        name="engine-start-timeout",
        field="engine_start_timeout_s",
        parse=float,
        help="seconds that an engine which loads may go without using the processor, as if a disk"
        " or the network hangs",
    ),
    Flag(
        name="engine-hang-timeout",
        field="engine_hang_timeout_s",
        parse=float,
        help="seconds after which a step that does not end is taken for a dead engine, not counting"
        " compilations; a process that is stopped is after a sixth of it",
    ),
    Flag(
        name="api-hang-timeout",
        field="api_hang_timeout_s",
        parse=float,
        help="seconds after which an API process without a sign of life is replaced",
    ),
    Flag(
        name="max-restarts",
        field="max_restarts",
        parse=int,
        help="times that an engine may die within --restart-window before the server ends",
    ),
    Flag(
        name="restart-window",
        field="restart_window_s",
        parse=float,
        help="seconds in which deaths are counted",
    ),
    Flag(
        name="restart-delay",
        field="restart_delay_s",
        parse=float,
        help="seconds until a dead engine starts again, doubled with each further death",
    ),
)

SAMPLING_FLAGS = (
    Flag(name="max-tokens", field="max_tokens", parse=number, help="tokens of the answer, at most"),
    Flag(name="temperature", field="temperature", parse=float, help="0 is greedy"),
    Flag(name="top-p", field="top_p", parse=float, help="keep the likeliest tokens of this mass"),
    Flag(name="top-k", field="top_k", parse=int, help="keep this many of the likeliest tokens"),
    Flag(
        name="min-p",
        field="min_p",
        parse=float,
        help="drop tokens less likely than this share of the likeliest",
    ),
    Flag(
        name="repetition-penalty",
        field="repetition_penalty",
        parse=float,
        help="above 1, tokens that were there become less likely",
    ),
    Flag(name="stop", field="stop", many=True, help="texts that end the answer"),
)


def engine_options(model: str | None, keywords: Mapping[str, Any]) -> EngineOptions:
    """Return the options of an engine; raises ConfigError naming a keyword that is none.

    Options of vLLM's that have no effect here are left out, and the log says so.
    """
    keywords, notes = split_inert(keywords)
    for note in notes:
        logger.warning(note)
    if keywords.get("max_model_len") in {"auto", -1}:
        keywords["max_model_len"] = None
    with speaking_of(ENGINE_FLAGS):
        return EngineOptions(model=model, **to_fields(keywords, ENGINE_FLAGS))


def server_config(keywords: Mapping[str, Any]) -> ServerConfig:
    """Return the settings of a server, with the API keys of the environment."""
    values = to_fields(keywords, SERVER_FLAGS)
    if "api_keys" not in values and os.environ.get(API_KEY_VARIABLE):
        values["api_keys"] = (os.environ[API_KEY_VARIABLE],)
    with speaking_of(SERVER_FLAGS):
        return ServerConfig(**values)


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of SamplingParams that the command line sets."""
    return to_fields(given(args, SAMPLING_FLAGS), SAMPLING_FLAGS)
