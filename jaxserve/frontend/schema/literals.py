"""Exact numbers in request bodies, because doubles would round the numbers of a schema."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from jaxserve.errors import InvalidRequestError
from jaxserve.grammar.schemas import SILENT

# Fields of any body that can contain a JSON schema.
SCHEMA_FIELDS = frozenset(
    {
        "guided_json",
        "output_config",
        "output_format",
        "response_format",
        "structured_outputs",
        "text",
        "tools",
    }
)
# A double represents any decimal of this many digits.
NUM_DIGITS = 15
MAX_SHOWN_CHARS = 40


class RoundedFloat(float):
    """A float that differs from its literal. literal: the number as written."""

    literal: str


def read_float(literal: str) -> float:
    """Return the float of a JSON number. Raises ValueError if it is out of range."""
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(literal)
    if len(literal) <= NUM_DIGITS or Decimal(repr(value)) == Decimal(literal):
        return value
    rounded = RoundedFloat(value)
    rounded.literal = literal
    return rounded


def encode_json(value: object) -> bytes:
    """Encode a decoded body, or a part of one, with its numbers as they were written."""
    return _encoder.encode(value)


def _as_written(value: object) -> msgspec.Raw:
    if isinstance(value, RoundedFloat):
        return msgspec.Raw(value.literal.encode())
    raise NotImplementedError(f"no JSON: {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_as_written)


def check_schemas(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError if a number in a schema was rounded, naming the field."""
    for name in SCHEMA_FIELDS & body.keys():
        literal = _rounded(body[name])
        if literal is not None:
            raise InvalidRequestError(
                f"{name} must have numbers that a double holds exactly,"
                f" got {literal[:MAX_SHOWN_CHARS]}",
                param=name,
            )


def _rounded(value: object) -> str | None:
    """Return the literal of the first rounded number in a JSON value, or None."""
    left = [value]
    while left:
        match left.pop():
            case RoundedFloat() as number:
                return number.literal
            case dict() as fields:
                left += [inner for key, inner in fields.items() if key not in SILENT]
            case list() as values:
                left += values
    return None
