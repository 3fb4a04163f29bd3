"""Options by the names users know: on the command line, as keywords, and as fields of settings."""

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import chain
from typing import Any

from jaxserve.errors import ConfigError

# Decimal and binary, as vLLM reads them.
SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SUFFIXES |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SUFFIX_HELP = "; 8k is 8000, 8K is 8192, also m, M, g, G"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option: its name without dashes, the field it fills, how its text is read.

    many: it takes one or more values, and adds up where it is given several times. A switch takes
    none and has a `--no-` form.
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


def number_or_auto(text: str) -> int | None:
    """Read a whole number as `number` does; `auto` and -1, vLLM's words for it, are None."""
    return None if text.strip() in {"auto", "-1"} else number(text)


def json_object(text: str) -> object:
    """Read a JSON object; raises ArgumentTypeError."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def json_strings(text: str) -> tuple[str, ...]:
    """Read one string, or a JSON list of them as vLLM's flags of lists want it.

    Raises ArgumentTypeError.
    """
    if not text.startswith("["):
        return (text,)
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise argparse.ArgumentTypeError(f"must be a string or a JSON list of them, got {text!r}")
    return tuple(values)


def comma_separated(text: str) -> tuple[str, ...]:
    """Read values separated by commas."""
    return tuple(value.strip() for value in text.split(",") if value.strip())


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
            action="extend" if flag.many else "store",
            metavar=None if flag.choices else flag.name.split("-")[-1].upper(),
            default=argparse.SUPPRESS,
            help=_help(flag, default_of.get(flag.field)),
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


def _help(flag: Flag, default: object) -> str:
    text = flag.help.replace("%", "%%")  # argparse formats it
    if isinstance(default, bool):
        return f"{text} (default: {'on' if default else 'off'})"
    if isinstance(default, str | int | float) and default != "":
        return f"{text} (default: {default})"
    return text
