"""Flags as the command line and `LLM` take them, made into settings.

A flag `--gpu-memory-utilization` is the keyword `gpu_memory_utilization` of `LLM` and the key
`gpu-memory-utilization` of a config file. The settings classes declare them (`config/option.py`).
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
    Flag(name="max-tokens", field="max_tokens", parse=number, help="tokens of the answer, at most"),
    Flag(name="temperature", field="temperature", parse=float, help="0 is greedy"),
    Flag(name="top-p", field="top_p", parse=float, help="keep the likeliest tokens of this mass"),
    Flag(name="top-k", field="top_k", parse=number, help="keep this many of the likeliest tokens"),
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
    defaults: type[Any] | None = None,
) -> None:
    """Add flags to a parser as a group; those not given leave no attribute behind.

    defaults: the settings whose defaults the help shows.
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
    """Return the flags that were given, by keyword."""
    values = vars(args)
    return {flag.keyword: values[flag.keyword] for flag in flags if flag.keyword in values}


def to_fields(keywords: Mapping[str, Any], flags: Iterable[Flag]) -> dict[str, Any]:
    """Return the values of flags by the fields they fill; ConfigError names what is no flag."""
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
            values_of = (each if isinstance(each, tuple) else (each,) for each in listed(value))
            value = tuple(chain.from_iterable(values_of))
        values[flag.field] = value
    return values


def listed(value: Any) -> Iterable[Any]:
    """Return one value, or several, as several."""
    return (value,) if isinstance(value, str) else value


@contextmanager
def speaking_of(flags: Iterable[Flag]) -> Iterator[None]:
    """Let errors speak of fields by the names that users have for them."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for flag in flags:
            text = re.sub(rf"\b{flag.field}\b", flag.keyword, text)
        raise ConfigError(text) from error


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
    key = os.environ.get(API_KEY_VARIABLE) or os.environ.get(VLLM_API_KEY_VARIABLE)
    if "api_keys" not in values and key:
        values["api_keys"] = (key,)
    with speaking_of(SERVER_FLAGS):
        return ServerConfig(**values)


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of SamplingParams that the command line sets."""
    return to_fields(given(args, SAMPLING_FLAGS), SAMPLING_FLAGS)


def _help(flag: Flag, default: object) -> str:
    text = flag.help.replace("%", "%%")  # argparse formats it
    if isinstance(default, bool):
        return f"{text} (default: {'on' if default else 'off'})"
    if isinstance(default, str | int | float) and default != "":
        return f"{text} (default: {default})"
    return text
