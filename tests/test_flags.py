"""The table of options: one flag for each, and how their numbers are read."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pytest

from jaxserve.config.engine import EngineOptions
from jaxserve.config.flags import (
    ENGINE_FLAGS,
    SAMPLING_FLAGS,
    SERVER_FLAGS,
    add_flags,
    given,
    to_fields,
)
from jaxserve.config.option import check_options, flags_of, option
from jaxserve.config.values import number
from jaxserve.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        ("-1", -1),
        ("8k", 8000),
        ("8K", 8192),
        ("1.5k", 1500),
        ("0.5K", 512),
        ("2g", 2 * 10**9),
    ],
)
def test_numbers_have_decimal_and_binary_suffixes(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "k", "-", "1.5", "8kb", "1e3", "0x10"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="a whole number"):
        number(text)


def test_every_option_of_the_engine_has_a_flag() -> None:
    flags = [flag.field for flag in ENGINE_FLAGS]
    assert sorted([*flags, "model"]) == sorted(field.name for field in fields(EngineOptions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    names: tuple[str, ...] = option((), "names")
    fraction: float = option(0.5, "a share", flag="the-share", above=0, at_most=1)
    count: int | None = option(None, "a count", at_least=1)
    mode: str = option("a", "a mode", choices=("a", "b"))
    is_on: bool = option(True, "whether it is on")
    values: Mapping[str, Any] = option({}, "values")
    hidden_s: float = option(1.0, "seconds", flag="", above=0)

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fraction": 0}, "fraction must be a number in (0, 1], got 0"),
        ({"fraction": float("nan")}, "fraction must be a number in (0, 1], got nan"),
        ({"count": 0}, "count must be an integer of at least 1, got 0"),
        ({"count": True}, "count must be an integer of at least 1, got True"),
        ({"count": 1.0}, "count must be an integer of at least 1, got 1.0"),
        ({"mode": "c"}, "mode must be one of a, b, got 'c'"),
        ({"is_on": 1}, "is_on must be true or false, got 1"),
        ({"values": []}, "values must be a JSON object, got []"),
        ({"names": "x"}, "names must be a sequence of strings, got 'x'"),
        ({"hidden_s": 0}, "hidden_s must be a number above 0, got 0"),
    ],
)
def test_a_value_beyond_what_an_option_allows_is_refused(changed: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(**changed)
    assert str(error.value) == message


def test_options_make_flags_that_fill_their_fields() -> None:
    parser = ArgumentParser()
    flags = flags_of(Settings)
    add_flags(parser, "settings", flags, defaults=Settings)
    text = '--names a b --names c --the-share 1 --count 2K --mode b --no-is-on --values {"a":1}'
    values = to_fields(given(parser.parse_args(text.split()), flags), flags)
    assert Settings(**values) == Settings(
        names=("a", "b", "c"), fraction=1, count=2048, mode="b", is_on=False, values={"a": 1}
    )
    assert "--hidden-s" not in parser.format_help()
    assert "a share (default: 0.5)" in parser.format_help()


def test_settings_do_not_share_their_mappings() -> None:
    assert Settings().values is not Settings().values


def test_no_two_flags_have_one_name() -> None:
    names = [flag.keyword for flag in (*ENGINE_FLAGS, *SERVER_FLAGS, *SAMPLING_FLAGS)]
    assert len(names) == len(set(names))
