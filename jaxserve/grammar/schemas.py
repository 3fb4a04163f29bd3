"""Check JSON schemas before llguidance compiles them, and set its options.

llguidance reads the numbers of a schema as doubles, and does not remember which keys an object
already has. Schemas that it would silently enforce in part are refused here, by keyword.
"""

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from jaxserve.api.structured_outputs import StructuredOutputsParams, refusal
from jaxserve.config.structured_outputs import StructuredOutputsConfig
from jaxserve.grammar import formats

# llguidance counts in 64 bits.
MAX_BOUND = 9 * 10**18
# It looks for the next integer in doubles.
MAX_EXCLUSIVE = 2**53 - 1
# The time of a bitmask grows with the square of this number: a few ms at the limit.
MAX_OPTIONAL_PROPERTIES = 1000
# With minProperties or maxProperties of 1, each property adds a grammar of all of them.
MAX_COUNTED_PROPERTIES = 64
# Compiling enumerates the remainders, which takes a second for this many.
MAX_MULTIPLE = 100_000
# Keywords that apply several schemas to one value.
MEETING = ("allOf", "anyOf", "oneOf", "$ref")
MAX_SHOWN_DIGITS = 24
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Keywords that do not constrain answers.
SILENT = frozenset({"default", "examples", "example", "description", "title", "$comment"})
# One spelling per string: a key or a value spelled with \u could bypass a key that is forbidden or
# already present. Without \u, no control characters but these can be written.
ESCAPES = 'nrbtf\\"'
# Default separators: compact JSON, or that of `json.dumps`.
SEPARATORS = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}
# The separators of calls in chat templates, which models were trained on.
DUMPED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


def whitespace_options(
    params: StructuredOutputsParams, defaults: StructuredOutputsConfig
) -> Mapping[str, Any]:
    """Return llguidance's options for the white space set by the request, else by the server."""
    pattern = params.whitespace_pattern
    is_compact = params.disable_any_whitespace
    if pattern is None and not is_compact:
        pattern, is_compact = defaults.whitespace_pattern, defaults.disable_any_whitespace
    if is_compact:
        return {"whitespace_flexible": False}
    return SEPARATORS if pattern is None else {"whitespace_pattern": pattern}


def followed(
    schema: formats.Schema, options: Mapping[str, Any], *, kind: str, is_closed: bool = False
) -> dict[str, Any]:
    """Return a schema with llguidance's options added. Raises InvalidRequestError.

    The schema may set options of its own (`x-guidance`), except for those that would ignore
    unsupported keywords. kind: the field of `structured_outputs`, for error messages. is_closed:
    whether objects may have only the properties that the schema names.
    """
    whole: dict[str, Any] = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
    _check(whole, kind)
    _check_multiples(whole, kind)
    if is_closed:
        whole = _closed(whole)
    asked = whole.get("x-guidance")
    own = asked if isinstance(asked, dict) else {}
    fixed = {
        "lenient": False,
        "json_allowed_escapes": ESCAPES,
        "json_allow_general_unicode_escapes": False,
    }
    return {**whole, "x-guidance": {**options, **own, **fixed}}


def _check(value: Any, kind: str) -> None:
    """Raise InvalidRequestError if llguidance would enforce the schema only in part."""
    if isinstance(value, list):
        for inner in value:
            _check(inner, kind)
    if not isinstance(value, dict):
        return
    for keyword in BOUNDS:
        bound = value.get(keyword)
        if isinstance(bound, int | Decimal) and not isinstance(bound, bool):
            limit = MAX_EXCLUSIVE if keyword.startswith("exclusive") else MAX_BOUND
            _check_number(bound, keyword, kind, limit)
    for keyword in ("const", "enum"):
        for inner in _scalars(value.get(keyword)):
            _check_scalar(inner, keyword, kind)
    if value.get("multipleOf") == 0:
        raise refusal(kind, "must have a multipleOf above 0, got 0")
    required = value.get("required")
    num_required = len(set(map(str, required))) if isinstance(required, list) else 0
    least = value.get("minProperties")
    if isinstance(least, int) and least > num_required + 1:
        raise refusal(
            kind,
            f"must have minProperties of at most {num_required + 1}, one more than its number of"
            f" required properties, got {least}: the grammar cannot keep optional keys distinct",
        )
    properties = value.get("properties")
    num_optional = (len(properties) if isinstance(properties, dict) else 0) - num_required
    is_counted = least == 1 or value.get("maxProperties") == 1
    limit = MAX_COUNTED_PROPERTIES if is_counted else MAX_OPTIONAL_PROPERTIES
    if num_optional > limit:
        where = "an object with minProperties or maxProperties" if is_counted else "one object"
        raise refusal(
            kind,
            f"must have at most {limit} optional properties in {where}, got {num_optional}",
        )
    for keyword, inner in value.items():
        if keyword not in SILENT:
            _check(inner, kind)


