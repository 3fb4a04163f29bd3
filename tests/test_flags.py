"""The table of options: one flag for each, and how their numbers are read."""

from argparse import ArgumentTypeError
from dataclasses import fields

import pytest

from jaxserve.config.engine import EngineOptions
from jaxserve.config.flag import number
from jaxserve.config.flags import ENGINE_FLAGS, SAMPLING_FLAGS, SERVER_FLAGS


@pytest.mark.parametrize(
    ("text", "value"),
    [("512", 512), ("8k", 8000), ("8K", 8192), ("1.5k", 1500), ("0.5K", 512), ("2g", 2 * 10**9)],
)
def test_numbers_have_decimal_and_binary_suffixes(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "8kb", "1e3", "0x10"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="a whole number"):
        number(text)


def test_every_option_of_the_engine_has_a_flag() -> None:
    flags = [flag.field for flag in ENGINE_FLAGS]
    assert sorted([*flags, "model"]) == sorted(field.name for field in fields(EngineOptions))


def test_no_two_flags_have_one_name() -> None:
    names = [flag.keyword for flag in (*ENGINE_FLAGS, *SERVER_FLAGS, *SAMPLING_FLAGS)]
    assert len(names) == len(set(names))
