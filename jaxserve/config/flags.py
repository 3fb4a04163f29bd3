"""Convert flags of the command line and keyword arguments of `LLM` to settings.

A flag `--gpu-memory-utilization` is the keyword `gpu_memory_utilization` of `LLM` and the key
`gpu-memory-utilization` of a config file. Settings classes declare flags (`config/option.py`).
"""

import argparse
import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from typing import Any

from jaxserve.config.engine import EngineOptions
from jaxserve.config.option import Flag, default_of, flags_of
from jaxserve.config.server import API_KEY_VARIABLE, VLLM_API_KEY_VARIABLE, ServerConfig
from jaxserve.config.values import number
from jaxserve.config.vllm_flags import split_inert
from jaxserve.errors import ConfigError

logger = logging.getLogger(__name__)

ENGINE_FLAGS = flags_of(EngineOptions)
SERVER_FLAGS = flags_of(ServerConfig)
SAMPLING_FLAGS = (
    Flag(
        name="max-tokens", field="max_tokens", parse=number, help="maximum number of output tokens"
    ),
    Flag(
        name="temperature",
        field="temperature",
        parse=float,
        help="sampling temperature; 0 is greedy",
    ),
    Flag(
        name="top-p",
        field="top_p",
        parse=float,
        help="keep the most likely tokens with this total probability",
    ),
    Flag(name="top-k", field="top_k", parse=number, help="number of most likely tokens to keep"),
    Flag(
        name="min-p",
        field="min_p",
        parse=float,
        help="drop tokens less likely than this share of the most likely one",
    ),
    Flag(
        name="repetition-penalty",
        field="repetition_penalty",
        parse=float,
        help="penalty for tokens that occurred before; above 1 makes them less likely",
    ),
    Flag(name="stop", field="stop", many=True, help="stop strings"),
)


def add_flags(
    parser: argparse.ArgumentParser,
    title: str,
    flags: Iterable[Flag],
    *,
    defaults: type[Any] | None = None,
) -> None:
    """Add flags to a parser as a group. Flags that are not given set no attribute.

    defaults: settings class whose defaults the help shows.
    """
    group = parser.add_argument_group(title)
    shown = {each.name: default_of(each) for each in fields(defaults)} if defaults else {}
    for flag in flags:
        names = [f"--{flag.name}", *flag.aliases]
        if flag.switch:
            group.add_argument(
                *names,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=_help(flag, shown.get(flag.field)),
            )
            continue
        group.add_argument(
            *names,
            type=flag.parse,
            choices=flag.choices,
            nargs="+" if flag.many else None,
            action="extend" if flag.many else "store",
            metavar=None if flag.choices else flag.name.split("-")[-1].upper(),
            default=argparse.SUPPRESS,
            help=_help(flag, shown.get(flag.field)),
        )


def given(args: argparse.Namespace, flags: Iterable[Flag]) -> dict[str, Any]:
    """Return the values of the given flags by keyword."""
    values = vars(args)
    return {flag.keyword: values[flag.keyword] for flag in flags if flag.keyword in values}


def to_fields(keywords: Mapping[str, Any], flags: Iterable[Flag]) -> dict[str, Any]:
    """Return the values of flags by field name. Raises ConfigError for an unknown keyword."""
    by_keyword = {flag.keyword: flag for flag in flags}
    values: dict[str, Any] = {}
    for keyword, value in keywords.items():
        flag = by_keyword.get(keyword)
        if flag is None:
            near = difflib.get_close_matches(keyword, by_keyword, n=1)
            raise ConfigError(
                f"unknown option {keyword}" + (f": did you mean {near[0]}?" if near else "")
            )
        if flag.many:
            values_of = (each if isinstance(each, tuple) else (each,) for each in listed(value))
            value = tuple(chain.from_iterable(values_of))
        values[flag.field] = value
    return values


def listed(value: Any) -> Iterable[Any]:
    """Return a single string as a tuple; return other values unchanged."""
    return (value,) if isinstance(value, str) else value


@contextmanager
def speaking_of(flags: Iterable[Flag]) -> Iterator[None]:
    """Replace field names in the messages of ConfigErrors by the names of their flags."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for flag in flags:
            text = re.sub(rf"\b{flag.field}\b", flag.keyword, text)
        raise ConfigError(text) from error


def engine_options(model: str | None, keywords: Mapping[str, Any]) -> EngineOptions:
    """Return the options of an engine. Raises ConfigError for an unknown keyword.

    Logs and drops options of vLLM that have no effect.
    """
    keywords, notes = split_inert(keywords)
    for note in notes:
        logger.warning(note)
    if keywords.get("max_model_len") in {"auto", -1}:
        keywords["max_model_len"] = None
    with speaking_of(ENGINE_FLAGS):
        return EngineOptions(model=model, **to_fields(keywords, ENGINE_FLAGS))


def server_config(keywords: Mapping[str, Any]) -> ServerConfig:
    """Return the settings of a server. API keys default to those of the environment."""
    values = to_fields(keywords, SERVER_FLAGS)
    key = os.environ.get(API_KEY_VARIABLE) or os.environ.get(VLLM_API_KEY_VARIABLE)
    if "api_keys" not in values and key:
        values["api_keys"] = (key,)
    with speaking_of(SERVER_FLAGS):
        return ServerConfig(**values)


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of SamplingParams that were given on the command line."""
    return to_fields(given(args, SAMPLING_FLAGS), SAMPLING_FLAGS)


def _help(flag: Flag, default: object) -> str:
    text = flag.help.replace("%", "%%")  # argparse formats it
    if isinstance(default, bool):
        return f"{text} (default: {'on' if default else 'off'})"
    if isinstance(default, str | int | float) and default != "":
        return f"{text} (default: {default})"
    return text