def _check_multiples(schema: dict[str, Any], kind: str) -> None:
    """Raise InvalidRequestError if a multipleOf is too large for llguidance.

    It enumerates the remainders, and multiplies in 32 bits where several schemas apply.
    """
    found = [*_values_of("multipleOf", schema)]
    numbers = (Decimal(value) for value in found if isinstance(value, int | Decimal))
    multiples = {value for value in numbers if Decimal(0) < value <= Decimal(MAX_BOUND)}
    if not multiples:
        return
    exponents = [value.normalize().as_tuple().exponent for value in multiples]
    exponent = max(-each for each in exponents if isinstance(each, int))
    exponent = max(0, exponent)
    scaled = [int(value.scaleb(exponent)) for value in multiples]
    can_meet = any(True for word in MEETING for _ in _values_of(word, schema))
    together = math.lcm(*scaled) if can_meet else max(scaled)
    while exponent and together % 10 == 0:
        together, exponent = together // 10, exponent - 1
    if together > MAX_MULTIPLE or (can_meet and math.lcm(*scaled) * max(scaled) >= 2**32):
        raise refusal(
            kind,
            f"must have a multipleOf, or a least common multiple of several, of at most"
            f" {MAX_MULTIPLE} units of its last decimal place",
        )


def _values_of(keyword: str, value: Any) -> Iterator[Any]:
    """Yield every value of a keyword in a schema."""
    if isinstance(value, dict):
        if keyword in value:
            yield value[keyword]
        for inner in value.values():
            yield from _values_of(keyword, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values_of(keyword, inner)


def _check_scalar(value: object, keyword: str, kind: str) -> None:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        _check_number(value, keyword, kind)
    elif isinstance(value, str) and not all(map(_is_written, value)):
        complaint = f"must have no control characters in {keyword} but \\b, \\f, \\n, \\r and \\t"
        raise refusal(kind, complaint)


def _check_number(value: int | Decimal, keyword: str, kind: str, limit: int = MAX_BOUND) -> None:
    """Raise InvalidRequestError for a number that llguidance would not read exactly."""
    shown = f"{Decimal(value):.{MAX_SHOWN_DIGITS}g}"
    if abs(Decimal(value)) > limit:
        raise refusal(kind, f"must have numbers of at most {limit} in {keyword}, got {shown}")
    if not is_exact(value):
        complaint = f"must have numbers in {keyword} that a double holds exactly, got {shown}"
        raise refusal(kind, complaint)


def is_exact(value: int | Decimal) -> bool:
    """Whether the shortest decimal of the nearest double equals the number."""
    try:
        return Decimal(repr(float(value))) == value
    except OverflowError:
        return False


def _scalars(value: object) -> Iterator[object]:
    """Yield all keys, strings and numbers in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _scalars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner)
    else:
        yield value


def _is_written(char: str) -> bool:
    return (" " <= char != "\x7f") or char in "\b\f\n\r\t"


def _closed(value: Any) -> Any:
    """Return a schema whose objects may have only the properties that it names."""
    if isinstance(value, list):
        return [_closed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    closed = {key: _closed(inner) for key, inner in value.items()}
    if "properties" in value and "patternProperties" not in value:
        closed.setdefault("additionalProperties", False)
    return closed
