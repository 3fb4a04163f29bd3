"""Convert the text of flags to values; each function raises ArgumentTypeError with the reason."""

import argparse
import json
import re
from fractions import Fraction

# Decimal and binary suffixes, as in vLLM.
SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SUFFIXES |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SUFFIX_HELP = "; 8k is 8000, 8K is 8192, also m, M, g, G"


def number(text: str) -> int:
    """Parse a whole number with an optional suffix: 4096, -1, 8k, 1.5g, 8K."""
    match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)", text.strip())
    value = Fraction(match[1]) * SUFFIXES.get(match[2], 1) if match else None
    if value is None or not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}{SUFFIX_HELP}")
    return int(value)


def number_or_auto(text: str) -> int | None:
    """Parse a whole number like `number`. vLLM's values `auto` and -1 are None."""
    return None if text.strip() in {"auto", "-1"} else number(text)


def json_object(text: str) -> object:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def json_strings(text: str) -> tuple[str, ...]:
    """Parse one string, or a JSON list of strings as in vLLM."""
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
    """Parse values separated by commas."""
    return tuple(value.strip() for value in text.split(",") if value.strip())
