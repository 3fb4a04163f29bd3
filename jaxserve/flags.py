"""The one table of options by the names users know, vLLM's where the thing is the same.

A flag `--gpu-memory-utilization` is the keyword `gpu_memory_utilization` of `LLM` and the key
`gpu-memory-utilization` of a config file; the table says which field of which settings it fills.
Defaults are those of the settings: a flag that is not given appears nowhere.
"""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from jaxserve.config import (
    DTYPES,
    GENERATION_CONFIGS,
    KV_CACHE_DTYPES,
    LOAD_FORMATS,
    POLICIES,
    QUANTIZATIONS,
    WARM_UPS,
    EngineOptions,
)
from jaxserve.errors import ConfigError
from jaxserve.server.config import ServerConfig

API_KEY_VARIABLE = "JAXSERVE_API_KEY"
# Decimal and binary, as vLLM reads them.
SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SUFFIXES |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SUFFIX_HELP = "; 8k is 8000, 8K is 8192, also m, M, g, G"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option: its name without dashes, the field it fills, how its text is read.

    many: it takes one or more values. A switch takes none and has a `--no-` form.
    """

    name: str
    field: str
    help: str
    parse: Callable[[str], object] = str
    choices: tuple[str, ...] | None = None
    many: bool = False
    switch: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def keyword(self) -> str:
        """The name as a Python keyword."""
        return self.name.replace("-", "_")


def number(text: str) -> int:
    """Read a whole number that may end in a suffix: 4096, 8k, 1.5g, 8K.

    Raises ArgumentTypeError, whose text is what the user gets to read.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)", text.strip())
    value = Fraction(match[1]) * SUFFIXES.get(match[2], 1) if match else None
    if value is None or not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}{SUFFIX_HELP}")
    return int(value)


ENGINE_FLAGS = (
    Flag(
        name="served-model-name",
        field="served_model_names",
        many=True,
        help="names the API knows the model by; the first stands in answers",
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
        choices=GENERATION_CONFIGS,
        help="auto: the model's sampling defaults; vllm: neutral ones",
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
        parse=number,
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
        help="requests waiting before new ones are refused",
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
        name="api-key",
        field="api_keys",
        many=True,
        help=f"keys that clients must send one of (better: in {API_KEY_VARIABLE})",
    ),
    Flag(
        name="allowed-origins",
        field="allowed_origins",
        many=True,
        help="web origins whose pages may call the server",
    ),
    Flag(name="ssl-certfile", field="ssl_certfile", help="TLS certificate"),
    Flag(name="ssl-keyfile", field="ssl_keyfile", help="TLS key"),
    Flag(
        name="max-concurrent-requests",
        field="max_concurrent_requests",
        parse=number,
        help="answers made at once; more requests are refused",
    ),
    Flag(
        name="max-connections",
        field="max_connections",
        parse=number,
        help="connections at once",
    ),
    Flag(
        name="shutdown-timeout",
        field="shutdown_timeout_s",
        parse=float,
        help="seconds that answers may still take when the server stops",
    ),
    Flag(
        name="api-server-count",
        field="api_server_count",
        parse=int,
        help="processes that speak HTTP, beside the engine's",
    ),
    Flag(
        name="engine-hang-timeout",
        field="engine_hang_timeout_s",
        parse=float,
        help="seconds after which a step that does not end is taken for a dead engine",
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


def add_flags(
    parser: argparse.ArgumentParser,
    title: str,
    flags: Iterable[Flag],
    *,
    defaults: type[EngineOptions | ServerConfig] | None = None,
) -> None:
    """Add flags to a parser as a group; those not given leave no attribute behind.

    defaults: the settings whose defaults the help shows.
    """
    group = parser.add_argument_group(title)
    default_of = {field.name: field.default for field in fields(defaults)} if defaults else {}
    for flag in flags:
        names = [f"--{flag.name}", *flag.aliases]
        if flag.switch:
            group.add_argument(
                *names,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=_help(flag, default_of.get(flag.field)),
            )
            continue
        group.add_argument(
            *names,
            type=flag.parse,
            choices=flag.choices,
            nargs="+" if flag.many else None,
            metavar=None if flag.choices else flag.name.split("-")[-1].upper(),
            default=argparse.SUPPRESS,
            help=_help(flag, default_of.get(flag.field)),
        )


def given(args: argparse.Namespace, flags: Iterable[Flag]) -> dict[str, Any]:
    """Return the flags that were given, by keyword."""
    values = vars(args)
    return {flag.keyword: values[flag.keyword] for flag in flags if flag.keyword in values}


def engine_options(model: str | None, keywords: Mapping[str, Any]) -> EngineOptions:
    """Return the options of an engine; raises ConfigError naming a keyword that is none."""
    with _speaking_of(ENGINE_FLAGS):
        return EngineOptions(model=model, **_to_fields(keywords, ENGINE_FLAGS))


def server_config(keywords: Mapping[str, Any]) -> ServerConfig:
    """Return the settings of a server, with the API keys of the environment."""
    values = _to_fields(keywords, SERVER_FLAGS)
    if "api_keys" not in values and os.environ.get(API_KEY_VARIABLE):
        values["api_keys"] = (os.environ[API_KEY_VARIABLE],)
    with _speaking_of(SERVER_FLAGS):
        return ServerConfig(**values)


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of SamplingParams that the command line sets."""
    return _to_fields(given(args, SAMPLING_FLAGS), SAMPLING_FLAGS)


def _to_fields(keywords: Mapping[str, Any], flags: Iterable[Flag]) -> dict[str, Any]:
    by_keyword = {flag.keyword: flag for flag in flags}
    values: dict[str, Any] = {}
    for keyword, value in keywords.items():
        flag = by_keyword.get(keyword)
        if flag is None:
            near = difflib.get_close_matches(keyword, by_keyword, n=1)
            raise ConfigError(
                f"there is no option {keyword}" + (f": did you mean {near[0]}?" if near else "")
            )
        if flag.many:
            value = (value,) if isinstance(value, str) else tuple(value)
        values[flag.field] = value
    return values


@contextmanager
def _speaking_of(flags: Iterable[Flag]) -> Iterator[None]:
    """Let errors speak of fields by the names that users have for them."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for flag in flags:
            text = re.sub(rf"\b{flag.field}\b", flag.keyword, text)
        raise ConfigError(text) from error


def _help(flag: Flag, default: object) -> str:
    text = flag.help.replace("%", "%%")  # argparse formats it
    if isinstance(default, bool):
        return f"{text} (default: {'on' if default else 'off'})"
    if isinstance(default, str | int | float) and default != "":
        return f"{text} (default: {default})"
    return text
